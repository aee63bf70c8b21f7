"""One thing that was looked at, and how it is; what `doctor` and `explain` answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Check:
    """What was looked at, how it is, and what to do about it ("" when nothing)."""

    name: str
    verdict: Verdict
    detail: str
    advice: str = ""
