"""The plans of prewarm, step by step, as tables: what was seen of an image on a target, and the
next action."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from handlers import image_volume, import_lock
from handlers.actions import AddLocation, AwaitImage, LookAtLocations, SetMetadata, SetReadonly
from handlers.prewarm.actions import (
    Action,
    AwaitEntry,
    AwaitVolume,
    CopyImage,
    CreateVolume,
    DeleteVolume,
    Finish,
    LookAtVolume,
    LookAtVolumes,
    LookAtWarming,
    RemoveLocation,
)
from handlers.prewarm.seen import Seen
from handlers.prewarm.strategies import cache, location, native, registered, store
from worker.core.cloud import GIB, Image, Location, NewVolume, Volume
from worker.core.creation import NOTE
from worker.core.outcome import Again, Done, Skip
from worker.core.pool import Place
from worker.core.state import State
from worker.core.target import Target

IMAGE_ID = "f8195267-dc43-443b-86bf-8a5200144f25"
NOW = 10_000.0
OLD = NOW - 5000.0
MOMENT = NOW - 1.0
TARGET = Target(name="fast", volume_type="ssd", strategy="store", glance_store="c1")
CACHED = replace(TARGET, strategy="cache", glance_store="")
STORES = frozenset({"c1", "c2"})
MARKS = {
    "glance_image_id": IMAGE_ID, "image_owner": "alice", "image_size": str(GIB), "image_volume_worker": "fast",
}  # fmt: skip

COLD = Image(id=IMAGE_ID, status="active", owner="alice", disk_format="raw", container_format="bare",
             visibility="public", size=GIB, stores=frozenset({"file"}), created_epoch=100.0, updated_epoch=OLD,
             updated_at="then")  # fmt: skip
LOCATED = replace(COLD, stores=frozenset({"file", "c1"}))
OTHERS = "another import holds the image"
LOCKED = replace(LOCATED, import_locked=True, updated_epoch=MOMENT)
V1 = Volume(id="v1", name=f"image-{IMAGE_ID}", status="available", volume_type="ssd", size=1, project_id="internal",
            created_at="1", created_epoch=OLD, metadata={**MARKS, "readonly": "True"})  # fmt: skip
V2 = replace(V1, id="v2", created_at="2")
OURS = {"image_volume_worker_origin": "prewarm"}
FIRST = (Location(url="cinder://c1/v1", store="c1", volume_id="v1"),)
BOTH = (*FIRST, Location(url="cinder://c1/v2", store="c1", volume_id="v2"))
RBD = (Location(url="rbd://fsid/images/x/snap", store="rbd"),)
FILE = (Location(url="file:///x", store="file"),)
ANY = frozenset[str]()
CLONED = Finish(Done(native.CLONED, state=State.WARM))
WARM = Finish(Done("v1", state=State.WARM))
HIDDEN = Finish(
    Again(image_volume.HIDDEN, after=registered.ASK_AGAIN, counted=False, wake_on_notification=True)
)

ENTRY = replace(V1, id="e1", metadata={**MARKS, "readonly": "True", "image_volume_worker_updated_at": "then",
                **OURS})  # fmt: skip
BARE_ENTRY = replace(ENTRY, metadata={"readonly": "True"})
WARMING = replace(V1, id="w1", name=f"warm-{IMAGE_ID}", metadata={**MARKS, **OURS,
                  "image_volume_worker_updated_at": "then"})  # fmt: skip
NEW = NewVolume(
    name=f"image-{IMAGE_ID}",
    size=1,
    volume_type="ssd",
    image_id=IMAGE_ID,
    metadata={**MARKS, **OURS},
)


def seen(image: Image = COLD, **more: Any) -> Seen:
    return Seen(
        **(
            {"image": image, "now": NOW, "stores": STORES, "settle": 5.0, "rewarm_interval": 600.0}
            | more
        )
    )


def at(
    *volumes: Volume, image: Image = LOCATED, locations: tuple[Location, ...] = FIRST, **more: Any
) -> Seen:
    """An image with a location in the target's store, and the volumes that were seen to be one."""
    ids = {one.volume_id for one in locations}
    volumes = tuple(
        marked(one, image_volume_worker_located="true") if one.id in ids else one for one in volumes
    )
    return seen(image, volumes=volumes, locations=locations, **more)


