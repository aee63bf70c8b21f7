"""How Cinder made a volume that a user had made of an image."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace

import pytest

from handlers.clone_path import (
    CacheClone,
    Download,
    ImageVolumeClone,
    NativeClone,
    Path,
    Unknown,
)
from handlers.prewarm.creations import made
from handlers.prewarm.looks import Look, Looks
from handlers.reasons import Reason
from worker.core.cloud import Volume
from worker.core.creation import Creation, Made, Way
from worker.core.errors import Temporary
from worker.core.job import Key
from worker.core.notification import Notification
from worker.core.target import Policy
from worker.core.type_map import TypeMap
from worker.core.uses import Uses
from worker.engine import creations as engine
from worker.engine.creations import find_ways
from worker.observe import creations as observe
from worker.observe.creations import Creations
from worker.observe.metrics import Metrics
from worker.testing.fake_cloud import FakeCloud
from worker.testing.rig import FAST, SLOW, STORES, Rig

IMAGE = "11111111-1111-1111-1111-111111111111"
VOLUME = "22222222-2222-2222-2222-222222222222"
ONE = Volume(id="v1", name="n", status="available", volume_type="ssd", size=1)
CLONES = (NativeClone(), ImageVolumeClone(ONE), CacheClone(ONE))
NO_LOCATION = Download((Reason.NO_LOCATION, Reason.ENTRY_MISSING))
STALE = Download((Reason.FORMAT, Reason.ENTRY_STALE))


def at(event_type: str, when: float, **fields: object) -> Notification:
    return Notification(
        message_id="m",
        event_type=event_type,
        priority="info",
        publisher_id="p",
        timestamp=when,
        **fields,  # type: ignore[arg-type]
    )


def ended(when: float = 14.0, **fields: object) -> Notification:
    known: dict[str, object] = {
        "volume_id": VOLUME,
        "volume_type_id": "type-1",
        "source_image_id": IMAGE,
        "host": "h@b#p",
        "project": "bob",
    }
    return at("volume.create.end", when, **(known | fields))


def listening(metrics: Metrics | None = None) -> Creations:
    uses = Uses()
    uses.know({"type-1": "fast"})
    uses.share(TypeMap(hosts={"h@b#p": "fast"}, sharing=frozenset({"sister"})))
    return Creations(metrics=metrics or Metrics(), uses=uses)


# What is heard


@pytest.mark.parametrize("skew", [-3600.0, -9.0, 0.0, 9.0, 3600.0])
@pytest.mark.parametrize("read", ["never", "before", "meanwhile"])
def test_what_happened_meanwhile_is_told_by_the_order_whatever_the_clocks_say(
    read: str, skew: float
) -> None:
    heard = listening()
    if read == "before":
        heard.see(at("image.send", 5.0 + skew, image_id=IMAGE))
        heard.see(at("image_volume_cache.hit", 5.0 + skew, image_id=IMAGE, host="h@b#p"))
    heard.see(at("volume.create.start", 10.0, volume_id=VOLUME))
    heard.see(at("volume.create.start", 11.0, volume_id=VOLUME))
    if read == "meanwhile":
        heard.see(at("image.send", 12.0 + skew, image_id=IMAGE))
        heard.see(at("image_volume_cache.hit", 12.0 + skew, image_id=IMAGE, host="h@b#p"))
        heard.see(at("image_volume_cache.evict", 12.0 + skew, image_id=IMAGE, host="h@b#p"))
    heard.see(ended(14.0))
    creation = heard.take()
    assert creation is not None
    assert creation.evicted is (read == "meanwhile")
    assert (creation.seconds, creation.read, creation.hit) == (
        4.0,
        read == "meanwhile",
        read == "meanwhile",
    )
    assert heard.take() is None


def test_a_hit_in_another_pool_is_another_volumes() -> None:
    heard = listening()
    heard.see(at("volume.create.start", 10.0, volume_id=VOLUME))
    heard.see(at("image_volume_cache.hit", 11.0, image_id=IMAGE, host="h@b#other"))
    heard.see(ended())
    assert (creation := heard.take())
    assert creation.hit is False


def test_the_end_alone_tells_of_a_download() -> None:
    """Another replica has heard the start."""
    heard = listening()
    heard.see(ended(downloaded=True))
    creation = heard.take()
    assert creation is not None
    assert (creation.downloaded, creation.seconds, creation.read, creation.hit) == (
        True,
        None,
        None,
        None,
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"image_id": IMAGE},
        {"target": "fast"},
        {"snapshot_id": "s"},
        {"source_image_id": ""},
        {"volume_type_id": "type-2"},
    ],
)
def test_other_volumes_are_no_users_volumes_of_an_image_on_a_target(fields: object) -> None:
    heard = listening()
    heard.see(ended(**fields))  # type: ignore[arg-type]
    assert heard.take() is None


@pytest.mark.parametrize(
    ("type_id", "host", "target"),
    [
        ("type-1", "h@b#elsewhere", "fast"),
        ("sister", "h@b#p", "fast"),
        ("sister", "h@b#elsewhere", ""),
        # Encrypted, say: Cinder clones nothing for it
        ("other", "h@b#p", ""),
    ],
)
def test_a_type_that_leads_to_a_targets_pools_is_served_there(
    type_id: str, host: str, target: str
) -> None:
    heard = listening()
    heard.see(ended(volume_type_id=type_id, host=host))
    creation = heard.take()
    assert (creation.target if creation else "") == target


def test_what_is_delivered_twice_counts_once() -> None:
    heard = listening()
    for _ in range(2):
        heard.see(at("volume.create.start", 10.0, volume_id=VOLUME))
        heard.see(ended())
    assert heard.take()
    assert heard.take() is None


def test_what_never_ends_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observe, "KEEP", 100)
    heard = listening()
    for number in range(300):
        heard.see(at("volume.create.start", 1.0, volume_id=f"never-{number}"))
        heard.see(ended(volume_id=f"v{number}"))
        if creation := heard.take():
            heard.settle(creation, Made(Way.CACHE))
    assert [len(kept) for kept in (heard._started, heard._ended, heard._made)] == [100, 100, 100]


def test_in_a_storm_the_oldest_count_as_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observe, "WAITING", 3)
    metrics = Metrics()
    heard = listening(metrics)
    for number in range(5):
        heard.see(ended(volume_id=f"v{number}"))
    assert counted(metrics, "unknown") == 2
    assert (creation := heard.take())
    assert creation.volume_id == "v2"


def counted(metrics: Metrics, path: str, reason: str = "") -> float:
    labels = {"target": "fast", "path": path, "reason": reason}
    name = "image_volume_worker_volume_creates_total"
    return metrics.registry.get_sample_value(name, labels) or 0.0


@pytest.mark.parametrize(
    ("made", "reason", "warm"),
    [
        (Made(Way.NATIVE), "", "true"),
        (Made(Way.IMAGE_VOLUME), "", "true"),
        (Made(Way.CACHE), "", "true"),
        (Made(Way.DOWNLOAD, ("format", "entry_missing")), "format", "false"),
        (Made(Way.DOWNLOAD), "unknown", "false"),
        (Made(Way.UNKNOWN), "", "unknown"),
    ],
)
def test_it_is_counted_by_way_and_decisive_reason(made: Made, reason: str, warm: str) -> None:
    metrics = Metrics()
    heard = listening(metrics)
    heard.see(at("volume.create.start", 10.0, volume_id=VOLUME))
    heard.see(ended())
    creation = heard.take()
    assert creation is not None
    heard.settle(creation, made)
    assert counted(metrics, made.way, reason) == 1
    name = "image_volume_worker_volume_create_seconds_sum"
    labels = {"target": "fast", "warm": warm}
    assert metrics.registry.get_sample_value(name, labels) == 4.0
    told = heard.document(VOLUME)
    assert (told["way"], told["image_id"], told["seconds"]) == (made.way, IMAGE, 4.0)
    assert heard.document("other") == {}


# How it was made

CREATION = Creation(
    volume_id=VOLUME, image_id=IMAGE, target="fast", began=100.0, ended=110.0, read=False, hit=False
)
DOWNLOADED = replace(CREATION, downloaded=True)


@pytest.mark.parametrize(
    ("path", "way"), [*zip(CLONES, (Way.NATIVE, Way.IMAGE_VOLUME, Way.CACHE), strict=True)]
)
@pytest.mark.parametrize("read", [False, True])
def test_without_a_noted_download_it_is_the_clone_that_cinder_would_make(
    path: Path, way: Way, read: bool
) -> None:
    """Also while somebody else has read the image."""
    assert made(replace(CREATION, read=read), path=path) == Made(way)


@pytest.mark.parametrize(
    ("creation", "path", "way"),
    [
        # What it was cloned from is gone since
        (replace(CREATION, hit=True), NO_LOCATION, Way.CACHE),
        (replace(CREATION, hit=False), NO_LOCATION, Way.UNKNOWN),
        # Another volume's hit
        (replace(CREATION, hit=True), ImageVolumeClone(ONE), Way.IMAGE_VOLUME),
    ],
)
def test_which_clone(creation: Creation, path: Path, way: Way) -> None:
    assert made(creation, path=path).way is way


@pytest.mark.parametrize("path", CLONES)
@pytest.mark.parametrize(
    ("read", "hit", "known"),
    [
        (False, False, True),
        (True, False, False),
        # Another replica has heard the start
        (None, None, False),
        (True, True, True),
    ],
)
def test_where_cinder_is_not_seen_to_note_downloads(
    path: Path, read: bool | None, hit: bool | None, known: bool
) -> None:
    creation = replace(CREATION, read=read, hit=hit)
    assert (made(creation, path=path, notes_downloads=False).way is not Way.UNKNOWN) is known
    assert made(creation, path=path).way is not Way.UNKNOWN


@pytest.mark.parametrize(
    ("looks", "path", "reasons"),
    [
        # The last look before is what holds
        ([Look(1.0, ()), Look(90.0, STALE.reasons)], NO_LOCATION, STALE.reasons),
        # Made meanwhile
        ([Look(90.0, NO_LOCATION.reasons), Look(105.0, ())], ImageVolumeClone(ONE), NO_LOCATION.reasons),
        # Nobody knew of it yet
        ([Look(90.0, ()), Look(105.0, STALE.reasons)], CacheClone(ONE), STALE.reasons),
        ([], NO_LOCATION, NO_LOCATION.reasons),
        ([Look(90.0, ())], NO_LOCATION, NO_LOCATION.reasons),
        # Nothing that is known explains it
        ([], CacheClone(ONE), ()),
        ([Look(90.0, ())], ImageVolumeClone(ONE), ()),
        ([Look(90.0, ())], CacheClone(ONE), ()),
    ],
)  # fmt: skip
def test_why_it_was_a_download(
    looks: Iterable[Look], path: Path, reasons: tuple[Reason, ...]
) -> None:
    found = made(DOWNLOADED, path=path, looks=looks)
    looked = any(look.reasons for look in looks)
    assert found.why.endswith("this was found afterwards") is (bool(reasons) and not looked)
    assert (found.way, found.reasons) == (Way.DOWNLOAD, reasons)
    assert found.why
    assert found.reason == (reasons[0] if reasons else "unknown")


@pytest.mark.parametrize("path", CLONES)
@pytest.mark.parametrize(
    ("looks", "refused"),
    [
        ([Look(90.0, ())], True),
        # It may not have been there
        ([], False),
        ([Look(105.0, ())], False),
        ([Look(90.0, NO_LOCATION.reasons)], False),
    ],
)
def test_a_download_where_cinder_has_cloned_others(
    looks: Iterable[Look], refused: bool, path: Path
) -> None:
    heard = replace(DOWNLOADED, read=True)
    assert (
        made(heard, path=path, looks=looks, clones_here=True).reason == "clone_refused"
    ) is refused
    assert made(heard, path=path, looks=looks).reason != "clone_refused"
    # Nobody knows when one has begun whose beginning was not heard of
    unheard = replace(DOWNLOADED, read=None)
    assert made(unheard, path=path, looks=looks, clones_here=True).reason != "clone_refused"


def test_an_entry_that_cinder_has_deleted_meanwhile_was_out_of_date() -> None:
    evicted = replace(DOWNLOADED, evicted=True)
    looks = [Look(90.0, ()), Look(105.0, (Reason.FORMAT, Reason.ENTRY_MISSING))]
    found = made(evicted, path=CacheClone(ONE), looks=looks, by_cache=True)
    assert found.reasons == (Reason.ENTRY_STALE, Reason.FORMAT)


def test_a_clone_by_a_location_that_is_hidden_is_told_to_be_one() -> None:
    hidden = Unknown((Reason.LOCATIONS_HIDDEN, Reason.ENTRY_MISSING))
    found = made(CREATION, path=hidden)
    assert found.way is Way.UNKNOWN
    assert "shows this login no locations" in found.why
    assert "gone" not in found.why


def test_what_policy_does_not_want_is_the_first_reason() -> None:
    found = made(DOWNLOADED, path=NO_LOCATION, refusal="it is private")
    assert found.reasons == (Reason.NOT_WANTED, *NO_LOCATION.reasons)
    assert found.why.startswith("it is private; ")


def test_looks_are_remembered_as_far_as_they_differ() -> None:
    looks = Looks()
    for at_, path in ((1.0, NO_LOCATION), (2.0, NO_LOCATION), (3.0, CLONES[1]), (4.0, CLONES[2])):
        looks.note(IMAGE, "fast", path, at=at_)
    assert looks.of(IMAGE, "fast") == (Look(1.0, NO_LOCATION.reasons), Look(3.0, ()))
    for number in range(10):
        looks.note(IMAGE, "fast", (NO_LOCATION, STALE)[number % 2], at=10.0 + number)
    assert len(looks.of(IMAGE, "fast")) == 4
    assert looks.of(IMAGE, "slow") == ()


# The whole worker


class Ways:
    """A worker that hears of everything, and finds out how volumes were made."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        rig.cloud.emit = rig.hear

    async def found(self, volume: Volume) -> tuple[str, str]:
        """The way of a volume and its decisive reason."""
        finding = asyncio.create_task(find_ways(self.rig.creations, [self.rig.prewarm]))
        async with asyncio.timeout(10):
            while not (told := self.rig.creations.document(volume.id)):
                await asyncio.sleep(0.01)
        finding.cancel()
        await asyncio.gather(finding, return_exceptions=True)
        return told["way"], (told["reasons"] or ("",))[0]


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "PAUSE", 0.01)
    monkeypatch.setattr(engine, "AWAY", 0.01)
    # Each volume of these tests is to be looked at by itself
    monkeypatch.setattr("handlers.prewarm.creations.FRESH", 0.0)


