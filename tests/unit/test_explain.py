"""Explain: each condition of an image, met or not, with what to do; nothing is changed."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from handlers.prewarm import Warmth
from handlers.upload import sources
from tests.configurations import load
from worker.core.cloud import GIB, Image, ImageTask, NewVolume, Quota, Volume
from worker.core.errors import Blocked, Conflict, NotFound, Temporary
from worker.core.job import Key
from worker.core.state import State
from worker.core.target import TAG, Policy
from worker.diagnose import explain
from worker.diagnose.check import Check
from worker.diagnose.explain import clone, probe, upload
from worker.diagnose.explain.signs import Signs, judged, with_message
from worker.observe.live import LiveJob
from worker.settings import Settings
from worker.testing.fake_cloud import PROJECT, FakeCloud, Fault
from worker.testing.rig import FAST, SLOW, STORES, Rig

GROUPS = {
    "notifications": {"transport_urls": "rabbit://u:p@h:5672/"},
    "prewarm": {"targets": "fast,slow"},
    "target:fast": {"volume_type": "fast"},
    "target:slow": {"volume_type": "slow"},
}
SOURCE = "image_volume_source"
READS = {
    "get_image", "find_volumes", "get_volume", "list_tasks", "list_volumes", "list_stores", "get_locations",
    "list_members", "imports_locations", "get_quota", "describe_volume_types", "list_pools", "encrypts",
}  # fmt: skip


@pytest.fixture
def cloud() -> FakeCloud:
    return FakeCloud(stores=STORES)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load(tmp_path, GROUPS)


async def told(
    cloud: FakeCloud, settings: Settings, image_id: str, *, target: str = "", project_id: str = ""
) -> dict[str, Check]:
    cloud.calls.clear()
    explaining = explain.explain(
        cloud,
        settings,
        Rig(cloud).prewarm,
        image_id,
        now=time.time(),
        target=target,
        project_id=project_id,
    )
    checks = {check.name: check async for check in explaining}
    assert set(cloud.calls) <= READS, "it reads only"
    assert all(check.advice for check in checks.values() if check.verdict == "fail")
    return checks


async def test_an_upload_that_goes_well(cloud: FakeCloud, settings: Settings) -> None:
    volume = cloud.volume_of("alice", volume_type="fast")
    image = cloud.queue(properties={SOURCE: volume.id})
    checks = await told(cloud, settings, image.id)
    assert {check.verdict for check in checks.values()} == {"ok"}
    assert checks["source volume"].detail == "1 GiB of type fast, served by store cinder-fast"
    assert (
        checks["next"].detail
        == "the worker's next step: Clone the source into the internal project"
    )
    assert checks["owner"].detail.startswith("the owner reads that it is queued, so far")


async def test_the_owners_view_of_an_upload(cloud: FakeCloud, settings: Settings) -> None:
    volume = cloud.volume_of("bob")
    told_to = {SOURCE: volume.id, "image_volume_status": f"refused: {sources.NO_SUCH_VOLUME}"}
    image = cloud.queue(properties=told_to)
    checks = await told(cloud, settings, image.id)
    assert checks["owner"].detail == (
        f"the owner reads image_volume_status: refused: {sources.NO_SUCH_VOLUME} "
        f"(openstack image show {image.id})"
    )


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
    assert checks["next"].detail == f"nothing: {sources.NO_SUCH_VOLUME}"


async def test_what_is_waited_for(cloud: FakeCloud, settings: Settings) -> None:
    volume = cloud.volume_of("alice", status="in-use")
    image = cloud.queue(properties={SOURCE: volume.id})
    cloud.touch(image.id, import_locked=True)
    checks = await told(cloud, settings, image.id)
    assert checks["lock"].verdict == "warn"
    assert checks["source status"].detail == "the volume is in-use, detach it"
    assert checks["next"].detail == "Glance is at work on the image, looked at again in 10 s"


async def test_nobody_asked_and_no_format(cloud: FakeCloud, settings: Settings) -> None:
    checks = await told(cloud, settings, cloud.queue(disk_format="qcow2").id)
    assert (checks["format"].verdict, checks["source"].verdict) == ("fail", "fail")
    assert checks["cinder.conf"].verdict == "warn", "no API tells, and it is said so"
    assert SOURCE in checks["source"].advice


async def test_cinders_clone_and_glances_failure(cloud: FakeCloud, settings: Settings) -> None:
    image = cloud.queue(created_epoch=1.0)
    clone = cloud.cinder_clones(cloud.volume_of("alice").id, image.id)
    cloud.image_tasks[image.id] = [
        ImageTask(
            id="t", type="location_import", status="failure", message="it broke", url="cinder://x"
        )
    ]
    checks = await told(cloud, settings, image.id)
    assert checks["clone"].detail == f"{clone.id} of Cinder's is available"
    assert (checks["location task"].verdict, checks["location task"].detail) == (
        "warn",
        "cinder://x failure it broke",
    )
    assert checks["next"].detail.startswith(
        "Cinder's own upload may be at work, looked at again in "
    )


async def test_an_active_image_target_by_target(cloud: FakeCloud, settings: Settings) -> None:
    image = cloud.upload()
    checks = await told(cloud, settings, image.id)
    assert checks["target fast"].detail == "not warm: not in store cinder-fast"
    assert set(await told(cloud, settings, image.id, target="slow")) == {
        "image",
        "format",
        "cinder.conf",
        "target slow",
    }
    small = cloud.upload(disk_format="iso")
    assert (await told(cloud, settings, small.id))["target slow"].detail.startswith(
        "not wanted: image is iso"
    )


async def test_somebody_works_on_it_or_uploads_are_off(
    cloud: FakeCloud, settings: Settings
) -> None:
    importing = cloud.queue(status="importing")
    assert "somebody works on it" in (await told(cloud, settings, importing.id))["upload"].detail
    off = replace(settings, switched_off=frozenset({"upload"}))
    assert (await told(cloud, off, cloud.queue().id))["upload"].detail == "switched off"
    with pytest.raises(NotFound):
        await told(cloud, settings, "11111111-1111-4111-8111-111111111111")


@pytest.fixture
async def warm(cloud: FakeCloud) -> Image:
    """A shared image of alice's that is warm on both targets."""
    image = cloud.upload(owner="alice", visibility="shared")
    async with Rig(cloud, policy=Policy(settle=0.0, visibilities=frozenset({"shared"}))) as rig:
        for target in (FAST, SLOW):
            await rig.run(image.id, target.name)
    return image


