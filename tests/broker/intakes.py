"""Intakes with the defaults of the options, which no constructor repeats."""

from __future__ import annotations

from typing import Any

from worker.broker.intake import RabbitIntake
from worker.broker.oslo import OsloIntake
from worker.settings.options import TABLE

DEFAULTS = {option.name: option.initial for option in TABLE if option.group == "notifications"}


def rabbit_intake(**options: Any) -> RabbitIntake:
    """An intake of our own consumer."""
    names = (
        "topics",
        "priorities",
        "queue",
        "queue_type",
        "queue_max_length",
        "queue_expires",
        "prefetch",
    )
    return RabbitIntake(**{name: DEFAULTS[name] for name in names} | options)


def oslo_intake(**options: Any) -> OsloIntake:
    """An intake by oslo.messaging."""
    defaults = {name: DEFAULTS[name] for name in ("topics", "priorities")}
    return OsloIntake(**defaults | {"pool": DEFAULTS["queue"]} | options)
