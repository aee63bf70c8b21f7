"""Status: what it shows is what is there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import pytest

from worker.core.cloud import GIB, Location
from worker.core.handler import Kind
from worker.core.job import Job, Key
from worker.core.state import State
from worker.core.target import Policy, Target
from worker.diagnose import status
from worker.diagnose.status import Row
from worker.observe import live
from worker.observe.live import LiveJob, LiveLane
from worker.testing.fake_cloud import PROJECT, FakeCloud
from worker.testing.rig import FAST, SLOW, STORES, Rig

NOWHERE = "00000009-0000-4000-8000-000000000000"


@pytest.fixture
def cloud() -> FakeCloud:
    return FakeCloud(stores=STORES)


def rig_of(cloud: FakeCloud, *targets: Target, policy: Policy | None = None) -> Rig:
    return Rig(cloud, targets=targets or (FAST, SLOW), policy=policy or Policy(settle=0.0))


async def shown(rig: Rig, image_id: str = "") -> dict[str, Row]:
    """The rows by target, of all images or of one."""
    overview = status.overview(rig.cloud, rig.prewarm, (rig.reclaim, rig.upload))
    return {row.target: row async for row in overview if image_id in ("", row.image_id)}


async def test_warm_and_cold(cloud: FakeCloud) -> None:
    async with rig_of(cloud) as rig:
        image = cloud.upload(size=2 * GIB)
        before = await shown(rig)
        assert {target: row.state for target, row in before.items()} == {
            "fast": "cold",
            "slow": "cold",
        }
        assert before["fast"].why == "not in store cinder-fast"
        await rig.run(image.id)
        await rig.run(image.id, "slow")
        after = await shown(rig)
        (volume,) = [volume for volume in cloud.of(image.id) if volume.volume_type == "fast"]
        assert (after["fast"].state, after["fast"].volume_id, after["fast"].size) == (
            "warm",
            volume.id,
            2,
        )
        assert after["fast"].since > 1.7e9
        assert after["fast"].used == 0.0


async def test_not_wanted_full_and_unused(cloud: FakeCloud) -> None:
    image = cloud.upload(size=2 * GIB)
    async with rig_of(cloud, replace(FAST, max_gigabytes=1), policy=Policy(settle=0.0)) as rig:
        row = (await shown(rig))["fast"]
        assert row.state == "full"
        assert "max_gigabytes = 1" in row.why
    async with rig_of(cloud, FAST, policy=Policy(when="used")) as rig:
        assert (await shown(rig))["fast"].state == "unused"
    async with rig_of(cloud, FAST, policy=Policy(max_size=GIB)) as rig:
        row = (await shown(rig))["fast"]
        assert row.state == "unwanted"
        assert "max_size" in row.why
    assert cloud.of(image.id) == []


@pytest.mark.parametrize("copies", [1, 2])
async def test_lost(cloud: FakeCloud, copies: int) -> None:
    async with rig_of(cloud, FAST) as rig:
        image = cloud.upload()
        location = Location(
            url=f"cinder://cinder-fast/{NOWHERE}", store="cinder-fast", volume_id=NOWHERE
        )
        file = Location(url="file:///x", store="file")
        cloud.locations[image.id] = (location, file)[:copies]
        cloud.touch(
            image.id,
            stores=frozenset({"cinder-fast", "file"}) if copies > 1 else frozenset({"cinder-fast"}),
        )
        row = (await shown(rig))["fast"]
        assert row.state == ("lost" if copies == 1 else "cold")
        assert ("nobody can repair" in row.why) is (copies == 1)


async def test_what_is_left(cloud: FakeCloud) -> None:
    async with rig_of(cloud, FAST) as rig:
        gone, declined, queued = cloud.upload(), cloud.upload(), cloud.queue(owner="alice")
        source = cloud.volume_of("alice")
        cloud.set_by_user(queued.id, image_volume_source=source.id)
        await rig.run(gone.id)
        await rig.run(declined.id)
        del cloud.images[gone.id]
        cloud.set_by_user(declined.id, image_volume_prewarm="no")
        assert [(row.state, row.size) for row in (await shown(rig, gone.id)).values()] == [
            ("gone", 1)
        ]
        states = [
            row.state
            async for row in status.overview(cloud, rig.prewarm, (rig.reclaim, rig.upload))
        ]
        assert sorted(states) == ["gone", "left over", "unwanted", "upload"]
        (upload,) = (await shown(rig, queued.id)).values()
        assert "property names its source" in upload.why


async def test_the_last_use_is_shown(cloud: FakeCloud) -> None:
    async with rig_of(cloud, FAST) as rig:
        cloud.emit = rig.hear
        image = cloud.upload()
        await rig.quiet()
        cloud.use(image.id, "fast")
        await rig.quiet()
        row = (await shown(rig))["fast"]
        assert row.state == "warm"
        assert row.used > 1.7e9


async def test_it_changes_nothing(cloud: FakeCloud) -> None:
    async with rig_of(cloud) as rig:
        cloud.volume_of(PROJECT, name=f"image-{cloud.upload().id}")
        cloud.queue()
        before = (dict(cloud.volumes), dict(cloud.images), dict(cloud.locations))
        await shown(rig)
        assert before == (cloud.volumes, cloud.images, cloud.locations)
        assert set(cloud.calls) == {
            "list_images", "list_volumes", "list_stores", "describe_volume_types", "list_pools", "encrypts",
        }  # fmt: skip


def job(
    row: Row, state: str, *, attempt: int = 0, due: float = 0.0, doing: str = "", reason: str = ""
) -> LiveJob:
    return LiveJob(
        key=row.key, state=state, attempt=attempt, first_at=1.0, due=due, doing=doing, reason=reason
    )


COLD = Row(image_id="a", target="fast", state=State.COLD, why="not in store x")


@pytest.mark.parametrize(
    ("live", "state", "due", "why"),
    [
        (job(COLD, "in progress", doing="CopyImage"), "making", 0.0, "CopyImage"),
        (job(COLD, "in progress"), "making", 0.0, "not in store x"),
        (job(COLD, "held"), "cold", 0.0, "not in store x"),
        (
            job(COLD, "waiting", due=9.0, reason="changed a moment ago"),
            "cold",
            9.0,
            "changed a moment ago",
        ),
        (job(COLD, "waiting", due=9.0, attempt=2, reason="no answer"), "failed", 9.0, "no answer"),
        (
            job(COLD, "parked", due=9.0, attempt=20, reason="no answer"),
            "failed",
            9.0,
            "given up: no answer",
        ),
    ],
)
def test_what_a_worker_says_of_a_cold_one(live: LiveJob, state: str, due: float, why: str) -> None:
    row = status.with_work(COLD, {live.key: live}, {})
    assert (row.state, row.due, row.why) == (state, due, why)


@pytest.mark.parametrize(
    "state", [State.WARM, State.FULL, State.UNUSED, State.UNWANTED, State.LOST]
)
def test_work_does_not_touch_what_is_settled(state: str) -> None:
    row = replace(COLD, state=state)
    live = job(row, "waiting", attempt=3, reason="no answer")
    assert status.with_work(row, {live.key: live}, {}) == row


def test_an_upload_keeps_its_state_and_gets_the_reason() -> None:
    row = Row(image_id="a", target="", state="upload")
    live = job(row, "waiting", attempt=1, due=7.0, reason="the volume is in-use")
    assert live.key == Key("upload", "a")
    seen = status.with_work(row, {live.key: live}, {})
    assert (seen.state, seen.due, seen.why) == ("upload", 7.0, "the volume is in-use")


def test_a_dead_letter_of_a_cold_one() -> None:
    letter = Job(key=COLD.key, cause="x", attempt=20, first_at=1.0, reason="no answer")
    row = status.with_work(COLD, {}, {letter.key: letter})
    assert (row.state, row.why) == ("failed", "given up after 20 tries: no answer")
    # A worker that tries it again knows better
    live = job(COLD, "in progress", doing="CopyImage")
    assert status.with_work(COLD, {live.key: live}, {letter.key: letter}).state == "making"


async def test_what_is_being_made_is_seen_in_the_cloud(cloud: FakeCloud) -> None:
    async with rig_of(cloud) as rig:
        image = cloud.upload()
        cloud.touch(image.id, importing=frozenset({"cinder-fast"}), import_locked=True)
        assert {target: row.state for target, row in (await shown(rig)).items()} == {
            "fast": "making",
            "slow": "cold",
        }


async def test_summary(cloud: FakeCloud) -> None:
    targets = replace(FAST, max_gigabytes=10, max_count=4), SLOW
    async with rig_of(cloud, *targets) as rig:
        first = cloud.upload(size=2 * GIB)
        cloud.upload(size=3 * GIB)
        for target in targets:
            await rig.run(first.id, target.name)
        held: dict[str, tuple[int, int]] = {}
        rows = [
            row
            async for row in status.overview(cloud, rig.prewarm, (rig.reclaim, rig.upload), held)
        ]
        assert held == {"fast": (2, 1)}
        fast, slow = status.summaries(targets, rows, held)
        assert (fast.states, fast.size, fast.budget) == (
            {"warm": 1, "cold": 1},
            2,
            "2 of 10 GiB, 1 of 4 volumes",
        )
        assert (slow.states, slow.size, slow.budget) == ({"warm": 1, "cold": 1}, 2, "")


@contextmanager
def served(body: bytes, code: int = 200) -> Iterator[tuple[str, int]]:
    """The address of a server that gives this answer to everything."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(code)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = HTTPServer(("127.0.0.1", 0), Answer)
    Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield "127.0.0.1", server.server_port
    finally:
        server.shutdown()
        server.server_close()


