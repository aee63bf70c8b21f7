"""Explain: what stands between an image and what it waits for, and what to do about it. Reads
only."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Set

from handlers import image_volume
from handlers.prewarm import Prewarm
from handlers.upload import sources
from worker.core.cloud import Cloud, Volume
from worker.core.errors import Blocked
from worker.core.job import Key
from worker.core.target import Target
from worker.diagnose.check import Check
from worker.diagnose.explain import clone, leftovers, upload
from worker.engine.resync import by_image
from worker.observe.live import LiveJob
from worker.settings import Settings

CINDER_CONF = clone.CINDER_CONF


async def explain(
    cloud: Cloud,
    settings: Settings,
    prewarm: Prewarm,
    image_id: str,
    *,
    now: float,
    target: str = "",
    project_id: str = "",
) -> AsyncIterator[Check]:
    """Each condition for the image, met or not; of all targets, or of one. NotFound if there is no
    such image.

    For an active image those of a clone, as the project would get it; for a queued one those of its
    upload.
    """
    image = await cloud.get_image(image_id)
    yield Check(
        "image",
        "ok",
        f"{image.status}, {sources.kind_of(image)}, {image.visibility}, owner {image.owner}",
    )
    if image.status == "active":
        await prewarm.prepare(await lying(cloud, settings.targets))
        volumes = await volumes_of(cloud, image.id)
        for check in clone.image_checks(image):
            yield check
        if project_id:
            members = await _members(cloud, image_id) if image.visibility == "shared" else {}
            yield clone.project_check(image, project_id, members)
        locations = await cloud.get_locations(image.id)
        warmth = {one.target.name: one for one in prewarm.warmth(image, volumes)}
        for one in settings.targets:
            if target in ("", one.name):
                found = warmth.get(one.name)
                for check in clone.target_checks(
                    image,
                    one,
                    found,
                    volumes,
                    paths=prewarm.paths(image, found.target, volumes, locations) if found else (),
                    locations=locations,
                    project_id=project_id,
                    unusable=prewarm.unusable.get(one.name, ""),
                ):
                    yield check
        async for check in leftovers.dangling(cloud, locations, volumes):
            yield check
        async for check in leftovers.left_behind(cloud, image):
            yield check
    elif image.status == "deactivated":
        advice = "an administrator reactivates it; what is warm of it stays until then"
        yield Check(
            "status", "fail", "deactivated: nobody but an administrator may read it", advice
        )
    elif image.status in ("killed", "deleted", "pending_delete"):
        yield Check("status", "fail", f"{image.status}: it will never have data", "upload it anew")
    elif image.status == "saving":
        yield upload.saving_check(image, now=now)
    elif image.status != "queued":
        yield Check("upload", "ok", f"somebody works on it: the image is {image.status}")
    elif "upload" in settings.switched_off:
        yield Check("upload", "warn", "switched off", "set enabled = true in [uploads]")
    else:
        seen = await upload.look(cloud, settings.uploads, image, now=now)
        yield upload.api_check(settings.uploads, imports=await cloud.imports_locations())
        if seen.source:
            yield upload.quota_check(seen.source, await cloud.get_quota(seen.source.volume_type))
        for check in upload.upload_checks(seen, settings):
            yield check


def work_checks(
    image_id: str,
    jobs: Mapping[Key, LiveJob],
    *,
    now: float,
    paused: Set[str] = frozenset(),
    cold: bool = False,
) -> Iterator[Check]:
    """Check what a running worker is doing about the image; `cold`: there is something to do on a
    target. Pure."""
    own = [job for job in jobs.values() if job.key.image_id == image_id]
    if cold and not own:
        yield Check(
            "jobs",
            "warn",
            "the worker here has no job for it: it waits in its lane, or nobody has told the worker "
            "of the image",
            "status shows what waits, doctor when Glance was heard of; resync --image-id asks for "
            "it",
        )
    for job in own:
        name = f"job {job.key.lane}"
        failed = f"{job.attempt} tries failed" if job.attempt else ""
        if failed and job.failure and job.failure != job.reason:
            failed += f", the last one: {job.failure}"
        match job.state:
            case "in progress":
                yield Check(name, "ok", job.doing or "is being worked on")
            case "waiting":
                text = f"{job.reason}; next try in {max(0.0, job.due - now):.0f} s"
                yield Check(
                    name,
                    "warn" if job.attempt else "ok",
                    "; ".join(filter(None, (text, failed))),
                    "resync tries at once" if job.attempt else "",
                )
            case "parked":
                advice = "once the reason is mended: resync or dead-letters replay, with --image-id"
                yield Check(
                    name, "fail", f"given up after {job.attempt} tries: {job.reason}", advice
                )
            case _ if job.key.target in paused:
                text = "waits until the target is resumed"
                yield Check(name, "warn", "; ".join(filter(None, (text, failed))))
            case _:
                text = "waits for a slot"
                yield Check(name, "ok", "; ".join(filter(None, (text, failed))))


async def volumes_of(cloud: Cloud, image_id: str) -> tuple[Volume, ...]:
    """The volumes of the internal project that were made for an image."""
    return (
        *await cloud.find_volumes(image_volume.name_of(image_id)),
        *await cloud.find_volumes(image_volume.warming_name_of(image_id)),
    )


async def lying(cloud: Cloud, targets: Iterable[Target]) -> Mapping[str, tuple[Volume, ...]]:
    """Return the volumes on the targets that have a budget, by image."""

    async def volumes() -> AsyncIterator[Volume]:
        for target in targets:
            if target.has_budget:
                async for volume in cloud.list_volumes(target.name):
                    yield volume

    return await by_image(volumes(), image_volume.image_of)


async def _members(cloud: Cloud, image_id: str) -> Mapping[str, str] | None:
    """The projects that an image is shared with and what they said to it; None if we may not
    know."""
    try:
        return await cloud.list_members(image_id)
    except Blocked:
        return None
