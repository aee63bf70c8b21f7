"""The assembly: the only module that knows handlers and brokers both. Starts everything, and ends
it in order."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import entry_points
from typing import Any

import structlog

from handlers import image_volume, policy, target_store
from handlers.target_store import missing_type, read_encryption
from worker.broker.intake import RabbitIntake
from worker.broker.lanes import RabbitLanes
from worker.broker.link import hung
from worker.broker.memory import MemoryLanes
from worker.core.deletions import Deletions
from worker.core.errors import Blocked, Malformed, Misconfigured, NotFound, Temporary
from worker.core.handler import Handler, HandlerFactory, Parts, Targeted
from worker.core.intake import Intake
from worker.core.lanes import Lanes
from worker.core.target import Target
from worker.core.uses import Uses
from worker.engine.creations import find_ways
from worker.engine.dispatcher import Dispatcher
from worker.engine.resync import Census, compare, count, enqueue
from worker.engine.retry import Backoff, Pace
from worker.engine.router import Router
from worker.engine.runner import Runner
from worker.engine.tasks import Tasks
from worker.observe.activity import Choice
from worker.observe.creations import Creations
from worker.observe.http import Page, Probes
from worker.observe.metrics import Metrics, release
from worker.observe.systemd import READY, WATCHDOG, extend, notify, status
from worker.observe.web import listen, shown
from worker.openstack.cloud import OpenStackCloud
from worker.openstack.login import connect, count_keystone
from worker.settings import Settings

log = structlog.get_logger(__name__)

HANDLERS = "image_volume_worker.handlers"
# Seconds between looks at depths; at the cloud; and at a cloud that was away
TICK = 1.0
PING = 30.0
AWAY = 5.0
# Seconds between two counts of images by state, at least; they may take a fiftieth of the time
COUNT = 15.0
COUNT_SHARE = 50
# The same for Image-Volumes, which are counted by a listing
CENSUS = 60.0
# The loop has not turned for so long: it hangs
STUCK = 30.0
# How long systemd is asked to wait on, from each look on, while jobs in progress end
PATIENCE = 15.0
START = "start"
# How soon a gap in the intake may lead to the next comparison: each lists the whole cloud, and each
# replica makes one
GAPS = Backoff(shortest=5.0, longest=120.0)
# Requests at once that are kept for uploads, besides [cloud] api_concurrency
RESERVED = 8


@dataclass(frozen=True, slots=True)
class Clouds:
    """The cloud, and the same one by threads of its own for what users sit and wait for."""

    common: OpenStackCloud
    urgent: OpenStackCloud

    def close(self) -> None:
        """Let go of threads and connections."""
        self.common.close()
        self.urgent.close()


def build_parts(settings: Settings, clouds: Clouds, metrics: Metrics) -> Parts:
    """The parts that handlers are built from; nothing has been heard yet."""
    return Parts(
        cloud=clouds.common,
        urgent=clouds.urgent,
        targets=settings.targets,
        policy=settings.policy,
        uploads=settings.uploads,
        reclaiming=settings.reclaiming,
        uses=Uses(),
        deletions=Deletions(),
        now=time.time,
        report=metrics,
    )


def build_handlers(settings: Settings, parts: Parts) -> dict[str, Handler]:
    """The handlers that are installed and not switched off, by name."""
    factories: list[HandlerFactory] = [entry.load() for entry in entry_points(group=HANDLERS)]
    handlers = (factory(parts) for factory in factories)
    return {
        handler.name: handler for handler in handlers if handler.name not in settings.switched_off
    }


def build_clouds(settings: Settings, metrics: Metrics) -> Clouds:
    """The cloud of the settings; nothing has been asked of it yet."""
    connection = connect(
        name=settings.cloud_name,
        timeout=settings.api_timeout,
        concurrency=settings.api_concurrency + RESERVED,
    )
    count_keystone(connection, metrics)

    def cloud(concurrency: int) -> OpenStackCloud:
        return OpenStackCloud(
            connection=connection,
            metrics=metrics,
            concurrency=concurrency,
            admin_role=settings.admin_role,
            timeout=settings.api_timeout,
        )

    return Clouds(cloud(settings.api_concurrency), cloud(RESERVED))


def build_lanes(settings: Settings) -> Lanes:
    """The lanes of the settings, not open yet."""
    if settings.work_url == "memory://":
        return MemoryLanes()
    return RabbitLanes(url=settings.work_url, queue=settings.queue)


def build_intakes(settings: Settings) -> list[Intake]:
    """One intake for each transport URL."""
    if settings.driver == "oslo":
        # oslo.messaging takes a second and 30 MB to import, for nothing where the broker is
        # RabbitMQ
        from worker.broker.oslo import OsloIntake  # noqa: PLC0415

        return [
            OsloIntake(
                url=url,
                exchanges=settings.exchanges,
                topics=settings.topics,
                priorities=settings.priorities,
                pool=settings.queue,
                config_files=settings.config_files,
                config_dirs=settings.config_dirs,
            )
            for url in settings.transport_urls
        ]
    return [
        RabbitIntake(
            url=url,
            exchanges=settings.exchanges,
            topics=settings.topics,
            priorities=settings.priorities,
            queue=settings.queue,
            queue_type=settings.queue_type,
            queue_max_length=settings.queue_max_length,
            queue_expires=settings.queue_expires,
            prefetch=settings.prefetch,
        )
        for url in settings.transport_urls
    ]


@dataclass(frozen=True, slots=True)
class Found:
    """Targets as the cloud has them: names by volume type id, and reasons why some can't be used,
    by name."""

    targets: Mapping[str, str]
    unusable: Mapping[str, str]


async def check_cloud(cloud: OpenStackCloud, settings: Settings) -> Found:
    """Compare the configuration with the cloud; Misconfigured when nothing can be done with it.

    A target whose volume type is gone, or encrypted, is that target's trouble: the others and
    uploads go on. It is a fault of the configuration only if none can be used, as with a name that
    was mistyped in the only target.
    """
    identity = await cloud.identity()
    faults = []
    if not await cloud.has_admin_role():
        faults.append(
            f"[cloud] the login has no role {settings.admin_role} in project {identity.project_id}"
        )
    types = await cloud.list_volume_types()
    encryption = await read_encryption(cloud, types, settings.targets)
    unusable = {
        target.name: why
        for target in settings.targets
        if (why := _unusable(target, types, encryption))
    }
    if len(unusable) == len(settings.targets):
        faults += unusable.values()
    if faults:
        raise Misconfigured(faults)
    # What Glance lacks today may be there tomorrow: it is named, and no reason not to start
    stores = await cloud.list_stores()
    for target in settings.targets:
        if target.name not in unusable:
            try:
                target_store.resolve(target, stores)
            except Blocked as error:
                unusable[target.name] = str(error)
    ids = {name: type_id for type_id, name in types.items()}
    there = (target for target in settings.targets if target.volume_type in ids)
    return Found({ids[target.volume_type]: target.name for target in there}, unusable)


def _unusable(
    target: Target, types: Mapping[str, str], encryption: Mapping[str, bool | None]
) -> str:
    """Reason why a target can't be used; "" if it can."""
    if why := missing_type(target, types.values()):
        return why
    return policy.encrypted_type(target) if encryption.get(target.volume_type) else ""