def marked(volume: Volume, **changes: str | None) -> Volume:
    metadata = {
        key: value for key, value in {**volume.metadata, **changes}.items() if value is not None
    }
    return replace(volume, metadata=metadata)


def again(reason: str, after: float | None = None, *, wake: bool = False) -> Finish:
    return Finish(Again(reason, after=after, counted=False, wake_on_notification=wake))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        # Look first, and change nothing where Glance shows no locations
        (seen(LOCATED), LookAtLocations()),
        (seen(LOCATED, hidden=True), HIDDEN),
        (seen(LOCATED, locations=FIRST), LookAtVolumes()),
        (at(), LookAtVolume("v1")),
        (at(V1), WARM),
        # The location is somebody else's
        (at(V1, locations=(Location(url="x", store="file"),)),
         Finish(Again("the image is in store c1, but none of its locations names that store"))),
        (at(replace(V1, foreign=True)),
         Finish(Skip("its location in store c1 is a volume outside of the internal project"))),
        (at(marked(V1, glance_image_id="other")),
         Finish(Skip("its location in store c1 is volume v1, which is not this image's"))),
        # What the volume lacks for everybody to get a clone
        (at(marked(V1, image_owner="internal")), SetMetadata("v1", {"image_owner": "alice"})),
        (at(marked(V1, readonly=None)), SetReadonly("v1")),
        (seen(LOCATED, volumes=(V1,), locations=FIRST), SetMetadata("v1", {"image_volume_worker_located": "true"})),
        # A use is written down, at most once an hour
        (at(V1, used=OLD), SetMetadata("v1", {"image_volume_worker_used_at": "1970-01-01T01:23:20+00:00"})),
        # It is busy for a moment, or for longer
        *((at(replace(V1, status=status)), WARM) for status in ("in-use", "reserved", "attaching", "detaching")),
        (at(replace(V1, status="creating")), AwaitVolume("v1")),
        (at(replace(V1, status="backing-up")), again("its Image-Volume v1 is backing-up", 60.0, wake=True)),
        (at(replace(V1, status="error_deleting")), again(
            "its Image-Volume is no clone's source: volume v1 is error_deleting; if its data is whole: openstack volume"
            " set --state available v1, else see docs/upkeep.md", registered.ASK_AGAIN)),
        # It is in error, or gone, while other data is there
        (at(replace(V1, status="error"), locations=(*FIRST, Location(url="f", store="file"))),
         RemoveLocation("c1", "v1")),
        (at(gone=frozenset({"v1"}), locations=(*FIRST, Location(url="f", store="file"))), RemoveLocation("c1", "v1")),
        (at(replace(V1, status="error"), image=LOCKED, locations=(*FIRST, Location(url="f", store="file"))),
         again(OTHERS, 10.0, wake=True)),
        # It was retyped: ours goes, what is not ours stays
        (at(replace(marked(V1, **OURS), volume_type="hdd")), RemoveLocation("c1", "v1", whole=True)),
        (at(replace(marked(V1, **OURS), volume_type="hdd"), image=LOCKED), again(OTHERS, 10.0, wake=True)),
        (at(replace(marked(V1, **OURS), volume_type="hdd"), may_delete=False), Finish(Skip(
            "its Image-Volume v1 is of type hdd now, not ssd: Cinder does not clone it on this target"))),
        (at(replace(V1, volume_type="hdd")), Finish(Skip(
            "its Image-Volume v1 is of type hdd now, not ssd: Cinder does not clone it on this target"))),
        # It is encrypted
        (at(replace(marked(V1, **OURS), encrypted=True)),
         RemoveLocation("c1", "v1", whole=True, encrypted=True)),
        (at(replace(marked(V1, **OURS), encrypted=True), image=LOCKED), again(OTHERS, 10.0, wake=True)),
        (at(replace(V1, encrypted=True)), Finish(Skip(
            "its location in store c1 is encrypted volume v1, which we did not make: Cinder hands out its ciphertext; "
            "remove that location"))),
        # Two locations in the store: the first goes if we made it and both are old
        (at(marked(V1, **OURS), V2, locations=BOTH), RemoveLocation("c1", "v1", whole=True)),
        (at(marked(V1, **OURS), V2, locations=BOTH, image=LOCKED), again(OTHERS, 10.0, wake=True)),
        (at(marked(V1, **OURS), replace(V2, created_epoch=MOMENT), locations=BOTH), WARM),
        (at(V1, V2, locations=BOTH), WARM),
        (at(replace(V1, status="error"), V2, locations=BOTH), RemoveLocation("c1", "v1")),
        (at(V2, locations=BOTH, gone=frozenset({"v1"})), RemoveLocation("c1", "v1")),
        # Volumes of ours that no location names
        (at(V1, marked(V2, **OURS)), DeleteVolume("v2", why="no location names it, and another volume serves")),
        # nor of what we only have marked: it was an owner's, whose location may be restored
        (at(V1, V2), WARM),
        (at(V1, V2, may_delete=False), WARM),
        (at(V1, replace(V2, created_epoch=MOMENT)), WARM),
        (at(V1, marked(V2, image_volume_worker="slow")), WARM),
    ],
)  # fmt: skip
@pytest.mark.parametrize("plan", [store.plan, location.plan])
def test_an_image_with_a_location_in_the_store(plan: Any, given: Seen, expected: Action) -> None:
    assert plan(given, TARGET) == expected


