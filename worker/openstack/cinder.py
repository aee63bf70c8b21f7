"""Cinder: volumes, types, pools and quotas."""

from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import structlog

from worker.core.cloud import NewVolume, Quota, Volume
from worker.core.errors import Blocked, NotFound
from worker.core.pool import Pool, VolumeType
from worker.core.target import TAG
from worker.openstack import parse
from worker.openstack.keystone import Keystone
from worker.openstack.paging import PAGE, first
from worker.openstack.survey import Limit, Service

log = structlog.get_logger(__name__)

WITH_CLUSTER = "3.61"
"""The microversion of volumes and services that tells an administrator their cluster (Ussuri)."""


class Cinder(Keystone):
    """Verbs of the block storage API."""

    async def get_volume(self, volume_id: str) -> Volume:
        volume = await self._read(
            "block-storage",
            f"/volumes/{volume_id}",
            lambda answer: parse.asked_for(volume_id, parse.whole_volume(answer["volume"])),
            certain=volume_id,
            microversion=WITH_CLUSTER,
        )
        # The role admin sees the volumes of all projects here
        return replace(volume, foreign=volume.project_id != await self._own_project())

    async def find_volumes(self, name: str) -> tuple[Volume, ...]:
        found = [volume async for volume in self._volumes({"name": name}, parse.whole_volume)]
        # The database may not tell upper case from lower case, and a proxy may drop the query
        named = (volume for volume in found if volume.name == name)
        return tuple(sorted(named, key=lambda volume: (volume.created_at, volume.id)))

    async def find_all_volumes(self, name: str) -> tuple[Volume, ...]:
        """The volumes of this name, of all projects as far as this login may see them."""
        query = {"name": name, "all_tenants": "1"}
        found = [volume async for volume in self._volumes(query, parse.whole_volume)]
        return tuple(volume for volume in found if volume.name == name)

    def list_volumes(self, tag: str = "", *, key: str = TAG) -> AsyncIterator[Volume]:
        # Cinder reads a literal of Python's here (cinder/api/v3/volumes.py)
        return self._volumes({"metadata": str({key: tag})} if tag else {}, past=self._past)

    async def find_volume_witness(self) -> str:
        project_id = await self._own_project()
        # Without the right to see all, Cinder passes `all_tenants` over in silence. Some hundred of
        # the newest may all be ours, and then some of the oldest are not
        for order in ("desc", "asc"):
            async for volume in self._seen(100, parse.volume, order):
                if volume.project_id and volume.project_id != project_id:
                    return volume.id
        return ""

    async def notes_downloads(self) -> bool:
        # The newest of all projects, as far as this login sees them
        # One image could have the property by itself: Cinder copies it to all volumes of it
        noted = set[str | None]()
        async for volume in self._seen(500, parse.whole_volume, "desc"):
            if volume.downloaded:
                noted.add(volume.image_properties.get("image_id"))
            if len(noted) > 1:
                return True
        return False

    async def create_volume(self, new: NewVolume) -> Volume:
        body: dict[str, object] = {
            "name": new.name,
            "size": new.size,
            "metadata": dict(new.metadata),
        }
        more = {
            "volume_type": new.volume_type,
            "imageRef": new.image_id,
            "source_volid": new.source_volid,
            "availability_zone": new.availability_zone,
        }
        body |= {name: value for name, value in more.items() if value}
        answer = await self._write("block-storage", "POST", "/volumes", {"volume": body})
        return parse.parsed("block-storage", lambda made: parse.volume(made["volume"]), answer)

    async def delete_volume(self, volume_id: str) -> None:
        await self._write("block-storage", "DELETE", f"/volumes/{volume_id}")

    async def set_metadata(
        self, volume_id: str, metadata: Mapping[str, str], *, drop: Iterable[str] = ()
    ) -> None:
        url, body = f"/volumes/{volume_id}/metadata", {"metadata": dict(metadata)}
        for name in sorted(drop):
            await self._drop(url, name)
        answer = await self._write("block-storage", "POST", url, body)
        shown = answer.get("metadata") if isinstance(answer, dict) else None
        if not isinstance(shown, dict):
            return
        # Two writes at once can leave two rows of one key. From then on Cinder writes the first and
        # shows the other.
        if doubled := [name for name, value in metadata.items() if shown.get(name, value) != value]:
            log.info("metadata_doubled", volume_id=volume_id, names=doubled)
            for name in doubled:
                await self._drop(url, name)
            await self._write("block-storage", "POST", url, body)

    async def _drop(self, url: str, name: str) -> None:
        with contextlib.suppress(NotFound):
            # Users choose the names of what they write: `..` in one would lead elsewhere
            await self._write("block-storage", "DELETE", f"{url}/{quote(name, safe='')}")

    async def set_readonly(self, volume_id: str) -> None:
        body = {"os-update_readonly_flag": {"readonly": True}}
        await self._write("block-storage", "POST", f"/volumes/{volume_id}/action", body)

    async def get_quota(self, volume_type: str) -> Quota:
        limits = await self.limits()

        def left(name: str) -> int | None:
            # A type has limits of its own besides those of the project
            given = (limits[one].left for one in (name, f"{name}_{volume_type}") if one in limits)
            least = min(given, default=math.inf)
            return None if least == math.inf else int(least)

        return Quota(
            volumes=left("volumes"),
            gigabytes=left("gigabytes"),
            per_volume=left("per_volume_gigabytes"),
        )

    async def limits(self) -> Mapping[str, Limit]:
        """Return the internal project's limits by name: `volumes`, `gigabytes_<type>` and so on."""
        project_id = await self._own_project()

        def limits(answer: Any) -> Mapping[str, Limit]:
            rows = answer["quota_set"].items()
            return {name: Limit.from_api(row) for name, row in rows if name != "id"}

        return await self._read("block-storage", f"/os-quota-sets/{project_id}?usage=True", limits)

    async def describe_volume_types(self) -> tuple[VolumeType, ...]:
        return await self._read(
            "block-storage",
            "/types?is_public=None",
            parse.each("volume_types", VolumeType.from_api),
        )

    async def encrypts(self, type_id: str) -> bool:
        """Whether volumes of a type are encrypted; an administrator's call."""
        path = f"/types/{type_id}/encryption"
        return await self._read("block-storage", path, lambda answer: bool(answer.get("provider")))

    async def create_private_type(self, name: str, specs: Mapping[str, str]) -> None:
        body = {
            "name": name,
            "description": (
                "Leads to one pool, for Image-Volumes there. Made and deleted by "
                "image-volume-worker."
            ),
            "os-volume-type-access:is_public": False,
            "extra_specs": dict(specs),
        }
        await self._write("block-storage", "POST", "/types", {"volume_type": body})

    async def delete_volume_type(self, type_id: str) -> None:
        await self._write("block-storage", "DELETE", f"/types/{type_id}")

    async def list_pools(self) -> tuple[Pool, ...]:
        path = "/scheduler-stats/get_pools?detail=true"
        pools: tuple[Pool, ...] = await self._read(
            "block-storage", path, parse.each("pools", Pool.from_api)
        )
        try:
            zones = await self._read(
                "block-storage", "/os-services?binary=cinder-volume", parse.zones
            )
        except Blocked:
            return pools
        return tuple(replace(pool, zone=zones.get(pool.backend, "")) for pool in pools)

    async def list_services(self) -> tuple[Service, ...]:
        """Return Cinder's services; an administrator's call."""
        return await self._read(
            "block-storage", "/os-services", parse.each("services", Service.from_api)
        )

    async def list_down(self) -> frozenset[str]:
        services = await self._read(
            "block-storage",
            "/os-services?binary=cinder-volume",
            parse.each("services", Service.from_api),
            microversion=WITH_CLUSTER,
        )
        # Volumes of an active-active service have its cluster's name, and any of its hosts serves
        # them
        up = {one.cluster or one.host for one in services if one.up}
        return frozenset(one.cluster or one.host for one in services) - up

    async def list_zones(self) -> frozenset[str]:
        """Return the availability zones for volumes that are available."""

        def available(answer: Any) -> frozenset[str]:
            rows = parse.rows(answer, "availabilityZoneInfo")
            return frozenset(str(row["zoneName"]) for row in rows if row["zoneState"]["available"])

        return await self._read("block-storage", "/os-availability-zone", available)

    async def volume_api_version(self) -> tuple[int, ...]:
        """Return the newest microversion of the block storage API, as (3, 71); empty if it names
        none."""

        def ask() -> tuple[int, ...]:
            data = self._connection.block_storage.get_endpoint_data()
            return tuple(int(number) for number in (data and data.max_microversion) or ())

        return await self._guarded("block-storage", "GET", ask)

    def _seen(
        self, number: int, as_volume: Callable[[Mapping[str, Any]], Volume], order: str
    ) -> AsyncIterator[Volume]:
        """Yield this many volumes of all projects, as far as this login sees them: the newest with
        `desc`, the oldest with `asc`."""
        query = {"all_tenants": "1", "sort": f"created_at:{order}"}
        return first(number, self._volumes(query, as_volume, most=number, past=self._past))

    def _volumes(
        self,
        query: Mapping[str, str],
        as_volume: Callable[[Mapping[str, Any]], Volume] = parse.volume,
        *,
        most: int = PAGE,
        past: Callable[[str], Awaitable[str | None]] | None = None,
    ) -> AsyncIterator[Volume]:
        """Yield the volumes of our own project; even for the role admin Cinder lists others only
        on request."""
        return self._pages(
            "block-storage",
            f"/volumes/detail?{urlencode(query)}",
            "volumes",
            as_volume,
            _following,
            most=most,
            past=past,
            microversion=WITH_CLUSTER,
        )

    async def _past(self, url: str) -> str | None:
        """Return the next page after this one of one volume, which is too large: Cinder limits
        neither the number of a volume's image metadata nor their size together.

        Without details it is small. Only for listings that may lack a volume: a search by name
        would find nothing, and things are made for not being there.
        """
        brief = url.replace("/volumes/detail?", "/volumes?", 1)
        return await self._read("block-storage", brief, lambda page: parse.link(_following(page)))


def _following(page: Any) -> str | None:
    """Return the next page of volumes."""
    links = [link["href"] for link in page.get("volumes_links", ()) if link.get("rel") == "next"]
    # Cinder's link may name an endpoint that only it knows (public_endpoint): keep ours, take its
    # query
    return f"/volumes/detail?{urlencode(parse_qsl(urlsplit(links[0]).query))}" if links else None
