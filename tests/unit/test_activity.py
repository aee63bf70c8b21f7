"""The activity: what it is told comes out as documents, bounded, and nothing of it is older than
what is known."""

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

from handlers import image_volume, last_use
from worker.core.cloud import GIB, Image
from worker.core.creation import Creation, Made, Way
from worker.core.job import Job, Key
from worker.core.outcome import Again, Done, Outcome, Park, Skip
from worker.core.state import State
from worker.core.target import Policy
from worker.observe.activity import Activity
from worker.observe.history import FAILURES, TIMES
from worker.observe.job_records import OVERDUE
from worker.observe.metrics import Metrics
from worker.observe.order import MOST_IMAGES, Choice
from worker.observe.status_document import Services
from worker.testing.fake_cloud import FakeCloud
from worker.testing.rig import FAST, SLOW, STORES, Rig

LANES = {"upload": 8, "reclaim": 4, "prewarm.fast": 2, "prewarm.slow": 2}
VOLUME = "11111111-1111-4111-8111-111111111111"


def image(number: int = 1, **fields: Any) -> Image:
    defaults: dict[str, Any] = {
        "id": f"i{number}", "status": "active", "owner": "o", "disk_format": "raw", "container_format": "bare",
        "visibility": "public", "name": "name", "size": 2 * GIB,
    }  # fmt: skip
    return Image(**(defaults | fields))


def job(
    number: int = 1,
    target: str = "fast",
    *,
    handler: str = "prewarm",
    attempt: int = 0,
    cause: str = "x",
) -> Job:
    return Job(key=Key(handler, f"i{number}", target), cause=cause, attempt=attempt, first_at=5.0)


def creation(number: int = 1, **fields: Any) -> Creation:
    defaults: dict[str, Any] = {
        "volume_id": VOLUME, "image_id": f"i{number}", "target": "fast", "began": 1.0, "ended": 2.0, "seconds": 1.0,
    }  # fmt: skip
    return Creation(**(defaults | fields))


def status(activity: Activity, *, most: float = 200) -> dict[str, Any]:
    services = Services(targets=(FAST, SLOW), lanes=LANES, depths={"prewarm.fast": 3})
    document = activity.status(services, most=most)
    json.dumps(document)
    return document


def cells(activity: Activity) -> dict[str, list[str]]:
    return {
        row[0]: [cell[0] for cell in row[3]] for row in activity.images(("fast", "slow"))["images"]
    }


def compared(activity: Activity, **states: str) -> None:
    """A comparison that finds image i1 like this."""
    activity.comparing()
    activity.look(image(), {target: (State(state), "why") for target, state in states.items()})
    activity.compared()


def test_a_job_from_its_lane_to_its_end() -> None:
    activity = Activity()
    compared(activity, fast="cold", slow="warm")
    activity.held(job())
    (shown,) = status(activity)["jobs"]
    assert (shown["state"], shown["image_id"], shown["target"], shown["first_at"]) == (
        "held",
        "i1",
        "fast",
        5.0,
    )
    activity.began(job())
    activity.doing(job().key, "Have Glance copy it")
    (shown,) = status(activity)["jobs"]
    assert (shown["state"], shown["doing"], shown["expected"]) == (
        "in progress",
        "Have Glance copy it",
        None,
    )
    assert cells(activity) == {"i1": ["making", "warm"]}
    activity.weighed({"fast": 5, "other": 7})
    unbounded = {"volumes": 0, "max_gigabytes": 0, "max_count": 0, "pools": []}
    assert status(activity)["targets"] == [
        {
            "name": "fast",
            "volume_type": "fast",
            "strategy": "auto",
            "states": {"making": 1},
            "bytes": 5,
            "unusable": "",
            **unbounded,
        },
        {
            "name": "slow",
            "volume_type": "slow",
            "strategy": "auto",
            "states": {"warm": 1},
            "bytes": 0,
            "unusable": "",
            **unbounded,
        },
    ]
    activity.settled(job(), Done(VOLUME, state=State.WARM))
    assert status(activity)["jobs"] == []
    assert cells(activity) == {"i1": ["warm", "warm"]}


