"""The cloud as handlers see it: values, and the verbs they may use; `worker.sdk` implements them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image of Glance. Times are epoch seconds, sizes bytes; `updated_at` is Glance's own text, to be compared.

    `stores` is None where Glance doesn't tell (no multi-store). Source: glance/api/v2/images.py.
    """

    id: str
    status: str
    owner: str
    disk_format: str
    container_format: str
    visibility: str
    size: int = 0
    virtual_size: int = 0
    min_disk: int = 0
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """A volume. `size` in GiB, `host` is `host@backend#pool`; `foreign` if it is not the internal project's.

    A foreign volume is never trusted as an Image-Volume and never touched, whatever its name and metadata claim.
    """

    id: str
    name: str
    status: str
    volume_type: str
    size: int
    created_at: str = ""
    created_epoch: float = 0.0
    host: str = ""
    foreign: bool = False
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewVolume:
    """What a volume is to be made of: an image's data, in the internal project. `size` in GiB."""

    name: str
    size: int
    volume_type: str
    image_id: str
    availability_zone: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """A store of Glance; `volume_type` of a cinder store, where Glance tells."""

    id: str
    type: str = ""
    volume_type: str = ""


class Cloud(Protocol):
    """Glance and Cinder. Every verb is one request; reads are retried, writes never are.

    Raises: NotFound (404), Conflict (409, or 400 because of a state), Blocked (401, 403, over quota),
    Temporary (no answer, 429, 5xx).
    """

    async def get_image(self, image_id: str) -> Image:
        """The image, whoever owns it."""

    def list_images(self) -> AsyncIterator[Image]:
        """All active images of all projects, page by page."""

    async def get_locations(self, image_id: str) -> tuple[Location, ...]:
        """Where the image's data lies; empty where Glance shows no locations to us."""

    async def copy_image(self, image_id: str, stores: Iterable[str]) -> None:
        """Begin the import that copies an active image into more stores; `get_image` tells how it goes on."""

    async def add_location(self, image_id: str, url: str) -> None:
        """Add a location to an active image (needs Glance's show_multiple_locations)."""

    async def remove_from_store(self, image_id: str, store: str) -> None:
        """Remove the image's location in a store together with its volume; refused for the last one."""

    async def get_volume(self, volume_id: str) -> Volume:
        """A volume, of whatever project: look at `foreign`."""

    async def find_volumes(self, name: str) -> tuple[Volume, ...]:
        """The volumes of the internal project that have this name, oldest first."""

    def list_volumes(self) -> AsyncIterator[Volume]:
        """All volumes of the internal project, page by page."""

    async def create_volume(self, new: NewVolume) -> Volume:
        """Begin to make a volume; it is `creating` in the answer."""

    async def delete_volume(self, volume_id: str) -> None:
        """Begin to delete a volume of the internal project; Conflict while it is in use or being made."""

    async def set_metadata(self, volume_id: str, metadata: Mapping[str, str]) -> None:
        """Set these keys of a volume's metadata, keep the others."""

    async def set_readonly(self, volume_id: str) -> None:
        """Set a volume's read-only flag."""

    async def sees_all_images(self) -> bool:
        """Whether a 404 on an image says that it does not exist, not just that it is none of our business."""

    async def list_stores(self) -> tuple[Store, ...]:
        """Glance's stores; empty without multi-store."""
