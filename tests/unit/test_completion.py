"""The plan of an upload, step by step: what is done, refused and left alone, as a table without a
cloud."""

from __future__ import annotations

from dataclasses import replace

import pytest

from handlers.actions import AddLocation, AwaitImage, LookAtLocations, SetMetadata, SetReadonly
from handlers.upload import actions, clean_up, plan, sources
from handlers.upload.actions import (
    AwaitClone,
    Bind,
    CreateClone,
    DeleteClone,
    Finish,
    KeepProperties,
    LookAgain,
    LookAtClones,
    LookAtSource,
    LookAtTasks,
    LookAtUsage,
)
from handlers.upload.seen import Seen
from worker.core.cloud import GIB, Image, ImageTask, Location, Store, Volume
from worker.core.outcome import Again, Done, Park, Skip
from worker.core.state import State
from worker.core.target import Target, Uploads

IMAGE = "f8195267-dc43-443b-86bf-8a5200144f25"
SOURCE = "38adcc12-ea51-4d39-adea-b5a4c4162d30"
OTHER = "11111111-1111-4111-8111-111111111111"
NOW = 1000.0
LATER = 10_000.0
RULES = Uploads(grace=60.0)
STORES = (Store(id="file", type="file"), Store(id="c1", type="cinder", volume_type="ssd"))

PLAIN = Image(
    id=IMAGE,
    status="queued",
    owner="alice",
    disk_format="raw",
    container_format="bare",
    visibility="private",
    created_epoch=990.0,
    properties={"image_volume_source": SOURCE},
)
QUEUED = replace(PLAIN, properties={"image_volume_source": f"{SOURCE}/{IMAGE}"})
ACTIVE = replace(QUEUED, status="active", size=2 * GIB)
UNNAMED = replace(QUEUED, properties={}, created_epoch=100.0)
VOLUME = Volume(
    id=SOURCE,
    name="v",
    status="available",
    volume_type="ssd",
    size=2,
    project_id="alice",
    foreign=True,
)
# Its marks beside its own id
OWN = {"image_volume_worker_of": "clone"}
METADATA = {"glance_image_id": IMAGE, "image_owner": "alice", "image_size": str(2 * GIB)}
OURS = Volume(
    id="clone",
    name=f"image-{IMAGE}",
    status="available",
    volume_type="ssd",
    size=2,
    project_id="internal",
    source_volid=SOURCE,
    created_epoch=995.0,
    updated_epoch=996.0,
    metadata={**METADATA, "image_volume_worker": "upload", "readonly": "True"},
)
ITS_DATA = replace(OURS, metadata={**OURS.metadata, "image_volume_worker_located": "true"})
NOTED = SetMetadata("clone", {"image_volume_worker_located": "true", **OWN})
CINDERS = replace(OURS, created_epoch=100.0, updated_epoch=101.0,
                  metadata={"image_owner": "alice", "readonly": "True"})  # fmt: skip
HANDED_ON = replace(UNNAMED, properties={"image_volume_source": f"{SOURCE}/{OTHER}"})
URL = "cinder://c1/clone"
UEFI = {"hw_firmware_type": "uefi", "os_type": "linux"}
KNOWING = replace(
    VOLUME, image_properties={**UEFI, "min_disk": "1", "image_id": OTHER, "os_glance_x": "x"}
)
BIOS = {**PLAIN.properties, "HW_firmware_type": "bios"}
FAILED = ImageTask(
    id="t", type="location_import", status="failure", message="it broke", url=f"cinder://{SOURCE}"
)


def seen(image: Image = QUEUED, **more: object) -> Seen:
    return Seen(**({"image": image, "now": NOW, "stores": STORES} | more))  # type: ignore[arg-type]


def sure(
    clone: Volume, source: Volume | None = VOLUME, image: Image = QUEUED, **more: object
) -> Seen:
    return seen(image, clones=(clone,), source=source, sure=True, **more)


