"""Target stores: the store of Glance and the volume type of Cinder for each target, by both
services."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import replace

import structlog

from handlers import image_volume
from handlers.resolve import arrays_of, find_places, is_narrowed, missing_type, resolve
from worker.core.age import is_recent, lasts
from worker.core.cloud import Cloud, Store
from worker.core.errors import Blocked, NotFound, Temporary
from worker.core.handler import Parts
from worker.core.pool import Place, Pool, VolumeType, pools_of
from worker.core.target import Target
from worker.core.type_map import TypeMap

log = structlog.get_logger(__name__)

# Glance reads its stores from a file at start; an operator who adds one should not have to restart
# us, in seconds
KEEP = 600.0
# Seconds for which Glance's list of stores counts where a deletion or a refusal rests on it: an
# administrator may take a store out or put it back, and Glance is up again in a few seconds
LATELY = 1.0
# Other volume types that are looked at; more of them have no uses
MOST_TYPES = 200

# Whether volumes of a type are encrypted, by the type's name; None where Cinder does not tell us
Types = Mapping[str, bool | None]


async def read_encryption(cloud: Cloud, types: Mapping[str, str], wanted: Iterable[str]) -> Types:
    """Read whether volumes of the wanted types are encrypted. `types` are names by id; others are
    left out."""
    ids = {name: type_id for type_id, name in types.items()}

    async def encrypts(type_id: str) -> bool | None:
        try:
            return await cloud.encrypts(type_id)
        except (Blocked, NotFound):
            # An administrator's call. Without it each volume tells of itself, before it serves
            return None

    names = sorted(set(wanted) & ids.keys())
    return dict(
        zip(names, await asyncio.gather(*(encrypts(ids[name]) for name in names)), strict=True)
    )


async def read_pools(cloud: Cloud) -> tuple[Pool, ...] | None:
    """The pools that Cinder's scheduler knows; empty where it does not tell us, None where it does
    not answer.

    A scheduler that was started a moment ago answers with none.
    """
    try:
        return await cloud.list_pools()
    except (Blocked, NotFound) as error:
        log.debug("pools_unknown", error=str(error))
        return ()
    except Temporary as error:
        log.warning("pools_not_told", error=str(error))
        return None


async def read_down(cloud: Cloud) -> frozenset[str]:
    """The backends (host@backend) that are down; empty where Cinder does not tell us."""
    try:
        return await cloud.list_down()
    except (Blocked, NotFound):
        return frozenset()


class TargetStores:
    """The targets as Glance's list of stores and Cinder's of volume types decide them, looked up
    now and then."""

    def __init__(self, parts: Parts) -> None:
        self._cloud = parts.cloud
        self._targets = parts.targets
        self._now = parts.now
        self._stores: tuple[Store, ...] = ()
        self._until = 0.0
        self._types: Mapping[str, str] = {}
        self._places: Mapping[str, tuple[Place, ...]] = {}
        self._narrowed: frozenset[str] = frozenset()
        self._placing: Mapping[str, str] = {}
        self._encryption: Types = {}
        self._types_until = 0.0
        self._sharing = TypeMap()
        self._found_encrypted: dict[str, float] = {}
        self._down: tuple[float, frozenset[str]] = (0.0, frozenset())
        self._looking = asyncio.Lock()

    async def stores(self, *, within: float = KEEP) -> tuple[Store, ...]:
        """Glance's stores, as it told them so many seconds ago at most."""
        recent = is_recent(self._until - KEEP, self._now(), within)
        await self._refresh_stores(afresh=not recent)
        return self._stores

    async def down(self) -> frozenset[str]:
        """The backends (host@backend, or cluster@backend) that are down, as Cinder told a moment
        ago; empty where it does not tell us."""
        async with self._looking:
            at, down = self._down
            if not is_recent(at, self._now(), LATELY):
                down = await read_down(self._cloud)
                self._down = self._now(), down
            return down

    async def resolve(self, target: Target) -> Target:
        """The target with its strategy and store decided; Blocked as `resolve` says, and without
        its volume type."""
        await self._refresh()
        try:
            return self._resolve(target)
        except Blocked:
            await self.stores(within=LATELY)
            return self._resolve(target)

    async def known(self, target: Target) -> Target:
        """The target with as much decided as can be: as it is where the cloud has not what it
        needs."""
        try:
            return await self.resolve(target)
        except Blocked:
            return target

    async def missing_type(self, target: Target) -> str:
        """Reason why the target can't be used, if its volume type is not there; else ""."""
        await self._refresh()
        return missing_type(target, self._types.values())

    async def all(self, *, afresh: bool = False) -> tuple[Target, ...]:
        """All targets that can be had, decided; `afresh` by what the services say now."""
        await self._refresh(afresh=afresh)
        decided: list[Target] = []
        for target in self._targets:
            # One target that can't be had is no reason to do nothing for the others; its own jobs
            # say what it lacks
            with contextlib.suppress(Blocked):
                decided.append(self._resolve(target))
        return tuple(decided)

    def unusable(self) -> Mapping[str, str]:
        """Reasons why targets can't be used, by name; as of the last look at the services."""
        found: dict[str, str] = {}
        for target in self._targets if self._types_until else ():
            try:
                self._resolve(target)
            except Blocked as error:
                found[target.name] = str(error)
        return found

    def note_encrypted(self, target: Target) -> None:
        """Remember that a volume on the target came out encrypted, although Cinder does not tell so
        of its type."""
        self._found_encrypted[target.name] = self._now() + KEEP

    def _resolve(self, target: Target) -> Target:
        if why := missing_type(target, self._types.values()):
            raise Blocked(why)
        found = lasts(self._found_encrypted.get(target.name, 0.0), self._now(), KEEP)
        encrypted = found or self._encryption.get(target.volume_type) is True
        places = self._places.get(target.name, ())
        resolved = replace(
            resolve(target, self._stores),
            encrypted=encrypted,
            places=places,
            narrowed=target.name in self._narrowed,
        )
        # Cinder takes any of an image's locations that lie on arrays which clone across pools, also
        # on another array
        if resolved.automatic and resolved.strategy == "store" and not self._may_locate(resolved):
            return replace(resolved, strategy="cache")
        return resolved

    def _may_locate(self, target: Target) -> bool:
        """Whether images may have locations on the target: of arrays that clone across pools on the
        first target's."""
        own = arrays_of(target)
        for other in self._targets if own else ():
            with contextlib.suppress(Blocked):
                places = self._places.get(other.name, ())
                first = replace(resolve(other, self._stores), places=places)
                if first.strategy == "store" and (not places or arrays_of(first)):
                    # Of one whose pools are down it is not known; once images were copied here they
                    # would stay
                    return bool(arrays_of(first) & own)
        return True

    @property
    def types(self) -> Mapping[str, str]:
        """Names of the volume types by id; as of the last look at the services."""
        return self._types

    @property
    def placing(self) -> Mapping[str, str]:
        """Names by id of the volume types that the worker has made to choose a pool; as of the last
        look at the services."""
        return self._placing

    @property
    def sharing(self) -> TypeMap:
        """Which other types are served by what is kept warm on a target; as of the last look."""
        return self._sharing

    async def _refresh(self, *, afresh: bool = False) -> None:
        await self._refresh_stores(afresh=afresh)
        async with self._looking:
            if lasts(self._types_until, self._now(), KEEP) and not afresh:
                return
            described = await self._cloud.describe_volume_types()
            types = {one.id: one.name for one in described}
            self._placing = {one.id: one.name for one in described if image_volume.is_placing(one)}
            wanted = [target.volume_type for target in self._targets]
            self._encryption = await read_encryption(self._cloud, types, wanted)
            pools = await read_pools(self._cloud)
            if pools or (pools is not None and not self._places):
                self._places = {
                    one.name: find_places(one, described, pools) for one in self._targets
                }
                self._narrowed = frozenset(
                    one.name for one in self._targets if is_narrowed(one, described, pools)
                )
            self._sharing = await self._read_sharing(described, pools or ())
            self._types, self._types_until = types, self._now() + KEEP

    async def _read_sharing(
        self, described: Iterable[VolumeType], pools: tuple[Pool, ...]
    ) -> TypeMap:
        """Which other types are served by what is kept warm on a target: named ones, and those that
        lead to its pools. Not encrypted ones, of which Cinder makes no clones."""
        hosts = {
            host: name
            for name, places in tuple(self._places.items())[::-1]
            for place in places
            for host in place.hosts
        }
        own = {target.volume_type for target in self._targets}
        named = {name: target.name for target in self._targets for name in target.volume_types}
        others = [
            one
            for one in described
            if one.name not in own
            and not one.name.startswith(image_volume.PLACING)
            and (one.name in named or any(pool.name in hosts for pool in pools_of(one, pools)))
        ][:MOST_TYPES]
        encryption = await read_encryption(
            self._cloud, {one.id: one.name for one in others}, (one.name for one in others)
        )
        # A type of which Cinder does not tell us is served if an operator says so
        plain = [one for one in others if encryption.get(one.name) is False]
        told = {one.id: named[one.name] for one in others if one.name in named}
        encrypted = {one.id for one in others if encryption.get(one.name)}
        return TypeMap(
            types={type_id: name for type_id, name in told.items() if type_id not in encrypted},
            hosts=hosts,
            sharing=frozenset(one.id for one in plain),
        )

    async def _refresh_stores(self, *, afresh: bool = False) -> None:
        async with self._looking:
            if lasts(self._until, self._now(), KEEP) and not afresh:
                return
            self._stores = await self._cloud.list_stores()
            self._until = self._now() + KEEP
