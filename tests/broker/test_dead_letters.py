"""The dead-letters commands on a real RabbitMQ: nothing is lost by looking, and each takes away
just what it should."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import amqp
import pytest

from tests.broker import hostile
from tests.broker.hands import Hands
from tests.broker.rabbitmq import RabbitMQ
from worker.broker.dead_letters import DeadQueue
from worker.broker.lanes import RabbitLanes
from worker.core.dead_letter import DeadLetter
from worker.core.job import OPERATOR, Job, Key

Run = Callable[..., subprocess.CompletedProcess[str]]
IMAGES = [f"{number:08d}-0000-4000-8000-000000000000" for number in range(4)]


@pytest.fixture
def queue(rabbitmq: RabbitMQ) -> Iterator[str]:
    """A prefix of queues that no other test uses."""
    name = f"dead-{uuid.uuid4().hex[:8]}"
    yield name
    rabbitmq.delete(f"{name}.dead", f"{name}.prewarm.fast", f"{name}.reclaim")


@pytest.fixture
def run(rabbitmq: RabbitMQ, queue: str, tmp_path: Path) -> Run:
    """Runs a command with a configuration on this broker."""
    config = tmp_path / "worker.conf"
    config.write_text(
        f"[notifications]\ntransport_urls = {rabbitmq.url}\nqueue = {queue}\n[work]\nurl = "
        f"{rabbitmq.url}\n"
        "[prewarm]\ntargets = fast\n[target:fast]\nvolume_type = fast\n"
    )

    def command(*words: str, check: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "worker", "--config-file", str(config), "dead-letters", *words],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=60,
            check=False,
            env=dict(os.environ),
        )
        assert done.returncode == check, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    return command


def letters(now: float) -> list[DeadLetter]:
    """Three jobs and a message that nobody can read."""
    keys = [
        Key("prewarm", IMAGES[0], "fast"),
        Key("prewarm", IMAGES[1], "fast"),
        Key("reclaim", IMAGES[2]),
    ]
    return [
        DeadLetter(
            lane=key.lane,
            reason=f"no luck with {number}",
            last_at=now - 3600.0 * number,
            job=Job(
                key=key,
                cause="image.update x",
                attempt=20,
                first_at=now - 9999.0,
                reason="no luck",
                used=7.0,
            ),
            traceback="Traceback of a bug" if number == 1 else "",
        )
        for number, key in enumerate(keys)
    ] + [DeadLetter(lane="intake", reason="not a notification", last_at=now, body=b'{"half": \xff')]


async def bury(rabbitmq: RabbitMQ, queue: str) -> None:
    lanes = RabbitLanes(url=rabbitmq.url, queue=queue)
    await lanes.bury(letters(time.time()))
    await lanes.close()


def listed(run: Run, *words: str) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = json.loads(run("list", "-f", "json", *words).stdout)
    return rows


async def test_looking_takes_nothing_away(rabbitmq: RabbitMQ, queue: str, run: Run) -> None:
    assert await asyncio.to_thread(listed, run) == []
    await bury(rabbitmq, queue)
    first, again = [await asyncio.to_thread(listed, run) for _ in range(2)]
    assert [row["Lane"] for row in first] == ["prewarm.fast", "prewarm.fast", "reclaim", "intake"]
    assert {row["Id"] for row in first} == {row["Id"] for row in again}
    assert first[0]["Tries"] == 20


async def test_one_is_shown_with_all_that_is_known(
    rabbitmq: RabbitMQ, queue: str, run: Run
) -> None:
    await bury(rabbitmq, queue)
    rows = await asyncio.to_thread(listed, run)
    shown = json.loads(
        (await asyncio.to_thread(run, "show", str(rows[1]["Id"]), "-f", "json")).stdout
    )
    assert shown["image"] == IMAGES[1]
    assert shown["traceback"] == "Traceback of a bug"
    raw = await asyncio.to_thread(run, "show", "--raw", "--reason", "not a notification")
    assert raw.stdout.startswith('{"half": ')
    # A job is no message, and what is not there is none either
    for words in (("--handler", "prewarm"), ("no-such-id",)):
        raw = await asyncio.to_thread(run, "show", "--raw", *words, check=1)
        assert raw.stdout == ""
        assert "no such dead letter that is a message" in raw.stderr
    assert (
        "no such dead letter"
        in (await asyncio.to_thread(lambda: run("show", "nothing", check=1))).stderr
    )


async def test_odd_messages_among_them_are_listed_too(
    rabbitmq: RabbitMQ, queue: str, run: Run
) -> None:
    await bury(rabbitmq, queue)
    with rabbitmq.channel() as channel:
        for flags, properties in hostile.PROPERTIES.values():
            channel.basic_publish(
                hostile.Raw(b"odd", flags, properties), routing_key=f"{queue}.dead"
            )
        # Half a character, once it is decoded as it claims to be encoded
        half = amqp.Message(rb"\ud800", content_encoding="unicode_escape")
        channel.basic_publish(half, routing_key=f"{queue}.dead")
    rows = await asyncio.to_thread(listed, run)
    assert len(rows) == 4 + len(hostile.PROPERTIES) + 1


async def test_replay_puts_jobs_back_as_new(rabbitmq: RabbitMQ, queue: str, run: Run) -> None:
    await bury(rabbitmq, queue)
    done = json.loads(
        (await asyncio.to_thread(run, "replay", "--handler", "prewarm", "-f", "json")).stdout
    )
    assert len(done) == 2
    assert [row["Lane"] for row in await asyncio.to_thread(listed, run)] == ["reclaim", "intake"]
    hands = Hands()
    lanes = RabbitLanes(url=rabbitmq.url, queue=queue)
    await lanes.open({"prewarm.fast": 10}, hands)
    await hands.have(2)
    jobs = [delivery.job for delivery in hands.held]
    assert [(job.key.image_id, job.attempt, job.cause, job.used) for job in jobs] == [
        (IMAGES[0], 0, OPERATOR, 7.0),
        (IMAGES[1], 0, OPERATOR, 7.0),
    ]
    hands.ack()
    await lanes.close()


async def test_what_nobody_can_read_is_not_replayed_but_can_be_dropped(
    rabbitmq: RabbitMQ, queue: str, run: Run
) -> None:
    await bury(rabbitmq, queue)
    await asyncio.to_thread(run, "replay", "--all")
    assert [row["Lane"] for row in await asyncio.to_thread(listed, run)] == ["intake"]
    await asyncio.to_thread(run, "drop", "--all")
    assert await asyncio.to_thread(listed, run) == []


async def test_what_no_worker_would_take_stays(rabbitmq: RabbitMQ, queue: str, run: Run) -> None:
    keys = [Key("prewarm", IMAGES[0], "retired"), Key("nosuch", IMAGES[1]), Key("reclaim", "red")]
    lanes = RabbitLanes(url=rabbitmq.url, queue=queue)
    await lanes.bury(
        DeadLetter(
            lane=key.lane,
            reason="\x1b[31mred",
            last_at=1.0,
            job=Job(key=key, cause="", first_at=1.0),
        )
        for key in keys
    )
    await lanes.close()
    shown = (await asyncio.to_thread(run, "list")).stdout
    assert "\x1b" not in shown
    assert "\\x1b[31mred" in shown
    done = await asyncio.to_thread(run, "replay", "--all")
    assert "1 stay: no worker with this configuration has a lane prewarm.retired" in done.stderr
    assert "a lane nosuch" in done.stderr
    assert "no worker takes jobs of reclaim now" in done.stderr
    assert {row["Lane"] for row in await asyncio.to_thread(listed, run)} == {
        "prewarm.retired",
        "nosuch",
    }
    assert (
        "no such dead letter"
        in (await asyncio.to_thread(lambda: run("drop", "nothing", check=1))).stderr
    )


async def test_two_do_not_look_at_once(rabbitmq: RabbitMQ, queue: str, run: Run) -> None:
    await bury(rabbitmq, queue)
    with DeadQueue(url=rabbitmq.url, queue=queue) as first:
        assert len(list(first)) == 4
        assert "somebody else" in (await asyncio.to_thread(lambda: run("list", check=1))).stderr
    assert len(await asyncio.to_thread(listed, run)) == 4


def test_nothing_happens_by_mistake(run: Run) -> None:
    assert "--all" in run("drop", check=2).stderr
    assert "--all" in run("replay", check=2).stderr
    assert "not an age" in run("list", "--older-than", "soon", check=2).stderr


def test_a_broker_that_is_away_is_one_line(run: Run, rabbitmq: RabbitMQ, tmp_path: Path) -> None:
    config = tmp_path / "worker.conf"
    config.write_text(config.read_text().replace(f":{rabbitmq.port}/", ":1/"))
    assert "refused" in run("list", check=1).stderr


def test_letters_in_memory_are_somebody_elses(run: Run, tmp_path: Path) -> None:
    config = tmp_path / "worker.conf"
    text = config.read_text()
    config.write_text(text[: text.index("[work]")] + text[text.index("[prewarm]") :])
    assert "memory://" in run("list", check=2).stderr
