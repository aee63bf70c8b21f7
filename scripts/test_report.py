"""Tells what came of the tests: all tiers, the slowest tests, and last of all what has failed and
why.

usage: python -m scripts.test_report LOGS LANE...

LOGS holds, for each lane that `scripts/test` has run, LANE.log, LANE.status (exit status and
seconds) and, if the lane is one of pytest, LANE.xml in JUnit's format.
"""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

SLOWEST = 10
# Of a failed test's traceback, of each log that goes with it, and of a lane that has failed
# otherwise
TRACE_LINES, LOG_LINES, LANE_LINES = 15, 12, 40


@dataclass(frozen=True, slots=True)
class Case:
    """One test: its tier, its id, its seconds with set-up and teardown, and how it ended."""

    tier: str
    name: str
    seconds: float
    outcome: str
    failure: str
    log: str


def cases(file: Path) -> Iterator[Case]:
    """Yield the tests of a lane; none if pytest did not get as far as writing its file."""
    if not file.exists():
        return
    for case in ET.parse(file).iter("testcase"):
        place = case.get("classname", "").split(".")
        problems = [*case.findall("failure"), *case.findall("error")]
        outcome = (
            "failed" if problems else "skipped" if case.find("skipped") is not None else "passed"
        )
        yield Case(
            # The lane of another Debian runs tests of several tiers, once more
            tier="trixie" if file.stem == "trixie" else place[1] if len(place) > 1 else "-",
            name=f"{'/'.join(place)}.py::{case.get('name')}",
            seconds=float(case.get("time", 0)),
            outcome=outcome,
            failure="\n".join(problem.text or problem.get("message", "") for problem in problems),
            log=case.findtext("system-out", ""),
        )


def last(text: str, lines: int) -> list[str]:
    """Return the last lines of a text that say something."""
    return [line for line in text.splitlines() if line.strip()][-lines:]


def tiers(found: Sequence[Case]) -> Iterator[str]:
    """Yield the table of the tiers."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    seconds: Counter[str] = Counter()
    for case in found:
        counts[case.tier][case.outcome] += 1
        seconds[case.tier] += round(case.seconds)
    yield f"{'tier':10} {'passed':>6} {'failed':>6} {'skipped':>7} {'seconds':>7}"
    for tier, count in counts.items():
        yield (
            f"{tier:10} {count['passed']:6} {count['failed']:6} {count['skipped']:7} "
            f"{seconds[tier]:7}"
        )


def faults(logs: Path, lanes: Sequence[str]) -> Iterator[str]:
    """Yield the table that the tier faults prints, once for all lanes."""
    rows = [
        line
        for lane in lanes
        for line in (logs / f"{lane}.log").read_text().splitlines()
        if line[:2] == "| "
    ]
    yield from dict.fromkeys(rows)


def told(log: str) -> Iterator[str]:
    """Yield the newest lines of a test's log, and of its workers' logs, which
    tests/devcloud.py turns around."""
    own, *workers = re.split(r"^(?=worker-\d+\.log, )", log, flags=re.MULTILINE)
    yield from last(own, LOG_LINES)
    for worker in workers:
        yield from worker.splitlines()[: LOG_LINES + 1]


def failures(found: Sequence[Case]) -> Iterator[str]:
    """Yield what each failed test said last, and its workers."""
    for case in found:
        if case.outcome == "failed":
            yield f"FAILED {case.name}"
            yield from (f"    {line}" for line in last(case.failure, TRACE_LINES))
            yield from (f"    {line}" for line in told(case.log))


def main(words: Sequence[str]) -> None:
    """Print the report."""
    if len(words) < 2:
        sys.exit(__doc__)
    logs, lanes = Path(words[0]), words[1:]
    by_lane = {lane: list(cases(logs / f"{lane}.xml")) for lane in lanes}
    found = [case for lane in lanes for case in by_lane[lane]]
    status, seconds = {}, {}
    for lane in lanes:
        status[lane], seconds[lane] = map(int, (logs / f"{lane}.status").read_text().split())
    for line in faults(logs, lanes):
        print(line)
    if found:
        print("\n" + "\n".join(tiers(found)))
        print("\nslowest tests, in seconds")
        for case in sorted(found, key=lambda case: -case.seconds)[:SLOWEST]:
            print(f"{case.seconds:7.1f} {case.name}")
    print("\nside by side: " + ", ".join(f"{lane} {seconds[lane]} s" for lane in lanes))
    for line in failures(found):
        print(line)
    for lane in lanes:
        if status[lane] and not any(case.outcome == "failed" for case in by_lane[lane]):
            print(f"FAILED {lane}")
            print(
                "\n".join(
                    f"    {line}" for line in last((logs / f"{lane}.log").read_text(), LANE_LINES)
                )
            )


if __name__ == "__main__":
    main(sys.argv[1:])
