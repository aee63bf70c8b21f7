"""The runner: one key at a time, joins, limits, appointments, and one place that settles."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from handlers.volume_status import STALLED_AFTER
from worker.broker.memory import MemoryLanes
from worker.core.dead_letter import DeadLetter
from worker.core.deletions import Deletions
from worker.core.errors import Blocked, Conflict, Malformed, NotFound, Temporary
from worker.core.handler import Watch
from worker.core.job import FORGIVEN_AFTER, OPERATOR, Job, Key
from worker.core.outcome import Again, Done, Outcome, Park, Skip
from worker.core.uses import Uses
from worker.engine.appointments import LATE
from worker.engine.late import LOOK_EVERY
from worker.engine.limits import Limits
from worker.engine.retry import Backoff
from worker.engine.runner import Runner
from worker.observe.metrics import Metrics
from worker.testing.rig import Scripted, Work, job

ONE, TWO = Key("h", "one"), Key("h", "two")


class Acking(MemoryLanes):
    """Lanes that count how many deliveries of each key were let go."""

    def __init__(self) -> None:
        super().__init__()
        self.acked: Counter[Key] = Counter()

    def _ack(self, delivery: Any) -> None:
        self.acked[delivery.job.key] += 1
        super()._ack(delivery)


class Bed:
    """A runner over lanes in memory."""

    def __init__(self, work: Work, *, limits: Limits, backoff: Backoff, width: int) -> None:
        self.handler = Scripted(work, width=width)
        self.lanes = Acking()
        self.metrics = Metrics()
        self.runner = Runner(
            lanes=self.lanes,
            handlers={"h": self.handler},
            limits=limits,
            backoff=backoff,
            metrics=self.metrics,
            uses=Uses(),
            deletions=Deletions(),
        )
        self.queue = self.runner.queue

    async def give(self, *jobs: Job) -> None:
        await self.lanes.publish(jobs)

    async def until(self, check: Callable[[], object]) -> None:
        async with asyncio.timeout(10):
            while not check():
                await asyncio.sleep(0.002)

    async def quiet(self) -> None:
        await asyncio.sleep(0.01)
        await self.until(lambda: self.queue.idle and not self.lanes.depths()["h"])

    def outcomes(self, outcome: str) -> float:
        labels = {"handler": "h", "target": "", "outcome": outcome}
        return (
            self.metrics.registry.get_sample_value("image_volume_worker_jobs_total", labels) or 0.0
        )


@asynccontextmanager
async def running(
    work: Work, *, limits: Limits | None = None, backoff: Backoff | None = None, width: int = 2
) -> AsyncIterator[Bed]:
    bed = Bed(
        work,
        limits=limits or Limits(poll_min=0.005, poll_max=0.01, drain=2.0),
        backoff=backoff or Backoff(shortest=0.02, longest=0.05),
        width=width,
    )
    await bed.lanes.open({"h": 100}, bed.queue.deliver)
    yield bed
    await bed.runner.drain()
    await bed.lanes.close()


def answering(*outcomes: Outcome | Exception) -> Work:
    """Work that ends like this, one after the other; the last one for good."""
    left = list(outcomes)

    async def work(key: Key, watch: Watch) -> Outcome:
        outcome = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return work


@pytest.mark.parametrize("outcome", [Done(), Skip("not wanted")])
async def test_what_is_over_is_acked(outcome: Outcome) -> None:
    async with running(answering(outcome)) as bed:
        await bed.give(job(ONE))
        await bed.until(lambda: bed.handler.tries)
        await bed.quiet()
        await bed.lanes.close()
        assert bed.lanes.depths()["h"] == 0
        assert bed.outcomes(type(outcome).__name__.lower()) == 1


@pytest.mark.parametrize(
    "failure",
    [
        Again("busy"),
        Temporary("503"),
        Conflict("409"),
        NotFound("404"),
        Temporary("429", after=0.03),
    ],
)
async def test_what_failed_for_now_is_tried_again_and_counted(failure: Outcome | Exception) -> None:
    async with running(answering(failure, failure, Done())) as bed:
        await bed.give(job(ONE))
        await bed.until(lambda: bed.outcomes("done"))
        assert bed.outcomes("again") == 2
        assert len(bed.handler.tries) == 3
        assert bed.lanes.dead_letters() == ()


async def test_what_an_operator_has_to_mend_waits_long() -> None:
    async with running(
        answering(Blocked("403"), Done()), backoff=Backoff(shortest=0.001, longest=0.3)
    ) as bed:
        await bed.give(job(ONE))
        await bed.until(lambda: bed.outcomes("again"))
        began = time.monotonic()
        await bed.until(lambda: bed.outcomes("done"))
        assert time.monotonic() - began > 0.2


@pytest.mark.parametrize(
    ("failure", "tries"),
    [
        (Again("never works"), 3),
        (Park("a person has to look"), 1),
        (Malformed("nonsense"), 1),
        (ZeroDivisionError(), 1),
    ],
)
async def test_what_never_works_becomes_a_dead_letter(
    failure: Outcome | Exception, tries: int
) -> None:
    async with running(answering(failure), limits=Limits(max_attempts=3, drain=1.0)) as bed:
        await bed.give(job(ONE))
        await bed.until(bed.lanes.dead_letters)
        (letter,) = bed.lanes.dead_letters()
        assert letter.job
        assert letter.job.key == ONE
        assert letter.job.attempt == tries
        assert letter.reason
        assert len(bed.handler.tries) == tries
        if isinstance(failure, Exception):
            assert "Traceback" in letter.traceback


async def test_waits_that_are_no_failure_are_not_counted() -> None:
    waits = [Again("not quiet yet", after=0.005, counted=False)] * 10
    async with running(answering(*waits, Done()), limits=Limits(max_attempts=3, drain=1.0)) as bed:
        await bed.give(job(ONE))
        await bed.until(lambda: bed.outcomes("done"))
        assert bed.lanes.dead_letters() == ()


def test_failures_of_long_ago_are_none_in_a_row() -> None:
    """One that waits for weeks meets an outage now and then."""
    first = job(ONE).failed("an outage", now=1000.0).failed("an outage", now=2000.0)
    assert first.attempt == 2
    assert first.failed("another", now=2001.0 + FORGIVEN_AFTER).attempt == 1
    assert first.failed("another", now=1999.0 + FORGIVEN_AFTER).attempt == 3
    # Noted by a clock that was ahead
    assert first.failed("another", now=100.0).attempt == 1


async def test_a_key_is_worked_on_by_one_at_a_time_and_deliveries_join() -> None:
    inside = 0
    most = 0

    async def work(key: Key, watch: Watch) -> Outcome:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0.03)
        inside -= 1
        return Done()

    async with running(work, width=10) as bed:
        await bed.give(job(ONE))
        await bed.until(lambda: bed.handler.tries)
        await bed.give(*(job(ONE) for _ in range(50)))
        await bed.quiet()
        assert most == 1
        # All that came while it ran are answered by one more look
        assert len(bed.handler.tries) == 2
        await bed.lanes.close()
        assert bed.lanes.depths()["h"] == 0


async def test_no_more_than_the_lane_allows_at_once() -> None:
    inside = 0
    most = 0

    async def work(key: Key, watch: Watch) -> Outcome:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0.005)
        inside -= 1
        return Done()

    async with running(work, width=3) as bed:
        await bed.give(*(job(Key("h", str(number))) for number in range(30)))
        await bed.quiet()
        assert most == 3
        assert len(bed.handler.tries) == 30


async def test_a_poke_wakes_a_job_that_waits() -> None:
    async def work(key: Key, watch: Watch) -> Outcome:
        await watch.changed()
        return Done()

    limits = Limits(poll_min=60.0, poll_max=60.0, drain=1.0)
    async with running(work, limits=limits) as bed:
        await bed.give(job(ONE))
        await bed.until(lambda: bed.handler.tries)
        assert bed.queue.poke(job(ONE))
        assert not bed.queue.poke(job(TWO))
        await bed.until(lambda: bed.outcomes("done"))


async def test_polls_back_off() -> None:
    moments: list[float] = []

    async def work(key: Key, watch: Watch) -> Outcome:
        for _ in range(5):
            moments.append(time.monotonic())
            await watch.changed()
        return Done()

    async with running(work, limits=Limits(poll_min=0.02, poll_max=0.2, drain=1.0)) as bed:
        await bed.give(job(ONE))
        await bed.until(lambda: bed.outcomes("done"))
    # 0.02, 0.03, 0.045, 0.0675; without backing off it would be over after 0.08
    assert moments[-1] - moments[0] > 0.15


async def test_while_a_failed_key_waits_notifications_of_it_do_not_start_it() -> None:
    async with running(answering(Again("busy", after=5.0), Done())) as bed:
        await bed.give(job(ONE))
        await bed.until(lambda: bed.outcomes("again"))
        assert bed.queue.poke(job(ONE))
        await bed.give(job(ONE), job(ONE, attempt=2))
        await asyncio.sleep(0.05)
        assert len(bed.handler.tries) == 1
        # But a person who wants it now gets it now
        assert not bed.queue.poke(job(ONE, cause=OPERATOR))
        await bed.give(job(ONE, cause=OPERATOR))
        await bed.until(lambda: bed.outcomes("done"))


async def test_a_parked_key_is_left_alone_for_a_while() -> None:
    limits = Limits(max_attempts=1, park_retry_after=1.0, drain=1.0)
    async with running(answering(Again("no"), Done()), limits=limits) as bed:
        await bed.give(job(ONE))
        await bed.until(bed.lanes.dead_letters)
        assert bed.queue.poke(job(ONE, cause="resync"))
        await asyncio.sleep(1.1)
        assert not bed.queue.poke(job(ONE, cause="resync"))


async def test_a_job_that_hangs_is_ended() -> None:
    async def work(key: Key, watch: Watch) -> Outcome:
        if len(bed.handler.tries) == 1:
            await asyncio.sleep(3600)
        return Done()

    async with running(work, limits=Limits(job=0.05, drain=1.0)) as bed:
        await bed.give(job(ONE))
        await bed.until(lambda: bed.outcomes("done"))
        assert bed.outcomes("again") == 1


async def test_a_delivery_is_not_held_for_ever() -> None:
    async def work(key: Key, watch: Watch) -> Outcome:
        while len(bed.handler.tries) < 3:
            await watch.changed()
        return Done()

    async with running(
        work, limits=Limits(hold=0.05, poll_min=0.01, max_attempts=2, drain=1.0)
    ) as bed:
        await bed.give(job(ONE))
        await bed.until(lambda: bed.outcomes("done"))
        assert bed.outcomes("wait") == 2
        assert bed.outcomes("again") == 0


async def test_draining_gives_back_what_waits_and_lets_the_rest_end() -> None:
    ended: list[Key] = []

    async def work(key: Key, watch: Watch) -> Outcome:
        if key == ONE:
            while True:
                await watch.changed()
        await asyncio.sleep(0.05)
        ended.append(key)
        return Done()

    async with running(work, limits=Limits(poll_min=60, drain=5.0)) as bed:
        third = Key("h", "three")
        await bed.give(job(ONE), job(TWO), job(third))
        await bed.until(lambda: len(bed.handler.tries) == 2)
        await bed.runner.drain()
        await bed.lanes.close()
        assert ended == [TWO]
        left: list[Key] = []
        await bed.lanes.open({"h": 100}, lambda delivery: left.append(delivery.job.key))
        await asyncio.sleep(0.02)
        assert set(left) == {ONE, third}


async def test_draining_does_not_wait_for_ever() -> None:
    async def work(key: Key, watch: Watch) -> Outcome:
        await asyncio.sleep(3600)
        return Done()

    async with running(work, limits=Limits(drain=0.05)) as bed:
        await bed.give(job(ONE))
        await bed.until(lambda: bed.handler.tries)
        async with asyncio.timeout(5):
            await bed.runner.drain()
        await bed.lanes.close()
        assert bed.lanes.depths()["h"] == 1


async def test_a_job_of_a_lane_that_is_no_more_is_dropped() -> None:
    async with running(answering(Done())) as bed:
        await bed.lanes.open({"h": 100, "old.target": 10}, bed.queue.deliver)
        await bed.give(job(Key("old", "i", "target")))
        await asyncio.sleep(0.02)
        assert bed.handler.tries == []
        await bed.lanes.close()
        assert bed.lanes.depths()["old.target"] == 0


@pytest.mark.parametrize(
    "odd",
    [
        # Ids end up in URLs, in logs and on pages
        {"key": ["prewarm", "../../v2/tasks", "fast"]},
        {"key": ["prewarm", "..", "fast"]},
        {"key": ["prewarm", "i?y=1#z", "fast"]},
        {"key": ["prewarm", "i\r\nHost: x", "fast"]},
        {"key": ["prewarm", "\ud800", "fast"]},
        {"key": ["prewarm", "a" * 100_000, "fast"]},
        {"key": ["prewarm", "i", "fast\n"]},
        {"deleted_volume": "a/b"},
        {"used_by": "a" * 1000},
        # Neither times nor JSON
        {"first_at": math.nan},
        {"due": math.inf},
        {"due": 1e300},
        {"used": math.inf},
        {"first_at": "1"},
        # It would be tried a thousand million times without a pause
        {"attempt": -(10**9)},
        {"attempt": 10**200},
    ],
    ids=repr,
)
def test_what_no_worker_writes_is_no_job(odd: dict[str, object]) -> None:
    one = Job(key=Key("prewarm", "i", "fast"), cause="x", first_at=1.5)
    with pytest.raises(Malformed):
        Job.from_bytes(json.dumps(json.loads(one.to_bytes()) | odd).encode())


def test_backoff_grows_to_its_bound_with_jitter() -> None:
    lowest = Backoff(shortest=5, longest=900, jitter=lambda: 0.0)
    highest = Backoff(shortest=5, longest=900, jitter=lambda: 1.0)
    assert [highest.after(n) for n in (0, 1, 2, 7, 8, 500)] == [5, 10, 20, 640, 900, 900]
    assert [lowest.after(n) for n in (0, 1, 500)] == [2.5, 5, 450]


def test_jobs_and_dead_letters_survive_the_wire() -> None:
    one = Job(
        key=Key("prewarm", "i", "fast"),
        cause="image.update m",
        attempt=3,
        first_at=1.5,
        due=2.5,
        reason="ü",
        failed_at=2.25,
    )
    assert Job.from_bytes(one.to_bytes()) == one
    for letter in (
        DeadLetter(lane="intake", reason="r", last_at=1.0, body=b"\xff\x00"),
        DeadLetter(lane="prewarm.fast", reason="r", last_at=1.0, job=one, traceback="t"),
    ):
        assert DeadLetter.from_bytes(letter.to_bytes()) == letter
    for wrong in (
        b"",
        b"{}",
        b"[]",
        b'{"key": [1, 2], "cause": "", "attempt": 0, "first_at": 0, "due": 0, "reason": ""}',
    ):
        with pytest.raises(Malformed):
            Job.from_bytes(wrong)
        with pytest.raises(Malformed):
            DeadLetter.from_bytes(wrong)


class Confirming(MemoryLanes):
    """Lanes that, like a broker, may hand out what is published before they have confirmed it."""

    async def publish(self, jobs: Iterable[Job], *, after: float = 0.0) -> None:
        await super().publish(jobs, after=after)
        await asyncio.sleep(0.01)


async def test_the_copy_for_the_next_try_is_not_acked_with_the_old_one() -> None:
    limits = Limits(poll_min=0.005, drain=1.0)
    lanes, handler = (
        Confirming(),
        Scripted(answering(Again("held", after=0.0, counted=False), Done())),
    )
    runner = Runner(
        lanes=lanes,
        handlers={"h": handler},
        limits=limits,
        backoff=Backoff(),
        metrics=Metrics(),
        uses=Uses(),
        deletions=Deletions(),
    )
    await lanes.open({"h": 100}, runner.queue.deliver)
    await lanes.publish([job(ONE)])
    async with asyncio.timeout(5):
        while len(handler.tries) < 2:
            await asyncio.sleep(0.005)
    await runner.drain()
    await lanes.close()
    assert lanes.depths()["h"] == 0


async def test_what_is_heard_while_leaving_is_kept_for_the_next_start() -> None:
    async def work(key: Key, watch: Watch) -> Outcome:
        await asyncio.sleep(0.05)
        return Done()

    async with running(work) as bed:
        await bed.give(job(ONE))
        await bed.until(lambda: bed.handler.tries)
        bed.queue.poke(job(ONE))
        await bed.runner.drain()
        await bed.lanes.close()
        assert bed.lanes.depths()["h"] == 1


async def test_a_burst_of_one_project_does_not_starve_another() -> None:
    async def work(key: Key, watch: Watch) -> Outcome:
        await asyncio.sleep(0.005)
        return Done()

    burst = [Key("h", f"burst-{number}") for number in range(500)]
    async with running(work) as bed:
        await bed.give(
            *(job(key, project="a") for key in burst), job(ONE, project="b"), job(TWO, project="c")
        )
        await bed.quiet()
        tries = bed.handler.tries
        assert max(tries.index(ONE), tries.index(TWO)) < 50
        assert sorted(tries) == sorted([*burst, ONE, TWO])
        assert bed.metrics.activity.oldest() == {}


async def test_what_is_put_back_survives_a_stop() -> None:
    begun = asyncio.Event()

    async def work(key: Key, watch: Watch) -> Outcome:
        begun.set()
        await asyncio.sleep(3600)
        return Done()

    burst = {Key("h", f"burst-{number}") for number in range(500)}
    async with running(work, limits=Limits(drain=0.05)) as bed:
        await bed.give(*(job(key, project="a") for key in burst))
        await begun.wait()
        await asyncio.sleep(0.02)
        await bed.runner.drain()
        await bed.lanes.close()
        assert bed.lanes.depths()["h"] >= 500
        left: list[Key] = []
        await bed.lanes.open({"h": 10_000}, lambda delivery: left.append(delivery.job.key))
        await asyncio.sleep(0.05)
        assert set(left) == burst


async def test_what_waits_in_a_lane_is_not_put_there_again() -> None:
    free = asyncio.Event()

    async def work(key: Key, watch: Watch) -> Outcome:
        await free.wait()
        return Done()

    async with running(work, width=1) as bed:
        # As many as it takes at once, and one that is left in the lane
        await bed.give(*(job(Key("h", str(number))) for number in range(100)), job(ONE))
        await bed.until(lambda: bed.lanes.depths()["h"] == 1)
        assert bed.queue.poke(job(ONE))
        assert not bed.queue.poke(job(TWO))
        # A person's goes through: a job that waits may turn out to be put off when its turn comes
        assert not bed.queue.poke(replace(job(ONE), cause=OPERATOR))
        free.set()
        await bed.until(lambda: ONE in bed.handler.tries)
        await bed.quiet()
        assert not bed.queue.poke(job(ONE))


async def test_what_waits_for_a_slot_for_too_long_goes_back_into_its_lane() -> None:
    free = asyncio.Event()

    async def work(key: Key, watch: Watch) -> Outcome:
        await free.wait()
        return Done()

    keys = [Key("h", str(number)) for number in range(5)]
    async with running(work, width=1, limits=Limits(hold=0.3, drain=1.0)) as bed:
        await bed.give(*(job(key) for key in keys))
        await bed.until(lambda: bed.handler.tries)
        bed.queue.tidy()
        assert sum(bed.lanes.acked.values()) == 0
        await asyncio.sleep(0.15)
        bed.queue.tidy()
        # All but the one in progress were published anew before their old deliveries were let go
        await bed.until(lambda: len(bed.lanes.acked) == 4)
        free.set()
        await bed.quiet()
        assert bed.handler.tries == keys
        assert bed.outcomes("done") == 5


@pytest.mark.parametrize("asked", [0.0, 0.001])
async def test_a_service_that_asks_for_less_patience_gets_ours(asked: float) -> None:
    backoff = Backoff(shortest=0.05, longest=10.0, jitter=lambda: 1.0)
    began = time.monotonic()
    async with running(
        answering(Temporary("503", after=asked), Temporary("503", after=asked), Done()),
        backoff=backoff,
    ) as bed:
        await bed.give(job(ONE))
        await bed.until(lambda: bed.outcomes("done"))
    assert time.monotonic() - began >= 0.15


async def test_deliveries_of_a_key_in_progress_take_no_room() -> None:
    free = asyncio.Event()

    async def work(key: Key, watch: Watch) -> Outcome:
        if key == ONE:
            await free.wait()
        return Done()

    async with running(work) as bed:
        await bed.give(job(ONE))
        await bed.until(lambda: bed.handler.tries)
        # More than are handed out at once
        for _ in range(150):
            await bed.give(job(ONE))
        await bed.give(job(TWO))
        await bed.until(lambda: TWO in bed.handler.tries)
        # One of them keeps the job safe
        assert bed.lanes.acked[ONE] == 150
        free.set()
        await bed.quiet()
        assert bed.lanes.acked == {ONE: 151, TWO: 1}


async def test_what_changes_all_the_time_does_not_keep_its_slot() -> None:
    async def work(key: Key, watch: Watch) -> Outcome:
        if key == ONE:
            bed.queue.poke(job(ONE))
        return Done(changed=key == ONE, warmed=key == ONE)

    async with running(work, width=1, limits=Limits(poll_min=0.02, drain=1.0)) as bed:
        await bed.give(job(ONE), job(TWO))
        await bed.until(lambda: TWO in bed.handler.tries)
        assert bed.handler.tries == [ONE, ONE, TWO]
        # It is looked at again, and what was done is told
        await bed.until(lambda: bed.handler.tries.count(ONE) >= 4)
        assert (
            bed.metrics.registry.get_sample_value(
                "image_volume_worker_images_warmed_total", {"target": ""}
            )
            >= 1
        )
        assert bed.lanes.dead_letters() == ()


async def test_keys_that_went_to_another_worker_are_forgotten() -> None:
    async with running(answering(Again("busy", after=1000.0, wake_on_notification=True))) as bed:
        await bed.give(job(ONE))
        await bed.until(lambda: bed.outcomes("again"))
        appointments = bed.queue._appointments
        appointments._parked[TWO] = (time.time() - 1.0, 60.0)
        appointments._due[ONE] -= 10_000.0
        bed.queue._late._tidied -= 1000.0
        bed.queue.tidy()
        assert not appointments._parked
        assert not appointments._due
        assert not appointments._waking


async def settling(bed: Bed, outcome: Again) -> asyncio.Event:
    """Have the copy for the next try wait for its confirm, as with a broker that is away; set what
    comes back."""
    confirmed = asyncio.Event()
    publish = bed.lanes.publish

    async def slowly(jobs: Iterable[Job], *, after: float = 0.0) -> None:
        if after:
            await confirmed.wait()
        await publish(jobs, after=after)

    bed.lanes.publish = slowly  # type: ignore[method-assign]
    await bed.give(job(ONE))
    await bed.until(lambda: bed.queue._entries.get(ONE) and bed.queue._entries[ONE].settling)
    return confirmed


@pytest.mark.parametrize("news", [True, False])
async def test_what_comes_while_an_outcome_is_written_down_is_not_lost(news: bool) -> None:
    outcome = Again("a volume in use", after=600.0, counted=False, wake_on_notification=news)
    async with running(answering(outcome)) as bed:
        confirmed = await settling(bed, outcome)
        if not bed.queue.poke(job(ONE)):
            await bed.give(job(ONE))
        confirmed.set()
        await bed.quiet()
        # Where no news is worth a look, the one that is due anyway answers it
        assert len(bed.handler.tries) == 1 + news
        assert not bed.lanes._lanes["h"].unacked


@pytest.mark.parametrize("answer", [None, 5, Again("soon", after="x")])  # type: ignore[arg-type]
async def test_an_answer_that_is_no_outcome_is_a_dead_letter_and_holds_up_nobody(
    answer: Any,
) -> None:
    async def work(key: Key, watch: Watch) -> Outcome:
        return answer if key.image_id.startswith("bad") else Done()  # type: ignore[no-any-return]

    async with running(work) as bed:
        bad, good = ([job(Key("h", f"{kind}{n}")) for n in range(20)] for kind in ("bad", "good"))
        await bed.give(*bad, *good)
        await bed.quiet()
        assert len(bed.lanes.dead_letters()) == 20
        assert len({key for key in bed.handler.tries if key.image_id.startswith("good")}) == 20
        assert not bed.lanes._lanes["h"].unacked


async def test_a_lost_job_makes_no_further_step_and_settles_nothing() -> None:
    steps: list[str] = []

    async def work(key: Key, watch: Watch) -> Outcome:
        for number in range(1000):
            watch.tell(f"step {number}")
            steps.append(key.image_id)
            await asyncio.sleep(0.005)
        return Done()

    async with running(work, width=1) as bed:
        await bed.give(job(ONE), job(TWO))
        await bed.until(lambda: len(steps) > 3)
        bed.queue.lose("h")
        await bed.until(lambda: bed.queue.idle)
        assert set(steps) == {"one"}
        # Nothing is acked, or published again: whoever has the lane now has both
        assert not bed.lanes.acked
        assert len(bed.lanes._lanes["h"].unacked) == 2
        assert bed.outcomes("again") == bed.outcomes("done") == 0


async def test_a_lost_job_that_is_delivered_here_again_goes_on() -> None:
    began = asyncio.Event()
    go_on = asyncio.Event()

    async def work(key: Key, watch: Watch) -> Outcome:
        began.set()
        await go_on.wait()
        watch.tell("next step")
        return Done()

    async with running(work) as bed:
        await bed.give(job(ONE))
        await began.wait()
        bed.queue.lose("h")
        await bed.give(job(ONE))
        await bed.until(lambda: not bed.lanes.depths()["h"])
        go_on.set()
        await bed.until(lambda: bed.outcomes("done") >= 1)


async def test_a_lost_job_that_waits_ends_at_once() -> None:
    async def work(key: Key, watch: Watch) -> Outcome:
        await watch.changed()
        await watch.changed()
        return Done()

    async with running(work, limits=Limits(poll_min=30.0, poll_max=60.0, drain=2.0)) as bed:
        await bed.give(job(ONE))
        await bed.until(lambda: bed.handler.tries)
        bed.queue.lose("h")
        await bed.until(lambda: bed.queue.idle)
        assert not bed.lanes.acked


async def test_a_try_that_is_due_and_does_not_come_is_brought_once() -> None:
    async with running(answering(Again("busy", after=1.0), Done())) as bed:
        add, stuck = bed.lanes._add, list[Job]()
        bed.lanes._add = stuck.extend  # type: ignore[method-assign]
        add([job(ONE)])
        await bed.until(lambda: bed.outcomes("again"))
        # Nothing is late yet
        await asyncio.sleep(1.0 + LATE / 2)
        bed.queue.tidy()
        await asyncio.sleep(0.1)
        assert bed.handler.tries == [ONE]
        bed.lanes._add = add  # type: ignore[method-assign]
        await asyncio.sleep(LATE)
        bed.queue.tidy()
        await bed.until(lambda: bed.outcomes("done"))
        await asyncio.sleep(LATE)
        bed.queue.tidy()
        await bed.quiet()
        assert bed.handler.tries == [ONE, ONE]
        # What was stuck comes after all: one more look, which finds nothing to do
        assert len(stuck) == 1
        add(stuck)
        await bed.until(lambda: bed.outcomes("done") == 2)


async def test_a_late_try_is_no_second_look_where_another_worker_has_looked_and_waits() -> None:
    async with running(answering(Again("busy", after=1.0))) as standby:
        # The lane went to another worker, and with it what was due here
        brought = list[Job]()
        add = standby.lanes._add
        standby.lanes._add = brought.extend  # type: ignore[method-assign]
        add([job(ONE)])
        await standby.until(lambda: standby.outcomes("again"))
        await asyncio.sleep(1.0 + LATE + LOOK_EVERY)
        standby.runner.queue.tidy()
        await standby.until(lambda: len(brought) == 2)
    waits = Again("a volume is being made", after=600.0, counted=False, wake_on_notification=True)
    async with running(answering(waits, Done())) as active:
        await active.give(job(ONE))
        await active.until(lambda: active.outcomes("wait"))
        await active.give(brought[1])
        await active.until(lambda: not active.lanes.depths()["h"])
        await active.quiet()
        assert active.handler.tries == [ONE]


async def test_a_try_that_waits_in_a_long_lane_is_not_brought() -> None:
    free = asyncio.Event()
    tries: list[Key] = []

    async def work(key: Key, watch: Watch) -> Outcome:
        tries.append(key)
        if key == ONE and tries.count(ONE) == 1:
            return Again("busy", after=1.0)
        if key != ONE:
            await free.wait()
        return Done()

    async with running(work, width=1) as bed:
        await bed.give(job(ONE))
        await bed.until(lambda: bed.outcomes("again"))
        await bed.give(*(job(Key("h", str(number))) for number in range(110)))
        await asyncio.sleep(1.0 + 2 * LATE)
        bed.queue.tidy()
        free.set()
        await bed.until(lambda: bed.outcomes("done") == 111)
        await bed.quiet()
        assert tries.count(ONE) == 2


async def test_nothing_is_begun_in_a_lane_that_is_paused_and_what_is_in_progress_goes_on() -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def work(key: Key, watch: Watch) -> Outcome:
        begun.set()
        await go_on.wait()
        return Done()

    async with running(work, width=1) as bed:
        await bed.give(job(ONE), job(TWO))
        await begun.wait()
        bed.queue.pause({"h"})
        go_on.set()
        await bed.until(lambda: bed.outcomes("done") == 1)
        await bed.give(job(Key("h", "three")))
        await asyncio.sleep(0.1)
        # Another target's pause changes nothing
        bed.queue.pause({"h", "other"})
        await asyncio.sleep(0.1)
        assert bed.handler.tries == [ONE]
        bed.queue.pause(set())
        await bed.quiet()
        assert bed.outcomes("done") == 3


def test_the_slowest_failure_in_a_row_is_not_forgiven() -> None:
    """A volume that Cinder never makes is given up after hours, and made again."""
    assert 4 * (STALLED_AFTER + Backoff().longest) < FORGIVEN_AFTER


async def test_a_job_of_a_lane_that_went_to_another_worker_is_none_in_progress_here() -> None:
    begun = asyncio.Event()

    async def work(key: Key, watch: Watch) -> Outcome:
        begun.set()
        while True:
            await watch.changed()

    async with running(work) as bed:
        await bed.give(job(ONE))
        await begun.wait()
        await bed.lanes.close()
        bed.queue.lose("h")
        await bed.until(lambda: bed.queue.idle)
        assert bed.metrics.activity.oldest() == {}


async def test_a_job_whose_letter_is_not_taken_stays_in_its_lane(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def refuse(letters: Iterable[DeadLetter]) -> None:
        raise Temporary("the queue q.dead takes no dead letters")

    async with running(answering(Park("broken"))) as bed:
        with monkeypatch.context() as patch:
            patch.setattr(bed.lanes, "bury", refuse)
            await bed.give(replace(job(ONE), wish="warm", wish_id="w"))
            await bed.until(lambda: bed.outcomes("park") > 2)
            assert not bed.lanes.dead_letters()
        await bed.until(bed.lanes.dead_letters)
        [letter] = bed.lanes.dead_letters()
        assert (letter.reason, letter.job and letter.job.wish) == ("broken", "warm")


@pytest.mark.parametrize("outcome", [Again("busy", after=5.0), Park("broken")])
async def test_what_a_person_asks_for_in_the_middle_of_a_try_is_tried_at_once(
    outcome: Outcome,
) -> None:
    begun, asked, seen = asyncio.Event(), asyncio.Event(), list[str]()

    async def work(key: Key, watch: Watch) -> Outcome:
        seen.append(wish := watch.wish)
        begun.set()
        await asked.wait()
        return Done() if wish else outcome

    async with running(work) as bed:
        await bed.give(job(ONE))
        await begun.wait()
        await bed.give(replace(job(ONE, cause=OPERATOR), wish="warm", wish_id="w"))
        await bed.until(lambda: bed.queue._entries[ONE].job.wish)
        asked.set()
        await bed.until(lambda: bed.outcomes("done"))
        assert seen == ["", "warm"]
        assert not bed.lanes.dead_letters()
        assert bed.queue.due() == 0
