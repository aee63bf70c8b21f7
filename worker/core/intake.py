"""Intakes: where notifications come in. Each gives bytes to a Sink and settles once the sink has
them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from worker.core.dead_letter import DeadLetter
from worker.core.job import Job


@dataclass(frozen=True, slots=True)
class Routed:
    """The result of one message: jobs, a dead letter if it could not be read, or nothing."""

    jobs: tuple[Job, ...] = ()
    letter: DeadLetter | None = None

    def __bool__(self) -> bool:
        """Whether it has to be accepted before its message is acked."""
        return bool(self.jobs) or self.letter is not None


class Sink(Protocol):
    """The receiver of an intake's messages."""

    def route(self, body: bytes, compression: str = "") -> Routed:
        """Turn one message into jobs. Never raises, does no IO; may be called on any thread.

        `compression` is the message's header of that name, "" if it has none.
        """

    async def accept(self, routed: Sequence[Routed]) -> None:
        """Put the jobs into their lanes and bury the letters; once it returns the messages may be
        acked. Waits for as long as the lanes are away. Called on the event loop."""

    def gap(self, reason: str) -> None:
        """Notifications may have been missed up to now: somebody has to resync. May be called on
        any thread."""


class Intake(Protocol):
    """One place where notifications come in."""

    async def run(self, sink: Sink) -> None:
        """Consume until cancelled; comes back from every outage by itself. On cancellation it stops
        consuming, settles what the sink has accepted and lets go of the broker."""

    def problem(self) -> str | None:
        """None when it is consuming, else what is wrong in one line."""