async def test_before_and_after_an_image_is_warm() -> None:
    cloud = FakeCloud(stores=dict(STORES))
    async with Rig(cloud, targets=(FAST, SLOW)) as rig:
        ways = Ways(rig)
        await rig.prewarm.prepare({})
        image = cloud.upload()
        assert await ways.found(cloud.use(image.id, "fast")) == ("download", "no_location")
        cloud.announce("image.activate", image.id)
        await rig.quiet()
        assert await ways.found(cloud.use(image.id, "fast")) == ("image_volume", "")
        assert rig.count("volume_creates_total", target="fast", path="image_volume", reason="") == 1


async def test_by_the_cache() -> None:
    cloud = FakeCloud(stores={}, cached={"fast"})
    async with Rig(cloud, targets=(FAST,)) as rig:
        ways = Ways(rig)
        image = cloud.upload(disk_format="qcow2", virtual_size=1 << 30)
        cloud.announce("image.activate", image.id)
        await rig.quiet()
        assert await ways.found(cloud.use(image.id, "fast")) == ("cache", "")
        # The entry is stale from now on, and nobody has looked yet
        rig.cloud.emit = lambda _: None
        cloud.set_by_user(image.id, note="new")
        rig.cloud.emit = rig.hear
        assert await ways.found(cloud.use(image.id, "fast")) == ("download", "entry_stale")


