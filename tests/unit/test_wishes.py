"""What an operator wants of one image: `warm` and `evict`."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Iterable
from dataclasses import replace

import pytest

from worker.core.cloud import Image
from worker.core.job import EVICTING, OPERATOR, Job, Key
from worker.core.outcome import Skip
from worker.core.state import State
from worker.core.target import Policy, Reclaiming
from worker.core.wishes import EVICTED, HOLD_FOR, Wish, Wishes
from worker.testing.fake_cloud import FakeCloud
from worker.testing.rig import FAST, SLOW, STORES, Polls, Rig

KEY = Key("prewarm", "image", "fast")


def test_the_last_wish_holds_for_a_day() -> None:
    wishes = Wishes()
    assert wishes.note(KEY, "evict", "1", now=100.0)
    assert wishes.is_evicted(KEY, now=99.0 + HOLD_FOR)
    assert wishes.evicted(now=101.0) == (KEY,)
    assert not wishes.is_evicted(KEY, now=101.0 + HOLD_FOR)
    assert not wishes.is_evicted(Key("prewarm", "image", "slow"), now=101.0)
    assert not wishes.note(KEY, "nonsense", "2", now=101.0)
    assert not wishes.note(KEY, "", "", now=101.0)
    assert wishes.is_evicted(KEY, now=102.0)
    assert wishes.note(KEY, "warm", "3", now=102.0)
    assert not wishes.is_evicted(KEY, now=103.0)
    # Another try of the job before
    assert not wishes.note(KEY, "evict", "1", now=103.0)
    assert wishes.is_over(KEY, "1")
    assert not wishes.is_over(KEY, "3")
    # By a clock that was ahead
    wishes.hold(KEY, now=1e9)
    assert not wishes.is_evicted(KEY, now=103.0)
    assert wishes.evicted(now=103.0) == ()
    assert not wishes.is_evicted(KEY, now=103.0)


def test_a_wish_travels_in_its_job() -> None:
    job = Job(key=KEY, cause=OPERATOR, first_at=1.0, wish=Wish.EVICT, wish_id="x", wished_at=2.0)
    found = Job.from_bytes(job.to_bytes())
    assert (found.wish, found.wish_id, found.wished_at) == ("evict", "x", 2.0)
    assert Job(key=KEY, cause="", first_at=1.0).joined(found).wished_at == 2.0
    # Of a worker that knows no wishes
    fields = json.loads(job.to_bytes())
    del fields["wish"]
    assert Job.from_bytes(json.dumps(fields).encode()).wish == ""


def asked(image: Image, wish: Wish, target: str = "fast", *, project: str = "an operator") -> Job:
    """A job as `warm` and `evict` make it."""
    return Job(
        key=Key("prewarm", image.id, target),
        cause=OPERATOR if wish is Wish.WARM else EVICTING,
        first_at=time.time(),
        project=project,
        wish=wish,
        wish_id=uuid.uuid4().hex,
        wished_at=time.time(),
    )


async def wish(rig: Rig, image: Image, wish: Wish, target: str = "fast") -> None:
    await rig.lanes.publish([asked(image, wish, target)])
    await rig.quiet()


def states(rig: Rig, image: Image) -> dict[str, State]:
    volumes = tuple(rig.cloud.of(image.id))
    found = rig.prewarm.warmth(rig.cloud.images[image.id], volumes)
    return {one.target.name: one.state for one in found}


@pytest.mark.parametrize("enabled", [True, False])
async def test_what_an_operator_evicts_is_deleted_and_not_made_again(enabled: bool) -> None:
    cloud = FakeCloud(stores=dict(STORES))
    reclaiming = Reclaiming(enabled=enabled)
    async with Rig(cloud, targets=(FAST, SLOW), reclaiming=reclaiming) as rig:
        image = cloud.upload()
        await rig.resync()
        await rig.quiet()
        assert states(rig, image) == {"fast": State.WARM, "slow": State.WARM}
        await wish(rig, image, Wish.EVICT)
        assert [volume.volume_type for volume in cloud.of(image.id)] == ["slow"]
        assert states(rig, image) == {"fast": State.HELD_BACK, "slow": State.WARM}
        # Neither a comparison nor a notification nor another target's copy brings it back
        cloud.emit = rig.hear
        cloud.remove_volume(cloud.of(image.id)[0].id)
        cloud.announce("image.update", image.id)
        await rig.resync()
        await rig.quiet()
        assert {volume.volume_type for volume in cloud.of(image.id)} <= {"slow"}
        assert (image.id, "fast", EVICTED) in list(rig.prewarm.held_back())
        await wish(rig, image, Wish.WARM)
        assert states(rig, image)["fast"] is State.WARM
        assert not list(rig.prewarm.held_back())


async def test_an_evict_that_another_worker_left_does_not_undo_a_later_warm() -> None:
    cloud = FakeCloud(stores=dict(STORES))
    async with Rig(cloud, targets=(FAST,)) as rig:
        image = cloud.upload()
        await rig.resync()
        await rig.quiet()
        [volume] = cloud.of(image.id)
        made = volume.created_epoch
        # A worker put it off, and was restarted after it had heard a `warm`
        left = replace(asked(image, Wish.EVICT), wished_at=made - 5.0, due=made)
        await rig.lanes.publish([left])
        await rig.quiet()
        assert cloud.of(image.id) == [volume]
        assert states(rig, image)["fast"] is State.WARM
        assert not list(rig.prewarm.held_back())
        # What was there when it was asked for goes, whoever tries it first
        left = replace(asked(image, Wish.EVICT), wished_at=made + 5.0, due=made)
        await rig.lanes.publish([left])
        await rig.quiet()
        assert not cloud.of(image.id)
        assert states(rig, image)["fast"] is State.HELD_BACK


async def test_a_warm_of_what_is_there_outlives_a_restart() -> None:
    cloud = FakeCloud(stores=dict(STORES))
    async with Rig(cloud, targets=(FAST,)) as rig:
        image = cloud.upload()
        await rig.resync()
        await rig.quiet()
        [volume] = cloud.of(image.id)
        cloud.ahead += 100.0
        evict = replace(asked(image, Wish.EVICT), wished_at=cloud.now(), due=cloud.now())
        cloud.ahead += 100.0
        await wish(rig, image, Wish.WARM)
    async with Rig(cloud, targets=(FAST,)) as rig:
        await rig.lanes.publish([evict])
        await rig.quiet()
        assert [one.id for one in cloud.of(image.id)] == [volume.id]
        assert not rig.parts.wishes.evicted(now=cloud.now())


@pytest.mark.parametrize("after", [False, True])
async def test_a_warm_in_the_middle_of_an_evict_is_the_last_word(after: bool) -> None:
    class Hooked(FakeCloud):
        hooks: list[Job]

        async def remove_from_store(self, image_id: str, store: str) -> None:
            if after:
                await super().remove_from_store(image_id, store)
            await rig.lanes.publish(self.hooks)
            if not after:
                await super().remove_from_store(image_id, store)

    cloud = Hooked(stores=dict(STORES))
    async with Rig(cloud, targets=(FAST,), policy=Policy(settle=0.0)) as rig:
        image = cloud.upload()
        await rig.resync()
        await rig.quiet()
        cloud.hooks = [asked(image, Wish.WARM)]
        await wish(rig, image, Wish.EVICT)
        assert cloud.calls["copy_image"] == 2
        assert states(rig, image)["fast"] is State.WARM
        assert not list(rig.prewarm.held_back())


async def test_the_last_copy_of_an_images_data_stays() -> None:
    cloud = FakeCloud(stores=dict(STORES))
    async with Rig(cloud, targets=(FAST,)) as rig:
        image = cloud.upload()
        await rig.resync()
        await rig.quiet()
        [volume] = cloud.of(image.id)
        # Its owner has removed it from Glance's other store
        cloud.locations[image.id] = tuple(
            one for one in cloud.locations[image.id] if one.volume_id == volume.id
        )
        await wish(rig, image, Wish.EVICT)
        assert cloud.of(image.id) == [volume] or cloud.of(image.id)[0].id == volume.id
        assert cloud.has_data(image.id)


async def test_what_is_not_ours_stays() -> None:
    cloud = FakeCloud(stores=dict(STORES))
    async with Rig(cloud, targets=(FAST,), policy=Policy(settle=0.0, min_size=1 << 50)) as rig:
        image = cloud.upload()
        cloud.user_copies(image.id, "cinder-fast")
        await cloud.quiet()
        [volume] = cloud.of(image.id)
        await rig.prewarm.prepare({})
        await wish(rig, image, Wish.EVICT)
        assert [one.id for one in cloud.of(image.id)] == [volume.id]


async def test_an_operator_gets_an_image_warm_that_nobody_uses_yet() -> None:
    cloud = FakeCloud(stores=dict(STORES))
    policy = Policy(when="used", settle=0.0, rewarm_interval=0.1)
    async with Rig(cloud, targets=(FAST, SLOW), policy=policy) as rig:
        image = cloud.upload()
        await rig.resync()
        await rig.quiet()
        assert states(rig, image) == {"fast": State.UNUSED, "slow": State.UNUSED}
        await wish(rig, image, Wish.WARM)
        assert states(rig, image) == {"fast": State.WARM, "slow": State.UNUSED}
        # And keeps it
        await rig.resync()
        await rig.quiet()
        assert states(rig, image)["fast"] is State.WARM


async def test_a_copy_for_another_target_leaves_a_paused_one_out() -> None:
    cloud = FakeCloud(stores=dict(STORES))
    async with Rig(cloud, targets=(FAST, SLOW)) as rig:
        rig.parts.wishes.paused = {"slow"}
        rig.runner.queue.pause({"prewarm.slow"})
        image = cloud.upload()
        await rig.resync()
        async with asyncio.timeout(10):
            while states(rig, image)["fast"] is not State.WARM:
                await asyncio.sleep(0.01)
        assert [volume.volume_type for volume in cloud.of(image.id)] == ["fast"]
        rig.parts.wishes.paused = set()
        rig.runner.queue.pause(set())
        await rig.quiet()
        assert states(rig, image) == {"fast": State.WARM, "slow": State.WARM}


async def test_an_evict_that_waited_for_longer_than_a_day_is_done_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a target that was paused over the weekend."""
    cloud = FakeCloud(stores=dict(STORES))
    async with Rig(cloud, targets=(FAST,)) as rig:
        image = cloud.upload()
        await rig.resync()
        await rig.quiet()
        rig.runner.queue.pause({"prewarm.fast"})
        monkeypatch.setattr("worker.core.wishes.HOLD_FOR", -1.0)
        await rig.lanes.publish([asked(image, Wish.EVICT)])
        await asyncio.sleep(0.1)
        monkeypatch.undo()
        rig.runner.queue.pause(set())
        await rig.quiet()
        assert not cloud.of(image.id)
        await rig.resync()
        await rig.quiet()
        assert not cloud.of(image.id)


