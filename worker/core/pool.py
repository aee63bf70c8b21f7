"""Volume types and pools as Cinder's scheduler sees them, and which type leads to which pools."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


def _is_true(text: Any) -> bool:
    # It compiles some hundred expressions when it is imported, which no other spec needs
    from oslo_utils import strutils  # noqa: PLC0415

    return bool(strutils.bool_from_string(text))


BACKEND = "volume_backend_name"
SCOPE = "capabilities:"
ZONES = "RESKEY:availability_zones"
# Longer values are refused
LONGEST = 255
OPERATORS: Mapping[str, Callable[[Any, str], bool]] = {
    "=": lambda value, wanted: float(value) >= float(wanted),
    "==": lambda value, wanted: float(value) == float(wanted),
    "!=": lambda value, wanted: float(value) != float(wanted),
    ">=": lambda value, wanted: float(value) >= float(wanted),
    "<=": lambda value, wanted: float(value) <= float(wanted),
    "<in>": lambda value, wanted: wanted in value,
    "<is>": lambda value, wanted: _is_true(value) is _is_true(wanted),
    "s==": operator.eq,
    "s!=": operator.ne,
    "s<": operator.lt,
    "s<=": operator.le,
    "s>": operator.gt,
    "s>=": operator.ge,
}
# By which a pool can be told from all others. LVM reports `pool_name` alike on all hosts, the other
# one not
TELLING = ("pool_name", "location_info")


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeType:
    """A volume type. `specs` are its extra specs, or those of them that we may see; `public` tells
    that every project may use it."""

    id: str
    name: str
    specs: Mapping[str, str] = field(default_factory=dict)
    public: bool = True

    @property
    def zones(self) -> frozenset[str]:
        """The availability zones that the type is limited to; empty for all
        (availability_zone_filter.py)."""
        return frozenset(name.strip() for name in self.specs.get(ZONES, "").split(",")) - {""}

    @classmethod
    def from_api(cls, fields: Mapping[str, Any]) -> VolumeType:
        """The type of an entry of GET /types."""
        specs = fields.get("extra_specs") or {}
        return cls(
            id=fields["id"],
            name=fields["name"],
            specs={key: str(value) for key, value in specs.items()},
            public=fields.get("is_public") is not False,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """A pool of a backend; `name` is host@backend#pool. GiB; None where the driver does not know,
    infinite where it says so. `capabilities` is all that the driver reports, `zone` its
    availability zone, "" if we may not see that.

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
    zone: str = ""
    capabilities: Mapping[str, Any] = field(default_factory=dict)

    @property
    def backend(self) -> str:
        """host@backend."""
        return self.name.partition("#")[0]

    @classmethod
    def from_api(cls, fields: Mapping[str, Any]) -> Pool:
        """The pool of an entry of GET /scheduler-stats/get_pools?detail=true."""
        told = fields["capabilities"]
        return cls(
            name=str(fields["name"]),
            backend_name=str(told.get("volume_backend_name") or ""),
            free=_gigabytes(told.get("free_capacity_gb")),
            total=_gigabytes(told.get("total_capacity_gb")),
            thin=told.get("thin_provisioning_support") is True,
            ratio=_gigabytes(told.get("max_over_subscription_ratio")) or 1.0,
            provisioned=_gigabytes(
                told.get("provisioned_capacity_gb", told.get("allocated_capacity_gb"))
            ),
            reserved=_gigabytes(told.get("reserved_percentage")) or 0.0,
            clones_across=told.get("clone_across_pools") is True,
            capabilities=told,
        )

    @property
    def room(self) -> float | None:
        """GiB of volumes that Cinder's scheduler would still put there."""
        if (
            self.free is None
            or math.isinf(self.free)
            or self.total is None
            or math.isinf(self.total)
        ):
            return self.free
        free = self.free - self.total * self.reserved / 100
        if not self.thin:
            return free
        left = math.inf if self.provisioned is None else self.total * self.ratio - self.provisioned
        return min(free * self.ratio, left)


