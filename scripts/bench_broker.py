"""Benchmarks that need nothing but a RabbitMQ, which they start and remove themselves; see
scripts/bench.

What is compared runs in processes of its own, one after the other, on the same messages in the same
broker.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import kombu
import orjson

from scripts.generate import notifications
from tests.broker.intakes import rabbit_intake
from tests.broker.rabbitmq import RabbitMQ, installed
from worker.broker.lanes import RabbitLanes
from worker.core.cloud import Image
from worker.core.intake import Routed
from worker.core.job import Job, Key
from worker.core.lanes import Delivery
from worker.engine.dispatcher import Dispatcher
from worker.engine.router import Router
from worker.observe import log
from worker.observe.creations import Creations
from worker.testing.fake_cloud import FakeCloud
from worker.testing.rig import STORES, Rig

Row = dict[str, Any]
GROUP, PREFETCH = 100, 500
EXCHANGE = "bench"
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
QUORUM = {
    "x-queue-type": "quorum",
    "x-max-length": 100_000,
    "x-overflow": "drop-head",
    "x-expires": 3_600_000,
}
PEERS = (
    "kombu, unread",
    "bare kombu",
    "bare kombu, orjson",
    "oslo listener",
    "oslo batch listener",
    "ceilometer",
    "worker",
    "worker and lanes",
)


@contextlib.contextmanager
def broker() -> Iterator[RabbitMQ]:
    """A RabbitMQ that runs for as long as this."""
    scripts = installed()
    if scripts is None:
        raise SystemExit("no RabbitMQ on this machine: apt-get install rabbitmq-server")
    with tempfile.TemporaryDirectory() as folder:
        made = RabbitMQ(folder=Path(folder) / "rabbitmq", scripts=scripts)
        try:
            made.start()
            yield made
        finally:
            made.remove()


def alone(*words: object) -> Any:
    """What a function of this module, called by name in a process of its own, gives."""
    done = subprocess.run(
        [sys.executable, "-m", "scripts.bench_broker", "alone", *map(str, words)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def intake(options: argparse.Namespace) -> list[Row]:
    """Notifications a second off RabbitMQ, of the recorded mix, by each that could do it."""
    rates: dict[str, list[float]] = {}
    with broker() as rabbitmq:
        for _ in range(options.rounds):
            for peer in PEERS:
                queue = f"bench-{uuid.uuid4().hex[:8]}"
                fill(
                    rabbitmq.url,
                    queue,
                    options.messages,
                    classic=peer.startswith(("oslo", "ceilometer")),
                )
                if peer == "ceilometer":
                    rate = ceilometer(rabbitmq, queue, options.messages)
                else:
                    rate = alone(peer, rabbitmq.url, queue, options.messages)
                rates.setdefault(peer, []).append(rate)
    medians = {peer: statistics.median(found) for peer, found in rates.items()}
    return [
        {"consumer": peer, "messages/s": rate, "µs for each": 1e6 / rate, "of bare kombu": rate / medians["bare kombu"],
         "of oslo's batch listener": rate / medians["oslo batch listener"]}
        for peer, rate in medians.items()
    ]  # fmt: skip


def fill(url: str, queue: str, count: int, *, classic: bool) -> None:
    """A queue with so many notifications; classic and not durable, as oslo.messaging declares it,
    or as ours."""
    with kombu.Connection(url) as connection:
        channel = connection.default_channel
        name = f"{queue}.info" if classic else queue
        if classic:
            channel.queue_declare(name, durable=False, auto_delete=False)
        else:
            channel.queue_declare(name, durable=True, auto_delete=False, arguments=QUORUM)
        producer = kombu.Producer(channel)
        for body in notifications(count, begin=BEGIN):
            producer.publish(
                body,
                routing_key=name,
                content_type="application/json",
                content_encoding="utf-8",
                delivery_mode=2,
            )
        while channel.queue_declare(name, passive=True).message_count < count:
            time.sleep(0.1)


def bare_kombu(url: str, queue: str, count: int, loads: Callable[[str], Any]) -> float:
    """kombu alone: decodes both layers, acks in groups."""
    seen = 0

    def received(message: kombu.Message) -> None:
        nonlocal seen
        loads(loads(message.body)["oslo.message"])
        seen += 1
        if seen % GROUP == 0 or seen == count:
            message.channel.basic_ack(message.delivery_tag, multiple=True)

    with kombu.Connection(url) as connection:
        known = kombu.Queue(queue, no_declare=True)
        consumer = kombu.Consumer(
            connection.default_channel,
            [known],
            on_message=received,
            prefetch_count=PREFETCH,
            auto_declare=False,
        )
        began = time.perf_counter()
        with consumer:
            while seen < count:
                connection.drain_events(timeout=30)
        return count / (time.perf_counter() - began)


def oslo(url: str, queue: str, count: int, *, batch: bool) -> float:
    """oslo.messaging's listener, one at a time or in batches of a hundred, with an endpoint that
    does nothing."""
    # It takes seconds, and says that Eventlet is deprecated
    import oslo_messaging  # noqa: PLC0415
    from oslo_config import cfg  # noqa: PLC0415

    done, seen = threading.Event(), 0

    class Endpoint:
        def info(self, *given: Any) -> None:
            nonlocal seen
            seen += len(given[0]) if batch else 1
            if seen >= count:
                done.set()

        error = info

    conf = cfg.ConfigOpts()
    transport = oslo_messaging.get_notification_transport(
        conf, url=url.replace("amqp://", "rabbit://")
    )
    targets = [oslo_messaging.Target(exchange=EXCHANGE, topic=queue)]
    if batch:
        listener = oslo_messaging.get_batch_notification_listener(
            transport,
            targets,
            [Endpoint()],
            executor="threading",
            batch_size=GROUP,
            batch_timeout=1,
        )
    else:
        listener = oslo_messaging.get_notification_listener(
            transport, targets, [Endpoint()], executor="threading"
        )
    began = time.perf_counter()
    listener.start()
    if not done.wait(600):
        raise TimeoutError(f"{seen} of {count}")
    took = time.perf_counter() - began
    listener.stop()
    return count / took


def ceilometer(rabbitmq: RabbitMQ, queue: str, count: int) -> float:
    """Ceilometer's notification agent, which makes events of them, in batches of a hundred, and
    keeps them nowhere."""
    with tempfile.TemporaryDirectory() as folder:
        pipeline, config = Path(folder, "event_pipeline.yaml"), Path(folder, "ceilometer.conf")
        pipeline.write_text(
            "sources: [{name: all, events: ['*'], sinks: [none]}]\nsinks: [{name: none, "
            "publishers: ['test://']}]\n"
        )
        config.write_text(
            f"[DEFAULT]\nevent_pipeline_cfg_file = {pipeline}\n"
            f"[notification]\npipelines = event\nworkers = 1\nbatch_size = {GROUP}\n"
            f"batch_timeout = 1\n"
            f"messaging_urls = {rabbitmq.url.replace('amqp://', 'rabbit://')}\n"
            f"notification_control_exchanges = {EXCHANGE}\n[oslo_messaging_notifications]\n"
            f"topics = {queue}\n"
        )
        agent = Path(sys.executable).with_name("ceilometer-agent-notification")
        with Path(folder, "log").open("wb") as out:
            process = subprocess.Popen([agent, "--config-file", config], stdout=out, stderr=out)
        # It can't be asked, so the queue is; its rate is that between the first and the last look
        # that saw it at work
        looks: list[tuple[float, int]] = []
        try:
            while not looks or looks[-1][1]:
                if process.poll() is not None:
                    raise RuntimeError(Path(folder, "log").read_text())
                time.sleep(0.3)
                rows = (
                    line.split()
                    for line in rabbitmq.ctl("list_queues", "name", "messages").splitlines()
                )
                left = next(int(row[1]) for row in rows if row[0] == f"{queue}.info")
                if left < count:
                    looks.append((time.perf_counter(), left))
        finally:
            process.terminate()
            process.wait()
    (began, most), (ended, least) = looks[0], looks[-2] if len(looks) > 2 else looks[-1]
    if began == ended:
        raise RuntimeError(
            f"{count} messages are too few to see how fast Ceilometer's agent takes them"
        )
    return (most - least) / (ended - began)


class Counting:
    """A sink with the worker's own router, that counts; jobs go into lanes, or where they take as
    long as confirms."""

    def __init__(self, router: Router, count: int, into: Dispatcher | None = None) -> None:
        self._router, self._left, self._into = router, count, into
        self._loop = asyncio.get_running_loop()
        self.done = asyncio.Event()

    def route(self, body: bytes, compression: str = "") -> Routed:
        routed = self._router.route(body, compression)
        self._left -= 1
        if not self._left:
            self._loop.call_soon_threadsafe(self.done.set)
        return routed

    async def accept(self, routed: Sequence[Routed]) -> None:
        if self._into:
            await self._into.accept(routed)
        else:
            await asyncio.sleep(0.002)

    def gap(self, reason: str) -> None:
        pass


async def ours(url: str, queue: str, count: int) -> float:
    """The worker's intake and router."""
    rig = Rig(FakeCloud(stores=STORES))
    router = Router(
        handlers=rig.handlers.values(),
        metrics=rig.metrics,
        creations=Creations(metrics=rig.metrics, uses=rig.uses),
    )
    return await taken(url, queue, count, Counting(router, count))