def on_fast(cloud: FakeCloud, image: Image) -> Volume:
    (volume,) = [volume for volume in cloud.of(image.id) if volume.volume_type == "fast"]
    return volume


async def test_a_warm_image_meets_all_conditions(
    cloud: FakeCloud, settings: Settings, warm: Image
) -> None:
    checks = await told(cloud, settings, warm.id)
    names = [
        "fast volume",
        "fast location",
        "fast owner",
        "slow volume",
        "slow location",
        "slow owner",
    ]
    assert [checks[name].verdict for name in names] == ["ok"] * 6
    assert on_fast(cloud, warm).id in checks["fast volume"].detail
    assert checks["cinder.conf"].verdict == "warn", "no API tells, and it is said so"


@pytest.mark.parametrize(
    ("condition", "changes", "detail"),
    [
        ("fast volume", {"status": "error"}, "is error"),
        ("fast volume", {"encrypted": True}, "encrypted"),
        ("fast owner", {"metadata": {"image_worker": "fast"}}, "image_owner is missing"),
        (
            "fast owner",
            {"metadata": {"image_owner": "internal"}},
            "image_owner is internal: only alice gets a clone",
        ),
    ],
)
async def test_a_condition_that_is_not_met(
    cloud: FakeCloud,
    settings: Settings,
    warm: Image,
    condition: str,
    changes: dict[str, Any],
    detail: str,
) -> None:
    volume = on_fast(cloud, warm)
    cloud.volumes[volume.id] = replace(volume, **changes)
    check = (await told(cloud, settings, warm.id))[condition]
    assert check.verdict == "fail"
    assert detail in check.detail


async def test_the_owner_needs_no_mark_of_hers(
    cloud: FakeCloud, settings: Settings, warm: Image
) -> None:
    volume = on_fast(cloud, warm)
    cloud.volumes[volume.id] = replace(volume, metadata={"image_owner": "internal"})
    assert (await told(cloud, settings, warm.id, project_id="alice"))["fast owner"].verdict == "ok"
    assert (await told(cloud, settings, warm.id, project_id="bob"))["fast owner"].verdict == "fail"


