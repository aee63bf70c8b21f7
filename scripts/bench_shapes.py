"""Benchmarks of clouds of several shapes: a type over several pools, other formats than raw, a
limit of clones, Ceph on both sides."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from scripts.cloud.operate import groups
from scripts.cloud.people import HOME, Made, Person
from tests.worker_process import WorkerProcess

TARGETS = ("local-1", "local-2")
PATIENCE = 600.0
SIZE = 2
"""GiB of the volumes: with its tables a qcow2 file of 1 GiB of data is a little larger, and Cinder
goes by that."""
KINDS: tuple[tuple[str, dict[str, str]], ...] = (
    ("without the worker", {"image_volume_prewarm": "no"}),
    ("with the worker", {}),
)
"""The images of a comparison, by their properties."""
Row = dict[str, Any]


@contextmanager
def worker() -> Iterator[WorkerProcess]:
    """A worker on the devcloud with strategy auto, ready."""
    with (
        tempfile.TemporaryDirectory() as folder,
        WorkerProcess(Path(folder), groups(), clouds=HOME / "clouds.yaml") as process,
    ):
        process.wait_ready()
        yield process


def until_warm(process: WorkerProcess, images: int, targets: tuple[str, ...]) -> None:
    """Wait until at least this many images are warm on each target."""
    deadline = time.monotonic() + PATIENCE
    while any(process.metric("images", target=target, state="warm") < images for target in targets):
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"{images} images are not warm after {PATIENCE:.0f} s; see {process.log}"
            )
        time.sleep(0.1)


def until_seen_warm(process: WorkerProcess, image_id: str) -> None:
    """Wait until the worker has found the image to be warm on all targets: the metric is counted
    every 15 seconds only."""
    deadline = time.monotonic() + PATIENCE
    while True:
        _, shown = process.probe(f"/image.json?id={image_id}")
        if {one["state"] for one in shown.get("targets", ())} == {"warm"}:
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"{image_id}: {shown}; see {process.log}")
        time.sleep(0.05)


def warm_now(process: WorkerProcess) -> int:
    """How many images are warm on the target with the fewest."""
    return int(min(process.metric("images", target=target, state="warm") for target in TARGETS))


def creates(person: Person, image_id: str, count: int, at_once: int) -> list[Made]:
    """Make volumes of the image on the first target, `at_once` at a time, and delete each once it
    is there."""

    def one() -> Made:
        with person.temporary_volume(image_id, TARGETS[0]) as made:
            return made

    return many(one, count, at_once)


def many(make: Callable[[], Made], count: int, at_once: int) -> list[Made]:
    """Make `count` volumes, `at_once` at a time."""
    with ThreadPoolExecutor(at_once) as threads:
        return list(threads.map(lambda _: make(), range(count)))


def pools(options: argparse.Namespace) -> list[Row]:
    """Volumes of an image by another project, of a type over several pools: with the worker, and
    without."""
    alice, bob = Person("alice"), Person("bob")
    rows: list[Row] = []
    with worker() as process:
        for kind, more in KINDS:
            before = warm_now(process)
            image_id = alice.image("bench-pools", mebibytes=1024, **more)
            began = time.monotonic()
            if not more:
                until_warm(process, before + 1, TARGETS)
            waited = time.monotonic() - began
            made = creates(bob, image_id, options.creates, options.at_once)
            rows.append(
                {
                    "image": kind,
                    "pools": int(process.metric("pools", target=TARGETS[0])),
                    "creates": len(made),
                    "clones": sum(one.cloned for one in made),
                    "first create s": made[0].seconds,
                    "longest s": max(one.seconds for one in made),
                    "median s": statistics.median(one.seconds for one in made),
                    "warm after s": waited if not more else "",
                }
            )
            alice.delete_image(image_id)
    if rows[1]["clones"] < rows[1]["creates"]:
        options.problems.append("not every create was a clone")
    return rows


def formats(options: argparse.Namespace) -> list[Row]:
    """Volumes of a qcow2 image against those of a raw one, both warm, on each target; and of one
    that is not warm."""
    alice, bob = Person("alice"), Person("bob")
    rows: list[Row] = []
    with worker() as process:
        before = warm_now(process)
        warm = {
            kind: alice.image(f"bench-{kind}", mebibytes=1024, disk_format=kind)
            for kind in ("raw", "qcow2")
        }
        cold = alice.image(
            "bench-cold", mebibytes=1024, disk_format="qcow2", image_volume_prewarm="no"
        )
        until_warm(process, before + len(warm), TARGETS)
        for target in TARGETS:
            # The one that is not warm leaves an entry in Cinder's cache: its first volume alone is
            # a download
            with bob.temporary_volume(cold, target, gibibytes=SIZE) as made:
                slow = made
            took: dict[str, list[Made]] = {kind: [] for kind in warm}
            for _ in range(options.rounds):
                for kind, image_id in warm.items():
                    with bob.temporary_volume(image_id, target, gibibytes=SIZE) as made:
                        took[kind].append(made)
            raw, other = (
                statistics.median(one.seconds for one in took[kind]) for kind in ("raw", "qcow2")
            )
            clones = sum(one.cloned for one in took["qcow2"])
            if clones < options.rounds or slow.cloned:
                options.problems.append(
                    f"{target}: {clones} of {options.rounds} volumes were clones"
                )
            rows.append(
                {
                    "target": target,
                    "qcow2, not warm s": slow.seconds,
                    "raw, warm s": raw,
                    "qcow2, warm s": other,
                    "clones": f"{clones}/{options.rounds}",
                    "qcow2 / raw": other / raw,
                }
            )
        for image_id in (*warm.values(), cold):
            alice.delete_image(image_id)
    return rows


def limits(options: argparse.Namespace) -> list[Row]:
    """Volumes of an image, all of them kept, on a backend that makes 32 clones of one volume: with
    the worker, and without."""
    alice, bob = Person("alice"), Person("bob")
    rows: list[Row] = []
    with worker() as process:
        for kind, more in KINDS:
            before = warm_now(process)
            image_id = alice.image("bench-limits", mebibytes=256, **more)
            if not more:
                until_warm(process, before + 1, TARGETS)
            began = time.monotonic()
            make = partial(bob.volume, image_id, TARGETS[0])
            made = many(make, options.creates, options.at_once)
            rows.append(
                {
                    "image": kind,
                    "creates": len(made),
                    "downloads": sum(not one.cloned for one in made),
                    "seconds": time.monotonic() - began,
                    "median s": statistics.median(one.seconds for one in made),
                    "longest s": max(one.seconds for one in made),
                }
            )
            for one in made:
                bob.delete_volume(one.id)
            alice.delete_image(image_id)
    return rows


def native(options: argparse.Namespace) -> list[Row]:
    """Raw images where Glance and Cinder share a Ceph cluster: what the worker makes, and when they
    are warm."""
    alice, bob = Person("alice"), Person("bob")
    with worker() as process:
        took: list[float] = []
        images: list[str] = []
        for _ in range(options.images):
            images.append(alice.image("bench-native", mebibytes=256))
            began = time.monotonic()
            until_seen_warm(process, images[-1])
            took.append(time.monotonic() - began)
        volumes = process.events("image_volume_creating")
        made = [creates(bob, image_id, 1, 1)[0] for image_id in images]
        for image_id in images:
            alice.delete_image(image_id)
    if not all(one.cloned for one in made):
        options.problems.append("not every create was a clone")
    return [
        {
            "images": len(images),
            "targets": len(TARGETS),
            "volumes to find out": len(volumes),
            "first warm after s": took[0],
            "others, median s": statistics.median(took[1:]),
            "creates that were clones": f"{sum(one.cloned for one in made)}/{len(made)}",
            "create, median s": statistics.median(one.seconds for one in made),
        }
    ]
