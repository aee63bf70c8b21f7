"""Values that only `doctor` reads of a cloud. No handler may depend on them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from worker.core.age import epoch

LOCATION_API = (2, 17)
"""Glance's first API version with POST /v2/images/{id}/locations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Our internal project, and the roles of our token."""

    project_id: str
    roles: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """The names of our user and project, for a person."""

    user: str
    project: str
    project_domain: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """How far a service's clock is ahead of ours, in seconds: somewhere from `least` to `most`.

    An answer names the whole second in which it was made, at some time between question and answer.
    """

    least: float
    most: float

    @property
    def skew(self) -> float:
        """Seconds that the clock is certainly ahead, negative if it is behind; 0 if it may be
        right."""
        return self.least if self.least > 0 else min(self.most, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """An image in a listing: whether Glance shows its locations (`locations`, `direct_url`), its
    stores, and when it was made, in epoch seconds."""

    id: str
    status: str
    owner: str
    locations: bool
    direct_url: bool
    stores: frozenset[str]
    created_epoch: float = 0.0

    @classmethod
    def from_api(cls, fields: Mapping[str, Any]) -> Shown:
        """Return the image of an entry of GET /v2/images."""
        return cls(
            id=fields["id"],
            status=fields["status"],
            owner=fields.get("owner") or "",
            locations="locations" in fields,
            direct_url="direct_url" in fields,
            stores=frozenset(str(fields.get("stores") or "").split(",")) - {""},
            created_epoch=epoch(str(fields.get("created_at") or "")),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A service of Cinder; `host` is `host@backend` of a cinder-volume, `cluster` the
    `cluster@backend` of an active-active one, "" if it is none or Cinder was not asked for it."""

    binary: str
    host: str
    up: bool
    enabled: bool
    cluster: str = ""

    @classmethod
    def from_api(cls, fields: Mapping[str, Any]) -> Service:
        """Return the service of an entry of GET /os-services."""
        return cls(
            binary=fields["binary"],
            host=fields["host"],
            cluster=fields.get("cluster") or "",
            up=fields.get("state") == "up",
            enabled=fields.get("status") == "enabled",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """One limit of a quota and its use; `limit` is -1 where there is none."""

    limit: int
    used: int

    @classmethod
    def from_api(cls, fields: Mapping[str, Any]) -> Limit:
        """Return the limit of an entry of GET /os-quota-sets/{project}?usage=True."""
        return cls(limit=int(fields["limit"]), used=int(fields["in_use"]) + int(fields["reserved"]))

    @property
    def left(self) -> float:
        """The part that is not used."""
        return math.inf if self.limit < 0 else self.limit - self.used
