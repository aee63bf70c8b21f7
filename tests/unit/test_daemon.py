"""The assembly, as far as it does without a cloud."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from unittest.mock import Mock

import pytest

from tests.configurations import GOOD, load
from worker.broker.memory import MemoryLanes
from worker.cli.cloud_watch import PING
from worker.cli.comparisons import CENSUS
from worker.cli.daemon import Daemon
from worker.cli.preflight import check_bind, check_cloud, check_locations
from worker.core.cloud import GIB
from worker.core.errors import Misconfigured, Temporary
from worker.core.state import State
from worker.engine.retry import Backoff, Pace
from worker.observe.metrics import Metrics
from worker.openstack.survey import Identity
from worker.settings import Settings
from worker.testing.fake_cloud import FakeCloud, Fault


class Cloud(FakeCloud):
    """The fake with who we are; its types are those of the settings."""

    async def shows_locations(self) -> bool:
        return not self.hides_locations

    async def identity(self) -> Identity:
        return Identity(project_id="internal-project", roles=frozenset({"admin"}))


@pytest.mark.parametrize(
    ("types", "encrypted", "why"),
    [
        ({"ssd"}, set(), "Cinder has no type 'hdd', only ssd"),
        ({"ssd", "hdd"}, {"hdd"}, "volumes of type hdd are encrypted"),
    ],
)
async def test_a_target_that_cannot_be_used_is_named_and_the_others_go_on(
    tmp_path: Path, types: set[str], encrypted: set[str], why: str
) -> None:
    found = await check_cloud(Cloud(types=types, encrypted_types=encrypted), load(tmp_path, GOOD))  # type: ignore[arg-type]
    assert list(found.unusable) == ["slow"]
    assert why in found.unusable["slow"]
    assert found.targets["ssd"] == "fast"


async def test_a_target_whose_store_is_not_certain_is_named(tmp_path: Path) -> None:
    cloud = Cloud(types={"ssd", "hdd"}, stores={"here": "ssd", "elsewhere": "ssd"})
    found = await check_cloud(cloud, load(tmp_path, GOOD))  # type: ignore[arg-type]
    assert list(found.unusable) == ["fast"]
    assert "name the one of this region" in found.unusable["fast"]


@pytest.mark.parametrize("types", [set(), {"other"}])
async def test_no_target_that_can_be_used_is_a_wrong_configuration(
    tmp_path: Path, types: set[str]
) -> None:
    with pytest.raises(Misconfigured) as raised:
        await check_cloud(Cloud(types=types), load(tmp_path, GOOD))  # type: ignore[arg-type]
    assert len(raised.value.faults) == 2


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Those of a daemon whose cloud is to be another one."""
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(tmp_path / "clouds.yaml"))
    (tmp_path / "clouds.yaml").write_text(
        "clouds: {c: {auth: {auth_url: http://127.0.0.1:1/v3, username: u, password: p, "
        "project_name: p,"
        " user_domain_name: d, project_domain_name: d}}}"
    )
    return load(tmp_path, {**GOOD, "probes": {"bind": ""}, "cloud": {"name": "c"}})


@pytest.fixture
def daemon(settings: Settings) -> Daemon:
    return Daemon(settings=settings, metrics=Metrics())


def let_see(daemon: Daemon, cloud: Cloud) -> None:
    """Have the daemon look at this cloud."""
    daemon._watch._cloud = daemon._comparisons._cloud = cloud  # type: ignore[assignment]


class Flaky:
    """An intake that raises the first time."""

    def __init__(self) -> None:
        self.runs = asyncio.Event()
        self.failed = False

    async def run(self, sink: object) -> None:
        if not self.failed:
            self.failed = True
            raise RuntimeError("can't start new thread")
        self.runs.set()
        await asyncio.Event().wait()

    def problem(self) -> str | None:
        return None


async def test_a_task_that_fails_does_not_end_the_daemon(settings: Settings) -> None:
    daemon = Daemon(settings=settings, metrics=Metrics())
    let_see(daemon, Cloud(types={"ssd", "hdd"}))
    intake = Flaky()
    daemon._intakes = [intake]
    leave = asyncio.Event()
    running = asyncio.create_task(daemon.run(leave))
    await intake.runs.wait()
    assert "can't start new thread" in daemon._unready()["intake-0"]
    assert not running.done()
    leave.set()
    await running


