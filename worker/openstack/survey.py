"""Values that `doctor` reads of a cloud besides those of the handlers. No handler may rest on these."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

UNLIMITED = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """Names of what we are logged in as, for a person."""

    user: str
    project: str
    project_domain: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """How far a service's clock is ahead of ours, in seconds: somewhere from `least` to `most`.

    An answer tells the whole second in which it was made, and was made at some time between question and answer.
    """

    least: float
    most: float

    @property
    def skew(self) -> float:
        """Seconds that it is ahead for certain, negative if it is behind; 0 if it may be right."""
        return self.least if self.least > 0 else min(self.most, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """An image in a listing: whether Glance shows where its data lies (`locations`, `direct_url`), and its stores."""

    id: str
    status: str
    owner: str
    locations: bool
    direct_url: bool
    stores: frozenset[str]

    @classmethod
    def from_api(cls, fields: Mapping[str, Any]) -> Shown:
        """The image of an entry of GET /v2/images."""
        return cls(
            id=fields["id"],
            status=fields["status"],
            owner=fields.get("owner") or "",
            locations="locations" in fields,
            direct_url="direct_url" in fields,
            stores=frozenset(str(fields.get("stores") or "").split(",")) - {""},
        )


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
    """A pool of a backend. GiB; None where the driver does not know, infinite where it says so.

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A service of Cinder; `host` is `host@backend` of a cinder-volume."""

    binary: str
    host: str
    up: bool
    enabled: bool

    @classmethod
    def from_api(cls, fields: Mapping[str, Any]) -> Service:
        """The service of an entry of GET /os-services."""
        return cls(
            binary=fields["binary"],
            host=fields["host"],
            up=fields.get("state") == "up",
            enabled=fields.get("status") == "enabled",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """One limit of a quota and what is used of it; `limit` is UNLIMITED where there is none."""

    limit: int
    used: int

    @classmethod
    def from_api(cls, fields: Mapping[str, Any]) -> Limit:
        """The limit of an entry of GET /os-quota-sets/{project}?usage=True."""
        return cls(limit=int(fields["limit"]), used=int(fields["in_use"]) + int(fields["reserved"]))

    @property
    def left(self) -> float:
        """The part that is not used."""
        return math.inf if self.limit < 0 else self.limit - self.used


def _gigabytes(value: object) -> float | None:
    """A number as drivers report it: some say "infinite" or "unknown", some send text."""
    if str(value).lower() == "infinite":
        return math.inf
    try:
        return float(str(value))
    except ValueError:
        return None
