"""Replay: recorded notifications go the way of new ones, through the same router into the same
lanes."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

from worker.capture import owned
from worker.capture.forms import decoded
from worker.capture.read import Message, Source
from worker.core.errors import Malformed, Misconfigured, Temporary
from worker.core.job import Job, Key
from worker.core.newest import Newest
from worker.core.notification import Notification
from worker.engine.router import Router

# Messages between two writes into the lanes, and keys remembered so that each is asked for once
BATCH = 2_000
REMEMBERED = 50_000
# Faults that are told one by one; the others are only counted
TOLD = 20
# Bytes by which a file is known again
HEAD = 4096

Submit = Callable[[Iterable[Job]], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """Which notifications are taken: times in epoch seconds, empty sets for all."""

    since: float | None = None
    until: float | None = None
    event_types: frozenset[str] = frozenset()
    image_ids: frozenset[str] = frozenset()

    def take(self, notification: Notification) -> bool:
        """Whether the notification is wanted; one without a time is, whatever the times."""
        at = notification.timestamp
        if at is not None and (
            (self.since is not None and at < self.since) or (self.until and at > self.until)
        ):
            return False
        if self.event_types and notification.event_type not in self.event_types:
            return False
        concerned = (notification.image_id, notification.source_image_id)
        return not self.image_ids or any(image_id in self.image_ids for image_id in concerned)


@dataclass(slots=True)
class Tally:
    """Counts of replayed messages by their fate; `keys` are the distinct keys of their jobs.
    `failed_sources` ended too early, or had not one message that can be read."""

    sources: int = 0
    failed_sources: int = 0
    messages: int = 0
    malformed: int = 0
    filtered: int = 0
    ignored: int = 0
    routed: int = 0
    keys: int = 0
    interrupted: bool = False
    seconds: float = 0.0

    def rows(self) -> Iterator[tuple[str, object]]:
        """Names and values, for a table."""
        for one in fields(self):
            value = getattr(self, one.name)
            yield one.name, round(value, 3) if isinstance(value, float) else value


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reached:
    """The last message dealt with, and a hash of the first `length` bytes of its source."""

    number: int
    length: int
    head: str

    def __post_init__(self) -> None:
        """ValueError for what no replay has written."""
        counts = type(self.number) is int and type(self.length) is int and self.number >= 0
        if not counts or not 0 <= self.length <= HEAD or not isinstance(self.head, str):
            raise ValueError(f"{self}")


class Checkpoint:
    """How far each source has been taken into the lanes, in a file, so that the next replay goes on
    from there.

    One replay at a time has it, until it is closed: two would each write what the other one does
    not know.
    """

    def __init__(self, path: Path | None) -> None:
        """Misconfigured if the file can't be had, is something else, or belongs to a replay that
        runs."""
        self._path = path
        self._done: dict[str, _Reached] = {}
        self._held: int | None = None
        if path is None:
            return
        if not path.parent.is_dir():
            raise Misconfigured(f"{path}: no such folder")
        try:
            self._held = owned.acquire(path)
            text = path.read_text()
            # An empty one was begun, and its replay ended before it got anywhere
            done = json.loads(text) if text else {}
            self._done = {str(source): _Reached(**reached) for source, reached in done.items()}
        except BlockingIOError as error:
            raise Misconfigured(f"{path}: another replay goes by it") from error
        except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
            self.close()
            raise Misconfigured(f"{path} is no checkpoint of a replay: {error}") from error

    def close(self) -> None:
        """Let another replay have it."""
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def of(self, source: Source) -> int:
        """The number of the last message of the source that has been dealt with; Misconfigured if
        it is another now."""
        reached = self._done.get(source.path)
        if reached is None:
            return 0
        if reached.head != source.head(reached.length)[1]:
            # As when a recording was set aside, and a new one has its name
            raise Misconfigured(
                f"{source.path} is another file than the one that {self._path} tells of"
            )
        return reached.number

    def reach(self, source: Source, number: int) -> None:
        """Note, so that a crash can't lose it, that everything up to this message has been dealt
        with.

        Temporary where that can't be written; what was noted before stays.
        """
        reached = self._done.get(source.path)
        if self._path is None or number <= (reached.number if reached else 0):
            return
        length, head = (reached.length, reached.head) if reached else source.head(HEAD)
        self._done[source.path] = _Reached(number=number, length=length, head=head)
        text = json.dumps({path: asdict(one) for path, one in self._done.items()}, indent=1) + "\n"
        try:
            held, self._held = self._held, owned.replace(self._path, text.encode())
        except OSError as error:
            raise Temporary(f"{self._path}: {error.strerror}") from error
        if held is not None:
            os.close(held)


@dataclass(slots=True)
class Replay:
    """One replay. `submit` puts jobs into lanes; `told` hears of messages nobody can read,
    `rejects` keeps them.

    `rate` is for how many messages a second at most, 0 for no limit.
    """

    router: Router
    submit: Submit
    filters: Filters
    checkpoint: Checkpoint
    told: Callable[[str], None]
    rejects: Callable[[str], object] | None = None
    rate: float = 0.0
    advanced: Callable[[Source, int], None] = lambda _source, _count: None
    tally: Tally = field(default_factory=Tally)
    stopping: bool = False
    _asked: Newest[Key, None] = field(default_factory=lambda: Newest(REMEMBERED))
    _jobs: list[Job] = field(default_factory=list)
    _began: float = field(default_factory=time.monotonic)

    async def run(self, sources: Iterable[Source]) -> Tally:
        """Read all sources to their ends, or until `stopping`; what was read is in the lanes when
        this returns."""
        try:
            for source in sources:
                self.tally.sources += 1
                await self._run(source)
                if self.stopping:
                    self.tally.interrupted = True
                    break
        finally:
            self.tally.seconds = time.monotonic() - self._began
        return self.tally

    async def _run(self, source: Source) -> None:
        done, number, count = self.checkpoint.of(source), 0, 0
        readable, cut = 0, False
        for message in source.messages():
            number = message.number
            if number <= done:
                readable += 1
                continue
            rejected = self.tally.malformed
            self._take(message, source)
            if message.last or (message.unended and self.tally.malformed > rejected):
                # Half a line, or an end that can't be read, may be whole the next time
                number -= 1
            count += 1
            readable += self.tally.malformed == rejected
            cut = cut or message.last
            if count % BATCH == 0 or self.rate:
                await self._flush(source, number, count)
                if self.stopping:
                    return
        if cut or (count and not readable):
            self.tally.failed_sources += 1
        await self._flush(source, number, count)

    async def _flush(self, source: Source, number: int, count: int) -> None:
        if self._jobs:
            await self.submit(self._jobs)
            self._jobs.clear()
        self.checkpoint.reach(source, number)
        self.advanced(source, count)
        ahead = (
            self.tally.messages / self.rate - (time.monotonic() - self._began) if self.rate else 0.0
        )
        await asyncio.sleep(max(0.0, ahead))

    def _take(self, message: Message, source: Source) -> None:
        self.tally.messages += 1
        if message.fault:
            self._reject(message, source, message.fault)
            return
        try:
            content = decoded(message.body)
        except Malformed as error:
            self._reject(message, source, str(error))
            return
        if not self.router.routes(content["event_type"]):
            self.tally.ignored += 1
            return
        notification = Notification.of(content)
        if not self.filters.take(notification):
            self.tally.filtered += 1
            return
        # Nothing was announced: the image or the volume may have been restored since
        jobs = [
            replace(job, deleted="", deleted_volume="")
            for job in self.router.jobs(notification, now=time.time())
        ]
        if not jobs:
            self.tally.ignored += 1
            return
        self.tally.routed += 1
        for job in jobs:
            # Each key once: the handler looks at the world as it is now, not as it was then. Uses
            # are told each
            if job.key in self._asked and not job.used:
                continue
            self._remember(job.key)
            self._jobs.append(job)

    def _remember(self, key: Key) -> None:
        if key not in self._asked:
            self.tally.keys += 1
            self._asked[key] = None

    def _reject(self, message: Message, source: Source, why: str) -> None:
        self.tally.malformed += 1
        if self.tally.malformed <= TOLD:
            self.told(f"{source.path}:{message.number}: {why}")
        elif self.tally.malformed == TOLD + 1:
            self.told("more of these are counted, and kept with --rejects")
        if self.rejects:
            self.rejects(message.body.decode(errors="replace").rstrip("\n") + "\n")
