"""Explain: each condition of an image, met or not, with what to do; nothing is changed."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from handlers import completion
from tests.fake_cloud import FakeCloud
from tests.rig import STORES, Rig
from tests.unit.test_settings import load
from worker import explain
from worker.check import Check
from worker.cloud import ImageTask
from worker.doctor import uploads_check
from worker.errors import NotFound
from worker.settings import Settings

GROUPS = {
    "notifications": {"transport_urls": "rabbit://u:p@h:5672/"},
    "prewarm": {"targets": "fast,slow"},
    "target:fast": {"volume_type": "fast"},
    "target:slow": {"volume_type": "slow"},
}
SOURCE = "image_volume_source"
READS = {"get_image", "find_volumes", "get_volume", "list_tasks", "list_stores", "get_locations"}


@pytest.fixture
def cloud() -> FakeCloud:
    return FakeCloud(stores=STORES)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load(tmp_path, GROUPS)


async def told(cloud: FakeCloud, settings: Settings, image_id: str, *, target: str = "") -> dict[str, Check]:
    rig = Rig(cloud)
    explaining = explain.explain(cloud, settings, rig.prewarm, image_id, now=time.time(), target=target)
    checks = {check.name: check async for check in explaining}
    assert set(cloud.calls) <= READS, "it reads only"
    return checks


async def test_an_upload_that_goes_well(cloud: FakeCloud, settings: Settings) -> None:
    volume = cloud.volume_of("alice", volume_type="fast")
    image = cloud.queue(properties={SOURCE: volume.id})
    checks = await told(cloud, settings, image.id)
    assert {check.verdict for check in checks.values()} == {"ok"}
    assert checks["source volume"].detail == "1 GiB of type fast, served by store cinder-fast"
    assert checks["next"].detail == "the worker's next step is CreateClone"


@pytest.mark.parametrize(
    ("fields", "detail"),
    [
        ({"project_id": "bob"}, "belongs to project bob, the image to alice"),
        ({"encrypted": True}, "the volume is encrypted"),
        ({"volume_type": "tape"}, "no store of Glance serves volumes of type tape"),
    ],
)
async def test_a_source_that_is_refused(
    cloud: FakeCloud, settings: Settings, fields: dict[str, object], detail: str
) -> None:
    volume = cloud.volume_of("alice")
    cloud.volumes[volume.id] = replace(volume, **fields)  # type: ignore[arg-type]
    image = cloud.queue(properties={SOURCE: volume.id})
    checks = await told(cloud, settings, image.id)
    assert (checks["source volume"].verdict, checks["source volume"].detail) == ("fail", detail)
    assert checks["source volume"].advice
    assert checks["next"].verdict == "fail"


@pytest.mark.parametrize("named", ["11111111-1111-4111-8111-111111111111", "no id"])
async def test_a_source_that_is_not_there(cloud: FakeCloud, settings: Settings, named: str) -> None:
    image = cloud.queue(properties={SOURCE: named})
    checks = await told(cloud, settings, image.id)
    assert checks["source volume"].detail == "there is no such volume"
    assert checks["next"].detail == f"nothing: {completion.NO_SUCH_VOLUME}"


async def test_what_is_waited_for(cloud: FakeCloud, settings: Settings) -> None:
    volume = cloud.volume_of("alice", status="in-use")
    image = cloud.queue(properties={SOURCE: volume.id})
    cloud.touch(image.id, import_locked=True)
    checks = await told(cloud, settings, image.id)
    assert checks["lock"].verdict == "warn"
    assert checks["source status"].detail == "the volume is in-use, detach it"
    assert checks["next"].detail == "Glance is at work on the image"


async def test_nobody_asked_and_no_format(cloud: FakeCloud, settings: Settings) -> None:
    checks = await told(cloud, settings, cloud.queue(disk_format="qcow2").id)
    assert (checks["format"].verdict, checks["source"].verdict) == ("fail", "fail")
    assert SOURCE in checks["source"].advice


async def test_cinders_clone_and_glances_failure(cloud: FakeCloud, settings: Settings) -> None:
    image = cloud.queue(created_epoch=1.0)
    clone = cloud.cinder_clones(cloud.volume_of("alice").id, image.id)
    cloud.image_tasks[image.id] = [
        ImageTask(id="t", type="location_import", status="failure", message="it broke", url="cinder://x")
    ]
    checks = await told(cloud, settings, image.id)
    assert checks["clone"].detail == f"{clone.id} of Cinder's is available"
    assert (checks["location task"].verdict, checks["location task"].detail) == ("warn", "cinder://x failure it broke")
    assert checks["next"].detail.startswith("Cinder's own upload may be at work, looked at again in ")


async def test_an_active_image_target_by_target(cloud: FakeCloud, settings: Settings) -> None:
    image = cloud.upload()
    checks = await told(cloud, settings, image.id)
    assert checks["target fast"].detail == "not warm: not in store cinder-fast"
    assert set(await told(cloud, settings, image.id, target="slow")) == {"image", "target slow"}
    small = cloud.upload(disk_format="qcow2")
    assert (await told(cloud, settings, small.id))["target slow"].detail.startswith("not wanted: image is qcow2")


async def test_somebody_works_on_it_or_uploads_are_off(cloud: FakeCloud, settings: Settings) -> None:
    saving = cloud.queue(status="saving")
    assert "somebody works on it" in (await told(cloud, settings, saving.id))["upload"].detail
    off = replace(settings, switched_off=frozenset({"upload"}))
    assert (await told(cloud, off, cloud.queue().id))["upload"].detail == "switched off"
    with pytest.raises(NotFound):
        await told(cloud, settings, "11111111-1111-4111-8111-111111111111")


@pytest.mark.parametrize(
    ("api", "imports", "verdict"),
    [("auto", True, "ok"), ("auto", False, "warn"), ("old", True, "warn"), ("new", True, "ok"), ("new", False, "fail")],
)
async def test_doctor_tells_by_which_api(
    cloud: FakeCloud, settings: Settings, api: str, imports: bool, verdict: str
) -> None:
    chosen = replace(settings, uploads=replace(settings.uploads, location_api=api))  # type: ignore[arg-type]
    stores = await cloud.list_stores()
    assert uploads_check(chosen, stores, imports=imports).verdict == verdict
    assert uploads_check(settings, stores[:1], imports=True).detail == "Glance has no cinder store"