async def test_a_clone_of_what_was_made_a_moment_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handlers.prewarm.creations.FRESH", 60.0)
    cloud = FakeCloud(stores=dict(STORES))
    async with Rig(cloud, targets=(FAST,)) as rig:
        ways = Ways(rig)
        await rig.prewarm.prepare({})
        image = cloud.upload()
        assert await ways.found(cloud.use(image.id, "fast")) == ("download", "no_location")
        cloud.announce("image.activate", image.id)
        await rig.quiet()
        assert await ways.found(cloud.use(image.id, "fast")) == ("image_volume", "")


async def test_an_entry_that_cinder_has_made_of_the_volume_itself_was_not_there_before() -> None:
    cloud = FakeCloud(stores={}, cached={"fast"})
    async with Rig(cloud, targets=(FAST,)) as rig:
        ways = Ways(rig)
        await rig.prewarm.prepare({})
        image = cloud.upload(disk_format="qcow2", virtual_size=1 << 30)
        assert await ways.found(cloud.use(image.id, "fast")) == ("download", "entry_missing")
        assert len(cloud.of(image.id)) == 1
        # It is there for the next one
        assert await ways.found(cloud.use(image.id, "fast")) == ("cache", "")


async def test_the_cache_that_has_made_no_entry_of_the_image_is_off() -> None:
    cloud = FakeCloud(stores={}, cached=frozenset())
    async with Rig(cloud, targets=(FAST,)) as rig:
        ways = Ways(rig)
        await rig.prewarm.prepare({})
        image = cloud.upload(disk_format="qcow2", virtual_size=1 << 30)
        assert await ways.found(cloud.use(image.id, "fast")) == ("download", "entry_missing")
        cloud.announce("image.activate", image.id)
        await rig.quiet()
        assert await ways.found(cloud.use(image.id, "fast")) == ("download", "cache_off")