async def test_a_first_look_that_fails_unlike_anything_known_does_not_end_the_daemon(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = Daemon(settings=settings, metrics=Metrics())
    cloud = Cloud(types={"ssd", "hdd"})
    let_see(daemon, cloud)
    monkeypatch.setattr(cloud, "describe_volume_types", Mock(side_effect=KeyError("of a library")))
    leave = asyncio.Event()
    running = asyncio.create_task(daemon.run(leave))
    while not running.done() and "of a library" not in daemon._unready()["cloud"]:
        await asyncio.sleep(0.01)
    leave.set()
    await running


async def test_a_cloud_that_has_not_answered_for_long_is_a_reason_to_be_unready(
    daemon: Daemon,
) -> None:
    """The look at it may hang, and say nothing."""
    let_see(daemon, Cloud(types={"ssd", "hdd"}))
    await daemon._watch.look()
    assert "cloud" not in daemon._unready()
    ahead = PING + 2 * daemon._settings.api_timeout + 1
    daemon._watch._answered -= ahead
    assert f"not answered for {ahead:.0f} s" in daemon._unready()["cloud"]
    await daemon._watch.look()
    assert "cloud" not in daemon._unready()


async def test_locations_that_are_shown_again_are_a_reason_to_compare(daemon: Daemon) -> None:
    cloud = Cloud(types={"ssd", "hdd"}, stores={"cinder-ssd": "ssd"})
    let_see(daemon, cloud)
    await daemon._watch.look()
    cloud.hides_locations = True
    await daemon._watch.look()
    assert "role service" in daemon._unready()["locations"]
    assert not daemon._comparisons.wanted
    cloud.hides_locations = False
    await daemon._watch.look()
    assert "locations" not in daemon._unready()
    assert daemon._comparisons.wanted


async def test_a_type_that_goes_and_comes_back_leaves_the_worker_ready(settings: Settings) -> None:
    metrics = Metrics()
    daemon = Daemon(settings=settings, metrics=metrics)
    cloud = Cloud(types={"ssd", "hdd"})
    let_see(daemon, cloud)

    def usable() -> float | None:
        return daemon._metrics.registry.get_sample_value(
            "image_volume_worker_target_usable", {"target": "slow"}
        )

    await daemon._watch.look()
    assert usable() == 1.0
    cloud.types.remove("hdd")
    await daemon._watch.look()
    assert usable() == 0.0
    assert "cloud" not in daemon._unready()
    named = {one["name"]: one["unusable"] for one in daemon._page.status(0)["targets"]}
    assert "no type 'hdd'" in named["slow"]
    assert named["fast"] == ""
    assert not daemon._comparisons.wanted
    cloud.types.add("hdd")
    await daemon._watch.look()
    assert usable() == 1.0
    assert daemon._comparisons.wanted


async def test_hidden_locations_are_a_reason_to_be_unready(tmp_path: Path) -> None:
    settings = load(tmp_path, GOOD)
    cloud = Cloud(types={"ssd", "hdd"}, stores={"cinder-ssd": "ssd"}, hides_locations=True)
    assert "role service" in await check_locations(cloud, await check_cloud(cloud, settings))
    cloud.hides_locations = False
    assert await check_locations(cloud, await check_cloud(cloud, settings)) == ""
    # Cinder's own cache needs no locations
    cloud = Cloud(types={"ssd", "hdd"}, stores={}, hides_locations=True)
    assert await check_locations(cloud, await check_cloud(cloud, settings)) == ""


def held(metrics: Metrics, target: str) -> tuple[float | None, float | None]:
    """Image-Volumes of a target and their bytes, as a scrape has them."""
    value = metrics.registry.get_sample_value
    labels = {"target": target}
    return (
        value("image_volume_worker_image_volumes", {**labels, "state": "available"}),
        value("image_volume_worker_image_volume_bytes", labels),
    )


async def test_what_is_made_and_deleted_between_two_resyncs_is_counted(settings: Settings) -> None:
    metrics = Metrics()
    daemon = Daemon(settings=settings, metrics=metrics)
    cloud = Cloud(types={"ssd", "hdd"})
    let_see(daemon, cloud)
    for _ in range(9):
        cloud.fill(settings.targets[:1])
    assert held(metrics, "fast") == (None, None)
    await daemon._comparisons.take_census()
    assert held(metrics, "fast") == (9.0, 9.0 * GIB)
    assert daemon._page.status(0)["targets"][0]["bytes"] == 9 * GIB
    cloud.faults["list_volumes"] = Fault(Temporary("no answer"))
    assert await daemon._comparisons.take_census() >= CENSUS
    assert held(metrics, "fast") == (9.0, 9.0 * GIB), "what cannot be counted is not nothing"
    cloud.faults.clear()
    cloud.volumes.clear()
    await daemon._comparisons.take_census()
    assert held(metrics, "fast") == (None, None)


async def test_a_daemon_counts_without_being_asked_to(settings: Settings) -> None:
    metrics = Metrics()
    daemon = Daemon(
        settings=replace(settings, resync_on_start=False), metrics=metrics, census_every=0.01
    )
    cloud = Cloud(types={"ssd", "hdd"})
    let_see(daemon, cloud)
    daemon._intakes = []
    leave = asyncio.Event()
    running = asyncio.create_task(daemon.run(leave))
    for number in range(1, 4):
        cloud.fill(settings.targets[:1])
        while held(metrics, "fast")[0] != number:
            await asyncio.sleep(0.01)
    leave.set()
    await running


async def test_a_flapping_intake_does_not_have_the_cloud_listed_each_time(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    began: list[float] = []

    async def resync(_dispatcher: object, _why: str) -> None:
        began.append(clock())

    def clock() -> float:
        return asyncio.get_running_loop().time()

    comparisons = daemon._comparisons
    monkeypatch.setattr(comparisons, "_compare", resync)
    comparisons._pace = Pace(Backoff(shortest=0.05, longest=0.2, jitter=lambda: 1.0))
    watching = asyncio.create_task(comparisons.run(None))  # type: ignore[arg-type]
    started = clock()
    while clock() < started + 0.8:
        comparisons.want("connected again")
        await asyncio.sleep(0.01)
    # At once, and then after 0.05, 0.1 and 0.2 s; the last gap is not forgotten. From the start: on
    # a busy machine one may be late, and the pause after it seems short
    earliest = accumulate((0.0, 0.05, 0.1, 0.2, 0.2, 0.2))
    assert all(at >= started + after for at, after in zip(began, earliest, strict=False))
    last = clock()
    comparisons.want("connected again")
    async with asyncio.timeout(10):
        while began[-1] < last:
            await asyncio.sleep(0.01)
    watching.cancel()


def test_an_address_that_has_gone_is_a_reason_to_refuse_a_reload(settings: Settings) -> None:
    # Of a block for documentation: no machine has it
    gone = replace(settings, bind=("192.0.2.1", 9417))
    with pytest.raises(Misconfigured, match=r"192\.0\.2\.1"):
        check_bind(gone, proven=gone)
    here = replace(settings, bind=("127.0.0.1", 9417))
    check_bind(here, proven=here)


async def test_the_page_says_whose_it_is_and_which_lanes_that_worker_serves(
    daemon: Daemon,
) -> None:
    document = daemon._page.status(200)
    assert document["host"] == socket.gethostname()
    assert [one["served"] for one in document["lanes"]] == [False] * len(document["lanes"])
    lanes = MemoryLanes()
    daemon._page.lanes = lanes
    await lanes.open({"prewarm.fast": 1}, lambda _: None)
    served = {one["lane"]: one["served"] for one in daemon._page.status(200)["lanes"]}
    assert [lane for lane, here in served.items() if here] == ["prewarm.fast"]


async def test_the_page_shows_image_volumes_with_the_last_use_that_is_known(
    settings: Settings,
) -> None:
    daemon = Daemon(settings=settings, metrics=Metrics())
    cloud = Cloud(types={"ssd", "hdd"})
    let_see(daemon, cloud)
    made = cloud.fill(settings.targets[:1])
    daemon._metrics.activity.look(made, {"fast": (State.WARM, "")})
    await daemon._comparisons.take_census()
    (volume,) = daemon._page.image(made.id)["volumes"]
    assert (volume["target"], volume["used"]) == ("fast", 0.0)
    daemon._page.uses.note(made.id, "fast", 3000.0)
    assert daemon._page.image(made.id)["volumes"][0]["used"] == 3000.0
    assert daemon._page.image("no such image") == {}


async def test_without_a_page_no_image_volume_is_kept(settings: Settings) -> None:
    daemon = Daemon(settings=replace(settings, page=False), metrics=Metrics())
    cloud = Cloud(types={"ssd", "hdd"})
    let_see(daemon, cloud)
    made = cloud.fill(settings.targets[:1])
    daemon._metrics.activity.look(made, {"fast": (State.WARM, "")})
    await daemon._comparisons.take_census()
    assert daemon._page.image(made.id)["volumes"] == []
