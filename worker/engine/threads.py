"""Threads beside the event loop: calls that may block for ever, and calls back onto the loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


async def on_daemon_thread(function: Callable[[], T], *, name: str) -> T:
    """Return what a function returns that may block for ever. If it does, its thread keeps neither
    the caller, which may be cancelled, nor the process."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(set_it: Callable[[], None]) -> None:
        if not done.done():
            set_it()

    def run() -> None:
        try:
            result = function()
        except Exception as error:
            # Raised where it is awaited
            caught = error
            call_on(loop, settle, lambda: done.set_exception(caught))
        else:
            call_on(loop, settle, lambda: done.set_result(result))

    threading.Thread(target=run, name=name, daemon=True).start()
    return await done


def call_on(
    loop: asyncio.AbstractEventLoop, function: Callable[[*Ts], object], *arguments: *Ts
) -> None:
    """Call a function on the event loop, from another thread."""
    # Nobody waits on a closed loop
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *arguments)