@dataclass(frozen=True, slots=True)
class Place:
    """Pools that one Image-Volume serves: `hosts` is one host@backend#pool, or several of an array
    that clones across.

    `specs` are extra specs of a volume type that leads there and nowhere else; empty where there
    are none such. `array` is the backend that clones across its pools, "" for a pool that does not.
    """

    hosts: tuple[str, ...]
    specs: tuple[tuple[str, str], ...] = ()
    zone: str = ""
    array: str = ""

    @property
    def name(self) -> str:
        """The pool to put an Image-Volume into."""
        return self.hosts[0]


def pool_of_notification(host: str, names: Iterable[str]) -> str:
    """Return which of these pools a notification means by its `host`; "" if none or several may be
    meant.

    Notifications have the host of an active-active service, where pools have its cluster's name.
    """
    known = set(names)
    if host in known:
        return host
    _, at, backend = host.partition("@")
    alike = [name for name in known if at and name.endswith(at + backend)]
    return alike[0] if len(alike) == 1 else ""


def places_of(found: Iterable[Pool], pools: Iterable[Pool]) -> tuple[Place, ...]:
    """The places that these pools make up, of all `pools` there are.

    Pools of a backend that clones across them are one place; those of two backends never are, even
    if both do so.
    """
    everywhere = tuple(pools)
    groups: dict[str, list[Pool]] = {}
    for pool in found:
        groups.setdefault(pool.backend if pool.clones_across else pool.name, []).append(pool)
    return tuple(
        Place(
            hosts=tuple(pool.name for pool in group),
            specs=_only(group[0], everywhere),
            zone=group[0].zone,
            array=group[0].backend if group[0].clones_across else "",
        )
        for group in groups.values()
    )


def _only(pool: Pool, pools: tuple[Pool, ...]) -> tuple[tuple[str, str], ...]:
    """Extra specs that lead to this pool and to no other one; empty if there are none."""
    told = {BACKEND: pool.backend_name, **{name: pool.capabilities.get(name) for name in TELLING}}
    # All of them: hosts may come that are called alike
    specs = {
        name: value
        for name, value in told.items()
        if isinstance(value, str) and 0 < len(value) <= LONGEST
    }
    only = pools_of(VolumeType(id="", name="", specs=specs), pools) == (pool,) if specs else False
    return tuple(specs.items()) if only else ()


def pools_of(volume_type: VolumeType, pools: Iterable[Pool]) -> tuple[Pool, ...]:
    """The pools in which Cinder's scheduler puts volumes of the type, by name.

    Source: cinder/scheduler/filters/capabilities_filter.py. An extra spec of another scope says
    nothing to it.
    """
    wanted = {
        name: value
        for name, value in volume_type.specs.items()
        if ":" not in name or name.startswith(SCOPE)
    }
    found = (one for one in pools if all(_has(one, name, value) for name, value in wanted.items()))
    return tuple(sorted(found, key=lambda pool: pool.name))


def _has(pool: Pool, name: str, wanted: str) -> bool:
    value: Any = {BACKEND: pool.backend_name, **pool.capabilities}
    for part in name.removeprefix(SCOPE).split(":"):
        if not isinstance(value, Mapping) or part not in value:
            return False
        value = value[part]
    return any(matches(one, wanted) for one in (value if isinstance(value, list) else [value]))


def matches(value: Any, wanted: str) -> bool:
    """Whether a pool's value is the one that an extra spec wants
    (cinder/scheduler/filters/extra_specs_ops.py)."""
    words = wanted.split()
    compare = OPERATORS.get(words[0]) if words else None
    if words and words[0] == "<or>":
        return value in words[1::2]
    if compare is None:
        return bool(value == wanted)
    try:
        return value is not None and len(words) > 1 and compare(value, words[1])
    except (TypeError, ValueError):
        # Cinder's scheduler fails at the first of them
        return False


def _gigabytes(value: object) -> float | None:
    """A number as drivers report it: some say "infinite" or "unknown", some send text."""
    if str(value).lower() == "infinite":
        return math.inf
    try:
        return float(str(value))
    except ValueError:
        return None
