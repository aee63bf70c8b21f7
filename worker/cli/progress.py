"""Progress of a command, shown on a terminal; nothing in a pipe."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

from tqdm import tqdm

EVERY = 0.1


def bar(*, total: int | None, unit: str, **options: Any) -> tqdm[Any]:
    """Return a progress bar on standard error, which disappears at the end; silent unless that
    is a terminal."""
    return tqdm(total=total, unit=unit, disable=None, file=sys.stderr, leave=False, **options)


@contextlib.asynccontextmanager
async def shown(
    done: Callable[[], int], *, unit: str, total: int | None = None
) -> AsyncIterator[None]:
    """Show a number that grows, for as long as the context is open."""
    with bar(total=total, unit=unit) as line:

        def look() -> None:
            line.update(max(0, done() - line.n))

        async def follow() -> None:
            while True:
                look()
                await asyncio.sleep(EVERY)

        following = asyncio.create_task(follow())
        try:
            yield
        finally:
            following.cancel()
            look()
