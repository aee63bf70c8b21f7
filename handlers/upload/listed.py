"""Listed: images in a bulk listing that look like an upload that is not complete. Pure."""

from __future__ import annotations

from handlers import image_volume
from handlers.upload.clean_up import DATA_UPLOADED, TASKS_KEPT
from handlers.upload.clones import is_unproven
from handlers.upload.sources import REFUSED, binding, saving_for, source_named, store_of
from worker.core.cloud import Image, Store, Volume
from worker.core.handler import Kind
from worker.core.target import Target, Uploads

# Nobody knows any more how an image was to get its data when Glance has forgotten its tasks
REMEMBERED = TASKS_KEPT
# Sending the data of an image takes no longer, as a rule, in seconds
SAVING_LONG = 3600.0


def lack(
    image: Image,
    clones: tuple[Volume, ...],
    rules: Uploads,
    *,
    stores: tuple[Store, ...],
    targets: tuple[Target, ...],
    now: float,
) -> tuple[str, Kind]:
    """Return what the image, which has these clones, still needs, and of what kind that is; "" if
    nothing."""
    if image.status == "active":
        why = _lack_of_active(image, clones, rules, stores=stores, targets=targets)
        return why, Kind.WORK
    if image.status == "saving" and rules.source_property in image.properties:
        seconds = saving_for(image, now)
        long = seconds > SAVING_LONG
        return (f"saving for {seconds / 60:.0f} minutes: see explain" if long else ""), Kind.REFUSED
    if image.status != "queued":
        return "", Kind.LOOK
    if source_named(image, rules):
        answered = image.properties.get(rules.status_property, "")
        refused = answered.startswith(REFUSED)
        why = "queued, and a property names its source volume"
        return (f"{why}; {answered}" if answered else why), (Kind.REFUSED if refused else Kind.WORK)
    if clones:
        unproven = all(is_unproven(clone) for clone in clones)
        return "queued, and its clone is there", Kind.LOOK if unproven else Kind.WORK
    age = now - image.created_epoch
    if image_volume.is_raw(image) and rules.grace < age < REMEMBERED:
        # Most of these wait for data that somebody is going to send
        return "queued, and Cinder's upload may have failed", Kind.LOOK
    return "", Kind.LOOK


def _lack_of_active(
    image: Image,
    clones: tuple[Volume, ...],
    rules: Uploads,
    *,
    stores: tuple[Store, ...],
    targets: tuple[Target, ...],
) -> str:
    lying = {store_of(clone.volume_type, stores, targets) for clone in clones}
    known = lying if image.stores is None else image.stores
    if len(clones) > 1 or not lying <= known:
        return "a clone that is none of its locations"
    status = image.properties.get(rules.status_property, "")
    told = source_named(image, rules) and status not in ("", DATA_UPLOADED)
    unbound = binding(image, rules)
    return "active, and its properties say that it is not" if told or unbound else ""
