"""The fake cloud: Glance and Cinder in memory, as handlers see them.

The contract suite of this project runs the same cases against it and against real services.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, TypeVar

from handlers import image_volume, volume_status
from worker.core.cloud import (
    GIB,
    LISTED,
    Image,
    ImageTask,
    Location,
    NewVolume,
    Quota,
    Store,
    Volume,
    own,
)
from worker.core.creation import NOTE
from worker.core.errors import Blocked, Conflict, NotFound, SpelledOtherwise, Temporary
from worker.core.pool import Pool, VolumeType
from worker.core.target import TAG, Target

PROJECT = "internal-project"
# A volume of another project that no test looks at
NOBODYS = "00000000-0000-4000-8000-00000000000f"
PAGE = 1000
# Glance's image_property_quota
MOST_PROPERTIES = 128
T = TypeVar("T")


@dataclass(slots=True)
class Fault:
    """The next `times` calls of a verb raise `error`, before it has an effect or, with `done`,
    after."""

    error: Exception
    times: int = 1
    done: bool = False


@dataclass(slots=True, kw_only=True)
class FakeCloud:
    """Glance and Cinder. Verbs of `worker.core.cloud.Cloud`, and what users and services do.

    Sizes in GiB, times in seconds. What a test may set, or read:

    - The requests: `calls` counts verbs, `faults` has the next ones fail, `latency` is how long one
      takes, half of it before its effect. `told` hears of each of our writes right before its
      effect. `emit` gets notifications as bytes. `ahead`: how far the clock is wrong.
    - Our login: without `sees_all` Glance shows private images to their owners alone, whatever role
      asks (Glance's policy context_is_admin). `hides_locations`: Glance shows us none. `protected`
      are properties that we may not set. Without `tells_pools` we see no pools, without
      `tells_encryption` not which types are encrypted, and without `makes_types` we make no types.
    - Glance: `stores` maps its cinder stores to volume types, `blind`: their logins see no volume of
      ours. `rbd_stores` are stores whose raw images Cinder's driver clones by itself, on the types
      in `native`. `new_locations`: Glance 2.17 or newer. `amnesiac`: it lists no images. `delayed`:
      a deleted image can be restored, its data stays (delayed_delete). `patching`: how long a PATCH
      holds what it has read, before it writes the whole image back. `most_properties` of an image.
      A copy into one of `refused_stores` is refused as a whole, one into `spoiling_stores` ends
      without any store having got it. `dead_imports` are images whose import has died so long ago
      that Glance gives its lock away. `torn` are volumes that were deleted although they were a
      location of an image.
    - Cinder: `types`, and `encrypted_types` of them. `cached` are types with its image-volume cache,
      whose entries on a type `cache_max_count` and `cache_max_gigabytes` bound, 0 for no limit. A
      volume is `creating` for `seconds`. `quota` and `per_volume_quota`: of the internal project. `held_by_backend` are
      volumes whose deletion comes to nothing, `depended_on` those that Cinder does not delete (a
      snapshot, an attachment, a group), `refusing` those that the backend makes no more clones of,
      `elsewhere` ids of volumes in another region, `down` backends (host@backend) whose
      cinder-volume does not answer. `asked_by`
      is who asked for a volume that the services made: a project, or `cinder` for its cache.
    - Pools: `pools` is how many each type leads to, one if it is not named; volumes go round them,
      those of a private type into the pool that it names. Pools of types in `across` clone across.
      Types in `loose` have no backend name, and lead to all pools.
    """

    stores: Mapping[str, str] = field(default_factory=dict)
    cached: frozenset[str] = frozenset()
    multiple_locations: bool = False
    rbd_stores: frozenset[str] = frozenset()
    native: frozenset[str] = frozenset()
    pools: Mapping[str, int] = field(default_factory=dict)
    across: frozenset[str] = frozenset()
    loose: frozenset[str] = frozenset()
    named_pools: bool = True
    tells_pools: bool = True
    makes_types: bool = True
    public_types: set[str] = field(default_factory=set)
    private_types: dict[str, Mapping[str, str]] = field(default_factory=dict)
    sees_all: bool = True
    sees_foreign: bool = True
    unlocked_after: float = 0.0
    hides_locations: bool = False
    delayed: bool = False
    seconds: float = 0.0
    latency: float = 0.0
    ahead: float = 0.0
    amnesiac: bool = False
    quota: int | None = None
    per_volume_quota: int | None = None
    held_by_backend: set[str] = field(default_factory=set)
    depended_on: set[str] = field(default_factory=set)
    refusing: set[str] = field(default_factory=set)
    elsewhere: set[str] = field(default_factory=set)
    down: set[str] = field(default_factory=set)
    emptied: set[str] = field(default_factory=set)
    pending: dict[str, Image] = field(default_factory=dict)
    lost: dict[str, tuple[Image, tuple[Location, ...]]] = field(default_factory=dict)
    torn: list[str] = field(default_factory=list)
    dead_imports: set[str] = field(default_factory=set)
    emit: Callable[[bytes], None] = lambda _: None
    told: Callable[..., None] = lambda *_: None
    asked_by: dict[str, str] = field(default_factory=dict)
    images: dict[str, Image] = field(default_factory=dict)
    locations: dict[str, tuple[Location, ...]] = field(default_factory=dict)
    volumes: dict[str, Volume] = field(default_factory=dict)
    image_tasks: dict[str, list[ImageTask]] = field(default_factory=dict)
    members: dict[str, dict[str, str]] = field(default_factory=dict)
    new_locations: bool = True
    blind: bool = False
    dead_types: set[str] = field(default_factory=set)
    types: set[str] = field(default_factory=lambda: {"fast", "slow", "local-1", "local-2"})
    encrypted_types: set[str] = field(default_factory=set)
    tells_encryption: bool = True
    refused_stores: dict[str, Exception] = field(default_factory=dict)
    spoiling_stores: set[str] = field(default_factory=set)
    patching: float = 0.0
    protected: set[str] = field(default_factory=set)
    most_properties: int = MOST_PROPERTIES
    cache_max_count: int = 0
    cache_max_gigabytes: int = 0
    faults: dict[str, Fault] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _tick: Iterable[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.types |= set(self.stores.values())

    # What users and the services do

    def upload(self, **fields: object) -> Image:
        """Make a user's image, active in the store `file`, raw/bare and public unless said
        otherwise."""
        image_id = new_id()
        defaults: dict[str, object] = {
            "id": image_id,
            "status": "active",
            "owner": "alice",
            "disk_format": "raw",
            "container_format": "bare",
            "visibility": "public",
            "size": GIB,
            "stores": frozenset({"file"}),
            "created_epoch": self.now(),
        }
        image = Image(**(defaults | fields))  # type: ignore[arg-type]
        self.images[image.id] = image
        kept = sorted(image.stores or {"file"}) if image.status == "active" else ()
        self.locations[image.id] = tuple(
            self._kept_in(store) for store in kept if store not in self.stores
        )
        self.touch(image.id)
        self.announce("image.activate" if image.status == "active" else "image.create", image.id)
        return self.images[image.id]

    def queue(self, **fields: object) -> Image:
        """Make a user's image that waits for its data."""
        defaults: dict[str, object] = {"status": "queued", "size": 0, "stores": None}
        return self.upload(**(defaults | fields))

    def volume_of(self, project: str, **fields: object) -> Volume:
        """Make a user's volume, available and on the first store's type unless said otherwise."""
        volume = self._new(
            "data", str(fields.get("volume_type", next(iter(self.stores.values()), "fast"))), 1, {}
        )
        changes: dict[str, object] = {
            "status": "available",
            "project_id": project,
            "foreign": project != PROJECT,
        }
        self.volumes[volume.id] = replace(volume, **(changes | fields))  # type: ignore[arg-type]
        return self.volumes[volume.id]

    def cinder_clones(self, source_id: str, image_id: str, **fields: object) -> Volume:
        """Make the clone of Cinder's own upload, and nothing after it: Cinder was killed."""
        source = self.volumes[source_id]
        noted = {"image_owner": source.project_id}
        clone = self._cinder_clones(source, f"image-{image_id}", noted, **fields)
        self._announce_volume("volume.create.end", clone)
        return clone

    def set_by_user(self, image_id: str, **properties: str) -> None:
        """Have a user set properties of an image."""
        image = self.images[image_id]
        self.touch(image_id, properties={**image.properties, **properties})
        self.announce("image.update", image_id)

    def use(
        self, image_id: str, volume_type: str, *, project: str = "bob", **fields: object
    ) -> Volume:
        """Have a user make a volume of an image; with `source_volid` or `snapshot_id`, of a
        volume that was made of it."""
        volume = self._new("disk", volume_type, 1, {})
        changes: dict[str, object] = {
            "status": "available",
            "project_id": project,
            "foreign": project != PROJECT,
        }
        volume = replace(volume, **(changes | fields))  # type: ignore[arg-type]
        cloned = self._clones_by_driver(image_id, volume) or self._clones_by_location(
            image_id, volume
        )
        entry = None if cloned else self._entry_for(volume, image_id)
        volume = replace(volume, downloaded=not (cloned or entry))
        self.volumes[volume.id] = volume
        self._announce_volume("volume.create.start", volume)
        if entry:
            payload = {"image_id": image_id, "host": volume.host}
            self.emit(notification("image_volume_cache.hit", payload, at=self.now()))
        if volume.downloaded and _backend(volume) in self.cached:
            self._cache(volume, image_id)
        self._announce_volume("volume.create.end", volume, image_id=image_id)
        return volume

    def user_copies(self, image_id: str, store: str, *, project: str = "alice") -> None:
        """Have a user copy an image into a store by Glance."""
        self.touch(image_id, import_locked=True, importing=frozenset({store}), failed=frozenset())
        self._spawn(self._run_import(image_id, (store,), project))

    def locate(self, image_id: str, store: str, volume_id: str) -> None:
        """Have a user add a volume to an image as a location (show_multiple_locations lets
        owners do that)."""
        self._activate(image_id, store, volume_id)

    def fill(self, targets: Iterable[Target]) -> Image:
        """Make an image that is warm on these targets, in Glance's stores there."""
        targets = tuple(targets)
        image = self.upload(
            stores=frozenset({"file", *(target.glance_store for target in targets)})
        )
        for target in targets:
            metadata = {
                **image_volume.metadata_of(image, target),
                image_volume.ORIGIN: image_volume.PREWARM,
            }
            volume = self._new(
                f"image-{image.id}", target.volume_type, 1, {**metadata, "readonly": "True"}
            )
            self.volumes[volume.id] = replace(volume, status="available")
            self._locate(image.id, target.glance_store, volume.id)
        return image

    def touch(self, image_id: str, **changes: Any) -> None:
        """Change an image; its updated_at moves on, each time to another value."""
        now = self.now()
        stamp = f"{now:.0f}.{next(iter(self._tick))}"
        self.images[image_id] = replace(
            self.images[image_id], updated_at=stamp, updated_epoch=now, **changes
        )

    def delete_image(self, image_id: str) -> None:
        """Have a user delete an image; Glance deletes the volumes that are its locations, at
        once or not."""
        image = self.images.pop(image_id)
        if self.delayed:
            self.pending[image_id] = _at_rest(image)
            self.announce("image.delete", image_id, status="pending_delete")
            return
        for location in self.locations.pop(image_id):
            self.volumes.pop(location.volume_id, None)
        self.announce("image.delete", image_id, status="deleted")

    def remove_volume(self, volume_id: str) -> None:
        """Have somebody else delete a volume in Cinder, a location or not."""
        self._announce_volume("volume.delete.end", self.volumes.pop(volume_id))

    def restore_image(self, image_id: str) -> None:
        """Have an administrator restore an image whose deletion is pending."""
        self.images[image_id] = self.pending.pop(image_id)

    def lose(self, *image_ids: str) -> None:
        """Have Glance's database forget these images: nobody deleted them, nothing is announced."""
        for image_id in image_ids:
            self.lost[image_id] = (
                _at_rest(self.images.pop(image_id)),
                self.locations.pop(image_id),
            )

    def find_again(self) -> None:
        """Have an administrator restore all images that Glance's database has lost."""
        for image_id, (image, locations) in self.lost.items():
            self.images[image_id], self.locations[image_id] = image, locations
        self.lost.clear()

    def announce(self, event_type: str, image_id: str, *, status: str = "") -> None:
        """Put an image's notification on the bus."""
        image = self.images.get(image_id)
        properties = dict(image.properties) if image else {}
        if image and image.import_locked:
            properties["os_glance_import_task"] = "one"
        if image:
            properties["os_glance_importing_to_stores"] = ",".join(sorted(image.importing))
        payload = {
            "id": image_id,
            "status": status or (image.status if image else ""),
            "properties": properties,
        }
        if image:
            payload["visibility"] = image.visibility
        self.emit(notification(event_type, payload))

    def of(self, image_id: str) -> list[Volume]:
        """Return the volumes that hold an image, cache entries and throw-away ones too."""
        return [v for v in self.volumes.values() if v.name.endswith(image_id)]

    def is_whole(self, location: Location) -> bool:
        """Whether the data can be read there."""
        volume = self.volumes.get(location.volume_id)
        return not location.volume_id or (
            volume is not None and not volume.status.startswith("error")
        )

    def has_data(self, image_id: str) -> bool:
        """Whether the image's data can be read anywhere."""
        return any(self.is_whole(location) for location in self.locations.get(image_id, ()))

    async def send(self, image_id: str, *, size: int = 0, seconds: float = 0.0) -> None:
        """Have a user send an image's data, as PUT /v2/images/{id}/file does."""
        if self.images[image_id].status != "queued":
            raise Conflict(
                f"Image status transition from {self.images[image_id].status} to saving is not "
                f"allowed"
            )
        self.touch(image_id, status="saving")
        await asyncio.sleep(seconds)
        if self.images[image_id].status != "saving":
            raise NotFound("Image could not be found after upload")
        self.locations[image_id] = (Location(url="file:///x", store="file"),)
        self.touch(image_id, status="active", size=size, stores=frozenset({"file"}))
        self.announce("image.upload", image_id)
        self.announce("image.activate", image_id)

    async def quiet(self) -> None:
        """Return when nothing is being made any more."""
        while self.tasks:
            await asyncio.gather(*self.tasks)

    # worker.core.cloud.Cloud

    async def get_image(self, image_id: str) -> Image:
        async with self._call("get_image"):
            image = self._image(image_id)
        if image.id != image_id:
            raise SpelledOtherwise(image.id)
        return image

    async def list_images(self) -> AsyncIterator[Image]:
        shown = [image for image in self.images.values() if image.status in LISTED]
        shown = [self._with_stores(image) for image in shown if self._shows(image)]
        async for image in self._pages("list_images", [] if self.amnesiac else shown):
            yield image

    async def find_witness(self) -> str:
        async with self._call("find_witness"):
            private = [image for image in self.images.values() if image.visibility == "private"]
            return next(
                (image.id for image in private if image.owner != PROJECT and self._shows(image)), ""
            )

    async def find_volume_witness(self) -> str:
        async with self._call("find_volume_witness"):
            # Other projects have volumes that no test looks at
            return (
                next((v.id for v in self.volumes.values() if v.foreign), NOBODYS)
                if self.sees_foreign
                else ""
            )

    async def notes_downloads(self) -> bool:
        async with self._call("notes_downloads"):
            return len([one for one in self.volumes.values() if one.downloaded]) > 1

    async def get_locations(self, image_id: str) -> tuple[Location, ...] | None:
        async with self._call("get_locations"):
            self._image(image_id)
            if self.hides_locations or image_id in self.emptied:
                return None
            return self.locations[image_id] or None

    async def copy_image(self, image_id: str, stores: Iterable[str]) -> None:
        wanted = tuple(stores)
        async with self._call("copy_image"):
            image = self._image(image_id)
            if image.status != "active":
                raise Conflict("Only images with status active can be targeted for copying")
            if image.import_locked and image_id not in self.dead_imports:
                raise Conflict("Image has active task")
            self.dead_imports.discard(image_id)
            if present := [store for store in wanted if store in (image.stores or ())]:
                raise Conflict(f"Image is already present at store '{present[0]}'")
            if unknown := [
                store for store in wanted if store not in {*self.stores, *self.rbd_stores}
            ]:
                raise Conflict(f"Store for image_id {image_id} not found: {unknown[0]}")
            if refused := [store for store in wanted if store in self.refused_stores]:
                raise self.refused_stores[refused[0]]
            self.told("copy_image", image_id, *wanted)
            self.touch(
                image_id, import_locked=True, importing=frozenset(wanted), failed=frozenset()
            )
            self.announce("image.update", image_id)
            self._spawn(self._run_import(image_id, wanted, PROJECT))

    async def add_location(self, image_id: str, url: str) -> None:
        async with self._call("add_location"):
            self._image(image_id)
            if not self.multiple_locations:
                raise Conflict("It's not allowed to add locations if locations are invisible")
            if any(location.url == url for location in self.locations[image_id]):
                raise Conflict("The location already exists")
            store, _, volume_id = url.removeprefix("cinder://").partition("/")
            if volume_id not in self.volumes:
                raise Conflict("Invalid location")
            self.told("add_location", image_id, volume_id)
            self._activate(image_id, store, volume_id)

    async def import_location(self, image_id: str, url: str) -> None:
        async with self._call("import_location"):
            image = self._image(image_id)
            if image.status != "queued":
                raise Conflict(
                    f"It's not allowed to add locations if image status is {image.status}."
                )
            if image.import_locked and image_id not in self.dead_imports:
                raise Conflict("Image has active task")
            self.dead_imports.discard(image_id)
            self.told("import_location", image_id, Location.from_url(url).volume_id)
            task = ImageTask(id=new_id(), type="location_import", status="processing", url=url)
            self.image_tasks.setdefault(image_id, []).insert(0, task)
            self.touch(image_id, import_locked=True)
            self._spawn(self._import_location(image_id, task))

    async def imports_locations(self) -> bool:
        async with self._call("imports_locations"):
            return self.new_locations

    async def list_tasks(self, image_id: str) -> tuple[ImageTask, ...]:
        async with self._call("list_tasks"):
            self._image(image_id)
            return tuple(self.image_tasks.get(image_id, ()))

    async def list_members(self, image_id: str) -> Mapping[str, str]:
        async with self._call("list_members"):
            self._image(image_id)
            return dict(self.members.get(image_id, {}))

    async def set_properties(self, image_id: str, properties: Mapping[str, str]) -> None:
        async with self._call("set_properties"):
            before = self._image(image_id)
            after = {**before.properties, **properties}
            for name, value in properties.items():
                if name in self.protected or name.startswith("os_glance"):
                    raise Blocked(f"Attribute '{name}' is reserved.")
                if max(name + value) > "\uffff":
                    raise Conflict(f"{name} can't contain 4 byte unicode characters.")
                if not value:
                    del after[name]
            if len(after) > self.most_properties and set(after) - set(before.properties):
                raise Blocked(
                    f"The limit has been exceeded on the number of allowed image properties: "
                    f"{len(after)}"
                )
            # Glance writes back what it has read, the status too: what happens in between is undone
            await asyncio.sleep(self.patching)
            if image_id not in self.images:
                raise NotFound(f"No image found with ID {image_id}")
            whole = {"status": before.status, "size": before.size} if self.patching else {}
            self.touch(image_id, properties=after, **whole)
            self.announce("image.update", image_id)

    async def remove_from_store(self, image_id: str, store: str) -> None:
        async with self._call("remove_from_store"):
            self._image(image_id)
            locations = self.locations[image_id]
            if len(locations) == 1:
                raise Blocked("Cannot delete image data from the only store containing it")
            # Of several in a store Glance takes the first
            first = next((location for location in locations if location.store == store), None)
            if first is None:
                raise NotFound(f"Image is not stored in store {store}")
            if first.volume_id and self._undeletable(first.volume_id):
                # Glance's cinder store fails then (glance_store/_drivers/cinder/store.py, delete)
                raise Temporary("500 Internal Server Error")
            self.told("remove_from_store", image_id, first)
            # Delayed deletion marks the location, and nobody comes for it while the image is there
            if not (self.delayed or first.volume_id in self.held_by_backend):
                self.volumes.pop(first.volume_id, None)
            left = tuple(location for location in locations if location is not first)
            self.locations[image_id] = left
            self.touch(image_id, stores=frozenset(location.store for location in left))

    async def get_volume(self, volume_id: str) -> Volume:
        async with self._call("get_volume"):
            return own(self._volume(volume_id))

    async def find_volumes(self, name: str) -> tuple[Volume, ...]:
        async with self._call("find_volumes"):
            named = (v for v in self.volumes.values() if v.name == name and self._is_listed(v))
            return tuple(own(volume) for volume in named)

    async def list_volumes(self, tag: str = "", *, key: str = TAG) -> AsyncIterator[Volume]:
        mine = [
            v
            for v in self.volumes.values()
            if self._is_listed(v) and (not tag or v.metadata.get(key) == tag)
        ]
        async for volume in self._pages("list_volumes", mine):
            yield own(replace(volume, image_properties={}))

    async def get_quota(self, volume_type: str) -> Quota:
        async with self._call("get_quota"):
            return Quota(gigabytes=self._left(), per_volume=self.per_volume_quota)

    async def create_volume(self, new: NewVolume) -> Volume:
        async with self._call("create_volume"):
            source = self._volume(new.source_volid) if new.source_volid else None
            if self.per_volume_quota is not None and self.per_volume_quota < new.size:
                raise Blocked(f"VolumeSizeExceedsLimit: {self.per_volume_quota} GiB a volume")
            if (left := self._left()) is not None and left < new.size:
                raise Blocked(f"VolumeSizeExceedsAvailableQuota: {left} GiB left")
            if source and source.status not in ("available", "in-use"):
                raise Conflict(f"Invalid volume: Source volume is {source.status}")
            if new.image_id and new.size < image_volume.size_for(self._image(new.image_id)):
                raise Conflict(
                    f"Volume size {new.size}GB cannot be smaller than the image minDisk size"
                )
            volume_type = source.volume_type if source else new.volume_type
            if (
                not source
                and volume_type
                and volume_type not in self.types
                and volume_type not in self.private_types
            ):
                raise NotFound(f"Volume type with name {volume_type} could not be found.")
            volume = self._new(new.name, volume_type, new.size, dict(new.metadata))
            kept = source.image_properties if source else {}
            volume = self.volumes[volume.id] = replace(
                volume, source_volid=new.source_volid, image_properties=kept
            )
            self.asked_by[volume.id] = PROJECT
            self._spawn(self._create(volume.id, new.image_id))
            return own(volume)

    async def delete_volume(self, volume_id: str) -> None:
        async with self._call("delete_volume"):
            volume = self._volume(volume_id)
            if self._undeletable(volume_id):
                raise Conflict(
                    "Volume status must be available or error, and it must have no snapshots"
                )
            self.told("delete_volume", volume_id)
            located = (own for image_id, own in self.locations.items() if image_id in self.images)
            if any(location.volume_id == volume_id for own in located for location in own):
                self.torn.append(volume_id)
            if volume_id in self.held_by_backend:
                # Cinder's driver says that it is busy: the volume is given back
                return
            del self.volumes[volume_id]
            self._announce_volume("volume.delete.end", volume)

    async def set_metadata(
        self, volume_id: str, metadata: Mapping[str, str], *, drop: Iterable[str] = ()
    ) -> None:
        async with self._call("set_metadata"):
            volume = self._volume(volume_id)
            self.told("set_metadata", volume_id)
            kept = {name: text for name, text in volume.metadata.items() if name not in set(drop)}
            self.volumes[volume_id] = replace(volume, metadata=kept | dict(metadata))

    async def set_readonly(self, volume_id: str) -> None:
        async with self._call("set_readonly"):
            volume = self._volume(volume_id)
            self.told("set_readonly", volume_id)
            self.volumes[volume_id] = replace(
                volume, metadata={**volume.metadata, "readonly": "True"}
            )

    async def list_stores(self) -> tuple[Store, ...]:
        async with self._call("list_stores"):
            cinder = (
                Store(id=store, type="cinder", volume_type=name)
                for store, name in self.stores.items()
            )
            rbd = (Store(id=store, type="rbd") for store in sorted(self.rbd_stores))
            return (Store(id="file", type="file"), *rbd, *cinder)

    async def describe_volume_types(self) -> tuple[VolumeType, ...]:
        async with self._call("describe_volume_types"):
            public = {
                name: {} if name in self.loose else {"volume_backend_name": name}
                for name in self.types
            }
            described = {**public, **self.private_types}
            return tuple(
                VolumeType(
                    id=name, name=name, specs=specs, public=name in self.types | self.public_types
                )
                for name, specs in described.items()
            )

    async def list_pools(self) -> tuple[Pool, ...]:
        async with self._call("list_pools"):
            if not self.tells_pools:
                raise Blocked(
                    "Policy doesn't allow scheduler_extension:scheduler_stats:get_pools to be "
                    "performed."
                )
            return tuple(
                self._pool(name, host)
                for name in sorted(self.types)
                for host in self._own_hosts(name)
            )

    async def list_down(self) -> frozenset[str]:
        async with self._call("list_down"):
            if not self.tells_pools:
                raise Blocked("Policy doesn't allow volume_extension:services:index")
            return frozenset(self.down)

    async def create_private_type(self, name: str, specs: Mapping[str, str]) -> None:
        async with self._call("create_private_type"):
            if not self.makes_types:
                raise Blocked("Policy doesn't allow volume_extension:type_create to be performed.")
            if name in self.private_types:
                raise Conflict(f"Volume Type {name} already exists.")
            self.private_types[name] = dict(specs)

    async def delete_volume_type(self, type_id: str) -> None:
        async with self._call("delete_volume_type"):
            if any(volume.volume_type == type_id for volume in self.volumes.values()):
                raise Conflict("Target volume type is still in use.")
            if self.private_types.pop(type_id, None) is None:
                raise NotFound(f"Volume type {type_id} could not be found.")

    async def encrypts(self, type_id: str) -> bool:
        async with self._call("encrypts"):
            if not self.tells_encryption:
                raise Blocked(
                    "Policy doesn't allow volume_extension:volume_type_encryption:get to be "
                    "performed."
                )
            return type_id in self.encrypted_types

    # Behind the scenes

    def hosts_of(self, volume_type: str) -> list[str]:
        """Return the pools that a volume type leads to, host@backend#pool."""
        if specs := self.private_types.get(volume_type):
            hosts = self._own_hosts(specs["volume_backend_name"])
            return [
                host for host in hosts if specs.get("pool_name") in (None, host.partition("#")[2])
            ]
        backends = sorted(self.types) if volume_type in self.loose else [volume_type]
        return [host for backend in backends for host in self._own_hosts(backend)]

    def _own_hosts(self, volume_type: str) -> list[str]:
        letters = ["", *"bcdefghij"][: self.pools.get(volume_type, 1)]
        return [f"host@{volume_type}#{volume_type}{letter}" for letter in letters]

    def _pool(self, volume_type: str, host: str) -> Pool:
        named = {"pool_name": host.partition("#")[2]} if self.named_pools else {}
        across = volume_type in self.across
        return Pool(name=host, backend_name=volume_type, clones_across=across, capabilities=named)

    def now(self) -> float:
        """Return the time of everybody's clock; tests set it ahead."""
        return time.time() + self.ahead

    def _left(self) -> int | None:
        used = sum(volume.size for volume in self.volumes.values() if not volume.foreign)
        return None if self.quota is None else self.quota - used

    async def _pages(self, verb: str, rows: list[T]) -> AsyncIterator[T]:
        for begin in range(0, max(1, len(rows)), PAGE):
            async with self._call(verb):
                pass
            for row in rows[begin : begin + PAGE]:
                yield row

    def _call(self, verb: str) -> _Call:
        self.calls[verb] += 1
        return _Call(self.faults, verb, self.latency)

    def _image(self, image_id: str) -> Image:
        if image_id not in self.images or not self._shows(self.images[image_id]):
            raise NotFound(f"No image found with ID {image_id}")
        return self._with_stores(self.images[image_id])

    def _with_stores(self, image: Image) -> Image:
        """The image in the stores that its locations name, as Glance tells them."""
        if image.stores is None:
            return image
        named = (one.store for one in self.locations[image.id] if one.store)
        return replace(image, stores=frozenset(named))

    def _is_listed(self, volume: Volume) -> bool:
        return not volume.foreign and volume.id not in self.elsewhere

    def _undeletable(self, volume_id: str) -> bool:
        """Whether Cinder refuses to delete it (cinder/volume/api.py, delete)."""
        volume = self.volumes.get(volume_id)
        refused = (
            volume is not None and volume.host and volume.status not in volume_status.DELETABLE
        )
        return bool(refused) or volume_id in self.depended_on

    def _shows(self, image: Image) -> bool:
        return (
            self.sees_all or image.owner == PROJECT or image.visibility in ("public", "community")
        )

    def _volume(self, volume_id: str) -> Volume:
        volume = self.volumes.get(volume_id)
        if (
            volume is None
            or volume_id in self.elsewhere
            or (volume.foreign and not self.sees_foreign)
        ):
            raise NotFound(f"Volume {volume_id} could not be found.")
        return volume

    def _new(self, name: str, volume_type: str, size: int, metadata: dict[str, str]) -> Volume:
        volume = Volume(
            id=new_id(),
            name=name,
            status="creating",
            volume_type=volume_type,
            size=size,
            created_at=f"{next(iter(self._tick)):09d}",
            created_epoch=self.now(),
            updated_epoch=self.now(),
            project_id=PROJECT,
            host=self._scheduled(volume_type),
            encrypted=volume_type in self.encrypted_types,
            metadata=metadata,
        )
        self.volumes[volume.id] = volume
        return volume

    def _scheduled(self, volume_type: str) -> str:
        """Return the pool with the fewest volumes, of those that the type leads to."""
        used = Counter(volume.host for volume in self.volumes.values())
        return min(self.hosts_of(volume_type), key=lambda host: used[host])

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _create(self, volume_id: str, image_id: str) -> None:
        await asyncio.sleep(self.seconds)
        volume = self.volumes.get(volume_id)
        if volume is None:
            return
        unread = bool(image_id) and not self.has_data(image_id)
        broken = unread or volume.volume_type in self.dead_types
        cloned = (
            bool(image_id)
            and not broken
            and (
                self._clones_by_driver(image_id, volume)
                or self._clones_by_location(image_id, volume)
            )
        )
        by_entry = bool(image_id) and not cloned and bool(self._entry_for(volume, image_id))
        image = self.images.get(image_id)
        volume = replace(
            volume,
            status="error" if broken else "available",
            # Cinder copies the properties of an image, one of the note's name too
            downloaded=bool(image_id)
            and ((not cloned and not by_entry) or bool(image and NOTE in image.properties)),
        )
        self.volumes[volume_id] = volume
        if broken:
            return
        if image_id and not cloned and _backend(volume) in self.cached and not volume.encrypted:
            self._cache(volume, image_id)
        self._announce_volume("volume.create.end", volume)

    def _kept_in(self, store: str) -> Location:
        """Return a location in a store that is not a cinder store."""
        return Location(
            url="rbd://fsid/pool/image/snap" if store in self.rbd_stores else "file:///x",
            store=store,
        )

    def _clones_by_location(self, image_id: str, volume: Volume) -> bool:
        """Whether Cinder clones an Image-Volume in the same pool that a location of the image
        names."""
        ids = {location.volume_id for location in self.locations[image_id]}
        located = [
            one for one in self.volumes.values() if one.id in ids and one.host == volume.host
        ]
        owner = self.images[image_id].owner
        return self.images[image_id].disk_format == "raw" and any(
            one.status == "available"
            and one.metadata.get("image_owner") == owner
            and one.id not in self.refusing
            for one in located
        )

    def _clones_by_driver(self, image_id: str, volume: Volume) -> bool:
        """Whether Cinder's driver clones the image where Glance keeps it (drivers/rbd.py,
        clone_image)."""
        image = self.images[image_id]
        raw = (
            image.disk_format == "raw" and _backend(volume) in self.native and not volume.encrypted
        )
        return raw and any(
            location.store in self.rbd_stores for location in self.locations[image_id]
        )

    def _entry_for(self, volume: Volume, image_id: str) -> Volume | None:
        """The fresh entry of Cinder's image-volume cache in the volume's pool."""
        stamp = self.images[image_id].updated_at if image_id in self.images else ""
        entries = (
            one
            for one in self.volumes.values()
            if one.name == f"image-{image_id}" and one.host == volume.host
        )
        return next((one for one in entries if one.metadata.get("_cached_for") == stamp), None)

    def _cache(self, volume: Volume, image_id: str) -> None:
        """Keep an entry in Cinder's image-volume cache; evict one that was made for another
        updated_at."""
        name = f"image-{image_id}"
        stamp = self.images[image_id].updated_at
        for entry in [v for v in self.volumes.values() if v.name == name and v.host == volume.host]:
            if entry.metadata.get("_cached_for") == stamp:
                return
            if "_cached_for" in entry.metadata:
                self._evict(entry)
        image = self.images[image_id]
        # As large as the data is; the volume that was asked for is extended afterwards
        if image_volume.is_raw(image) or image.virtual_size:
            volume = replace(volume, size=max(1, -(-max(image.size, image.virtual_size) // GIB)))
        if not self._ensure_space(volume):
            return
        # A clone, as those of uploads are
        self._cinder_clones(volume, name, {"readonly": "True", "_cached_for": stamp})

    def _cinder_clones(
        self, source: Volume, name: str, written: Mapping[str, str], **fields: object
    ) -> Volume:
        """Make a clone as Cinder itself does: it has its source's metadata and time
        (cinder/volume/manager.py, _clone_image_volume)."""
        clone = self._new(name, source.volume_type, source.size, {**source.metadata, **written})
        changes: dict[str, object] = {
            "status": "available",
            "host": source.host,
            "source_volid": source.id,
            "created_at": source.created_at,
            "created_epoch": source.created_epoch,
            "updated_epoch": self.now(),
        }
        self.asked_by[clone.id] = "cinder"
        self.volumes[clone.id] = replace(clone, **(changes | fields))  # type: ignore[arg-type]
        return self.volumes[clone.id]

    def _ensure_space(self, volume: Volume) -> bool:
        """Whether the cache has room for an entry of this size, once the oldest ones are evicted.

        Source: cinder/image/cache.py, ensure_space; who uses an entry does not count here.
        """
        most_count, most_size = self.cache_max_count, self.cache_max_gigabytes
        if most_size and volume.size > most_size:
            return False
        every = (v for v in self.volumes.values() if "_cached_for" in v.metadata)
        entries = sorted((v for v in every if v.host == volume.host), key=lambda v: v.created_at)
        while entries and (
            (most_count and len(entries) + 1 > most_count)
            or (most_size and sum(v.size for v in entries) + volume.size > most_size)
        ):
            self._evict(entries.pop(0))
        return True

    def _evict(self, entry: Volume) -> None:
        del self.volumes[entry.id]
        payload = {"image_id": image_volume.image_of(entry), "host": entry.host}
        self.emit(notification("image_volume_cache.evict", payload, at=self.now()))
        self._announce_volume("volume.delete.end", entry)

    async def _run_import(self, image_id: str, stores: tuple[str, ...], project: str) -> None:
        """Import into stores, with Glance's task of it."""
        now = self.now()
        task = ImageTask(
            id=new_id(),
            type="api_image_import",
            status="processing",
            stores=frozenset(stores),
            created_epoch=now,
        )
        self.image_tasks.setdefault(image_id, []).insert(0, task)
        await self._import(image_id, stores, project)
        self._end(image_id, replace(task, status="success", updated_epoch=self.now()))

    def _end(self, image_id: str, task: ImageTask) -> None:
        """Replace a task by what became of it."""
        tasks = self.image_tasks[image_id]
        self.image_tasks[image_id] = [task if one.id == task.id else one for one in tasks]

    async def _import(self, image_id: str, stores: tuple[str, ...], project: str) -> None:
        for store in () if self.spoiling_stores & set(stores) else stores:
            image = self.images.get(image_id)
            if image is None:
                return
            if store in self.rbd_stores:
                await asyncio.sleep(self.seconds)
                if image_id in self.images:
                    self.locations[image_id] = (*self.locations[image_id], self._kept_in(store))
                    self.touch(
                        image_id,
                        stores=(image.stores or frozenset()) | {store},
                        importing=image.importing - {store},
                    )
                    self.announce("image.update", image_id)
                continue
            metadata = {
                "glance_image_id": image_id,
                "image_owner": project,
                "image_size": str(image.size),
            }
            if (left := self._left()) is not None and left < -(-image.size // GIB):
                self.touch(
                    image_id, importing=image.importing - {store}, failed=image.failed | {store}
                )
                continue
            volume = self._new(
                f"image-{image_id}", self.stores[store], -(-image.size // GIB), metadata
            )
            self.asked_by[volume.id] = project
            await asyncio.sleep(self.seconds)
            image = self.images.get(image_id)
            if (
                image is None
                or volume.volume_type in self.dead_types
                or not self.has_data(image_id)
            ):
                self.volumes.pop(volume.id, None)
                if image:
                    self.touch(
                        image_id, importing=image.importing - {store}, failed=image.failed | {store}
                    )
                continue
            metadata["readonly"] = "True"
            self.volumes[volume.id] = replace(volume, status="available", metadata=metadata)
            self._locate(image_id, store, volume.id)
            self.touch(image_id, stores=(image.stores or frozenset()) | {store})
            self.announce("image.upload", image_id)
            self.touch(image_id, importing=image.importing - {store})
            self.announce("image.update", image_id)
        if image_id in self.images:
            # An import that has failed as a whole leaves its list behind
            unfinished = (
                self.images[image_id].importing
                if self.spoiling_stores & set(stores)
                else frozenset()
            )
            self.touch(image_id, import_locked=False, importing=unfinished)
            self.announce("image.update", image_id)

    async def _import_location(self, image_id: str, task: ImageTask) -> None:
        """Run Glance's task: it fails on a volume that the store's login can't see, and nothing
        but the task says so."""
        await asyncio.sleep(self.seconds)
        volume = self.volumes.get(Location.from_url(task.url).volume_id)
        seen = (
            volume is not None and not volume.foreign and not self.blind and image_id in self.images
        )
        done = replace(
            task, status="success" if seen else "failure", message="" if seen else "Internal Error"
        )
        self._end(image_id, done)
        if image_id not in self.images:
            return
        if volume and seen:
            store = next(
                store
                for store, volume_type in self.stores.items()
                if volume_type == volume.volume_type
            )
            self._activate(image_id, store, volume.id)
        # Glance's task has a few steps to do when the image is active
        await asyncio.sleep(self.unlocked_after)
        if image_id in self.images:
            self.touch(image_id, import_locked=False)

    def _activate(self, image_id: str, store: str, volume_id: str) -> None:
        """Make the volume a location of the image; a queued image then has its data."""
        image, volume = self.images[image_id], self.volumes[volume_id]
        size = image.size or int(volume.metadata.get("image_size") or volume.size * GIB)
        self._locate(image_id, store, volume_id)
        self.touch(
            image_id, stores=(image.stores or frozenset()) | {store}, status="active", size=size
        )
        self.announce("image.update", image_id)

    def _locate(self, image_id: str, store: str, volume_id: str) -> None:
        location = Location(url=f"cinder://{store}/{volume_id}", store=store, volume_id=volume_id)
        self.locations[image_id] = (*self.locations[image_id], location)

    def _announce_volume(self, event_type: str, volume: Volume, *, image_id: str = "") -> None:
        metadata = [{"key": key, "value": value} for key, value in volume.metadata.items()]
        noted = {"image_id": image_id} if image_id else {}
        if image_id and volume.downloaded:
            noted["signature_verified"] = "False"
        payload = {
            "volume_id": volume.id,
            "display_name": volume.name,
            "status": volume.status,
            "volume_type": volume.volume_type,
            "snapshot_id": volume.snapshot_id or None,
            "metadata": metadata,
            "host": volume.host,
            "tenant_id": volume.project_id,
            "glance_metadata": [{"key": key, "value": value} for key, value in noted.items()],
        }
        self.emit(notification(event_type, payload, at=self.now()))


class _Call:
    """One request: takes a turn of the event loop, and fails if a fault is due."""

    def __init__(self, faults: dict[str, Fault], verb: str, latency: float) -> None:
        self._faults = faults
        self._verb = verb
        self._latency = latency

    async def __aenter__(self) -> None:
        await asyncio.sleep(self._latency / 2)
        if (fault := self._faults.get(self._verb)) and not fault.done:
            self._raise(fault)

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        if self._latency:
            await asyncio.sleep(self._latency / 2)
        if error is None and (fault := self._faults.get(self._verb)) and fault.done:
            self._raise(fault)

    def _raise(self, fault: Fault) -> None:
        fault.times -= 1
        if fault.times <= 0:
            del self._faults[self._verb]
        raise fault.error


def _backend(volume: Volume) -> str:
    """Return the backend of a volume, which has the name of the type that leads there."""
    return volume.host.partition("@")[2].partition("#")[0]


def _at_rest(image: Image) -> Image:
    """Return the image once the import under way has found it gone, and ended."""
    return replace(image, import_locked=False, importing=frozenset())


def new_id() -> str:
    """Return a UUID of `random`, so that the same seed gives the same ids again."""
    return str(uuid.UUID(int=random.getrandbits(128), version=4))


def notification(
    event_type: str, payload: Mapping[str, object], *, at: float | None = None
) -> bytes:
    """Return a notification as it comes off the wire."""
    moment = datetime.fromtimestamp(time.time() if at is None else at, UTC)
    message = {
        "message_id": new_id(),
        "publisher_id": "fake",
        "event_type": event_type,
        "priority": "INFO",
        "payload": payload,
        "timestamp": moment.strftime("%Y-%m-%d %H:%M:%S.%f"),
    }
    return json.dumps({"oslo.version": "2.0", "oslo.message": json.dumps(message)}).encode()