async def test_at_a_limit_of_clones_the_download_has_a_name() -> None:
    cloud = FakeCloud(stores=dict(STORES))
    async with Rig(cloud, targets=(FAST,)) as rig:
        ways = Ways(rig)
        await rig.prewarm.prepare({})
        image = cloud.upload()
        cloud.announce("image.activate", image.id)
        await rig.quiet()
        [located] = cloud.of(image.id)
        assert await ways.found(cloud.use(image.id, "fast")) == ("image_volume", "")
        cloud.refusing.add(located.id)
        for _ in range(2):
            # Without Cinder's cache each one is
            assert await ways.found(cloud.use(image.id, "fast")) == ("download", "clone_refused")
        cloud.refusing.clear()
        assert await ways.found(cloud.use(image.id, "fast")) == ("image_volume", "")


async def test_by_the_driver_as_a_volume_of_ours_has_shown() -> None:
    """As on Ceph: one pool, and nobody has named `native_stores`."""
    cloud = FakeCloud(rbd_stores=frozenset({"rbd"}), native=frozenset({"fast"}))
    async with Rig(cloud, targets=(FAST,)) as rig:
        ways = Ways(rig)
        await rig.prewarm.prepare({})
        image = cloud.upload(stores=frozenset({"rbd"}))
        cloud.announce("image.activate", image.id)
        await rig.quiet()
        assert not cloud.volumes
        assert await ways.found(cloud.use(image.id, "fast")) == ("native", "")


