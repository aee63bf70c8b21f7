"""Threads that a process need not wait for: for calls that may block for ever."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


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
            tell(lambda: done.set_exception(caught))
        else:
            tell(lambda: done.set_result(result))

    def tell(set_it: Callable[[], None]) -> None:
        # Nobody waits on a closed loop
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, set_it)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await done
