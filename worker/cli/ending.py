"""Ending: what a command does when it is told to end."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def when_told(call: Callable[[], object]) -> None:
    """Call this when the process is told to end: Ctrl-C, kill, or its terminal goes and nohup does
    not keep it."""
    for number in NUMBERS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            asyncio.get_running_loop().add_signal_handler(number, call)
