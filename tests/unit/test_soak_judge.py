"""The judge of the soak finds a good cloud good, and each of its checks can fail."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import pytest

from scripts.cloud.operate import TARGETS
from scripts.cloud.people import Made
from scripts.soak_faults import QUEUE
from scripts.soak_judge import APPOINTMENTS, BUGS, LIVED, MORE_THAN_FRESH, MOST, STILL, WARM, Judge
from scripts.soak_load import LOST, Item, User
from tests.worker_process import Usage

IMAGE, UPLOAD = "aaaaaaaa-0000-4000-8000-000000000000", "bbbbbbbb-0000-4000-8000-000000000000"
PROJECT, MIB = "alice's project", 1 << 20
GOOD = Usage(memory=200 * MIB, seconds=1.0, threads=40, descriptors=60)


def ago(seconds: float) -> str:
    """As Cinder writes a time."""
    return (datetime.now(UTC) - timedelta(seconds=seconds)).replace(tzinfo=None).isoformat()


class Operator:
    """The internal project."""

    def __init__(self) -> None:
        self.listed: list[dict[str, Any]] = [
            {
                "id": f"{image_id[:8]}-{target}",
                "name": f"image-{image_id}",
                "status": "available",
                "volume_type": target,
                "created_at": ago(600),
                "updated_at": None,
                "metadata": {
                    "image_owner": PROJECT,
                    "image_volume_worker": target,
                    "readonly": "True",
                },
            }
            for image_id in (IMAGE, UPLOAD)
            for target in TARGETS
        ]
        self.fails = False
        self.acts: list[tuple[str, str]] = []

    def volumes(self) -> list[dict[str, Any]]:
        if self.fails:
            raise OSError("connection refused")
        return self.listed

    def act(self, volume_id: str, action: str, **_: str) -> None:
        self.acts.append((volume_id, action))


class Alice:
    """A user's view of the cloud."""

    def __init__(self) -> None:
        self.connection = SimpleNamespace(config=SimpleNamespace(name="alice"))
        stores = ",".join(f"cinder-{number}" for number, _ in enumerate(TARGETS, 1))
        self.shown: dict[str, dict[str, Any]] = {
            one: {
                "id": one,
                "name": name,
                "status": "active",
                "owner": PROJECT,
                "stores": f"file,{stores}",
            }
            for one, name in ((IMAGE, "soak"), (UPLOAD, "soak-upload"))
        }
        self.has: dict[str, str] = {"source": "available", "volume": "available"}
        self.updated = ago(0)
        self.hashes = {IMAGE: "of an image", UPLOAD: "of an upload"}
        self.clones = True

    def images(self) -> list[dict[str, Any]]:
        return list(self.shown.values())

    def show(self, image_id: str) -> dict[str, Any]:
        return self.shown[image_id]

    def volumes(self) -> list[dict[str, Any]]:
        times = {"created_at": self.updated, "updated_at": self.updated}
        return [{"id": one, "status": status, **times} for one, status in self.has.items()]

    def sha256(self, image_id: str) -> str:
        return self.hashes[image_id]

    def volume(self, _image: str, _target: str) -> Made:
        return Made("made", 1.0, self.clones)

    def delete_volume(self, volume_id: str) -> None:
        self.has.pop(volume_id, None)


@dataclass
class Process:
    """A worker's log and what it uses."""

    log: Path
    used: Usage = GOOD

    def usage(self) -> Usage:
        return self.used

    def probe(self, _path: str) -> tuple[int, dict[str, Any]]:
        return 503, {"problems": {"lanes": "away"}}

    def writes(self, *lines: object) -> None:
        with self.log.open("a") as log:
            log.writelines(
                f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines
            )


@dataclass
class Worker:
    """A replica."""

    process: Process
    name: str = "replica-1"
    ready: bool = True
    usage: dict[int, list[tuple[float, Usage]]] = field(default_factory=dict)