async def test_a_wish_is_not_lost_in_a_job_that_waits_already() -> None:
    cloud = FakeCloud(stores=dict(STORES))
    policy = Policy(when="used", settle=0.0, rewarm_interval=0.1)
    async with Rig(cloud, targets=(FAST,), policy=policy) as rig:
        await rig.prewarm.prepare({})
        image = cloud.upload()
        rig.runner.queue.pause({"prewarm.fast"})
        key = Key("prewarm", image.id, "fast")
        await rig.lanes.publish([Job(key=key, cause="image.update", first_at=1.0, project="alice")])
        await rig.lanes.publish([asked(image, Wish.WARM)])
        await asyncio.sleep(0.1)
        [entry] = rig.runner.queue._entries.values()
        # What goes back into the lane has it, too
        assert (entry.job.cause, entry.job.wish, entry.job.project) == (
            OPERATOR,
            "warm",
            "an operator",
        )
        rig.runner.queue.pause(set())
        await rig.quiet()
        assert states(rig, image)["fast"] is State.WARM


async def test_a_resync_by_an_operator_is_no_wish_for_an_image_that_nobody_uses() -> None:
    cloud = FakeCloud(stores=dict(STORES))
    policy = Policy(when="used", settle=0.0, rewarm_interval=0.1)
    async with Rig(cloud, targets=(FAST,), policy=policy) as rig:
        await rig.prewarm.prepare({})
        image = cloud.upload()
        key = Key("prewarm", image.id, "fast")
        await rig.lanes.publish([Job(key=key, cause=OPERATOR, first_at=1.0)])
        await rig.quiet()
        assert states(rig, image)["fast"] is State.UNUSED


