"""The clone path: each condition for Cinder to clone an Image-Volume instead of downloading the
image.

Source: cinder/volume/flows/manager/create_volume.py, _clone_image_volume.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from handlers import image_volume, volume_status
from handlers.clone_path import CacheClone, Download, ImageVolumeClone, Path
from handlers.prewarm import Warmth
from handlers.prewarm.strategies import cache
from handlers.reasons import WORDS
from handlers.upload import sources
from worker.core.cloud import Image, Location, Volume
from worker.core.state import State
from worker.core.target import TAG, Target
from worker.diagnose.check import Check

CINDER_CONF = "cinder.conf"
ADVICE = {
    State.COLD: "the worker's log tells of each try; resync asks for another",
    State.UNWANTED: "by [prewarm], [target:{target}] strategy and disk_formats, or the owner's "
    "property image_volume_prewarm on the image",
    State.FULL: "raise the limits of [target:{target}]",
    State.PARTLY_WARM: "each pool is told below",
    State.HELD_BACK: "resync tries at once; else it is tried in a day",
    State.UNUSED: "see [prewarm] when, and the image's own property",
}
# The image is wanted there, and Cinder clones it nowhere on the target
MISSED = frozenset({State.COLD, State.FULL, State.HELD_BACK})
EVERYBODYS = frozenset({"public", "community"})


def image_checks(image: Image) -> Iterator[Check]:
    """Check the conditions on the image itself and on Cinder's configuration. Pure."""
    if image_volume.is_raw(image):
        yield Check("format", "ok", "raw/bare")
    else:
        advice = (
            "upload it as raw/bare; strategy cache takes other formats too, as Cinder's "
            "image-volume cache (image_volume_cache_enabled) keeps the converted volume"
        )
        yield Check(
            "format", "warn", f"{sources.kind_of(image)}: Cinder converts it each time", advice
        )
    if "cinder_encryption_key_id" in image.properties:
        yield Check(
            "encryption",
            "fail",
            "it holds an encrypted volume",
            "Cinder never clones such an image",
        )
    yield Check(
        CINDER_CONF,
        "warn",
        "allowed_direct_url_schemes must have cinder (a cache entry does without); no API tells",
        "explain --probe finds out by trying",
    )


def project_check(image: Image, project_id: str, members: Mapping[str, str] | None) -> Check:
    """Whether a project may use the image; `members` is None if we may not know. Pure."""
    if project_id == image.owner:
        return Check("project", "ok", "owns the image")
    if image.visibility in EVERYBODYS:
        return Check("project", "ok", f"a {image.visibility} image is everybody's")
    if image.visibility == "private":
        return Check(
            "project",
            "fail",
            "the image is private",
            f"its owner {image.owner} shares or publishes it",
        )
    if members is None:
        return Check(
            "project", "warn", "the image is shared, and we may not see with whom", "ask its owner"
        )
    if project_id in members:
        return Check("project", "ok", f"the image is shared with it ({members[project_id]})")
    return Check(
        "project",
        "fail",
        "the image is not shared with it",
        f"its owner {image.owner} adds it as a member",
    )


def target_checks(
    image: Image,
    target: Target,
    warmth: Warmth | None,
    volumes: tuple[Volume, ...],
    *,
    locations: tuple[Location, ...] | None,
    paths: Iterable[tuple[str, Path, str]] = (),
    project_id: str = "",
    unusable: str = "",
) -> Iterator[Check]:
    """Whether a volume of the image on the target would be a clone. `warmth` is None if the target
    is `unusable`. Pure.

    `volumes` are the image's in the internal project; `paths` what Cinder would do in each pool,
    and why the worker cannot mend it, of a target that has several; `project_id` is who would ask,
    "" for anybody.
    """
    if warmth is None:
        yield Check(
            f"target {target.name}",
            "fail",
            unusable or "Glance lacks what it needs",
            "doctor tells more",
        )
        return
    yield _warm(warmth)
    decided = warmth.target
    if decided.strategy == "native":
        return
    for pool, path, obstacle in paths:
        yield _in_pool(decided.name, pool, path, obstacle)
    here = [
        one
        for one in volumes
        if image_volume.is_on(one, decided) and one.name == image_volume.name_of(image.id)
    ]
    cached = decided.strategy == "cache"
    if cached and (entry := cache.entry_of(filter(image_volume.is_entry, here), decided)):
        here = [entry]
    copying = (
        decided.strategy == "store"
        and decided.glance_store in image.importing
        and image.import_locked
    )
    for volume in here:
        named = any(location.volume_id == volume.id for location in locations or ())
        if copying and not named:
            text = (
                f"{volume.id} of {volume.size} GiB is being made: Glance copies the image into it"
            )
            yield Check(f"{target.name} volume", "warn", text, "wait until Glance has finished")
            continue
        yield _serves(target.name, volume)
        if cached:
            yield _fresh(target.name, volume, image)
        elif not named and TAG not in volume.metadata:
            text = (
                "no location of the image names it: Cinder may keep it as an entry of its own "
                "image-volume cache"
            )
            yield Check(
                f"{target.name} location",
                "warn",
                text,
                "such an entry is cloned all the same; --probe tells",
            )
        else:
            yield _located(target.name, volume, locations)
            yield _owned(target.name, volume, image, project_id)


