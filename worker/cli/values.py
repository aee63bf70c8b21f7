"""Values of the command line: parsing of ages, sizes and ids, and display of times."""

from __future__ import annotations

import argparse
import re
import time
from datetime import UTC, datetime
from typing import Any

from cliff.columns import FormattableColumn

from worker.core.notification import IMAGE_ID

SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
BYTES = {"": 1, "k": 1 << 10, "M": 1 << 20, "G": 1 << 30}


class Moment(FormattableColumn[Any]):
    """A time in epoch seconds (0 for none): how far away it is for people, ISO 8601 in UTC for
    programs."""

    def human_readable(self) -> str:
        """As `3 d ago` or `in 40 s`."""
        if not self._value:
            return ""
        away = self._value - time.time()
        return f"in {span(away)}" if away > 0 else f"{span(-away)} ago"

    def machine_readable(self) -> str:
        """As 2026-01-31T12:00:00Z."""
        return moment(self._value)

    def __lt__(self, other: object) -> bool:
        return isinstance(other, Moment) and self._value < other._value


def moment(epoch: float) -> str:
    """Return a time in epoch seconds as ISO 8601 in UTC; "" for 0."""
    return datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if epoch else ""


def span(seconds: float) -> str:
    """Return a duration in the largest unit that it fills twice, so that it is off by less than
    a third."""
    for unit in ("d", "h", "m"):
        if seconds >= 2 * SECONDS[unit]:
            return f"{seconds / SECONDS[unit]:.0f} {'min' if unit == 'm' else unit}"
    return f"{seconds:.0f} s"


def age(text: str) -> float:
    """Return the seconds in a text like 90s, 10m, 2h, 3d, or a plain number of seconds; a type
    for argparse."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not an age like 90s, 10m, 2h, 3d or 0")
    return float(found[1]) * SECONDS[found[2]]


def size(text: str) -> int:
    """Return the bytes in a text like 10k, 100M, 1G, or a plain number of bytes."""
    found = re.fullmatch(r"(\d+)([kMG]?)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size like 10k, 100M, 1G or 0")
    return int(found[1]) * BYTES[found[2]]


def count(text: str) -> int:
    """Return a number that is not below zero."""
    if not re.fullmatch(r"\d{1,18}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number like 0, 1, 100")
    return int(text)


def image_id(text: str) -> str:
    """Return the id of an image."""
    found = text.strip()
    if not IMAGE_ID.fullmatch(found):
        raise argparse.ArgumentTypeError(f"{text!r} is not the id of an image")
    return found