def with_metadata(volume: Volume, **changes: str | None) -> Volume:
    metadata = {
        key: value for key, value in {**volume.metadata, **changes}.items() if value is not None
    }
    return replace(volume, metadata=metadata)


@pytest.mark.parametrize(
    ("used", "expected"),
    [
        (None, LookAtUsage()),
        (8, None),
        (9, Finish(Again("the project has 9 GiB of images made of volumes, with this one 11, and 10 are allowed",
                         after=10.0, counted=False, wake_on_notification=True),
                   tell="waiting: the project has 9 GiB of images made of volumes, with this one 11, and 10 are allowed"
                   )),
    ],
)  # fmt: skip
def test_the_bound_of_a_project(used: int | None, expected: object) -> None:
    given = seen(clones=(), source=VOLUME, used=used)
    action = plan.plan(given, replace(RULES, project_gigabytes=10))
    assert action == expected if expected else isinstance(action, CreateClone)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        # From nothing to a clone
        (seen(), LookAtClones(SOURCE)),
        (seen(clones=()), LookAtSource(SOURCE)),
        (seen(clones=(replace(OURS, status="creating"),)), AwaitClone("clone", SOURCE)),
        (seen(clones=(OURS,)), LookAgain(SOURCE)),
        # From the clone to the location
        (sure(with_metadata(OURS, image_size=None)), SetMetadata("clone", {"image_size": str(2 * GIB), **OWN})),
        (sure(with_metadata(OURS, readonly=None)), SetReadonly("clone")),
        (sure(OURS), AddLocation("cinder://c1/clone")),
        # An image that is being changed is waited for; one that nobody has changed since it was
        # made is not
        (sure(OURS, image=replace(QUEUED, updated_epoch=999.0)), AwaitImage()),
        (sure(OURS, image=replace(QUEUED, updated_epoch=997.0)), AddLocation("cinder://c1/clone")),
        (sure(OURS, image=replace(QUEUED, created_epoch=999.0, updated_epoch=999.0), changed=True), AwaitImage()),
        (sure(OURS, image=replace(QUEUED, created_epoch=999.0, updated_epoch=999.0)),
         AddLocation("cinder://c1/clone")),
        (sure(OURS, source=None), AddLocation("cinder://c1/clone")),
        # The property is bound to the image before the image is active, and also if it was set on
        # an active one
        (sure(OURS, image=PLAIN), Bind(f"{SOURCE}/{IMAGE}")),
        (sure(OURS, image=replace(PLAIN, properties={"image_volume_source": f" {SOURCE.upper()} "})),
         Bind(f"{SOURCE}/{IMAGE}")),
        (seen(replace(PLAIN, status="active", size=1)), Bind(f"{SOURCE}/{IMAGE}")),
        (seen(replace(PLAIN, status="active", size=1, import_locked=True), asked=URL, clones=(OURS,)),
         LookAtLocations()),
        # and the change is our own
        (sure(OURS, image=replace(QUEUED, updated_epoch=999.0, updated_at="t"), bound_at="t"),
         AddLocation("cinder://c1/clone")),
        # What the volume knows of its image is kept, in the same request; what the user has set
        # wins
        (sure(OURS, KNOWING, PLAIN), KeepProperties(UEFI, bind=Bind(f"{SOURCE}/{IMAGE}"))),
        (sure(OURS, KNOWING), KeepProperties(UEFI)),
        (sure(OURS, KNOWING, replace(PLAIN, properties=BIOS)),
         KeepProperties({"os_type": "linux"}, bind=Bind(f"{SOURCE}/{IMAGE}"))),
        (sure(OURS, KNOWING, replace(QUEUED, properties={**QUEUED.properties, **UEFI})), AddLocation(URL)),
        # The clone tells it where the source does not, or is gone
        (sure(replace(OURS, image_properties=UEFI), None), KeepProperties(UEFI)),
        (sure(replace(OURS, image_properties=UEFI)), KeepProperties(UEFI)),
        (sure(replace(OURS, image_properties={"a": "b"}), KNOWING), KeepProperties(UEFI)),
        # Whoever may be about to send data is not disturbed; a change of our own is no such sign
        (sure(OURS, KNOWING, replace(QUEUED, created_epoch=999.0)), AwaitImage()),
        (sure(OURS, KNOWING, replace(QUEUED, updated_epoch=999.0)), AwaitImage()),
        # One that goes on changing holds no slot
        (sure(OURS, KNOWING, replace(QUEUED, updated_epoch=999.0), restless=True),
         Finish(Again("the image is being changed", after=2.0, counted=False))),
        (sure(OURS, image=replace(QUEUED, updated_epoch=999.0), restless=True),
         Finish(Again("the image is being changed", after=1.0, counted=False))),
        # Nothing is cloned that may be too large to be read again
        (seen(clones=(), source=replace(VOLUME, oversized=True)), Finish(
            Skip("the volume has too much image metadata: unset what the image need not have", State.UPLOAD),
            tell="refused: the volume has too much image metadata: unset what the image need not have")),
        (sure(OURS, KNOWING, replace(QUEUED, updated_epoch=999.0, updated_at="t"), bound_at="t"),
         KeepProperties(UEFI)),
        # Each is offered once, and what was refused costs no upload
        (sure(OURS, KNOWING, offered=frozenset({"os_type"}), at_once=1),
         KeepProperties({"hw_firmware_type": "uefi"}, 1)),
        (sure(OURS, KNOWING, offered=frozenset(UEFI), refused=frozenset(UEFI)), AddLocation(URL)),
        # Another project's volume tells nothing, and Cinder's own upload has given its image what
        # it wants
        (sure(OURS, replace(KNOWING, project_id="bob")),
         DeleteClone("clone", "the volume is not, or no longer, the image's project's")),
        (sure(with_metadata(CINDERS, **METADATA), KNOWING, UNNAMED), AddLocation(URL)),
        (sure(OURS, KNOWING, UNNAMED, tasks=(FAILED,)), AddLocation(URL)),
        # A clone that takes its time holds no slot; one whose source is gone is given up
        (seen(clones=(replace(OURS, status="creating", created_epoch=900.0),)), LookAgain(SOURCE)),
        (sure(replace(OURS, status="creating", created_epoch=900.0), None, missing=frozenset({SOURCE})),
         DeleteClone("clone", "the volume was deleted before it was cloned")),
        # and so is one that no scheduler has heard of
        (sure(replace(OURS, status="creating", created_epoch=600.0, scheduled=False)),
         DeleteClone("clone", "Cinder has lost the request for the clone")),
        (sure(OURS, source=replace(VOLUME, status="in-use")), AddLocation("cinder://c1/clone")),
        # Glance is at work, has failed, is done
        (seen(replace(QUEUED, import_locked=True), asked=URL), AwaitImage()),
        (seen(asked=URL), LookAtTasks()),
        (seen(asked=URL, tasks=(FAILED, replace(FAILED, status="success", url=URL))), AwaitImage()),
        (seen(replace(QUEUED, status="active", size=1), asked=URL, clones=(OURS,)), LookAtLocations()),
        # Several clones: a usable one serves, the others go once the image is active
        (seen(clones=(replace(OURS, id="first", status="creating"), OURS)), LookAgain(SOURCE)),
        (seen(replace(QUEUED, status="active"), clones=(OURS, replace(OURS, id="second")),
              locations=(Location(url="", store="c1", volume_id="clone"),)), LookAtTasks()),
        *((seen(replace(QUEUED, status="active", created_epoch=created), tasks=tasks,
                clones=(OURS, replace(OURS, id="second", metadata=metadata)),
                locations=(Location(url="", store="c1", volume_id="clone"),)), expected)
          for created, tasks, metadata, expected in (
              (900.0, (), OURS.metadata, DeleteClone("second")),
              # One that was a location, or may have been: with delayed_delete its data is wanted
              (900.0, (replace(FAILED, status="success", url="cinder://c1/second"),), OURS.metadata, NOTED),
              (-200_000.0, (), OURS.metadata, NOTED),
              (900.0, (), OURS.metadata | {"image_volume_worker_located": "true"}, NOTED),
              # One that was never finished
              (-200_000.0, None, {k: v for k, v in OURS.metadata.items() if k != "readonly"}, DeleteClone("second")),
          )),
        (seen(replace(QUEUED, status="active"), clones=(ITS_DATA,),
              locations=(Location(url="", store="c1", volume_id="clone"),)), Finish(Done("clone"))),
        # It was the image's data: Glance's database may have been restored
        (seen(ACTIVE, clones=(ITS_DATA,), locations=(), tasks=()), Finish(Done())),
        (sure(ITS_DATA, image=UNNAMED, tasks=()), Finish(Skip(plan.WAS_ITS_DATA.format("clone")))),
        (sure(ITS_DATA, image=replace(QUEUED, properties={"image_volume_source": OTHER})),
         Finish(Skip(plan.WAS_ITS_DATA.format("clone")))),
        (sure(ITS_DATA), AddLocation(URL)),
        # The property names another volume now, or none
        (sure(OURS, image=replace(QUEUED, properties={"image_volume_source": OTHER})),
         DeleteClone("clone", "another volume is asked for now")),
        (sure(OURS, image=replace(UNNAMED, properties={})), LookAtTasks()),
        (sure(OURS, image=UNNAMED, tasks=()), DeleteClone("clone")),
        # Cinder's own: still for the grace period, then finished; its clone in the owner's project
        # is a source
        (seen(UNNAMED), LookAtClones()),
        (seen(UNNAMED, clones=(CINDERS,)), LookAgain(SOURCE)),
        (sure(CINDERS, image=UNNAMED),
         SetMetadata("clone", {"glance_image_id": IMAGE, "image_size": str(2 * GIB), **OWN})),
        (sure(with_metadata(CINDERS, **METADATA), image=UNNAMED), AddLocation("cinder://c1/clone")),
        (seen(UNNAMED, clones=(replace(CINDERS, status="error"),)), DeleteClone("clone", "Cinder could not clone "
         f"volume {SOURCE}")),
        (seen(UNNAMED, clones=()), LookAtTasks()),
        (seen(UNNAMED, clones=(), tasks=(FAILED,)), LookAtSource(SOURCE)),
        (sure(OURS, image=UNNAMED, tasks=(FAILED,)), AddLocation("cinder://c1/clone")),
        # A location of ours that Glance could not add either is no source
        (sure(OURS, image=UNNAMED, tasks=(replace(FAILED, url=URL), FAILED)), AddLocation("cinder://c1/clone")),
        (seen(UNNAMED, clones=(), missing=frozenset({OTHER}), tasks=(replace(FAILED, url=f"cinder://c1/{OTHER}"),
              FAILED)), LookAtSource(SOURCE)),
    ],
)  # fmt: skip
def test_next_step(given: Seen, expected: actions.Action) -> None:
    assert plan.plan(given, RULES) == expected


