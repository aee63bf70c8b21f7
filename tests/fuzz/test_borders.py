"""Whatever comes in from outside: nothing raises past its border, nothing hangs, memory is bounded.

FUZZ is how many inputs there are in all (10,000, with LONG=1 50,000). `scripts/fuzz` looks longer,
steered by what code an input reaches.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fuzz.borders import Borders

INPUTS = int(os.environ.get("FUZZ", "50000" if os.environ.get("LONG") else "10000"))
# Of these shares; parsing a configuration takes a hundred times as long as the others
SHARES = {
    "wire": 0.33, "record": 0.05, "lane": 0.13, "capture": 0.1, "file": 0.02, "checkpoint": 0.02, "answer": 0.28,
    "configuration": 0.02, "url": 0.05,
}  # fmt: skip
ROOM = 200
"""MiB that the inputs of a border may add to the process; one that were kept would add up to
more."""
HANGS = 60
"""Seconds after which one input, which takes milliseconds, hangs."""


@pytest.fixture(scope="module")
def borders() -> Iterator[Borders]:
    made = Borders()
    yield made
    made.close()


def resident() -> float:
    """MiB of memory that the process has."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / (1 << 20)


def hangs(_number: int, _frame: object) -> None:
    raise TimeoutError(f"one input took longer than {HANGS} s")


@pytest.mark.parametrize("name", SHARES)
def test_any_input(borders: Borders, name: str) -> None:
    assert set(SHARES) == set(borders.all)
    border, count = borders.all[name], 0

    # derandomize: what CI finds on one day, it finds on the next; the long run is for what is new
    @settings(
        max_examples=int(INPUTS * SHARES[name]),
        deadline=None,
        database=None,
        derandomize=True,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(st.binary(min_size=40, max_size=160))
    def run(data: bytes) -> None:
        nonlocal count
        count += 1
        signal.alarm(HANGS)
        border(data)
        signal.alarm(0)

    before, handler = resident(), signal.signal(signal.SIGALRM, hangs)
    try:
        run()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
    assert count >= INPUTS * SHARES[name] * 0.9
    assert resident() - before < ROOM