@pytest.mark.parametrize(
    ("outcome", "attempt", "cell", "state", "failures"),
    [
        (Again("no answer", after=5.0), 1, "failed", "waiting", 1),
        (Again("changed", after=5.0, counted=False), 0, "cold", "waiting", 0),
        (Park("a bug"), 3, "failed", "parked", 1),
        (Skip("too small"), 0, "unwanted", None, 0),
    ],
)
def test_outcomes(
    outcome: Outcome, attempt: int, cell: str, state: str | None, failures: int
) -> None:
    activity = Activity()
    activity.began(job())
    activity.settled(job(attempt=attempt), outcome, due=4e9)
    assert cells(activity) == {"i1": [cell, "unknown"]}
    assert [one["state"] for one in status(activity)["jobs"]] == ([state] if state else [])
    found = status(activity)["failures"]
    assert len(found) == failures
    if found:
        assert (found[0]["image_id"], found[0]["attempt"], found[0]["parked"]) == (
            "i1",
            attempt,
            state == "parked",
        )


def test_a_warm_one_that_is_looked_at_stays_warm() -> None:
    activity = Activity()
    compared(activity, fast="warm")
    activity.began(job())
    assert cells(activity)["i1"][0] == "warm"


def test_the_image_goes() -> None:
    activity = Activity()
    compared(activity, fast="warm", slow="warm")
    activity.settled(
        job(handler="reclaim", target="", cause="image.delete 17"),
        Done("2 deleted", changed=True, state=State.GONE),
    )
    assert cells(activity) == {}
    compared(activity, fast="warm")
    activity.settled(job(), Done("1 deleted", changed=True, state=State.GONE))
    assert cells(activity) == {}
    compared(activity, fast="warm")
    activity.settled(
        job(handler="reclaim", target="", cause="image.update 17"),
        Done("was not needed", changed=True),
    )
    assert cells(activity) == {"i1": ["warm", "unknown"]}
    activity.comparing()
    activity.compared()
    assert cells(activity) == {}, "a comparison has not seen it"


def test_what_a_job_finds_during_a_comparison_is_newer() -> None:
    activity = Activity()
    compared(activity, fast="cold", slow="cold")
    activity.comparing()
    activity.settled(job(), Done(VOLUME, state=State.WARM))
    activity.settled(job(2), Done(VOLUME, state=State.WARM))
    activity.look(image(), {"fast": (State.COLD, ""), "slow": (State.FULL, "")})
    activity.compared()
    assert cells(activity) == {"i1": ["warm", "full"], "i2": ["warm", "unknown"]}
    compared(activity, fast="cold", slow="cold")
    assert cells(activity) == {"i1": ["cold", "cold"]}, "the next one is newer than the job"


def test_an_image_is_named_before_a_comparison_has_seen_it() -> None:
    activity = Activity()
    activity.look(image(), {})
    activity.settled(job(), Done(VOLUME, state=State.WARM))
    activity.look(image(name="renamed"), {})
    assert activity.images(("fast",))["images"] == [["i1", "renamed", 2 * GIB, [["warm", ""]]]]


def shown(activity: Activity, **choice: Any) -> tuple[int, list[str]]:
    document = activity.images(("fast",), Choice(**choice))
    return document["found"], [row[0] for row in document["images"]]


def test_images_come_page_by_page() -> None:
    activity = Activity()
    for number in range(1500):
        activity.look(image(number, name=f"name {number:04}"), {"fast": (State.WARM, "")})
    assert activity.images(("fast",))["total"] == 1500
    assert shown(activity) == (1500, [f"i{number}" for number in range(200)])
    assert shown(activity, start=1498) == (1500, ["i1498", "i1499"])
    assert shown(activity, start=7, count=2) == (1500, ["i7", "i8"])
    found, ids = shown(activity, count=10**9)
    assert (found, len(ids)) == (1500, MOST_IMAGES)
    for outside in ({"start": 1500}, {"start": 10**9}, {"count": 0}):
        assert shown(activity, **outside) == (1500, [])


