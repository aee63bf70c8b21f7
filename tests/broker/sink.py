"""Sinks for tests, which remember what they are given."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

from worker.core.dead_letter import DeadLetter
from worker.core.intake import Routed
from worker.core.job import Job, Key
from worker.engine.router import Router
from worker.observe.creations import Creations
from worker.observe.metrics import Metrics
from worker.testing.fake_cloud import FakeCloud
from worker.testing.rig import FAST, STORES, Rig


class RecordingSink:
    """Makes a job of each message that is JSON with an `id`, a letter of what is none, nothing of
    `null`."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.accepted: list[Routed] = []
        self.gaps: list[str] = []
        self.open = asyncio.Event()
        self.open.set()
        self.waiting = 0
        self.failures = 0

    @property
    def ids(self) -> list[str]:
        """The image ids of the jobs that were accepted, in order."""
        return [job.key.image_id for routed in self.accepted for job in routed.jobs]

    @property
    def letters(self) -> list[bytes | None]:
        """The bodies of the letters that were accepted, in order."""
        return [routed.letter.body for routed in self.accepted if routed.letter is not None]

    def route(self, body: bytes, compression: str = "") -> Routed:
        assert isinstance(body, bytes)
        self.bodies.append(body)
        try:
            fields = json.loads(body)
        except ValueError as error:
            return Routed(letter=DeadLetter(lane="", reason=str(error), last_at=0.0, body=body))
        if fields is None:
            return Routed()
        return Routed(jobs=(Job(key=Key("test", str(fields["id"])), cause="test", first_at=0.0),))

    async def accept(self, routed: Sequence[Routed]) -> None:
        """Waits while `open` is not set; fails `failures` times."""
        self.waiting += 1
        try:
            await self.open.wait()
        finally:
            self.waiting -= 1
        if self.failures:
            self.failures -= 1
            raise RuntimeError("refused by the test")
        self.accepted.extend(routed)

    def gap(self, reason: str) -> None:
        self.gaps.append(reason)


class RoutingSink:
    """The daemon's own router, and lanes that only remember."""

    def __init__(self) -> None:
        rig, metrics = Rig(FakeCloud(stores=STORES), targets=(FAST,)), Metrics()
        self._router = Router(
            handlers=rig.handlers.values(),
            metrics=metrics,
            creations=Creations(metrics=metrics, uses=rig.uses),
        )
        self.accepted: list[Routed] = []

    @property
    def images(self) -> set[str]:
        return {job.key.image_id for routed in self.accepted for job in routed.jobs}

    @property
    def letters(self) -> list[tuple[str, bytes | None]]:
        return [
            (routed.letter.reason, routed.letter.body) for routed in self.accepted if routed.letter
        ]

    def route(self, body: bytes, compression: str = "") -> Routed:
        return self._router.route(body, compression)

    async def accept(self, routed: Sequence[Routed]) -> None:
        self.accepted.extend(routed)

    def gap(self, reason: str) -> None:
        pass
