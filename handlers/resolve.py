"""Resolve: a target with its strategy, its store and its places decided. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from worker.core.cloud import Store
from worker.core.errors import Blocked
from worker.core.notification import IMAGE_ID
from worker.core.pool import Place, Pool, VolumeType, places_of, pools_of
from worker.core.target import Target


def resolve(target: Target, stores: tuple[Store, ...]) -> Target:
    """The target with its strategy and store decided. Pure. Blocked if Glance has not what the
    target needs.

    `auto` is `store` where Glance has a cinder store of the target's volume type (or the operator
    names it), else `cache`, and may be another one for one image (`handlers.serving`). It is never
    `location`, which needs an option of Glance that lets readers see locations (OSSN-0090).
    """
    names = {store.id for store in stores}
    for option, wanted in (
        ("glance_store", (target.glance_store,)),
        ("native_stores", target.native_stores),
    ):
        if unknown := [store for store in wanted if store and store not in names]:
            raise Blocked(
                f"Glance has no store {unknown[0]}, which [target:{target.name}] {option} names"
            )
    named = next((store for store in stores if store.id == target.glance_store), None)
    if named and named.type not in ("cinder", ""):
        raise Blocked(
            f"Glance's store {named.id}, which [target:{target.name}] glance_store names, keeps no "
            f"volumes: it is of type {named.type}"
        )
    uses_store = target.strategy not in ("cache", "native")
    if named and uses_store and not _may_be(named.volume_type, target.volume_type):
        # Each copy would come out with that type, and be taken for one that somebody has retyped
        raise Blocked(
            f"Glance's store {named.id}, which [target:{target.name}] glance_store names, makes "
            f"volumes of type {named.volume_type}: set volume_type = {named.volume_type} and "
            f"volume_types = {target.volume_type} in this section, or name a store of type "
            f"{target.volume_type}"
        )
    found = [
        store.id
        for store in stores
        if store.type == "cinder" and store.volume_type == target.volume_type
    ]
    if len(found) > 1 and not target.glance_store and uses_store:
        # They may be another region's, whose volumes are not found here
        raise Blocked(
            f"Glance has several cinder stores of volume type {target.volume_type} "
            f"({', '.join(found)}): name the one "
            f"of this region as glance_store in [target:{target.name}]"
        )
    store = target.glance_store or (found[0] if found else "")
    strategy = target.strategy
    if strategy == "auto":
        if not store and any(not other.type for other in stores):
            raise Blocked(
                f"Glance does not tell the types of its stores: set strategy in "
                f"[target:{target.name}]"
            )
        strategy = "store" if store else "cache"
    if strategy == "native" and not target.native_stores:
        raise Blocked(f"[target:{target.name}] native_stores is empty: strategy native needs it")
    if strategy in ("store", "location") and not store:
        raise Blocked(
            f"Glance has no cinder store of volume type {target.volume_type}, target "
            f"{target.name} needs one"
        )
    return replace(
        target, strategy=strategy, glance_store=store, automatic=target.strategy == "auto"
    )


def _may_be(store_type: str, volume_type: str) -> bool:
    """Whether a store may make volumes of the type, as far as Glance tells: its administrator names
    it by name or by id, which has the form of an image's."""
    return store_type in ("", volume_type) or bool(IMAGE_ID.fullmatch(store_type))


def missing_type(target: Target, types: Iterable[str]) -> str:
    """Reason why the target can't be used, if its volume type is not there; else "". Pure."""
    if target.volume_type in types:
        return ""
    names = ", ".join(sorted(types)) or "none"
    return (
        f"[target:{target.name}] volume_type: Cinder has no type {target.volume_type!r}, only "
        f"{names}; "
        "it was renamed or deleted, or never there"
    )


def find_places(
    target: Target, types: Iterable[VolumeType], pools: tuple[Pool, ...]
) -> tuple[Place, ...]:
    """The places where volumes of the target come to lie, as far as Cinder tells. Pure."""
    found = next((one for one in types if one.name == target.volume_type), None)
    lead = pools_of(found, pools) if found else ()
    zones = found.zones if found else frozenset()
    if target.availability_zone:
        zones = frozenset({target.availability_zone})
    taken = (pool for pool in lead if target.takes(pool.name))
    return places_of(
        [pool for pool in taken if not (zones and pool.zone) or pool.zone in zones], pools
    )


def is_narrowed(target: Target, types: Iterable[VolumeType], pools: tuple[Pool, ...]) -> bool:
    """Whether the target's volume type leads to pools that the target does not take. Pure."""
    found = next((one for one in types if one.name == target.volume_type), None)
    return any(not target.takes(pool.name) for pool in (pools_of(found, pools) if found else ()))


def arrays_of(target: Target) -> frozenset[str]:
    """The arrays that the target leads to which clone across their pools."""
    return frozenset(place.array for place in target.places) - {""}
