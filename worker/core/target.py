"""Targets and rules: what the operator wants to be warm, and which uploads to be completed, as
values."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Literal

from worker.core.pool import Place

# The key of the metadata that marks a volume as ours; its value is the target's name
TAG = "image_volume_worker"
# or this, for the clone that an upload was completed with, as long as it is no target's
UPLOAD = "upload"
# The key for the project whose upload the volume was made for. It stays when a target takes it over
UPLOADED_BY = f"{TAG}_upload"
# When an operator last wished for an image, on what was made of it before
WISHED = f"{TAG}_wished_at"
# The key for the id of the clone whose metadata it is: see `worker.core.cloud.own`
OF = f"{TAG}_of"
# The key for the looks for an image that were in vain, or this: see `worker.core.absence`
MISSING = f"{TAG}_missing"
PENDING = "pending_delete"
# All keys that the worker writes
MARKS = frozenset(
    {
        TAG,
        UPLOADED_BY,
        OF,
        MISSING,
        WISHED,
        *(f"{TAG}_{name}" for name in ("origin", "updated_at", "anew", "used_at", "located")),
    }
)

Strategy = Literal["auto", "store", "location", "cache", "native"]
LocationApi = Literal["auto", "new", "old"]
When = Literal["new", "used"]


# Between the names of a target and of its place
ON = " on "
# What people make bootable volumes of; Cinder's image-volume cache keeps the converted volume
CACHED_FORMATS = frozenset({"raw", "qcow2", "vmdk", "vdi", "vhd", "vhdx", "ploop"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One place to keep images warm: a volume type that leads to one backend pool.

    `glance_store` is the cinder store of Glance on that backend ("" when there is none or it is to
    be found out). `max_gigabytes` and `max_count` bound what is put there in advance; 0 for no
    limit. Beyond `project_share` of a full budget a project's images evict only its own.
    `encrypted` is no option: it is found out from Cinder whether volumes of the type are encrypted.
    Of the pools that the type leads to those count whose names match one of `pools` (all if empty)
    and none of `exclude_pools`; `places` are what was found, empty if Cinder does not tell. With
    `pool` it is that one place alone, and `volume_type` is then a private type that leads there;
    `whole` is all of it. `volume_types` are other types whose volumes are served by what is kept
    warm there, besides those that are found to lead to the same pools. `native_stores` are stores
    of Glance from which Cinder's driver clones raw images by itself, the one to copy into first.
    With no `disk_formats` those are kept warm that the strategy can serve. `automatic` is no option
    either: it tells that the strategy was `auto`, and may be another one for an image of another
    format. `narrowed` is none: the type leads to pools that the target does not take.
    """

    name: str
    volume_type: str
    strategy: Strategy = "auto"
    glance_store: str = ""
    availability_zone: str = ""
    max_concurrent: int = 4
    max_gigabytes: int = 0
    max_count: int = 0
    project_share: float = 0.25
    disk_formats: frozenset[str] = frozenset()
    native_stores: tuple[str, ...] = ()
    pools: tuple[str, ...] = ()
    exclude_pools: tuple[str, ...] = ()
    volume_types: frozenset[str] = frozenset()
    places: tuple[Place, ...] = ()
    pool: str = ""
    encrypted: bool = False
    automatic: bool = False
    narrowed: bool = False
    whole: Target | None = None

    @property
    def budgeted(self) -> Target:
        """The target that has the budget: of one of its places, all of it."""
        return self.whole or self

    @property
    def formats(self) -> frozenset[str]:
        """The disk formats of the images that are kept warm there."""
        if self.disk_formats:
            return self.disk_formats
        return (
            CACHED_FORMATS
            if self.automatic or self.strategy in ("auto", "cache")
            else frozenset({"raw"})
        )

    def takes(self, pool: str) -> bool:
        """Whether the pool of this name, host@backend#pool, is one to keep images warm in."""
        if any(fnmatch(pool, pattern) for pattern in self.exclude_pools):
            return False
        return not self.pools or any(fnmatch(pool, pattern) for pattern in self.pools)

    @property
    def is_spread(self) -> bool:
        """Whether the places of its volumes have to be chosen: one Image-Volume does not serve all
        of them, or Cinder's scheduler may choose a pool that it does not take."""
        return len(self.places) > 1 or (self.narrowed and bool(self.places))

    @property
    def place(self) -> str:
        """The name of the target, or of its one place that this is about."""
        return f"{self.name}{ON}{self.pool}" if self.pool else self.name

    @property
    def has_budget(self) -> bool:
        """Whether what is put there in advance is bounded."""
        return bool(self.max_gigabytes or self.max_count)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Which images are wanted. Sizes in bytes, 0 for no limit; empty `projects` means all of them.

    `settle` is for how many seconds an image must have been left unchanged before an entry of
    Cinder's image-volume cache is made again, since every change makes it stale; `rewarm_interval`
    how long ago the last one must have been made. With `when` "used" an image is made warm on a
    target once it has been used there twice.
    """

    visibilities: frozenset[str] = frozenset({"public", "community", "shared", "private"})
    projects: frozenset[str] = frozenset()
    exclude_projects: frozenset[str] = frozenset()
    min_size: int = 0
    max_size: int = 0
    property: str = "image_volume_prewarm"
    settle: float = 30.0
    rewarm_interval: float = 600.0
    when: When = "new"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reclaiming:
    """Limits of deleting: nothing unless `enabled`; with `dry_run` the log only says what would be
    deleted.

    `grace` is for how many seconds an image must have been not found before it counts as deleted,
    if its deletion was not heard of. `max_at_once` is how many volumes of such images may be there:
    more of them look like a fault of Glance, and none is deleted then. With `max_share` it is that
    share of all Image-Volumes, if that is more.
    """

    enabled: bool = True
    dry_run: bool = False
    grace: float = 86_400.0
    max_at_once: int = 5
    max_share: float = 0.05

    def limit(self, volumes: int) -> int:
        """How many volumes of images that are not found may be deleted where there are so many
        Image-Volumes."""
        return max(self.max_at_once, int(self.max_share * volumes))


@dataclass(frozen=True, slots=True, kw_only=True)
class Uploads:
    """How uploads are completed.

    `source_property` is the image property that names the source volume, `status_property` the one
    that tells the image's owner what is in the way ("" for none). `grace` is for how many seconds
    Cinder's own upload must have been still before it counts as stuck, `quiet` for how many an
    image that was changed must have been left alone before a location is added. `untouched` and
    `tell_after` are for how many a queued image must have been left alone before the worker changes
    its source property, or its status property. `reserved_image_namespaces` are beginnings of
    names: no such property of the image that a volume was made from is given to the image made of
    the volume. `project_gigabytes` bounds the GiB of all images that a project may have made in
    this way, 0 for no bound.
    """

    source_property: str = "image_volume_source"
    status_property: str = "image_volume_status"
    grace: float = 60.0
    quiet: float = 2.0
    untouched: float = 3.0
    tell_after: float = 10.0
    allow_in_use: bool = False
    location_api: LocationApi = "auto"
    project_gigabytes: int = 0
    reserved_image_namespaces: tuple[str, ...] = ()
