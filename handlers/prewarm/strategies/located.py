"""Located: locations of an image whose volumes lie where a target's come to lie. Pure.

Cinder looks for them by host, whatever their type, and makes no cache entry while it clones one.
"""

from __future__ import annotations

from collections.abc import Iterable

from handlers import image_volume, volume_status
from handlers.actions import LookAtLocations
from handlers.clone_path import Evidence, ImageVolumeClone, Pool, clone_path
from handlers.prewarm.actions import Action, Finish, LookAtVolume
from handlers.prewarm.seen import Seen
from worker.core.cloud import Volume
from worker.core.outcome import Done
from worker.core.state import State
from worker.core.target import Target


def own(seen: Seen) -> tuple[Volume, ...]:
    """Return the volumes that are the image's: a location may name any other."""
    return tuple(one for one in seen.volumes or () if image_volume.is_of(one, seen.image))


def look(seen: Seen) -> Action | None:
    """Return what has to be read to know which volumes the image's locations name; None if all of
    it was."""
    if seen.hidden:
        return None
    if seen.locations is None:
        return LookAtLocations()
    known = {volume.id for volume in seen.volumes or ()} | seen.gone
    named = [one.volume_id for one in seen.locations if one.volume_id]
    return next((LookAtVolume(one) for one in named if one not in known), None)


def beside(volumes: Iterable[Volume], target: Target) -> list[Volume]:
    """Return the volumes of other types that may be locations of the image, and lie where the
    target's come to lie: Cinder clones those too."""
    hosts = pool_of(target).hosts
    return [
        one
        for one in volumes
        if one.host in hosts
        and not image_volume.is_on(one, target)
        and image_volume.is_claimed(one)
        and not image_volume.is_entry(one)
    ]


def kept_beside(seen: Seen, target: Target) -> Action | None:
    """Plan for an image that Glance keeps in the target's pool by another type; None if it does
    not. That volume is not the target's: nothing is written on it."""
    if not beside(own(seen), target) or seen.hidden:
        return None
    if seen.locations is None:
        return LookAtLocations()
    volume = _cloned_by_location(seen, target)
    return Finish(Done(volume.id, state=State.WARM)) if volume else None


def _cloned_by_location(seen: Seen, target: Target) -> Volume | None:
    """Return the volume that Cinder clones here by a location; None if there is none."""
    evidence = Evidence(locations=seen.locations, volumes=own(seen))
    path = clone_path(seen.image, pool_of(target), evidence)
    return path.volume if isinstance(path, ImageVolumeClone) else None


def may_be_here(seen: Seen, target: Target) -> bool:
    """Whether a volume that a location of the image names lies where the target's come to lie, or
    may: then it says nothing about Cinder's cache that no entry was made."""
    named = {one.volume_id for one in seen.locations or () if one.volume_id}
    known, pool = {volume.id: volume for volume in seen.volumes or ()}, pool_of(target)
    return any(one not in known or pool.has(known[one]) for one in named - seen.gone)


def entry_beside(seen: Seen, target: Target) -> Volume | None:
    """Return a clone of the image's data of another type or tag, where the target's volumes come to
    lie: it may be Cinder's entry there. Any clone, where that is not known."""
    pool = pool_of(target)
    found = (
        one
        for one in own(seen)
        if one.source_volid
        and (volume_status.is_usable(one) or volume_status.needs_administrator(one))
    )
    return next((one for one in found if not pool.hosts or pool.has(one)), None)


def pool_of(target: Target) -> Pool:
    """Return where the target's volumes come to lie, as far as that is known."""
    hosts = frozenset(host for place in target.places for host in place.hosts)
    return Pool(hosts=hosts, types=frozenset({target.volume_type}))