def test_a_clone_that_takes_its_time_holds_no_slot() -> None:
    action = plan.plan(sure(replace(OURS, status="creating", created_epoch=900.0)), RULES)
    outcome = Again(
        "the volume is being cloned", after=30.0, counted=False, wake_on_notification=True
    )
    assert action == Finish(outcome, tell="waiting: the volume is being cloned")


def test_the_clone_carries_everything_from_its_first_request() -> None:
    action = plan.plan(seen(clones=(), source=VOLUME), RULES)
    assert isinstance(action, CreateClone)
    assert action.new.name == f"image-{IMAGE}"
    assert (action.new.source_volid, action.new.size, action.new.volume_type) == (SOURCE, 2, "")
    assert action.new.metadata == {
        **METADATA,
        "image_volume_worker": "upload",
        "image_volume_worker_upload": "alice",
    }
    assert action.bind is None
    plain = plan.plan(seen(PLAIN, clones=(), source=VOLUME), RULES)
    assert plain == replace(action, bind=Bind(f"{SOURCE}/{IMAGE}"))
    # With properties to keep, one request does both later
    assert plan.plan(seen(PLAIN, clones=(), source=KNOWING), RULES) == action


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (seen(clones=(), missing=frozenset({SOURCE})), sources.NO_SUCH_VOLUME),
        (seen(clones=(), source=replace(VOLUME, project_id="bob")), sources.NO_SUCH_VOLUME),
        (seen(clones=(), source=replace(VOLUME, project_id="bob", encrypted=True)), sources.NO_SUCH_VOLUME),
        (seen(clones=(), source=replace(VOLUME, project_id="bob", volume_type="x")), sources.NO_SUCH_VOLUME),
        (seen(replace(QUEUED, properties={"image_volume_source": "../../x"}), clones=()), sources.NO_SUCH_VOLUME),
        (seen(clones=(), source=replace(VOLUME, encrypted=True)), "the volume is encrypted"),
        (seen(clones=(), source=replace(VOLUME, volume_type="tape")), "no store of Glance serves volumes of type tape"),
        (sure(replace(CINDERS, encrypted=True), image=UNNAMED), "the volume is encrypted"),
        (seen(replace(QUEUED, disk_format="qcow2")),
         "only raw/bare images can be made of a volume, this one is qcow2/bare"),
    ],
)  # fmt: skip
def test_refusals_reach_the_owner_and_tell_nothing_of_others(given: Seen, reason: str) -> None:
    assert plan.plan(given, RULES) == Finish(Skip(reason, State.UPLOAD), tell=f"refused: {reason}")


