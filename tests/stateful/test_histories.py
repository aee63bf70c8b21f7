"""Random histories: whatever happens to cloud and worker, nothing is lost, and in the end all is as
it should be.

HISTORIES is how many (300, with LONG=1 3000). They are the same ones each time, so that a run of
the tests depends on the code alone; `HISTORIES_SEED=new` takes others, and a failure says which
seed repeats it. To make a failure small takes minutes: HISTORIES_SHRINK=0 does without.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import ClassVar

import hypothesis
import pytest
import structlog
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.stateful.clock import START, Clock, Loop
from tests.stateful.judge import FRESH, ORIGIN, TAG, Judge, Setup
from worker.core import absence
from worker.core.cloud import GIB, Image, Location, Volume
from worker.core.errors import Blocked, Conflict, NotFound, Temporary
from worker.core.target import MISSING, Policy, Reclaiming, Uploads
from worker.engine.limits import Limits
from worker.engine.retry import Backoff
from worker.testing.fake_cloud import PROJECT, FakeCloud, Fault, new_id
from worker.testing.rig import FAST, SLOW, STORES, Rig

HOUR = 3600.0
# As long as a real worker's, but for how long a parked job is left alone: nothing costs time here
LIMITS = Limits(max_attempts=6, poll_min=0.5, poll_max=15.0, drain=5.0, park_retry_after=6 * HOUR)
BACKOFF = Backoff(shortest=2.0, longest=120.0)
POLICY = Policy(settle=5.0, rewarm_interval=60.0)
UPLOADS = Uploads(grace=60.0, quiet=2.0)
# What looks at the clock
TIMED = (
    "worker.engine.appointments",
    "worker.engine.entry",
    "worker.engine.queue",
    "worker.engine.runner",
    "worker.engine.resync",
    "worker.engine.router",
    "worker.testing.fake_cloud",
    "worker.testing.rig",
)
ROUNDS = 12
SEED = 1
VERBS = (
    "get_image", "list_images", "get_locations", "copy_image", "add_location", "import_location", "list_tasks",
    "set_properties", "remove_from_store", "get_volume", "find_volumes", "list_volumes", "get_quota", "create_volume",
    "delete_volume", "set_metadata", "set_readonly", "list_stores",
)  # fmt: skip
ERRORS = {"temporary": Temporary("503"), "conflict": Conflict("409"), "blocked": Blocked("403")}
# How far the worker gets after a step: not at all, some turns of its loop, some seconds, until it
# has nothing to do
REST = "rest"
PACES = st.sampled_from((0, 1, 3, 6, 10, 0.03, 0.5, 4.0, REST, REST, REST, REST))
WHICH = st.integers(0, 7)
TYPES = st.sampled_from(("fast", "slow"))
OWNERS = st.sampled_from(("alice", "bob", PROJECT))
SETUPS = st.fixed_dictionaries(
    {
        "targets": st.sampled_from((("fast", "slow"), ("fast", "slow"), ("fast",), ("slow",))),
        "max_count": st.sampled_from((0, 0, 0, 1, 2)),
        "max_gigabytes": st.sampled_from((0, 0, 0, 3, 5)),
        "when": st.sampled_from(("new", "new", "new", "used")),
        "public_only": st.sampled_from((False, False, False, True)),
        "without_bob": st.sampled_from((False, False, False, True)),
        "reclaiming": st.sampled_from(("on", "on", "on", "dry run", "off")),
        "max_at_once": st.sampled_from((1, 1000)),
    }
)


class Histories(RuleBasedStateMachine):
    """Users, admins and operators, Glance and Cinder with their faults, and a worker that lives
    through it."""

    clock: ClassVar[Clock]

    def __init__(self) -> None:
        super().__init__()
        self.clock.now = START
        self.runner = asyncio.Runner(loop_factory=lambda: Loop(self.clock))
        self.failed = False
        self.deaf = False
        self.rig: Rig

    @initialize(
        kind=st.sampled_from(("store", "location", "cache", "mixed")),
        setup=SETUPS,
        seconds=st.sampled_from((0.0, 3.0, 40.0)),
        latency=st.sampled_from((0.0, 0.1)),
        images=st.integers(0, 3),
        leave=st.booleans(),
    )
    def begin(
        self,
        kind: str,
        setup: dict[str, object],
        seconds: float,
        latency: float,
        images: int,
        leave: bool,
    ) -> None:
        kinds = (
            {"fast": "store", "slow": "cache"}
            if kind == "mixed"
            else dict.fromkeys(("fast", "slow"), kind)
        )
        self.kinds = kinds
        self.cloud = FakeCloud(
            stores=STORES,
            cached=frozenset(name for name, strategy in kinds.items() if strategy == "cache"),
            multiple_locations="location" in kinds.values(),
            seconds=seconds,
            latency=latency,
        )
        # A copy that Glance had not ended when its image was refused is not marked as ours, and
        # stays for ever
        self.judge = Judge(cloud=self.cloud, setup=self._setup(setup))
        self.cloud.told = self.judge.hear
        self.runner.run(self._start())
        for _ in range(images):
            self.do(self.cloud.upload, REST)
        while leave and self._leavable():
            # Images of which nothing is left but what pre-warming has made
            self.leave_file_store_by_its_owner(0, REST)

    # What users do

    @rule(
        size=st.integers(1, 3),
        visibility=st.sampled_from(("public", "public", "private")),
        disk_format=st.sampled_from(("raw", "raw", "raw", "qcow2")),
        owner=OWNERS,
        pace=PACES,
    )
    def upload(
        self, size: int, visibility: str, disk_format: str, owner: str, pace: object
    ) -> None:
        fields = {
            "size": size * GIB,
            "visibility": visibility,
            "disk_format": disk_format,
            "owner": owner,
        }
        self.do(lambda: self.cloud.upload(**fields), pace)

    @rule(wish=st.sampled_from(("", "yes")), pace=PACES)
    def upload_at_once(self, wish: str, pace: object) -> None:
        self.do(
            lambda: self.cloud.upload(properties={"image_volume_prewarm": wish} if wish else {}),
            pace,
        )

    @rule(size=st.integers(1, 3), volume_type=TYPES, owner=OWNERS, pace=PACES)
    def upload_into_a_cinder_store(
        self, size: int, volume_type: str, owner: str, pace: object
    ) -> None:
        image_id, store = new_id(), f"cinder-{volume_type}"

        def act() -> None:
            metadata = {
                "glance_image_id": image_id,
                "image_owner": owner,
                "image_size": str(size * GIB),
            }
            metadata["readonly"] = "True"
            volume = self.cloud.volume_of(
                PROJECT,
                name=f"image-{image_id}",
                volume_type=volume_type,
                size=size,
                metadata=metadata,
            )
            emit, self.cloud.emit = self.cloud.emit, lambda _: None
            self.cloud.upload(id=image_id, size=size * GIB, owner=owner, stores=frozenset({store}))
            self.cloud.emit = emit
            location = Location(
                url=f"cinder://{store}/{volume.id}", store=store, volume_id=volume.id
            )
            self.cloud.locations[image_id] = (location,)
            self.cloud.announce("image.activate", image_id)

        self.do(act, pace)

    @rule(owner=OWNERS, volume_type=TYPES, named=st.booleans(), cloned=st.booleans(), pace=PACES)
    def upload_a_volume(
        self, owner: str, volume_type: str, named: bool, cloned: bool, pace: object
    ) -> None:
        def act() -> None:
            kept = {"hw_firmware_type": "uefi", "os_type": "linux"} if named else {}
            source = self.cloud.volume_of(owner, volume_type=volume_type, image_properties=kept)
            self._know(source)
            properties = {"image_volume_source": source.id} if named else {}
            image = self.cloud.queue(owner=owner, properties=properties)
            if cloned:
                # Cinder's own upload, killed half way
                clone = self.cloud.cinder_clones(source.id, image.id)
                self.cloud.asked_by[clone.id] = "cinder"

        self.do(act, pace)

    @precondition(lambda self: self.cloud.images)
    @rule(which=WHICH, wish=st.sampled_from(("no", "no", "yes", "")), pace=PACES)
    def wish(self, which: int, wish: str, pace: object) -> None:
        image = self._image(which)
        properties = {
            key: value for key, value in image.properties.items() if key != "image_volume_prewarm"
        }
        properties |= {"image_volume_prewarm": wish} if wish else {}
        self.do(lambda: self._change(image, properties=properties), pace)

    @precondition(lambda self: self.cloud.images)
    @rule(which=WHICH, visibility=st.sampled_from(("public", "private", "shared")), pace=PACES)
    def change_visibility(self, which: int, visibility: str, pace: object) -> None:
        self.do(lambda: self._change(self._image(which), visibility=visibility), pace)

    @precondition(lambda self: self.cloud.images)
    @rule(which=WHICH, pace=PACES)
    def change_status(self, which: int, pace: object) -> None:
        image = self._image(which)
        other = {"active": "deactivated", "deactivated": "active"}.get(image.status)
        self.do(lambda: self._change(image, status=other) if other else None, pace)

    @precondition(lambda self: self.cloud.images)
    @rule(which=WHICH, pace=PACES)
    def delete_image(self, which: int, pace: object) -> None:
        def act() -> None:
            image = self._image(which)
            self.judge.forget_image(image)
            self.cloud.delete_image(image.id)

        self.do(act, pace)

    @precondition(lambda self: self.cloud.images)
    @rule(which=WHICH, volume_type=TYPES, times=st.integers(1, 2), pace=PACES)
    def use(self, which: int, volume_type: str, times: int, pace: object) -> None:
        image = self._image(which)

        def act() -> None:
            for _ in range(times if image.status == "active" else 0):
                self._know(self.cloud.use(image.id, volume_type))
                self.clock.now += 1.0

        self.do(act, pace)

    @precondition(lambda self: self.cloud.images)
    @rule(which=WHICH, volume_type=TYPES, pace=PACES)
    def copy_by_its_owner(self, which: int, volume_type: str, pace: object) -> None:
        image, store = self._image(which), f"cinder-{volume_type}"
        # The internal project's own copies can't be told from ours
        possible = image.status == "active" and not image.import_locked and image.owner != PROJECT
        if possible and store not in (image.stores or ()):
            self.do(lambda: self.cloud.user_copies(image.id, store, project=image.owner), pace)

    @precondition(lambda self: self._leavable())
    @rule(which=WHICH, pace=PACES)
    def leave_file_store_by_its_owner(self, which: int, pace: object) -> None:
        image = pick(self._leavable(), which)
        left = tuple(one for one in self.cloud.locations[image.id] if one.volume_id)
        # What the worker has read of the image's other locations is true no more
        for location in left:
            self.judge.shake(location.volume_id)
        self.judge.kept[image.id].clear()
        self.cloud.locations[image.id] = left
        self.do(lambda: self._change(image, stores=frozenset(one.store for one in left)), pace)

    @precondition(lambda self: self.cloud.images and self.cloud.multiple_locations)
    @rule(which=WHICH, volume_type=TYPES, pace=PACES)
    def add_location_by_its_owner(self, which: int, volume_type: str, pace: object) -> None:
        image = self._image(which)
        if image.status != "active" or image.owner == PROJECT:
            return

        def act() -> None:
            volume = self.cloud.volume_of(image.owner, volume_type=volume_type)
            self._know(volume)
            self.cloud.locate(image.id, f"cinder-{volume_type}", volume.id)

        self.do(act, pace)

    @rule(
        which=WHICH, prefix=st.sampled_from(("image", "warm")), volume_type=TYPES, claims=st.booleans(),
        status=st.sampled_from(("available", "error")), pace=PACES,
    )  # fmt: skip
    def make_foreign_volume(
        self, which: int, prefix: str, volume_type: str, claims: bool, status: str, pace: object
    ) -> None:
        def act() -> None:
            image = self._image(which) if self.cloud.images else None
            image_id = image.id if image else new_id()
            metadata = {
                "glance_image_id": image_id,
                "image_owner": image.owner if image else "alice",
            }
            metadata |= {
                "image_size": str(image.size if image else GIB),
                "readonly": "True",
                TAG: volume_type,
            }
            metadata |= {ORIGIN: "prewarm", FRESH: image.updated_at if image else ""}
            name = f"{prefix}-{image_id}"
            volume = self.cloud.volume_of(
                "mallory",
                name=name,
                volume_type=volume_type,
                status=status,
                metadata=metadata if claims else {},
            )
            self._know(volume)
            self.cloud._announce_volume("volume.create.end", volume)

        self.do(act, pace)

    @precondition(lambda self: self.judge.foreign)
    @rule(which=WHICH, pace=PACES)
    def delete_foreign_volume(self, which: int, pace: object) -> None:
        volume = pick(list(self.judge.foreign.values()), which)
        self.judge.shake(volume.id)
        del self.judge.foreign[volume.id], self.cloud.volumes[volume.id]
        self.do(None, pace)

    # What admins and operators do

    @rule(
        which=WHICH, name=st.sampled_from(("data", "image", "image", "warm", "image of none")), volume_type=TYPES,
        status=st.sampled_from(("available", "available", "error")), pace=PACES,
    )  # fmt: skip
    def make_volume_of_operators_own(
        self, which: int, name: str, volume_type: str, status: str, pace: object
    ) -> None:
        image_id = (
            self._image(which).id if self.cloud.images and name != "image of none" else new_id()
        )
        name = "data" if name == "data" else f"{name.split(maxsplit=1)[0]}-{image_id}"
        volume = self.cloud.volume_of(PROJECT, name=name, volume_type=volume_type, status=status)
        self._know(volume)
        self.do(lambda: self.cloud._announce_volume("volume.create.end", volume), pace)

    @precondition(lambda self: self._image_volumes())
    @rule(
        which=WHICH, deed=st.sampled_from(("delete", "delete", "break", "heal", "attach", "owner", "readonly")),
        pace=PACES,
    )  # fmt: skip
    def meddle(self, which: int, deed: str, pace: object) -> None:
        volume = pick(self._image_volumes(), which)
        self.judge.shake(volume.id)
        changes: dict[str, object] = {
            "break": {"status": "error"},
            "heal": {"status": "available"},
            "attach": {"status": "in-use"},
            "owner": {"metadata": {**volume.metadata, "image_owner": "mallory"}},
            "readonly": {"metadata": {**volume.metadata, "readonly": "False"}},
        }
        if deed in ("owner", "readonly"):
            self.judge.tampered.add(volume.id)

        def act() -> None:
            if deed == "delete":
                del self.cloud.volumes[volume.id]
                self.cloud._announce_volume("volume.delete.end", volume)
            else:
                self.cloud.volumes[volume.id] = replace(volume, **changes[deed])

        self.do(act, pace)

    # What goes wrong

    @rule(
        verb=st.sampled_from(VERBS), error=st.sampled_from(sorted(ERRORS)), times=st.integers(1, 4), done=st.booleans(),
        pace=PACES,
    )  # fmt: skip
    def fault(self, verb: str, error: str, times: int, done: bool, pace: object) -> None:
        self.cloud.faults[verb] = Fault(ERRORS[error], times=times, done=done)
        self.do(None, pace)

    @rule(pace=PACES)
    def glance_lists_nothing(self, pace: object) -> None:
        self.cloud.amnesiac = not self.cloud.amnesiac
        self.do(None, pace)

    @rule(pace=PACES)
    def glance_hides_private_images(self, pace: object) -> None:
        self.cloud.sees_all = not self.cloud.sees_all
        self.do(None, pace)

    @rule(pace=PACES)
    def glance_hides_locations(self, pace: object) -> None:
        self.cloud.hides_locations = not self.cloud.hides_locations
        self.do(None, pace)

    @rule(pace=PACES)
    def glance_deletes_with_a_delay_or_at_once(self, pace: object) -> None:
        self.cloud.delayed = not self.cloud.delayed
        self.do(None, pace)

    @precondition(lambda self: self.cloud.pending)
    @rule(which=WHICH, pace=PACES)
    def restore_an_image_whose_deletion_is_pending(self, which: int, pace: object) -> None:
        image_id = pick(list(self.cloud.pending), which)
        self.cloud.restore_image(image_id)
        self.judge.find([image_id])
        self.do(None, pace)

    @precondition(lambda self: self.cloud.images)
    @rule(which=WHICH, all_of_them=st.booleans(), pace=PACES)
    def glance_loses_images(self, which: int, all_of_them: bool, pace: object) -> None:
        lost = list(self.cloud.images.values()) if all_of_them else [self._image(which)]
        for image in lost:
            self.judge.lose(image)
            self.cloud.lose(image.id)
        self.do(None, pace)

    @precondition(lambda self: self.cloud.lost)
    @rule(pace=PACES)
    def glance_finds_them_again(self, pace: object) -> None:
        found = list(self.cloud.lost)
        self.cloud.find_again()
        self.judge.find(found)
        self.do(None, pace)

    @precondition(lambda self: self._image_volumes())
    @rule(which=WHICH, pace=PACES)
    def somebody_depends_on_a_volume(self, which: int, pace: object) -> None:
        self.cloud.depended_on ^= {pick(self._image_volumes(), which).id}
        self.do(None, pace)

    @precondition(lambda self: self._image_volumes())
    @rule(which=WHICH, pace=PACES)
    def a_backend_refuses_clones_of_a_volume(self, which: int, pace: object) -> None:
        self.cloud.refusing ^= {pick(self._image_volumes(), which).id}
        self.do(None, pace)

    @precondition(lambda self: self.cloud.images)
    @rule(which=WHICH, pace=PACES)
    def all_of_an_image_breaks(self, which: int, pace: object) -> None:
        # One that has locations in cinder stores only, if there is one: that one is lost then
        locations = self.cloud.locations
        fragile = [
            image_id
            for image_id, own in locations.items()
            if len(own) > 1 and all(one.volume_id for one in own)
        ]
        image_id = pick(fragile or list(locations), which)
        volumes = [one for one in self._image_volumes() if one.name == f"image-{image_id}"]
        for volume in volumes:
            if self.cloud.asked_by.get(volume.id) != "cinder":
                self.judge.shake(volume.id)
                self.cloud.volumes[volume.id] = replace(volume, status="error")
        self.do(None, pace)

    @rule(volume_type=TYPES, pace=PACES)
    def backend_dies_and_lives(self, volume_type: str, pace: object) -> None:
        self.cloud.dead_types ^= {volume_type}
        self.do(None, pace)

    @precondition(lambda self: self._image_volumes())
    @rule(which=WHICH, pace=PACES)
    def backend_holds_a_volume(self, which: int, pace: object) -> None:
        self.cloud.held_by_backend ^= {pick(self._image_volumes(), which).id}
        self.do(None, pace)

    @precondition(lambda self: self._located())
    @rule(which=WHICH, pace=PACES)
    def cinder_does_not_find_a_location_for_a_while(self, which: int, pace: object) -> None:
        """As after a failover to a replica of its database that lags behind."""
        self.cloud.elsewhere = {pick(self._located(), which)}
        self.do(None, pace)
        self.runner.run(self._resync())
        self.do(None, pace)
        self.cloud.elsewhere = set()

    @rule(left=st.sampled_from((0, 2, None, None)), pace=PACES)
    def quota(self, left: int | None, pace: object) -> None:
        used = sum(volume.size for volume in self.cloud.volumes.values() if not volume.foreign)
        self.cloud.quota = None if left is None else used + left
        self.do(None, pace)

    @rule(pace=PACES)
    def notifications_are_lost_and_come(self, pace: object) -> None:
        self.deaf = not self.deaf
        self._listen()
        self.do(None, pace)

    @rule(pace=PACES)
    def crash(self, pace: object) -> None:
        self.runner.run(self._crash())
        self.do(None, pace)

    @rule(setup=SETUPS, pace=PACES)
    def configure(self, setup: dict[str, object], pace: object) -> None:
        self.runner.run(self._configure(self._setup(setup)))
        self.do(None, pace)

    # What the worker does

    @rule(pace=PACES)
    def resync(self, pace: object) -> None:
        self.runner.run(self._resync())
        self.do(None, pace)

    @rule(hours=st.sampled_from((0.1, 1.1, 6.1)), pace=PACES)
    def time_passes(self, hours: float, pace: object) -> None:
        self.clock.now += hours * HOUR
        self.do(None, pace)

    @rule(pace=PACES)
    def work(self, pace: object) -> None:
        self.do(None, pace)

    @invariant()
    def all_is_well(self) -> None:
        if not hasattr(self, "judge"):
            return
        self.failed = True
        self.judge.check()
        self._check_letters()
        self.failed = False
        self.judge.look(quiet=not self.rig.busy)

    def teardown(self) -> None:
        try:
            if hasattr(self, "rig") and not self.failed:
                self.runner.run(self._converge())
            if hasattr(self, "rig"):
                self.runner.run(self.rig.crash())
        finally:
            self.runner.close()

    # How it is done

    def do(self, act: Callable[[], object] | None, pace: object) -> None:
        """One step: somebody acts, in an instant, then the worker gets so far."""
        self.failed = True
        if act:
            # Nobody else's turn comes between what the rule has looked at and what it does
            asyncio.events._set_running_loop(self.runner.get_loop())
            try:
                act()
            finally:
                asyncio.events._set_running_loop(None)

        async def step() -> None:
            match pace:
                case int(turns):
                    for _ in range(turns):
                        await asyncio.sleep(0)
                case float(seconds):
                    await asyncio.sleep(seconds)
                case _:
                    await self.rig.rest(step=1.0, most=60.0, due=10.0)

        self.runner.run(step())
        self.failed = False

    async def _start(self) -> None:
        setup = self.judge.setup
        self.rig = Rig(
            self.cloud,
            targets=setup.targets,
            policy=setup.policy,
            uploads=UPLOADS,
            reclaiming=setup.reclaiming,
            limits=LIMITS,
            backoff=BACKOFF,
        )
        await self.rig.__aenter__()
        self._listen()

    async def _crash(self) -> None:
        await self.rig.crash()
        await self._start()

    async def _configure(self, setup: Setup) -> None:
        await self.rig.__aexit__()
        self.judge.look(quiet=True)
        self.judge.setup = setup
        await self._start()
        await self._resync()

    async def _resync(self) -> None:
        # The daemon would try again; so does this history, sooner or later
        with contextlib.suppress(Temporary, Blocked, NotFound):
            await self.rig.resync()

    async def _converge(self) -> None:
        """Nothing is in the way any more: what comes of it?"""
        cloud, judge = self.cloud, self.judge
        cloud.faults.clear()
        cloud.dead_types.clear()
        cloud.held_by_backend.clear()
        cloud.depended_on.clear()
        cloud.amnesiac, cloud.sees_all, cloud.quota, self.deaf = False, True, None, False
        cloud.hides_locations = False
        # Without one nobody can tell whether Glance shows everything
        cloud.upload(visibility="private", owner="alice")
        self._listen()
        for volume in self._image_volumes():
            if volume.status == "in-use":
                cloud.volumes[volume.id] = replace(volume, status="available")
        # What somebody has undone twice is tried again a day later
        self.clock.now += 24.1 * HOUR
        before: object = None
        for _ in range(ROUNDS):
            await self.rig.resync()
            await self.rig.rest(step=5.0, most=2 * HOUR, due=HOUR)
            judge.check()
            self._check_letters()
            judge.look(quiet=not self.rig.busy)
            # Parked jobs are looked at again only then, and what was left behind is old enough to
            # go
            self.clock.now += 6.1 * HOUR
            # The looks for what the brake keeps are renewed for ever: only their time changes
            volumes = {one.id: _untimed(one) for one in cloud.volumes.values()}
            now = (volumes, dict(cloud.locations))
            if now == before:
                break
            before = now
        else:
            raise AssertionError(f"it does not come to rest within {ROUNDS} resyncs")
        assert not (wrong := list(judge.verdicts())), "in the end: " + "; ".join(wrong)
        if not all(
            cloud.has_data(image.id) for image in cloud.images.values() if image.status == "active"
        ):
            # What can't be read is tried again, as often as any job that fails
            return
        # While nothing changes nothing is downloaded
        downloads = cloud.calls["create_volume"] + cloud.calls["copy_image"]
        await self.rig.resync()
        await self.rig.rest(step=5.0, most=2 * HOUR, due=HOUR)
        again = cloud.calls["create_volume"] + cloud.calls["copy_image"] - downloads
        assert not again, f"{again} more downloads though nothing has changed"

    def _setup(self, drawn: dict[str, object]) -> Setup:
        targets = tuple(
            replace(
                target,
                strategy=self.kinds[target.name],
                glance_store="" if self.kinds[target.name] == "cache" else f"cinder-{target.name}",
                max_count=drawn["max_count"],
                max_gigabytes=drawn["max_gigabytes"],
            )
            for target in (FAST, SLOW)
            if target.name in drawn["targets"]
        )
        policy = replace(POLICY, when=drawn["when"])
        if drawn["public_only"]:
            policy = replace(policy, visibilities=frozenset({"public"}))
        if drawn["without_bob"]:
            policy = replace(policy, exclude_projects=frozenset({"bob"}))
        reclaiming = Reclaiming(
            enabled=drawn["reclaiming"] != "off",
            dry_run=drawn["reclaiming"] == "dry run",
            max_at_once=drawn["max_at_once"],
            max_share=0.0,
        )
        return Setup(targets=targets, policy=policy, reclaiming=reclaiming)

    def _listen(self) -> None:
        self.cloud.emit = (lambda _: None) if self.deaf else self.rig.hear

    def _check_letters(self) -> None:
        for letter in self.rig.lanes.dead_letters():
            assert not letter.traceback, f"a handler has failed: {letter.traceback}"

    def _image(self, which: int) -> Image:
        return pick(list(self.cloud.images.values()), which)

    def _leavable(self) -> list[Image]:
        """Images with data in the file store, and whole elsewhere."""
        found = []
        for image in self.cloud.images.values():
            locations = self.cloud.locations[image.id]
            elsewhere = any(one.volume_id and self.cloud.is_whole(one) for one in locations)
            if (
                image.status == "active"
                and elsewhere
                and any(not one.volume_id for one in locations)
            ):
                found.append(image)
        return found

    def _located(self) -> list[str]:
        """The volumes of the internal project that are locations of images."""
        located = {one.volume_id for own in self.cloud.locations.values() for one in own}
        return [volume.id for volume in self._image_volumes() if volume.id in located]

    def _image_volumes(self) -> list[Volume]:
        """What is kept for images, and is not being made."""
        return [
            volume
            for volume in self.cloud.volumes.values()
            if volume.name.startswith(("image-", "warm-")) and not volume.foreign
            if volume.id not in self.judge.operators
            and volume.status in ("available", "in-use", "error")
        ]

    def _know(self, volume: Volume) -> None:
        """It is somebody's own volume."""
        (self.judge.foreign if volume.foreign else self.judge.operators)[volume.id] = volume

    def _change(self, image: Image, **changes: object) -> None:
        self.cloud.touch(image.id, **changes)
        self.cloud.announce("image.update", image.id)


