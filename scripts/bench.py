"""Benchmarks; see scripts/bench. Each prints a table, and with --json FILE writes what it
measured."""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import kombu

from handlers import image_volume
from scripts import bench_broker, bench_growth, bench_shapes
from scripts.cloud.operate import PASSWORD, URL, devcloud, groups, of_image
from scripts.cloud.people import HOME, Person, data
from scripts.generate import notifications
from tests.worker_process import WorkerProcess, configuration
from worker.cli.status import cells
from worker.cli.values import Moment
from worker.core.cloud import Image, Volume
from worker.core.handler import Missing
from worker.core.job import Job, Key
from worker.core.state import State
from worker.core.target import TAG, Policy, Target
from worker.diagnose.status import Row as Shown
from worker.diagnose.status import overview, summaries
from worker.engine.limits import Limits
from worker.observe import log
from worker.observe.activity import Activity
from worker.testing.fake_cloud import FakeCloud
from worker.testing.rig import STORES, Rig

PAGE = 1000
TARGETS = {"local-1": "cinder-1", "local-2": "cinder-2"}
Row = dict[str, Any]


@contextmanager
def worker(strategy: str = "auto") -> Iterator[WorkerProcess]:
    """A worker on the devcloud, ready."""
    with (
        tempfile.TemporaryDirectory() as folder,
        WorkerProcess(
            Path(folder), groups(strategy=strategy), clouds=HOME / "clouds.yaml"
        ) as process,
    ):
        process.wait_ready()
        yield process


def until(check: Any, *, seconds: float = 900.0, every: float = 0.1) -> None:
    """Return when `check` is true."""
    deadline = time.monotonic() + seconds
    while not check():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(every)


def owners(operator: Person, image_id: str) -> dict[str, str]:
    """Who the Image-Volumes of an image say that they belong to, by volume type."""
    volumes = [v for v in operator.volumes() if v["name"] == f"image-{image_id}"]
    return {
        v["volume_type"]: v["metadata"].get("image_owner", "")
        for v in volumes
        if v["status"] != "creating"
    }


def usable(operator: Person, alice: Person, image_id: str) -> bool:
    """Whether everybody gets clones of the image on both targets."""
    if owners(operator, image_id) != dict.fromkeys(TARGETS, alice.project_id):
        return False
    return set(TARGETS.values()) <= set(alice.show(image_id)["stores"].split(","))


def clone(options: argparse.Namespace) -> list[Row]:
    """Volumes by a project that does not own the image, warm against not warm, on each target."""
    alice, bob, operator = Person("alice"), Person("bob"), Person("operator")
    rows: list[Row] = []
    with worker():
        for gib in options.gib:
            cold = alice.image("bench-cold", mebibytes=gib * 1024, image_volume_prewarm="no")
            warm = alice.image("bench-warm", mebibytes=gib * 1024)
            until(lambda image=warm: usable(operator, alice, image))
            for target in TARGETS:
                slow, fast = [], []
                for _ in range(options.rounds):
                    with bob.temporary_volume(cold, target, gibibytes=gib) as made:
                        slow.append(made)
                    with bob.temporary_volume(warm, target, gibibytes=gib) as made:
                        fast.append(made)
                if any(made.cloned for made in slow) or not all(made.cloned for made in fast):
                    raise SystemExit(
                        "Cinder's log says that a volume was not made the way it should have been"
                    )
                before, after = (
                    statistics.median(made.seconds for made in all_) for all_ in (slow, fast)
                )
                rows.append(
                    {
                        "GiB": gib,
                        "target": target,
                        "not warm s": before,
                        "warm s": after,
                        "ratio": before / after,
                    }
                )
            for image_id in (cold, warm):
                alice.delete_image(image_id)
    return rows