ANSWER: dict[str, Any] = {
    "jobs": [
        {"handler": "prewarm", "image_id": "a", "target": "fast", "state": "in progress", "attempt": 1,
         "first_at": 5.0, "due": None, "doing": "CopyImage", "reason": ""},
        {"handler": "prewarm", "image_id": "a", "target": "fast", "state": "waiting", "attempt": 1,
         "first_at": 5.0, "due": 9.0, "doing": "", "reason": "no answer"},
    ],
    "lanes": [{"lane": "prewarm.fast", "in_progress": 1, "held": 2, "waiting": 3, "depth": 4, "oldest": None}],
}  # fmt: skip


def test_a_worker_is_asked() -> None:
    with served(json.dumps(ANSWER).encode()) as address:
        told = live.ask(("0.0.0.0", address[1]))
    assert told
    assert told.jobs[Key("prewarm", "a", "fast")].state == "in progress"
    assert told.lanes["prewarm.fast"] == LiveLane(
        in_progress=1, held=2, waiting=3, depth=4, oldest=0.0
    )


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", 200),
        (b"<html>", 200),
        (b"[]", 200),
        (b"null", 200),
        (b'{"jobs": []}', 200),
        (b'{"jobs": [{}], "lanes": []}', 200),
        (json.dumps(ANSWER).encode(), 404),
    ],
)
def test_somebody_else_is_not_believed(body: bytes, code: int) -> None:
    with served(body, code) as address:
        assert live.ask(address) is None
    assert live.ask(address) is None, "nobody is there any more"