def test_images_are_chosen_by_a_part_of_their_name_or_id_and_by_state() -> None:
    activity = Activity()
    activity.look(image(1, name="Debian 13"), {"fast": (State.WARM, "")})
    activity.look(image(2, name="Rocky"), {"fast": (State.COLD, "")})
    activity.look(image(3, name="debian 12", visibility="private"), {"fast": (State.COLD, "")})
    activity.settled(job(2, attempt=1), Again("no answer", after=5.0), due=4e9)
    assert shown(activity, text=" DEBIAN ") == (1, ["i1"]), "what is not told cannot be looked for"
    assert shown(activity, text="i3") == (1, ["i3"])
    assert shown(activity, state="failed") == (1, ["i2"])
    assert shown(activity, state="cold") == (1, ["i3"])
    assert shown(activity, state="no such state") == (0, [])
    assert shown(activity, state="cold", text="i2") == (0, [])


def test_totals_are_what_the_cells_are_whatever_happens() -> None:
    dice = random.Random(16)
    metrics = Metrics()
    activity, states = metrics.activity, (State.WARM, "cold", "full", "unwanted")
    for _ in range(3000):
        number, target = dice.randrange(12), dice.choice(("fast", "slow"))
        match dice.randrange(9):
            case 0:
                activity.comparing()
            case 1:
                activity.compared()
            case 2:
                activity.settled(
                    job(number, handler="reclaim", target="", cause="image.delete x"),
                    Done("gone", state=State.GONE),
                )
            case 3:
                activity.forget(dice.choice([("fast", "slow"), ("slow",)]))
            case 4:
                activity.began(job(number, target))
            case 5 | 6:
                found = {
                    name: (dice.choice(states), "")
                    for name in ("fast", "slow")
                    if dice.random() < 0.7
                }
                activity.look(image(number), found)
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
                activity.settled(job(number, target, attempt=dice.randrange(2)), outcome, due=4e9)
        for name in ("fast", "slow"):
            seen = Counter(row[3][0][0] for row in activity.images((name,))["images"])
            del seen["unknown"]
            assert activity.states().get(name, {}) == seen


async def test_the_event_loop_does_not_wait_for_those_who_look() -> None:
    activity = Activity()
    targets = [f"target {number}" for number in range(10)]
    warm = dict.fromkeys(targets, (State.WARM, ""))
    for number in range(30_000):
        activity.look(image(number, name=f"image {number}"), warm)
        activity.held(job(number))
    everything = [[row, [list(cell) for cell in warm.values()]] for row in range(30_000)]

    async def stands(work: Callable[[], object]) -> float:
        """For how long the loop, which tells the activity something at each turn, stands at the
        most.

        The least of several tries: this machine has others to serve, too.
        """
        tries = []
        for _ in range(5):
            working = asyncio.create_task(asyncio.to_thread(work))
            longest = 0.0
            while not working.done():
                began = time.monotonic()
                await asyncio.sleep(0.001)
                activity.doing(job().key, "something")
                longest = max(longest, time.monotonic() - began)
            tries.append(longest)
        return min(tries)

    def sorted_anew() -> object:
        targets.append(targets.pop(0))
        return activity.images(targets)

    # As long as it would stand if all of it were written in one go, measured here and now
    at_once = await stands(lambda: json.dumps(everything))
    for look in (
        sorted_anew,
        lambda: activity.images(targets, Choice(text="29999")),
        lambda: status(activity),
        activity.oldest,
        activity.states,
    ):
        assert await stands(look) < at_once / 2


