"""`record` and `replay --checkpoint` on a disk that is full: a small file system in memory."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.broker.rabbitmq import RabbitMQ
from tests.deploy.debian import CLOUD, SmallCloud
from tests.worker_process import WorkerProcess
from worker.capture.forms import decoded
from worker.capture.read import Source
from worker.capture.replay import Checkpoint

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a file system")

SIZE, LARGER = 256, 4096
"""KiB."""
FULL = "No space left on device"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A folder with little room."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE}k", "tmpfs", str(folder)], check=True
    )
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def exchange(rabbitmq: RabbitMQ) -> Iterator[str]:
    name = f"disk-{uuid.uuid4().hex[:8]}"
    rabbitmq.declare_exchange(name)
    yield name
    rabbitmq.delete_exchange(name)
    rabbitmq.delete(name, f"{name}-record")


@pytest.fixture
def worker(tmp_path: Path, rabbitmq: RabbitMQ, exchange: str) -> Iterator[WorkerProcess]:
    """Only its commands are run."""
    groups: dict[str, dict[str, object]] = {
        "notifications": {"transport_urls": rabbitmq.url, "exchanges": exchange, "queue": exchange},
        "work": {"url": rabbitmq.url},
        "cloud": {"name": CLOUD},
        "prewarm": {"targets": "fast"},
        "target:fast": {"volume_type": "ssd", "strategy": "cache"},
    }
    with closing(SmallCloud()) as cloud:
        clouds = tmp_path / "clouds.yaml"
        clouds.write_text(cloud.clouds_yaml)
        yield WorkerProcess(tmp_path, groups, clouds=clouds)


def make_queue(rabbitmq: RabbitMQ, exchange: str) -> None:
    """Make the queue of `record` as it does, so that what is published from now on waits for it."""
    arguments = {
        "x-queue-type": "classic",
        "x-max-length": 100_000,
        "x-overflow": "drop-head",
        "x-expires": 300_000,
    }
    with rabbitmq.channel() as channel:
        channel.queue_declare(
            f"{exchange}-record", durable=True, auto_delete=False, arguments=arguments
        )
        channel.queue_bind(f"{exchange}-record", exchange, "notifications.info")


def notification(number: int) -> bytes:
    payload = {
        "id": f"{number:08d}-0000-4000-8000-000000000000",
        "status": "deleted",
        "name": "n" * 1000,
    }
    content = {
        "message_id": str(number),
        "event_type": "image.delete",
        "priority": "INFO",
        "payload": payload,
    }
    return json.dumps(content).encode()


def numbers(file: Path) -> list[int]:
    """Of the notifications in a recording, all of which can be read."""
    return [int(decoded(message.body)["message_id"]) for message in Source(str(file)).messages()]


def errors(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [
        line
        for line in done.stderr.splitlines()
        if FULL in line or "rror" in line or "Traceback" in line
    ]


def larger(disk: Path) -> None:
    subprocess.run(["mount", "-o", f"remount,size={LARGER}k", str(disk)], check=True)


def test_a_recording_ends_with_one_clear_error_and_goes_on_where_it_was(
    disk: Path, worker: WorkerProcess, rabbitmq: RabbitMQ, exchange: str
) -> None:
    file = disk / "capture.jsonl"
    make_queue(rabbitmq, exchange)
    published = list(range(1, 401))
    rabbitmq.publish(
        *map(notification, published), exchange=exchange, routing_key="notifications.info"
    )
    done = worker.run("record", str(file))
    assert done.returncode == 1
    assert errors(done) == [f"image-volume-worker: {file}: {FULL}"], done.stderr
    assert file.read_bytes().endswith(b"\n")
    kept = numbers(file)
    assert f"{len(kept)} notifications recorded" in done.stderr
    assert kept == published[: len(kept)]
    assert kept
    larger(disk)
    done = worker.run("record", str(file), "--count", str(len(published) - len(kept)))
    assert (done.returncode, errors(done)) == (0, [])
    assert numbers(file) == published, "each once"


def test_setting_a_recording_aside_fails_without_leaving_half_of_it(
    disk: Path, worker: WorkerProcess, rabbitmq: RabbitMQ, exchange: str
) -> None:
    file = disk / "capture.jsonl"
    content = b"".join(
        os.urandom(2000).hex().encode().join([b'{"event_type": "x", "payload": "', b'"}\n'])
        for _ in range(7)
    )
    file.write_bytes(content)
    (disk / "filler").write_bytes(b"x" * (SIZE - 28 - 8) * 1024)
    make_queue(rabbitmq, exchange)
    rabbitmq.publish(notification(1), exchange=exchange, routing_key="notifications.info")
    done = worker.run("record", str(file), "--rotate-size", "10k")
    assert done.returncode == 1
    assert errors(done) == [f"image-volume-worker: {file}: {FULL}"], done.stderr
    assert sorted(os.listdir(disk)) == ["capture.jsonl", "filler"]
    assert file.read_bytes().startswith(content)


def test_a_replay_ends_with_one_clear_error_and_keeps_its_checkpoint(
    disk: Path, worker: WorkerProcess, tmp_path: Path
) -> None:
    capture, checkpoint = tmp_path / "capture.jsonl", disk / "checkpoint"
    words = ("replay", str(capture), "--checkpoint", str(checkpoint), "-f", "json")
    capture.write_bytes(b"".join(notification(number) + b"\n" for number in range(10)))
    done = worker.run(*words)
    assert done.returncode == 0, done.stderr
    before = checkpoint.read_bytes()
    with capture.open("ab") as more:
        more.write(b"".join(notification(number) + b"\n" for number in range(10, 15)))
    (disk / "filler").write_bytes(b"x" * (SIZE - 4) * 1024)
    done = worker.run(*words)
    assert done.returncode == 1
    assert errors(done) == [f"image-volume-worker: {checkpoint}: {FULL}"], done.stderr
    assert checkpoint.read_bytes() == before
    assert sorted(os.listdir(disk)) == ["checkpoint", "filler"]
    (disk / "filler").unlink()
    done = worker.run(*words)
    assert (done.returncode, json.loads(done.stdout)["messages"]) == (0, 5), (
        "those since, once more"
    )
    with closing(Checkpoint(checkpoint)) as reached:
        assert reached.of(Source(str(capture))) == 15


def test_rejects_that_find_no_room_are_named(
    disk: Path, worker: WorkerProcess, tmp_path: Path
) -> None:
    capture, rejects = tmp_path / "capture.jsonl", disk / "rejects"
    capture.write_bytes(b"garbage of some length, line after line\n" * 10_000)
    done = worker.run("replay", str(capture), "--rejects", str(rejects))
    assert done.returncode == 1
    assert errors(done)[-1:] == [f"image-volume-worker: {rejects}: {FULL}"], done.stderr[-500:]
    assert "Traceback" not in done.stderr