async def taken(url: str, queue: str, count: int, sink: Counting) -> float:
    """How many a second the intake takes."""
    subject = rabbit_intake(
        url=url,
        exchanges=(),
        queue=queue,
        queue_expires=3600,
        prefetch=PREFETCH,
        group=GROUP,
        queue_max_length=100_000,
    )
    began = time.perf_counter()
    running = asyncio.create_task(subject.run(sink))
    await sink.done.wait()
    rate = count / (time.perf_counter() - began)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    return rate


async def ours_into_lanes(url: str, queue: str, count: int) -> float:
    """The same with the jobs that come of them, each confirmed by RabbitMQ in a lane that nobody
    works on."""
    rig = Rig(FakeCloud(stores=STORES))
    rig.lanes = RabbitLanes(url=url, queue=queue)  # type: ignore[assignment]
    router = Router(
        handlers=rig.handlers.values(),
        metrics=rig.metrics,
        creations=Creations(metrics=rig.metrics, uses=rig.uses),
    )
    dispatcher = Dispatcher(
        router=router, queue=rig.runner.queue, lanes=rig.lanes, on_gap=lambda _: None
    )
    rate = await taken(url, queue, count, Counting(router, count, dispatcher))
    await rig.lanes.close()
    return rate


def lanes(options: argparse.Namespace) -> list[Row]:
    """Jobs a second into a lane on RabbitMQ and out of it, against kombu alone, which confirms or
    acks one by one."""
    rates: dict[str, list[float]] = {}
    with broker() as rabbitmq:
        for _ in range(options.rounds):
            for who in ("bare lanes", "worker lanes"):
                queue = f"bench-{uuid.uuid4().hex[:8]}"
                published, consumed = alone(who, rabbitmq.url, queue, options.jobs)
                rates.setdefault(f"{who} in", []).append(published)
                rates.setdefault(f"{who} out", []).append(consumed)
    found = {name: statistics.median(values) for name, values in rates.items()}
    return [
        {"": way, "jobs/s": found[f"worker lanes {way}"], "bare kombu/s": found[f"bare lanes {way}"],
         "ratio": found[f"worker lanes {way}"] / found[f"bare lanes {way}"]}
        for way in ("in", "out")
    ]  # fmt: skip