@pytest.mark.parametrize(
    ("given", "outcome"),
    [
        (seen(replace(QUEUED, status="saving")), Skip("the image is saving for 0 minutes")),
        (seen(replace(QUEUED, import_locked=True), lock_refused=True),
         Again("Glance is at work on the image", after=10.0, counted=False, wake_on_notification=True)),
        (seen(replace(UNNAMED, created_epoch=990.0)),
         Again("a new image, somebody may be at work on it", after=50.0, counted=False, wake_on_notification=True)),
        (seen(replace(UNNAMED, disk_format="qcow2")),
         Skip("only raw/bare images can be made of a volume, this one is qcow2/bare")),
        (seen(UNNAMED, clones=(), tasks=()), Skip(plan.NOBODY_ASKED)),
        # Another try of Cinder's is under way
        (seen(UNNAMED, clones=(), tasks=(replace(FAILED, status="processing"), FAILED)), Skip(plan.NOBODY_ASKED)),
        (seen(UNNAMED, clones=(), tasks=(replace(FAILED, url="file:///etc/passwd"),)), Skip(plan.NOBODY_ASKED)),
        (seen(UNNAMED, clones=(replace(CINDERS, updated_epoch=980.0),)),
         Again("Cinder's own upload may be at work", after=40.0, counted=False)),
        (sure(CINDERS, replace(VOLUME, status="uploading"), UNNAMED), Again("Cinder's own upload is at work")),
        (sure(with_metadata(CINDERS, image_owner="bob"), None, UNNAMED),
         Skip("the clone that Cinder has made is not for the image's project")),
        (sure(with_metadata(CINDERS, image_owner=None), None, UNNAMED),
         Skip("the clone that Cinder has made is not for the image's project")),
        (sure(with_metadata(CINDERS, image_owner=None), replace(VOLUME, project_id="bob"), UNNAMED),
         Skip("the clone that Cinder has made is not for the image's project")),
        (seen(replace(UNNAMED, status="active"), clones=()), Done()),
        (seen(replace(QUEUED, status="active"), clones=(OURS,), hidden=True), Done()),
        (seen(replace(QUEUED, status="active"), asked=URL),
         Park("Glance has lost the image's size, somebody changed the image at the same time: make it anew")),
        (seen(replace(QUEUED, status="active", import_locked=True,
                      properties={"image_volume_source": SOURCE, "image_volume_status": "waiting"})),
         Again("its properties are put right once Glance has read it", after=10.0, counted=False,
               wake_on_notification=True)),
        # Handed on by Cinder or Nova from another image: nobody has asked for anything
        (seen(HANDED_ON, clones=(), tasks=()), Skip(plan.NOBODY_ASKED)),
        (seen(clones=(replace(CINDERS, source_volid=OTHER),)),
         Skip("Cinder itself makes the image of another volume than the property names")),
    ],
)  # fmt: skip
def test_left_alone(given: Seen, outcome: object) -> None:
    assert plan.plan(given, RULES) == Finish(outcome)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("status", "allowed", "reason"),
    [
        ("in-use", False, "the volume is in-use, detach it"),
        ("uploading", True, "the volume is uploading"),
        ("error", True, "the volume is error"),
    ],
)
def test_a_busy_source_is_waited_for_and_the_owner_knows(
    status: str, allowed: bool, reason: str
) -> None:
    given = seen(clones=(), source=replace(VOLUME, status=status))
    action = plan.plan(given, replace(RULES, allow_in_use=allowed))
    wait = Again(reason, after=10.0, counted=False, wake_on_notification=True)
    assert action == Finish(wait, tell=f"waiting: {reason}")


