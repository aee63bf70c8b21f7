"""Captures: every form that tools write is read, and what is broken does not stop what is whole."""

from __future__ import annotations

import base64
import gzip
import io
import json
import sys
from pathlib import Path

import pytest
from backports import zstd

from worker.capture.forms import decoded
from worker.capture.read import Source, sources
from worker.core.errors import Malformed, Misconfigured
from worker.testing.fake_cloud import notification

BODIES = [notification("image.update", {"id": "x", "number": number}) for number in range(3)]


def read(path: Path) -> list[int]:
    """The numbers in the payloads that a file holds; -1 for what nobody can read."""
    found = []
    for message in Source(str(path)).messages():
        try:
            found.append(-1 if message.fault else decoded(message.body)["payload"]["number"])
        except Malformed:
            found.append(-1)
    return found


def lines(*bodies: bytes) -> bytes:
    return b"".join(body + b"\n" for body in bodies)


def bare(body: bytes) -> dict[str, object]:
    fields: dict[str, object] = json.loads(json.loads(body)["oslo.message"])
    return fields


def rabbitmqadmin(body: bytes, *, encoding: str = "string") -> dict[str, object]:
    payload = base64.b64encode(body).decode() if encoding == "base64" else body.decode()
    return {
        "payload": payload,
        "payload_encoding": encoding,
        "routing_key": "notifications.info",
        "exchange": "glance",
    }


@pytest.mark.parametrize(
    "content",
    [
        lines(*BODIES),
        lines(*BODIES).rstrip(b"\n"),
        b"\n\n".join(BODIES),
        b"\r\n".join(BODIES),
        lines(*(json.dumps(bare(body)).encode() for body in BODIES)),
        json.dumps([json.loads(body) for body in BODIES]).encode(),
        json.dumps([bare(body) for body in BODIES], indent=2).encode(),
        b"  \n [" + b",".join(BODIES) + b"]\n",
        b"[\n" + b",\n".join(BODIES) + b"\n]\n",
        b"[" + b",\n".join(BODIES) + b"\n]\n",
        b"\n".join(json.dumps(bare(body), indent=2).encode() for body in BODIES),
        json.dumps([rabbitmqadmin(body) for body in BODIES]).encode(),
        lines(*(json.dumps(rabbitmqadmin(body, encoding="base64")).encode() for body in BODIES)),
        lines(*(json.dumps({"time": 1.0, "raw": body.decode()}).encode() for body in BODIES)),
        lines(*(json.dumps({"message": bare(body)}).encode() for body in BODIES)),
    ],
)
@pytest.mark.parametrize("compress", [bytes, gzip.compress, zstd.compress])
def test_every_form_is_read(tmp_path: Path, content: bytes, compress: object) -> None:
    file = tmp_path / "capture"
    file.write_bytes(compress(content))  # type: ignore[operator]
    assert read(file) == [0, 1, 2]


def test_several_compressed_parts_one_after_the_other(tmp_path: Path) -> None:
    for name, compress in (("gzip", gzip.compress), ("zstd", zstd.compress)):
        file = tmp_path / name
        file.write_bytes(b"".join(compress(body + b"\n") for body in BODIES))
        assert read(file) == [0, 1, 2]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (lines(BODIES[0], b"garbage", BODIES[2]), [0, -1, 2]),
        (lines(BODIES[0], BODIES[1][:100]), [0, -1]),
        (lines(b'{"half": ', BODIES[1]), [-1, 1]),
        (lines(b"{", BODIES[1]), [-1, 1]),
        (lines(b"\xff\xfe\x00", BODIES[1]), [-1, 1]),
        (lines(b'{"event_type": 7}', b"[]", b"null", b"7", BODIES[0]), [-1, -1, -1, -1, 0]),
        (b"[" + BODIES[0] + b"," + BODIES[1][:50], [0, -1]),
        (b"[" + BODIES[0] + b" " + BODIES[1] + b"]", [0, -1]),
        (lines(b"[]", *BODIES), [-1, 0, 1, 2]),
        (lines(b'["x"', *BODIES), [-1, 0, 1, 2]),
        (lines(b'{"half": ', b'{"other": ', BODIES[1], BODIES[2]), [-1, -1, 1, 2]),
        (b"[" * 100_000, [-1]),
        (b"[" + BODIES[0] + b"," + b'{"a":' * 100_000, [0, -1]),
        (b"", []),
        (b"\n\n", []),
        (b"\x00\x01", [-1]),
        (b'{"payload": "x", "payload_encoding": "base64", "n": 1}', [-1]),
    ],
)
def test_what_is_broken_does_not_stop_what_is_whole(
    tmp_path: Path, content: bytes, found: list[int]
) -> None:
    file = tmp_path / "capture"
    file.write_bytes(content)
    assert read(file) == found


def test_a_file_cut_short_gives_what_it_has(tmp_path: Path) -> None:
    whole = lines(*(notification("image.update", {"number": number}) for number in range(200)))
    for name, packed in (("gzip", gzip.compress(whole)), ("zstd", zstd.compress(whole))):
        file = tmp_path / name
        file.write_bytes(packed[: len(packed) - 20])
        assert list(Source(str(file)).messages())[-1].fault.startswith(
            "the file can't be read any further"
        )


def test_a_damaged_file_says_so(tmp_path: Path) -> None:
    file = tmp_path / "capture.gz"
    packed = bytearray(gzip.compress(lines(*BODIES) * 100))
    packed[40:60] = bytes(20)
    file.write_bytes(packed)
    assert list(Source(str(file)).messages())[-1].fault.startswith(
        "the file can't be read any further"
    )


def test_an_endless_line_is_one_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.capture.read.LONGEST", 1000)
    file = tmp_path / "capture"
    file.write_bytes(lines(BODIES[0], b"x" * 5000, BODIES[1]))
    assert read(file) == [0, -1, 1]


def test_an_endless_item_is_one_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.capture.read.LONGEST", 5000)
    file = tmp_path / "capture"
    file.write_bytes(b"[" + BODIES[0] + b',["' + b"x" * 6000 + b'"],' + BODIES[1] + b"]")
    messages = list(Source(str(file)).messages())
    assert [bool(message.fault) for message in messages] == [False, True]
    assert "longer than" in messages[1].fault


def test_folders_are_read_in_order_and_standard_input_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.jsonl").write_bytes(lines(BODIES[1]))
    (tmp_path / "b.jsonl").write_bytes(lines(BODIES[0]))
    found = sources([str(tmp_path), "-"])
    assert [Path(source.path).name for source in found] == ["b.jsonl", "a.jsonl", "-"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(gzip.compress(lines(*BODIES)))))
    assert [message.number for message in found[-1].messages()] == [1, 2, 3]
    assert found[-1].position == 0


def test_every_fault_of_the_command_line_is_told(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(Misconfigured) as caught:
        sources([str(tmp_path / "nowhere"), str(empty)])
    assert len(caught.value.faults) == 2


def test_the_position_tells_how_far_it_got(tmp_path: Path) -> None:
    file = tmp_path / "capture"
    file.write_bytes(lines(*BODIES) * 1000)
    source = Source(str(file))
    for _ in source.messages():
        assert 0 < source.position <= source.size
    assert source.position == 0


def test_zeros_between_and_after_parts_of_gzip_are_padding(tmp_path: Path) -> None:
    file = tmp_path / "tape"
    file.write_bytes(b"".join(gzip.compress(body + b"\n") + bytes(70_000) for body in BODIES))
    assert read(file) == [0, 1, 2]
