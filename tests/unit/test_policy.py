"""Which image belongs on which target."""

from __future__ import annotations

from dataclasses import replace

import pytest

from handlers.policy import refusal
from worker.core.cloud import GIB, Image
from worker.core.target import Policy, Strategy, Target

IMAGE = Image(
    id="i",
    status="active",
    owner="alice",
    disk_format="raw",
    container_format="bare",
    visibility="private",
    size=1000,
)
TARGET = Target(name="fast", volume_type="fast")


def asked(answer: str, **changes: object) -> Image:
    return replace(IMAGE, properties={"image_volume_prewarm": answer}, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("image", "policy", "reason"),
    [
        (IMAGE, Policy(), None),
        (replace(IMAGE, status="queued"), Policy(), "queued"),
        (replace(IMAGE, status="deactivated"), Policy(), "deactivated"),
        (replace(IMAGE, disk_format="iso"), Policy(), "iso/bare"),
        (replace(IMAGE, container_format="ovf"), Policy(), "raw/ovf"),
        (replace(IMAGE, properties={"cinder_encryption_key_id": "k"}), Policy(), "encrypted"),
        (IMAGE, Policy(exclude_projects=frozenset({"alice"})), "exclude_projects"),
        (IMAGE, Policy(projects=frozenset({"bob"})), "projects"),
        (IMAGE, Policy(projects=frozenset({"alice"})), None),
        (IMAGE, Policy(visibilities=frozenset({"public"})), "visibility private"),
        (IMAGE, Policy(min_size=1001), "min_size"),
        (IMAGE, Policy(max_size=999), "max_size"),
        (IMAGE, Policy(min_size=1000, max_size=1000), None),
        (asked("no"), Policy(), "says no"),
        (asked("False"), Policy(), "says no"),
        # Nova's snapshots and Cinder's uploads inherit it: it has to name the image, unless that is
        # public
        (asked("yes"), Policy(visibilities=frozenset({"public"})), "sets it to yes/i"),
        (
            asked("yes", visibility="shared"),
            Policy(min_size=5000),
            "below [prewarm] min_size; its property",
        ),
        (asked("yes", visibility="community"), Policy(min_size=5000), "inherited"),
        (asked("yes", visibility="public"), Policy(min_size=5000), None),
        (asked("yes/i"), Policy(visibilities=frozenset({"public"}), min_size=5000), None),
        (asked(" YES/I "), Policy(visibilities=frozenset({"public"}), min_size=5000), None),
        (asked("yes/another"), Policy(visibilities=frozenset({"public"})), "visibility private"),
        (asked("yes/another", visibility="public"), Policy(min_size=5000), "min_size"),
        (asked("no/another"), Policy(), None),
        (asked("no/i"), Policy(), "says no"),
        (asked("yes/i"), Policy(exclude_projects=frozenset({"alice"})), "exclude_projects"),
        (asked("yes/i"), Policy(max_size=1), "max_size"),
        (asked("perhaps"), Policy(min_size=5000), "min_size"),
    ],
)
def test_refusal(image: Image, policy: Policy, reason: str | None) -> None:
    answer = refusal(image, TARGET, policy)
    if reason is None:
        assert answer is None
    else:
        assert answer is not None
        assert reason in answer


@pytest.mark.parametrize(
    ("strategy", "changes", "most", "reason"),
    [
        # Glance's cinder store makes a volume of the image's size, whatever its min_disk
        ("store", {"size": 2 * GIB, "min_disk": 20}, 2 * GIB, None),
        ("store", {"size": 2 * GIB + 1}, 2 * GIB, "image of 2147483649 bytes"),
        ("location", {"size": 1, "min_disk": 16_000}, 100 * GIB, "min_disk"),
        ("cache", {"size": 1, "min_disk": 16_000}, 100 * GIB, "min_disk"),
        ("cache", {"size": 1, "virtual_size": 200 * GIB}, 100 * GIB, "virtual_size"),
        ("cache", {"size": 2 * GIB, "min_disk": 20}, 20 * GIB, None),
        # Which of them it will be is not known yet: what is too large for all
        ("auto", {"size": 1, "min_disk": 16_000}, 100 * GIB, None),
        ("auto", {"size": 101 * GIB}, 100 * GIB, "max_size"),
    ],
)
def test_max_size_bounds_what_is_allocated(
    strategy: Strategy, changes: dict[str, int], most: int, reason: str | None
) -> None:
    image = replace(IMAGE, **changes)  # type: ignore[arg-type]
    answer = refusal(image, replace(TARGET, strategy=strategy), Policy(max_size=most))
    assert (answer is None) == (reason is None)
    assert answer is None or (reason or "") in answer


def test_a_cache_target_may_take_other_formats() -> None:
    target = replace(TARGET, disk_formats=frozenset({"raw", "qcow2"}))
    assert refusal(replace(IMAGE, disk_format="qcow2"), target, Policy()) is None
