"""Checks of the pools that targets lead to, of arrays that clone across them, and of room. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from handlers import marks
from handlers.prewarm.placing import NO_WAY
from worker.core.cloud import Volume
from worker.core.pool import BACKEND, Pool, VolumeType, places_of, pools_of
from worker.core.target import Target
from worker.diagnose.check import Check
from worker.diagnose.doctor.facts import Facts
from worker.diagnose.doctor.untold import ADMINS, SEE, Untold, untold

LITTLE = 0.1
"""Part of a limit, or of a pool, below which it is time to do something."""


def pools(
    target: Target,
    volume_type: VolumeType,
    answer: tuple[Pool, ...] | Untold,
    volumes: tuple[Volume, ...] | Untold,
) -> Iterator[Check]:
    """The pools that the target's type leads to, how an image gets into each of them, and their
    room."""
    name = f"target {target.name} pools"
    if isinstance(answer, Untold):
        told = f"not told: {ADMINS}; where the type leads to several, the worker knows of one"
        yield Check(name, "skipped", told) if answer.refused else untold(name, answer, SEE)
        return
    leading = pools_of(volume_type, answer)
    if not leading:
        wanted = " and ".join(f"{key} {value}" for key, value in volume_type.specs.items())
        yield Check(
            name,
            "fail",
            f"no pool has {wanted or BACKEND}, which type {volume_type.name} wants",
            "correct the type's extra specs, or start that backend: openstack volume backend "
            "pool list --long",
        )
        return
    found = [pool for pool in leading if target.takes(pool.name)]
    if not found:
        told = (
            f"type {volume_type.name} leads to {_names(leading)}, and pools and exclude_pools "
            f"leave none of them"
        )
        yield Check(name, "fail", told, f"correct pools or exclude_pools in [target:{target.name}]")
        return
    yield _placed(name, volume_type, found, answer)
    yield room(target, found, volumes)


def _placed(
    name: str, volume_type: VolumeType, found: list[Pool], answer: tuple[Pool, ...]
) -> Check:
    """Whether the worker can choose each pool, where there are several."""
    places = places_of(found, answer)
    if len(places) == 1:
        return Check(name, "ok", _names(found))
    closed = [place.name for place in places if not place.specs]
    told = (
        f"type {volume_type.name} leads to {len(places)} pools that do not clone from each "
        f"other: {_names(found)}"
    )
    if closed:
        return Check(
            name,
            "warn",
            f"{told}. {NO_WAY}: {', '.join(closed)}",
            f"have the driver report a pool_name, or give each backend a {BACKEND} of its own "
            f"and use <or> in the type",
        )
    return Check(name, "ok", f"{told}. The worker chooses each by a private volume type of its own")


def arrays(targets: tuple[Target, ...], facts: Facts) -> Iterator[Check]:
    """Which targets lead to several arrays that clone across their pools: Cinder does not tell
    those apart."""
    if isinstance(facts.pools, Untold) or isinstance(facts.types, Untold):
        return
    named = {one.name: one for one in facts.types}
    found: dict[str, list[str]] = {}
    for target in targets:
        leading = (
            pools_of(named[target.volume_type], facts.pools) if target.volume_type in named else ()
        )
        for array in sorted(
            {pool.backend for pool in leading if pool.clones_across and target.takes(pool.name)}
        ):
            found.setdefault(array, []).append(target.name)
    if len(found) > 1:
        told = "; ".join(f"{array} (target {', '.join(names)})" for array, names in found.items())
        yield Check(
            "arrays",
            "warn",
            f"these report clone_across_pools: {told}. Cinder may try to clone from one to another",
            "with strategy auto the worker has Glance keep images on the first of them only, and "
            "uses Cinder's "
            "image-volume cache on the others",
        )


def _names(found: Iterable[Pool]) -> str:
    return ", ".join(pool.name for pool in found)


def room(target: Target, matching: list[Pool], volumes: tuple[Volume, ...] | Untold) -> Check:
    """Whether what the budget allows fits on the pools."""
    name = f"target {target.name} room"
    rooms = [pool.room for pool in matching]
    if any(one is None for one in rooms):
        return Check(name, "skipped", "the driver does not tell")
    most = max((one for one in rooms if one is not None), default=0.0)
    told = "no bound" if math.isinf(most) else f"room for {most:.0f} GiB of volumes"
    advice = (
        "make room on the backend, or lower max_gigabytes, so that images are evicted "
        "before it is full"
    )
    if most < 1:
        return Check(name, "fail", told, advice)
    held = (
        ()
        if isinstance(volumes, Untold)
        else [one for one in volumes if marks.is_prewarmed(one, target)]
    )
    more = target.max_gigabytes - sum(volume.size for volume in held)
    if target.max_gigabytes and more > most:
        return Check(name, "warn", f"{told}, the budget would take {more} GiB more", advice)
    tight = [
        pool
        for pool in matching
        if pool.free is not None and pool.total and pool.free < pool.total * LITTLE
    ]
    if tight:
        told = ", ".join(
            f"{pool.name} has {pool.free:.0f} of {pool.total:.0f} GiB free" for pool in tight
        )
        return Check(
            name, "warn", told, "make room on the backend, or bound the target by max_gigabytes"
        )
    return Check(name, "ok", told)
