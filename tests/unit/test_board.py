"""The board: what it is told comes out as documents, bounded, and nothing of it is older than what is known."""

from __future__ import annotations

import asyncio
import json
import math
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client import generate_latest

from tests.fake_cloud import FakeCloud
from tests.rig import FAST, SLOW, STORES, Rig
from worker.core.cloud import GIB, Image
from worker.core.job import Job, Key
from worker.core.outcome import Again, Done, Outcome, Park, Skip
from worker.core.state import State
from worker.core.target import Policy
from worker.observe.activity import FAILURES, MOST_IMAGES, OVERDUE, TIMES, Board, Choice
from worker.observe.metrics import Metrics

LANES = {"upload": 8, "reclaim": 4, "prewarm.fast": 2, "prewarm.slow": 2}
VOLUME = "11111111-1111-4111-8111-111111111111"


def image(number: int = 1, **fields: Any) -> Image:
    defaults: dict[str, Any] = {
        "id": f"i{number}", "status": "active", "owner": "o", "disk_format": "raw", "container_format": "bare",
        "visibility": "public", "name": "name", "size": 2 * GIB,
    }  # fmt: skip
    return Image(**(defaults | fields))


def job(number: int = 1, target: str = "fast", *, handler: str = "prewarm", attempt: int = 0, cause: str = "x") -> Job:
    return Job(key=Key(handler, f"i{number}", target), cause=cause, attempt=attempt, first_at=5.0)


def status(board: Board, *, most: float = 200) -> dict[str, Any]:
    document = board.status(targets=(FAST, SLOW), lanes=LANES, depths={"prewarm.fast": 3}, most=most)
    json.dumps(document)
    return document


def cells(board: Board) -> dict[str, list[str]]:
    return {row[0]: [cell[0] for cell in row[3]] for row in board.images(("fast", "slow"))["images"]}


def compared(board: Board, **states: str) -> None:
    """A comparison that finds image i1 like this."""
    board.comparing()
    board.look(image(), {target: (State(state), "why") for target, state in states.items()})
    board.compared()


def test_a_job_from_its_lane_to_its_end() -> None:
    board = Board()
    compared(board, fast="cold", slow="warm")
    board.held(job())
    (shown,) = status(board)["jobs"]
    assert (shown["state"], shown["image_id"], shown["target"], shown["first_at"]) == ("held", "i1", "fast", 5.0)
    board.began(job())
    board.doing(job().key, "Have Glance copy it")
    (shown,) = status(board)["jobs"]
    assert (shown["state"], shown["doing"], shown["expected"]) == ("in progress", "Have Glance copy it", None)
    assert cells(board) == {"i1": ["making", "warm"]}
    board.weighed({"fast": 5, "other": 7})
    assert status(board)["targets"] == [
        {
            "name": "fast",
            "volume_type": "fast",
            "strategy": "auto",
            "states": {"making": 1},
            "bytes": 5,
            "unusable": "",
        },
        {"name": "slow", "volume_type": "slow", "strategy": "auto", "states": {"warm": 1}, "bytes": 0, "unusable": ""},
    ]
    board.settled(job(), Done(VOLUME, state=State.WARM))
    assert status(board)["jobs"] == []
    assert cells(board) == {"i1": ["warm", "warm"]}


@pytest.mark.parametrize(
    ("outcome", "attempt", "cell", "state", "failures"),
    [
        (Again("no answer", after=5.0), 1, "failed", "waiting", 1),
        (Again("changed", after=5.0, counted=False), 0, "cold", "waiting", 0),
        (Park("a bug"), 3, "failed", "parked", 1),
        (Skip("too small"), 0, "unwanted", None, 0),
    ],
)
def test_outcomes(outcome: Outcome, attempt: int, cell: str, state: str | None, failures: int) -> None:
    board = Board()
    board.began(job())
    board.settled(job(attempt=attempt), outcome, due=4e9)
    assert cells(board) == {"i1": [cell, "unknown"]}
    assert [one["state"] for one in status(board)["jobs"]] == ([state] if state else [])
    found = status(board)["failures"]
    assert len(found) == failures
    if found:
        assert (found[0]["image_id"], found[0]["attempt"], found[0]["parked"]) == ("i1", attempt, state == "parked")