def by_hand(operator: Person, alice: Person, image_id: str) -> None:
    """The work of the worker, as a person would script it: one import into both stores, then the
    owner put right."""
    body = {
        "method": {"name": "copy-image"},
        "stores": list(TARGETS.values()),
        "all_stores_must_succeed": False,
    }
    answer = operator.connection.image.post(f"/images/{image_id}/import", json=body)
    assert answer.status_code == 202, answer.text
    left = set(TARGETS)
    while left:
        time.sleep(0.1)
        stores = operator.show(image_id)["stores"].split(",")
        for volume in operator.volumes():
            target = volume["volume_type"]
            if (
                volume["name"] == f"image-{image_id}"
                and target in left
                and TARGETS[target] in stores
            ):
                metadata = {"metadata": {"image_owner": alice.project_id}}
                answer = operator.connection.block_storage.post(
                    f"/volumes/{volume['id']}/metadata", json=metadata
                )
                assert answer.status_code == 200, answer.text
                left.discard(target)


def prewarm(options: argparse.Namespace) -> list[Row]:
    """Image active → usable on both targets: the worker against hand-written calls, turn by
    turn."""
    alice, operator = Person("alice"), Person("operator")
    data(1024)
    ours, hand = [], []
    with worker():
        for _ in range(options.rounds):
            image_id = alice.image("bench-hand", mebibytes=1024, image_volume_prewarm="no")
            began = time.monotonic()
            by_hand(operator, alice, image_id)
            hand.append(time.monotonic() - began)
            alice.delete_image(image_id)
            image_id = alice.image("bench-ours", mebibytes=1024)
            began = time.monotonic()
            until(lambda image=image_id: usable(operator, alice, image))
            ours.append(time.monotonic() - began)
            alice.delete_image(image_id)
    by_us, by_them = statistics.median(ours), statistics.median(hand)
    return [
        {
            "GiB": 1,
            "worker s": by_us,
            "by hand s": by_them,
            "ratio": by_us / by_them,
            "rounds": options.rounds,
        }
    ]


def source_of(alice: Person, gib: int) -> str:
    """A volume full of random bytes."""
    image_id = alice.image("bench-source", mebibytes=gib * 1024, image_volume_prewarm="no")
    made = alice.volume(image_id, "local-1", gibibytes=gib)
    alice.delete_image(image_id)
    return made.id


def until_active(alice: Person, image_id: str) -> float:
    """When the image became active."""
    until(lambda: alice.show(image_id)["status"] == "active", every=0.05)
    return time.monotonic()


def until_quiet(alice: Person, image_id: str, source: str) -> None:
    """Return when Glance has computed the hash, and Cinder has let go of the volume."""
    until(lambda: alice.show(image_id)["os_hash_value"])
    until(
        lambda: (
            alice.connection.block_storage.get(f"/volumes/{source}").json()["volume"]["status"]
            == "available"
        )
    )


def uploads(options: argparse.Namespace) -> list[Row]:
    """A volume becomes an image: by the worker, by Cinder's own clone, by Cinder's copy; are the
    bytes the same?"""
    alice, operator = Person("alice"), Person("operator")
    took: dict[tuple[int, str], list[float]] = {}
    hashes: dict[int, set[str]] = {}
    sources = {gib: source_of(alice, gib) for gib in options.gib}

    def rounds(how: str, number: int, begin: Callable[[str], str]) -> None:
        for gib, source in sources.items():
            for last in range(number, 0, -1):
                began = time.monotonic()
                image_id = begin(source)
                took.setdefault((gib, how), []).append(until_active(alice, image_id) - began)
                until_quiet(alice, image_id, source)
                if last == 1:
                    hashes.setdefault(gib, set()).add(alice.sha256(image_id))
                alice.delete_image(image_id)
                # Not while Cinder is busy with what the last round has left
                until(
                    lambda image=image_id: (
                        not any(image in volume["name"] for volume in operator.volumes())
                    )
                )
                time.sleep(1)

    devcloud("set", "UPLOAD_CLONE=0", "UPLOAD_INTERNAL=0")
    with worker():
        rounds("worker", options.rounds, lambda source: alice.queued(
            "bench-worker", image_volume_source=source, image_volume_prewarm="no"))  # fmt: skip
    rounds("copy", options.copies, lambda source: alice.upload(source, "bench-copy"))
    devcloud("set", "UPLOAD_CLONE=1", "UPLOAD_INTERNAL=1")
    try:
        rounds("cinder", options.rounds, lambda source: alice.upload(source, "bench-cinder"))
    finally:
        devcloud("set", "UPLOAD_CLONE=0", "UPLOAD_INTERNAL=0")
    rows: list[Row] = []
    for gib, source in sources.items():
        alice.delete_volume(source)
        ours, cinder, copy = (
            statistics.median(took[gib, how]) for how in ("worker", "cinder", "copy")
        )
        rows.append({"GiB": gib, "worker s": ours, "Cinder's own s": cinder, "ratio": ours / cinder, "copy s": copy,
                     "times as fast": copy / ours, "same bytes": "yes" if len(hashes[gib]) == 1 else "NO",
                     "rounds": f"{options.rounds}/{options.rounds}/{options.copies}"})  # fmt: skip
    return rows


