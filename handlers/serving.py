"""Serving: by which strategy one image is kept warm on one target. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from handlers import image_volume
from handlers.clone_path import Pool, is_native
from worker.core.cloud import Image, Store
from worker.core.learned import Learned, Stores
from worker.core.pool import Place
from worker.core.target import Target


def pool_of(target: Target, learned: Learned, place: Place | None = None, *, now: float) -> Pool:
    """The target as a pool, for `clone_path`, or one of its places."""
    # The one place of a target that is not spread is the target itself
    key = at(target, place).place if place and target.is_spread else target.place
    named = frozenset(frozenset({store}) for store in target.native_stores)
    return Pool(
        hosts=frozenset(place.hosts if place else ()),
        types=frozenset({target.volume_type}),
        native=named | learned.native(key, now=now),
    )


def at(target: Target, place: Place) -> Target:
    """The target as one of its places, which an entry of Cinder's image-volume cache serves."""
    return replace(
        target,
        strategy="cache",
        glance_store="",
        volume_type=image_volume.placing_type(place.name),
        availability_zone=place.zone or target.availability_zone,
        places=(place,),
        pool=place.name,
        narrowed=False,
        whole=target,
    )


def served(image: Image, target: Target, learned: Learned, *, now: float) -> Target:
    """The target as it serves this image: with strategy `auto` its format decides, and what Cinder
    clones by itself.

    Glance's stores, and Cinder's drivers by themselves, give clones of raw images only. Any other
    format is converted, and Cinder's image-volume cache keeps what came of it.
    """
    if target.automatic and not image_volume.is_raw(image):
        return replace(target, strategy="cache")
    if target.automatic and target.native_stores:
        return replace(target, strategy="native")
    places = target.places if target.is_spread else (None,)
    if target.strategy == "cache" and all(
        is_native(image, pool_of(target, learned, one, now=now)) for one in places
    ):
        return replace(target, strategy="native")
    return target


def unproven(
    image: Image, target: Target, learned: Learned, stores: Iterable[Store], *, now: float
) -> Stores | None:
    """The rbd stores that the image is in, if nobody knows whether Cinder clones it from there;
    else None.

    None too if it is in no such store. The empty set stands for the only store of a Glance that
    does not name it.
    """
    if target.strategy != "cache" or not image_volume.is_raw(image):
        return None
    rbd = frozenset(store.id for store in stores if store.type == "rbd") & (
        image.stores or frozenset()
    )
    possible = image.stores is None or rbd
    return rbd if possible and not learned.is_known(target.place, rbd, now=now) else None