async def test_a_volume_that_no_location_names(
    cloud: FakeCloud, settings: Settings, warm: Image
) -> None:
    cloud.locations[warm.id] = tuple(
        one for one in cloud.locations[warm.id] if one.store != "cinder-fast"
    )
    assert (await told(cloud, settings, warm.id))[
        "fast location"
    ].detail == "no location of the image names it"
    cloud.locations[warm.id] = ()
    assert (await told(cloud, settings, warm.id))[
        "fast location"
    ].detail == "Glance shows no locations"


@pytest.mark.parametrize(
    ("visibility", "project", "verdict"),
    [
        ("shared", "alice", "ok"),
        ("shared", "bob", "ok"),
        ("shared", "carol", "fail"),
        ("private", "bob", "fail"),
        ("private", "alice", "ok"),
        ("public", "carol", "ok"),
        ("community", "carol", "ok"),
    ],
)
async def test_whether_a_project_may_use_it(
    cloud: FakeCloud, settings: Settings, warm: Image, visibility: str, project: str, verdict: str
) -> None:
    cloud.touch(warm.id, visibility=visibility)
    cloud.members[warm.id] = {"bob": "accepted"}
    assert (await told(cloud, settings, warm.id, project_id=project))["project"].verdict == verdict


async def test_members_that_we_may_not_see(
    cloud: FakeCloud, settings: Settings, warm: Image
) -> None:
    cloud.faults["list_members"] = Fault(Blocked("403"))
    assert (await told(cloud, settings, warm.id, project_id="bob"))["project"].verdict == "warn"


async def test_a_cache_entry_is_fresh_or_not(cloud: FakeCloud, settings: Settings) -> None:
    entry = Volume(
        id="e", name="image-i", status="available", volume_type="fast", size=1, host="h@b#p"
    )
    image = cloud.upload()
    target = replace(FAST, strategy="cache")
    fresh = replace(
        entry,
        name=f"image-{image.id}",
        metadata={"image_volume_worker_updated_at": image.updated_at, TAG: "fast"},
    )
    warmth = Warmth(target, State.WARM)
    verdicts = {
        check.name: check.verdict
        for check in clone.target_checks(image, target, warmth, (fresh,), locations=())
    }
    assert verdicts == {"target fast": "ok", "fast volume": "ok", "fast entry": "ok"}
    changed = replace(image, updated_at="later")
    stale = list(clone.target_checks(changed, target, warmth, (fresh,), locations=()))
    assert (stale[-1].name, stale[-1].verdict) == ("fast entry", "warn")


async def test_what_an_upload_left_in_its_owners_project(
    cloud: FakeCloud, settings: Settings, warm: Image
) -> None:
    left = cloud.volume_of("alice")
    cloud.image_tasks[warm.id] = [
        ImageTask(
            id="t",
            type="location_import",
            status="failure",
            message="x",
            url=f"cinder://cinder-fast/{left.id}",
        )
    ]
    check = (await told(cloud, settings, warm.id))["left behind"]
    assert check.verdict == "warn"
    assert left.id in check.detail
    del cloud.volumes[left.id]
    assert "left behind" not in await told(cloud, settings, warm.id)


async def test_the_quota_of_an_upload(cloud: FakeCloud, settings: Settings) -> None:
    volume = cloud.volume_of("alice", volume_type="fast")
    image = cloud.queue(properties={SOURCE: volume.id})
    assert (await told(cloud, settings, image.id))["quota"].verdict == "ok"
    cloud.quota = 0
    check = (await told(cloud, settings, image.id))["quota"]
    assert (check.verdict, check.detail) == (
        "fail",
        "the internal project has 0 GiB left, the clone needs 1 GiB",
    )
    small = upload.quota_check(replace(volume, size=2), Quota(per_volume=1))
    assert (small.verdict, small.advice) == ("fail", "raise its per_volume_gigabytes")
    assert upload.quota_check(volume, Quota(volumes=0, gigabytes=5)).detail.startswith(
        "the internal project has 0 vol"
    )