def job() -> Job:
    """A job like any other."""
    return Job(
        key=Key("prewarm", str(uuid.uuid4()), "fast"),
        cause="image.update x",
        first_at=1.0,
        project="0" * 32,
    )


def bare_lanes(url: str, queue: str, count: int) -> tuple[float, float]:
    """kombu alone."""
    seen = 0

    def received(message: kombu.Message) -> None:
        nonlocal seen
        Job.from_bytes(message.body.encode() if isinstance(message.body, str) else message.body)
        message.ack()
        seen += 1

    with kombu.Connection(url, transport_options={"confirm_publish": True}) as connection:
        channel = connection.default_channel
        channel.queue_declare(
            queue, durable=True, auto_delete=False, arguments={"x-queue-type": "quorum"}
        )
        producer = kombu.Producer(channel)
        began = time.perf_counter()
        for _ in range(count):
            producer.publish(
                job().to_bytes(),
                routing_key=queue,
                content_type="application/json",
                content_encoding="utf-8",
            )
        published = count / (time.perf_counter() - began)
        known = kombu.Queue(queue, no_declare=True)
        began = time.perf_counter()
        with kombu.Consumer(
            channel, [known], on_message=received, prefetch_count=56, auto_declare=False
        ):
            while seen < count:
                connection.drain_events(timeout=30)
        return published, count / (time.perf_counter() - began)


