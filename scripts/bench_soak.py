"""The soak: a worker under load for a long time, with a fault every minute; does anything of it grow?"""

from __future__ import annotations

import argparse
import itertools
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import kombu

from scripts.cloud.people import HOME
from scripts.generate import notifications
from tests.cloud.conftest import PASSWORD, devcloud, groups, rabbitmqctl
from tests.worker_process import WorkerProcess

Row = dict[str, Any]
BROKER = f"amqp://openstack:{PASSWORD}@127.0.0.1:5672/"
QUEUE = "image-volume-worker-test"
# Seconds between two looks, and until the first: what is set up once has been by then
EVERY, WARM = 10.0, 120.0
# What is looked at, and how much more of it there may be in the last tenth of the time than in the first
MOST = {
    "MiB": 16.0, "threads": 8.0, "file descriptors": 16.0, "jobs waiting": 2000.0, "notifications waiting": 2000.0,
    "dead letters": 0.0,
}  # fmt: skip


def soak(options: argparse.Namespace) -> list[Row]:
    """Memory, threads, file descriptors and queues: how much they grow in an hour."""
    leave, sent = threading.Event(), Counter[str]()
    seen: dict[str, list[float]] = {name: [] for name in MOST}
    times: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        settings = groups(work={"url": f"{BROKER}worker"}, log={"format": "json", "level": "error"})
        with WorkerProcess(Path(folder), settings, clouds=HOME / "clouds.yaml") as process:
            process.wait_ready()
            publisher = threading.Thread(target=publish, args=(options.rate, leave, sent))
            publisher.start()
            began, fault_at, breaking = time.monotonic(), 60.0, faults(process)
            count = 0
            try:
                while (now := time.monotonic() - began) < 60 * options.minutes:
                    time.sleep(EVERY)
                    if now >= fault_at:
                        next(breaking)()
                        count, fault_at = count + 1, fault_at + 60.0
                        process.wait_ready(within=300)
                    if now > WARM:
                        usage = process.usage()
                        times.append(now / 3600)
                        waiting = process.metric("lane_depth") + process.metric("jobs_waiting")
                        counts = (
                            usage.memory / (1 << 20), usage.threads, usage.descriptors, waiting, depth(QUEUE),
                            depth(f"{QUEUE}.dead", "worker"),
                        )  # fmt: skip
                        for name, value in zip(seen, counts, strict=True):
                            seen[name].append(float(value))
                handled = process.metric("notifications_total")
            finally:
                leave.set()
                publisher.join()
    said = f"{options.minutes:g} minutes, {sent['sent']} notifications sent and {handled:.0f} handled, {count} faults"
    print(said, file=sys.stderr)
    if handled < sent["sent"] / 2:
        # What is sent while the queue is deleted is nobody's, and what is sent again counts twice
        options.problems.append("half of what was sent was not handled")
    tenth = max(1, len(times) // 10)
    rows = [
        {"": name, "first tenth": statistics.median(values[:tenth]), "last tenth": statistics.median(values[-tenth:]),
         "most": max(values), "an hour": statistics.linear_regression(times, values).slope}
        for name, values in seen.items()
    ]  # fmt: skip
    for row in rows:
        if row["last tenth"] - row["first tenth"] > MOST[row[""]]:
            options.problems.append(f"it grows: {row['']}")
    if seen["dead letters"][-1]:
        options.problems.append("there are dead letters")
    return rows


def depth(queue: str, vhost: str = "") -> int:
    """What waits in a queue; 0 if it is not there."""
    try:
        with kombu.Connection(f"{BROKER}{vhost}") as connection:
            return int(connection.default_channel.queue_declare(queue, passive=True).message_count)
    except connection.channel_errors:
        return 0


def faults(process: WorkerProcess) -> Iterator[Callable[[], object]]:
    """What is broken, one after the other, over and over."""

    def frozen() -> None:
        process.signal(signal.SIGSTOP)
        time.sleep(10)
        process.signal(signal.SIGCONT)

    def queue_deleted() -> None:
        with kombu.Connection(BROKER) as connection:
            connection.default_channel.queue_delete(QUEUE)

    return itertools.cycle(
        (
            lambda: rabbitmqctl("close_all_connections", "soak"),
            lambda: devcloud("restart", "glance-api"),
            frozen,
            queue_deleted,
            lambda: devcloud("restart", "cinder-api"),
            lambda: process.signal(signal.SIGHUP),
        )
    )


def publish(rate: int, leave: threading.Event, count: Counter[str]) -> None:
    """The recorded mix at a steady rate, over whatever breaks."""
    # Of so many images and volumes as a busy cloud has in hand; new ones without end would be work that grows, and no
    # Glance of this machine answers for 60 new images a second
    bodies = itertools.cycle(list(notifications(700, begin=datetime.now(UTC))))
    while not leave.is_set():
        try:
            with kombu.Connection(BROKER) as connection:
                # As the services declare it; it is not there before the first of them had anything to say
                connection.default_channel.exchange_declare("glance", "topic", durable=False, auto_delete=False)
                producer = kombu.Producer(connection.default_channel)
                began, here = time.monotonic(), 0
                while not leave.is_set():
                    while here < rate * (time.monotonic() - began):
                        producer.publish(
                            next(bodies), exchange="glance", routing_key="notifications.info",
                            content_type="application/json", content_encoding="utf-8",
                        )  # fmt: skip
                        here += 1
                        count["sent"] += 1
                    time.sleep(0.05)
        except (OSError, kombu.exceptions.OperationalError, *kombu.Connection(BROKER).connection_errors):
            time.sleep(1)