def test_a_warm_one_that_is_looked_at_stays_warm() -> None:
    board = Board()
    compared(board, fast="warm")
    board.began(job())
    assert cells(board)["i1"][0] == "warm"


def test_the_image_goes() -> None:
    board = Board()
    compared(board, fast="warm", slow="warm")
    board.settled(
        job(handler="reclaim", target="", cause="image.delete 17"), Done("2 deleted", changed=True, state=State.GONE)
    )
    assert cells(board) == {}
    compared(board, fast="warm")
    board.settled(job(), Done("1 deleted", changed=True, state=State.GONE))
    assert cells(board) == {}
    compared(board, fast="warm")
    board.settled(job(handler="reclaim", target="", cause="image.update 17"), Done("was not needed", changed=True))
    assert cells(board) == {"i1": ["warm", "unknown"]}
    board.comparing()
    board.compared()
    assert cells(board) == {}, "a comparison has not seen it"


def test_what_a_job_finds_during_a_comparison_is_newer() -> None:
    board = Board()
    compared(board, fast="cold", slow="cold")
    board.comparing()
    board.settled(job(), Done(VOLUME, state=State.WARM))
    board.settled(job(2), Done(VOLUME, state=State.WARM))
    board.look(image(), {"fast": (State.COLD, ""), "slow": (State.FULL, "")})
    board.compared()
    assert cells(board) == {"i1": ["warm", "full"], "i2": ["warm", "unknown"]}
    compared(board, fast="cold", slow="cold")
    assert cells(board) == {"i1": ["cold", "cold"]}, "the next one is newer than the job"


def test_an_image_is_named_before_a_comparison_has_seen_it() -> None:
    board = Board()
    board.look(image(), {})
    board.settled(job(), Done(VOLUME, state=State.WARM))
    board.look(image(name="renamed"), {})
    assert board.images(("fast",))["images"] == [["i1", "renamed", 2 * GIB, [["warm", ""]]]]


def shown(board: Board, **choice: Any) -> tuple[int, list[str]]:
    document = board.images(("fast",), Choice(**choice))
    return document["found"], [row[0] for row in document["images"]]


def test_images_come_page_by_page() -> None:
    board = Board()
    for number in range(1500):
        board.look(image(number, name=f"name {number:04}"), {"fast": (State.WARM, "")})
    assert board.images(("fast",))["total"] == 1500
    assert shown(board) == (1500, [f"i{number}" for number in range(200)])
    assert shown(board, start=1498) == (1500, ["i1498", "i1499"])
    assert shown(board, start=7, count=2) == (1500, ["i7", "i8"])
    found, ids = shown(board, count=10**9)
    assert (found, len(ids)) == (1500, MOST_IMAGES)
    for outside in ({"start": 1500}, {"start": 10**9}, {"count": 0}):
        assert shown(board, **outside) == (1500, [])


def test_images_are_chosen_by_a_part_of_their_name_or_id_and_by_state() -> None:
    board = Board()
    board.look(image(1, name="Debian 13"), {"fast": (State.WARM, "")})
    board.look(image(2, name="Rocky"), {"fast": (State.COLD, "")})
    board.look(image(3, name="debian 12", visibility="private"), {"fast": (State.COLD, "")})
    board.settled(job(2, attempt=1), Again("no answer", after=5.0), due=4e9)
    assert shown(board, text=" DEBIAN ") == (1, ["i1"]), "what is not told cannot be looked for"
    assert shown(board, text="i3") == (1, ["i3"])
    assert shown(board, state="failed") == (1, ["i2"])
    assert shown(board, state="cold") == (1, ["i3"])
    assert shown(board, state="no such state") == (0, [])
    assert shown(board, state="cold", text="i2") == (0, [])