@pytest.mark.parametrize(
    ("state", "attempt", "verdict", "detail"),
    [
        ("in progress", 0, "ok", "CopyImage"),
        ("waiting", 0, "ok", "no answer; next try in 5 s"),
        ("waiting", 2, "warn", "no answer; next try in 5 s; 2 tries failed"),
        ("parked", 20, "fail", "given up after 20 tries: no answer"),
        ("held", 0, "ok", "waits for a slot"),
    ],
)
def test_what_a_worker_is_doing_about_it(
    state: str, attempt: int, verdict: str, detail: str
) -> None:
    key = Key("prewarm", "i", "fast")
    job = LiveJob(
        key=key,
        state=state,
        attempt=attempt,
        first_at=1.0,
        due=15.0,
        doing="CopyImage",
        reason="no answer",
    )
    other = replace(job, key=Key("prewarm", "j", "fast"))
    (check,) = explain.work_checks("i", {key: job, other.key: other}, now=10.0)
    assert (check.name, check.verdict, check.detail) == ("job prewarm.fast", verdict, detail)


def test_what_failed_is_told_beside_what_is_waited_for() -> None:
    key = Key("prewarm", "i", "fast")
    job = LiveJob(
        key=key, state="waiting", attempt=3, first_at=1.0, due=15.0, doing="", reason="no quota left",
        failure="Glance could not copy the image",
    )  # fmt: skip
    (check,) = explain.work_checks("i", {key: job}, now=10.0)
    assert check.detail == (
        "no quota left; next try in 5 s; 3 tries failed, the last one: Glance could not copy the image"
    )
    (check,) = explain.work_checks(
        "i", {key: replace(job, state="held")}, now=10.0, paused=frozenset({"fast"})
    )
    assert check.detail.startswith("waits until the target is resumed; 3 tries failed")


@pytest.mark.parametrize(("cold", "names"), [(True, ["jobs"]), (False, [])])
def test_an_image_that_nobody_works_on_though_it_is_cold(cold: bool, names: list[str]) -> None:
    assert [check.name for check in explain.work_checks("i", {}, now=1.0, cold=cold)] == names


# The probe


def message(event_type: str, **payload: object) -> dict[str, Any]:
    return {"event_type": event_type, "payload": payload}


def signs(**fields: Any) -> Signs:
    volume = Volume(
        id=VOLUME,
        name="x",
        status="available",
        volume_type="fast",
        size=1,
        host="h@b#p",
        project_id="p",
    )
    return Signs(**({"volume": volume, "seconds": 1.0, "heard": True} | fields))


VOLUME = "22222222-2222-4222-8222-222222222222"
IMAGE = "33333333-3333-4333-8333-333333333333"


def test_what_notifications_tell() -> None:
    image = Image(
        id=IMAGE,
        status="active",
        owner="a",
        disk_format="raw",
        container_format="bare",
        visibility="public",
    )
    blank = signs(heard=False)

    def after(*messages: dict[str, Any]) -> Signs:
        seen = blank
        for one in messages:
            seen = with_message(seen, one, image)
        return seen

    sent = message("image.send", image_id=IMAGE, bytes_sent=5, receiver_tenant_id="p")
    assert after(sent, sent).sent == 10
    assert (
        after(message("image.send", image_id=IMAGE, bytes_sent=5, receiver_tenant_id="else")).sent
        == 0
    )
    assert (
        after(message("image.send", image_id=VOLUME, bytes_sent=5, receiver_tenant_id="p")).sent
        == 0
    )
    assert (
        after(message("image.send", image_id=IMAGE, bytes_sent="x", receiver_tenant_id="p")).sent
        == 0
    )
    end = message(
        "volume.create.end", volume_id=VOLUME, glance_metadata=[{"key": "image_id", "value": IMAGE}]
    )
    assert (after(end).heard, after(end).verified, after(end).is_clone) == (True, False, True)
    noted = message(
        "volume.create.end",
        volume_id=VOLUME,
        glance_metadata=[{"key": "signature_verified", "value": "F"}],
    )
    assert after(noted).verified
    assert not after(noted).is_clone
    assert after(message("volume.create.end", volume_id=IMAGE)) == blank
    assert after(message("image_volume_cache.hit", image_id=IMAGE, host="h@b#p")).hit
    assert not after(message("image_volume_cache.hit", image_id=IMAGE, host="else")).hit
    assert (
        after(
            message("image.update", id=IMAGE),
            {"event_type": "volume.create.end", "payload": "text"},
        )
        == blank
    )


