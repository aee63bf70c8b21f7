"""The command `image-volume-worker`."""

from __future__ import annotations

import sys

from worker.cli import Worker


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit status: 0 done, 1 it failed, 2 wrong usage or configuration, 3 a check failed."""
    return Worker().run(sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