def test_what_failed_comes_first_and_what_is_warm_last() -> None:
    activity = Activity()
    found = {1: "warm", 2: "unwanted", 3: "full", 4: "cold", 5: "warm", 6: "lost"}
    for number, state in found.items():
        activity.look(image(number), {"fast": (State(state), ""), "slow": (State.WARM, "")})
    activity.settled(job(7, attempt=1), Again("no answer", after=5.0), due=4e9)
    assert list(cells(activity)) == ["i7", "i6", "i4", "i3", "i2", "i1", "i5"]


def test_only_open_images_are_named() -> None:
    activity = Activity()
    for number, visibility in enumerate(("public", "community", "shared", "private")):
        activity.look(image(number, visibility=visibility), {"fast": (State.WARM, "")})
    assert {row[0]: row[1] for row in activity.images(("fast",))["images"]} == {
        "i0": "name", "i1": "name", "i2": "", "i3": "",
    }  # fmt: skip


def test_lanes_and_how_many_jobs() -> None:
    activity = Activity()
    for number in range(300):
        activity.held(job(number))
    activity.began(job(299))
    activity.settled(job(298, attempt=1), Again("no", after=9.0), due=4e9)
    activity.settled(job(297, attempt=3), Park("never"), due=4e9)
    document = status(activity)
    lane = {one["lane"]: one for one in document["lanes"]}["prewarm.fast"]
    assert lane == {
        "lane": "prewarm.fast", "width": 2, "in_progress": 1, "held": 297, "waiting": 1, "depth": 3, "oldest": 5.0,
        "served": True,
    }  # fmt: skip
    assert (len(document["jobs"]), document["jobs_left_out"]) == (200, 100)
    states = [one["state"] for one in document["jobs"]]
    assert states == ["in progress", "waiting", "parked"] + ["held"] * 197, (
        "what is only queued is left out first"
    )
    assert len(status(activity, most=math.inf)["jobs"]) == 300


def test_the_past_is_bounded() -> None:
    activity = Activity()
    for number in range(TIMES + 50):
        activity.settled(job(number, attempt=1), Again("no", after=1.0), due=1.0)
        activity.warmed(job(number).key, 1.0)
        activity.created(creation(number), Made(Way.CACHE))
    document = status(activity)
    assert len(document["failures"]) == FAILURES
    assert document["failures"][0]["image_id"] == f"i{TIMES + 49}"
    assert [len(times) for times in document["times"].values()] == [TIMES, TIMES]
    assert document["jobs"] == [], "long overdue: another worker has them"


def test_an_estimate_by_what_others_took() -> None:
    activity = Activity()
    activity.look(image(1), {"fast": (State.COLD, "")})
    activity.look(image(2, size=4 * GIB), {"fast": (State.COLD, "")})
    activity.warmed(job(2).key, 20.0)
    activity.warmed(job(2, "slow").key, 4000.0)
    activity.began(job(1))
    assert status(activity)["jobs"][0]["expected"] == 10.0


def test_a_census_tells_the_board_how_much_there_is() -> None:
    metrics = Metrics()
    metrics.census({("fast", "available"): 1}, {"fast": 7 * GIB})
    assert [one["bytes"] for one in status(metrics.activity)["targets"]] == [7 * GIB, 0]


def test_a_job_that_went_to_another_worker_makes_no_lane_old() -> None:
    activity = Activity()
    compared(activity, fast="cold", slow="warm")
    now = time.time()
    activity.settled(job(attempt=1), Again("busy"), due=now + 1.0)
    assert activity.oldest() == {"prewarm.fast": 5.0}
    assert activity.states() == {"fast": {"failed": 1}, "slow": {"warm": 1}}
    activity.settled(job(attempt=1), Again("busy"), due=now - OVERDUE - 1.0)
    assert activity.oldest() == {}
    assert activity.states() == {"fast": {"cold": 1}, "slow": {"warm": 1}}