@pytest.mark.parametrize(
    ("seen", "verdict", "detail"),
    [
        (signs(), "ok", "a clone, in 1.0 s: nothing was downloaded"),
        (signs(hit=True), "ok", "a clone, in 1.0 s: Cinder's image-volume cache has served it"),
        (signs(heard=False), "ok", ("a clone, in 1.0 s: nothing was downloaded; by status only, no notification came")),
        (signs(downloading=True), "fail", "no clone, in 1.0 s: Cinder was downloading"),
        (signs(sent=GIB), "fail", "no clone, in 1.0 s: Glance has sent 1 GiB"),
        (signs(verified=True), "fail", "no clone, in 1.0 s: Cinder has noted signature_verified"),
    ],
)  # fmt: skip
def test_what_a_probe_says(warm: Image, seen: Signs, verdict: str, detail: str) -> None:
    check = judged("probe fast", warm, seen, ())
    assert (check.verdict, check.detail, bool(check.advice)) == (verdict, detail, verdict == "fail")


def test_why_a_probe_was_no_clone(warm: Image) -> None:
    here = signs().volume
    no = signs(downloading=True)
    assert "there is no Image-Volume here yet" in judged("x", warm, no, ()).advice
    assert "one pool only" in judged("x", warm, no, (replace(here, host="h@b#q"),)).advice
    assert "allowed_direct_url_schemes" in judged("x", warm, no, (here,)).advice
    broken = judged("x", warm, replace(no, volume=replace(here, status="error")), ())
    assert (broken.verdict, broken.detail) == ("fail", "the volume is in status error")


async def probed(cloud: FakeCloud, image: Image, *, within: float = 5.0) -> Check:
    return await probe.probe(cloud, image, FAST, take=None, lying=(), within=within)


def probes(cloud: FakeCloud) -> list[Volume]:
    return [volume for volume in cloud.volumes.values() if volume.name == probe.NAME]


@pytest.mark.parametrize("whole", [False, True])
async def test_a_probe_does_not_cost_the_last_copy(cloud: FakeCloud, whole: bool) -> None:
    """Cinder deletes a stale entry before it downloads the image."""
    image = cloud.upload(stores=frozenset())
    cloud.locations[image.id] = ()
    volume = cloud.volume_of(PROJECT, name=f"image-{image.id}")
    cloud.volumes[volume.id] = replace(volume, status="available" if whole else "error")
    cloud.locate(image.id, "cinder-fast", volume.id)
    entry = cloud.volume_of(PROJECT, name=f"image-{image.id}", source_volid="a user's")
    check = await probed(cloud, cloud.images[image.id])
    assert entry.id in cloud.volumes
    assert cloud.calls["create_volume"] == whole
    assert ("may have the last copy" in check.detail) != whole


async def test_a_probe_leaves_nothing(cloud: FakeCloud, warm: Image) -> None:
    token, old = {probe.TOKEN: "x"}, time.time() - 2 * probe.ABANDONED
    left = cloud.volume_of(PROJECT, name=probe.NAME, metadata=token, created_epoch=old)
    another = cloud.volume_of(PROJECT, name=probe.NAME, metadata=token)
    somebodys = cloud.volume_of(PROJECT, name=probe.NAME, created_epoch=old)
    check = await probed(cloud, warm)
    assert check.name == "probe fast"
    assert left.id not in cloud.volumes, "what a killed one has left goes too"
    # Of a probe that runs at the same time, and of somebody who likes the name
    assert {one.id for one in probes(cloud)} == {another.id, somebodys.id}


@pytest.mark.parametrize("error", [Blocked("VolumeLimitExceeded"), Conflict("no such type")])
async def test_a_probe_that_cinder_refuses(cloud: FakeCloud, warm: Image, error: Exception) -> None:
    cloud.faults["create_volume"] = Fault(error)
    check = await probed(cloud, warm)
    assert check.verdict == "fail"
    assert str(error) in check.detail


