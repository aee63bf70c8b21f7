"""What RabbitMQ does to lanes: outages, deleted queues, alarms, other replicas."""

from __future__ import annotations

import asyncio
import functools
import threading
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any
from unittest.mock import Mock

import pytest
import structlog
from amqp import Message

from tests.broker import hostile
from tests.broker.hands import PATIENCE, Hands, jobs, until
from tests.broker.rabbitmq import FORWARD_AGAIN, RabbitMQ
from worker.broker import consumed_lane, consumer, outgoing, publisher, pulse
from worker.broker.lanes import RabbitLanes
from worker.core.dead_letter import DeadLetter
from worker.core.errors import Temporary
from worker.core.job import Key

QUEUE = "lanes"
Open = Callable[..., Awaitable[RabbitLanes]]


@pytest.fixture
def lane(rabbitmq: RabbitMQ) -> Iterator[str]:
    """A lane that no other test uses."""
    name = f"lane-{uuid.uuid4().hex[:8]}"
    yield name
    rabbitmq.delete(f"{QUEUE}.{name}", f"{QUEUE}.{name}-2", f"{QUEUE}.dead")


@pytest.fixture
async def opened(rabbitmq: RabbitMQ, lane: str) -> AsyncIterator[Open]:
    """Opens lanes, and closes them at the end."""
    used: list[RabbitLanes] = []

    async def open_lanes(
        hands: Hands, *lanes: str, prefetch: int = 100, url: str = "", ready: bool = True
    ) -> RabbitLanes:
        made = RabbitLanes(url=url or rabbitmq.url, queue=QUEUE)
        used.append(made)
        await made.open(dict.fromkeys(lanes, prefetch), hands)
        if ready:
            await until(lambda: made.problem() is None)
        return made

    yield open_lanes
    for made in used:
        await made.close()


