"""Whatever comes in from outside: nothing raises past its border, nothing hangs, memory is bounded.

FUZZ is how many inputs there are in all (50,000). `scripts/fuzz` looks longer, steered by what code an input reaches.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fuzz.borders import Borders

INPUTS = int(os.environ.get("FUZZ", "50000"))
# Of these shares; parsing a configuration takes a hundred times as long as the others
SHARES = {"wire": 0.35, "record": 0.05, "lane": 0.13, "capture": 0.1, "answer": 0.3, "configuration": 0.02, "url": 0.05}
ROOM = 200
"""MiB that all inputs together may add to the process; one that were kept would add up to more."""


@pytest.fixture(scope="module")
def borders() -> Iterator[Borders]:
    made = Borders()
    yield made
    made.close()


def peak() -> float:
    """The most memory that the process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


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
        border(data)

    before = peak()
    run()
    assert count >= INPUTS * SHARES[name] * 0.9
    assert peak() - before < ROOM
