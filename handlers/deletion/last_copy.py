"""Last copy: an image that is there keeps a whole location that we might not remove as well."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Set

from handlers import image_volume, marks, volume_status
from worker.core.cloud import Cloud, Image, Location, Store, Volume
from worker.core.errors import NotFound

NO_WHOLE = "no location of the image is whole, so it may hold the last copy of its data"


class LastCopy:
    """Finds out whether an image can do without a volume."""

    def __init__(
        self,
        *,
        cloud: Cloud,
        stores: Callable[[], Awaitable[tuple[Store, ...]]],
        down: Callable[[], Awaitable[frozenset[str]]],
        needed: Callable[[], Awaitable[bool]],
    ) -> None:
        """`stores` gives Glance's stores and `down` Cinder's backends (host@backend) that are down,
        as of a moment ago; `needed` tells whether a target needs this login to be shown
        locations."""
        self._shown = False
        self._needed = needed
        self._cloud = cloud
        self._stores = stores
        self._down = down

    async def keep_reason(
        self, volume: Volume, image: Image, locations: tuple[Location, ...] | None
    ) -> str:
        """Return why a volume must stay for its image, which has these locations; "" if it may be
        deleted."""
        if locations is None:
            hidden = image_volume.may_be_location(volume) or await self.shows_locations(image.id)
            return image_volume.HIDDEN if hidden else ""
        self._shown = True
        if _lacks_store(locations, image):
            return "the image is in a store of which Glance shows no location: it is being changed"
        if all(location.volume_id != volume.id for location in locations):
            # An entry of Cinder's cache may have outlived every location
            broken = volume_status.is_broken(volume)
            if broken and not volume_status.needs_administrator(volume):
                return ""
            if await self.has_whole(image, locations):
                return ""
            return NO_WHOLE
        store = store_of(volume, locations)
        if not store:
            return "its location names no store, so Glance can't be told to remove it"
        here = [location for location in locations if location.store == store]
        # Glance takes the first that it finds in a store
        if here[0].volume_id != volume.id:
            return f"the image has several locations in store {store}"
        others = [location for location in locations if location.volume_id != volume.id]
        for location in others:
            if await self._is_anchor(location, image):
                return ""
        # Of several in a store one is enough, and should two workers remove one each, another store
        # has the data
        twice = [await self._is_whole(one, image) for one in others if one.store == store]
        elsewhere = [await self._is_whole(one, image) for one in others if one.store != store]
        return (
            ""
            if any(twice) and any(elsewhere)
            else "the image has no other location that would stay"
        )

    async def shows_locations(self, image_id: str) -> bool:
        """Whether Glance shows this login locations, or has to: ever, or of this image now. For a
        moment it may show none of an image that is being changed."""
        if not self._shown and not await self._needed():
            self._shown = await self._cloud.get_locations(image_id) is not None
            return self._shown
        return True

    async def is_elsewhere(
        self, volume_id: str, image: Image, locations: tuple[Location, ...]
    ) -> bool:
        """Whether another of the image's locations than this volume is whole."""
        others = [one for one in locations if one.volume_id != volume_id]
        return any([await self._is_whole(one, image) for one in others])

    async def has_whole(self, image: Image, locations: tuple[Location, ...]) -> bool:
        """Whether any of the image's locations is whole."""
        # One outside of Cinder first: it costs no request
        for location in sorted(locations, key=lambda one: bool(one.volume_id)):
            if await self._is_whole(location, image):
                return True
        return False

    async def may_be_readable(self, locations: tuple[Location, ...], own: Set[str]) -> bool:
        """Whether the image's data may be had from any location, whoever's its volume is. One in a
        store of none of our targets may be in another region, where this Cinder does not find it;
        `own` are the stores of our targets."""
        for location in locations:
            if not await self._is_served(location):
                continue
            if not location.volume_id:
                return True
            volume = await self.look(location.volume_id)
            if location.store not in own if volume is None else not volume_status.is_broken(volume):
                return True
        return False

    async def look(self, volume_id: str) -> Volume | None:
        """Read a volume; None if Cinder does not find it."""
        try:
            return await self._cloud.get_volume(volume_id)
        except NotFound:
            return None

    async def _is_whole(self, location: Location, image: Image) -> bool:
        """Whether Glance can read the image's data from a location; one outside of Cinder is taken
        for whole while Glance has its store."""
        if not location.volume_id:
            return await self._is_served(location)
        return await self._whole_volume(location, image) is not None

    async def _is_anchor(self, location: Location, image: Image) -> bool:
        """Whether a location is whole and none that we might remove as well."""
        if not location.volume_id:
            return await self._is_served(location)
        volume = await self._whole_volume(location, image)
        return volume is not None and not marks.may_be_ours(volume)

    async def _whole_volume(self, location: Location, image: Image) -> Volume | None:
        """Return the volume of a location if it is whole, Glance has its store and its backend is
        not down, else None.

        A volume that is not this image's holds other data, or is under somebody else's control.
        """
        if not await self._is_served(location):
            return None
        volume = await self.look(location.volume_id)
        if volume is None or not volume_status.is_usable(volume):
            return None
        if volume.host and volume.host.partition("#")[0] in await self._down():
            return None
        return volume if image_volume.is_of(volume, image) else None

    async def _is_served(self, location: Location) -> bool:
        """Whether Glance has the store of a location, as far as it tells its stores."""
        stores = {store.id for store in await self._stores()}
        return not stores or not location.store or location.store in stores


def _lacks_store(locations: tuple[Location, ...], image: Image) -> bool:
    """Whether the list of locations is older than the image that was read after it, or a stale
    answer."""
    shown = {location.store for location in locations}
    return "" not in shown and not (image.stores or frozenset()) <= shown


def store_of(volume: Volume, locations: tuple[Location, ...]) -> str:
    """Return the store of Glance in which the volume is a location; "" if it is none."""
    return next((location.store for location in locations if location.volume_id == volume.id), "")