def test_what_waits_for_a_user_makes_no_lane_old() -> None:
    activity = Activity()
    waiting = job(target="", handler="upload")
    activity.settled(
        waiting,
        Again("the volume is in-use", counted=False, wake_on_notification=True),
        due=time.time() + 60.0,
    )
    assert activity.oldest() == {}
    activity.settled(waiting, Again("over quota"), due=time.time() + 60.0)
    assert activity.oldest() == {"upload": 5.0}


def test_the_next_daemon_knows_of_no_targets_but_its_own() -> None:
    metrics = Metrics()
    compared(metrics.activity, fast="full", slow="warm")
    metrics.census({("fast", "available"): 1, ("slow", "available"): 1}, {"fast": 1, "slow": 1})
    metrics.depths({"prewarm.fast": 3, "prewarm.slow": 1}, {"prewarm.fast": 2})
    metrics.states()
    metrics.repair("i1", "fast", possible=False)
    metrics.begin(["slow"], ["prewarm.slow"])
    metrics.states()
    metrics.depths({"prewarm.slow": 1}, {})
    text = generate_latest(metrics.registry).decode()
    assert "fast" not in text
    assert 'image_volume_worker_images{state="warm",target="slow"} 1.0' in text
    assert "image_volume_worker_images_beyond_repair 0.0" in text


def test_the_next_daemon_knows_nothing_of_what_is_switched_off() -> None:
    metrics = Metrics()
    metrics.depths({"upload": 3, "reclaim": 1}, {"upload": 2})
    metrics.jobs_in_progress.labels("upload").set(1)
    metrics.target_paused.labels("fast").set(1)
    metrics.held_back(40, brake=True)
    metrics.missing(7, brake=True)
    metrics.begin(["fast"], ["prewarm.fast"])
    text = generate_latest(metrics.registry).decode()
    assert '"upload"' not in text
    assert 'target_paused{target="fast"} 0.0' in text
    for name in ("reclaim_brake", "reclaim_held_back", "missing_volumes"):
        assert f"image_volume_worker_{name} 0.0" in text


def test_what_another_worker_has_repaired_or_deleted_is_lost_no_more() -> None:
    metrics = Metrics()
    for number in (1, 2):
        metrics.repair(f"i{number}", "fast", possible=False)
    # The first one is still there, and still lost
    compared(metrics.activity, fast="cold")
    metrics.census({}, {})
    assert (
        "image_volume_worker_images_beyond_repair 1.0" in generate_latest(metrics.registry).decode()
    )


async def test_a_worker_tells_its_activity() -> None:
    cloud = FakeCloud(stores=STORES)
    async with Rig(cloud, targets=(FAST, SLOW), policy=Policy(settle=0.0)) as rig:
        activity = rig.metrics.activity
        first = cloud.upload(name="first")
        cloud.upload(disk_format="qcow2")
        await rig.resync()
        await rig.quiet()
        shown = {row[0]: row for row in activity.images(("fast", "slow"))["images"]}
        assert [cell[0] for cell in shown[first.id][3]] == ["warm", "warm"]
        assert shown[first.id][1] == "first"
        assert status(activity)["jobs"] == []
        assert {row[1] for row in status(activity)["times"]["time_to_warm"]} <= {"fast", "slow"}
        cloud.dead_types.add("fast")
        second = cloud.upload()
        await rig.resync()
        await rig.quiet()
        assert status(activity)["failures"][0]["image_id"] == second.id
        assert {row[0]: row for row in activity.images(("fast",))["images"]}[second.id][3][0][
            0
        ] == "failed"


