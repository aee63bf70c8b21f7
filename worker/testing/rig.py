"""The rig: a whole worker around the fake cloud, with lanes in memory; only the broker is left out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace

from handlers import image_volume
from handlers.prewarm import Prewarm
from handlers.reclaim import Reclaim
from handlers.upload import Upload
from worker.broker.memory import MemoryLanes
from worker.core.cloud import Image, Volume
from worker.core.deletions import Deletions
from worker.core.handler import Handler, HandlerFactory, Missing, Parts, Watch
from worker.core.intake import Routed
from worker.core.job import Job, Key
from worker.core.notification import Notification
from worker.core.outcome import Outcome
from worker.core.target import Policy, Reclaiming, Strategy, Target, Uploads
from worker.core.uses import Uses
from worker.engine.dispatcher import Dispatcher
from worker.engine.limits import Limits
from worker.engine.resync import Census, compare, job_of
from worker.engine.retry import Backoff
from worker.engine.router import Router
from worker.engine.runner import Runner
from worker.observe.creations import Creations
from worker.observe.metrics import Metrics
from worker.testing.fake_cloud import FakeCloud

FAST = Target(name="fast", volume_type="fast")
SLOW = Target(name="slow", volume_type="slow")
STORES = {"cinder-fast": "fast", "cinder-slow": "slow"}
LIMITS = Limits(max_attempts=6, poll_min=0.01, poll_max=0.05, drain=5.0)


class Rig:
    """One worker process on a cloud. It gets the notifications that `hear` is given.

    `plugins` are handlers besides those of this package.
    """

    def __init__(
        self,
        cloud: FakeCloud,
        *,
        targets: Iterable[Target] = (FAST, SLOW),
        policy: Policy | None = None,
        uploads: Uploads | None = None,
        reclaiming: Reclaiming | None = None,
        limits: Limits = LIMITS,
        backoff: Backoff | None = None,
        plugins: Iterable[HandlerFactory] = (),
    ) -> None:
        self.cloud = cloud
        self.metrics = Metrics()
        self.gaps: list[str] = []
        self.uses = Uses()
        self.creations = Creations(metrics=self.metrics, uses=self.uses)
        self.deletions = Deletions()
        self.uses.know({target.volume_type: target.name for target in targets})
        self.parts = parts = Parts(
            cloud=cloud,
            urgent=cloud,
            targets=tuple(targets),
            policy=policy or Policy(settle=0.05, rewarm_interval=0.1),
            uploads=uploads or Uploads(grace=0.2, quiet=0.02, untouched=0.0, tell_after=0.0),
            reclaiming=reclaiming or Reclaiming(),
            uses=self.uses,
            deletions=self.deletions,
            now=cloud.now,
            report=self.metrics,
            keeps_order=True,
        )
        self.prewarm = Prewarm(parts)
        self.reclaim = Reclaim(parts)
        self.upload = Upload(parts)
        own: list[Handler] = [self.prewarm, self.reclaim, self.upload]
        others = [plugin(parts) for plugin in plugins]
        self.handlers = {handler.name: handler for handler in [*own, *others]}
        self.lanes = MemoryLanes()
        self.runner = Runner(
            lanes=self.lanes,
            handlers=self.handlers,
            limits=limits,
            backoff=backoff or Backoff(shortest=0.005, longest=0.02),
            metrics=self.metrics,
            uses=self.uses,
            deletions=self.deletions,
            wishes=parts.wishes,
        )
        router = Router(
            handlers=self.handlers.values(),
            metrics=self.metrics,
            creations=self.creations,
        )
        self.dispatcher = Dispatcher(
            router=router, queue=self.runner.queue, lanes=self.lanes, on_gap=self.gaps.append
        )
        self._hearing: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Rig:
        await self.lanes.open(self.runner.queue.prefetch, self.runner.queue.deliver)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.runner.drain()
        await self.lanes.close()

    async def crash(self) -> None:
        """End the process in the middle of its work: no answer reaches it, and nothing is
        settled."""
        await self.lanes.close()
        queue = self.runner.queue
        ending = [
            *self._hearing,
            *self.runner._tasks,
            *queue._late.tasks,
            *queue._giving_back._tasks.values(),
        ]
        for task in ending:
            task.cancel()
        # A task that ends would start the next one
        queue._closed = True
        await asyncio.gather(*ending, return_exceptions=True)

    def lose(self, volume_id: str) -> None:
        """Have somebody delete a volume in Cinder, and the worker hear of it."""
        del self.cloud.volumes[volume_id]
        self.deletions.note_volume(volume_id)

    def hear(self, body: bytes) -> None:
        """Hand over one message off the wire, as the intake would."""
        task = asyncio.create_task(self.dispatcher.accept([self.dispatcher.route(body)]))
        self._hearing.add(task)
        task.add_done_callback(self._hearing.discard)

    @property
    def completed(self) -> list[str]:
        """The paths by which uploads were completed."""
        samples = next(iter(self.metrics.uploads_completed.collect())).samples
        return [
            one.labels["path"]
            for one in samples
            if one.name.endswith("_total")
            for _ in range(int(one.value))
        ]

    def count(self, name: str, **labels: str) -> float:
        """Return the value of a metric; 0 if nothing was counted."""
        return self.metrics.registry.get_sample_value(f"image_volume_worker_{name}", labels) or 0.0

    async def resync(self) -> list[Missing]:
        """Compare the cloud, and enqueue everything that is missing; return it."""
        comparing = compare(
            self.cloud, self.handlers.values(), image_of=image_volume.image_of, census=Census()
        )
        found = [missing async for missing in comparing]
        await self.dispatcher.submit(job_of(missing) for missing in found)
        return found

    async def quiet(self, *, within: float = 20.0) -> None:
        """Return when nothing is heard, waiting, worked on, made or due for another try."""
        async with asyncio.timeout(within):
            calm = 0
            while calm < 3:
                await asyncio.sleep(0.003)
                busy = (
                    self._hearing
                    or self.cloud.tasks
                    or not self.runner.queue.idle
                    or self.runner.queue.due()
                )
                depths = self.lanes.depths()
                calm = 0 if busy or sum(depths.values()) - depths["dead"] else calm + 1

    async def rest(self, *, step: float, most: float, due: float) -> None:
        """Return when nothing is worked on or made, and no other try is due within `due` seconds;
        after `most` anyway.

        For a virtual clock: it looks every `step` seconds.
        """
        for _ in range(int(most / step)):
            await asyncio.sleep(step)
            depths = self.lanes.depths()
            waiting = sum(depths.values()) - depths["dead"]
            if not (
                self._hearing
                or self.cloud.tasks
                or waiting
                or self.busy
                or self.runner.queue.due(within=due)
            ):
                return

    @property
    def busy(self) -> bool:
        """Whether any job is being worked on: only such a job acts on earlier readings."""
        return not self.runner.queue.idle

    async def run(self, image_id: str, target: str = "fast") -> Outcome:
        """Try one key once, with a watch that polls at once."""
        return await self.prewarm.reconcile(Key("prewarm", image_id, target), Polls())

    async def complete(self, image_id: str) -> Outcome:
        """Try one upload once."""
        return await self.upload.reconcile(Key("upload", image_id), Polls())


Work = Callable[[Key, Watch], Awaitable[Outcome]]


class Scripted:
    """A handler `h`, with a lane of that name, that does as the test says."""

    name = "h"
    event_types: frozenset[str] = frozenset()

    def __init__(self, work: Work, *, width: int = 2) -> None:
        self._work = work
        self._width = width
        self.tries: list[Key] = []

    def keys(self, notification: Notification) -> Iterable[Key]:
        return ()

    def lanes(self) -> Mapping[str, int]:
        return {"h": self._width}

    async def prepare(self, volumes: object) -> None:
        return

    def incomplete(
        self, image_id: str, image: Image | None, volumes: tuple[Volume, ...]
    ) -> Iterable[Missing]:
        return ()

    async def reconcile(self, key: Key, watch: Watch) -> Outcome:
        self.tries.append(key)
        return await self._work(key, watch)


class Polls:
    """A watch whose waits are over in a moment."""

    def __init__(self, *, most: int = 2000, by_operator: bool = False, wish: str = "") -> None:
        self._most = most
        self.wish = wish
        self.by_operator = by_operator
        self.count = 0

    async def changed(self) -> None:
        self.count += 1
        assert self.count < self._most, "waited for something that never came"
        await asyncio.sleep(0.001)

    def tell(self, step: str) -> None:
        """Ignore the step."""


def job(
    key: Key, *, attempt: int = 0, cause: str = "test", project: str = "", due: float = 0.0
) -> Job:
    """Return a job as a notification would make it."""
    return Job(
        key=key, cause=cause, attempt=attempt, first_at=time.time(), project=project, due=due
    )


def routed(*jobs: Job) -> list[Routed]:
    """Return jobs as an intake hands them over."""
    return [Routed(jobs=jobs)]


def located(cloud: FakeCloud, image_id: str) -> list[str]:
    """Return the volumes that are locations of the image."""
    return [location.volume_id for location in cloud.locations[image_id] if location.volume_id]


def using(strategy: Strategy, *targets: Target) -> tuple[Target, ...]:
    """Return the targets with this strategy."""
    stores = {volume_type: store for store, volume_type in STORES.items()}
    return tuple(
        replace(
            target,
            strategy=strategy,
            glance_store="" if strategy == "cache" else stores[target.volume_type],
        )
        for target in targets
    )