def _untimed(volume: Volume) -> Volume:
    """The volume without the time of the last look, if its image is proven to be gone."""
    if not absence.absence_of(volume).is_proven:
        return volume
    proven = {**volume.metadata, MISSING: "proven"}
    return replace(volume, metadata=proven, updated_epoch=0.0)


def pick(things: list, which: int):
    """One of them, whatever the number."""
    return things[which % len(things)]


@pytest.fixture
def silence() -> Iterator[None]:
    """No log lines: writing them takes more time than all the rest."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.configure(**before)


def test_histories(
    monkeypatch: pytest.MonkeyPatch, tmp_path, request: pytest.FixtureRequest, silence: None
) -> None:
    clock = Clock()
    for name in TIMED:
        monkeypatch.setattr(importlib.import_module(name), "time", clock)
    set_hypothesis_home_dir(tmp_path)
    machine = type("Histories", (Histories,), {"clock": clock})
    given = request.config.getoption("--hypothesis-seed", default=None)
    seed = os.environ.get("HISTORIES_SEED") or given or SEED
    seed = random.SystemRandom().randrange(1 << 32) if seed == "new" else int(seed)
    hypothesis.seed(seed)(machine)
    how = settings(
        max_examples=int(os.environ.get("HISTORIES", "3000" if os.environ.get("LONG") else "300")),
        stateful_step_count=50,
        deadline=None,
        database=None,
        derandomize=False,
        print_blob=True,
        report_multiple_bugs=False,
        phases=(Phase.generate, Phase.shrink)
        if os.environ.get("HISTORIES_SHRINK") != "0"
        else (Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    try:
        run_state_machine_as_test(machine, settings=how)
    except BaseException as error:
        error.add_note(f"HISTORIES_SEED={seed} repeats it")
        raise
    finally:
        set_hypothesis_home_dir(None)