def test_totals_are_what_the_cells_are_whatever_happens() -> None:
    dice = random.Random(16)
    metrics = Metrics()
    board, states = metrics.board, (State.WARM, "cold", "full", "unwanted")
    for _ in range(3000):
        number, target = dice.randrange(12), dice.choice(("fast", "slow"))
        match dice.randrange(9):
            case 0:
                board.comparing()
            case 1:
                board.compared()
            case 2:
                board.settled(
                    job(number, handler="reclaim", target="", cause="image.delete x"), Done("gone", state=State.GONE)
                )
            case 3:
                board.forget(dice.choice([("fast", "slow"), ("slow",)]))
            case 4:
                board.began(job(number, target))
            case 5 | 6:
                found = {name: (dice.choice(states), "") for name in ("fast", "slow") if dice.random() < 0.7}
                board.look(image(number), found)
            case _:
                outcome = dice.choice(
                    [
                        Done(VOLUME, state=State.WARM),
                        Done("2 deleted", state=State.UNWANTED),
                        Skip("no"),
                        Again("x"),
                        Park("y"),
                    ]
                )
                board.settled(job(number, target, attempt=dice.randrange(2)), outcome, due=4e9)
        for name in ("fast", "slow"):
            seen = Counter(row[3][0][0] for row in board.images((name,))["images"])
            del seen["unknown"]
            assert board.states().get(name, {}) == seen


async def test_the_event_loop_does_not_wait_for_those_who_look() -> None:
    board = Board()
    targets = [f"target {number}" for number in range(10)]
    warm = dict.fromkeys(targets, (State.WARM, ""))
    for number in range(30_000):
        board.look(image(number, name=f"image {number}"), warm)
        board.held(job(number))
    everything = [[row, [list(cell) for cell in warm.values()]] for row in range(30_000)]

    async def stands(work: Callable[[], object]) -> float:
        """For how long the loop, which tells the board something at each turn, stands at the most.

        The least of several tries: this machine has others to serve, too.
        """
        tries = []
        for _ in range(5):
            working = asyncio.create_task(asyncio.to_thread(work))
            longest = 0.0
            while not working.done():
                began = time.monotonic()
                await asyncio.sleep(0.001)
                board.doing(job().key, "something")
                longest = max(longest, time.monotonic() - began)
            tries.append(longest)
        return min(tries)

    def sorted_anew() -> object:
        targets.append(targets.pop(0))
        return board.images(targets)

    # As long as it would stand if all of it were written in one go, measured here and now
    at_once = await stands(lambda: json.dumps(everything))
    for look in (
        sorted_anew,
        lambda: board.images(targets, Choice(text="29999")),
        lambda: status(board),
        board.oldest,
        board.states,
    ):
        assert await stands(look) < at_once / 2


def test_what_failed_comes_first_and_what_is_warm_last() -> None:
    board = Board()
    found = {1: "warm", 2: "unwanted", 3: "full", 4: "cold", 5: "warm", 6: "lost"}
    for number, state in found.items():
        board.look(image(number), {"fast": (State(state), ""), "slow": (State.WARM, "")})
    board.settled(job(7, attempt=1), Again("no answer", after=5.0), due=4e9)
    assert list(cells(board)) == ["i7", "i6", "i4", "i3", "i2", "i1", "i5"]


def test_only_open_images_are_named() -> None:
    board = Board()
    for number, visibility in enumerate(("public", "community", "shared", "private")):
        board.look(image(number, visibility=visibility), {"fast": (State.WARM, "")})
    assert {row[0]: row[1] for row in board.images(("fast",))["images"]} == {
        "i0": "name", "i1": "name", "i2": "", "i3": "",
    }  # fmt: skip


def test_lanes_and_how_many_jobs() -> None:
    board = Board()
    for number in range(300):
        board.held(job(number))
    board.began(job(299))
    board.settled(job(298, attempt=1), Again("no", after=9.0), due=4e9)
    board.settled(job(297, attempt=3), Park("never"), due=4e9)
    document = status(board)
    lane = {one["lane"]: one for one in document["lanes"]}["prewarm.fast"]
    assert lane == {
        "lane": "prewarm.fast", "width": 2, "in_progress": 1, "held": 297, "waiting": 1, "depth": 3, "oldest": 5.0,
    }  # fmt: skip
    assert (len(document["jobs"]), document["jobs_left_out"]) == (200, 100)
    states = [one["state"] for one in document["jobs"]]
    assert states == ["in progress", "waiting", "parked"] + ["held"] * 197, "what is only queued is left out first"
    assert len(status(board, most=math.inf)["jobs"]) == 300


