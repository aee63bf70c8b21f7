"""Comparisons: when the daemon compares the whole cloud, and counts its Image-Volumes."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import structlog

from handlers import image_volume, last_use
from worker.core import request_id
from worker.core.errors import Blocked, Malformed, NotFound, Temporary
from worker.core.handler import Handler
from worker.core.lanes import Lanes
from worker.engine.dispatcher import Dispatcher
from worker.engine.resync import Census, compare, count, enqueue
from worker.engine.retry import Backoff, Pace
from worker.observe.image_volumes import ImageVolumes
from worker.observe.metrics import Metrics
from worker.settings import Settings

if TYPE_CHECKING:
    from worker.openstack.cloud import OpenStackCloud

log = structlog.get_logger(__name__)

START = "start"
"""The reason for the comparison at start."""
GAPS = Backoff(shortest=5.0, longest=120.0)
"""Pauses between comparisons that gaps in the intake lead to: each comparison lists the whole cloud,
and each replica makes one."""
CENSUS = 60.0
"""Seconds between two counts of Image-Volumes, which list them, at least."""
CENSUS_SHARE = 50
"""Counts may take a fiftieth of the time."""


class Comparisons:
    """Compares the cloud with what handlers want, at an interval and whenever somebody wants it."""

    def __init__(
        self,
        *,
        cloud: OpenStackCloud,
        handlers: Mapping[str, Handler],
        lanes: Lanes,
        settings: Settings,
        metrics: Metrics,
        census_every: float = CENSUS,
    ) -> None:
        self._cloud = cloud
        self._handlers = handlers
        self._lanes = lanes
        self._settings = settings
        self._metrics = metrics
        self._census_every = census_every
        self._wanted = asyncio.Event()
        self._why = ""
        self._pace = Pace(GAPS)
        self._left_out = frozenset[str]()

    @property
    def wanted(self) -> bool:
        """Whether a comparison begins soon."""
        return self._wanted.is_set()

    def want(self, reason: str) -> None:
        """Have the cloud compared soon."""
        self._why = reason
        self._wanted.set()

    def want_for_free_lanes(self) -> None:
        """Have the cloud compared once lanes that a comparison left out hold no jobs of another
        worker any more."""
        if free := {lane for lane in self._left_out if self._lanes.knows(lane)}:
            self._left_out -= free
            self.want(f"nothing of another worker's waits any more in {', '.join(sorted(free))}")

    async def run(self, dispatcher: Dispatcher) -> None:
        """Compare whenever it is wanted, and at the interval of the settings."""
        backoff = self._settings.backoff
        failures = 0
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.resync_interval):
                    await self._wanted.wait()
            # The intakes open when the first comparison begins: it must find what they missed until
            # then
            if self._wanted.is_set() and self._why != START:
                await asyncio.sleep(self._pace.wait(time.monotonic()))
                self._pace.began(time.monotonic())
            why = self._why or "interval"
            self._wanted.clear()
            self._why = ""
            done = False
            try:
                with request_id.bound():
                    await self._compare(dispatcher, why)
                failures, done = 0, True
            except (Temporary, Blocked, NotFound, Malformed) as error:
                wait = backoff.after(failures)
                failures += 1
                log.warning("resync_failed", error=str(error), after=round(wait, 1))
                await asyncio.sleep(wait)
            finally:
                # Also after an error that begins this task again: the reason for the comparison
                # still holds
                if not done:
                    self.want(why)

    async def _compare(self, dispatcher: Dispatcher, why: str) -> None:
        began = time.monotonic()
        self._metrics.activity.comparing()
        census = self._census()
        found = compare(
            self._cloud, self._handlers.values(), image_of=image_volume.image_of, census=census
        )
        total, left = await enqueue(found, submit=dispatcher.submit, knows=self._lanes.knows)
        self._left_out = frozenset(left)
        if left:
            log.info("resync_left_out", keys=dict(left), why="jobs of another worker's wait there")
        self._metrics.last_resync.set_to_current_time()
        self._metrics.activity.compared()
        self._note(census)
        log.info(
            "resynced",
            why=why,
            images=census.images,
            incomplete=total,
            seconds=round(time.monotonic() - began, 2),
        )

    async def keep_census(self) -> None:
        """Count the Image-Volumes between two comparisons too."""
        pause = self._census_every
        while True:
            await asyncio.sleep(pause)
            pause = await self.take_census()

    async def take_census(self) -> float:
        """Count the Image-Volumes now; return the seconds until the next count. If it fails, the
        last count stays."""
        began = time.monotonic()
        try:
            with request_id.bound():
                census = self._census()
                await count(self._cloud, image_of=image_volume.image_of, census=census)
            self._note(census)
        except (Temporary, Blocked, NotFound, Malformed) as error:
            # The watch on the cloud reports that
            log.debug("census_failed", error=str(error))
        return max(self._census_every, CENSUS_SHARE * (time.monotonic() - began))

    def _census(self) -> Census:
        """Return an empty census. Only the page shows single Image-Volumes."""
        now = time.time()
        used_of = functools.partial(last_use.recorded_use, now=now)
        return Census(kept=ImageVolumes(used_of=used_of) if self._settings.page else None)

    def _note(self, census: Census) -> None:
        self._metrics.census(census.volumes, census.sizes)
        if census.kept is not None:
            self._metrics.activity.listed(census.kept)