@pytest.mark.parametrize(("quiet", "after"), [(0.0, 10.0), (400.0, 100.0), (1000.0, 250.0)])
def test_who_waits_for_others_looks_less_and_less_often(quiet: float, after: float) -> None:
    image = replace(QUEUED, created_epoch=0.0, updated_epoch=NOW - quiet, import_locked=True)
    given = seen(image, lock_refused=True)
    assert plan.plan(given, RULES) == Finish(
        Again(
            "Glance is at work on the image", after=after, counted=False, wake_on_notification=True
        )
    )


@pytest.mark.parametrize("quiet", [0.0, 299.0])
def test_an_import_that_has_changed_something_lately_is_at_work(quiet: float) -> None:
    locked = replace(QUEUED, created_epoch=0.0, updated_epoch=NOW - quiet, import_locked=True)
    assert isinstance(plan.plan(seen(locked, clones=(OURS,), sure=True), RULES), Finish)


def test_a_source_in_use_is_cloned_where_that_is_allowed() -> None:
    given = seen(clones=(), source=replace(VOLUME, status="in-use"))
    assert isinstance(plan.plan(given, replace(RULES, allow_in_use=True)), CreateClone)


@pytest.mark.parametrize(
    ("clone", "source", "image"),
    [
        # The image's owner was changed, the volume given to another project, or never was the
        # image's
        (OURS, VOLUME, replace(QUEUED, owner="bob")),
        (OURS, replace(VOLUME, project_id="bob"), QUEUED),
        (OURS, replace(VOLUME, project_id="bob"), replace(QUEUED, owner="bob")),
        (with_metadata(OURS, image_owner="bob"), None, QUEUED),
        (with_metadata(OURS, image_owner=None), VOLUME, QUEUED),
    ],
)
def test_what_is_not_the_owners_any_more_is_deleted_and_never_registered(
    clone: Volume, source: Volume | None, image: Image
) -> None:
    action = plan.plan(sure(clone, source, image), RULES)
    assert isinstance(action, DeleteClone)
    assert action.volume_id == "clone"
    assert action.because