def test_the_past_is_bounded() -> None:
    board = Board()
    for number in range(TIMES + 50):
        board.settled(job(number, attempt=1), Again("no", after=1.0), due=1.0)
        board.warmed(job(number).key, 1.0)
        board.created("fast", 1.0, warm=True)
    document = status(board)
    assert len(document["failures"]) == FAILURES
    assert document["failures"][0]["image_id"] == f"i{TIMES + 49}"
    assert [len(times) for times in document["times"].values()] == [TIMES, TIMES]
    assert document["jobs"] == [], "long overdue: another worker has them"


def test_an_estimate_by_what_others_took() -> None:
    board = Board()
    board.look(image(1), {"fast": (State.COLD, "")})
    board.look(image(2, size=4 * GIB), {"fast": (State.COLD, "")})
    board.warmed(job(2).key, 20.0)
    board.warmed(job(2, "slow").key, 4000.0)
    board.began(job(1))
    assert status(board)["jobs"][0]["expected"] == 10.0


def test_a_census_tells_the_board_how_much_there_is() -> None:
    metrics = Metrics()
    metrics.census({("fast", "available"): 1}, {"fast": 7 * GIB})
    assert [one["bytes"] for one in status(metrics.board)["targets"]] == [7 * GIB, 0]


def test_a_job_that_went_to_another_worker_makes_no_lane_old() -> None:
    board = Board()
    compared(board, fast="cold", slow="warm")
    now = time.time()
    board.settled(job(attempt=1), Again("busy"), due=now + 1.0)
    assert board.oldest() == {"prewarm.fast": 5.0}
    assert board.states() == {"fast": {"failed": 1}, "slow": {"warm": 1}}
    board.settled(job(attempt=1), Again("busy"), due=now - OVERDUE - 1.0)
    assert board.oldest() == {}
    assert board.states() == {"fast": {"cold": 1}, "slow": {"warm": 1}}


def test_what_waits_for_a_user_makes_no_lane_old() -> None:
    board = Board()
    waiting = job(target="", handler="upload")
    board.settled(waiting, Again("the volume is in-use", counted=False, news=True), due=time.time() + 60.0)
    assert board.oldest() == {}
    board.settled(waiting, Again("over quota"), due=time.time() + 60.0)
    assert board.oldest() == {"upload": 5.0}


def test_the_next_daemon_knows_of_no_targets_but_its_own() -> None:
    metrics = Metrics()
    compared(metrics.board, fast="full", slow="warm")
    metrics.census({("fast", "available"): 1, ("slow", "available"): 1}, {"fast": 1, "slow": 1})
    metrics.depths({"prewarm.fast": 3, "prewarm.slow": 1}, {"prewarm.fast": 2})
    metrics.states()
    metrics.repair("i1", "fast", possible=False)
    metrics.begin(["slow"])
    metrics.states()
    metrics.depths({"prewarm.slow": 1}, {})
    text = generate_latest(metrics.registry).decode()
    assert "fast" not in text
    assert 'image_volume_worker_images{state="warm",target="slow"} 1.0' in text
    assert "image_volume_worker_images_beyond_repair 0.0" in text


def test_what_another_worker_has_repaired_or_deleted_is_lost_no_more() -> None:
    metrics = Metrics()
    for number in (1, 2):
        metrics.repair(f"i{number}", "fast", possible=False)
    # The first one is still there, and still lost
    compared(metrics.board, fast="cold")
    metrics.census({}, {})
    assert "image_volume_worker_images_beyond_repair 1.0" in generate_latest(metrics.registry).decode()


async def test_a_worker_tells_its_board() -> None:
    cloud = FakeCloud(stores=STORES)
    async with Rig(cloud, targets=(FAST, SLOW), policy=Policy(settle=0.0)) as rig:
        board = rig.metrics.board
        first = cloud.upload(name="first")
        cloud.upload(disk_format="qcow2")
        await rig.resync()
        await rig.quiet()
        shown = {row[0]: row for row in board.images(("fast", "slow"))["images"]}
        assert [cell[0] for cell in shown[first.id][3]] == ["warm", "warm"]
        assert shown[first.id][1] == "first"
        assert status(board)["jobs"] == []
        assert {row[1] for row in status(board)["times"]["time_to_warm"]} <= {"fast", "slow"}
        cloud.dead_types.add("fast")
        second = cloud.upload()
        await rig.resync()
        await rig.quiet()
        assert status(board)["failures"][0]["image_id"] == second.id
        assert {row[0]: row for row in board.images(("fast",))["images"]}[second.id][3][0][0] == "failed"