async def test_an_owner_that_was_wrong_when_it_was_made() -> None:
    cloud = FakeCloud(stores=dict(STORES))
    async with Rig(cloud, targets=(FAST,)) as rig:
        ways = Ways(rig)
        await rig.prewarm.prepare({})
        image = cloud.upload()
        cloud.announce("image.activate", image.id)
        await rig.quiet()
        [volume] = cloud.of(image.id)
        metadata = {**volume.metadata, "image_owner": "mallory"}
        cloud.volumes[volume.id] = replace(volume, metadata=metadata)
        made = cloud.use(image.id, "fast")
        await rig.run(image.id)
        # Mended before anybody looked how the volume was made
        assert cloud.volumes[volume.id].metadata["image_owner"] == image.owner
        assert await ways.found(made) == ("download", "owner")


@pytest.mark.parametrize("noted", [False, True])
async def test_cinder_is_asked_whether_it_notes_downloads_where_that_decides(noted: bool) -> None:
    cloud = FakeCloud(stores=dict(STORES))
    async with Rig(cloud, targets=(FAST,)) as rig:
        ways = Ways(rig)
        await rig.prewarm.prepare({})
        image = cloud.upload()
        cloud.announce("image.activate", image.id)
        await rig.quiet()
        if noted:
            for project in ("carol", "dave"):
                other = cloud.volume_of(project)
                cloud.volumes[other.id] = replace(other, downloaded=True)
        calls = cloud.calls["notes_downloads"]
        for _ in range(3):
            rig.creations._read[image.id] = observe._Heard(10**9, 0.0, 0.0)
            found = await ways.found(cloud.use(image.id, "fast"))
            assert found == ("image_volume" if noted else "unknown", "")
        assert cloud.calls["notes_downloads"] - calls == 1


