"""Recording and replaying on real services: no secret is written, and a replay ends where live
notifications would."""

from __future__ import annotations

import gzip
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from scripts.cloud.operate import PASSWORD, URL, groups, is_warm, of_image, until
from scripts.cloud.people import HOME, Person
from tests.worker_process import WorkerProcess

Images = Callable[..., str]
Worker = Callable[..., WorkerProcess]
LANES = {"url": f"amqp://openstack:{PASSWORD}@127.0.0.1:5672/worker"}


class Recording:
    """`image-volume-worker record` into a file, until it is left."""

    def __init__(self, process: WorkerProcess, file: Path, *words: str) -> None:
        self._command = [
            sys.executable,
            "-m",
            "worker",
            "--config-file",
            str(process.config_path),
            "record",
        ]
        self._command += [str(file), *words]
        self.file = file
        self.status: int | None = None

    def __enter__(self) -> Recording:
        self._process = subprocess.Popen(self._command, stderr=subprocess.PIPE, text=True)
        assert self._process.stderr
        # It is bound from here on
        until(lambda: "recording" in self._process.stderr.readline(), what="it records")  # type: ignore[union-attr]
        time.sleep(1)
        return self

    def __exit__(self, *_: object) -> None:
        if self.status is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        self._process.communicate(timeout=60)
        self.status = self._process.returncode


@pytest.fixture
def recording(worker: Worker, tmp_path: Path) -> Iterator[Recording]:
    with Recording(worker(), tmp_path / "capture.jsonl") as one:
        yield one


def secrets() -> set[str]:
    """Every secret of the devcloud that has a chance to be on the bus: passwords, and tokens that
    are valid now."""
    clouds = yaml.safe_load((HOME / "clouds.yaml").read_text())["clouds"]
    passwords = {entry["auth"]["password"] for entry in clouds.values()}
    tokens = {str(Person(name).connection.auth_token) for name in clouds}
    return {*passwords, *tokens, PASSWORD, URL}


def test_no_secret_is_recorded_and_the_daemon_misses_nothing(
    worker: Worker,
    recording: Recording,
    images: Images,
    alice: Person,
    bob: Person,
    operator: Person,
) -> None:
    with worker() as process:
        process.wait_ready()
        image_id = images()
        until(lambda: is_warm(operator, alice, image_id), what="warm, although it was recorded too")
        with bob.temporary_volume(image_id, "local-1") as made, bob.attached(made.id):
            pass
        seen = process.metric("notifications_total")
    until(lambda: "volume.delete.end" in recording.file.read_text(), what="the last one")
    recording.__exit__()
    assert recording.status == 0
    lines = recording.file.read_text().splitlines()
    assert len(lines) > 20
    assert seen > 20
    events = {json.loads(line)["event_type"] for line in lines}
    assert {"image.activate", "volume.create.end", "volume.attach.end"} <= events
    text = recording.file.read_text()
    assert [secret for secret in secrets() if secret in text] == []
    assert "_context" not in text


def test_what_was_recorded_can_be_replayed_much_later(
    worker: Worker, recording: Recording, images: Images, alice: Person, operator: Person
) -> None:
    kept, gone = images(), images()
    until(lambda: recording.file.read_text().count("image.activate") == 2, what="both")
    alice.delete_image(gone)
    until(lambda: "image.delete" in recording.file.read_text(), what="gone")
    recording.__exit__()
    packed = recording.file.with_suffix(".gz")
    packed.write_bytes(gzip.compress(recording.file.read_bytes()))
    process = worker()
    for _ in range(2):
        done = process.run("replay", str(packed), "--local", "-f", "json", timeout=300)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["malformed"] == 0
        assert is_warm(operator, alice, kept)
        assert of_image(operator, gone) == []


def test_a_replay_gives_the_work_to_the_workers_that_run(
    worker: Worker, recording: Recording, images: Images, alice: Person, operator: Person
) -> None:
    settings = dict(groups(work=LANES))
    # It hears of nothing by itself
    settings["notifications"] = {
        **settings["notifications"],
        "exchanges": "nothing",
        "queue": "image-volume-worker-deaf",
    }
    with worker(settings) as process:
        process.wait_ready()
        until(lambda: process.events("resynced"), what="it has looked around")
        image_id = images()
        until(lambda: "image.activate" in recording.file.read_text(), what="recorded")
        recording.__exit__()
        time.sleep(3)
        assert of_image(operator, image_id) == []
        done = process.run("replay", str(recording.file), "-f", "json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["keys"] >= 2
        until(lambda: is_warm(operator, alice, image_id), what="warm")


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (["/nowhere", "--local"], 2, "no such file"),
        (["-", "--since", "soon"], 2, "not a time"),
        (["-", "--rate", "0"], 2, "no number"),
        (["-", "--image-id", "x"], 2, "not the id"),
        (["-"], 2, "memory://"),
        (["-", "--dry-run", "--checkpoint", "x"], 2, "--checkpoint"),
    ],
)
def test_wrong_usage_is_one_clear_line(
    worker: Worker, words: list[str], status: int, text: str
) -> None:
    done = worker().run("replay", *words)
    assert done.returncode == status
    assert text in done.stderr
    assert "Traceback" not in done.stderr
