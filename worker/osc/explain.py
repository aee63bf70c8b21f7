"""Explain for any login: how Cinder would make a volume of an image, by what that login may see."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Iterator
from typing import Any, TypeVar

from handlers import image_volume
from handlers.clone_path import Download, Evidence, Pool, Unknown, clone_path, is_native
from handlers.reasons import WORDS, Reason
from worker.cli import names
from worker.core.cloud import Image, Location, Store, Volume
from worker.core.errors import Blocked, NotFound
from worker.core.plain import plain
from worker.core.pool import Pool as CinderPool
from worker.core.pool import VolumeType, places_of, pools_of
from worker.core.target import Uploads
from worker.openstack.cloud import OpenStackCloud

T = TypeVar("T")
TOLD = Uploads().status_property
"""The property in which the worker tells an owner what is in the way of an upload."""
FINDS_OUT = "openstack image volume probe finds out"
CERTAIN = frozenset({Reason.ENCRYPTED})
"""Reasons that the image itself shows to everybody."""


async def image_and_volumes(cloud: OpenStackCloud, text: str) -> tuple[Image, list[Volume]]:
    """An image, and its Image-Volumes of whatever project."""
    image = await cloud.get_image(await names.image_id(cloud, text))
    volumes = await cloud.find_all_volumes(image_volume.name_of(image.id))
    return image, [volume for volume in volumes if image_volume.is_of(volume, image)]


async def explained_for(cloud: OpenStackCloud, text: str, wanted: Iterable[str]) -> list[Any]:
    """Return the rows of an image by its id or name, of the wanted volume types or all."""
    image, volumes = await image_and_volumes(cloud, text)
    if image.status != "active":
        told = image.properties.get(TOLD, "")
        why = f"the image is {image.status}{': ' if told else ''}{told}"
        return [("", "", "none", plain(why), "")]
    project_id = (await cloud.identity()).project_id
    types = await types_of(cloud, wanted)
    stores = await _or_none(cloud.list_stores())
    return list(
        rows_of(
            image,
            types,
            pools=await _or_none(cloud.list_pools()),
            stores=stores or (),
            locations=await cloud.get_locations(image.id),
            volumes=volumes,
            project_id=project_id,
        )
    )


async def types_of(cloud: OpenStackCloud, wanted: Iterable[str]) -> list[VolumeType]:
    """The volume types that the login may use, or those that are wanted; NotFound if one is not
    there."""
    types = [
        one
        for one in await cloud.describe_volume_types()
        if not one.name.startswith(image_volume.PLACING)
    ]
    chosen = set(wanted)
    if missing := chosen - {one.name for one in types}:
        raise NotFound(f"no volume type {', '.join(map(repr, sorted(missing)))}")
    return [one for one in types if not chosen or one.name in chosen]


def rows_of(
    image: Image,
    types: Iterable[VolumeType],
    *,
    pools: tuple[CinderPool, ...] | None,
    stores: Iterable[Store],
    locations: tuple[Location, ...] | None,
    volumes: Iterable[Volume],
    project_id: str,
) -> Iterator[tuple[str, str, str, str, str]]:
    """Yield a row for each type and pool: what a volume would be, why, and what to do. Pure.

    `pools` is None for a login that may see neither pools nor Image-Volumes: each type is then
    taken to be one pool.
    """
    evidence = Evidence(locations=locations, volumes=tuple(volumes))
    rbd = frozenset(frozenset({store.id}) for store in stores if store.type == "rbd")
    for one in types:
        places = places_of(pools_of(one, pools), pools) if pools is not None else ()
        for hosts in [place.hosts for place in places] or [()]:
            pool = Pool(hosts=frozenset(hosts), types=frozenset({one.name}))
            path = clone_path(image, pool, evidence, project_id=project_id)
            where = plain(hosts[0]) if hosts else ""
            if not isinstance(path, Download):
                yield one.name, where, "clone", "", ""
            elif set(path.reasons) <= CERTAIN:
                yield one.name, where, "download", str(path), WORDS[path.reasons[-1]].advice
            elif is_native(image, Pool(native=rbd)):
                why = "Glance keeps it in Ceph: Cinder clones it where it has the same Ceph"
                yield one.name, where, "clone or download", why, FINDS_OUT
            elif pools is None:
                why = "this login sees neither locations nor Image-Volumes"
                yield one.name, where, "unknown", why, FINDS_OUT
            elif isinstance(path, Unknown):
                yield one.name, where, "unknown", str(path), FINDS_OUT
            else:
                yield one.name, where, "download", str(path), WORDS[path.reasons[-1]].advice


async def _or_none(answer: Awaitable[T]) -> T | None:
    """Return what an administrator sees; None for everybody else."""
    try:
        return await answer
    except (Blocked, NotFound):
        return None
