"""An answer that could not be had, as a value: a service that fails must not hide what others
say."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from worker.core.errors import Blocked, Malformed, NotFound, Temporary
from worker.diagnose.check import Check, Verdict

T = TypeVar("T")

SEE = "see cinder"
ADMINS = "only an administrator may see this"


@dataclass(frozen=True, slots=True, kw_only=True)
class Untold:
    """Why there is no answer: `refused` to us, `missing` as there is no such thing, `skipped` as
    nobody asked."""

    reason: str
    refused: bool = False
    missing: bool = False
    skipped: bool = False


async def ask(call: Callable[[], Awaitable[T]], *, within: float | None = None) -> T | Untold:
    """Return the call's answer, or why there is none `within` so many seconds."""
    try:
        async with asyncio.timeout(within):
            return await call()
    except TimeoutError:
        return Untold(reason=f"no answer in {within:.0f} s")
    except (
        Exception
    ) as error:  # the root of a question: not even a bug in one may hide the answers to the others
        return _why(error)


def tell(call: Callable[[], T]) -> T | Untold:
    """The same of a call that blocks."""
    try:
        return call()
    except Exception as error:  # as above
        return _why(error)


def _why(error: Exception) -> Untold:
    match error:
        case Blocked():
            return Untold(reason=str(error), refused=True)
        case NotFound():
            return Untold(reason=str(error), missing=True)
        case Temporary() | Malformed():
            return Untold(reason=str(error))
        case _:
            return Untold(reason=f"doctor itself failed here, please report it: {error!r}")


def untold(name: str, answer: Untold, advice: str, *, verdict: Verdict = "warn") -> Check:
    """The check of what could not be looked at."""
    if answer.skipped:
        return Check(name, "warn", answer.reason, "see login")
    return Check(name, verdict, answer.reason, advice)