def _warm(one: Warmth) -> Check:
    name = f"target {one.target.name}"
    if one.state is State.WARM:
        return Check(name, "ok", f"warm, by strategy {one.target.strategy}")
    found = "not wanted" if one.state is State.UNWANTED else "not warm"
    return Check(
        name,
        "fail" if one.state in MISSED else "warn",
        f"{found}: {one.why}",
        ADVICE[one.state].format(target=one.target.name),
        awaits_job=one.state is State.COLD,
    )


def _in_pool(target: str, pool: str, path: Path, obstacle: str) -> Check:
    """Return what Cinder does for a volume that its scheduler puts into this pool."""
    name = f"{target} pool"
    match path:
        case ImageVolumeClone(volume):
            return Check(
                name, "ok", f"{pool}: Cinder clones Image-Volume {volume.id}, by its location"
            )
        case CacheClone(volume):
            return Check(
                name, "ok", f"{pool}: Cinder clones {volume.id}, an entry of its image-volume cache"
            )
        case Download(reasons):
            return Check(
                name,
                "warn",
                f"{pool}: Cinder downloads: {path}",
                obstacle or WORDS[reasons[-1]].advice,
            )
        case _:
            return Check(name, "ok", f"{pool}: Cinder's driver clones the image itself")


def _serves(target: str, volume: Volume) -> Check:
    name = f"{target} volume"
    text = (
        f"{volume.id} of {volume.size} GiB on {volume.host or 'an unknown host'} is {volume.status}"
    )
    if volume_status.needs_administrator(volume):
        return Check(name, "fail", text, volume_status.stuck_advice(volume, located=True))
    if volume_status.is_broken(volume):
        return Check(name, "fail", text, "the worker makes it again with the next resync")
    if not volume_status.is_usable(volume):
        return Check(name, "warn", text, "wait until it is available")
    if volume.encrypted:
        return Check(
            name,
            "fail",
            f"{text}, encrypted",
            "Cinder clones to no encrypted volume: take another type",
        )
    return Check(name, "ok", f"{text}; it serves volumes in that pool, of at least that size")


def _located(target: str, volume: Volume, locations: tuple[Location, ...] | None) -> Check:
    name = f"{target} location"
    if any(location.volume_id == volume.id for location in locations or ()):
        return Check(name, "ok", "a location of the image names it")
    if locations is None:
        return Check(
            name, "fail", "Glance shows no locations", "grant the role service; doctor tells more"
        )
    return Check(
        name,
        "fail",
        "no location of the image names it",
        "Cinder can't know of it; resync has it added",
    )


def _owned(target: str, volume: Volume, image: Image, project_id: str) -> Check:
    name, owner = f"{target} owner", volume.metadata.get("image_owner", "")
    if owner == image.owner:
        return Check(
            name, "ok", "marked with the image's owner: whoever may use the image gets a clone"
        )
    if project_id == image.owner:
        return Check(name, "ok", f"marked as {owner or 'nobody'}'s, which its owner does not need")
    text = (
        f"image_owner is {owner or 'missing'}: only {image.owner} gets a clone, Cinder "
        f"downloads for everybody else"
    )
    return Check(name, "fail", text, "resync has it set")


def _fresh(target: str, entry: Volume, image: Image) -> Check:
    name = f"{target} entry"
    if cache.is_fresh(entry, image.updated_at):
        return Check(name, "ok", "made for the image as it is")
    text = "the image was changed after it was made, or it is not marked yet"
    return Check(
        name,
        "warn",
        text,
        "Cinder downloads once more; the worker makes a new one once the image is quiet",
    )