def lane(options: argparse.Namespace) -> list[Row]:
    """An upload beside a backlog of pre-warm jobs, and without one (fake cloud; lanes in
    memory)."""
    log.setup(level="error")

    async def upload(cloud: FakeCloud) -> float:
        volume = cloud.volume_of("alice")
        began = time.monotonic()
        image = cloud.queue(
            properties={"image_volume_source": volume.id, "image_volume_prewarm": "no"}
        )
        while cloud.images[image.id].status != "active":
            await asyncio.sleep(0.001)
        return time.monotonic() - began

    async def median(jobs: int) -> float:
        cloud = FakeCloud(stores=STORES, seconds=0.2)
        async with Rig(cloud, limits=Limits(drain=0.0)) as rig:
            cloud.emit = rig.hear
            backlog = [cloud.upload().id for _ in range(jobs // 2)]
            while len(rig.lanes.depths()) and sum(rig.lanes.depths().values()) < jobs - 200:
                await asyncio.sleep(0.1)
            times = [await upload(cloud) for _ in range(options.rounds)]
            left = sum(rig.lanes.depths().values())
            assert not backlog or left > jobs / 2, f"the backlog was worked off: {left} left"
            return statistics.median(times)

    alone, beside = asyncio.run(median(0)), asyncio.run(median(options.jobs))
    return [{"jobs waiting": options.jobs, "upload alone s": alone, "beside them s": beside, "ratio": beside / alone,
             "rounds": options.rounds}]  # fmt: skip


def backlog(options: argparse.Namespace) -> list[Row]:
    """A backlog of images on some targets, a lane each; each create takes so long, so many at
    once."""
    log.setup(level="error")
    width, seconds = 20, options.seconds
    stores = {f"cinder-t{number}": f"t{number}" for number in range(options.targets)}
    targets = tuple(
        Target(
            name=name,
            volume_type=name,
            strategy=options.strategy,
            glance_store=store,
            max_concurrent=width,
        )
        for store, name in stores.items()
    )

    async def run() -> tuple[float, float]:
        cloud = FakeCloud(
            stores=stores, multiple_locations=True, seconds=seconds, latency=options.latency
        )
        limits = Limits(poll_min=0.5, poll_max=15.0)
        async with Rig(cloud, targets=targets, policy=Policy(), limits=limits) as rig:
            # A worker begins with one
            await rig.resync()
            cloud.emit = rig.hear
            began = time.monotonic()
            images = [cloud.upload() for _ in range(options.images)]
            while not all(
                (image.stores or set()) >= set(stores) for image in cloud.images.values()
            ):
                await asyncio.sleep(0.05)
            took = time.monotonic() - began
            await rig.quiet(within=120)
            volumes = len(cloud.volumes)
            assert volumes == len(stores) * len(images), (
                f"{volumes} volumes for {len(images)} images"
            )
            return took, sum(cloud.calls.values()) / volumes

    took, requests = asyncio.run(run())
    bound = -(-options.images // width) * seconds
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return [{"images": options.images, "targets": len(stores), "at once": width, "create s": seconds,
             "request s": options.latency, "requests a volume": requests, "took s": took, "bound s": bound,
             "of the bound": bound / took, "peak MiB": peak}]  # fmt: skip


def gone(options: argparse.Namespace) -> list[Row]:
    """An image deleted → the last of its Image-Volumes gone, by Glance (store) and where only we do
    it (cache)."""
    alice, operator = Person("alice"), Person("operator")
    rows: list[Row] = []
    for strategy, cache in (("store", "0"), ("cache", "1")):
        devcloud("set", f"IMAGE_CACHE={cache}")
        with worker(strategy) as process:
            took = []
            for _ in range(options.rounds):
                image_id = alice.image("bench-gone", mebibytes=256)
                until(lambda image=image_id: len(done(process, image)) == len(TARGETS))
                until(
                    lambda image=image_id: all(
                        v["status"] == "available" for v in of_image(operator, image)
                    )
                )
                alice.delete_image(image_id)
                began = time.monotonic()
                until(lambda image=image_id: not of_image(operator, image), every=0.05)
                took.append(time.monotonic() - began)
        rows.append({"strategy": strategy, "Image-Volumes": len(TARGETS), "median s": statistics.median(took),
                     "longest s": max(took), "rounds": options.rounds})  # fmt: skip
    devcloud("set", "IMAGE_CACHE=0")
    return rows


def done(process: WorkerProcess, image_id: str) -> set[str]:
    """The targets on which the worker says that the image is warm."""
    return {
        str(line["target"]) for line in process.events("job_done") if line["image_id"] == image_id
    }


def resync(options: argparse.Namespace) -> list[Row]:
    """One comparison of a cloud where everything is warm."""
    log.setup(level="error")
    names = [f"t{number}" for number in range(options.targets)]
    targets = tuple(
        Target(name=name, volume_type=name, glance_store=f"cinder-{name}") for name in names
    )
    cloud = Vast(targets=targets, images=options.images)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    began = time.monotonic()
    found = asyncio.run(compared(cloud, targets))
    took = time.monotonic() - began
    assert not found, found[:3]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return [{"images": options.images, "targets": len(targets), "pages of images": cloud.calls["list_images"],
             "pages of volumes": cloud.calls["list_volumes"], "calls": cloud.calls.total(), "took s": took,
             "peak MiB": peak, "at rest MiB": before}]  # fmt: skip


def pages(options: argparse.Namespace) -> list[Row]:
    """How long Glance and Cinder take for a full page, which is what a comparison of a large cloud
    waits for."""
    alice, operator = Person("alice"), Person("operator")
    operator.limit(alice.project_id, None, "volumes")
    operator.limit(alice.project_id, None)
    images, volumes = [], []
    with ThreadPoolExecutor(4) as pool:
        try:
            images += pool.map(lambda _: alice.queued("bench-pages"), range(options.rows))
            volumes += pool.map(lambda _: alice.blank("local-1"), range(options.rows))
            rows = []
            for service, proxy, url in (
                (
                    "glance",
                    operator.connection.image,
                    f"/images?limit={PAGE}&status=queued&visibility=all",
                ),
                (
                    "cinder",
                    operator.connection.block_storage,
                    f"/volumes/detail?limit={PAGE}&all_tenants=1",
                ),
            ):
                took = []
                for _ in range(5):
                    began = time.monotonic()
                    answer = proxy.get(url)
                    took.append(time.monotonic() - began)
                (found,) = (
                    value
                    for value in answer.json().values()
                    if isinstance(value, list) and len(value) > 1
                )
                rows.append({"of": service, "rows": len(found), "median s": statistics.median(took),
                             "KiB": len(answer.content) / 1024})  # fmt: skip
        finally:
            list(pool.map(alice.delete_image, images))
            list(pool.map(alice.delete_volume, volumes))
    return rows


def replay(options: argparse.Namespace) -> list[Row]:
    """`replay --dry-run` of many notifications against nothing but decoding both layers of their
    JSON."""
    with tempfile.TemporaryDirectory() as folder:
        capture, config, clouds = (
            Path(folder, name) for name in ("capture.jsonl", "worker.conf", "clouds.yaml")
        )
        with capture.open("wb") as file:
            for body in notifications(options.messages, begin=datetime(2025, 1, 1, tzinfo=UTC)):
                file.write(body + b"\n")
        began = time.monotonic()
        with capture.open("rb") as file:
            for line in file:
                json.loads(json.loads(line)["oslo.message"])
        decoding = time.monotonic() - began
        config.write_text(configuration({**groups(), "cloud": {"name": "none"}}))
        auth = {
            "auth_url": "http://127.0.0.1:1",
            "username": "x",
            "password": "x",
            "project_name": "x",
        }
        clouds.write_text(json.dumps({"clouds": {"none": {"auth": auth}}}))
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "worker",
                "--config-file",
                str(config),
                "replay",
                "--dry-run",
                "-f",
                "json",
                capture,
            ],
            env={**os.environ, "OS_CLIENT_CONFIG_FILE": str(clouds)},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=True,
        )
        tally = json.loads(done.stdout)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return [{"messages": tally["messages"], "keys": tally["keys"], "decoding s": decoding, "replay s": tally["seconds"],
             "of its rate": decoding / tally["seconds"], "peak MiB": peak}]  # fmt: skip


def status(options: argparse.Namespace) -> list[Row]:
    """`status` of a cloud where everything is warm, on three targets, as JSON and with the targets'
    summary."""
    log.setup(level="error")
    names = ("a", "b", "c")
    targets = tuple(
        Target(name=name, volume_type=name, glance_store=f"cinder-{name}", max_count=options.images)
        for name in names
    )
    cloud = Parsing(stores={target.glance_store: target.name for target in targets})
    for _ in range(options.images):
        cloud.fill(targets)
    cloud.calls.clear()

    async def rows(held: dict[str, tuple[int, int]]) -> list[Shown]:
        rig = Rig(cloud, targets=targets)
        return [row async for row in overview(cloud, rig.prewarm, (rig.reclaim, rig.upload), held)]

    began = time.monotonic()
    held: dict[str, tuple[int, int]] = {}
    found = asyncio.run(rows(held))
    text = json.dumps([[cell.machine_readable() if isinstance(cell, Moment) else cell for cell in cells(row)]
                       for row in found])  # fmt: skip
    shown = summaries(targets, found, held)
    took = time.monotonic() - began
    assert [one.states for one in shown] == [{"warm": options.images}] * 3, shown
    return [
        {
            "images": options.images,
            "targets": len(targets),
            "rows": len(found),
            "calls": cloud.calls.total(),
            "took s": took,
            "MiB of JSON": len(text) / (1 << 20),
            **board(cloud, names),
        }
    ]


def board(cloud: FakeCloud, names: tuple[str, ...]) -> Row:
    """The cost of the page for a worker that has seen these images: MiB that it holds, KiB of an answer,
    and for how long the event loop stands at the most while the first one is made."""
    shown = Activity()
    tracemalloc.start()
    for image in cloud.images.values():
        shown.look(image, dict.fromkeys(names, (State.WARM, "")))
    answer = gzip.compress(json.dumps(shown.images(names)).encode(), compresslevel=1)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    again = Activity()
    for image in cloud.images.values():
        again.look(image, dict.fromkeys(names, (State.WARM, "")))
    stands = asyncio.run(longest_stand(lambda: again.images(names)))
    return {
        "page holds MiB": held / (1 << 20),
        "page sends KiB": len(answer) / (1 << 10),
        "loop stands ms": 1000 * stands,
    }


async def longest_stand(work: Callable[[], object]) -> float:
    """For how long the event loop gets no turn at the most, in seconds, while a thread does some
    work."""
    working = asyncio.create_task(asyncio.to_thread(work))
    longest = 0.0
    while not working.done():
        began = time.monotonic()
        await asyncio.sleep(0.001)
        longest = max(longest, time.monotonic() - began - 0.001)
    return longest


def handover(options: argparse.Namespace) -> list[Row]:
    """`replay` into lanes on RabbitMQ, against a bare kombu publisher that sends as many jobs of
    the same size."""
    url = f"amqp://openstack:{PASSWORD}@127.0.0.1:5672/worker"
    prefix = f"bench-{os.getpid()}"
    queues = [
        f"{prefix}.{lane}"
        for lane in ("upload", "reclaim", *(f"prewarm.{name}" for name in TARGETS), "bare")
    ]
    settings = groups(work={"url": url}, notifications={"transport_urls": URL, "queue": prefix})
    with (
        tempfile.TemporaryDirectory() as folder,
        kombu.Connection(url, transport_options={"confirm_publish": False}) as bare,
        kombu.Connection(url, transport_options={"confirm_publish": True}) as confirmed,
    ):
        process = WorkerProcess(Path(folder), settings, clouds=HOME / "clouds.yaml")
        capture = Path(folder, "capture.jsonl")
        with capture.open("wb") as file:
            for body in notifications(options.messages, begin=datetime(2025, 1, 1, tzinfo=UTC)):
                file.write(body + b"\n")
        try:
            done = process.run("replay", str(capture), "-f", "json", timeout=3600)
            assert done.returncode == 0, done.stderr
            tally = json.loads(done.stdout)
            job = Job(
                key=Key("prewarm", str(uuid.uuid4()), "local-1"),
                cause="image.activate",
                first_at=time.time(),
            )
            took = {}
            for name, connection in (("bare s", bare), ("confirmed s", confirmed)):
                channel = connection.default_channel
                channel.queue_declare(
                    queues[-1],
                    durable=True,
                    auto_delete=False,
                    arguments={"x-queue-type": "quorum"},
                )
                producer = kombu.Producer(channel)
                began = time.monotonic()
                for _ in range(tally["keys"]):
                    producer.publish(job.to_bytes(), routing_key=queues[-1], content_type="application/json",
                                     content_encoding="utf-8", delivery_mode=2)  # fmt: skip
                took[name] = time.monotonic() - began
        finally:
            for queue in queues:
                bare.default_channel.queue_delete(queue)
    return [{"messages": tally["messages"], "jobs": tally["keys"], "replay s": tally["seconds"], **took,
             "of bare": took["bare s"] / tally["seconds"],
             "of confirmed": took["confirmed s"] / tally["seconds"]}]  # fmt: skip


def rest(options: argparse.Namespace) -> list[Row]:
    """A worker on RabbitMQ with nothing to do: how long it takes to start, its memory, its share of
    a core."""
    starts = []
    lanes = {"url": f"amqp://openstack:{PASSWORD}@127.0.0.1:5672/worker"}
    with tempfile.TemporaryDirectory() as folder:
        process = WorkerProcess(Path(folder), groups(work=lanes), clouds=HOME / "clouds.yaml")
        for _ in range(options.starts):
            began = time.monotonic()
            process.start()
            process.wait_ready()
            starts.append(time.monotonic() - began)
            process.stop()
        with process:
            process.wait_ready()
            # The comparison at the start is no rest
            until(lambda: process.events("resynced"))
            time.sleep(10)
            used = process.usage()
            time.sleep(options.seconds)
            now = process.usage()
    return [{"ready after s": statistics.median(starts), "MiB": now.memory / (1 << 20),
             "% of a core": 100 * (now.seconds - used.seconds) / options.seconds, "threads": now.threads,
             "file descriptors": now.descriptors, "over s": options.seconds}]  # fmt: skip


class Parsing(FakeCloud):
    """Shares no memory with who lists its volumes, as one that is read from JSON does not."""

    async def list_volumes(self, tag: str = "", *, key: str = TAG) -> AsyncIterator[Volume]:
        async for volume in super().list_volumes(tag, key=key):
            yield Volume(**json.loads(json.dumps(asdict(volume))))


class Vast(FakeCloud):
    """Any number of images that are warm on these targets, each made up when it is listed: it takes
    no memory."""

    def __init__(self, *, targets: tuple[Target, ...], images: int) -> None:
        super().__init__(stores={target.glance_store: target.volume_type for target in targets})
        self._targets, self._count = targets, images
        self._stores = frozenset({"file", *(target.glance_store for target in targets)})

    def _image(self, number: int) -> Image:
        dice = random.Random(number)
        return Image(
            id=str(uuid.UUID(int=dice.getrandbits(128))), status="active", owner=f"{dice.getrandbits(128):032x}",
            disk_format="raw", container_format="bare", visibility="community", name=f"image {number}",
            size=dice.randrange(40 << 30), created_epoch=1.8e9 - number, updated_at=f"2026-01-01T00:00:00Z {number}",
            updated_epoch=1.8e9 - number, stores=self._stores,
        )  # fmt: skip

    async def list_images(self) -> AsyncIterator[Image]:
        for number in range(self._count):
            self.calls["list_images"] += number % PAGE == 0
            yield self._image(number)

    async def list_volumes(self, tag: str = "") -> AsyncIterator[Volume]:  # noqa: ARG002  all are ours
        dice = random.Random(self._count)
        for number in range(self._count):
            image = self._image(number)
            for place, target in enumerate(self._targets):
                self.calls["list_volumes"] += (number * len(self._targets) + place) % PAGE == 0
                metadata = {
                    **image_volume.metadata_of(image, target),
                    image_volume.ORIGIN: image_volume.PREWARM,
                }
                yield Volume(
                    id=str(uuid.UUID(int=dice.getrandbits(128))), name=f"image-{image.id}", status="available",
                    volume_type=target.volume_type, size=40, created_at=f"2026-01-01T00:00:00.{number:06}",
                    created_epoch=1.8e9 - number, updated_epoch=1.8e9 - number, host=f"host@{target.name}#pool",
                    project_id="0" * 32, metadata={**metadata, "readonly": "True"},
                )  # fmt: skip


async def compared(cloud: FakeCloud, targets: tuple[Target, ...]) -> list[Missing]:
    """The keys that a worker with these targets finds missing."""
    return await Rig(cloud, targets=targets).resync()


def show(rows: list[Row]) -> None:
    """The rows as a table."""
    cells = [
        [f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()]
        for row in rows
    ]
    titles = list(rows[0])
    widths = [max(len(line[i]) for line in (titles, *cells)) for i in range(len(titles))]
    for line in (titles, *cells):
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def main() -> int:  # noqa: PLR0915  a line an option
    """Run one benchmark."""
    parser, common = (
        argparse.ArgumentParser(prog="scripts/bench"),
        argparse.ArgumentParser(add_help=False),
    )
    common.add_argument("--json", type=Path, help="write what was measured into this file too")
    parser.set_defaults(problems=[])
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("clone", parents=[common])
    one.add_argument("--gib", type=int, nargs="+", default=[1, 4])
    one.add_argument("--rounds", type=int, default=3)
    one.set_defaults(run=clone)
    one = commands.add_parser("prewarm", parents=[common])
    one.add_argument("--rounds", type=int, default=3)
    one.set_defaults(run=prewarm)
    one = commands.add_parser("uploads", parents=[common])
    one.add_argument("--gib", type=int, nargs="+", default=[1, 4])
    one.add_argument("--rounds", type=int, default=5)
    one.add_argument(
        "--copies", type=int, default=3, help="rounds of Cinder's copy, which takes a minute"
    )
    one.set_defaults(run=uploads)
    one = commands.add_parser("lane", parents=[common])
    one.add_argument("--jobs", type=int, default=100_000)
    one.add_argument("--rounds", type=int, default=20)
    one.set_defaults(run=lane)
    one = commands.add_parser("backlog", parents=[common])
    one.add_argument("--images", type=int, default=500)
    one.add_argument("--targets", type=int, default=2)
    one.add_argument("--strategy", choices=("location", "store"), default="location")
    one.add_argument("--seconds", type=float, default=2.0, help="until a volume is made")
    one.add_argument("--latency", type=float, default=0.0, help="of each request")
    one.set_defaults(run=backlog)
    one = commands.add_parser("gone", parents=[common])
    one.add_argument("--rounds", type=int, default=5)
    one.set_defaults(run=gone)
    one = commands.add_parser("resync", parents=[common])
    one.add_argument("--images", type=int, default=10_000)
    one.add_argument("--targets", type=int, default=3)
    one.set_defaults(run=resync)
    one = commands.add_parser("replay", parents=[common])
    one.add_argument("--messages", type=int, default=1_000_000)
    one.set_defaults(run=replay)
    one = commands.add_parser("status", parents=[common])
    one.add_argument("--images", type=int, default=10_000)
    one.set_defaults(run=status)
    one = commands.add_parser("intake", parents=[common])
    one.add_argument("--messages", type=int, default=50_000)
    one.add_argument("--rounds", type=int, default=3)
    one.set_defaults(run=bench_broker.intake)
    one = commands.add_parser("lanes", parents=[common])
    one.add_argument("--jobs", type=int, default=10_000)
    one.add_argument("--rounds", type=int, default=3)
    one.set_defaults(run=bench_broker.lanes)
    one = commands.add_parser("wide", parents=[common])
    one.add_argument("--lanes", type=int, nargs="+", default=[1, 10, 100, 1000])
    one.set_defaults(run=bench_broker.wide)
    one = commands.add_parser("pages", parents=[common])
    one.add_argument("--rows", type=int, default=1000)
    one.set_defaults(run=pages)
    one = commands.add_parser("latency", parents=[common])
    one.add_argument("--images", type=int, default=300)
    one.add_argument("--load", type=int, default=1000, help="other notifications a second")
    one.set_defaults(run=bench_broker.latency)
    one = commands.add_parser("rest", parents=[common])
    one.add_argument("--seconds", type=float, default=60.0)
    one.add_argument("--starts", type=int, default=5)
    one.set_defaults(run=rest)
    one = commands.add_parser("grow", parents=[common])
    one.add_argument("--seconds", type=float, default=60.0)
    one.add_argument("--plot", type=Path, help="draw it into this SVG")
    one.set_defaults(run=bench_growth.grow)
    one = commands.add_parser("handover", parents=[common])
    one.add_argument("--messages", type=int, default=100_000)
    one.set_defaults(run=handover)
    one = commands.add_parser("pools", parents=[common])
    one.add_argument("--creates", type=int, default=40)
    one.add_argument("--at-once", type=int, default=4)
    one.set_defaults(run=bench_shapes.pools)
    one = commands.add_parser("formats", parents=[common])
    one.add_argument("--rounds", type=int, default=5)
    one.set_defaults(run=bench_shapes.formats)
    one = commands.add_parser("limits", parents=[common])
    one.add_argument("--creates", type=int, default=40)
    one.add_argument("--at-once", type=int, default=4)
    one.set_defaults(run=bench_shapes.limits)
    one = commands.add_parser("native", parents=[common])
    one.add_argument("--images", type=int, default=5)
    one.set_defaults(run=bench_shapes.native)
    # What `scripts/bench` asks before it starts services
    words = [word for word in sys.argv[1:] if word != "--only-parse"]
    options = parser.parse_args(words)
    if len(words) < len(sys.argv) - 1:
        return 0
    rows = options.run(options)
    show(rows)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")
    for problem in options.problems:
        print(problem, file=sys.stderr)
    return 1 if options.problems else 0


if __name__ == "__main__":
    sys.exit(main())
