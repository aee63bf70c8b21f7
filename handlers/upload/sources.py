"""Sources: the volumes that images are to be made of. Pure.

The source is the volume that the image's property names, or, without one, the volume that Cinder's
own upload was made of.
"""

from __future__ import annotations

from handlers.upload.actions import Bind, Finish
from worker.core.age import age
from worker.core.cloud import Image, ImageTask, Location, Store, Volume
from worker.core.notification import IMAGE_ID
from worker.core.outcome import Skip
from worker.core.state import State
from worker.core.target import Target, Uploads

LOCATION_IMPORT = "location_import"
UNDER_WAY = frozenset({"pending", "processing"})
REFUSED = "refused: "
"""How the text begins that tells an owner of a refusal."""
# The owner must not learn whether it is another project's or is not there at all
NO_SUCH_VOLUME = "the image's project has no volume of this id"


def source_named(image: Image, rules: Uploads) -> str:
    """The volume that the image's property asks for; "" if there is none, or if it was meant for
    another image."""
    value = _wish(image, rules)
    volume_id, _, image_id = value.rpartition("/")
    if not IMAGE_ID.fullmatch(image_id) or not volume_id:
        return value
    return volume_id if image_id == image.id.lower() else ""


def binding(image: Image, rules: Uploads) -> Bind | None:
    """Return the action that binds the property to its image; None if there is nothing to bind."""
    value = _wish(image, rules)
    return Bind(f"{value}/{image.id}") if IMAGE_ID.fullmatch(value) else None


def _wish(image: Image, rules: Uploads) -> str:
    return image.properties.get(rules.source_property, "").strip().lower()


def stranded_volumes(tasks: tuple[ImageTask, ...]) -> tuple[str, ...]:
    """The volumes of locations that Glance could not add; none while another try is under way.

    Glance itself records the requests, of Cinder and of us: a user can't change them.
    """
    imports = [task for task in tasks if task.type == LOCATION_IMPORT]
    if any(task.status in UNDER_WAY for task in imports):
        return ()
    volume_ids = (
        Location.from_url(task.url).volume_id for task in imports if task.status == "failure"
    )
    return tuple(
        dict.fromkeys(volume_id for volume_id in volume_ids if IMAGE_ID.fullmatch(volume_id))
    )


def store_of(volume_type: str, stores: tuple[Store, ...], targets: tuple[Target, ...] = ()) -> str:
    """Glance's store for volumes of a type: as a target names it, else the only one that Glance
    has; "" if none is.

    Of several stores of one type all but one may be another region's, so the operator has to name
    it.
    """
    known = {store.id for store in stores}
    named = [
        t.glance_store for t in targets if t.volume_type == volume_type and t.glance_store in known
    ]
    found = [
        store.id for store in stores if store.type == "cinder" and store.volume_type == volume_type
    ]
    if named:
        return named[0]
    return found[0] if len(found) == 1 else ""


def refusal(source: Volume | None, image: Image, store: str) -> str:
    """Return why the image may never be made of this volume, for its owner; "" if it may.

    `source` is None if there is no such volume. The reason says nothing about a volume that is not
    the image's project's own.
    """
    if source is None or source.project_id != image.owner:
        return NO_SUCH_VOLUME
    if source.encrypted:
        return "the volume is encrypted"
    if source.oversized:
        # Cinder copies it to the clone
        return "the volume has too much image metadata: unset what the image need not have"
    if not store:
        return f"no store of Glance serves volumes of type {source.volume_type}"
    return ""


def refused(reason: str) -> Finish:
    """Return the end of a try: the upload is refused, and its owner is told why."""
    return Finish(Skip(reason, State.UPLOAD), tell=f"{REFUSED}{reason}")


def hindrance(source: Volume, rules: Uploads) -> str:
    """Return why the volume can't be cloned now, but may be later; "" if it can."""
    if source.status == "available" or (source.status == "in-use" and rules.allow_in_use):
        return ""
    if source.status == "in-use":
        return "the volume is in-use, detach it"
    return f"the volume is {source.status}"


def excess(source: Volume, used: int, rules: Uploads) -> str:
    """Return why the image would be too much for its project, which has used so many GiB; "" if it
    is not."""
    most = rules.project_gigabytes
    if not most or used + source.size <= most:
        return ""
    return (
        f"the project has {used} GiB of images made of volumes, with this one {used + source.size}, "
        f"and {most} are allowed"
    )


def kind_of(image: Image) -> str:
    """Return the formats of an image, as text."""
    return (
        f"{image.disk_format or 'no disk_format'}/{image.container_format or 'no container_format'}"
    )


def wait_to_change(image: Image, untouched: float, now: float) -> float:
    """Seconds until a property of a queued image may be changed: it must have been left alone for
    so long.

    Glance's PATCH writes the whole image as it has read it, its status too. One that meets an
    upload of data leaves the image `saving` for good, or the data is lost. Clients send data right
    after they made the record; later only the moment of the request itself is dangerous.
    """
    if image.status != "queued":
        return 0.0
    return untouched - age(max(image.created_epoch, image.updated_epoch), now)


def saving_for(image: Image, now: float) -> float:
    """Seconds since the image began to get data; Glance changes nothing of it until that has
    ended."""
    return now - max(image.created_epoch, image.updated_epoch)