def test_no_scrape_misses_a_gauge_that_is_being_set() -> None:
    metrics = Metrics()
    for number in range(3000):
        metrics.board.look(image(number), {"fast": (State.WARM, ""), "slow": (State.COLD, "")})
    names = ("images{", "image_volumes{", "image_volume_bytes{", "target_usable{", "lane_depth{", "jobs_waiting{")

    def take_over() -> None:
        metrics.states()
        metrics.census({("fast", "available"): 3000, ("slow", "error"): 1}, {"fast": 1, "slow": 1})
        metrics.target_usable.labels("fast").set(1)
        metrics.depths({"prewarm.fast": 3}, {"prewarm.fast": 2})

    def without_pause() -> None:
        for _ in range(20):
            # A reload between, which begins anew
            metrics.begin(["fast", "slow"])
            take_over()

    take_over()
    counting = threading.Thread(target=without_pause)
    counting.start()
    missed, scrapes = Counter[str](), 0
    while counting.is_alive():
        text = generate_latest(metrics.registry).decode()
        scrapes += 1
        missed.update(name for name in names if f"image_volume_worker_{name}" not in text)
    counting.join()
    assert scrapes
    assert not missed


async def test_the_page_and_the_metrics_notice_that_an_image_is_deactivated() -> None:
    cloud = FakeCloud(stores=STORES)
    async with Rig(cloud, targets=(FAST, SLOW), policy=Policy(settle=0.0)) as rig:
        cloud.emit = rig.hear
        image_id = cloud.upload(name="first").id
        await rig.quiet()
        assert cells(rig.metrics.board) == {image_id: ["warm", "warm"]}
        # As Glance announces it
        cloud.touch(image_id, status="deactivated")
        cloud.announce("image.update", image_id)
        await rig.quiet()
        assert rig.metrics.board.images(("fast",))["images"][0][3] == [["unwanted", "image is deactivated, not active"]]
        assert rig.metrics.board.states() == {"fast": {"unwanted": 1}, "slow": {"unwanted": 1}}
        rig.metrics.board.comparing()
        await rig.resync()
        rig.metrics.board.compared()
        assert cells(rig.metrics.board) == {image_id: ["unwanted", "unwanted"]}, "nor does a comparison forget it"
        assert len(cloud.of(image_id)) == 2, "it keeps its Image-Volumes"
        cloud.touch(image_id, status="active")
        cloud.announce("image.update", image_id)
        await rig.quiet()
        assert cells(rig.metrics.board) == {image_id: ["warm", "warm"]}


@pytest.mark.parametrize("visibility", ["private", "shared"])
async def test_the_name_of_an_image_goes_from_the_page_with_its_being_public(visibility: str) -> None:
    cloud = FakeCloud(stores=STORES)
    async with Rig(cloud, targets=(FAST, SLOW), policy=Policy(settle=0.0)) as rig:
        cloud.emit = rig.hear
        image_id = cloud.upload(name="first").id
        await rig.quiet()
        # Its job may be another worker's, or wait: what was heard is enough
        cloud.emit = lambda body: rig.metrics.board.has(image_id) and rig.dispatcher.route(body)
        before = rig.metrics.board.images(("fast",))
        cloud.touch(image_id, visibility=visibility)
        cloud.announce("image.update", image_id)
        after = rig.metrics.board.images(("fast",))
        assert [before["images"][0][1], after["images"][0][1]] == ["first", ""]
        assert before["revision"] != after["revision"], "or the page would not ask"
        # That it is public is only believed when Glance says so
        cloud.touch(image_id, visibility="public")
        cloud.announce("image.update", image_id)
        assert rig.metrics.board.images(("fast",))["images"][0][1] == ""
        cloud.emit = rig.hear
        cloud.announce("image.update", image_id)
        await rig.quiet()
        assert rig.metrics.board.images(("fast",))["images"][0][1] == "first"