@pytest.mark.parametrize(
    "given",
    [
        at(replace(V1, status="error")),
        at(gone=frozenset({"v1"})),
        at(replace(V1, status="error"), locations=BOTH, gone=frozenset({"v2"})),
    ],
)
def test_an_image_whose_data_is_nowhere_waits_for_a_person(given: Seen) -> None:
    action = store.plan(given, TARGET)
    assert isinstance(action, Finish)
    assert action.lost
    # Not at once: an image that Glance is deleting looks the same
    assert isinstance(action.outcome, Again)
    assert action.outcome.counted


def test_a_store_that_lies_on_no_target_may_have_the_data() -> None:
    elsewhere = Location(url="cinder://c9/v9", store="c9", volume_id="v9")
    given = at(replace(V1, status="error"), locations=(*FIRST, elsewhere))
    assert store.plan(given, TARGET) == RemoveLocation("c1", "v1")


COPIED = {"imported": True, "asked": frozenset({"c1"})}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (seen(), CopyImage(("c1",))),
        # An image that was changed a moment ago is left alone, but not one that has to be repaired
        (seen(replace(COLD, updated_epoch=MOMENT)), again("the image was changed a moment ago", 1.0)),
        (seen(replace(COLD, updated_epoch=MOMENT), repaired=True), CopyImage(("c1",))),
        (seen(replace(COLD, updated_epoch=MOMENT), settle=0.5), CopyImage(("c1",))),
        # One import at a time. One that is silent is asked about by another import, once
        (seen(replace(COLD, import_locked=True, updated_epoch=MOMENT), asked=frozenset({"c2"})), AwaitImage()),
        # Somebody else's holds no slot of the lane
        (seen(replace(COLD, import_locked=True, updated_epoch=MOMENT)), again(OTHERS, 10.0, wake=True)),
        (seen(replace(COLD, import_locked=True)), CopyImage(("c1",))),
        # Glance notes nothing while it stages so much, and would take the lock from it
        (seen(replace(COLD, size=400 * GIB, import_locked=True)), again(OTHERS, 900.0, wake=True)),
        (seen(replace(COLD, import_locked=True), refused=True, asked=frozenset({"c1"})), AwaitImage()),
        (seen(replace(COLD, import_locked=True), refused=True), again(
            "another import holds the image, or died and left its lock: Glance gives that away after an hour",
            store.ASK_AGAIN, wake=True)),
        # The import is over, and the copy is not there
        (seen(replace(COLD, failed=frozenset({"c1"})), locations=(Location(url="f", store="file"),), volumes=(),
              **COPIED), Finish(Again("Glance could not copy the image into store c1: see glance's log by its id"))),
        (seen(locations=(Location(url="f", store="file"),), volumes=(), **COPIED), store.gone_again("c1")),
        (seen(**COPIED), LookAtLocations()),
    ],
)  # fmt: skip
def test_store(given: Seen, expected: Action) -> None:
    assert store.plan(given, TARGET) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (seen(), LookAtVolumes()),
        (seen(volumes=()), CreateVolume(NEW)),
        # Wait for it, not for ever
        (seen(volumes=(replace(V1, status="downloading", created_epoch=NOW - 100.0),)), AwaitVolume("v1")),
        (seen(volumes=(replace(V1, status="reserved"),)), AddLocation("cinder://c1/v1")),
        (seen(volumes=(replace(V1, status="downloading", created_epoch=NOW - 22_000.0),)),
         DeleteVolume("v1", why="it was made for too long", because="volume v1 was downloading for too long")),
        # Put right, then told to Glance
        (seen(volumes=(marked(V1, image_owner=None),)), SetMetadata("v1", {"image_owner": "alice"})),
        (seen(volumes=(marked(V1, readonly=None),)), SetReadonly("v1")),
        (seen(volumes=(V1,)), AddLocation("cinder://c1/v1")),
        # Broken, encrypted, failed before
        (seen(volumes=(replace(V1, status="error"),)), DeleteVolume("v1", why="it is error")),
        (seen(volumes=(replace(V1, encrypted=True),)), DeleteVolume("v1", why="it is encrypted", encrypted=True)),
        (seen(volumes=(), failed="it broke"), LookAtLocations()),
        (seen(volumes=(), failed="it broke", locations=(Location(url="f", store="file"),)),
         Finish(Again("it broke"))),
        # Two: the oldest stays, one that may be another worker's is left alone
        (seen(volumes=(V1, V2)),
         DeleteVolume("v2", why="the image has another volume on the target, an older one")),
        (seen(volumes=(V1, replace(V2, created_epoch=MOMENT))), AddLocation("cinder://c1/v1")),
        # What is on its way out, and another target's, is nothing
        (seen(volumes=(replace(V1, status="deleting"),)), CreateVolume(NEW)),
        (seen(volumes=(replace(V1, status="error_deleting"),)), CreateVolume(NEW)),
        (seen(volumes=(marked(V1, image_volume_worker="slow"),)), CreateVolume(NEW)),
        # It was a location: Glance may have deleted its data
        (seen(volumes=(marked(V1, image_volume_worker_located="true"),)), CreateVolume(NEW)),
    ],
)  # fmt: skip
def test_location(given: Seen, expected: Action) -> None:
    assert location.plan(given, replace(TARGET, strategy="location")) == expected


