"""What doctor says of a target."""

from __future__ import annotations

from dataclasses import replace

import pytest

from worker.cloud import Store
from worker.doctor import target_check
from worker.target import Target

TARGET = Target(name="fast", volume_type="ssd")
STORES = (Store(id="file", type="file"), Store(id="cinder-fast", type="cinder", volume_type="ssd"))


@pytest.mark.parametrize(
    ("changes", "stores", "verdict", "word"),
    [
        ({}, STORES, "ok", "store cinder-fast"),
        ({"volume_type": "hdd"}, STORES, "fail", "no volume type hdd"),
        ({"glance_store": "nowhere"}, STORES, "fail", "nowhere"),
        ({"strategy": "store"}, STORES[:1], "fail", "no cinder store"),
        ({"strategy": "location", "glance_store": "cinder-fast"}, STORES, "warn", "location"),
        ({"strategy": "cache"}, STORES, "ok", "cache"),
        ({}, STORES[:1], "warn", "cache"),
        ({}, (Store(id="x"),), "fail", "set strategy"),
    ],
)
def test_target(changes: dict[str, str], stores: tuple[Store, ...], verdict: str, word: str) -> None:
    check = target_check(replace(TARGET, **changes), {"ssd"}, stores)  # type: ignore[arg-type]
    assert check.verdict == verdict
    assert word in check.detail
    assert check.advice or verdict == "ok"
