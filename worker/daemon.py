"""The assembly: the only module that knows handlers and brokers both. Starts everything, and ends it in order."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

import structlog

from handlers import image_volume, policy, target_store
from handlers.prewarm import Prewarm
from handlers.target_store import missing_type, read_encryption
from worker.deletions import Deletions
from worker.dispatcher import Dispatcher
from worker.errors import Blocked, Malformed, Misconfigured, NotFound, Temporary
from worker.handler import Handler, HandlerFactory, Parts
from worker.intake import Intake
from worker.intake.rabbit import RabbitIntake
from worker.job import Job
from worker.lanes import Lanes
from worker.lanes.memory import MemoryLanes
from worker.lanes.rabbit import RabbitLanes
from worker.link import hung
from worker.manager import READY, WATCHDOG, extend, notify
from worker.metrics import Metrics, release
from worker.probes import Page, Probes
from worker.resync import Census, compare, job_of
from worker.router import Router
from worker.runner import Runner
from worker.sdk import OpenStackCloud, connect, count_keystone
from worker.settings import Settings
from worker.target import Target
from worker.uses import Uses
from worker.volume_times import VolumeTimes

log = structlog.get_logger(__name__)

HANDLERS = "image_volume_worker.handlers"
# Seconds between looks at depths; at the cloud; and at a cloud that was away
TICK = 1.0
PING = 30.0
# Seconds between two counts of images by state, at least; they may take a fiftieth of the time
COUNT = 15.0
COUNT_SHARE = 50
AWAY = 5.0
# The loop has not turned for so long: it hangs
STUCK = 30.0
# How long systemd is asked to wait on, from each look on, while jobs in progress end
PATIENCE = 15.0
# Jobs handed to the lanes at once by a resync
BATCH = 500
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
    return {handler.name: handler for handler in handlers if handler.name not in settings.switched_off}


def build_clouds(settings: Settings, metrics: Metrics) -> Clouds:
    """The cloud of the settings; nothing has been asked of it yet."""
    connection = connect(
        name=settings.cloud_name, timeout=settings.api_timeout, concurrency=settings.api_concurrency + RESERVED
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
        # oslo.messaging takes a second and 30 MB to import, for nothing where the broker is RabbitMQ
        from worker.intake.oslo import OsloIntake  # noqa: PLC0415

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
    """Targets as the cloud has them: names by volume type id, and reasons why some can't be used, by name."""

    targets: Mapping[str, str]
    unusable: Mapping[str, str]


async def check_cloud(cloud: OpenStackCloud, settings: Settings) -> Found:
    """Compare the configuration with the cloud; Misconfigured when nothing can be done with it.

    A target whose volume type is gone, or encrypted, is that target's trouble: the others and uploads go on. It is a
    fault of the configuration only if none can be used, as with a name that was mistyped in the only target.
    """
    identity = await cloud.identity()
    faults = []
    if not await cloud.has_admin_role():
        faults.append(f"[cloud] the login has no role {settings.admin_role} in project {identity.project_id}")
    types = await cloud.list_volume_types()
    encryption = await read_encryption(cloud, types, settings.targets)
    unusable = {target.name: why for target in settings.targets if (why := _unusable(target, types, encryption))}
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


def _unusable(target: Target, types: Mapping[str, str], encryption: Mapping[str, bool | None]) -> str:
    """Reason why a target can't be used; "" if it can."""
    if why := missing_type(target, types.values()):
        return why
    return policy.encrypted_type(target) if encryption.get(target.volume_type) else ""


async def check_locations(cloud: OpenStackCloud, settings: Settings) -> str:
    """Why no Image-Volume can be kept that is a location; "" if Glance shows locations, or no target needs them."""
    stores = await cloud.list_stores()
    for target in settings.targets:
        try:
            needed = target_store.resolve(target, stores).strategy != "cache"
        except Blocked:
            continue
        if needed and not await cloud.shows_locations():
            return (
                "Glance does not show this login the locations of images: give it the role service, or before Glance "
                "2.17 set show_multiple_locations"
            )
    return ""


