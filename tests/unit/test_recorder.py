"""Recorder: what it writes is what replay reads, and holds no secret."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from worker.capture.forms import decoded
from worker.capture.read import Source
from worker.capture.record import Output, Recorder, line_of
from worker.core.errors import Malformed
from worker.core.intake import Routed
from worker.core.notification import Notification, decode
from worker.testing.fake_cloud import notification

FIXTURES = Path(__file__).parents[1] / "fixtures" / "notifications"
SECRET = "s3cr3t-that-nobody-may-see"


Make = Callable[..., Recorder]


@pytest.fixture
def recorder() -> Iterator[Make]:
    """Makes recorders, whose files are closed at the end."""
    outputs: list[Output] = []

    def make(path: Path, *, size: int = 0, keep: int = 0) -> Recorder:
        outputs.append(Output(str(path), size=size, keep=keep))
        return Recorder(outputs[-1], wrote=lambda _: None, failed=lambda _: None)

    yield make
    for output in outputs:
        output.close()


async def record(one: Recorder, *bodies: bytes) -> None:
    await one.accept([routed for body in bodies if (routed := one.route(body))])


async def test_what_is_recorded_reads_the_same(tmp_path: Path, recorder: Make) -> None:
    file = tmp_path / "capture.jsonl"
    bodies = [
        json.loads(line)["raw"].encode()
        for path in FIXTURES.glob("*.jsonl")
        for line in path.read_bytes().splitlines()
    ]
    await record(recorder(file), *bodies)
    again = [Notification.of(decoded(message.body)) for message in Source(str(file)).messages()]
    assert again == [Notification.of(decode(body)) for body in bodies]


@pytest.mark.parametrize(
    "payload",
    [
        {"auth_token": SECRET},
        {"deep": {"admin_password": SECRET}},
        {"rows": [{"connection_info": {"data": {"anything": SECRET}}}]},
        {"connector": {"initiator": SECRET}},
        {"rows": [["x", {"secret": SECRET}]]},
        {"message": f"failed: 'password': '{SECRET}'"},
        f"failed with password = {SECRET}",
        {"url": f"https://user:{SECRET}@host/path"},
        {
            "API_KEY": SECRET,
            "Authorization": f"Bearer {SECRET}",
            "cookie": SECRET,
            "user_data": SECRET,
        },
    ],
)
def test_secrets_are_masked(payload: object) -> None:
    message = {
        "event_type": "x",
        "_context_auth_token": SECRET,
        "ctxt": {"token": SECRET},
        "payload": payload,
    }
    line = line_of(message)
    assert SECRET.encode() not in line
    assert json.loads(line)["event_type"] == "x"


async def test_what_nobody_can_read_is_not_written(tmp_path: Path, recorder: Make) -> None:
    one = recorder(tmp_path / "capture.jsonl")
    assert not one.route(b"garbage")
    assert one.route(notification("x", {}))
    assert not Routed()


async def test_it_is_rotated_compressed_and_all_of_it_is_there(
    tmp_path: Path, recorder: Make
) -> None:
    file = tmp_path / "capture.jsonl"
    one = recorder(file, size=2000)
    for number in range(40):
        await record(one, notification("image.update", {"number": number}))
    parts = sorted(file.parent.glob("capture-*.jsonl.gz"))
    assert len(parts) > 2
    assert not list(file.parent.glob("*.part"))
    numbers = [
        decoded(message.body)["payload"]["number"]
        for path in (*parts, file)
        for message in Source(str(path)).messages()
    ]
    assert numbers == list(range(40))
    assert all(path.stat().st_mode & 0o077 == 0 for path in (*parts, file))
    assert gzip.decompress(parts[0].read_bytes()).endswith(b"\n")


async def test_only_so_many_parts_stay(tmp_path: Path, recorder: Make) -> None:
    file = tmp_path / "capture.jsonl"
    others = [
        tmp_path / f"capture-{name}-20260101T000000.000000Z.jsonl.gz" for name in ("0", "cinder")
    ]
    for path in others:
        path.touch()
    one = recorder(file, size=500, keep=2)
    for number in range(30):
        await record(one, notification("image.update", {"number": number}))
    assert len([name for name in os.listdir(tmp_path) if name.startswith("capture-2")]) == 2
    assert all(path.exists() for path in others), "what others have set aside stays"


async def test_a_recording_that_was_broken_off_goes_on(tmp_path: Path, recorder: Make) -> None:
    file = tmp_path / "capture.jsonl"
    for number in range(3):
        output = Output(str(file))
        one = Recorder(output, wrote=lambda _: None, failed=lambda _: None)
        await record(one, notification("image.update", {"number": number}))
        output.close()
        with file.open("ab") as half:
            half.write(b'{"message_id": "ha')
    messages = list(Source(str(file)).messages())
    assert [message.body.endswith(b'"ha') for message in messages] == [False, True] * 3


async def test_two_recordings_do_not_write_one_file(tmp_path: Path, recorder: Make) -> None:
    file = tmp_path / "capture.jsonl"
    await record(
        recorder(file, size=500),
        *(notification("image.update", {"number": number}) for number in range(9)),
    )
    with pytest.raises(OSError, match="another recording writes it"):
        Output(str(file)).open()


async def test_a_second_recording_waits_for_the_first_one_to_set_its_file_aside(
    tmp_path: Path, recorder: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, refused = tmp_path / "capture.jsonl", list[str]()
    real = shutil.copyfileobj

    def slow(source: BinaryIO, packed: BinaryIO) -> None:
        real(source, packed)
        # Everything is read, nothing deleted yet
        other = Output(str(file))
        try:
            other.write([b'{"of": "the second"}\n'])
        except OSError as error:
            refused.append(str(error.strerror))
        finally:
            other.close()

    monkeypatch.setattr(shutil, "copyfileobj", slow)
    await record(recorder(file, size=100), notification("image.update", {"number": 1}))
    names = os.listdir(tmp_path)
    lines = [message.body for name in names for message in Source(str(tmp_path / name)).messages()]
    assert (len(lines), refused) == (1, ["another recording writes it"]), (
        "each line that was written is there"
    )


async def test_no_more_than_asked_for(tmp_path: Path) -> None:
    output, wrote = Output(str(tmp_path / "capture.jsonl")), list[int]()
    one = Recorder(output, wrote=wrote.append, failed=lambda _: None, count=5)
    for _ in range(3):
        await record(
            one, *(notification("image.update", {"number": number}) for number in range(3))
        )
    output.close()
    assert wrote == [3, 2, 0]
    assert len(list(Source(str(tmp_path / "capture.jsonl")).messages())) == 5


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
async def test_a_full_disk_is_told_and_nothing_is_acked() -> None:
    faults: list[OSError] = []
    output = Output("/dev/full")
    one = Recorder(output, wrote=lambda _: None, failed=faults.append)
    offer = asyncio.create_task(record(one, notification("x", {})))
    await asyncio.sleep(0.1)
    assert not offer.done(), (
        "what it has accepted would be acked, what it raises would be a fault of the broker"
    )
    offer.cancel()
    output.close()
    assert [error.strerror for error in faults] == ["No space left on device"]


def test_a_message_without_a_type_is_none() -> None:
    with pytest.raises(Malformed):
        decoded(b"{}")


def test_what_is_too_deep_to_follow_is_not_recorded(tmp_path: Path, recorder: Make) -> None:
    one = recorder(tmp_path / "capture.jsonl")
    for depth in (600, 900, 100_000):
        body = b'{"event_type": "image.update", "payload": ' + b"[" * depth + b"]" * depth + b"}"
        assert one.route(body) == Routed()