async def check_locations(cloud: OpenStackCloud, settings: Settings) -> str:
    """Why no Image-Volume can be kept that is a location; "" if Glance shows locations, or no
    target needs them."""
    stores = await cloud.list_stores()
    for target in settings.targets:
        try:
            needed = target_store.resolve(target, stores).strategy != "cache"
        except Blocked:
            continue
        if needed and not await cloud.shows_locations():
            return (
                "Glance does not show this login the locations of images: give it the role "
                "service, or before Glance "
                "2.17 set show_multiple_locations"
            )
    return ""


def check_bind(settings: Settings, *, proven: Settings) -> None:
    """Misconfigured if the address of the HTTP port can't be had. Blocks; `proven` has the address
    served now.

    Of the port served now, on other addresses, that shows only once it is let go: then the next
    daemon finds out.
    """
    if settings.bind is None or settings.bind == proven.bind:
        return
    try:
        sockets = listen(*settings.bind)
    except OSError as error:
        if proven.bind is not None and proven.bind[1] == settings.bind[1]:
            return
        raise _not_bound(settings.bind, error) from error
    for one in sockets:
        one.close()


def _not_bound(address: tuple[str, int], error: OSError) -> Misconfigured:
    return Misconfigured([f"[probes] bind: {shown(address)}: {error.strerror or error}"])


