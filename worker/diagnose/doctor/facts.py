"""Ask a cloud everything at once. Each answer stands on its own, so that a failure hides no other.
Reads only."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from handlers.resolve import resolve
from worker.core.cloud import Location, Store, Volume
from worker.core.errors import Blocked
from worker.core.pool import Pool, VolumeType
from worker.core.target import Target
from worker.diagnose.doctor import untold
from worker.diagnose.doctor.untold import Untold
from worker.openstack.survey import Clock, Identity, Limit, Login, Service, Shown
from worker.settings import Settings

if TYPE_CHECKING:
    from worker.openstack.cloud import OpenStackCloud

SERVICES = {"keystone": "keystone", "glance": "image", "cinder": "block-storage"}
# Images of each store that are followed to their volumes
FOLLOWED = 3
# Seconds that an answer may take, tries and all: some wait for Cinder's own broker
PATIENCE = 10.0

NO_LOGIN = Untold(reason="not looked at without a login", skipped=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """The answers, each as it is or why there is none.

    `located` has where the data of an image lies by the New Location API, None if there is no image
    to ask about; `kept` for each store some volumes that it keeps images in; `encrypted` and
    `volumes` are of targets.
    """

    identity: Identity | Untold
    login: Login | Untold = NO_LOGIN
    clocks: Mapping[str, Clock | Untold] = field(default_factory=dict)
    image_api: tuple[int, ...] | Untold = NO_LOGIN
    stores: tuple[Store, ...] | Untold = NO_LOGIN
    methods: frozenset[str] | Untold = NO_LOGIN
    images: tuple[Shown, ...] | Untold = NO_LOGIN
    located: tuple[Location, ...] | Untold | None = NO_LOGIN
    kept: Mapping[str, tuple[Volume | Untold, ...]] = field(default_factory=dict)
    volume_api: tuple[int, ...] | Untold = NO_LOGIN
    types: tuple[VolumeType, ...] | Untold = NO_LOGIN
    encrypted: Mapping[str, bool | Untold] = field(default_factory=dict)
    pools: tuple[Pool, ...] | Untold = NO_LOGIN
    services: tuple[Service, ...] | Untold = NO_LOGIN
    zones: frozenset[str] | Untold = NO_LOGIN
    limits: Mapping[str, Limit] | Untold = NO_LOGIN
    volume_witness: str | Untold = NO_LOGIN
    witness: str | Untold = NO_LOGIN
    volumes: tuple[Volume, ...] | Untold = NO_LOGIN


ask = partial(untold.ask, within=PATIENCE)


async def gather(cloud: OpenStackCloud, settings: Settings) -> Facts:
    """Ask for everything; without a login only for the time of day at Keystone."""
    identity, keystone = await asyncio.gather(
        ask(cloud.identity), ask(lambda: cloud.clock("keystone"))
    )
    if isinstance(identity, Untold):
        return Facts(identity=identity, clocks={"keystone": keystone})

    async def kept_and_located() -> tuple[
        tuple[Shown, ...] | Untold,
        tuple[Store, ...] | Untold,
        tuple[Location, ...] | Untold | None,
        Mapping[str, tuple[Volume | Untold, ...]],
    ]:
        images, stores = await asyncio.gather(ask(cloud.newest_images), ask(cloud.list_stores))
        if isinstance(images, Untold):
            return images, stores, images, {}
        located = await _located(cloud, images)
        cinders = (
            ()
            if isinstance(stores, Untold)
            else [store.id for store in stores if store.type == "cinder"]
        )
        found = await asyncio.gather(*(_kept(cloud, images, store) for store in cinders))
        return images, stores, located, dict(zip(cinders, found, strict=True))

    async def types_and_encrypted() -> tuple[
        tuple[VolumeType, ...] | Untold, Mapping[str, bool | Untold]
    ]:
        types = await ask(cloud.describe_volume_types)
        if isinstance(types, Untold):
            return types, {}
        wanted = {target.volume_type for target in settings.targets}
        named = [one for one in types if one.name in wanted]
        answers = await asyncio.gather(*(ask(partial(cloud.encrypts, one.id)) for one in named))
        return types, {one.name: answer for one, answer in zip(named, answers, strict=True)}

    async def volumes() -> tuple[Volume, ...]:
        return tuple([volume async for volume in cloud.list_volumes()])

    (
        (images, stores, located, kept),
        (types, encrypted),
        (glance, cinder),
        (login, image_api, methods, volume_api),
        (pools, services, zones),
        (limits, volume_witness, all_volumes, witness),
    ) = await asyncio.gather(
        kept_and_located(),
        types_and_encrypted(),
        asyncio.gather(
            ask(lambda: cloud.clock("image")), ask(lambda: cloud.clock("block-storage"))
        ),
        asyncio.gather(
            ask(cloud.login),
            ask(cloud.image_api_version),
            ask(cloud.import_methods),
            ask(cloud.volume_api_version),
        ),
        asyncio.gather(ask(cloud.list_pools), ask(cloud.list_services), ask(cloud.list_zones)),
        asyncio.gather(
            ask(cloud.limits), ask(cloud.find_volume_witness), ask(volumes), ask(cloud.find_witness)
        ),
    )
    return Facts(
        identity=identity,
        login=login,
        clocks={"keystone": keystone, "glance": glance, "cinder": cinder},
        image_api=image_api,
        stores=stores,
        methods=methods,
        images=images,
        located=located,
        kept=kept,
        volume_api=volume_api,
        types=types,
        encrypted=encrypted,
        pools=pools,
        services=services,
        zones=zones,
        limits=limits,
        volume_witness=volume_witness,
        witness=witness,
        volumes=all_volumes,
    )


async def _located(
    cloud: OpenStackCloud, images: tuple[Shown, ...]
) -> tuple[Location, ...] | Untold | None:
    """Where an image's data lies; None if there is no image that could be asked about."""
    for image in [image for image in images if image.status == "active"][:FOLLOWED]:
        answer = await ask(partial(cloud.read_locations, image.id))
        # Deleted meanwhile, or a Glance before 2.17
        if not (isinstance(answer, Untold) and answer.missing):
            return answer
    return None


async def _kept(
    cloud: OpenStackCloud, images: tuple[Shown, ...], store: str
) -> tuple[Volume | Untold, ...]:
    """Volumes that a store keeps the newest images in."""
    found: list[Volume | Untold] = []
    for image in [image for image in images if store in image.stores and image.status == "active"][
        :FOLLOWED
    ]:
        locations = await ask(partial(cloud.get_locations, image.id))
        if isinstance(locations, Untold):
            found.append(locations)
            continue
        ids = [
            location.volume_id
            for location in locations or ()
            if location.store == store and location.volume_id
        ]
        found += [await ask(partial(cloud.get_volume, volume_id)) for volume_id in ids]
    return tuple(found)


def decided(target: Target, stores: tuple[Store, ...] | Untold) -> Target | str:
    """The target with its strategy and store, or why it can't have them."""
    if isinstance(stores, Untold):
        return target
    try:
        return resolve(target, stores)
    except Blocked as error:
        return str(error)
