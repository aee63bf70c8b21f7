"""Volume types and pools as Cinder's scheduler sees them, and which type leads to which pools."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

BACKEND = "volume_backend_name"
POOL = "pool_name"


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeType:
    """A volume type. `specs` are its extra specs, or those of them that we may see."""

    id: str
    name: str
    specs: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_api(cls, fields: Mapping[str, Any]) -> VolumeType:
        """The type of an entry of GET /types."""
        specs = fields.get("extra_specs") or {}
        return cls(id=fields["id"], name=fields["name"], specs={key: str(value) for key, value in specs.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """A pool of a backend; `name` is host@backend#pool. GiB; None where the driver does not know, infinite where it
    says so. `capabilities` is all that the driver reports.

    Source: cinder/scheduler/filters/capacity_filter.py for `room`.
    """

    name: str
    backend_name: str
    free: float | None = None
    total: float | None = None
    thin: bool = False
    ratio: float = 1.0
    provisioned: float | None = None
    reserved: float = 0.0
    clones_across: bool = False
    capabilities: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_api(cls, fields: Mapping[str, Any]) -> Pool:
        """The pool of an entry of GET /scheduler-stats/get_pools?detail=true."""
        told = fields["capabilities"]
        return cls(
            name=fields["name"],
            backend_name=str(told.get("volume_backend_name") or ""),
            free=_gigabytes(told.get("free_capacity_gb")),
            total=_gigabytes(told.get("total_capacity_gb")),
            thin=told.get("thin_provisioning_support") is True,
            ratio=_gigabytes(told.get("max_over_subscription_ratio")) or 1.0,
            provisioned=_gigabytes(told.get("provisioned_capacity_gb", told.get("allocated_capacity_gb"))),
            reserved=_gigabytes(told.get("reserved_percentage")) or 0.0,
            clones_across=told.get("clone_across_pools") is True,
            capabilities=told,
        )

    @property
    def room(self) -> float | None:
        """GiB of volumes that Cinder's scheduler would still put there."""
        if self.free is None or math.isinf(self.free) or self.total is None or math.isinf(self.total):
            return self.free
        free = self.free - self.total * self.reserved / 100
        if not self.thin:
            return free
        left = math.inf if self.provisioned is None else self.total * self.ratio - self.provisioned
        return min(free * self.ratio, left)


@dataclass(frozen=True, slots=True)
class Place:
    """Pools that one Image-Volume serves: `hosts` is one host@backend#pool, or several of an array that clones across.

    `specs` are extra specs of a volume type that leads there and nowhere else; empty where there are none such.
    """

    hosts: tuple[str, ...]
    specs: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """The pool to put an Image-Volume into."""
        return self.hosts[0]


def places_of(found: Iterable[Pool], pools: Iterable[Pool]) -> tuple[Place, ...]:
    """The places that these pools make up, of all `pools` there are.

    Pools of a backend that clones across them are one place; those of two backends never are, even if both do so.
    """
    everywhere = tuple(pools)
    groups: dict[str, list[Pool]] = {}
    for pool in found:
        groups.setdefault(pool.name.partition("#")[0] if pool.clones_across else pool.name, []).append(pool)
    return tuple(Place(tuple(pool.name for pool in group), _only(group[0], everywhere)) for group in groups.values())


def _only(pool: Pool, pools: tuple[Pool, ...]) -> tuple[tuple[str, str], ...]:
    """Extra specs that lead to this pool and to no other one; empty if there are none."""
    specs = {BACKEND: pool.backend_name} | ({POOL: str(name)} if (name := pool.capabilities.get(POOL)) else {})
    only = VolumeType(id="", name="", specs=specs)
    return tuple(specs.items()) if pool.backend_name and pools_of(only, pools) == (pool,) else ()


def pools_of(volume_type: VolumeType, pools: Iterable[Pool]) -> tuple[Pool, ...]:
    """The pools in which Cinder's scheduler puts volumes of the type, by name.

    Source: cinder/scheduler/filters/capabilities_filter.py. An extra spec of another scope says nothing to it.
    """
    specs = {name.removeprefix("capabilities:"): value for name, value in volume_type.specs.items()}
    told = {name: value for name, value in specs.items() if ":" not in name}
    found = (one for one in pools if all(_has(one, name, wanted) for name, wanted in told.items()))
    return tuple(sorted(found, key=lambda pool: pool.name))


def _has(pool: Pool, name: str, wanted: str) -> bool:
    value = pool.backend_name if name == BACKEND else pool.capabilities.get(name)
    return value is not None and matches(value, wanted)


def matches(value: object, wanted: str) -> bool:
    """Whether a pool's value is the one that an extra spec wants (cinder/scheduler/filters/extra_specs_ops.py)."""
    text, words = str(value), wanted.split()
    match words:
        case ["<or>", *_]:
            return text in wanted.replace("<or>", " ").split()
        case ["<in>", part]:
            return part in text
        case ["<is>", truth]:
            return text.lower() == truth.lower()
        case ["s==", other]:
            return text == other
        case ["s!=", other]:
            return text != other
        case _:
            return text == wanted


def _gigabytes(value: object) -> float | None:
    """A number as drivers report it: some say "infinite" or "unknown", some send text."""
    if str(value).lower() == "infinite":
        return math.inf
    try:
        return float(str(value))
    except ValueError:
        return None
