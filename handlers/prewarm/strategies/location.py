"""Strategy `location`: we make the volume and tell Glance that it holds the image. Pure.

Needs Glance's show_multiple_locations, which lets every reader of an image see where its data lies
(OSSN-0065, OSSN-0090): so only where the operator has chosen it.
"""

from __future__ import annotations

from handlers import image_volume, volume_status
from handlers.actions import AddLocation
from handlers.prewarm.actions import Action, CreateVolume, DeleteVolume, Finish, LookAtVolumes
from handlers.prewarm.seen import Seen
from handlers.prewarm.strategies import located, registered
from handlers.prewarm.strategies.lost import lost
from worker.core.outcome import Again
from worker.core.target import Target


def plan(seen: Seen, target: Target) -> Action:
    """The next action towards a volume of ours on the target that Glance knows as a location."""
    if registered.is_registered(seen, target):
        return registered.plan(seen, target)
    if seen.volumes is None:
        return LookAtVolumes()
    ours = [
        v
        for v in seen.volumes
        # An entry of Cinder's cache, which Cinder may evict, is a clone
        if image_volume.is_ours(v, target)
        and not (v.source_volid or volume_status.is_leaving(v))
        and not image_volume.was_location(v)
        and not image_volume.is_restored(v)
    ]
    for volume in ours:
        if volume_status.is_broken(volume):
            return DeleteVolume(volume.id, why=f"it is {volume.status}")
        if volume.encrypted and volume_status.is_usable(volume):
            return DeleteVolume(volume.id, why="it is encrypted", encrypted=True)
    if seen.failed:
        return lost(seen) or Finish(Again(seen.failed))
    usable = [volume for volume in ours if volume_status.is_usable(volume)]
    if usable:
        # The oldest, as every worker finds
        keep, *others = usable
        others = [volume for volume in others if not image_volume.is_fresh(volume, seen.now)]
        if others:
            return DeleteVolume(
                others[0].id, why="the image has another volume on the target, an older one"
            )
        # A location must not be there before its volume is: Cinder would clone what is still being
        # written
        return registered.put_right(keep, seen, target) or AddLocation(
            f"cinder://{target.glance_store}/{keep.id}"
        )
    if ours:
        return registered.await_or_give_up(ours[0], seen)
    # Cinder deletes a stale entry of its cache before it downloads the image: it may be the last copy
    if (entry := located.entry_beside(seen, target)) and (action := lost(seen, entry)):
        return action
    return CreateVolume(
        image_volume.new_volume(
            seen.image,
            target,
            name=image_volume.name_of(seen.image.id),
            keys=image_volume.metadata_of(seen.image, target),
        )
    )
