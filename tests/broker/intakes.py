"""Intakes with the defaults of the options, which no constructor repeats."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from worker.broker.intake import RabbitIntake
from worker.broker.oslo import OsloIntake
from worker.broker.subscription import Subscription
from worker.settings.options import TABLE

DEFAULTS = {option.name: option.initial for option in TABLE if option.group == "notifications"}


def subscribed(exchanges: Iterable[str], **chosen: Any) -> Subscription:
    """A queue, and what goes into it."""
    names = ("queue", "queue_type", "topics", "priorities")
    limits = {name: DEFAULTS[f"queue_{name}"] for name in ("max_length", "expires")}
    defaults = {name: DEFAULTS[name] for name in names} | limits
    return Subscription(exchanges=tuple(exchanges), **defaults | chosen)


def rabbit_intake(**options: Any) -> RabbitIntake:
    """An intake of our own consumer."""
    subscription = _taken(options)
    return RabbitIntake(subscription=subscription, **{"prefetch": DEFAULTS["prefetch"]} | options)


def oslo_intake(**options: Any) -> OsloIntake:
    """An intake by oslo.messaging."""
    return OsloIntake(subscription=_taken(options), **options)


def _taken(options: dict[str, Any]) -> Subscription:
    names = {field.name for field in fields(Subscription)}
    return subscribed(**{name: options.pop(name) for name in names & {*options}})