THROW_AWAY = replace(
    NEW,
    name=f"warm-{IMAGE_ID}",
    # Nothing that its entry must not have
    metadata={
        name: text for name, text in NEW.metadata.items() if name.startswith("image_volume_worker")
    }
    | {"image_volume_worker_updated_at": "then"},
)
CHANGED = replace(COLD, updated_at="now", updated_epoch=NOW - 100.0)
NEWER = {"image_volume_worker_updated_at": "now"}
BUSY = replace(WARMING, status="downloading", created_epoch=NOW - 10.0)
GLANCES = marked(V1, readonly=None)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (seen(), LookAtVolumes()),
        (seen(volumes=()), LookAtWarming()),
        (seen(volumes=(), warming=()), CreateVolume(THROW_AWAY)),
        # The throw-away volume, then the entry, then its marks, then the throw-away volume goes
        (seen(volumes=(), warming=(BUSY,)), AwaitVolume("w1")),
        # Cinder makes none while it clones a location in the pool
        (seen(volumes=(), warming=(WARMING,), looks=cache.LOOKS), LookAtLocations()),
        *((seen(volumes=(), warming=(WARMING,), looks=cache.LOOKS, **given),
           DeleteVolume("w1", why="it has served", because=cache.NO_CACHE))
          for given in ({"hidden": True}, {"locations": FILE}, {"locations": FIRST, "gone": frozenset({"v1"})})),
        (seen(volumes=(), warming=(WARMING,), looks=cache.LOOKS, locations=FIRST), LookAtVolume("v1")),
        # Nothing was downloaded: Cinder's driver may have cloned the image where Glance keeps it
        (seen(volumes=(), warming=(WARMING,)), AwaitEntry()),
        (seen(volumes=(), warming=(WARMING,), unproven=ANY), LookAtLocations()),
        (seen(volumes=(), warming=(WARMING,), unproven=ANY, downloaded=True), AwaitEntry()),
        (seen(volumes=(), warming=(replace(WARMING, downloaded=True),), unproven=ANY), AwaitEntry()),
        (seen(volumes=(), warming=(WARMING,), unproven=ANY, hidden=True), AwaitEntry()),
        (seen(volumes=(), warming=(WARMING,), unproven=ANY, locations=FILE), AwaitEntry()),
        (seen(volumes=(), warming=(WARMING,), unproven=ANY, locations=RBD),
         DeleteVolume("w1", why="it has shown that Cinder clones the image itself", seems_native=True)),
        (seen(volumes=(), warming=(WARMING,), unproven=ANY, seems_native=True, locations=RBD),
         DeleteVolume("w1", why="it has shown that Cinder clones the image itself", native=True)),
        (seen(native=True), CLONED),
        (seen(volumes=(BARE_ENTRY,), warming=(WARMING,)),
         SetMetadata("e1", {**MARKS, "image_volume_worker_updated_at": "then", **OURS})),
        (seen(volumes=(ENTRY,), warming=(WARMING,)), DeleteVolume("w1", why="it has served")),
        (seen(volumes=(ENTRY,), warming=()), Finish(Done("e1", state=State.WARM))),
        (seen(volumes=(marked(ENTRY, image_owner="x"),), warming=()), SetMetadata("e1", {"image_owner": "alice"})),
        # Broken, encrypted, failed before
        (seen(volumes=(), warming=(replace(WARMING, status="error"),)), DeleteVolume("w1", why="it is error")),
        (seen(volumes=(replace(ENTRY, status="error"),), warming=()), DeleteVolume("e1", why="it is error")),
        (seen(volumes=(replace(ENTRY, encrypted=True),), warming=()),
         DeleteVolume("e1", why="it is encrypted", encrypted=True)),
        (seen(volumes=(), warming=(), failed="it broke"), LookAtLocations()),
        (seen(volumes=(), warming=(), failed="it broke", hidden=True), Finish(Again("it broke"))),
        # The image has changed: the entry is stale, and so is a throw-away volume that was begun
        # before
        # Before that it must be certain that the image can be read: Cinder deletes a stale entry first
        (seen(CHANGED, volumes=(ENTRY,), warming=()), LookAtLocations()),
        (seen(CHANGED, volumes=(ENTRY,), warming=(), locations=FILE), CreateVolume(
            replace(THROW_AWAY, metadata={**THROW_AWAY.metadata, **NEWER, "image_volume_worker_anew": "yes"}),
            anew=True)),
        (seen(replace(CHANGED, updated_epoch=MOMENT), volumes=(ENTRY,), warming=()),
         again("the image was changed a moment ago", 4.0)),
        (seen(CHANGED, volumes=(ENTRY,), warming=(WARMING,)),
         DeleteVolume("w1", why="the image has changed since it was begun")),
        # and again soon after
        (seen(CHANGED, volumes=(marked(replace(ENTRY, created_epoch=NOW - 200.0), image_volume_worker_anew="yes"),),
              warming=()),
         Finish(Again("the image has changed again soon after it was made warm", after=400.0, counted=False),
                held_back=True)),
        # Two marked entries
        (seen(volumes=(ENTRY, replace(ENTRY, id="e2", created_at="2")), warming=()),
         DeleteVolume("e1", why="a newer entry is there")),
        # Glance keeps the image on the target itself
        (seen(volumes=(GLANCES,)), LookAtLocations()),
        (seen(volumes=(GLANCES,), locations=FIRST), SetReadonly("v1")),
        (seen(volumes=(V1,), locations=FIRST), WARM),
        (seen(volumes=(V1,), locations=()), LookAtWarming()),
        (seen(volumes=(V1,), hidden=True), LookAtWarming()),
    ],
)  # fmt: skip
def test_cache(given: Seen, expected: Action) -> None:
    assert cache.plan(given, CACHED) == expected


