"""Ending: how a command ends early."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def when_told(call: Callable[[], object]) -> None:
    """Call this when the process has to end: on Ctrl-C, kill, or when its terminal closes
    without nohup."""
    for number in NUMBERS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            asyncio.get_running_loop().add_signal_handler(number, call)