async def test_what_cannot_be_evicted_is_said_so() -> None:
    cloud = FakeCloud(stores=dict(STORES))
    async with Rig(cloud, targets=(FAST,)) as rig:
        image = cloud.upload()
        await rig.resync()
        await rig.quiet()
        [volume] = cloud.of(image.id)
        cloud.locations[image.id] = tuple(
            one for one in cloud.locations[image.id] if one.volume_id == volume.id
        )
        key = Key("prewarm", image.id, "fast")
        outcome = await rig.prewarm.reconcile(key, Polls(wish=Wish.EVICT))
        assert isinstance(outcome, Skip)
        assert "no other location" in outcome.reason


async def test_a_paused_lane_does_not_go_round_in_the_broker() -> None:
    cloud = FakeCloud(stores=dict(STORES))
    async with Rig(cloud, targets=(FAST,)) as rig:
        rig.runner.queue.pause({"prewarm.fast"})
        jobs = [
            Job(key=Key("prewarm", f"image-{n}", "fast"), cause="test", first_at=1.0, project="a")
            for n in range(2000)
        ]
        await rig.lanes.publish(jobs)
        published = 0
        publish = rig.lanes.publish

        async def counted(jobs: Iterable[Job], *, after: float = 0.0) -> None:
            nonlocal published
            jobs = tuple(jobs)
            published += len(jobs)
            await publish(jobs, after=after)

        rig.lanes.publish = counted  # type: ignore[method-assign]
        await asyncio.sleep(0.5)
        assert published == 0