HERE = replace(CACHED, places=(Place(("host@b#p",)),))
BESIDE = replace(V1, volume_type="hdd", host="host@b#p")
NATIVE_CLONE = DeleteVolume(
    "w1", why="it has shown that Cinder clones the image itself", seems_native=True
)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        # A volume of another type in the same pool
        (seen(volumes=(BESIDE,)), LookAtLocations()),
        (seen(volumes=(BESIDE,), locations=FIRST), WARM),
        (seen(volumes=(BESIDE,), locations=FILE), LookAtWarming()),
        (seen(volumes=(BESIDE,), hidden=True), LookAtWarming()),
        (seen(volumes=(marked(BESIDE, image_owner="bob"),), locations=FIRST), LookAtWarming()),
        (seen(volumes=(replace(BESIDE, host="other@b#p"),)), LookAtWarming()),
        # Whether Cinder's driver has cloned the image is told by nothing else than that it may have
        *((seen(volumes=volumes, warming=(WARMING,), unproven=frozenset({"rbd"}), locations=locations), expected)
          for volumes, locations, expected in (
              ((), RBD, NATIVE_CLONE),
              ((), (*RBD, *FIRST), LookAtVolume("v1")),
              ((replace(V1, host="other@b#p", volume_type="hdd"),), (*RBD, *FIRST), NATIVE_CLONE),
              # Which is no clone's source for its owner, but may have been a moment ago
              ((marked(BESIDE, image_owner="bob"),), (*RBD, *FIRST), AwaitEntry()),
          )),
        (seen(replace(COLD, properties={NOTE: "no"}), volumes=(), warming=(replace(WARMING, downloaded=True),),
              unproven=frozenset({"rbd"}), locations=RBD), NATIVE_CLONE),
    ],
)  # fmt: skip
def test_cache_in_a_pool_that_other_types_lead_to(given: Seen, expected: Action) -> None:
    assert cache.plan(given, HERE) == expected