@dataclass
class Scene:
    """A cloud in which all is well, and its judge."""

    operator: Operator
    alice: Alice
    worker: Worker
    user: User
    queues: dict[str, dict[str, int]]
    faults: list[str]
    judge: Judge

    def volume(self) -> dict[str, Any]:
        """An Image-Volume of the image."""
        return self.operator.listed[0]


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    operator, alice = Operator(), Alice()
    log = tmp_path / "replica-1.log"
    log.touch()
    worker, faults = Worker(Process(log)), list[str]()
    queues = {
        "/": {QUEUE: 0},
        "worker": {f"{QUEUE}.{lane}": 0 for lane in ("upload", f"prewarm.{TARGETS[0]}", "dead")},
    }

    def disturbed(_since: float, _until: float) -> str:
        return ", ".join(faults)

    user = User(cast("Any", alice), Random(1), disturbed, source="source")
    user.content, user.hash_of_image = "of an upload", "of an image"
    born = time.monotonic()
    user.items = [
        Item(IMAGE, "image", born),
        Item(UPLOAD, "upload", born),
        Item("volume", "volume", born, IMAGE),
    ]
    judge = Judge(
        cast("Any", operator), cast("Any", operator), [user], [cast("Any", worker)], disturbed,
        queues=lambda vhost, _prefix: queues[vhost], sql=lambda *_: "",
    )  # fmt: skip
    made = Scene(operator, alice, worker, user, queues, faults, judge)
    assert made.judge.problems() == []
    return made


Break = Callable[[Scene], object]


@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        (lambda scene: scene.alice.shown.pop(IMAGE), f"lost: image {IMAGE} of alice"),
        (lambda scene: scene.alice.shown[UPLOAD].update(status="queued"), f"not active: upload {UPLOAD} is queued"),
        (lambda scene: scene.operator.listed.append(dict(scene.volume(), id="twin")), f"doubled: image {IMAGE}"),
        (lambda scene: scene.operator.listed.pop(0), f"has 0 Image-Volumes on {TARGETS[0]}"),
        (lambda scene: scene.volume().update(volume_type=TARGETS[1]), f"has 0 Image-Volumes on {TARGETS[0]}"),
        (lambda scene: scene.volume().update(status="error"), ": status; volume"),
        (lambda scene: scene.volume()["metadata"].update(image_owner="bob's project"), ": owner; volume"),
        (lambda scene: scene.volume()["metadata"].pop("image_volume_worker"), ": tag; volume"),
        (lambda scene: scene.volume()["metadata"].update(readonly="False"), ": read-only; volume"),
        (lambda scene: scene.alice.shown[IMAGE].update(stores="file,cinder-2"), ": location; volume"),
        (lambda scene: scene.alice.shown.update(new={**scene.alice.shown[IMAGE], "id": "new"}), "deletes image new"),
        (lambda scene: scene.operator.listed.append(dict(scene.volume(), name="image-other")), "left over: volume"),
        (lambda scene: scene.alice.has.update(source="error"), "alice's source volume is error"),
        (lambda scene: scene.alice.has.pop("source"), "alice's source volume is None"),
        (lambda scene: scene.alice.has.update(volume="creating"), "alice's volume volume is creating"),
        (lambda scene: scene.alice.has.pop("volume"), "alice's volume volume is lost"),
        (lambda scene: setattr(scene.user.items[2], "state", "deleting"), "alice deletes volume volume, available"),
        (lambda scene: scene.queues["/"].clear(), f"queue {QUEUE} is not there"),
        (lambda scene: scene.queues["worker"].pop(f"{QUEUE}.upload"), f"queue {QUEUE}.upload is not there"),
        (lambda scene: scene.queues["worker"].update({f"{QUEUE}.upload": 3}), f"queue {QUEUE}.upload holds 3"),
        (lambda scene: scene.queues["worker"].update({APPOINTMENTS[0]: 1}), f"queue {APPOINTMENTS[0]} holds 1"),
        (lambda scene: setattr(scene.worker, "ready", False), "not ready: replica-1: {'problems': {'lanes': 'away'}}"),
        (lambda scene: setattr(scene.operator, "fails", True), "the cloud can't be looked at: connection refused"),
    ],
)  # fmt: skip
def test_what_is_not_as_it_should_be_is_a_problem(
    scene: Scene, broken: Break, problem: str
) -> None:
    broken(scene)
    (found,) = scene.judge.problems()
    assert problem in found