class Worker(Hands):
    """Acks everything at once and remembers it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __call__(self, delivery: object) -> None:
        super().__call__(delivery)  # type: ignore[arg-type]
        self.seen.update(self.images)
        self.ack()


@pytest.mark.parametrize("kill", [False, True], ids=["stopped", "killed"])
async def test_an_outage_under_load_loses_nothing(
    rabbitmq: RabbitMQ, opened: Open, lane: str, kill: bool
) -> None:
    worker = Worker()
    made = await opened(worker, lane)
    published = 0
    done = False

    async def publish() -> None:
        nonlocal published
        while not done:
            await made.publish(jobs(lane, 20, first=published))
            published += 20
            await asyncio.sleep(0.005)

    with structlog.testing.capture_logs() as logs:
        publishing = asyncio.create_task(publish())
        await until(lambda: published >= 200)
        # RabbitMQ itself never gets over being killed within a second or two of making a quorum
        # queue
        await asyncio.sleep(3)
        await asyncio.to_thread(rabbitmq.stop, kill=kill)
        await until(lambda: made.problem() is not None)
        before = published
        await asyncio.to_thread(rabbitmq.start)
        await until(lambda: published >= before + 200)
        done = True
        await asyncio.wait_for(publishing, PATIENCE)
        await until(lambda: made.problem() is None)
        await until(lambda: len(worker.seen) == published)
    for event in ("broker_lost", "broker_back"):
        links = [entry["link"] for entry in logs if entry["event"] == event]
        assert sorted(links) == ["image-volume-worker lanes", "image-volume-worker publisher"]
    assert rabbitmq.password not in str(logs)


async def test_a_delayed_job_survives_a_restart(
    rabbitmq: RabbitMQ, opened: Open, lane: str
) -> None:
    hands = Hands()
    made = await opened(hands, lane)
    await made.publish(jobs(lane, 1), after=1.0)
    await asyncio.to_thread(rabbitmq.stop)
    await asyncio.to_thread(rabbitmq.start)
    # RabbitMQ forwards a job later if it expired before the queue of the lane was back. It gives it
    # again if it was given before it stopped
    assert set(await hands.have(1, within=PATIENCE + FORWARD_AGAIN)) == {"0"}


async def test_connections_closed_by_the_broker_come_back(
    rabbitmq: RabbitMQ, opened: Open, lane: str
) -> None:
    hands = Hands()
    made = await opened(hands, lane)
    await made.publish(jobs(lane, 2))
    await hands.have(2)
    await asyncio.to_thread(rabbitmq.ctl, "close_all_connections", "the test says so")
    # What was held comes again, as the broker knows of no ack
    assert (await hands.have(4))[2:] == ["0", "1"]
    # Acks for the connection that is gone are void, those for the new one are not
    hands.ack()
    await made.publish(jobs(lane, 1, first=2))
    assert await hands.have(1) == ["2"]
    hands.ack()
    await until(lambda: made.problem() is None)
    await made.close()
    assert rabbitmq.depth(f"{QUEUE}.{lane}") == 0


async def test_a_deleted_queue_is_made_again(rabbitmq: RabbitMQ, opened: Open, lane: str) -> None:
    hands = Hands()
    made = await opened(hands, lane, f"{lane}-2")
    await made.publish([*jobs(lane, 1), *jobs(f"{lane}-2", 1, first=10)])
    await hands.have(2)
    await asyncio.to_thread(rabbitmq.delete, f"{QUEUE}.{lane}")
    await until(lambda: rabbitmq.depth(f"{QUEUE}.{lane}") == 0)
    await made.publish(jobs(lane, 1, first=1))
    # Not the third delivery: RabbitMQ 4 may end the connection on a queue that is declared while
    # its deletion goes on (INTERNAL_ERROR), and what the other lane held comes again
    await until(lambda: "1" in hands.images)
    hands.ack()
    # The other lane has not noticed
    await made.publish(jobs(f"{lane}-2", 1, first=11))
    assert await hands.have(1) == ["11"]
    # Delays find the new queue as well
    await made.publish(jobs(lane, 1, first=2), after=0.1)
    assert await hands.have(2) == ["11", "2"]


async def test_a_deleted_queue_that_delays_is_made_again(
    rabbitmq: RabbitMQ, opened: Open, lane: str
) -> None:
    hands = Hands()
    made = await opened(hands, lane)
    # A second's delay is the lowest bit
    rabbitmq.delete(f"{QUEUE}_celery_delayed_0")
    await asyncio.wait_for(made.publish(jobs(lane, 1), after=1.0), PATIENCE)
    assert await hands.have(1) == ["0"]


async def test_what_was_delayed_for_a_queue_that_is_gone_holds_up_no_other_lane(
    rabbitmq: RabbitMQ, opened: Open, lane: str
) -> None:
    """RabbitMQ forwards what has expired at least once, and has 32 of them on the way at most."""
    hands = Hands()
    made = await opened(hands, f"{lane}-2")
    # Of a target that another worker had
    await made.publish(jobs(lane, 200), after=2.0)
    await asyncio.to_thread(rabbitmq.delete, f"{QUEUE}.{lane}")
    await made.publish(jobs(f"{lane}-2", 10), after=6.0)
    assert await hands.have(10) == [str(number) for number in range(10)]
    # Nobody wants them, and they are let go
    await until(lambda: rabbitmq.depth(f"{QUEUE}.stray") == 0)


async def test_what_was_delayed_for_a_queue_that_is_made_again_is_brought_back(
    rabbitmq: RabbitMQ, opened: Open, lane: str
) -> None:
    hands = Hands()
    made = await opened(hands)
    # Until they are due all that follows has to be done
    await made.publish(jobs(lane, 50), after=10.0)
    await made.close()
    await asyncio.to_thread(rabbitmq.delete, f"{QUEUE}.{lane}")
    await until(lambda: rabbitmq.depth(f"{QUEUE}.stray") == 50)
    # As a worker does that has the target
    await opened(hands, lane)
    assert sorted(await hands.have(50), key=int) == [str(number) for number in range(50)]


async def test_what_is_too_large_for_a_letter_is_cut_and_stops_no_lane(
    rabbitmq: RabbitMQ, opened: Open, lane: str
) -> None:
    hands = Hands()
    made = await opened(hands, lane)
    with rabbitmq.channel() as channel:
        channel.basic_publish(Message(b"x" * (13 << 20)), routing_key=f"{QUEUE}.{lane}")
    await until(lambda: rabbitmq.depth(f"{QUEUE}.dead") == 1)
    (body,) = rabbitmq.bodies(f"{QUEUE}.dead")
    assert len(body) < 1 << 17
    assert DeadLetter.from_bytes(body).lane == lane
    await made.publish(jobs(lane, 1))
    assert await hands.have(1) == ["0"]
    await until(lambda: made.problem() is None)


async def test_odd_properties_and_routing_keys_stop_no_lane(
    rabbitmq: RabbitMQ, opened: Open, lane: str
) -> None:
    hands = Hands()
    await opened(hands, lane)
    bodies = [job.to_bytes() for job in jobs(lane, len(hostile.PROPERTIES) + 1)]
    key = b"*." * 28 + f"{QUEUE}.{lane}".encode()
    with rabbitmq.channel() as channel:
        for body, (flags, properties) in zip(bodies, hostile.PROPERTIES.values(), strict=False):
            channel.basic_publish(
                hostile.Raw(body, flags, properties), routing_key=f"{QUEUE}.{lane}"
            )
        # Into the lane as its delayed jobs come, with words before its name that are no text
        channel.basic_publish(
            Message(bodies[-1]), exchange=f"{QUEUE}.due", routing_key=key.replace(b"*", b"\xff")
        )
    assert sorted(await hands.have(len(bodies))) == [str(number) for number in range(len(bodies))]


async def test_who_gives_up_leaves_nothing_behind(lane: str) -> None:
    """An intake that comes and goes publishes the same jobs again each time, while the broker of
    the lanes is away."""
    made = RabbitLanes(url="amqp://worker:secret@127.0.0.1:1/", queue=QUEUE, grace=0.1)
    await made.open({lane: 1}, Hands())
    try:
        for _ in range(50):
            publishing = asyncio.create_task(made.publish(jobs(lane, 100)))
            await asyncio.sleep(0.002)
            publishing.cancel()
            await asyncio.gather(publishing, return_exceptions=True)
        assert made._publisher
        assert made._publisher.finished()
    finally:
        await made.close()


async def test_who_gives_up_while_a_queue_refuses_leaves_nothing_behind(
    rabbitmq: RabbitMQ, opened: Open, lane: str
) -> None:
    hands = Hands()
    made = await opened(hands, f"{lane}-2")
    await made.publish(jobs(lane, 1))
    server = f"{{'%2F_{QUEUE}.{lane}', node()}}"
    await asyncio.to_thread(rabbitmq.ctl, "eval", f"ra:stop_server(quorum_queues, {server}).")
    try:
        publisher = made._publisher
        assert publisher
        for _ in range(20):
            publishing = asyncio.create_task(made.publish(jobs(lane, 1000)))
            await asyncio.sleep(0.05)
            publishing.cancel()
            await asyncio.gather(publishing, return_exceptions=True)
        await until(
            lambda: (
                not publisher._submitted and not publisher._queues[f"{QUEUE}.{lane}", False].waiting
            )
        )
        await made.publish(jobs(f"{lane}-2", 1, first=10))
        assert await hands.have(1) == ["10"]
    finally:
        # Else it can't be deleted either
        await asyncio.to_thread(
            rabbitmq.ctl, "eval", f"ra:restart_server(quorum_queues, {server})."
        )


async def test_a_message_without_a_queue_is_published_again(
    rabbitmq: RabbitMQ, opened: Open, lane: str
) -> None:
    made = await opened(Hands())
    letters = [DeadLetter(lane=lane, reason=str(number), last_at=0.0) for number in range(2)]
    await made.bury(letters[:1])
    await asyncio.to_thread(rabbitmq.delete, f"{QUEUE}.dead")
    await asyncio.wait_for(made.bury(letters[1:]), PATIENCE)
    assert [DeadLetter.from_bytes(body) for body in rabbitmq.bodies(f"{QUEUE}.dead")] == letters[1:]


async def test_one_replica_at_a_time_has_a_lane(opened: Open, lane: str) -> None:
    first, second = Hands(), Hands()
    one = await opened(first, lane, prefetch=3)
    two = await opened(second, lane, prefetch=3)
    await one.publish(jobs(lane, 3))
    await two.publish(jobs(lane, 3, first=3))
    await first.have(3)
    await until(lambda: two.depths().get(lane) == 3)
    assert not second.held
    first.held[0].ack()
    await first.have(4)
    await one.close()
    # What the first did not finish, the second has from now on
    assert sorted(await second.have(3)) == ["1", "2", "3"]
    second.ack()
    assert await second.have(2) == ["4", "5"]


async def test_a_queue_that_is_there_otherwise_is_a_problem_of_its_lane(
    rabbitmq: RabbitMQ, opened: Open, lane: str
) -> None:
    with rabbitmq.channel() as channel:
        channel.queue_declare(f"{QUEUE}.{lane}", durable=True, auto_delete=False)
    hands = Hands()
    made = await opened(hands, lane, f"{lane}-2", ready=False)
    await until(lambda: "was declared otherwise: x-" in (made.problem() or ""))
    assert f"{QUEUE}.{lane}" in str(made.problem())
    await made.publish(jobs(f"{lane}-2", 1))
    assert await hands.have(1) == ["0"]
    await asyncio.to_thread(rabbitmq.delete, f"{QUEUE}.{lane}")
    await until(lambda: made.problem() is None)
    await made.publish(jobs(lane, 1, first=1))
    assert await hands.have(2) == ["0", "1"]


async def test_counting_what_waits_is_no_error_in_the_brokers_log(
    rabbitmq: RabbitMQ, opened: Open, lane: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing has failed yet there is no queue of dead letters, and a broker logs each
    question after it."""
    monkeypatch.setattr(consumer, "COUNT_EVERY", 0.1)
    await asyncio.to_thread(rabbitmq.delete, f"{QUEUE}.dead")
    made = await opened(Hands(), lane)
    count = Mock(wraps=made._consumer._count)
    monkeypatch.setattr(made._consumer, "_count", count)

    def missed() -> int:
        return sum(f"no queue '{QUEUE}.dead'" in line for line in rabbitmq.errors())

    before = missed()
    # Its log may come a moment later
    await until(lambda: count.call_count > 30)
    assert missed() - before <= 1
    assert made.depths()["dead"] == 0


