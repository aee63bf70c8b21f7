"""The upload path: each condition for a queued image to become active by a clone. Reads only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from handlers import actions, image_volume, volume_status
from handlers.upload import sources
from handlers.upload.actions import Finish
from handlers.upload.clones import clones_of, is_ours
from handlers.upload.observe import read_usage
from handlers.upload.plan import plan
from handlers.upload.seen import Seen
from worker.core.cloud import Cloud, Image, Quota, Volume
from worker.core.errors import NotFound
from worker.core.notification import IMAGE_ID
from worker.core.outcome import Again, Skip
from worker.core.target import Uploads
from worker.diagnose.check import Check
from worker.settings import Settings

# Minutes after which it is worth asking whether data still arrives
SENDING = 15.0


async def look(cloud: Cloud, rules: Uploads, image: Image, *, now: float) -> Seen:
    """All that concerns the upload of a queued image."""
    named = sources.source_named(image, rules)
    clones = clones_of(image, await cloud.find_volumes(image_volume.name_of(image.id)), rules)
    seen = Seen(
        image=image,
        now=now,
        stores=await cloud.list_stores(),
        clones=clones,
        tasks=await cloud.list_tasks(image.id),
        used=await read_usage(cloud, image) if rules.project_gigabytes else None,
    )
    stranded = sources.stranded_volumes(seen.tasks or ())
    source_id = (
        named or next((clone.source_volid for clone in clones), "") or next(iter(stranded), "")
    )
    if not IMAGE_ID.fullmatch(source_id):
        return replace(seen, missing=frozenset({source_id} - {""}))
    try:
        return replace(seen, source=await cloud.get_volume(source_id))
    except NotFound:
        return replace(seen, missing=frozenset({source_id}))


def upload_checks(seen: Seen, settings: Settings) -> Iterator[Check]:
    """Each condition of an upload, in the order in which they count. Pure."""
    image, rules = seen.image, settings.uploads
    yield _format(image)
    if image.import_locked:
        yield Check(
            "lock",
            "warn",
            "Glance is at work on the image",
            "wait; a lock that stays an hour is given away",
        )
    else:
        yield Check("lock", "ok", "nobody works on the image")
    yield _named(seen, rules)
    if not sources.source_named(image, rules):
        yield Check(
            "cinder.conf",
            "warn",
            "image_upload_use_cinder_backend and _internal_tenant decide how Cinder's own upload "
            "goes; no API tells",
            f"property {rules.source_property} on a queued image needs neither",
        )
    if seen.source or seen.missing:
        yield from _source(seen, settings)
    for clone in seen.clones or ():
        yield _clone(clone)
    for task in seen.tasks or ():
        if task.type == sources.LOCATION_IMPORT:
            failed = task.status == "failure"
            advice = (
                "Glance's log has more; often its cinder store logs in to another project "
                "than the volume's"
            )
            text = f"{task.url} {task.status} {task.message}".strip()
            yield Check("location task", "warn" if failed else "ok", text, advice if failed else "")
    yield _next(seen, settings)
    if sources.source_named(image, rules):
        yield _owners_view(image, rules)


def api_check(rules: Uploads, *, imports: bool) -> Check:
    """Which way a location is added. Pure."""
    if rules.location_api == "new" and not imports:
        return Check(
            "location api",
            "fail",
            "Glance is older than 2.17",
            "set location_api = auto in [uploads]",
        )
    if rules.location_api == "old" or not imports:
        text = "the old one, which needs show_multiple_locations (OSSN-0065, OSSN-0090)"
        return Check("location api", "warn", text, "Glance 2.17 and later have a safe one")
    return Check("location api", "ok", "the New Location API")


def quota_check(source: Volume, quota: Quota) -> Check:
    """Whether the internal project has room for a clone of the source. Pure."""
    left = (("volumes", quota.volumes, 1), ("GiB", quota.gigabytes, source.size))
    short = [f"{room} {unit}" for unit, room, need in left if room is not None and room < need]
    if quota.per_volume is not None and quota.per_volume < source.size:
        text = (
            f"the internal project may have volumes of {quota.per_volume} GiB, the clone needs "
            f"{source.size} GiB"
        )
        return Check("quota", "fail", text, "raise its per_volume_gigabytes")
    if short:
        text = (
            f"the internal project has {' and '.join(short)} left, the clone needs "
            f"{source.size} GiB"
        )
        return Check("quota", "fail", text, "raise its quota; the upload is tried again by itself")
    return Check("quota", "ok", "the internal project has room for the clone")


def saving_check(image: Image, *, now: float) -> Check:
    """Whether data still arrives, as far as anybody can tell. Pure."""
    minutes = sources.saving_for(image, now) / 60
    text = f"saving for {minutes:.0f} minutes: somebody sends data, or Glance has lost its end"
    if minutes < SENDING:
        return Check("upload", "ok", text)
    advice = (
        "ask its owner; if nobody sends anything, a change of the image met the end of the "
        "upload (Glance writes whole "
        "images): no request repairs that, the owner deletes it and makes it anew"
    )
    return Check("upload", "warn", text, advice)


def _format(image: Image) -> Check:
    if image_volume.is_raw(image):
        return Check("format", "ok", "raw/bare")
    return Check(
        "format",
        "fail",
        sources.kind_of(image),
        "only raw/bare can be a volume as it is: the owner changes that",
    )


def _named(seen: Seen, rules: Uploads) -> Check:
    given, named = (
        seen.image.properties.get(rules.source_property),
        sources.source_named(seen.image, rules),
    )
    if given and not named:
        return Check(
            "source", "ok", f"property {rules.source_property} was meant for another image: {given}"
        )
    if named:
        return Check("source", "ok", f"property {rules.source_property} names {named}")
    if seen.clones:
        return Check("source", "ok", "Cinder has made a clone for the image")
    if sources.stranded_volumes(seen.tasks or ()):
        return Check(
            "source",
            "ok",
            "Cinder has made a clone in the owner's project, which Glance could not take",
        )
    return Check(
        "source",
        "fail",
        "no property names a volume, and Cinder has made no clone",
        f"the owner sets {rules.source_property} to the id of a volume, or uploads data",
    )


def _source(seen: Seen, settings: Settings) -> Iterator[Check]:
    source, image = seen.source, seen.image
    if source is None:
        yield Check(
            "source volume", "fail", "there is no such volume", "the owner corrects the property"
        )
        return
    if source.project_id != image.owner:
        yield Check(
            "source volume",
            "fail",
            f"belongs to project {source.project_id}, the image to {image.owner}",
            "the owner is told only that its project has no such volume; transfer the volume, or "
            "make the image there",
        )
        return
    store = sources.store_of(source.volume_type, seen.stores, settings.targets)
    if reason := sources.refusal(source, image, store):
        advice = (
            "use Cinder's own upload"
            if source.encrypted
            else "retype the volume, or give Glance a store for it"
        )
        yield Check("source volume", "fail", reason, advice)
        return
    if seen.used is not None and (reason := sources.excess(source, seen.used, settings.uploads)):
        advice = "raise [uploads] project_gigabytes, or its owner deletes images made of volumes"
        yield Check("project", "warn", reason, advice)
    yield Check(
        "source volume",
        "ok",
        f"{source.size} GiB of type {source.volume_type}, served by store {store}",
    )
    if reason := sources.hindrance(source, settings.uploads):
        advice = (
            "it is tried again; detach it, or set [uploads] allow_in_use"
            if source.status == "in-use"
            else "it is tried again; what has it: openstack --os-volume-api-version 3.27 volume "
            f"attachment list --volume-id {source.id}"
        )
        yield Check("source status", "warn", reason, advice)
    else:
        yield Check("source status", "ok", source.status)


def _clone(clone: Volume) -> Check:
    maker = "of ours" if is_ours(clone) else "of Cinder's"
    text = f"{clone.id} {maker} is {clone.status}"
    if volume_status.is_broken(clone):
        return Check(
            "clone",
            "fail",
            text,
            "cinder-volume's log has the reason; it is deleted and made again",
        )
    return Check("clone", "ok", text)


def _owners_view(image: Image, rules: Uploads) -> Check:
    """The text that the owner reads with their own login: they see no log, and nothing in Cinder."""
    if not rules.status_property:
        return Check(
            "owner",
            "warn",
            "the owner is told nothing: [uploads] status_property is empty",
            "set it, so that owners need not ask",
        )
    told = image.properties.get(rules.status_property, "")
    seen = f"reads {rules.status_property}: {told}" if told else "reads that it is queued, so far"
    return Check("owner", "ok", f"the owner {seen} (openstack image show {image.id})")


def _next(seen: Seen, settings: Settings) -> Check:
    # As if image and source were read a second time just now
    action = plan(replace(seen, sure=True), settings.uploads, settings.targets)
    if not isinstance(action, Finish):
        return Check("next", "ok", f"the worker's next step: {actions.words(action)}")
    match action.outcome:
        case Skip(reason):
            return Check(
                "next",
                "fail",
                f"nothing: {reason}",
                "see what fails above; once that is mended, resync asks again",
            )
        case Again(reason, after=after):
            return Check(
                "next", "warn", reason + (f", looked at again in {after:.0f} s" if after else "")
            )
        case _:
            return Check("next", "ok", "nothing is left to do")