async def our_lanes(url: str, queue: str, count: int) -> tuple[float, float]:
    """The worker's lanes: a hundred jobs at once, as an intake has them; acked as soon as they are
    here."""
    subject, seen, done = RabbitLanes(url=url, queue=queue), 0, asyncio.Event()

    def deliver(delivery: Delivery) -> None:
        nonlocal seen
        delivery.ack()
        seen += 1
        if seen == count:
            done.set()

    began = time.perf_counter()
    for _ in range(0, count, GROUP):
        await subject.publish([job() for _ in range(GROUP)])
    published = count / (time.perf_counter() - began)
    began = time.perf_counter()
    await subject.open({"prewarm.fast": 56}, deliver)
    await done.wait()
    consumed = count / (time.perf_counter() - began)
    await subject.close()
    return published, consumed


def wide(options: argparse.Namespace) -> list[Row]:
    """Many lanes, as many targets have them: until all are open, and what they cost on both
    sides."""
    rows: list[Row] = []
    for count in options.lanes:
        with broker() as rabbitmq:
            before = broker_memory(rabbitmq)
            seconds, mebibytes = alone("wide lanes", rabbitmq.url, "bench", count)
            after = broker_memory(rabbitmq)
        rows.append(
            {
                "lanes": count,
                "open after s": seconds,
                "MiB": mebibytes,
                "broker's MiB more": after - before,
            }
        )
    return rows


def broker_memory(rabbitmq: RabbitMQ) -> float:
    """MiB that RabbitMQ says it uses."""
    return float(rabbitmq.ctl("eval", "erlang:memory(total).")) / (1 << 20)


async def wide_lanes(url: str, queue: str, count: int) -> tuple[float, float]:
    """So many lanes, open; seconds until then, and MiB more than without."""
    subject = RabbitLanes(url=url, queue=queue)
    before = resident()
    began = time.perf_counter()
    await subject.open({f"prewarm.t{number}": 56 for number in range(count)}, lambda _: None)
    while subject.problem():
        await asyncio.sleep(0.01)
    took = time.perf_counter() - began
    return took, resident() - before