NATIVE = replace(TARGET, strategy="native", native_stores=("rbd-b", "rbd-a"))
COPYING = replace(COLD, import_locked=True)


@pytest.mark.parametrize(
    ("given", "target", "expected"),
    [
        # Seen to be cloned: nothing has to be copied anywhere
        (seen(), replace(NATIVE, native_stores=()), CLONED),
        (seen(replace(COLD, stores=frozenset({"rbd-a"}))), NATIVE, CLONED),
        # Into the first of the stores, by the rules of every copy
        (seen(), NATIVE, CopyImage(("rbd-b",))),
        (seen(COPYING), NATIVE, CopyImage(("rbd-b",))),
        (seen(replace(COPYING, updated_epoch=MOMENT)), NATIVE, again(OTHERS, 10.0, wake=True)),
        (
            seen(replace(COLD, updated_epoch=MOMENT)),
            NATIVE,
            again("the image was changed a moment ago", 1.0),
        ),
    ],
)
def test_native(given: Seen, target: Target, expected: Action) -> None:
    assert native.plan(given, target) == expected


def test_a_lock_by_a_clock_that_is_ahead_holds() -> None:
    ahead = replace(COLD, import_locked=True, updated_epoch=NOW + 70.0)
    assert import_lock.is_held(ahead, NOW)
    assert not import_lock.is_held(replace(ahead, updated_epoch=NOW - 4000.0), NOW)
    assert not import_lock.is_held(replace(ahead, import_locked=False), NOW)
