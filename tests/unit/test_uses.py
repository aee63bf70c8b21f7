"""Uses: which notifications are worth a job, and what handlers learn of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from worker.core import uses as uses_module
from worker.core.notification import Notification, decode
from worker.core.uses import EVERY, Uses
from worker.testing.fake_cloud import notification

CASES = Path(__file__).parents[1] / "fixtures" / "cases"
IMAGE = "00000001-0000-4000-8000-000000000000"


def use(at: float, **payload: object) -> Notification:
    fields: dict[str, object] = {
        "volume_id": "00000002-0000-4000-8000-000000000000",
        "display_name": "disk",
        "volume_type": "type-id",
        "metadata": [],
        "glance_metadata": [{"key": "image_id", "value": IMAGE}],
    }
    return replace(
        Notification.of(decode(notification("volume.create.end", fields | payload))), timestamp=at
    )


def known() -> Uses:
    uses = Uses()
    uses.know({"type-id": "fast"})
    return uses


def test_the_first_two_uses_and_then_one_an_hour_are_worth_a_job() -> None:
    uses = known()
    at = [0.0, 1.0, 2.0, 3.0, EVERY, EVERY + 2.0, EVERY + 3.0, 2 * EVERY + 3.0]
    assert [bool(uses.heard(use(moment))) for moment in at] == [
        True,
        True,
        False,
        False,
        False,
        True,
        False,
        True,
    ]


def test_what_is_no_use_by_a_user_on_a_target_is_none() -> None:
    uses = known()
    assert uses.heard(use(0.0)) == "fast"
    assert not uses.heard(use(0.0, volume_type="another"))
    assert not uses.heard(use(0.0, glance_metadata=[]))
    assert not uses.heard(use(0.0, snapshot_id="00000003-0000-4000-8000-000000000000"))
    assert not uses.heard(use(0.0, display_name=f"warm-{IMAGE}"))
    assert not uses.heard(use(0.0, display_name=f"image-{IMAGE}"))
    assert not uses.heard(use(0.0, metadata=[{"key": "image_volume_worker", "value": "fast"}]))
    assert not uses.heard(replace(use(0.0), event_type="volume.create.start"))
    assert not Uses().heard(use(0.0))


def test_uses_are_counted_once_whatever_their_order() -> None:
    uses = known()
    assert (uses.count(IMAGE, "fast"), uses.last(IMAGE, "fast")) == (0, 0.0)
    for moment in (5.0, 5.0, 3.0, 5.0, 3.0):
        uses.note(IMAGE, "fast", moment)
    assert (uses.count(IMAGE, "fast"), uses.last(IMAGE, "fast")) == (2, 5.0)
    assert uses.count(IMAGE, "slow") == 0


def test_what_was_not_used_for_the_longest_time_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(uses_module, "KEEP", 2)
    uses = known()
    for image_id in ("a", "b", "a", "c"):
        uses.note(image_id, "fast", float(ord(image_id)) + uses.count("a", "fast"))
    assert uses.count("a", "fast") == 2
    assert uses.count("b", "fast") == 0
    assert uses.count("c", "fast") == 1


def test_claims_wait_until_somebody_has_asked_and_count_only_if_they_are_true() -> None:
    uses = known()
    uses.claim(IMAGE, "fast", 1.0, "v1")
    uses.claim(IMAGE, "fast", 1.0, "v1")
    uses.claim(IMAGE, "fast", 2.0, "v2")
    assert uses.count(IMAGE, "fast") == 0
    assert [claim.volume_id for claim in uses.claims(IMAGE, "fast")] == ["v1", "v2"]
    for claim in uses.claims(IMAGE, "fast"):
        uses.settle(IMAGE, "fast", claim, true=claim.volume_id == "v2", now=9.0)
    assert uses.claims(IMAGE, "fast") == ()
    assert (uses.count(IMAGE, "fast"), uses.last(IMAGE, "fast")) == (1, 2.0)


def test_a_claim_that_was_false_takes_no_real_uses_place() -> None:
    uses = known()
    for moment in (1.0, 2.0):
        assert uses.heard(use(moment))
        uses.claim(IMAGE, "fast", moment, "clone")
    assert not uses.heard(use(3.0))
    for claim in uses.claims(IMAGE, "fast"):
        uses.settle(IMAGE, "fast", claim, true=False, now=9.0)
    assert uses.heard(use(4.0))


def test_a_recorded_restore_of_a_snapshot_is_no_use() -> None:
    case = CASES / "volume-from-snapshot.json"
    restored = Notification.of(decode(case.read_bytes()))
    assert restored.source_image_id
    assert not restored.is_use