def test_what_glance_says_of_its_failure_is_the_reason() -> None:
    action = plan.plan(seen(asked=URL, tasks=(replace(FAILED, url=URL),)), RULES)
    assert isinstance(action, Finish)
    assert action.outcome == Again("Glance could not add the location: it broke")
    assert action.tell.startswith("waiting: ")


def test_a_clone_of_cinders_that_is_no_location_stays() -> None:
    active = replace(UNNAMED, status="active")
    locations = (Location(url="file:///x", store="file"),)
    # It may be an entry of Cinder's cache, on whose volume a user has written all this
    old = replace(CINDERS, created_epoch=0.0, updated_epoch=LATER - 400_000)
    late = replace(seen(active, locations=locations), now=LATER)
    assert plan.plan(replace(late, clones=(old,)), RULES) == Finish(Done(""))


def test_the_store_is_glances_word_or_the_configurations() -> None:
    assert sources.store_of("ssd", STORES) == "c1"
    assert sources.store_of("hdd", STORES) == ""
    untold = (Store(id="c1"), Store(id="c2"))
    targets = (
        Target(name="a", volume_type="hdd", glance_store="c2"),
        Target(name="b", volume_type="x", glance_store="?"),
    )
    assert sources.store_of("hdd", untold, targets) == "c2"
    assert sources.store_of("x", untold, targets) == ""


