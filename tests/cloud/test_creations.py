"""How Cinder made each volume, and why it was slow: told by the worker, on real services."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from scripts.cloud.operate import TARGETS, groups, of_image, switched, switches, until
from scripts.cloud.people import Person
from tests.worker_process import WorkerProcess

Images = Callable[..., str]
Worker = Callable[..., WorkerProcess]
TYPE = "local-1"
# Creates of each kind of clone, mixed
EACH = int(os.environ.get("CREATES", "30" if os.environ.get("LONG") else "6")) // 3
AT_ONCE = 4


@pytest.fixture(scope="module", autouse=True)
def cached(devcloud_up: None) -> Iterator[None]:
    with switched("IMAGE_CACHE=1"):
        yield


@pytest.fixture
def readers(alice: Person) -> Iterator[list[str]]:
    """Somebody else reads these images all the time."""
    ids: list[str] = []
    end = threading.Event()

    def read() -> None:
        while not end.wait(0.2):
            for image_id in tuple(ids):
                with contextlib.suppress(RuntimeError):
                    alice.sha256(image_id)

    thread = threading.Thread(target=read)
    thread.start()
    yield ids
    end.set()
    thread.join()


def told(process: WorkerProcess, volume: str) -> dict[str, str]:
    """What `explain volume` says, once it is known."""
    done = process.run("explain", "volume", volume, "-f", "json")
    assert done.returncode == 0, done.stderr
    shown: dict[str, str] = json.loads(done.stdout)
    return shown


def warm(process: WorkerProcess, image_id: str) -> bool:
    return process.states(image_id) == dict.fromkeys(TARGETS, "warm")


def decisive(shown: dict[str, str]) -> tuple[str, str]:
    return shown["Path"], shown["Reasons"].partition(",")[0]


def test_each_volume_has_its_path_and_its_reason(
    worker: Worker,
    images: Images,
    readers: list[str],
    alice: Person,
    bob: Person,
    operator: Person,
) -> None:
    settings = groups(
        prewarm={
            "targets": ",".join(TARGETS),
            "settle": 60,
            "rewarm_interval": 600,
            "visibilities": "community",
        }
    )
    expected: dict[str, tuple[str, str]] = {}
    with worker(settings) as process:
        process.wait_ready()
        raw, owned, qcow2 = images(), images(), images(disk_format="qcow2")
        private = images(visibility="private")
        readers += [raw, owned, qcow2]
        for image_id in (raw, owned, qcow2):
            until(lambda image_id=image_id: warm(process, image_id), what="warm")  # type: ignore[misc]

        def volumes(
            person: Person, image_id: str, times: int, path: str, reason: str = ""
        ) -> list[Callable[[], None]]:
            def one() -> None:
                expected[person.volume(image_id, TYPE).id] = (path, reason)

            return [one] * times

        # Until a download is seen nobody knows whether this Cinder notes any
        for one in volumes(alice, private, 1, "download", "not_wanted"):
            one()
        until(
            lambda: process.metric("volume_creates_total", target=TYPE, path="download") == 1,
            what="the first download is seen",
        )
        # Mixed, while others read the same images
        mixed = [
            *volumes(bob, raw, EACH, "image_volume"),
            *volumes(alice, raw, EACH, "image_volume"),
            *volumes(bob, qcow2, EACH, "cache"),
        ]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for done in [pool.submit(one) for one in mixed]:
                done.result()
        # Each of these is mended by the worker soon: the reason is the one at that time
        alice.property(qcow2, "note", "changed")
        for one in volumes(bob, qcow2, 1, "download", "entry_stale"):
            one()
        for volume in of_image(operator, owned):
            body = {"metadata": {"image_owner": bob.project_id}}
            answer = operator.connection.block_storage.post(
                f"/volumes/{volume['id']}/metadata", json=body
            )
            assert answer.status_code == 200
        for one in volumes(bob, owned, 1, "download", "owner"):
            one()
        for disk_format, reason in (("raw", "no_location"), ("qcow2", "entry_missing")):
            for one in volumes(bob, images(disk_format=disk_format), 1, "download", reason):
                one()

        total = len(expected)
        until(
            lambda: sum(process.metric("volume_creates_total", target=TYPE, path=path)
                        for path in ("image_volume", "cache", "download", "unknown")) == total,
            what=lambda: str(process.probe("/metrics")),
        )  # fmt: skip
        shown = {volume_id: told(process, volume_id) for volume_id in expected}
        assert {one: decisive(row) for one, row in shown.items()} == expected
        assert all("when the volume was made" in row["Known"] for row in shown.values())
        assert process.metric("volume_creates_total", path="unknown") == 0
        logged = Counter(line["reasons"][0] for line in process.events("volume_downloaded"))
        assert logged == Counter(reason for path, reason in expected.values() if path == "download")

        # A volume of a volume is none of an image, whatever Cinder has copied to it
        source = next(one for one, (path, _) in expected.items() if path == "download")
        owner = next(one for one in (alice, bob) if source in {v["id"] for v in one.volumes()})
        clone = owner.blank(TYPE, source_volid=source)
        expected[clone] = ("unknown", "")
        row = told(process, clone)
        assert (row["Path"], row["Why"]) == (
            "unknown",
            "it was made of another volume or of a snapshot",
        )
        assert sum(process.metric("volume_creates_total", target=TYPE, path=path)
                   for path in ("image_volume", "cache", "download", "unknown")) == total  # fmt: skip

    # Without a worker Cinder still tells how each was made, if not why
    for volume_id, (path, _) in expected.items():
        if path == "download":
            later = told(worker(settings), volume_id)
            assert later["Path"] == path
            assert "as they are now" in later["Known"]
    for volume_id in reversed(expected):
        owner = next(one for one in (alice, bob) if volume_id in {v["id"] for v in one.volumes()})
        owner.delete_volume(volume_id)


@pytest.mark.long
def test_a_cinder_without_its_cache_is_the_reason(
    worker: Worker, images: Images, bob: Person
) -> None:
    with switched("IMAGE_CACHE=0"), worker() as process:
        process.wait_ready()
        image_id = images(disk_format="qcow2")
        until(
            lambda: set(process.states(image_id).values()) == {"held back"},
            what=lambda: str(process.states(image_id)),
        )
        with bob.temporary_volume(image_id, TYPE) as volume:
            until(
                lambda: process.metric("volume_creates_total", target=TYPE, path="download") == 1,
                what="the volume is seen",
            )
            assert decisive(told(process, volume.id)) == ("download", "cache_off")


def test_at_a_limit_of_clones_the_cache_serves(
    worker: Worker, images: Images, bob: Person, operator: Person
) -> None:
    """The backend makes three clones of one volume."""
    if switches()["CEPH"] != "0":
        pytest.skip("the switch is of the driver that copies nothing")
    settings = groups(prewarm={"targets": TYPE})
    made: list[str] = []

    def creates(path: str, reason: str = "") -> None:
        labels = {"target": TYPE, "path": path, "reason": reason}
        count = process.metric("volume_creates_total", **labels)
        made.append(bob.volume(image_id, TYPE).id)
        until(
            lambda: process.metric("volume_creates_total", **labels) > count,
            what=lambda: str(told(process, made[-1])),
        )

    with switched("CLONE_LIMIT=3"), worker(settings) as process:
        process.wait_ready()
        # Until a download is seen nobody knows whether this Cinder notes any
        image_id = images(image_volume_prewarm="no")
        creates("download", "not_wanted")
        image_id = images()
        until(lambda: process.metric("images", target=TYPE, state="warm") == 1, what="it is warm")
        [located] = of_image(operator, image_id)
        for _ in range(3):
            creates("image_volume")
        creates("download", "clone_refused")
        # The download has left an entry, which Cinder clones
        with bob.temporary_volume(image_id, TYPE) as volume:
            assert volume.cloned
        assert {one["id"] for one in of_image(operator, image_id)} > {located["id"]}
        for volume_id in reversed(made):
            bob.delete_volume(volume_id)


def test_a_volume_by_its_name(worker: Worker, bob: Person) -> None:
    process = worker()
    made = [bob.blank(TYPE, name="of-two") for _ in range(2)]
    try:
        done = process.run("explain", "volume", "of-two")
        assert done.returncode == 2
        assert all(volume_id in done.stderr for volume_id in made)
        done = process.run("explain", "volume", "there-is-none")
        assert done.returncode == 1
        assert "no volume has the id or the name 'there-is-none'" in done.stderr
    finally:
        bob.delete_volume(made[0])
    done = process.run("explain", "volume", "of-two", "-f", "value", "-c", "Volume", "-c", "Why")
    bob.delete_volume(made[1])
    assert done.stdout.split("\n")[:2] == [made[1], "it was not made of an image"]