async def test_what_lies_in_the_queue_of_the_pulse_is_dropped(
    rabbitmq: RabbitMQ, opened: Open, lane: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulse, "EVERY", 0.1)
    made = await opened(Hands(), lane)
    await asyncio.to_thread(rabbitmq.publish, b"junk", routing_key=f"{QUEUE}.pulse")
    await until(lambda: rabbitmq.depth(f"{QUEUE}.pulse") == 0)
    # It would come back if it was only handed out
    await made.close()
    await asyncio.sleep(0.5)
    assert rabbitmq.depth(f"{QUEUE}.pulse") == 0


async def test_a_queue_without_a_leader_holds_up_no_other(
    rabbitmq: RabbitMQ, opened: Open, lane: str
) -> None:
    hands = Hands()
    made = await opened(hands, lane, f"{lane}-2")
    server = f"{{'%2F_{QUEUE}.{lane}', node()}}"
    await asyncio.to_thread(rabbitmq.ctl, "eval", f"ra:stop_server(quorum_queues, {server}).")
    stuck = asyncio.create_task(made.publish(jobs(lane, 1)))
    await made.publish(jobs(f"{lane}-2", 1, first=10))
    assert await hands.have(1) == ["10"]
    # Nor when the lanes are opened anew
    await asyncio.to_thread(rabbitmq.ctl, "close_all_connections", "the test says so")
    assert await hands.have(2) == ["10", "10"]
    await made.publish(jobs(f"{lane}-2", 1, first=11))
    assert await hands.have(3) == ["10", "10", "11"]
    assert not stuck.done()
    assert made.problem() is not None
    await asyncio.to_thread(rabbitmq.ctl, "eval", f"ra:restart_server(quorum_queues, {server}).")
    await asyncio.wait_for(stuck, 3 * PATIENCE)