def resident() -> float:
    """MiB of memory that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / (1 << 20)


def latency(options: argparse.Namespace) -> list[Row]:
    """From `image.activate` on its way to the worker's first request about the image, idle and
    under load."""
    rows: list[Row] = []
    with broker() as rabbitmq:
        for rate in (0, options.load):
            queue = f"bench-{uuid.uuid4().hex[:8]}"
            found = sorted(alone("hear", rabbitmq.url, queue, options.images, rate))
            rows.append(
                {
                    "notifications/s beside": rate,
                    "images": len(found),
                    "p50 ms": 1000 * found[len(found) // 2],
                    "p99 ms": 1000 * found[int(len(found) * 0.99)],
                    "longest ms": 1000 * found[-1],
                }
            )
    return rows


class Noting(FakeCloud):
    """Remembers when it was first asked about an image."""

    def __init__(self) -> None:
        super().__init__(stores=STORES)
        self.first: dict[str, float] = {}

    async def get_image(self, image_id: str) -> Image:
        self.first.setdefault(image_id, time.time())
        return await super().get_image(image_id)


async def hear(url: str, queue: str, count: int, load: int) -> list[float]:
    """Intake, router, lanes on RabbitMQ and runner in this process; another one publishes."""
    cloud = Noting()
    rig = Rig(cloud)
    subject = rabbit_intake(url=url, exchanges=(EXCHANGE,), queue=queue, queue_expires=3600)
    rig.lanes = RabbitLanes(url=url, queue=queue)  # type: ignore[assignment]
    rig.runner.queue._lanes = rig.lanes
    router = Router(
        handlers=rig.handlers.values(),
        metrics=rig.metrics,
        creations=Creations(metrics=rig.metrics, uses=rig.uses),
    )
    dispatcher = Dispatcher(
        router=router, queue=rig.runner.queue, lanes=rig.lanes, on_gap=lambda _: None
    )
    with kombu.Connection(url) as connection:
        connection.default_channel.exchange_declare(
            EXCHANGE, "topic", durable=False, auto_delete=False
        )
    async with rig:
        running = asyncio.create_task(subject.run(dispatcher))
        while subject.problem() or subject.unbound() or rig.lanes.problem():
            await asyncio.sleep(0.05)
        publisher = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "scripts.bench_broker", "alone", "publish", url, queue, str(count), str(load),
            stdout=subprocess.PIPE,
        )  # fmt: skip
        out, _ = await publisher.communicate()
        sent: dict[str, float] = json.loads(out.splitlines()[-1])
        async with asyncio.timeout(60):
            while not set(sent) <= set(cloud.first):
                await asyncio.sleep(0.05)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    return [cloud.first[image_id] - at for image_id, at in sent.items()]


def publish(url: str, count: int, load: int) -> dict[str, float]:
    """Announce images, ten a second, among `load` other notifications a second; when each was, by
    image."""
    sent: dict[str, float] = {}
    others = notifications(1 << 62, begin=BEGIN)
    with kombu.Connection(url) as connection:
        producer = kombu.Producer(connection.default_channel)

        def put(body: bytes) -> None:
            producer.publish(body, exchange=EXCHANGE, routing_key="notifications.info", content_type="application/json",
                             content_encoding="utf-8")  # fmt: skip

        began = time.time()
        for tenth in range(10 * count):
            for _ in range(load // 100):
                put(next(others))
            if tenth % 10 == 0:
                image_id = str(uuid.uuid4())
                payload = {
                    "id": image_id,
                    "status": "active",
                    "owner": uuid.uuid4().hex,
                    "properties": {},
                }
                message = {
                    "message_id": str(uuid.uuid4()),
                    "publisher_id": "image.x",
                    "event_type": "image.activate",
                    "priority": "INFO",
                    "timestamp": str(datetime.now(UTC)),
                    "payload": payload,
                }
                sent[image_id] = time.time()
                put(
                    json.dumps(
                        {"oslo.version": "2.0", "oslo.message": json.dumps(message)}
                    ).encode()
                )
            time.sleep(max(0.0, began + (tenth + 1) / 100 - time.time()))
    return sent


ALONE: dict[str, Callable[..., Any]] = {
    "kombu, unread": lambda url, queue, count: bare_kombu(
        url, queue, int(count), lambda _: {"oslo.message": ""}
    ),
    "bare kombu": lambda url, queue, count: bare_kombu(url, queue, int(count), json.loads),
    "bare kombu, orjson": lambda url, queue, count: bare_kombu(
        url, queue, int(count), orjson.loads
    ),
    "oslo listener": lambda url, queue, count: oslo(url, queue, int(count), batch=False),
    "oslo batch listener": lambda url, queue, count: oslo(url, queue, int(count), batch=True),
    "worker": lambda url, queue, count: asyncio.run(ours(url, queue, int(count))),
    "worker and lanes": lambda url, queue, count: asyncio.run(
        ours_into_lanes(url, queue, int(count))
    ),
    "bare lanes": lambda url, queue, count: bare_lanes(url, queue, int(count)),
    "worker lanes": lambda url, queue, count: asyncio.run(our_lanes(url, queue, int(count))),
    "wide lanes": lambda url, queue, count: asyncio.run(wide_lanes(url, queue, int(count))),
    "hear": lambda url, queue, count, load: asyncio.run(hear(url, queue, int(count), int(load))),
    "publish": lambda url, _queue, count, load: publish(url, int(count), int(load)),
}


def main() -> int:
    """One of what is compared, in this process; its result as JSON."""
    log.setup(level="error")
    print(json.dumps(ALONE[sys.argv[2]](*sys.argv[3:])))
    # oslo.messaging leaves threads behind
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
