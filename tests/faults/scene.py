"""Scenes: images and uploads that are made while something is broken, and what has to be true
afterwards."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scripts.cloud.operate import PASSWORD, TARGETS, groups, is_warm, of_image, until
from scripts.cloud.people import HOME, Person
from tests.devcloud import FORKED
from tests.worker_process import WorkerProcess

LANES = {"url": f"amqp://openstack:{PASSWORD}@127.0.0.1:5672/worker"}
ROWS: list[tuple[str, ...]] = []
HOUR = 3600.0
# Seconds after which Cinder does no more about a volume here: it is small
LOST = 120.0


@dataclass
class Scene:
    """Images and uploads of alice's, made while something is broken.

    `everywhere`: uploads are to be warm on the other target, too, which means a copy of a GiB by
    Glance.
    """

    alice: Person
    operator: Person
    admin: Person
    fault: str
    everywhere: bool = True
    source: str = ""
    content: str = ""
    images: list[str] = field(default_factory=list)
    uploads: list[str] = field(default_factory=list)
    before: frozenset[str] = frozenset()
    left: frozenset[str] = frozenset()
    took: float = 0.0

    def image(self, **fields: Any) -> None:
        """A new image with data."""
        self.images.append(self.alice.image("faults", **fields))

    def upload(self) -> None:
        """A volume that is to become an image."""
        wish = {} if self.everywhere else {"image_volume_prewarm": "no"}
        self.uploads.append(self.alice.queued("faults", image_volume_source=self.source, **wish))

    def load(self, images: int = 3, uploads: int = 2) -> None:
        """So many of both."""
        for number in range(max(images, uploads)):
            if number < uploads:
                self.upload()
            if number < images:
                self.image()

    def converged(self, *, cut_off: bool = False) -> None:
        """Return when everything is as if nothing had been broken; else fail with what is not.

        `cut_off`: an import of Glance's may have been, in the middle of making its volume; that one
        stays for a while.
        """
        everything = (*self.images, *self.uploads)
        warm = everything if self.everywhere else self.images
        began = time.monotonic()

        def free() -> bool:
            if cut_off:
                self._free_lost()
            return True

        for one in self.uploads:
            until(
                lambda image=one: free() and self.alice.show(image)["status"] == "active",
                what=lambda image=one: f"{self.fault}: {self.alice.show(image)} active",
            )
        for one in warm:
            until(
                lambda image=one: is_warm(self.operator, self.alice, image, unmarked=cut_off),
                what=lambda image=one: (
                    f"{self.fault}: {self.alice.show(image)} {of_image(self.operator, image)} warm"
                ),
            )
        self.took = time.monotonic() - began
        lying = [volume for one in everything for volume in of_image(self.operator, one)]
        wanted = {volume["id"] for volume in lying if "image_volume_worker" in volume["metadata"]}
        assert len(wanted) == len(everything) + len(warm)
        self.left = frozenset(volume["id"] for volume in lying) - wanted
        until(
            lambda: self._there() - self.left == wanted,
            what=lambda: f"{self.fault}: nothing is left over: {self.operator.volumes()}",
        )
        theirs = {volume["id"]: volume["status"] for volume in self.alice.volumes()}
        assert theirs[self.source] == "available"
        assert not [status for status in theirs.values() if status.startswith("error")]
        for one in (self.images[-1], self.uploads[-1]):
            # The source lies on the first
            for target in TARGETS if one in warm else TARGETS[:1]:
                made = self.alice.volume(one, target)
                self.alice.delete_volume(made.id)
                assert made.cloned, f"{self.fault}: Cinder copies {one} on {target}"
        assert (
            self.alice.sha256(self.images[-1]) == self.alice.sha256(self.images[0]) == self.content
        )

    def tidied(self, folder: Path) -> None:
        """Return when what was left over is gone, by a worker that compares, after an
        administrator's help."""
        if not self.left:
            return
        stuck = [
            v
            for v in self.operator.volumes()
            if v["id"] in self.left and v["status"] not in ("available", "error")
        ]
        with WorkerProcess(
            folder, groups(work=LANES), clouds=HOME / "clouds.yaml", forked=FORKED
        ) as process:
            process.wait_ready()
            for volume in stuck:
                until(
                    lambda name=volume["id"]: (
                        name in {line["volume_id"] for line in process.events("volume_stuck")}
                    ),
                    what=f"{self.fault}: {volume} is told of",
                )
                self.admin.act(
                    volume["id"], "os-reset_status", status="error", attach_status="detached"
                )
            process.run("resync")
            until(
                lambda: not self._there() & self.left,
                what=lambda: f"{self.fault}: {self.left} went: {self.operator.volumes()}",
            )

    def _free_lost(self) -> None:
        """Do as an administrator does with a volume whose making a broker's restart has swallowed
        for good.

        Cinder lets nobody delete it, as a host is said to be at work on it.
        """
        for volume in self.operator.volumes():
            changed = volume["updated_at"] or volume["created_at"]
            still = datetime.now(UTC) - datetime.fromisoformat(changed).replace(tzinfo=UTC)
            if (
                volume["status"] == "creating"
                and volume["id"] not in self.before
                and still.total_seconds() > LOST
            ):
                self.admin.act(volume["id"], "os-reset_status", status="error")

    def _there(self) -> set[str]:
        return {volume["id"] for volume in self.operator.volumes()} - self.before

    def reported(self, *workers: WorkerProcess) -> None:
        """A row of the table: nothing has become a dead letter."""
        letters = max((process.metric("dead_letters") for process in workers), default=0.0)
        parked = [line for process in workers for line in process.events("job_parked")]
        assert not parked, parked
        assert letters == 0
        count = f"{len(self.images)} + {len(self.uploads)}"
        ROWS.append((self.fault, count, f"{self.took:.0f} s", str(len(self.left))))