async def test_what_the_broker_never_confirms_is_sent_through_another_connection(
    rabbitmq: RabbitMQ, opened: Open, lane: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As RabbitMQ does to a channel that was sending to the leader of a queue when that one's node
    # died
    deaf: list[object] = []
    hear = publisher.Publisher._on_ack

    def on_ack(self: publisher.Publisher, tag: int, multiple: bool) -> None:
        if not deaf:
            deaf.append(self._channel)
        if self._channel not in deaf:
            hear(self, tag, multiple)

    monkeypatch.setattr(publisher.Publisher, "_on_ack", on_ack)
    monkeypatch.setattr(outgoing, "PATIENCE", 1.0)
    hands = Hands()
    made = await opened(hands, lane)
    with structlog.testing.capture_logs() as logs:
        await asyncio.wait_for(made.publish(jobs(lane, 3)), PATIENCE)
        await until(lambda: made.problem() is None)
    sent = f"127.0.0.1:{rabbitmq.port}: what was sent to the queue {QUEUE}.{lane}"
    assert [entry["reason"] for entry in logs if entry["event"] == "broker_lost"] == [
        f"{sent} is neither confirmed nor refused for too long"
    ]
    assert set(await hands.have(6)) == {"0", "1", "2"}


async def test_what_is_refused_without_end_is_sent_through_another_connection(
    rabbitmq: RabbitMQ, opened: Open, lane: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing: list[object] = []
    hear = publisher.Publisher._on_ack

    def on_ack(self: publisher.Publisher, tag: int, multiple: bool) -> None:
        if not refusing:
            refusing.append(self._channel)
        (self._on_nack if self._channel in refusing else functools.partial(hear, self))(
            tag, multiple
        )

    monkeypatch.setattr(publisher.Publisher, "_on_ack", on_ack)
    monkeypatch.setattr(outgoing, "PATIENCE", 3.0)
    hands = Hands()
    made = await opened(hands, lane)
    with structlog.testing.capture_logs() as logs:
        await asyncio.wait_for(made.publish(jobs(lane, 3)), PATIENCE)
    assert [entry["reason"] for entry in logs if entry["event"] == "broker_lost"] == [
        (
            f"127.0.0.1:{rabbitmq.port}: what was sent to the queue {QUEUE}.{lane} is refused for "
            f"too long"
        )
    ]


async def test_a_lane_whose_deliveries_were_lost_is_opened_again(
    opened: Open, lane: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Also seen when the leader of a queue was killed: RabbitMQ takes them to be with us, and its
    # window for us is full
    lost: list[object] = []
    receive = consumer.Consumer._receive

    def lose(self: consumer.Consumer, one: Any, channel: Any, message: Any) -> None:
        if one.name == lane and not lost:
            lost.append(channel)
        if channel not in lost:
            receive(self, one, channel, message)

    monkeypatch.setattr(consumer.Consumer, "_receive", lose)
    monkeypatch.setattr(consumed_lane, "DEAF_AFTER", 1.0)
    hands = Hands()
    made = await opened(hands, lane, prefetch=3)
    await made.publish(jobs(lane, 5))
    assert sorted(await hands.have(3)) == ["0", "1", "2"]
    hands.ack()
    assert sorted(await hands.have(2)) == ["3", "4"]


async def test_a_broker_short_of_memory_stops_publishing_but_not_consuming(
    rabbitmq: RabbitMQ, opened: Open, lane: str
) -> None:
    hands = Hands()
    made = await opened(hands, lane, prefetch=1)
    await made.publish(jobs(lane, 5))
    await hands.have(1)
    await asyncio.to_thread(rabbitmq.ctl, "set_vm_memory_high_watermark", "absolute", "1MB")
    try:
        publishing = asyncio.create_task(made.publish(jobs(lane, 2000, first=5)))
        await until(lambda: "short of memory" in (made.problem() or ""))
        for count in range(1, 5):
            hands.held[-1].ack()
            await hands.have(count + 1)
        assert not publishing.done()
    finally:
        await asyncio.to_thread(rabbitmq.ctl, "set_vm_memory_high_watermark", "0.4")
    await asyncio.wait_for(publishing, PATIENCE)
    await until(lambda: made.problem() is None)
    await made.close()
    # One was held, and gave its place back
    assert rabbitmq.depth(f"{QUEUE}.{lane}") == 2001


async def test_a_host_that_is_dead_is_passed_over(
    rabbitmq: RabbitMQ, opened: Open, lane: str
) -> None:
    hands = Hands()
    dead = f"worker:{rabbitmq.password}@127.0.0.1:1"
    made = await opened(hands, lane, url=rabbitmq.url.replace("amqp://", f"rabbit://{dead},"))
    await made.publish(jobs(lane, 1))
    assert await hands.have(1) == ["0"]


async def test_a_broker_that_is_not_there_is_a_problem_and_no_error(lane: str) -> None:
    made = RabbitLanes(url="amqp://worker:secret@127.0.0.1:1/", queue=QUEUE, grace=0.1)
    await made.open({lane: 1}, Hands())
    publishing = asyncio.create_task(made.publish(jobs(lane, 1)))
    await until(lambda: "refused" in (made.problem() or ""))
    assert "secret" not in str(made.problem())
    await made.close()
    with pytest.raises(Temporary):
        await publishing


async def test_a_wrong_password_is_told_without_it(rabbitmq: RabbitMQ, lane: str) -> None:
    made = RabbitLanes(url=rabbitmq.url.replace(rabbitmq.password, "wrong-word"), queue=QUEUE)
    with structlog.testing.capture_logs() as logs:
        await made.open({lane: 1}, Hands())
        await until(lambda: "ACCESS_REFUSED" in (made.problem() or ""))
        await made.close()
    assert "wrong-word" not in str(logs) + str(made.problem())


async def test_lanes_open_again_after_close(opened: Open, lane: str) -> None:
    first, second = Hands(), Hands()
    made = await opened(first, lane)
    await made.publish(jobs(lane, 1))
    await first.have(1)
    await made.close()
    await made.open({lane: 1}, second)
    assert await second.have(1) == ["0"]


async def one_waits(made: RabbitLanes, hands: Hands, lane: str, *, first: int) -> Key:
    """A job that waits behind one that is not acked, as a lane's active consumer knows."""
    await made.publish(jobs(lane, 1, first=first))
    await hands.have(first + 1)
    (waiting,) = jobs(lane, 1, first=first + 1)
    await made.publish([waiting])
    return waiting.key


@pytest.mark.parametrize(
    "what", ["its connections are closed", "the queue is deleted", "the queue is purged"]
)
async def test_what_waited_is_not_taken_for_waiting_once(
    rabbitmq: RabbitMQ, opened: Open, lane: str, what: str
) -> None:
    hands = Hands()
    made = await opened(hands, lane, prefetch=1)
    waiting = await one_waits(made, hands, lane, first=0)
    assert made.will_hand_out(waiting)
    if what == "its connections are closed":
        rabbitmq.ctl("close_all_connections", "test")
    elif what == "the queue is deleted":
        rabbitmq.delete(f"{QUEUE}.{lane}")
    else:
        rabbitmq.ctl("purge_queue", f"{QUEUE}.{lane}")
    await until(lambda: not made.will_hand_out(waiting))


async def test_what_another_replica_is_handed_out_is_not_known(opened: Open, lane: str) -> None:
    first, second = Hands(), Hands()
    one = await opened(first, lane, prefetch=1)
    waiting = await one_waits(one, first, lane, first=0)
    other = await opened(second, lane, prefetch=1)
    (more,) = jobs(lane, 1, first=5)
    await other.publish([more])
    assert one.will_hand_out(waiting)
    assert not other.will_hand_out(more.key)
    await one.close()
    await second.have(1)
    # It has the lane now, and knows of nothing that was published before
    assert not any(other.will_hand_out(key) for key in (waiting, more.key))
    await other.publish([more])
    assert other.will_hand_out(more.key)


async def test_a_lane_that_is_full_is_named_and_the_others_take_jobs(
    rabbitmq: RabbitMQ, opened: Open, lane: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outgoing, "PATIENCE", 1.0)
    full, other = f"{QUEUE}.{lane}", f"{lane}-2"
    rule = '{"overflow": "reject-publish", "max-length": 3}'
    worker = Worker()
    made = await opened(worker, other)
    rabbitmq.ctl("set_policy", lane, f"^{full}$", rule, "--apply-to", "queues")
    try:
        # Nobody serves it
        publishing = asyncio.create_task(made.publish(jobs(lane, 400)))
        await until(lambda: f"the queue {full} has taken no message" in (made.problem() or ""))
        await made.publish(jobs(other, 5))
        await until(lambda: len(worker.seen) == 5)
        assert not publishing.done()
    finally:
        rabbitmq.ctl("clear_policy", lane)
    # RabbitMQ may tell a channel only later that the queue takes messages again
    await publishing
    await until(lambda: made.problem() is None)
    assert (rabbitmq.depth(full) or 0) >= 400


async def test_a_publisher_for_which_there_was_no_thread_is_begun_again(
    rabbitmq: RabbitMQ, lane: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = RabbitLanes(url=rabbitmq.url, queue=QUEUE)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", Mock(side_effect=RuntimeError("no thread")))
        with pytest.raises(RuntimeError):
            await made.open({lane: 10}, Hands())
    hands = Hands()
    await made.open({lane: 10}, hands)
    try:
        await until(lambda: made.problem() is None)
        await made.publish(jobs(lane, 1))
        await until(lambda: len(hands.images) == 1)
    finally:
        await made.close()


async def test_a_full_queue_of_dead_letters_is_an_error_after_a_while(
    rabbitmq: RabbitMQ, opened: Open, lane: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await opened(Hands(), lane)
    letter = DeadLetter(lane=lane, reason="x", last_at=1.0, body=b"x")
    await made.bury([letter])
    monkeypatch.setattr("worker.broker.lanes.BURY_WITHIN", 1.0)
    monkeypatch.setattr(outgoing, "PATIENCE", 1.0)
    rule = '{"overflow": "reject-publish", "max-length": 1}'
    rabbitmq.ctl("set_policy", lane, rf"^{QUEUE}\.dead$", rule, "--apply-to", "queues")
    try:
        with pytest.raises(Temporary, match="takes no dead letters"):
            await made.bury([letter] * 400)
        # Nobody waits for it any more: the worker is as ready as it was
        await until(lambda: made.problem() is None)
    finally:
        rabbitmq.ctl("clear_policy", lane)