class Daemon:
    """One running worker."""

    def __init__(
        self,
        *,
        settings: Settings,
        metrics: Metrics,
        census_every: float = CENSUS,
        refused: str = "",
    ) -> None:
        """`refused`: what systemd is to tell, besides, of the last reload."""
        self._settings = settings
        self._refused = refused
        self._census_every = census_every
        self._metrics = metrics
        self._clouds = build_clouds(settings, metrics)
        self._cloud = self._clouds.common
        parts = replace(build_parts(settings, self._clouds, metrics), keeps_order=True)
        self._uses = parts.uses
        self._handlers = build_handlers(settings, parts)
        self._lanes = build_lanes(settings)
        self._intakes = build_intakes(settings)
        self._creations = Creations(metrics=metrics)
        self._runner = Runner(
            lanes=self._lanes,
            handlers=self._handlers,
            limits=settings.limits,
            backoff=settings.backoff,
            metrics=metrics,
            uses=parts.uses,
            deletions=parts.deletions,
        )
        self._tasks = Tasks(metrics=metrics)
        self._resync_wanted = asyncio.Event()
        self._resync_why = ""
        self._ticked = time.monotonic()
        self._draining = False
        metrics.begin(target.name for target in settings.targets)
        self._pace = Pace(GAPS)
        self._left_out = frozenset[str]()
        self._known = False
        self._answered = 0.0
        self._unusable: Mapping[str, str] = {}
        self._fault = ""
        self._blind = ""
        self._told = ""
        self._seen_once = asyncio.Event()
        self._lanes_opened = asyncio.Event()

    async def run(self, leave: asyncio.Event) -> None:
        """Work until `leave` is set, then drain. Misconfigured if the cloud is there and says that
        it can't work."""
        probes = Probes(
            registry=self._metrics.registry,
            sick=self._sick,
            unready=self._unready,
            page=Page(status=self._status, images=self._images, volume=self._creations.document),
            hidden=not self._settings.page,
        )
        # From the beginning to the end: a cloud that does not answer, and jobs that take long to
        # end, are no loop that hangs
        ticking = self._tasks.begin("tick", self._tick)
        measuring = self._tasks.begin("measure", self._measure)
        try:
            if self._settings.bind:
                try:
                    # Not on the event loop: it may look up a name
                    await asyncio.to_thread(probes.start, *self._settings.bind)
                except OSError as error:
                    raise _not_bound(self._settings.bind, error) from error
            await self._preflight(leave)
            if not leave.is_set():
                await self._work(leave, ticking)
        finally:
            ticking.cancel()
            measuring.cancel()
            await asyncio.gather(ticking, measuring, return_exceptions=True)
            await asyncio.to_thread(probes.stop)
            self._clouds.close()
            log.info("stopped")

    async def _work(self, leave: asyncio.Event, ticking: asyncio.Task[None]) -> None:
        router = Router(
            handlers=self._handlers.values(), metrics=self._metrics, creations=self._creations
        )
        dispatcher = Dispatcher(
            router=router, queue=self._runner.queue, lanes=self._lanes, on_gap=self._want_resync
        )
        if self._settings.resync_on_start:
            self._want_resync(START)
        intakes = [
            self._tasks.begin(f"intake-{number}", partial(self._listen, intake, dispatcher))
            for number, intake in enumerate(self._intakes)
        ]
        others = [
            self._tasks.begin("cloud", self._watch_cloud),
            self._tasks.begin("lanes", self._serve),
            self._tasks.begin("resync", partial(self._resync_when_wanted, dispatcher)),
            self._tasks.begin("census", self._keep_census),
            self._tasks.begin("creations", partial(find_ways, self._creations, self._targeted())),
        ]
        stop = asyncio.create_task(leave.wait())
        log.info(
            "started",
            targets=[target.name for target in self._settings.targets],
            lanes=list(self._runner.queue.lanes),
        )
        try:
            # A task that fails begins again; one that ends has found a configuration that can't
            # work
            done, _ = await asyncio.wait(
                [stop, ticking, *intakes, *others], return_when=asyncio.FIRST_COMPLETED
            )
            for task in done - {stop}:
                task.result()
        finally:
            self._draining = True
            log.info("draining", in_progress=self._runner.queue.in_progress)
            for tasks in (intakes, [*others, stop]):
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            await self._runner.drain()
            await self._lanes.close()

    async def _preflight(self, leave: asyncio.Event) -> None:
        """Find out what the cloud makes of the configuration, if it is there; not beyond
        `leave`."""
        checking = asyncio.create_task(check_cloud(self._cloud, self._settings))
        leaving = asyncio.create_task(leave.wait())
        await asyncio.wait([checking, leaving], return_when=asyncio.FIRST_COMPLETED)
        leaving.cancel()
        if not checking.done():
            checking.cancel()
            return
        try:
            self._cloud_is_there(checking.result())
            await self._look_at_locations()
        except (Temporary, Blocked, NotFound, Malformed) as error:
            self._cloud_is_away(str(error))
        except Misconfigured:
            raise
        except Exception as error:
            # What nobody has thought of is no reason not to start: the supervised look at the cloud
            # asks again
            log.exception("cloud_not_looked_at")
            self._cloud_is_away(repr(error))

    async def _tick(self) -> None:
        """Once a second: note that the loop turns."""
        while True:
            self._ticked = time.monotonic()
            self._tell_manager()
            self._runner.queue.tidy()
            await asyncio.sleep(TICK)

    async def _measure(self) -> None:
        """Once a second take over depths; now and then, images by state. What has to look at all
        jobs does so on a thread: the loop has others to serve."""
        count_at = time.monotonic() + COUNT
        while True:
            await asyncio.to_thread(self._count_jobs, self._lanes.depths())
            if free := {lane for lane in self._left_out if self._lanes.knows(lane)}:
                self._left_out -= free
                self._want_resync(
                    f"nothing of another worker's waits any more in {', '.join(sorted(free))}"
                )
            if (began := time.monotonic()) > count_at:
                await asyncio.to_thread(self._metrics.states)
                count_at = time.monotonic() + max(COUNT, COUNT_SHARE * (time.monotonic() - began))
            await asyncio.sleep(TICK)

    def _count_jobs(self, depths: Mapping[str, int]) -> None:
        self._metrics.depths(depths, self._runner.queue.waiting())

    async def _watch_cloud(self) -> None:
        """Is the cloud there? Now and then, sooner while it is away."""
        while True:
            await asyncio.sleep(PING if self._known else AWAY)
            await self._look_at_cloud()

    def _tell_manager(self) -> None:
        """Let systemd know whether all loops turn, and what is missing or done."""
        if not hung():
            notify(WATCHDOG)
        problems = self._unready()
        self._metrics.ready.set(not problems)
        if self._draining:
            # As long as [work] drain_timeout allows; the status is told by who has ended it
            notify(extend(PATIENCE))
            return
        parts = [f"{part}: {problem}" for part, problem in problems.items()] or ["ready"]
        told = status("; ".join([*parts, self._refused] if self._refused else parts))
        if told != self._told:
            self._told = told
            notify(told if problems else f"{READY}\n{told}")

    async def _look_at_cloud(self) -> None:
        try:
            self._cloud_is_there(await check_cloud(self._cloud, self._settings))
            await self._look_at_locations()
        except Misconfigured as error:
            # At start that ends the process; now somebody may be working on the cloud
            self._cloud_is_away(str(error))
        except (Temporary, Blocked, NotFound, Malformed) as error:
            self._cloud_is_away(str(error))

    async def _look_at_locations(self) -> None:
        """Whether Glance shows where data lies: without that, nothing may be changed or deleted
        that is a location."""
        blind = await check_locations(self._cloud, self._settings)
        if blind and not self._blind:
            log.warning("locations_hidden", error=blind)
        if self._blind and not blind:
            # Images that were looked at meanwhile would wait for a quarter of an hour
            log.info("locations_shown")
            self._want_resync("Glance shows locations again")
        self._blind = blind

    def _cloud_is_there(self, found: Found) -> None:
        if not self._known and self._fault:
            log.info("cloud_back")
        self._creations.know(found.targets)
        self._uses.know(found.targets)
        self._name_unusable(found.unusable)
        self._known, self._fault = True, ""
        self._answered = time.monotonic()
        self._seen_once.set()

    def _name_unusable(self, unusable: Mapping[str, str]) -> None:
        """Say which targets can't be used, once each; what is missing on one that can be again is
        looked for."""
        before, self._unusable = self._unusable, unusable
        for target in self._settings.targets:
            why = unusable.get(target.name, "")
            self._metrics.target_usable.labels(target.name).set(not why)
            if why and why != before.get(target.name):
                log.error("target_unusable", target=target.name, error=why)
            elif target.name in before and not why:
                log.info("target_usable", target=target.name)
                self._want_resync(f"target {target.name} can be used again")

    def _cloud_is_away(self, why: str) -> None:
        if self._known or not self._fault:
            log.warning("cloud_away", error=why)
        self._known, self._fault = False, why

    def _want_resync(self, reason: str) -> None:
        self._resync_why = reason
        self._resync_wanted.set()

    async def _listen(self, intake: Intake, dispatcher: Dispatcher) -> None:
        """Take in notifications once the cloud has been seen: until then their jobs would only pile
        up in the lanes.

        What is missed until then is made up for by the comparison that follows each opening of an
        intake.
        """
        await self._seen_once.wait()
        await intake.run(dispatcher)

    async def _serve(self) -> None:
        """Take jobs once the cloud has been seen: a worker that can't log in would only set them
        aside."""
        await self._seen_once.wait()
        await self._lanes.open(
            self._runner.queue.prefetch, self._runner.queue.deliver, self._runner.queue.lose
        )
        self._lanes_opened.set()
        await asyncio.get_running_loop().create_future()

    async def _resync_when_wanted(self, dispatcher: Dispatcher) -> None:
        await self._lanes_opened.wait()
        backoff = self._settings.backoff
        failures = 0
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.resync_interval):
                    await self._resync_wanted.wait()
            # The intakes open at the same time as the first one begins, and what they missed until
            # then is to be found
            if self._resync_wanted.is_set() and self._resync_why != START:
                await asyncio.sleep(self._pace.wait(time.monotonic()))
                self._pace.began(time.monotonic())
            why = self._resync_why or "interval"
            self._resync_wanted.clear()
            self._resync_why = ""
            done = False
            try:
                await self._resync(dispatcher, why)
                failures, done = 0, True
            except (Temporary, Blocked, NotFound, Malformed) as error:
                wait = backoff.after(failures)
                failures += 1
                log.warning("resync_failed", error=str(error), after=round(wait, 1))
                await asyncio.sleep(wait)
            finally:
                # Also after a failure that begins this task again: what led to the comparison is
                # still open
                if not done:
                    self._want_resync(why)

    async def _resync(self, dispatcher: Dispatcher, why: str) -> None:
        began = time.monotonic()
        self._metrics.activity.comparing()
        census = Census()
        found = compare(
            self._cloud, self._handlers.values(), image_of=image_volume.image_of, census=census
        )
        total, left = await enqueue(found, submit=dispatcher.submit, knows=self._lanes.knows)
        self._left_out = frozenset(left)
        if left:
            log.info("resync_left_out", keys=dict(left), why="jobs of another worker's wait there")
        self._metrics.last_resync.set_to_current_time()
        self._metrics.activity.compared()
        self._metrics.census(census.volumes, census.sizes)
        log.info(
            "resynced",
            why=why,
            images=census.images,
            incomplete=total,
            seconds=round(time.monotonic() - began, 2),
        )

    async def _keep_census(self) -> None:
        """Count the Image-Volumes between two comparisons too."""
        await self._seen_once.wait()
        pause = self._census_every
        while True:
            await asyncio.sleep(pause)
            pause = await self._take_census()

    async def _take_census(self) -> float:
        """Count the Image-Volumes now; the seconds until the next count. One that fails leaves what
        is known."""
        began = time.monotonic()
        try:
            census = await count(self._cloud, image_of=image_volume.image_of)
            self._metrics.census(census.volumes, census.sizes)
        except (Temporary, Blocked, NotFound, Malformed) as error:
            # Who watches the cloud says so
            log.debug("census_failed", error=str(error))
        return max(self._census_every, COUNT_SHARE * (time.monotonic() - began))

    def _status(self, most: float) -> Mapping[str, Any]:
        targeted = self._targeted()
        decided = {target.name: target for handler in targeted for target in handler.resolved}
        targets = (decided.get(one.name, one) for one in self._settings.targets)
        unusable = {name: why for handler in targeted for name, why in handler.unusable.items()}
        status = self._metrics.activity.status(
            targets=targets,
            lanes=self._runner.queue.lanes,
            depths=self._lanes.depths(),
            most=most,
            unusable={**unusable, **self._unusable},
        )
        held_back = [one for handler in targeted for one in handler.held_back()]
        full = {name: why for handler in targeted for name, why in handler.full().items()}
        learned = {name: sets for handler in targeted for name, sets in handler.learned().items()}
        return {
            "version": release(),
            **status,
            "held_back": held_back,
            "cache_full": full,
            "cloned_from": learned,
        }

    def _targeted(self) -> list[Targeted]:
        return [handler for handler in self._handlers.values() if isinstance(handler, Targeted)]

    def _images(self, choice: Choice) -> Mapping[str, Any]:
        return self._metrics.activity.images(
            (target.name for target in self._settings.targets), choice
        )

    def _sick(self) -> Mapping[str, str]:
        late = time.monotonic() - self._ticked
        return hung() | ({"loop": f"has not turned for {late:.0f} s"} if late > STUCK else {})

    def _unready(self) -> Mapping[str, str]:
        problems = {**self._tasks.problems(), **self._sick()}
        if not self._known:
            problems["cloud"] = self._fault or "not asked yet"
        elif (silent := time.monotonic() - self._answered) > PING + 2 * self._settings.api_timeout:
            problems["cloud"] = f"has not answered for {silent:.0f} s"
        elif self._blind:
            problems["locations"] = self._blind
        if self._seen_once.is_set():
            # Until then these wait for the cloud
            for number, intake in enumerate(self._intakes):
                if problem := intake.problem():
                    problems[f"intake-{number}"] = problem
            if problem := self._lanes.problem():
                problems["lanes"] = problem
        return problems
