"""Ages by a clock that may have jumped."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from handlers.prewarm.actions import CopyImage
from handlers.prewarm.seen import Seen
from handlers.prewarm.strategies import store
from worker.core.age import SKEW, age, lasts
from worker.testing.fake_cloud import FakeCloud
from worker.testing.rig import FAST, STORES


@pytest.mark.parametrize(
    ("moment", "expected"), [(90.0, 10.0), (130.0, -30.0), (100.0 + SKEW + 1, math.inf)]
)
def test_what_is_yet_to_come_is_old(moment: float, expected: float) -> None:
    assert age(moment, 100.0) == expected


@pytest.mark.parametrize(
    ("until", "expected"), [(99.0, False), (101.0, True), (160.0, True), (7_300.0, False)]
)
def test_what_a_clock_that_was_ahead_has_noted_is_over(until: float, expected: bool) -> None:
    assert lasts(until, 100.0, 60.0) is expected


async def test_a_clock_that_was_set_back_delays_nothing() -> None:
    image = FakeCloud(stores=STORES).upload()
    image = replace(image, updated_epoch=10_000.0)
    target = replace(FAST, glance_store="cinder-fast")
    seen = Seen(image=image, now=10_000.0 - 7200.0, settle=10.0, volumes=(), locations=())
    assert store.plan(seen, target) == CopyImage(("cinder-fast",))