async def test_a_probe_that_takes_too_long_or_is_interrupted(cloud: FakeCloud, warm: Image) -> None:
    cloud.seconds = 1.0
    check = await probed(cloud, warm, within=0.3)
    assert (check.verdict, check.detail) == ("fail", "no volume after 0 s")
    assert probes(cloud) == [], "it goes as soon as Cinder lets it"
    task = asyncio.create_task(probed(cloud, warm))
    await asyncio.sleep(0.1)
    assert len(probes(cloud)) == 1
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0.05)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert probes(cloud) == []


async def test_a_probe_interrupted_while_cinder_answers_leaves_nothing(
    cloud: FakeCloud, warm: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    create, asked = FakeCloud.create_volume, asyncio.Event()

    async def slow(self: FakeCloud, new: NewVolume) -> Volume:
        made = await create(self, new)
        asked.set()
        await asyncio.sleep(0.2)
        return made

    monkeypatch.setattr(FakeCloud, "create_volume", slow)
    task = asyncio.create_task(probed(cloud, warm))
    await asyncio.wait_for(asked.wait(), 5)
    assert len(probes(cloud)) == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert probes(cloud) == []


@pytest.mark.parametrize("made", [True, False])
async def test_a_probe_whose_answer_gets_lost_leaves_nothing(
    cloud: FakeCloud, warm: Image, made: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "LOST", 0.5)
    create = FakeCloud.create_volume
    other = cloud.volume_of(PROJECT, name=probe.NAME, status="creating")

    async def lost(self: FakeCloud, new: NewVolume) -> Volume:
        if made:
            await create(self, new)
        raise Temporary("no answer")

    monkeypatch.setattr(FakeCloud, "create_volume", lost)
    check = await probed(cloud, warm)
    assert (check.verdict, "no answer" in check.detail) == ("fail", True)
    assert [volume.id for volume in probes(cloud)] == [other.id], "somebody else's probe goes on"


async def test_an_image_that_nobody_may_read(cloud: FakeCloud, warm: Image, tmp_path: Path) -> None:
    cloud.touch(warm.id, status="deactivated")
    rig = Rig(cloud)
    settings = load(tmp_path, GROUPS)
    checks = [
        check
        async for check in explain.explain(cloud, settings, rig.prewarm, warm.id, now=time.time())
    ]
    assert [(check.name, check.verdict) for check in checks] == [
        ("image", "ok"),
        ("status", "fail"),
    ]


async def test_a_location_whose_volume_is_gone(
    cloud: FakeCloud, warm: Image, tmp_path: Path
) -> None:
    rig = Rig(cloud)
    settings = load(tmp_path, GROUPS)
    (volume, *_) = cloud.of(warm.id)
    del cloud.volumes[volume.id]
    checks = [
        check
        async for check in explain.explain(cloud, settings, rig.prewarm, warm.id, now=time.time())
    ]
    (broken,) = [check for check in checks if check.name == "location"]
    assert (broken.verdict, volume.id in broken.detail) == ("fail", True)


@pytest.mark.parametrize(("minutes", "verdict"), [(1, "ok"), (40, "warn")])
async def test_how_long_an_image_is_saving(
    cloud: FakeCloud, settings: Settings, minutes: int, verdict: str
) -> None:
    saving = cloud.queue(status="saving")
    cloud.images[saving.id] = replace(
        saving,
        created_epoch=time.time() - 60.0 * minutes,
        updated_epoch=time.time() - 60.0 * minutes,
    )
    check = (await told(cloud, settings, saving.id))["upload"]
    assert (check.verdict, f"saving for {minutes} minutes" in check.detail) == (verdict, True)


async def test_an_upload_beyond_the_bound_of_its_project(
    cloud: FakeCloud, settings: Settings
) -> None:
    few = replace(settings, uploads=replace(settings.uploads, project_gigabytes=1))
    async with Rig(cloud, targets=()) as rig:
        made = cloud.queue(properties={SOURCE: cloud.volume_of("alice").id})
        await rig.complete(made.id)
        cloud.calls.clear()
    image = cloud.queue(properties={SOURCE: cloud.volume_of("alice").id})
    checks = await told(cloud, few, image.id)
    assert checks["project"].verdict == "warn"
    assert "the project has 1 GiB of images made of volumes" in checks["next"].detail
