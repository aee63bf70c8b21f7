"""Lost: an image of whose data no readable copy is left. Pure."""

from __future__ import annotations

from handlers import image_volume, volume_status
from handlers.actions import LookAtLocations
from handlers.prewarm.actions import Action, Finish, LookAtVolume, LookAtVolumes
from handlers.prewarm.seen import Seen
from worker.core.cloud import Location, Volume
from worker.core.outcome import Again, Park


def lost(seen: Seen, entry: Volume | None = None) -> Action | None:
    """Return the next look before an image counts as lost, then how to finish; None if its data may
    be somewhere.

    `entry` is the image's entry in Cinder's cache. It may be the last copy of the data, so with it a
    location counts only if its volume was found, or if Glance has its store.

    A location in a store that lies on none of our targets is unknown: its volume may be in another
    region. Where Cinder would delete the entry for it, that is not enough.
    """
    if seen.hidden:
        return None
    if seen.locations is None:
        return LookAtLocations()
    if seen.volumes is None:
        return LookAtVolumes()
    known = {volume.id: volume for volume in seen.volumes}
    for location in seen.locations:
        volume = known.get(location.volume_id)
        if not location.volume_id and entry and _is_without_store(location, seen):
            continue
        if not location.volume_id or (volume and _may_serve(volume, seen, entry)):
            return None
        unknown = location.store not in seen.stores and not volume
        if unknown and not (entry and _is_stale(entry, seen)):
            return None
        if volume is None and location.volume_id not in seen.gone:
            return LookAtVolume(location.volume_id)
    broken = ", ".join(
        location.volume_id or f"store {location.store}" for location in seen.locations
    )
    reason = (
        f"nobody can repair it: every volume with the image's data is gone or in error "
        f"({broken}). If Cinder can "
        "restore one (cinder reset-state, or from a backup under the same id), do that; else "
        "have the owner upload the "
        "image anew and delete this one, of which no volume can be made any more"
    )
    if entry:
        reason += (
            f". Volume {entry.id} has the data, as it was at {entry.created_at}: make an image of "
            f"it (openstack image create --volume {entry.id}) before anybody makes a volume of "
            "this one, as Cinder deletes it then"
        )
    if seen.failed or seen.imported:
        # Each try would make another volume in vain
        return Finish(Park(reason), lost=True)
    # Glance's deletion of an image removes the volumes first: for some time the image looks like
    # this too
    return Finish(Again(reason, wake_on_notification=True), lost=True)


def _is_stale(entry: Volume, seen: Seen) -> bool:
    """Whether Cinder deletes the entry when it makes the next volume of the image."""
    return seen.image.updated_epoch >= entry.created_epoch


def _may_serve(volume: Volume, seen: Seen, entry: Volume | None) -> bool:
    """Whether the volume of a location may have the image's data; beside an entry, whether it has:
    an owner may add any volume as a location."""
    if entry:
        return volume_status.is_usable(volume) and image_volume.is_of(volume, seen.image)
    return not volume_status.is_broken(volume)


def _is_without_store(location: Location, seen: Seen) -> bool:
    """Whether Glance no longer has the store of a location."""
    return bool(seen.known and location.store) and location.store not in seen.known