def test_what_was_there_before_and_dead_letters_are_no_problems_of_the_end(scene: Scene) -> None:
    scene.operator.listed.append(dict(scene.volume(), id="before", name="image-other"))
    scene.judge.before = frozenset({"before"})
    scene.queues["worker"][f"{QUEUE}.dead"] = 2
    scene.queues["worker"][APPOINTMENTS[0]] = 1
    scene.faults.append("locations hidden")
    assert scene.judge.problems() == []
    assert scene.judge.dead_letters() == 2


def test_a_volume_that_is_gone_as_wanted_is_settled(scene: Scene) -> None:
    scene.user.items[2].state = "deleting"
    del scene.alice.has["volume"]
    assert scene.judge.problems() == []
    assert scene.user.items[2].state == "gone"


def stuck(scene: Scene) -> None:
    scene.volume().update(status="error_deleting")
    scene.worker.process.writes({"event": "volume_stuck", "volume_id": scene.volume()["id"]})


def lost_deletion(scene: Scene) -> None:
    scene.volume().update(status="deleting", updated_at=ago(LOST + 60))


def lost_deletion_of_a_user(scene: Scene) -> None:
    scene.alice.has["volume"], scene.alice.updated = "deleting", ago(LOST + 60)
    scene.user.items[2].state = "deleting"


def locked(scene: Scene) -> None:
    scene.alice.shown[IMAGE]["os_glance_import_task"] = "task"
    scene.judge.sql = lambda _database, statement: (
        "task" if f"INTERVAL {STILL:.0f} SECOND" in statement else ""
    )


def attached_to_a_dead_glance(scene: Scene) -> None:
    scene.volume().update(status="in-use", updated_at=ago(STILL + 60))
    scene.user.items[0].state = "deleting"


@pytest.mark.parametrize(
    "broken",
    [stuck, lost_deletion, lost_deletion_of_a_user, locked, attached_to_a_dead_glance],
)
@pytest.mark.parametrize("fault", ["", "rabbitmq killed"])
def test_what_has_to_be_freed_is_a_failure_unless_a_fault_explains_it(
    scene: Scene, broken: Break, fault: str
) -> None:
    scene.faults += [fault] if fault else []
    broken(scene)
    scene.judge.help()
    noted, empty = scene.judge.helped, scene.judge.unexplained
    if not fault:
        noted, empty = empty, noted
    assert (len(noted), empty) == (1, [])
    assert noted[0].endswith(f"[{fault}]") if fault else noted[0].startswith("stuck: ")


def read_for_long(scene: Scene) -> None:
    scene.volume().update(status="in-use", updated_at=ago(STILL + 60))


def read_while_it_is_deleted(scene: Scene) -> None:
    scene.volume().update(status="in-use", updated_at=ago(STILL - 60))
    scene.user.items[0].state = "deleting"


def being_deleted(scene: Scene) -> None:
    scene.volume().update(status="deleting", updated_at=ago(LOST - 60))


@pytest.mark.parametrize("going_on", [being_deleted, read_for_long, read_while_it_is_deleted])
def test_nothing_is_freed_where_all_is_well_or_still_going_on(
    scene: Scene, going_on: Break
) -> None:
    going_on(scene)
    scene.judge.help()
    assert (scene.judge.helped, scene.judge.unexplained, scene.operator.acts) == ([], [], [])


