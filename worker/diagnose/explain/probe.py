"""Probe: makes a volume from an image as a user would, and tells by the signs whether Cinder has
cloned it."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import structlog

from handlers import image_volume, volume_status
from handlers.deletion.last_copy import LastCopy
from handlers.target_store import read_down
from worker.core.age import SKEW
from worker.core.cloud import Cloud, Image, NewVolume, Volume
from worker.core.errors import Blocked, Conflict, NotFound, Temporary
from worker.core.target import TAG, Target
from worker.diagnose.check import Check
from worker.diagnose.explain.signs import Signs, judged, with_message

NAME = "image-volume-worker-probe"
"""The name of a probe's volume, which is deleted when it has told what it can."""
PROBE = "probe"
# Tells one probe's volume from another's
TOKEN = f"{TAG}_probe"
# Seconds between two looks at the volume; a download of a small image takes not much longer
EVERY = 0.2
# Seconds after which a notification about what has happened counts as not coming
LATE = 5.0
# Seconds that a volume has for going away
LEAVE = 60.0
# Seconds after which the volume of a probe counts as left behind; a probe takes 10 minutes unless
# it is told to take longer
ABANDONED = 3600.0
# Seconds after which a volume that Cinder has not confirmed, and does not show, counts as never
# made
LOST = 15.0

log = structlog.get_logger(__name__)

Take = Callable[[], Iterable[Mapping[str, Any]]]


async def probe(
    cloud: Cloud,
    image: Image,
    target: Target,
    *,
    take: Take | None,
    lying: Iterable[Volume] | None,
    within: float,
) -> Check:
    """Make a volume of the image on the target, delete it, and tell what it was. `lying` are its
    Image-Volumes there, None if the login may not see them.

    `take` gives the notifications that came in since it was last called, blocks, and may be
    missing.
    """
    name = f"probe {target.name}"
    try:
        last = await _is_last_copy(cloud, image)
    except Temporary as error:
        return Check(
            name, "fail", f"whether the image has a copy is not known: {error}", "ask again"
        )
    if last:
        return Check(
            name,
            "fail",
            "no volume was made: none of the image's locations is whole, and Cinder would delete its "
            "cache entry, which may have the last copy of the data",
            "make an image of that entry first: `image-volume-worker status` names it",
        )
    new = NewVolume(
        name=NAME,
        size=image_volume.size_for(image),
        volume_type=target.volume_type,
        image_id=image.id,
        availability_zone=target.availability_zone,
        # So that no worker takes it for a use
        metadata={TAG: PROBE},
    )
    try:
        async with _volume(cloud, new) as made:
            signs = await _watched(cloud, made, image, take, within)
    except (Blocked, Conflict) as error:
        return Check(
            name,
            "fail",
            f"Cinder makes no volume: {error}",
            "a user would be told the same; often a quota",
        )
    except NotFound:
        return Check(name, "fail", "somebody has deleted the volume meanwhile", "ask again")
    except Temporary as error:
        return Check(
            name, "fail", f"Cinder did not answer: {error}", "doctor tells what is wrong with it"
        )
    except TimeoutError:
        advice = "cinder-scheduler's and cinder-volume's logs say what became of it"
        return Check(name, "fail", f"no volume after {within:.0f} s", advice)
    return judged(name, image, signs, None if lying is None else tuple(lying))


async def _is_last_copy(cloud: Cloud, image: Image) -> bool:
    """Whether a clone of the image's data may be all that is left of it: Cinder deletes a stale entry
    of its cache before it downloads the image."""
    try:
        found = await cloud.find_volumes(image_volume.name_of(image.id))
        stale = image.updated_epoch + SKEW
        if not any(one.source_volid and one.created_epoch <= stale for one in found):
            return False
        locations = await cloud.get_locations(image.id)
        if locations is None:
            return False
        copies = LastCopy(
            cloud=cloud, stores=cloud.list_stores, down=partial(read_down, cloud), needed=_no
        )
        return not await copies.has_whole(image, locations)
    except (Blocked, NotFound):
        # What this login may not see it cannot tell
        return False


