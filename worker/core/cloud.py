"""The cloud as handlers see it: values, and the verbs they may use; `worker.openstack`
implements them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol
from urllib.parse import urlsplit

from worker.core.pool import Pool, VolumeType
from worker.core.target import MARKS, OF, TAG, UPLOAD, UPLOADED_BY

GIB = 1 << 30
LISTED = ("active", "queued", "saving", "deactivated")
"""The status of images that a list of them has; of others there is nothing to do, and nothing to
say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image of Glance. Times are epoch seconds, sizes bytes; `updated_at` is Glance's own text,
    to be compared.

    `stores` is None where Glance doesn't tell (no multi-store). Source: glance/api/v2/images.py.
    """

    id: str
    status: str
    owner: str
    disk_format: str
    container_format: str
    visibility: str
    name: str = ""
    size: int = 0
    virtual_size: int = 0
    min_disk: int = 0
    created_epoch: float = 0.0
    updated_at: str = ""
    updated_epoch: float = 0.0
    stores: frozenset[str] | None = None
    importing: frozenset[str] = frozenset()
    failed: frozenset[str] = frozenset()
    import_locked: bool = False
    properties: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """One location of an image; `volume_id` and `store` are "" where it is no `cinder://` one."""

    url: str
    store: str = ""
    volume_id: str = ""

    @classmethod
    def from_url(cls, url: str) -> Location:
        """The location as its URL tells it: cinder://<store>/<volume> or, before multi-store,
        cinder://<volume>."""
        parts = urlsplit(url)
        if parts.scheme != "cinder":
            return cls(url=url)
        path = parts.path.strip("/")
        # Cinder on MySQL finds a volume by its id in capitals, too
        volume_id = (path or parts.netloc).lower()
        return cls(url=url, store=parts.netloc if path else "", volume_id=volume_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageTask:
    """A task of Glance on an image, with its times in epoch seconds: `url` is the location that a
    `location_import` adds, `stores` are those that an `api_image_import` writes to. Glance lists it
    for some days after it has ended."""

    id: str
    type: str
    status: str
    message: str = ""
    url: str = ""
    stores: frozenset[str] = frozenset()
    created_epoch: float = 0.0
    updated_epoch: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """A volume. `size` in GiB, `host` is its pool: `host@backend#pool`, or `cluster@backend#pool`
    where services are active-active; `foreign` if it is not the internal project's.

    A foreign volume is never trusted as an Image-Volume and never touched, whatever its name and
    metadata claim. `source_volid` is the volume that it was cloned from, `snapshot_id` the snapshot
    that it was restored from; Cinder says so, no user can. `scheduled` is False as long as no
    scheduler has found a place for it, if we may see that. `image_properties` is what Cinder keeps
    of the image that the volume was made from (`volume_image_metadata`). Users may write anything
    there; `list_volumes` leaves it out, and of a volume that is `oversized` only the image's id is
    read. `downloaded` tells that Cinder has noted a download of the image that it was made from;
    where Cinder verifies no signatures (`verify_glance_signatures = disabled`) it notes none.
    `metadata` of a clone is without the marks that it may have from its
    source (see `own`); `inherited` are the keys of those.
    """

    id: str
    name: str
    status: str
    volume_type: str
    size: int
    created_at: str = ""
    created_epoch: float = 0.0
    updated_epoch: float = 0.0
    host: str = ""
    project_id: str = ""
    source_volid: str = ""
    snapshot_id: str = ""
    scheduled: bool = True
    encrypted: bool = False
    downloaded: bool = False
    foreign: bool = False
    metadata: Mapping[str, str] = field(default_factory=dict)
    inherited: frozenset[str] = frozenset()
    image_properties: Mapping[str, str] = field(default_factory=dict)
    oversized: bool = False


def own(volume: Volume) -> Volume:
    """The volume without the marks of ours that it may have from the one it was cloned from.

    Cinder copies a volume's metadata, in which users write what they like, to what it clones from
    it for its cache or an upload (cinder/volume/manager.py, _clone_image_volume). So a clone's
    marks are its own only beside its own id, which nobody knows beforehand. Until then, that a
    clone is one of ours for an upload is a claim, which gives no rights beyond its image.
    """
    metadata = volume.metadata
    if not volume.source_volid or metadata.get(OF) == volume.id:
        return volume
    marks = MARKS & metadata.keys()
    believed = {TAG, UPLOADED_BY} if metadata.get(TAG) == UPLOAD else set[str]()
    left_out = marks - believed
    if volume.name != f"image-{metadata.get('glance_image_id')}":
        # Cinder names the clone, and writes no other image's id on it
        left_out |= {"glance_image_id"}
    kept = {name: text for name, text in metadata.items() if name not in left_out}
    return replace(volume, metadata=kept, inherited=marks)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewVolume:
    """A volume to create in the internal project, from an image's data or another volume's. `size`
    in GiB.

    A clone has its source's type.
    """

    name: str
    size: int
    volume_type: str = ""
    image_id: str = ""
    source_volid: str = ""
    availability_zone: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """A store of Glance; `volume_type` of a cinder store, where Glance tells."""

    id: str
    type: str = ""
    volume_type: str = ""


@dataclass(frozen=True, slots=True)
class Quota:
    """The rest of the internal project's quota for a volume type, and the GiB that one volume may
    have; None where there is no limit."""

    volumes: int | None = None
    gigabytes: int | None = None
    per_volume: int | None = None


class Cloud(Protocol):
    """Glance and Cinder. Every verb is one request; reads are retried, writes never are.

    Raises: NotFound (404), Conflict (409, or 400 because of a state), Blocked (401, 403, over
    quota), Temporary (no answer, 429, 5xx).
    """

    async def get_image(self, image_id: str) -> Image:
        """The image, whoever owns it."""

    def list_images(self) -> AsyncIterator[Image]:
        """All images of all projects whose status is one of LISTED, hidden ones (os_hidden) too,
        page by page."""

    async def find_witness(self) -> str:
        """The id of a private image of another project that Glance shows us; "" if it shows
        none."""

    async def find_volume_witness(self) -> str:
        """The id of a volume of another project that Cinder shows us; "" if it shows none."""

    async def notes_downloads(self) -> bool:
        """Whether Cinder notes a download on the volume: some volume that this login sees has such
        a note (`Volume.downloaded`). Where `verify_glance_signatures = disabled` none has."""

    async def get_locations(self, image_id: str) -> tuple[Location, ...] | None:
        """Where the image's data lies; None if that cannot be read, never an empty tuple.

        Glance hides locations (403, 404 of the route, option off), and while an image is being
        deleted it answers an empty list: an active image has at least one location, so an empty
        answer says nothing.
        """

    async def copy_image(self, image_id: str, stores: Iterable[str]) -> None:
        """Begin the import that copies an active image into more stores; `get_image` tells how it
        goes on."""

    async def add_location(self, image_id: str, url: str) -> None:
        """Add a location to an image at once (needs Glance's show_multiple_locations); a queued one
        becomes active."""

    async def import_location(self, image_id: str, url: str) -> None:
        """Begin the task that makes a location the data of a queued image (needs Glance 2.17 and
        the role service).

        The image is locked until it has ended; `list_tasks` tells how.
        """

    async def imports_locations(self) -> bool:
        """Whether this Glance has `import_location`."""

    async def list_tasks(self, image_id: str) -> tuple[ImageTask, ...]:
        """Return Glance's tasks on an image, newest first; Glance forgets them after two days."""

    async def list_members(self, image_id: str) -> Mapping[str, str]:
        """The projects that an image is shared with, and their status: pending, accepted or
        rejected."""

    async def set_properties(self, image_id: str, properties: Mapping[str, str]) -> None:
        """Set these properties of an image, all or none, keep the others; with "" take one away.

        Blocked if Glance reserves or protects one of them (403) or there would be too many (413),
        Conflict if one is not valid (400).
        """

    async def remove_from_store(self, image_id: str, store: str) -> None:
        """Remove the image's location in a store together with its volume; refused for the last
        one."""

    async def get_volume(self, volume_id: str) -> Volume:
        """A volume, of whatever project: look at `foreign`."""

    async def find_volumes(self, name: str) -> tuple[Volume, ...]:
        """The volumes of the internal project that have this name, oldest first."""

    def list_volumes(self, tag: str = "", *, key: str = TAG) -> AsyncIterator[Volume]:
        """All volumes of the internal project, or those with this value in their metadata, page by
        page."""

    async def get_quota(self, volume_type: str) -> Quota:
        """Return the rest of the internal project's quota for volumes of this type."""

    async def create_volume(self, new: NewVolume) -> Volume:
        """Begin to make a volume; it is `creating` in the answer."""

    async def delete_volume(self, volume_id: str) -> None:
        """Begin to delete a volume of the internal project; Conflict while it is in use or being
        made."""

    async def set_metadata(
        self, volume_id: str, metadata: Mapping[str, str], *, drop: Iterable[str] = ()
    ) -> None:
        """Set these keys of a volume's metadata, after those to `drop` are deleted; keep the
        others."""

    async def set_readonly(self, volume_id: str) -> None:
        """Set a volume's read-only flag."""

    async def list_stores(self) -> tuple[Store, ...]:
        """Glance's stores; empty without multi-store."""

    async def describe_volume_types(self) -> tuple[VolumeType, ...]:
        """The volume types, with as much of their extra specs as we may see."""

    async def list_pools(self) -> tuple[Pool, ...]:
        """The pools that Cinder's scheduler knows; Blocked where only an administrator may ask."""

    async def list_down(self) -> frozenset[str]:
        """The backends (host@backend, or cluster@backend) whose cinder-volume is down, as far as
        Cinder has noticed; Blocked where only an administrator may ask."""

    async def create_private_type(self, name: str, specs: Mapping[str, str]) -> None:
        """Create a volume type that no project sees; Conflict if there is one of this name."""

    async def delete_volume_type(self, type_id: str) -> None:
        """Delete a volume type; Conflict while a volume is of it."""

    async def encrypts(self, type_id: str) -> bool:
        """Whether volumes of a type are encrypted; Blocked where only an administrator may ask."""