@pytest.mark.parametrize(
    ("line", "bug"),
    [
        *(
            ({"event": event, "reason": "it broke"}, f"bug: {event}: it broke")
            for event in sorted(BUGS)
        ),
        (
            {"event": "anything", "exception": "Traceback\nValueError: no"},
            "bug: anything: ValueError: no",
        ),
        (
            {"event": "job_parked", "handler": "prewarm", "reason": f"image {IMAGE} is strange"},
            "dead letter: prewarm image ID is strange",
        ),
        (
            "Traceback (most recent call last):\n  File x\nKeyError: 'a'",
            "in the log of replica-1: KeyError: 'a'",
        ),
    ],
)
def test_a_log_line_that_tells_of_a_bug_is_one(scene: Scene, line: object, bug: str) -> None:
    scene.worker.process.writes({"event": "job_done"}, "half a li", line)
    counts, bugs = scene.judge.said()
    assert counts["job_done"] == 1
    (found,) = bugs
    assert bug in found


def test_a_quiet_log_tells_of_no_bug(scene: Scene) -> None:
    scene.worker.process.writes(
        {"event": "job_again", "reason": "Traceback of a service"}, {"event": "broker_lost"}
    )
    assert scene.judge.said()[1] == []


def life(last: Usage, *, seconds: float = WARM + LIVED + 600) -> list[tuple[float, Usage]]:
    """Samples every ten seconds of a life that ends with this."""
    times = [10.0 * number for number in range(int(seconds / 10) + 1)]
    return [(at, GOOD if at < seconds * 0.8 else last) for at in times]


MORE = {
    "MiB": Usage(
        memory=int((200 + MORE_THAN_FRESH["MiB"] + 20) * MIB),
        seconds=1.0,
        threads=40,
        descriptors=60,
    ),
    "threads": Usage(
        memory=200 * MIB,
        seconds=1.0,
        threads=40 + int(MORE_THAN_FRESH["threads"]) + 1,
        descriptors=60,
    ),
    "file descriptors": Usage(
        memory=200 * MIB,
        seconds=1.0,
        threads=40,
        descriptors=60 + int(MORE_THAN_FRESH["file descriptors"]) + 1,
    ),
}


@pytest.mark.parametrize("name", list(MOST))
def test_what_grows_in_a_life_is_a_failure(scene: Scene, name: str) -> None:
    fresh = cast("Any", Worker(Process(scene.worker.process.log), name="fresh"))
    scene.worker.usage = {1: life(GOOD)}
    rows, problems = scene.judge.grown(fresh)
    assert (len(rows), problems) == (len(MOST), [])
    scene.worker.usage = {1: life(MORE[name])}
    (problem,) = scene.judge.grown(fresh)[1]
    assert problem.startswith(f"grows: {name} of replica-1")
    # Too short a life tells nothing
    scene.worker.usage = {1: life(MORE[name], seconds=WARM + LIVED - 10)}
    assert scene.judge.grown(fresh) == ([], [])


@pytest.mark.parametrize("name", list(MORE_THAN_FRESH))
def test_more_than_a_fresh_worker_at_rest_is_a_failure(scene: Scene, name: str) -> None:
    fresh = cast("Any", Worker(Process(scene.worker.process.log), name="fresh"))
    assert scene.judge.at_rest(fresh)[1] == []
    scene.worker.process.used = MORE[name]
    (problem,) = scene.judge.at_rest(fresh)[1]
    assert problem.startswith(f"more than a fresh one: {name} of replica-1")


@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        (lambda scene: scene.alice.hashes.update({IMAGE: "else"}), f"other bytes: image {IMAGE}"),
        (
            lambda scene: scene.alice.hashes.update({UPLOAD: "of an image"}),
            f"other bytes: upload {UPLOAD}",
        ),
        (lambda scene: setattr(scene.alice, "clones", False), "not a clone: a volume of image"),
    ],
)
def test_other_bytes_and_downloads_are_failures(scene: Scene, broken: Break, problem: str) -> None:
    assert list(scene.judge.contents(lambda _: None)) == []
    broken(scene)
    assert problem in next(scene.judge.contents(lambda _: None))