async def _no() -> bool:
    return False


@contextlib.asynccontextmanager
async def _volume(cloud: Cloud, new: NewVolume) -> AsyncIterator[Volume]:
    """A volume that goes whatever happens, and those that killed probes have left behind."""
    for left in await cloud.find_volumes(NAME):
        # By its token, and old enough not to be that of a probe that runs now
        ours = TOKEN in left.metadata and time.time() - left.created_epoch > ABANDONED
        if ours and (volume_status.is_usable(left) or volume_status.is_broken(left)):
            with contextlib.suppress(NotFound, Conflict):
                await cloud.delete_volume(left.id)
    # Cinder may have heard of it although its answer was not waited for, or got lost: its token
    # finds it then
    token = uuid.uuid4().hex
    creating = asyncio.create_task(
        cloud.create_volume(replace(new, metadata={**(new.metadata or {}), TOKEN: token}))
    )
    try:
        yield await asyncio.shield(creating)
    finally:
        # Somebody who has enough of waiting must not leave it behind either, however often he says
        # so
        removing = asyncio.create_task(_removed(cloud, creating, token))
        while not removing.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.shield(removing)


async def _removed(cloud: Cloud, creating: asyncio.Task[Volume], token: str) -> None:
    """Delete it and see it gone; what Cinder is still making can be deleted when it is made."""
    volume_id, until = "", time.monotonic() + LEAVE
    try:
        volume_id = (await creating).id
    except (Blocked, Conflict, NotFound):
        # Cinder has said no
        return
    except Temporary:
        until = time.monotonic() + LOST
    while time.monotonic() < until:
        try:
            if not volume_id:
                ours = [
                    one
                    for one in await cloud.find_volumes(NAME)
                    if one.metadata.get(TOKEN) == token
                ]
                volume_id = ours[0].id if ours else ""
                until = time.monotonic() + LEAVE if volume_id else until
            else:
                volume = await cloud.get_volume(volume_id)
                if not volume_status.is_leaving(volume):
                    await cloud.delete_volume(volume_id)
        except NotFound:
            return
        except (Blocked, Temporary) as error:
            log.debug("probe_not_deleted_yet", volume_id=volume_id, error=str(error))
        await asyncio.sleep(EVERY)
    if volume_id:
        why = "Cinder does not let it be deleted; the next probe tries"
        log.warning("probe_left_behind", volume_id=volume_id, why=why)
    else:
        why = (
            f"Cinder did not say whether it makes a volume {NAME}, and shows none; the next "
            f"probe looks again"
        )
        log.warning("probe_maybe_left_behind", why=why)


async def _watched(
    cloud: Cloud, made: Volume, image: Image, take: Take | None, within: float
) -> Signs:
    """The signs of its being made, until it is there and its end was announced."""
    began = time.monotonic()
    signs = Signs(volume=made, seconds=0.0)
    async with asyncio.timeout(within):
        while not (volume_status.is_usable(signs.volume) or volume_status.is_broken(signs.volume)):
            volume = await cloud.get_volume(made.id)
            signs = replace(
                signs,
                volume=volume,
                seconds=time.monotonic() - began,
                downloading=signs.downloading or volume.status == "downloading",
                verified=signs.verified or image_volume.was_downloaded(volume, image),
            )
            signs = await _listened(signs, image, take)
            await asyncio.sleep(EVERY)
    ended = time.monotonic()
    while take and not signs.heard and time.monotonic() - ended < LATE:
        signs = await _listened(signs, image, take)
        await asyncio.sleep(EVERY)
    return signs


async def _listened(signs: Signs, image: Image, take: Take | None) -> Signs:
    if take is None:
        return signs
    for message in await asyncio.to_thread(lambda: list(take())):
        signs = with_message(signs, message, image)
    return signs
