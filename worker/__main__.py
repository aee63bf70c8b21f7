"""The command `image-volume-worker`."""

from __future__ import annotations

import signal
import sys

INTERRUPTED = 130


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit status: 0 done, 1 it failed, 2 wrong usage or configuration, 3 a
    check failed."""
    words = sys.argv[1:] if argv is None else argv
    if "run" in words:
        # Until then the configuration has not been read, and there is nothing to read again
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # Not where it is ignored, as of a job in the background
    interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    try:
        # It takes a second, in which somebody may press Ctrl-C. Python may lose the exception while
        # it imports, so none is raised before a command begins: the process just ends
        if interruptible:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        from worker.cli import Worker  # noqa: PLC0415

        return Worker().run(words)
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        if interruptible:
            signal.signal(signal.SIGINT, signal.default_int_handler)


if __name__ == "__main__":
    sys.exit(main())
