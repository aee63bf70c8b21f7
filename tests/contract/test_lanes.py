"""Every kind of lanes keeps the same promises; `memory` loses its jobs with the object, `rabbit`
with nothing."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping

import pytest

from tests.broker.hands import Hands, jobs, until
from tests.broker.rabbitmq import RabbitMQ
from worker.broker.lanes import RabbitLanes
from worker.broker.memory import MemoryLanes
from worker.core.dead_letter import DeadLetter
from worker.core.job import Job, Key
from worker.core.lanes import Lanes

QUEUE = "contract"
Open = Callable[..., Awaitable[Lanes]]


@pytest.fixture
def lane() -> str:
    """A lane that no other test uses."""
    return f"lane-{uuid.uuid4().hex[:8]}"


@pytest.fixture(params=["memory", "rabbit"])
def lanes(request: pytest.FixtureRequest, lane: str) -> Iterator[Callable[[], Lanes]]:
    """Makes lanes: in memory always the same, as they are all there is; on RabbitMQ new ones, as a
    new process does."""
    if request.param == "memory":
        memory = MemoryLanes()
        yield lambda: memory
    else:
        broker: RabbitMQ = request.getfixturevalue("rabbitmq")
        yield lambda: RabbitLanes(url=broker.url, queue=QUEUE)
        broker.delete(f"{QUEUE}.{lane}", f"{QUEUE}.{lane}-2", f"{QUEUE}.dead")


@pytest.fixture
async def opened(lanes: Callable[[], Lanes]) -> AsyncIterator[Open]:
    """Opens lanes and waits until they are; closes them at the end."""
    used: list[Lanes] = []

    async def open_lanes(hands: Hands, prefetch: Mapping[str, int]) -> Lanes:
        made = lanes()
        used.append(made)
        await made.open(prefetch, hands)
        await until(lambda: made.problem() is None)
        return made

    yield open_lanes
    for made in used:
        await made.close()


async def test_a_job_comes_out_as_it_went_in(opened: Open, lane: str) -> None:
    hands = Hands()
    made = await opened(hands, {f"{lane}.fast": 10, lane: 10})
    job = Job(
        key=Key(lane, "image", ""),
        cause="imäge.activate",
        attempt=3,
        first_at=12.5,
        reason="Cinder: 503",
    )
    await made.publish([job])
    await hands.have(1)
    assert hands.held[0].job == job


async def test_jobs_of_a_lane_keep_their_order(opened: Open, lane: str) -> None:
    hands = Hands()
    made = await opened(hands, {lane: 1000})
    await made.publish(jobs(lane, 50))
    await made.publish(jobs(lane, 50, first=50))
    assert await hands.have(100) == [str(number) for number in range(100)]


async def test_a_thousand_jobs_at_once(opened: Open, lane: str) -> None:
    hands = Hands()
    made = await opened(hands, {lane: 2000})
    await made.publish(jobs(lane, 1000))
    assert await hands.have(1000) == [str(number) for number in range(1000)]


async def test_nothing_to_publish_is_nothing_to_wait_for(opened: Open, lane: str) -> None:
    made = await opened(Hands(), {lane: 1})
    await made.publish([])
    await made.bury([])


async def test_no_more_than_prefetch_are_handed_out_until_one_is_acked(
    opened: Open, lane: str
) -> None:
    hands = Hands()
    made = await opened(hands, {lane: 3})
    await made.publish(jobs(lane, 10))
    assert await hands.have(3) == ["0", "1", "2"]
    await until(lambda: made.depths().get(lane) == 7)
    assert hands.images == ["0", "1", "2"]
    hands.held[1].ack()
    assert await hands.have(4) == ["0", "1", "2", "3"]


async def test_lanes_do_not_wait_for_each_other(opened: Open, lane: str) -> None:
    hands = Hands()
    made = await opened(hands, {lane: 1, f"{lane}-2": 1})
    await made.publish(jobs(lane, 5))
    await hands.have(1)
    await made.publish(jobs(f"{lane}-2", 1, first=100))
    assert await hands.have(2) == ["0", "100"]


async def test_a_delayed_job_is_not_early(opened: Open, lane: str) -> None:
    hands = Hands()
    made = await opened(hands, {lane: 10})
    begun = time.monotonic()
    await made.publish(jobs(lane, 2), after=1.3)
    assert await hands.have(2) == ["0", "1"]
    assert time.monotonic() - begun >= 1.3


async def test_a_job_does_not_wait_for_a_delayed_one(opened: Open, lane: str) -> None:
    hands = Hands()
    made = await opened(hands, {lane: 10})
    await made.publish(jobs(lane, 1), after=600.0)
    await made.publish(jobs(lane, 1, first=100))
    assert await hands.have(1) == ["100"]


async def test_what_is_acked_does_not_come_back(opened: Open, lane: str) -> None:
    first, second = Hands(), Hands()
    made = await opened(first, {lane: 10})
    await made.publish(jobs(lane, 4))
    await first.have(4)
    first.ack()
    await made.close()
    made = await opened(second, {lane: 10})
    await made.publish(jobs(lane, 1, first=100))
    assert await second.have(1) == ["100"]


async def test_what_is_not_acked_comes_back_in_order(opened: Open, lane: str) -> None:
    first, second = Hands(), Hands()
    made = await opened(first, {lane: 4})
    await made.publish(jobs(lane, 6))
    await first.have(4)
    first.held[1].ack()
    await made.close()
    await opened(second, {lane: 10})
    received = await second.have(5)
    assert sorted(received) == ["0", "2", "3", "4", "5"]
    assert received[:3] == ["0", "2", "3"]


async def test_nothing_is_handed_out_after_close(opened: Open, lane: str) -> None:
    hands = Hands()
    made = await opened(hands, {lane: 1})
    await made.publish(jobs(lane, 2))
    await hands.have(1)
    await made.close()
    hands.held[0].ack()
    await asyncio.sleep(0.2)
    assert hands.images == ["0"]
    assert made.problem() is not None


async def test_an_ack_after_the_lane_took_the_job_back_is_without_effect(
    opened: Open, lane: str
) -> None:
    first, second = Hands(), Hands()
    made = await opened(first, {lane: 10})
    await made.publish(jobs(lane, 1))
    await first.have(1)
    await made.close()
    await opened(second, {lane: 10})
    await second.have(1)
    first.held[0].ack()
    second.held[0].ack()


async def test_acking_twice_is_acking_once(opened: Open, lane: str) -> None:
    hands = Hands()
    made = await opened(hands, {lane: 1})
    await made.publish(jobs(lane, 3))
    await hands.have(1)
    hands.held[0].ack()
    hands.held[0].ack()
    assert await hands.have(2) == ["0", "1"]
    hands.held[1].ack()
    assert await hands.have(3) == ["0", "1", "2"]


async def test_dead_letters_are_counted(opened: Open, lane: str) -> None:
    made = await opened(Hands(), {lane: 1})
    letters = [
        DeadLetter(lane=lane, reason="gave up", last_at=2.0, job=job) for job in jobs(lane, 3)
    ]
    await made.bury(letters)
    await until(lambda: made.depths().get("dead") == 3)


async def test_depths_count_what_waits_and_not_what_is_handed_out(opened: Open, lane: str) -> None:
    hands = Hands()
    made = await opened(hands, {lane: 2})
    await made.publish(jobs(lane, 5))
    await hands.have(2)
    await until(lambda: made.depths().get(lane) == 3)


async def test_jobs_wait_for_a_lane_that_is_opened_later(opened: Open, lane: str) -> None:
    hands = Hands()
    made = await opened(Hands(), {})
    await made.publish(jobs(lane, 2))
    await made.close()
    await opened(hands, {lane: 10})
    assert await hands.have(2) == ["0", "1"]


async def test_publishing_needs_no_open_lane(
    lanes: Callable[[], Lanes], opened: Open, lane: str
) -> None:
    made = lanes()
    await made.publish(jobs(lane, 1))
    await made.close()
    hands = Hands()
    await opened(hands, {lane: 1})
    assert await hands.have(1) == ["0"]


async def test_the_newest_dead_letters_stay_in_memory(lane: str) -> None:
    memory = MemoryLanes(keep_dead=2)
    letters = [DeadLetter(lane=lane, reason=str(number), last_at=2.0) for number in range(3)]
    await memory.bury(letters)
    assert memory.dead_letters() == tuple(letters[1:])


async def test_dead_letters_lie_in_their_queue(rabbitmq: RabbitMQ, lane: str) -> None:
    made = RabbitLanes(url=rabbitmq.url, queue=QUEUE)
    (job,) = jobs(lane, 1)
    letter = DeadLetter(lane=lane, reason="gave up", last_at=2.0, job=job, traceback="Traceback …")
    await made.bury([letter])
    await made.close()
    assert [DeadLetter.from_bytes(body) for body in rabbitmq.bodies(f"{QUEUE}.dead")] == [letter]


async def test_bytes_that_are_no_job_become_a_dead_letter(rabbitmq: RabbitMQ, lane: str) -> None:
    hands = Hands()
    made = RabbitLanes(url=rabbitmq.url, queue=QUEUE)
    await made.open({lane: 1}, hands)
    await made.publish(jobs(lane, 1))
    bad = (b"{", b"", b"\xff\xfe", b'{"key":["a"]}')
    rabbitmq.publish(*bad, routing_key=f"{QUEUE}.{lane}")
    await made.publish(jobs(lane, 1, first=1))
    await hands.have(1)
    hands.held[0].ack()
    # With a prefetch of one the second job comes only after the three in between were acked
    assert await hands.have(2) == ["0", "1"]
    await made.close()
    letters = [DeadLetter.from_bytes(body) for body in rabbitmq.bodies(f"{QUEUE}.dead")]
    rabbitmq.delete(f"{QUEUE}.{lane}")
    assert [letter.body for letter in letters] == list(bad)
    assert {letter.lane for letter in letters} == {lane}


async def test_what_waits_to_be_handed_out_is_known(opened: Open, lane: str) -> None:
    hands = Hands()
    made = await opened(hands, {lane: 1})
    await made.publish(jobs(lane, 1))
    await hands.have(1)
    (waiting,) = jobs(lane, 1, first=1)
    assert not made.will_hand_out(waiting.key)
    await made.publish([waiting, waiting])
    assert made.will_hand_out(waiting.key)
    for count in (1, 2):
        hands.held[-1].ack()
        await hands.have(1 + count)
        # Of two that waited there is another one after the first
        assert made.will_hand_out(waiting.key) == (count == 1)


async def test_a_job_with_a_time_of_its_own_is_not_what_waits(opened: Open, lane: str) -> None:
    hands = Hands()
    made = await opened(hands, {lane: 1})
    await made.publish(jobs(lane, 1))
    await hands.have(1)
    (later,) = jobs(lane, 1, first=1)
    await made.publish([later], after=1.0)
    assert not made.will_hand_out(later.key)


async def test_of_lanes_that_are_not_open_nothing_is_known(opened: Open, lane: str) -> None:
    hands = Hands()
    made = await opened(hands, {lane: 1})
    await made.publish(jobs(lane, 1))
    await hands.have(1)
    await made.publish(jobs(lane, 1, first=1))
    assert made.will_hand_out(Key(lane, "1", ""))
    await made.publish(jobs("elsewhere", 1))
    assert not made.will_hand_out(Key("elsewhere", "0", ""))
    await made.close()
    assert not made.will_hand_out(Key(lane, "1", ""))
