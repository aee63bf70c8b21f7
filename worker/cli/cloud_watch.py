"""The watch on the cloud: whether it is there, and which targets it can serve."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import structlog

from worker.cli.preflight import Found, check_cloud, check_locations
from worker.core import request_id
from worker.core.errors import Blocked, Malformed, Misconfigured, NotFound, Temporary
from worker.core.uses import Uses
from worker.observe.metrics import Metrics
from worker.settings import Settings

if TYPE_CHECKING:
    from worker.openstack.cloud import OpenStackCloud

log = structlog.get_logger(__name__)

PING = 30.0
"""Seconds between two looks at the cloud."""
AWAY = 5.0
"""The same while it is away."""


class CloudWatch:
    """Looks at the cloud at start and again and again.

    `want_resync` is called with a reason whenever the cloud can do something again that it could
    not. `uses` learns which volume type is which target.
    """

    def __init__(
        self,
        *,
        cloud: OpenStackCloud,
        settings: Settings,
        metrics: Metrics,
        uses: Uses,
        want_resync: Callable[[str], None],
    ) -> None:
        self.seen_once = asyncio.Event()
        """Set once the cloud has answered for the first time."""
        self._cloud = cloud
        self._settings = settings
        self._metrics = metrics
        self._uses = uses
        self._want_resync = want_resync
        self._known = False
        self._answered = 0.0
        self._unusable: Mapping[str, str] = {}
        self._fault = ""
        self._blind = ""

    @property
    def unusable(self) -> Mapping[str, str]:
        """Reasons why targets can't be used, by name."""
        return self._unusable

    def problems(self) -> Mapping[str, str]:
        """Return problems with the cloud, by what has them."""
        if not self._known:
            return {"cloud": self._fault or "not asked yet"}
        if (silent := time.monotonic() - self._answered) > PING + 2 * self._settings.api_timeout:
            return {"cloud": f"has not answered for {silent:.0f} s"}
        return {"locations": self._blind} if self._blind else {}

    async def first_look(self, leave: asyncio.Event) -> None:
        """Look at the cloud, but not beyond `leave`. Misconfigured if the cloud is there and says
        that the configuration can't work."""
        checking = asyncio.create_task(check_cloud(self._cloud, self._settings))
        leaving = asyncio.create_task(leave.wait())
        await asyncio.wait([checking, leaving], return_when=asyncio.FIRST_COMPLETED)
        leaving.cancel()
        if not checking.done():
            checking.cancel()
            return
        try:
            await self._is_there(checking.result())
        except (Temporary, Blocked, NotFound, Malformed) as error:
            self._is_away(str(error))
        except Misconfigured:
            raise
        except Exception as error:
            # An error that nobody has thought of is no reason not to start: the supervised look at
            # the cloud asks again
            log.exception("cloud_not_looked_at")
            self._is_away(repr(error))

    async def keep_looking(self) -> None:
        """Look every now and then, more often while the cloud is away."""
        while True:
            await asyncio.sleep(PING if self._known else AWAY)
            await self.look()

    async def look(self) -> None:
        """Look at the cloud once."""
        try:
            with request_id.bound():
                await self._is_there(await check_cloud(self._cloud, self._settings))
        except (Misconfigured, Temporary, Blocked, NotFound, Malformed) as error:
            # At start Misconfigured ends the process; now somebody may be working on the cloud
            self._is_away(str(error))

    async def _look_at_locations(self, found: Found) -> None:
        """Check whether Glance shows where data lies: without that, nothing may be changed or
        deleted that is a location."""
        blind = await check_locations(self._cloud, found)
        if blind and not self._blind:
            log.warning("locations_hidden", error=blind)
        if self._blind and not blind:
            # Images that were looked at meanwhile would wait for a quarter of an hour
            log.info("locations_shown")
            self._want_resync("Glance shows locations again")
        self._blind = blind

    async def _is_there(self, found: Found) -> None:
        if not self._known and self._fault:
            log.info("cloud_back")
        self._uses.know(found.targets)
        self._name_unusable(found.unusable)
        self._known, self._fault = True, ""
        self._answered = time.monotonic()
        self.seen_once.set()
        await self._look_at_locations(found)

    def _is_away(self, why: str) -> None:
        if self._known or not self._fault:
            log.warning("cloud_away", error=why)
        self._known, self._fault = False, why

    def _name_unusable(self, unusable: Mapping[str, str]) -> None:
        """Report each target that can't be used, once. A resync finds what is missing on one that
        can be used again."""
        before, self._unusable = self._unusable, unusable
        for target in self._settings.targets:
            why = unusable.get(target.name, "")
            self._metrics.target_usable.labels(target.name).set(not why)
            if why and why != before.get(target.name):
                log.error("target_unusable", target=target.name, error=why)
            elif target.name in before and not why:
                log.info("target_usable", target=target.name)
                self._want_resync(f"target {target.name} can be used again")