def test_what_a_worker_holds_back_is_shown_as_that() -> None:
    held, full = {COLD.key: "somebody deletes it"}, {COLD.target: "Cinder's cache is full"}
    assert status.with_holds(COLD, {}, {}) == COLD
    row = status.with_holds(COLD, held, full)
    assert (row.state, row.why) == ("held back", "somebody deletes it")
    row = status.with_holds(COLD, {}, full)
    assert (row.state, row.why) == ("full", "Cinder's cache is full")
    # What is there and only has to be put right needs no room
    assert status.with_holds(replace(COLD, volume_id="v"), {}, full).state == "cold"
    assert status.with_holds(replace(COLD, state=State.WARM), held, full).state == "warm"


async def test_an_image_that_waits_for_data_is_no_upload(cloud: FakeCloud) -> None:
    async with Rig(cloud) as rig:
        waiting = cloud.queue()
        asked = cloud.queue(properties={"image_volume_source": cloud.volume_of("alice").id})
        cloud.ahead += 7200.0
        assert await shown(rig, waiting.id) == {}
        assert {row.state for row in (await shown(rig, asked.id)).values()} == {State.UPLOAD}
        # A resync looks at both: Cinder's own upload may have failed
        kinds = {one.key.image_id: one.kind for one in await rig.resync()}
        assert kinds == {waiting.id: Kind.LOOK, asked.id: Kind.WORK}


async def test_a_refused_upload_is_no_work(cloud: FakeCloud) -> None:
    async with Rig(cloud) as rig:
        refused = cloud.queue(properties={"image_volume_source": cloud.volume_of("bob").id})
        await rig.complete(refused.id)
        cloud.ahead += 7200.0
        (missing,) = await rig.resync()
        assert missing.kind is Kind.REFUSED
        assert (await shown(rig, refused.id))[""].state is State.UPLOAD
