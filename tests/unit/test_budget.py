"""Budget: least recently used first, nothing in vain, and what is recently used stays."""

from __future__ import annotations

from dataclasses import replace

import pytest

from handlers import budget
from handlers.budget import Coming, NoRoom, Shelf
from worker.core.cloud import Volume
from worker.core.uses import Uses
from worker.testing.fake_cloud import PROJECT, FakeCloud
from worker.testing.rig import FAST, STORES, Polls, Rig


def lying(*sizes_and_uses: tuple[int, float], **fields: object) -> list[budget.Held]:
    """Image-Volumes of these GiB, made at these times; the image of the nth is 0000000n-..."""
    volumes = [
        Volume(
            id=f"volume-{number}",
            name=f"image-{number:08d}-0000-4000-8000-000000000000",
            status="available",
            volume_type="fast",
            size=size,
            created_epoch=used,
            project_id=PROJECT,
            metadata={"image_volume_worker": "fast", "image_volume_worker_origin": "prewarm"},
        )
        for number, (size, used) in enumerate(sizes_and_uses)
    ]
    return budget.held([replace(volume, **fields) for volume in volumes], FAST, Uses(), now=1e9)  # type: ignore[arg-type]


def going(shelf: Shelf, size: int, *, since: float) -> list[str]:
    return [one.volume.id for one in shelf.victims(size, since=since)]


def test_what_fits_costs_nothing() -> None:
    shelf = Shelf(replace(FAST, max_gigabytes=10, max_count=3), lying((4, 1.0), (4, 2.0)))
    assert going(shelf, 2, since=0.0) == []


@pytest.mark.parametrize("limits", [{"max_count": 3}, {"max_gigabytes": 12}])
def test_the_least_recently_used_goes_first(limits: dict[str, int]) -> None:
    shelf = Shelf(replace(FAST, **limits), lying((4, 30.0), (4, 10.0), (4, 20.0)))
    assert going(shelf, 4, since=99.0) == ["volume-1"]


def test_as_many_go_as_it_takes() -> None:
    shelf = Shelf(replace(FAST, max_gigabytes=10), lying((2, 1.0), (3, 2.0), (5, 3.0)))
    assert going(shelf, 4, since=99.0) == ["volume-0", "volume-1"]


def test_what_was_used_later_than_the_image_stays_and_nothing_goes_in_vain() -> None:
    shelf = Shelf(replace(FAST, max_gigabytes=10), lying((2, 1.0), (8, 50.0)))
    with pytest.raises(NoRoom, match=r"10 of 10 GiB"):
        shelf.victims(4, since=40.0)


def test_an_image_above_the_limit_never_fits() -> None:
    with pytest.raises(NoRoom, match="max_gigabytes = 10"):
        Shelf(replace(FAST, max_gigabytes=10), []).victims(11, since=99.0)


@pytest.mark.parametrize("fields", [{"status": "in-use"}, {"status": "error"}])
def test_what_somebody_reads_does_not_go(fields: dict[str, str]) -> None:
    shelf = Shelf(replace(FAST, max_count=1), lying((1, 1.0), **fields))
    with pytest.raises(NoRoom, match="1 of 1 Image-Volumes"):
        shelf.victims(1, since=99.0)


def test_what_is_on_its_way_takes_room_and_does_not_go() -> None:
    held = lying((1, 1.0))
    target = replace(FAST, max_count=2)
    with pytest.raises(NoRoom):
        Shelf(target, held, {held[0].image_id: Coming(1), "another": Coming(1)}).victims(
            1, since=99.0
        )
    assert going(Shelf(target, held, {held[0].image_id: Coming(1)}), 1, since=99.0) == []
    assert going(Shelf(target, held, {"another": Coming(1)}), 1, since=99.0) == ["volume-0"]


def test_what_must_stay_is_passed_over() -> None:
    shelf = Shelf(replace(FAST, max_count=2), lying((1, 1.0), (1, 2.0)), staying=["volume-0"])
    assert going(shelf, 1, since=99.0) == ["volume-1"]


def test_a_smaller_budget_has_an_excess() -> None:
    shelf = Shelf(replace(FAST, max_gigabytes=5), lying((2, 3.0), (2, 1.0), (2, 2.0)))
    assert [one.volume.id for one in shelf.excess()] == ["volume-1"]
    assert Shelf(replace(FAST, max_gigabytes=6), lying((2, 3.0), (2, 1.0), (2, 2.0))).excess() == []


def test_images_that_come_one_after_the_other_are_counted() -> None:
    shelf = Shelf(replace(FAST, max_count=2), lying((1, 1.0)))
    shelf.take(1, since=5.0)
    shelf.take(1, since=5.0)
    with pytest.raises(NoRoom):
        shelf.take(1, since=5.0)


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"image_volume_worker": "slow", "image_volume_worker_origin": "prewarm"},
        {"image_volume_worker": "fast"},
        {"image_volume_worker": "upload"},
    ],
)
def test_only_what_pre_warming_made_here_counts(metadata: dict[str, str]) -> None:
    assert lying((1, 1.0), metadata=metadata) == []


