"""Load on two workers: a service that publishes notifications, and proof that no job is lost."""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import amqp

from tests.broker import counting
from tests.broker.rabbitmq import RabbitMQ
from tests.deploy.debian import CLOUD
from tests.worker_process import WorkerProcess

PATIENCE = 180.0
"""Seconds after which something that has to happen counts as not happening; generous, as machines
are busy."""
EVERY = 0.2
"""Seconds between two notifications; each makes a job in each of two lanes, and most jobs take
several tries."""

STEP = 1.0
"""Seconds that a job which the broker gives to another worker may take to end: it does so before
its next step."""
SAMPLE = 10
"""Notifications published after a change that have to be done before the workers count as being at
work."""


class Service:
    """Publishes notifications as Glance does, one after the other, until each is confirmed by some
    node."""

    def __init__(self, nodes: list[RabbitMQ]) -> None:
        self._nodes = itertools.cycle(nodes)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="service")
        self._urgent: list[str] = []
        self.confirmed: list[str] = []

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ending.set()
        self._thread.join()

    def publish(self, image_id: str) -> None:
        """Publish this one next."""
        self._urgent.append(image_id)

    def _run(self) -> None:
        numbers = itertools.count(1)
        image_id = ""
        while not self._ending.is_set():
            try:
                with contextlib.closing(_Way(next(self._nodes))) as way:
                    while not self._ending.is_set():
                        if not image_id:
                            image_id = (
                                self._urgent.pop(0)
                                if self._urgent
                                else counting.image_id(next(numbers))
                            )
                        way.publish(image_id)
                        self.confirmed.append(image_id)
                        image_id = ""
                        time.sleep(EVERY)
            except (OSError, amqp.AMQPError, amqp.exceptions.MessageNacked):
                # To the next node, with the same notification
                time.sleep(0.2)


class _Way:
    """A connection to one node, with an exchange as oslo.messaging declares it."""

    def __init__(self, node: RabbitMQ) -> None:
        self._connection = amqp.Connection(
            f"127.0.0.1:{node.port}",
            userid="worker",
            password=node.password,
            login_method="PLAIN",
            confirm_publish=True,
            connect_timeout=5,
            read_timeout=5,
            write_timeout=5,
        )
        try:
            self._connection.connect()
            self._channel = self._connection.channel()
            self._channel.exchange_declare("glance", "topic", durable=False, auto_delete=False)
        except BaseException:
            self.close()
            raise

    def publish(self, image_id: str) -> None:
        """Publish a notification; an error if it is not confirmed, or no queue has taken it."""
        body = {"event_type": counting.EVENT, "priority": "INFO", "payload": {"id": image_id}}
        message = amqp.Message(
            json.dumps(body).encode(), delivery_mode=2, content_type="application/json"
        )
        self._channel.basic_publish(message, "glance", "notifications.info", mandatory=True)

    def close(self) -> None:
        self._connection.collect()


@dataclass
class Load:
    """Two workers at work, and what they do. `node` is one of their brokers, and
    `queue` begins the names of their queues."""

    workers: list[WorkerProcess]
    service: Service
    notes: Path
    gate: Path
    node: RabbitMQ
    queue: str
    told: list[str] = field(default_factory=list)

    def runs(self) -> list[counting.Run]:
        return counting.read(self.notes)

    def done(self) -> set[str]:
        """The images whose jobs are done in both lanes."""
        lanes: defaultdict[str, set[str]] = defaultdict(set)
        for run in self.runs():
            if run.outcome == "done":
                lanes[run.key[0]].add(run.key[1])
        return {image_id for image_id, found in lanes.items() if found == set(counting.LANES)}

    def until_ready(self, what: str) -> None:
        """Wait until what is published from now on is done, and the workers are ready; tell how
        long that took."""
        began = time.monotonic()
        before = len(self.service.confirmed)
        until(lambda: len(self.service.confirmed) > before, self.state)
        heard = time.monotonic()
        until(lambda: len(self.service.confirmed) >= before + SAMPLE, self.state)
        sample = set(self.service.confirmed[before : before + SAMPLE])
        until(lambda: sample <= self.done(), self.state)
        worked = time.monotonic()
        for worker in self.workers:
            worker.wait_ready(within=PATIENCE)
        ready = time.monotonic()
        self.told.append(
            f"{what}: published again after {heard - began:.1f} s, at work after "
            f"{worked - began:.1f} s, "
            f"workers ready after {ready - began:.1f} s"
        )

    def state(self) -> str:
        problems = [worker.probe("/readyz") for worker in self.workers]
        return f"{len(self.service.confirmed)} confirmed, {len(self.done())} done; {problems}"

    def finish(self) -> None:
        """End the load; nothing is lost, nothing doubled, nothing is left over."""
        until(lambda: len(self.service.confirmed) > 100, self.state)
        self.gate.touch()
        self.service.stop()
        wanted = set(self.service.confirmed)
        until(
            lambda: wanted <= self.done(),
            lambda: f"{self.state()}; lost: {sorted(wanted - self.done())[:10]}",
        )
        queues = self.queues()
        until(
            lambda: not any(self.depths(queues).values()),
            lambda: f"left over: {self.depths(queues)}",
        )
        runs = self.runs()
        by_key: defaultdict[tuple[str, str], list[counting.Run]] = defaultdict(list)
        for run in runs:
            by_key[run.key].append(run)
        twice = [
            (one, other)
            for tries in by_key.values()
            for one, other in itertools.pairwise(tries)
            if other.began < one.ended - STEP
        ]
        assert not twice, twice[:5]
        again = sum(sum(run.outcome == "done" for run in tries) - 1 for tries in by_key.values())
        moments = sorted(run.ended for run in runs if run.outcome == "done")
        longest = max(later - earlier for earlier, later in itertools.pairwise(moments))
        self.told.append(
            f"{len(wanted)} notifications, {len(by_key)} jobs, {again} done a second time "
            f"(delivered again), "
            f"longest time without a job done: {longest:.1f} s"
        )

    def queues(self) -> list[str]:
        """The queues of the workers, without those that one replica alone may ask."""
        listed = json.loads(self.node.ctl("list_queues", "name", "--formatter=json"))
        return [
            name
            for row in listed
            if (name := row["name"]).startswith(self.queue) and ".replicas." not in name
        ]

    def depths(self, queues: Iterable[str]) -> dict[str, int]:
        """Messages in each of these queues that exists."""
        return {name: depth for name in queues if (depth := self.node.depth(name)) is not None}


def groups(url: str, queue: str) -> dict[str, dict[str, object]]:
    """A configuration of a worker that does nothing but what counting asks for."""
    return {
        "notifications": {"transport_urls": url, "queue": queue, "exchanges": "glance"},
        "work": {"url": url, "backoff_min": 1.0, "backoff_max": 10.0},
        "cloud": {"name": CLOUD},
        # The one image there is wanted by nobody
        "prewarm": {"targets": "fast", "min_size": 1 << 40},
        "target:fast": {"volume_type": "ssd", "strategy": "cache"},
        "log": {"format": "json"},
    }


def until(condition: Callable[[], object], told: Callable[[], object]) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, told()
        time.sleep(0.1)