def test_no_scrape_misses_a_gauge_that_is_being_set() -> None:
    metrics = Metrics()
    for number in range(3000):
        metrics.activity.look(image(number), {"fast": (State.WARM, ""), "slow": (State.COLD, "")})
    names = (
        "images{",
        "image_volumes{",
        "image_volume_bytes{",
        "target_usable{",
        "lane_depth{",
        "jobs_waiting{",
    )

    def take_over() -> None:
        metrics.states()
        metrics.census({("fast", "available"): 3000, ("slow", "error"): 1}, {"fast": 1, "slow": 1})
        metrics.target_usable.labels("fast").set(1)
        metrics.depths({"prewarm.fast": 3}, {"prewarm.fast": 2})

    def without_pause() -> None:
        for _ in range(20):
            # A reload between, which begins anew
            metrics.begin(["fast", "slow"], ["prewarm.fast", "prewarm.slow"])
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
        assert cells(rig.metrics.activity) == {image_id: ["warm", "warm"]}
        # As Glance announces it
        cloud.touch(image_id, status="deactivated")
        cloud.announce("image.update", image_id)
        await rig.quiet()
        assert rig.metrics.activity.images(("fast",))["images"][0][3] == [
            ["unwanted", "image is deactivated, not active"]
        ]
        assert rig.metrics.activity.states() == {"fast": {"unwanted": 1}, "slow": {"unwanted": 1}}
        rig.metrics.activity.comparing()
        await rig.resync()
        rig.metrics.activity.compared()
        assert cells(rig.metrics.activity) == {image_id: ["unwanted", "unwanted"]}, (
            "nor does a comparison forget it"
        )
        assert len(cloud.of(image_id)) == 2, "it keeps its Image-Volumes"
        cloud.touch(image_id, status="active")
        cloud.announce("image.update", image_id)
        await rig.quiet()
        assert cells(rig.metrics.activity) == {image_id: ["warm", "warm"]}


@pytest.mark.parametrize("visibility", ["private", "shared"])
async def test_the_name_of_an_image_goes_from_the_page_with_its_being_public(
    visibility: str,
) -> None:
    cloud = FakeCloud(stores=STORES)
    async with Rig(cloud, targets=(FAST, SLOW), policy=Policy(settle=0.0)) as rig:
        cloud.emit = rig.hear
        image_id = cloud.upload(name="first").id
        await rig.quiet()
        # Its job may be another worker's, or wait: what was heard is enough
        cloud.emit = lambda body: rig.metrics.activity.has(image_id) and rig.dispatcher.route(body)
        before = rig.metrics.activity.images(("fast",))
        cloud.touch(image_id, visibility=visibility)
        cloud.announce("image.update", image_id)
        after = rig.metrics.activity.images(("fast",))
        assert [before["images"][0][1], after["images"][0][1]] == ["first", ""]
        assert before["revision"] != after["revision"], "or the page would not ask"
        # That it is public is only believed when Glance says so
        cloud.touch(image_id, visibility="public")
        cloud.announce("image.update", image_id)
        assert rig.metrics.activity.images(("fast",))["images"][0][1] == ""
        cloud.emit = rig.hear
        cloud.announce("image.update", image_id)
        await rig.quiet()
        assert rig.metrics.activity.images(("fast",))["images"][0][1] == "first"


async def test_to_note_a_use_is_not_to_make_an_image_warm() -> None:
    cloud = FakeCloud(stores=STORES)
    async with Rig(cloud, targets=(FAST,), policy=Policy(settle=0.0)) as rig:
        made = cloud.upload()
        await rig.resync()
        await rig.quiet()
        name = "image_volume_worker_images_warmed_total"
        labels = {"target": "fast"}
        assert rig.metrics.registry.get_sample_value(name, labels) == 1
        times = len(status(rig.metrics.activity)["times"]["time_to_warm"])
        cloud.ahead += 3 * last_use.RECORD_EVERY
        rig.uses.note(made.id, "fast", time.time() + 2 * last_use.RECORD_EVERY)
        use = Job(key=Key("prewarm", made.id, "fast"), cause="use", first_at=time.time())
        await rig.dispatcher.submit([use])
        await rig.quiet()
        (kept,) = [one for one in cloud.volumes.values() if image_volume.image_of(one) == made.id]
        assert last_use.USED in kept.metadata, "the use is noted"
        assert rig.metrics.registry.get_sample_value(name, labels) == 1
        assert len(status(rig.metrics.activity)["times"]["time_to_warm"]) == times