def test_foreign_volumes_and_throw_away_ones_do_not_count() -> None:
    assert lying((1, 1.0), foreign=True) == []
    assert lying((1, 1.0), name="warm-00000001-0000-4000-8000-000000000000") == []
    assert lying((1, 1.0), status="deleting") == []


def test_the_last_use_is_the_latest_that_anybody_knows() -> None:
    one = lying((1, 100.0))[0]
    marked = {**one.volume.metadata, "image_volume_worker_used_at": "1970-01-01T00:05:00+00:00"}
    uses = Uses()
    assert budget.last_used(one.volume, one.image_id, FAST, uses, now=1e9) == 100.0
    recorded = replace(one.volume, metadata=marked)
    assert budget.last_used(recorded, one.image_id, FAST, uses, now=1e9) == 300.0
    uses.note(one.image_id, "fast", 400.0)
    assert budget.last_used(recorded, one.image_id, FAST, uses, now=1e9) == 400.0
    broken = replace(one.volume, metadata={"image_volume_worker_used_at": "yesterday"})
    assert budget.last_used(broken, "another", FAST, uses, now=1e9) == 100.0


def shared(*owners_and_uses: tuple[str, float], **limits: object) -> Shelf:
    """A target on which these projects' images of 2 GiB lie, used at these times."""
    found = []
    for number, (owner, used) in enumerate(owners_and_uses):
        (one,) = lying((2, used))
        metadata = {**one.volume.metadata, "image_owner": owner}
        volume = replace(one.volume, id=f"volume-{number}", metadata=metadata)
        found.append(replace(one, volume=volume, image_id=f"image-{number}"))
    found.sort(key=lambda one: one.used)
    return Shelf(replace(FAST, **limits), found)  # type: ignore[arg-type]


ALICES = (("alice", 1.0), ("bob", 2.0), ("alice", 3.0), ("carol", 4.0))


@pytest.mark.parametrize(
    ("owner", "share", "expected"),
    [
        # Bob has a quarter: what alice used the longest time ago goes for him only once he has none
        ("bob", 0.25, ["volume-1"]),
        ("dave", 0.25, ["volume-0"]),
        ("carol", 0.5, ["volume-0"]),
        # Her own oldest
        ("alice", 0.5, ["volume-0"]),
        ("bob", 1.0, ["volume-0"]),
        # A public image is for everybody
        ("", 0.25, ["volume-0"]),
    ],
)
@pytest.mark.parametrize("limits", [{"max_count": 4}, {"max_gigabytes": 8}])
def test_beyond_its_share_a_project_evicts_only_its_own(
    owner: str, share: float, expected: list[str], limits: dict[str, int]
) -> None:
    shelf = shared(*ALICES, project_share=share, **limits)
    assert [one.volume.id for one in shelf.victims(2, since=99.0, owner=owner)] == expected


def test_beyond_its_share_a_project_has_what_is_free() -> None:
    shelf = shared(*[("alice", float(at)) for at in range(3)], max_count=4)
    assert shelf.victims(2, since=99.0, owner="alice") == []


def test_a_project_that_uses_all_of_its_own_later_gets_nothing_more() -> None:
    shelf = shared(("bob", 1.0), ("alice", 50.0), ("bob", 2.0), max_count=3)
    with pytest.raises(NoRoom, match="its project's images may take 25%"):
        shelf.victims(2, since=40.0, owner="alice")


def test_the_first_of_a_project_has_room_however_small_the_budget() -> None:
    shelf = shared(("bob", 1.0), max_count=1)
    assert len(shelf.victims(2, since=99.0, owner="alice")) == 1
    # And nobody else's while it is alone
    shelf = shared(("alice", 1.0), max_count=1)
    assert len(shelf.victims(2, since=99.0, owner="alice")) == 1


def test_public_images_are_nobodys_share() -> None:
    image = FakeCloud().upload(visibility="public", owner="alice")
    assert budget.owner_of(image) == ""
    assert budget.owner_of(replace(image, visibility="community")) == "alice"


async def test_a_place_that_was_kept_by_a_clock_that_was_ahead_is_free() -> None:
    """A worker keeps a place for an hour; one noted two hours ahead was kept for three."""
    cloud = FakeCloud(stores=dict(STORES))
    target = replace(FAST, max_count=1)
    async with Rig(cloud, targets=(target,)) as rig:
        first, second = cloud.upload(), cloud.upload()
        cloud.ahead += 7200.0
        await rig.prewarm._reservations.reserve(first, target, Polls())
        with pytest.raises(NoRoom):
            await rig.prewarm._reservations.reserve(second, target, Polls())
        cloud.ahead -= 7200.0
        await rig.prewarm._reservations.reserve(second, target, Polls())
