"""Policy: the rules for which images are wanted on a target. Pure."""

from __future__ import annotations

from handlers import image_volume
from worker.core.cloud import GIB, Image
from worker.core.target import Policy, Target

YES = frozenset({"yes", "true", "1", "on"})
NO = frozenset({"no", "false", "0", "off"})


def refusal(image: Image, target: Target, policy: Policy) -> str | None:
    """Return why the image is not wanted on the target, in one line; None if it is.

    The owner's no always counts; the owner's yes, as `is_asked_for` takes it, overrides
    `visibilities` and `min_size`, not what limits others' use of the storage (`projects`,
    `exclude_projects`, `max_size`).
    """
    if target.encrypted:
        return encrypted_type(target)
    if image.status != "active":
        return f"image is {image.status}, not active"
    if image.container_format != "bare" or image.disk_format not in target.formats:
        return (
            f"image is {image.disk_format}/{image.container_format}, not "
            f"{'|'.join(sorted(target.formats))}/bare"
        )
    if not image.size:
        return "image is empty"
    if "cinder_encryption_key_id" in image.properties:
        return "image holds an encrypted volume"
    if _wish(image, policy) in NO:
        return f"the image's property {policy.property} says no"
    if policy.projects and image.owner not in policy.projects:
        return "its project is not among [prewarm] projects"
    if image.owner in policy.exclude_projects:
        return "its project is among [prewarm] exclude_projects"
    if policy.max_size and (allocated := image_volume.bytes_on(image, target)) > policy.max_size:
        return f"{_allocating(allocated, image)} is above [prewarm] max_size"
    if is_asked_for(image, policy):
        return None
    inherited = f"; {_inherited(image, policy)}" if _wish(image, policy) in YES else ""
    if image.visibility not in policy.visibilities:
        return f"visibility {image.visibility} is not among [prewarm] visibilities{inherited}"
    if image.size < policy.min_size:
        return f"image of {image.size} bytes is below [prewarm] min_size{inherited}"
    return None


def encrypted_type(target: Target) -> str:
    """Return the refusal for a target of an encrypted type.

    Cinder looks at the encryption of the new volume only, never at that of the Image-Volume: it
    would clone ciphertext into volumes that are not encrypted
    (cinder/volume/flows/manager/create_volume.py, _clone_image_volume).
    """
    return (
        f"volumes of type {target.volume_type} are encrypted: Cinder would hand out their "
        f"ciphertext; "
        f"name a type without encryption in [target:{target.name}] volume_type"
    )


def _allocating(allocated: int, image: Image) -> str:
    """Name the field of the image that decides how many bytes are allocated."""
    if allocated == image.size:
        return f"image of {image.size} bytes"
    why = "min_disk" if allocated == image.min_disk * GIB else "virtual_size"
    return f"a volume of {allocated} bytes, for the {why} of an image of {image.size} bytes,"


def is_asked_for(image: Image, policy: Policy) -> bool:
    """Whether the image's owner wants it to be warm.

    Nova and Cinder copy an image's properties to the snapshots of its servers and to the images
    made of its volumes. So a yes counts where it names this very image (`yes/<image id>`), or where
    the image is public: only an administrator makes an image public, and no snapshot is born so. A
    no that was inherited does no harm.
    """
    if _wish(image, policy) not in YES:
        return False
    return image.visibility == "public" or _is_bound(image, policy)


def _inherited(image: Image, policy: Policy) -> str:
    """Return the reason why the image's yes does not count."""
    return (
        f"its property {policy.property} says yes without naming this image, as one does that "
        f"was inherited from "
        f"another image: its owner sets it to yes/{image.id}"
    )


def _wish(image: Image, policy: Policy) -> str:
    """The answer in the image's property; "" if it was meant for another image."""
    answer, _, image_id = image.properties.get(policy.property, "").strip().lower().partition("/")
    return answer if image_id in ("", image.id.lower()) else ""


def _is_bound(image: Image, policy: Policy) -> bool:
    """Whether the image's property names the image."""
    return "/" in image.properties.get(policy.property, "")
