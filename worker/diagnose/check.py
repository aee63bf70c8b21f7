"""One thing that was looked at, and how it is; what `doctor` and `explain` answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FAILED = 3
"""The exit status of a command when a check has failed."""
Verdict = Literal["ok", "skipped", "warn", "fail"]
"""`skipped`: it could not be looked at, which is no fault."""


@dataclass(frozen=True, slots=True)
class Check:
    """One check: its name, its verdict, the details, and what to do about it ("" for nothing).

    `awaits_job`: the worker has something to do about it.
    """

    name: str
    verdict: Verdict
    detail: str
    advice: str = ""
    awaits_job: bool = False
