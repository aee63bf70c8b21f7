"""Creations: how Cinder made volumes of images, by the clone path as it was known then."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from handlers import image_volume, policy
from handlers.clone_path import (
    CacheClone,
    Download,
    ImageVolumeClone,
    NativeClone,
    Path,
    Unknown,
)
from handlers.prewarm.looks import Look
from handlers.prewarm.paths import Paths
from handlers.reasons import WORDS, Reason
from handlers.serving import at, served
from handlers.target_store import TargetStores
from worker.core.age import age
from worker.core.cloud import Image, Location, Volume
from worker.core.creation import NOTE, Creation, Made, Way
from worker.core.errors import Blocked, NotFound
from worker.core.handler import Parts
from worker.core.job import Key
from worker.core.newest import Newest
from worker.core.pool import pool_of_notification
from worker.core.target import Target
from worker.core.wishes import EVICTED

FRESH = 15.0
"""Seconds for which what was read of an image serves for other volumes of it, too."""
READINGS = 500
ASK_AGAIN = 600.0
"""Seconds between two questions whether Cinder notes downloads, while it was not seen to."""
WAYS: tuple[tuple[type, Way], ...] = (
    (NativeClone, Way.NATIVE),
    (ImageVolumeClone, Way.IMAGE_VOLUME),
    (CacheClone, Way.CACHE),
)
NOT_THE_IMAGES = "the volume is gone, so nobody tells whether it was made of the image itself"
NO_SIGN = "Cinder has not been seen to note downloads here (verify_glance_signatures)"
NO_CAUSE = "everything that Cinder needs for a clone was there as far as the worker knows"


class Reading(NamedTuple):
    """An image and what belongs to it, as read at this time."""

    at: float
    image: Image
    volumes: tuple[Volume, ...]
    locations: tuple[Location, ...] | None


class Creations:
    """Finds out how Cinder made a volume, at most four calls each, and one in a burst of them."""

    def __init__(self, parts: Parts) -> None:
        self._cloud = parts.cloud
        self._now = parts.now
        self._policy = parts.policy
        self._learned = parts.learned
        self._wishes = parts.wishes
        self._stores = parts.shared(TargetStores)
        self._paths = parts.shared(Paths)
        self._readings: Newest[str, Reading] = Newest(READINGS)
        # Cinder has been seen to note a download, so that a volume without that note was cloned
        self._notes_downloads = False
        self._asked_at = -ASK_AGAIN
        # Targets, or places of them, where Cinder was seen to clone, and by which path
        self._cloned_on: set[tuple[str, type[Path]]] = set()

    async def how_made(self, creation: Creation, targets: Iterable[Target]) -> Made | None:
        """Return how Cinder made the volume; None if it made it of another volume."""
        try:
            volume = await self._cloud.get_volume(creation.volume_id)
        except (NotFound, Blocked):
            return Made(Way.UNKNOWN, why=NOT_THE_IMAGES)
        if volume.source_volid or volume.snapshot_id:
            return None
        target = next((one for one in targets if one.name == creation.target), None)
        if target is None:
            return Made(Way.UNKNOWN, why="no such target is configured any more")
        try:
            reading = await self._read(creation.image_id)
            on, here, path = await self._path(creation, volume, target, reading)
            cloned = isinstance(path, Download) and not creation.downloaded
            if cloned and reading.at < creation.ended:
                # What it was cloned from may have been made since
                self._readings.pop(creation.image_id, None)
                reading = await self._read(creation.image_id)
                on, here, path = await self._path(creation, volume, target, reading)
        except NotFound:
            way = Way.DOWNLOAD if creation.downloaded else Way.UNKNOWN
            return Made(way, why="the image is gone")
        image = reading.image
        if NOTE in image.properties:
            # Cinder has copied that to the volume, and so it is no note of a download
            return Made(Way.UNKNOWN, why=f"its image has a property {NOTE} of its own")
        if creation.downloaded:
            self._notes_downloads = True
        elif not self._notes_downloads:
            self._notes_downloads = await self._ask()
        looks = self._paths.looks
        earlier = {*looks.of(image.id, on.name), *looks.of(image.id, here.place)}
        found = made(
            creation,
            path=path,
            looks=sorted(earlier),
            refusal=self._refusal(image, on),
            by_cache=here.strategy == "cache",
            notes_downloads=self._notes_downloads,
            clones_here=(here.place, type(path)) in self._cloned_on,
        )
        if found.way in (Way.IMAGE_VOLUME, Way.CACHE):
            self._cloned_on.add((here.place, type(path)))
        if creation.project != image.owner:
            # For the next volume this is a look before
            looks.note(image.id, here.place, path, at=reading.at)
        return found

    async def _path(
        self, creation: Creation, volume: Volume, target: Target, reading: Reading
    ) -> tuple[Target, Target, Path]:
        """Return the target with all decided, its place where the volume lies, and what Cinder
        would do there for another volume like this one."""
        resolved = await self._stores.resolve(target)
        target = served(reading.image, resolved, self._learned, now=self._now())
        name = pool_of_notification(
            creation.host, [host for one in target.places for host in one.hosts]
        )
        place = next((one for one in target.places if name in one.hosts), None)
        path = self._paths.of(
            reading.image,
            target,
            place,
            # An entry of its cache that Cinder has made of this very volume was not there before
            volumes=tuple(one for one in reading.volumes if one.source_volid != volume.id),
            locations=reading.locations,
            host=creation.host,
            project_id=creation.project,
        )
        here = at(target, place) if place and target.is_spread else target
        return target, here, path

    def _refusal(self, image: Image, target: Target) -> str:
        """Why the image is not wanted on the target, by policy or by an operator; "" if it is."""
        if refusal := policy.refusal(image, target, self._policy):
            return refusal
        key = Key("prewarm", image.id, target.name)
        return EVICTED if self._wishes.is_evicted(key, now=self._now()) else ""

    async def _ask(self) -> bool:
        """Whether Cinder is seen to note downloads; asked now and then."""
        if age(self._asked_at, self._now()) < ASK_AGAIN:
            return False
        self._asked_at = self._now()
        return await self._cloud.notes_downloads()

    async def _read(self, image_id: str) -> Reading:
        found = self._readings.get(image_id)
        if found and age(found.at, self._now()) < FRESH:
            return found
        image = await self._cloud.get_image(image_id)
        volumes = await self._cloud.find_volumes(image_volume.name_of(image_id))
        own = tuple(one for one in volumes if image_volume.is_of(one, image))
        raw = image_volume.is_raw(image)
        locations = await self._cloud.get_locations(image_id) if raw else ()
        reading = Reading(self._now(), image, own, locations)
        self._readings[image_id] = reading
        return reading


def made(
    creation: Creation,
    *,
    path: Path,
    looks: Iterable[Look] = (),
    refusal: str = "",
    by_cache: bool = False,
    notes_downloads: bool = True,
    clones_here: bool = False,
) -> Made:
    """Return how Cinder made a volume. Pure.

    `path` is what Cinder would do now for another volume of the same project, `looks` are what it
    would have done earlier, the oldest first. `refusal` is why policy does not want the image on
    the target. `by_cache`: Cinder's image-volume cache is to serve the image there, so the reason
    why it did not is the decisive one. `notes_downloads`: Cinder is known to note downloads.
    `clones_here`: Cinder was seen to clone there by the same path, of any image.
    """
    if creation.downloaded:
        return _downloaded(
            creation, path, tuple(looks), refusal, by_cache=by_cache, clones_here=clones_here
        )
    if not notes_downloads and creation.read is not False and not creation.hit:
        return Made(Way.UNKNOWN, why=NO_SIGN)
    way = next((way for kind, way in WAYS if isinstance(path, kind)), Way.UNKNOWN)
    if way is Way.UNKNOWN and creation.hit:
        way = Way.CACHE
    if way is not Way.UNKNOWN:
        return Made(way)
    if isinstance(path, Unknown):
        return Made(way, why=f"it was a clone; {path}")
    return Made(way, why="it was a clone, and what it was cloned from is gone")


def _downloaded(
    creation: Creation,
    path: Path,
    looks: tuple[Look, ...],
    refusal: str,
    *,
    by_cache: bool,
    clones_here: bool,
) -> Made:
    """Return why Cinder has downloaded the image: by the last look before, else by the first one
    since, else by now."""
    before = [look for look in looks if look.at <= creation.began]
    since = [look for look in looks if look.at > creation.began]
    candidates = [look.reasons for look in (*before[-1:], *since[:1])]
    reasons = next((one for one in candidates if one), ())
    found = bool(reasons)
    if not found and isinstance(path, Download):
        reasons = path.reasons
    heard = creation.read is not None
    if heard and clones_here and before and not reasons and not isinstance(path, Download):
        # A source was there before it began and is now, and Cinder is configured to clone it
        reasons, found = (Reason.CLONE_REFUSED,), True
    if creation.evicted:
        # Whoever has looked since has found no entry
        reasons = tuple(
            Reason.ENTRY_STALE if one is Reason.ENTRY_MISSING else one for one in reasons
        )
    if by_cache:
        # Those of the clone path stand in the order in which Cinder tries, the cache at last
        reasons = reasons[::-1]
    if refusal:
        reasons = (Reason.NOT_WANTED, *reasons)
    told = [refusal] if refusal else []
    told += [WORDS[reason].sentence for reason in reasons if reason is not Reason.NOT_WANTED]
    if reasons and not found:
        told.append("this was found afterwards")
    return Made(Way.DOWNLOAD, tuple(reasons), "; ".join(told) or NO_CAUSE)
