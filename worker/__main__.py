"""The command `image-volume-worker`."""

from __future__ import annotations

import sys

INTERRUPTED = 130


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit status: 0 done, 1 it failed, 2 wrong usage or configuration, 3 a check failed."""
    try:
        # It takes a second, in which somebody may press Ctrl-C
        from worker.cli import Worker  # noqa: PLC0415

        return Worker().run(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