LOCATED = replace(FAILED, status="success", url=URL)
TOLD = clean_up.DATA_UPLOADED


@pytest.mark.parametrize(
    ("given", "tell"),
    [
        # Nobody sends whole GiB by chance, and a clone is never of another size
        (seen(replace(ACTIVE, size=1), clones=()), TOLD),
        (seen(ACTIVE, clones=(), tasks=()), TOLD),
        (seen(replace(ACTIVE, size=0), clones=(), tasks=()), TOLD),
        (seen(ACTIVE, clones=(), tasks=(FAILED,)), TOLD),
        (seen(ACTIVE, clones=(), tasks=(LOCATED, FAILED)), ""),
        # Its clone was moved or replaced since, or it was data: Glance has forgotten which
        (seen(ACTIVE, clones=(), tasks=(), now=NOW + clean_up.TASKS_KEPT), ""),
        (seen(replace(ACTIVE, properties=HANDED_ON.properties), clones=()), ""),
        (seen(ACTIVE, clones=(ITS_DATA,), locations=(Location.from_url(URL),)), ""),
    ],
)
def test_an_owner_is_told_that_data_was_uploaded(given: Seen, tell: str) -> None:
    old = plan.plan(given, replace(RULES, location_api="old"))
    # The old API leaves no task: whether its clone was replaced since is not known
    known = given.image.size % GIB or not given.image.size
    assert isinstance(old, Finish)
    assert old.tell == (tell if known else "")
    action = plan.plan(given, RULES)
    assert isinstance(action, actions.Finish)
    assert isinstance(action.outcome, Done)
    assert action.tell == tell


@pytest.mark.parametrize(
    ("changes", "wait"),
    [
        ({"created_epoch": 990.0}, 0.0),
        ({"created_epoch": 999.0}, 2.0),
        ({"created_epoch": 900.0, "updated_epoch": 998.0}, 1.0),
        # Only an upload of data is what a change can meet
        ({"created_epoch": 999.0, "status": "active"}, 0.0),
    ],
)
def test_a_queued_image_is_left_alone_before_it_is_changed(
    changes: dict[str, object], wait: float
) -> None:
    image = replace(PLAIN, **changes)  # type: ignore[arg-type]
    assert max(0.0, sources.wait_to_change(image, 3.0, NOW)) == wait
    begun = plan.plan(seen(image, clones=(), source=VOLUME), RULES)
    if image.status == "queued":
        assert isinstance(begun, CreateClone)
        assert (begun.bind is None) == (wait > 0)
        assert (plan.plan(sure(OURS, image=image), RULES) == AwaitImage()) == (wait > 0)
