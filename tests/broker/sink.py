"""A sink for tests: remembers what it is given."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

from worker.dead_letter import DeadLetter
from worker.intake import Routed
from worker.job import Job, Key


class RecordingSink:
    """Makes a job of each message that is JSON with an `id`, a letter of what is none, nothing of `null`."""

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

    def route(self, body: bytes) -> Routed:
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
