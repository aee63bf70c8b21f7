"""Ask a cloud everything at once. Each answer stands on its own, so that a failure hides no other.
Reads only."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Set
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

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
        ask(cloud.identity), ask(partial(cloud.clock, "keystone"))
    )
    if isinstance(identity, Untold):
        return Facts(identity=identity, clocks={"keystone": keystone})

    async def volumes() -> tuple[Volume, ...]:
        return tuple([volume async for volume in cloud.list_volumes()])

    # By the names that the answers have in Facts
    questions: Mapping[str, Callable[[], Awaitable[Any]]] = {
        "login": cloud.login,
        "image_api": cloud.image_api_version,
        "stores": cloud.list_stores,
        "methods": cloud.import_methods,
        "images": cloud.newest_images,
        "volume_api": cloud.volume_api_version,
        "types": cloud.describe_volume_types,
        "pools": cloud.list_pools,
        "services": cloud.list_services,
        "zones": cloud.list_zones,
        "limits": cloud.limits,
        "volume_witness": cloud.find_volume_witness,
        "witness": cloud.find_witness,
        "volumes": volumes,
    }
    glance, cinder, *found = await asyncio.gather(
        ask(partial(cloud.clock, "image")),
        ask(partial(cloud.clock, "block-storage")),
        *map(ask, questions.values()),
    )
    answers: Mapping[str, Any] = dict(zip(questions, found, strict=True))
    facts = Facts(
        identity=identity,
        clocks={"keystone": keystone, "glance": glance, "cinder": cinder},
        **answers,
    )
    located, kept, encrypted = await asyncio.gather(
        _located(cloud, facts.images),
        _kept(cloud, facts.images, facts.stores),
        _encrypted(cloud, facts.types, {target.volume_type for target in settings.targets}),
    )
    return replace(facts, located=located, kept=kept, encrypted=encrypted)


async def _located(
    cloud: OpenStackCloud, images: tuple[Shown, ...] | Untold
) -> tuple[Location, ...] | Untold | None:
    """Where an image's data lies; None if there is no image that could be asked about."""
    if isinstance(images, Untold):
        return images
    for image in [image for image in images if image.status == "active"][:FOLLOWED]:
        answer = await ask(partial(cloud.read_locations, image.id))
        # Deleted meanwhile, or a Glance before 2.17
        if not (isinstance(answer, Untold) and answer.missing):
            return answer
    return None


async def _kept(
    cloud: OpenStackCloud, images: tuple[Shown, ...] | Untold, stores: tuple[Store, ...] | Untold
) -> Mapping[str, tuple[Volume | Untold, ...]]:
    """Volumes that each cinder store keeps the newest images in."""
    if isinstance(images, Untold) or isinstance(stores, Untold):
        return {}
    cinders = [store.id for store in stores if store.type == "cinder"]
    found = await asyncio.gather(*(_kept_in(cloud, images, store) for store in cinders))
    return dict(zip(cinders, found, strict=True))


async def _kept_in(
    cloud: OpenStackCloud, images: tuple[Shown, ...], store: str
) -> tuple[Volume | Untold, ...]:
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


async def _encrypted(
    cloud: OpenStackCloud, types: tuple[VolumeType, ...] | Untold, wanted: Set[str]
) -> Mapping[str, bool | Untold]:
    """Whether the wanted volume types are encrypted, by name."""
    if isinstance(types, Untold):
        return {}
    named = [one for one in types if one.name in wanted]
    answers = await asyncio.gather(*(ask(partial(cloud.encrypts, one.id)) for one in named))
    return {one.name: answer for one, answer in zip(named, answers, strict=True)}


def decided(target: Target, stores: tuple[Store, ...] | Untold) -> Target | str:
    """The target with its strategy and store, or why it can't have them."""
    if isinstance(stores, Untold):
        return target
    try:
        return resolve(target, stores)
    except Blocked as error:
        return str(error)
