"""Makes notifications by the million from the recorded ones, each with ids of its own, as oslo
envelopes, one a line.

python -m scripts.generate 1000000 > FILE
"""

from __future__ import annotations

import json
import re
import sys
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

RECORDED = Path(__file__).parents[1] / "tests" / "fixtures" / "notifications"
UUID = re.compile(rb"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}")
TIME = re.compile(rb'("timestamp\\": \\")[^"\\]*')


def notifications(count: int, *, begin: datetime) -> Iterator[bytes]:
    """So many envelopes: the recorded scenarios over and over, with new ids each time and a second
    between two."""
    scenarios = [
        [json.loads(line)["raw"].encode() for line in path.read_bytes().splitlines()]
        for path in sorted(RECORDED.glob("*.jsonl"))
    ]
    made = 0
    while True:
        for scenario in scenarios:
            renamed: dict[bytes, bytes] = {}

            def rename(found: re.Match[bytes], renamed: dict[bytes, bytes] = renamed) -> bytes:
                return renamed.setdefault(found.group(), str(uuid.uuid4()).encode())

            for raw in scenario:
                at = (begin + timedelta(seconds=made)).strftime("%Y-%m-%d %H:%M:%S.%f").encode()
                yield TIME.sub(lambda found, at=at: found.group(1) + at, UUID.sub(rename, raw))  # type: ignore[misc]
                made += 1
                if made == count:
                    return


def main() -> int:
    """Write as many as are asked for to standard output."""
    for body in notifications(int(sys.argv[1]), begin=datetime(2025, 1, 1, tzinfo=UTC)):
        sys.stdout.buffer.write(body + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