class Daemon:
    """One running worker."""

    def __init__(self, *, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._clouds = build_clouds(settings, metrics)
        self._cloud = self._clouds.common
        parts = build_parts(settings, self._clouds, metrics)
        self._uses = parts.uses
        self._handlers = build_handlers(settings, parts)
        self._lanes = build_lanes(settings)
        self._intakes = build_intakes(settings)
        self._times = VolumeTimes(metrics=metrics)
        self._runner = Runner(
            lanes=self._lanes,
            handlers=self._handlers,
            limits=settings.limits,
            backoff=settings.backoff,
            metrics=metrics,
            uses=parts.uses,
            deletions=parts.deletions,
        )
        self._resync_wanted = asyncio.Event()
        self._resync_why = ""
        self._ticked = time.monotonic()
        self._draining = False
        metrics.begin(target.name for target in settings.targets)
        self._known = False
        self._answered = 0.0
        self._unusable: Mapping[str, str] = {}
        self._fault = ""
        self._blind = ""
        self._told = ""
        self._seen_once = asyncio.Event()

    async def run(self, leave: asyncio.Event) -> None:
        """Work until `leave` is set, then drain. Misconfigured if the cloud is there and says that it can't work."""
        probes = Probes(
            registry=self._metrics.registry,
            sick=self._sick,
            unready=self._unready,
            page=Page(status=self._status, images=self._images),
            hidden=not self._settings.page,
        )
        # From the beginning to the end: a cloud that does not answer, and jobs that take long to end, are no loop that
        # hangs
        ticking = asyncio.create_task(self._tick())
        try:
            if self._settings.bind:
                try:
                    probes.start(*self._settings.bind)
                except OSError as error:
                    address = ":".join(map(str, self._settings.bind))
                    raise Misconfigured([f"[probes] bind: {address}: {error.strerror or error}"]) from error
            await self._preflight(leave)
            if not leave.is_set():
                await self._work(leave, ticking)
        finally:
            ticking.cancel()
            await asyncio.gather(ticking, return_exceptions=True)
            probes.stop()
            self._clouds.close()
            log.info("stopped")

    async def _work(self, leave: asyncio.Event, ticking: asyncio.Task[None]) -> None:
        router = Router(handlers=self._handlers.values(), metrics=self._metrics, times=self._times)
        dispatcher = Dispatcher(router=router, runner=self._runner, lanes=self._lanes, on_gap=self._want_resync)
        if self._settings.resync_on_start:
            self._want_resync("start")
        intakes = [asyncio.create_task(self._listen(intake, dispatcher)) for intake in self._intakes]
        others = [asyncio.create_task(self._watch_cloud()), asyncio.create_task(self._serve(dispatcher))]
        stop = asyncio.create_task(leave.wait())
        log.info("started", targets=[target.name for target in self._settings.targets], lanes=list(self._runner.lanes))
        try:
            # None of the tasks ends by itself: one that does has a bug, which must not leave a daemon that looks well
            done, _ = await asyncio.wait([stop, ticking, *intakes, *others], return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stop}:
                task.result()
        finally:
            self._draining = True
            log.info("draining", in_progress=self._runner.in_progress)
            for tasks in (intakes, [*others, stop]):
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            await self._runner.drain()
            await self._lanes.close()

    async def _preflight(self, leave: asyncio.Event) -> None:
        """Find out what the cloud makes of the configuration, if it is there; not beyond `leave`."""
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

    async def _tick(self) -> None:
        """Once a second: note that the loop turns, take over depths; now and then, images by state."""
        count_at = time.monotonic() + COUNT
        while True:
            self._ticked = time.monotonic()
            self._tell_manager()
            self._runner.tidy()
            self._metrics.depths(self._lanes.depths(), self._runner.waiting())
            if (began := time.monotonic()) > count_at:
                self._metrics.states()
                count_at = time.monotonic() + max(COUNT, COUNT_SHARE * (time.monotonic() - began))
            await asyncio.sleep(TICK)

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
        told = "; ".join(f"{part}: {problem}" for part, problem in problems.items()) or "ready"
        if told != self._told:
            self._told = told
            notify(f"STATUS={told}" if problems else f"{READY}\nSTATUS=ready")

    async def _look_at_cloud(self) -> None:
        try:
            self._cloud_is_there(await check_cloud(self._cloud, self._settings))
            await self._look_at_locations()
        except Misconfigured as error:
            # At start that ends the process; now somebody may be working on the cloud
            self._cloud_is_away(str(error))
        except (Temporary, Blocked, NotFound, Malformed) as error:
            self._cloud_is_away(str(error))
        except Exception as error:
            # A bug, or an answer that nobody has thought of: the next look may find the cloud as it should be
            log.exception("cloud_look_failed")
            self._cloud_is_away(f"{type(error).__name__}: {error}")

    async def _look_at_locations(self) -> None:
        """Whether Glance shows where data lies: without that, nothing may be changed or deleted that is a location."""
        blind = await check_locations(self._cloud, self._settings)
        if blind and not self._blind:
            log.warning("locations_hidden", error=blind)
        self._blind = blind

    def _cloud_is_there(self, found: Found) -> None:
        if not self._known and self._fault:
            log.info("cloud_back")
        self._times.know(found.targets)
        self._uses.know(found.targets)
        self._name_unusable(found.unusable)
        self._known, self._fault = True, ""
        self._answered = time.monotonic()
        self._seen_once.set()

    def _name_unusable(self, unusable: Mapping[str, str]) -> None:
        """Say which targets can't be used, once each; what is missing on one that can be again is looked for."""
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
        """Take in notifications once the cloud has been seen: until then their jobs would only pile up in the lanes.

        What is missed until then is made up for by the comparison that follows each opening of an intake.
        """
        await self._seen_once.wait()
        await intake.run(dispatcher)

    async def _serve(self, dispatcher: Dispatcher) -> None:
        """Take jobs once the cloud has been seen: a worker that can't log in would only set them aside."""
        await self._seen_once.wait()
        await self._lanes.open(self._runner.prefetch, self._runner.deliver)
        await self._resync_when_wanted(dispatcher)

    async def _resync_when_wanted(self, dispatcher: Dispatcher) -> None:
        backoff = self._settings.backoff
        failures = 0
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.resync_interval):
                    await self._resync_wanted.wait()
            why = self._resync_why or "interval"
            self._resync_wanted.clear()
            self._resync_why = ""
            try:
                await self._resync(dispatcher, why)
                failures = 0
            except (Temporary, Blocked, NotFound, Malformed) as error:
                wait = backoff.after(failures)
                failures += 1
                log.warning("resync_failed", error=str(error), after=round(wait, 1))
                await asyncio.sleep(wait)
                self._want_resync(why)

    async def _resync(self, dispatcher: Dispatcher, why: str) -> None:
        began = time.monotonic()
        self._metrics.board.comparing()
        census, jobs, total = Census(), list[Job](), 0
        async for missing in compare(
            self._cloud, self._handlers.values(), image_of=image_volume.image_of, census=census
        ):
            jobs.append(job_of(missing))
            total += 1
            if len(jobs) >= BATCH:
                await dispatcher.submit(jobs)
                jobs.clear()
        await dispatcher.submit(jobs)
        self._metrics.last_resync.set_to_current_time()
        self._metrics.board.compared()
        self._metrics.census(census.volumes, census.sizes)
        log.info(
            "resynced", why=why, images=census.images, incomplete=total, seconds=round(time.monotonic() - began, 2)
        )

    def _status(self, most: float) -> Mapping[str, Any]:
        prewarm = self._handlers.get(Prewarm.name)
        decided = {target.name: target for target in (prewarm.resolved if isinstance(prewarm, Prewarm) else ())}
        targets = (decided.get(one.name, one) for one in self._settings.targets)
        status = self._metrics.board.status(
            targets=targets,
            lanes=self._runner.lanes,
            depths=self._lanes.depths(),
            most=most,
            unusable={**(prewarm.unusable if isinstance(prewarm, Prewarm) else {}), **self._unusable},
        )
        held = prewarm if isinstance(prewarm, Prewarm) else None
        full = held.full() if held else {}
        return {"version": release(), **status, "held_back": [*held.held_back()] if held else [], "cache_full": full}

    def _images(self) -> Mapping[str, Any]:
        return self._metrics.board.images(target.name for target in self._settings.targets)

    def _sick(self) -> Mapping[str, str]:
        late = time.monotonic() - self._ticked
        return hung() | ({"loop": f"has not turned for {late:.0f} s"} if late > STUCK else {})

    def _unready(self) -> Mapping[str, str]:
        problems = dict(self._sick())
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