async def test_a_property_that_an_image_has_by_itself_is_no_download() -> None:
    cloud = FakeCloud(stores=dict(STORES))
    async with Rig(cloud, targets=(FAST,)) as rig:
        ways = Ways(rig)
        await rig.prewarm.prepare({})
        image = cloud.upload(properties={"signature_verified": "True"})
        cloud.announce("image.activate", image.id)
        await rig.quiet()
        volume = cloud.use(image.id, "fast")
        cloud.volumes[volume.id] = replace(volume, downloaded=True)
        assert await ways.found(volume) == ("unknown", "")


async def test_what_is_not_wanted() -> None:
    cloud = FakeCloud(stores=dict(STORES))
    policy = Policy(visibilities=frozenset({"public"}))
    async with Rig(cloud, targets=(FAST,), policy=policy) as rig:
        ways = Ways(rig)
        image = cloud.upload(visibility="private")
        assert await ways.found(cloud.use(image.id, "fast")) == ("download", "not_wanted")


async def test_what_an_operator_has_evicted_is_not_wanted() -> None:
    cloud = FakeCloud(stores=dict(STORES))
    async with Rig(cloud, targets=(FAST,)) as rig:
        ways = Ways(rig)
        image = cloud.upload()
        rig.parts.wishes.hold(Key("prewarm", image.id, "fast"), now=cloud.now())
        volume = cloud.use(image.id, "fast")
        assert await ways.found(volume) == ("download", "not_wanted")
        assert "an operator has evicted it" in rig.creations.document(volume.id)["why"]


async def test_a_clone_of_a_users_volume_is_no_volume_of_the_image() -> None:
    cloud = FakeCloud(stores=dict(STORES))
    async with Rig(cloud, targets=(FAST,)) as rig:
        ways = Ways(rig)
        image = cloud.upload()
        cloud.use(image.id, "fast", source_volid=VOLUME)
        own = cloud.use(image.id, "fast")
        assert await ways.found(own) == ("download", "no_location")
        assert rig.count("volume_creates_total", target="fast", path="download",
                         reason="no_location") == 1  # fmt: skip


async def test_one_that_is_gone_cannot_be_told() -> None:
    cloud = FakeCloud(stores=dict(STORES))
    async with Rig(cloud, targets=(FAST,)) as rig:
        ways = Ways(rig)
        image = cloud.upload()
        volume = cloud.use(image.id, "fast")
        cloud.remove_volume(volume.id)
        assert await ways.found(volume) == ("unknown", "")


async def test_a_cloud_that_is_away_is_asked_again_and_not_for_ever() -> None:
    class Away:
        tries = 0

        async def how_made(self, creation: Creation) -> Made | None:
            self.tries += 1
            if creation.volume_id == "v1" or self.tries < 3:
                raise Temporary("away")
            return Made(Way.CACHE)

    heard, away = listening(), Away()
    heard.see(ended(volume_id="v0"))
    heard.see(ended(volume_id="v1"))
    finding = asyncio.create_task(find_ways(heard, [away]))  # type: ignore[list-item]
    async with asyncio.timeout(10):
        while not heard.document("v1"):
            await asyncio.sleep(0.01)
    finding.cancel()
    await asyncio.gather(finding, return_exceptions=True)
    assert heard.document("v0")["way"] == "cache"
    assert (heard.document("v1")["way"], heard.document("v1")["why"]) == ("unknown", "away")
