"""Status: how it is with every image on every target, as one listing of Glance and Cinder shows it. Reads only."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from handlers import image_volume
from handlers.prewarm import Prewarm, Warmth
from handlers.strategies import Finish, Seen, registered
from worker.cloud import Cloud, Image, Location, Volume
from worker.errors import NotFound
from worker.handler import Handler
from worker.outcome import Park
from worker.resync import by_image

GONE = "gone"
LOST = "lost"
UPLOAD = "upload"
LEFT_OVER = "left over"
STATES = ("warm", "cold", "full", "unused", "unwanted", LOST, UPLOAD, LEFT_OVER, GONE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """An image on a target. `size` in GiB; `since` is when the Image-Volume was made, `used` when it last served.

    `state` is warm, cold (it will be warm), full (no room in the target's budget), unused (it waits for a use),
    unwanted (by policy), lost (the data can be had nowhere), upload (a queued image), left over (on its way out), gone
    (the image is, its volumes are not).
    """

    image_id: str
    target: str
    state: str
    volume_id: str = ""
    size: int | None = None
    since: str = ""
    used: str = ""
    why: str = ""


async def overview(cloud: Cloud, prewarm: Prewarm, others: tuple[Handler, ...]) -> AsyncIterator[Row]:
    """A row for each active image and target, and for what is left of images that are gone. Two listings."""
    volumes = await by_image(cloud.list_volumes(), image_volume.image_of)
    for handler in (prewarm, *others):
        await handler.prepare(volumes)
    async for image in cloud.list_images():
        async for row in of_image(cloud, prewarm, others, image, volumes.pop(image.id, ())):
            yield row
    for image_id, left in volumes.items():
        for volume in left:
            yield _with(Row(image_id=image_id, target="", state=GONE, why="Glance lists no such image"), volume)


async def of_image(
    cloud: Cloud, prewarm: Prewarm, others: tuple[Handler, ...], image: Image, volumes: tuple[Volume, ...]
) -> AsyncIterator[Row]:
    """The rows of one image with these volumes; the handlers are prepared."""
    if image.status != "queued":
        for one in prewarm.warmth(image, volumes):
            row = _of_target(image, one, volumes)
            if row.state == "cold" and one.target.glance_store in (image.stores or ()):
                row = await _if_lost(cloud, row, image, volumes)
            yield row
    for handler in others:
        for missing in handler.incomplete(image.id, image, volumes):
            state = UPLOAD if missing.key.handler == "upload" else LEFT_OVER
            yield Row(image_id=image.id, target=missing.key.target, state=state, why=missing.why)


def _of_target(image: Image, one: Warmth, volumes: tuple[Volume, ...]) -> Row:
    row = Row(image_id=image.id, target=one.target.name, state=one.state, why=one.why)
    here = [volume for volume in volumes if image_volume.is_on(volume, one.target)]
    # The one that serves; if none does, the one that should
    here.sort(key=lambda volume: (not image_volume.is_usable(volume), volume.created_at))
    return _with(row, here[0]) if here else row


def _with(row: Row, volume: Volume) -> Row:
    return replace(
        row,
        volume_id=volume.id,
        size=volume.size,
        since=_time(volume.created_epoch),
        used=_time(image_volume.recorded_use(volume)),
    )


async def _if_lost(cloud: Cloud, row: Row, image: Image, volumes: tuple[Volume, ...]) -> Row:
    """The row, or one that says that the data is lost; asks about the locations of an image that looks broken."""
    seen = Seen(image=image, now=0.0, volumes=volumes)
    try:
        locations = await cloud.get_locations(image.id)
    except NotFound:
        return row
    known = [volume for location in locations if (volume := await _volume(cloud, location))]
    gone = frozenset(location.volume_id for location in locations) - {volume.id for volume in known} - {""}
    verdict = registered.lost(replace(seen, locations=locations, volumes=tuple(known), gone=gone))
    if isinstance(verdict, Finish) and isinstance(verdict.outcome, Park):
        return replace(row, state=LOST, why=verdict.outcome.reason)
    return row


async def _volume(cloud: Cloud, location: Location) -> Volume | None:
    try:
        return await cloud.get_volume(location.volume_id) if location.volume_id else None
    except NotFound:
        return None


def _time(epoch: float) -> str:
    return datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if epoch else ""


def tell(rows: list[Row]) -> Iterator[tuple[str, str, int, int]]:
    """(target, state, images, GiB) of all rows, for an overview."""
    for target, state in sorted({(row.target, row.state) for row in rows}):
        of = [row for row in rows if (row.target, row.state) == (target, state)]
        yield target, state, len(of), sum(row.size or 0 for row in of)
