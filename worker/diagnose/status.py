"""Status: how it is with every image on every target, as one listing of Glance and Cinder shows it.
Reads only."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Set
from dataclasses import dataclass, field, replace

from handlers import image_volume, last_use, volume_status
from handlers.prewarm import Prewarm, Warmth
from handlers.prewarm.actions import Finish
from handlers.prewarm.seen import Seen
from handlers.prewarm.strategies.lost import lost
from worker.core import absence
from worker.core.cloud import Cloud, Image, Location, Volume
from worker.core.errors import NotFound
from worker.core.handler import Handler, Kind
from worker.core.job import Job, Key
from worker.core.outcome import Again, Park
from worker.core.state import State
from worker.core.target import Target
from worker.engine.resync import by_image
from worker.observe.live import LiveJob

HANDLERS = {State.UPLOAD: "upload", State.LEFT_OVER: "reclaim", State.GONE: "reclaim"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """An image on a target. `size` in GiB; `since` is when the Image-Volume was made, `used` when
    it last served.

    `due` is when the worker tries next, as far as one tells; all times are epoch seconds, 0 for
    unknown. `name` is the image's.
    """

    image_id: str
    name: str = ""
    target: str
    state: State
    strategy: str = ""
    volume_id: str = ""
    size: int | None = None
    since: float = 0.0
    used: float = 0.0
    due: float = 0.0
    why: str = ""

    @property
    def key(self) -> Key:
        """The key that work on it has."""
        handler = HANDLERS.get(self.state, "prewarm")
        return Key(handler, self.image_id, "" if handler != "prewarm" else self.target)


@dataclass(slots=True)
class Summary:
    """A target: its images by state, GiB of its Image-Volumes; of its budget what `held` takes, as
    GiB and number."""

    target: Target
    states: Counter[str] = field(default_factory=Counter)
    size: int = 0
    held: tuple[int, int] = (0, 0)

    @property
    def budget(self) -> str:
        """The used part of the budget, as `3 of 100 GiB, 2 of 10 volumes`; "" without one."""
        held = zip(
            self.held,
            (self.target.max_gigabytes, self.target.max_count),
            ("GiB", "volumes"),
            strict=True,
        )
        return ", ".join(f"{taken} of {most} {unit}" for taken, most, unit in held if most)


async def overview(
    cloud: Cloud,
    prewarm: Prewarm,
    others: tuple[Handler, ...],
    held: dict[str, tuple[int, int]] | None = None,
) -> AsyncIterator[Row]:
    """A row for each active image and target, and for what is left of images that are gone. Two
    listings.

    `held` is filled with what each target's budget counts, as GiB and number.
    """
    volumes = await by_image(cloud.list_volumes(), image_volume.image_of)
    for handler in (prewarm, *others):
        await handler.prepare(volumes)
    if held is not None:
        held |= prewarm.held()
    async for image in cloud.list_images():
        async for row in of_image(cloud, prewarm, others, image, volumes.take(image.id)):
            yield row
    for image_id, left in volumes.items():
        for volume in left:
            yield of_gone(image_id, volume)


async def of_image(
    cloud: Cloud,
    prewarm: Prewarm,
    others: tuple[Handler, ...],
    image: Image,
    volumes: tuple[Volume, ...],
) -> AsyncIterator[Row]:
    """The rows of one image with these volumes; the handlers are prepared."""
    if image.status != "queued":
        for one in prewarm.warmth(image, volumes):
            row = _of_target(image, one, volumes)
            if row.state is State.COLD and one.target.glance_store in (image.stores or ()):
                stores = frozenset(target.glance_store for target in prewarm.resolved) - {""}
                row = await _if_lost(cloud, row, image, volumes, stores)
            yield replace(row, name=image.name)
    for handler in others:
        for missing in handler.incomplete(image.id, image, volumes):
            if missing.kind is Kind.LOOK:
                # An image that waits for its data, as a rule
                continue
            state = State.UPLOAD if missing.key.handler == "upload" else State.LEFT_OVER
            yield Row(
                image_id=image.id,
                name=image.name,
                target=missing.key.target,
                state=state,
                why=missing.why,
            )


def of_gone(image_id: str, volume: Volume) -> Row:
    """The row of a volume that is left of an image that Glance does not have."""
    noted = absence.absence_of(volume)
    why = "Glance lists no such image" + (f"; {noted}" if noted.is_noted else "")
    return _with(Row(image_id=image_id, target="", state=State.GONE, why=why), volume)


def with_work(row: Row, jobs: Mapping[Key, LiveJob], given_up: Mapping[Key, Job]) -> Row:
    """The row, with what a running worker says of it, and of what was given up. Pure."""
    if row.state not in (State.COLD, State.MAKING, State.UPLOAD, State.LEFT_OVER, State.GONE):
        return row
    job, cold = jobs.get(row.key), row.state is State.COLD
    if job is None:
        if cold and (letter := given_up.get(row.key)):
            return replace(
                row,
                state=State.FAILED,
                why=f"given up after {letter.attempt} tries: {letter.reason}",
            )
        return row
    match job.state:
        case "in progress":
            return replace(row, state=State.MAKING if cold else row.state, why=job.doing or row.why)
        case "waiting":
            return replace(
                row,
                state=State.FAILED if cold and job.attempt else row.state,
                due=job.due,
                why=job.reason or row.why,
            )
        case "parked":
            return replace(
                row,
                state=State.FAILED if cold else row.state,
                due=job.due,
                why=f"given up: {job.reason}",
            )
        case _:
            return row


def with_holds(row: Row, held_back: Mapping[Key, str], cache_full: Mapping[str, str]) -> Row:
    """The row, with what a running worker says of images that it does not make warm for now.
    Pure."""
    if row.state is not State.COLD:
        return row
    if why := held_back.get(row.key):
        return replace(row, state=State.HELD_BACK, why=why)
    why = cache_full.get(row.target, "")
    return replace(row, state=State.FULL, why=why) if why and not row.volume_id else row


def with_pause(row: Row, paused: Set[str]) -> Row:
    """The row; why nothing is done about it while its target is paused. Pure."""
    if row.target not in paused or row.state not in (State.COLD, State.FAILED):
        return row
    why = "the target is paused"
    return replace(row, why=f"{why}; {row.why}" if row.why else why)


def summaries(
    targets: Iterable[Target], rows: Iterable[Row], held: Mapping[str, tuple[int, int]]
) -> list[Summary]:
    """One for each of the targets, by the rows of all images. Pure."""
    found = {target.name: Summary(target, held=held.get(target.name, (0, 0))) for target in targets}
    for row in rows:
        if summary := found.get(row.target):
            summary.states[row.state] += 1
            summary.size += row.size or 0
    return list(found.values())


def _of_target(image: Image, one: Warmth, volumes: tuple[Volume, ...]) -> Row:
    row = Row(
        image_id=image.id,
        target=one.target.name,
        state=one.state,
        strategy=str(one.target.strategy),
        why=one.why,
    )
    here = [volume for volume in volumes if image_volume.is_on(volume, one.target)]
    if row.state is State.COLD:
        copying = (
            one.target.strategy == "store"
            and one.target.glance_store in image.importing
            and image.import_locked
        )
        if copying or any(volume.status in volume_status.MAKING for volume in here):
            row = replace(row, state=State.MAKING)
    # The one that serves; if none does, the one that should
    here.sort(key=lambda volume: (not volume_status.is_usable(volume), volume.created_at))
    return _with(row, here[0]) if here else row


def _with(row: Row, volume: Volume) -> Row:
    return replace(
        row,
        volume_id=volume.id,
        size=volume.size,
        since=volume.created_epoch,
        used=last_use.recorded_use(volume, time.time()),
    )


async def _if_lost(
    cloud: Cloud, row: Row, image: Image, volumes: tuple[Volume, ...], stores: frozenset[str]
) -> Row:
    """The row, or one that says that the data is lost; asks about the locations of an image that
    looks broken."""
    seen = Seen(image=image, now=0.0, volumes=volumes, stores=stores)
    try:
        locations = await cloud.get_locations(image.id)
    except NotFound:
        return row
    if locations is None:
        return row
    known = [volume for location in locations if (volume := await _volume(cloud, location))]
    gone = (
        frozenset(location.volume_id for location in locations)
        - {volume.id for volume in known}
        - {""}
    )
    verdict = lost(replace(seen, locations=locations, volumes=tuple(known), gone=gone))
    if isinstance(verdict, Finish) and isinstance(verdict.outcome, Again | Park):
        return replace(row, state=State.LOST, why=verdict.outcome.reason)
    return row


async def _volume(cloud: Cloud, location: Location) -> Volume | None:
    try:
        return await cloud.get_volume(location.volume_id) if location.volume_id else None
    except NotFound:
        return None
