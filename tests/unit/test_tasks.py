"""The supervisor: a task that fails is seen, and begins again."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
from collections.abc import Awaitable, Callable

import pytest
from structlog.testing import capture_logs

from worker.core.errors import Misconfigured
from worker.engine.retry import Backoff
from worker.engine.tasks import LASTING, Tasks, watch_others
from worker.engine.threads import on_daemon_thread
from worker.observe.metrics import Metrics

AT_ONCE = Backoff(shortest=0.01, longest=0.02)


def failures(metrics: Metrics, task: str) -> float | None:
    return metrics.registry.get_sample_value(
        "image_volume_worker_task_failures_total", {"task": task}
    )


async def cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


class Flaky:
    """Fails as often as there are errors, then runs; one that is None makes it end by itself."""

    def __init__(self, *errors: Exception | None) -> None:
        self.errors = list(errors)
        self.runs = asyncio.Event()

    async def __call__(self) -> None:
        if not self.errors:
            self.runs.set()
            await asyncio.Event().wait()
        if error := self.errors.pop(0):
            raise error


async def test_a_task_that_fails_is_logged_counted_and_begun_again() -> None:
    metrics = Metrics()
    tasks = Tasks(metrics=metrics, backoff=AT_ONCE)
    flaky = Flaky(OSError("no such CA bundle"), KeyError("token"), None)
    with capture_logs() as lines:
        task = tasks.begin("cloud", flaky)
        assert failures(metrics, "cloud") == 0.0, "there before the first failure"
        await flaky.runs.wait()
    assert failures(metrics, "cloud") == 3.0
    told = [line for line in lines if line["event"] == "task_failed"]
    assert [type(line["exc_info"]) for line in told] == [OSError, KeyError, RuntimeError]
    assert all(line["task"] == "cloud" for line in told)
    await cancelled(task)


async def test_a_failure_is_a_problem_until_the_task_has_run_for_a_while() -> None:
    now = 0.0
    tasks = Tasks(metrics=Metrics(), backoff=AT_ONCE, now=lambda: now)
    flaky = Flaky(OSError("no thread"))
    task = tasks.begin("tick", flaky)
    assert tasks.problems() == {}
    await flaky.runs.wait()
    now = LASTING - 1.0
    assert tasks.problems() == {"tick": "failed and began again: OSError: no thread"}
    now = LASTING + 1.0
    assert tasks.problems() == {}
    await cancelled(task)


async def test_a_configuration_that_cannot_work_ends_its_task() -> None:
    metrics = Metrics()
    task = Tasks(metrics=metrics, backoff=AT_ONCE).begin(
        "intake-0", Flaky(Misconfigured("no such transport"))
    )
    with pytest.raises(Misconfigured):
        await task
    assert failures(metrics, "intake-0") == 0.0


@pytest.fixture
def hooks() -> object:
    before = threading.excepthook
    yield
    threading.excepthook = before


async def _raises() -> None:
    raise ValueError("nobody awaits it")


def _of_a_task() -> Awaitable[None]:
    asyncio.create_task(_raises(), name="job x")  # noqa: RUF006  it is to be forgotten
    return asyncio.sleep(0)


def _of_a_thread() -> Awaitable[None]:
    thread = threading.Thread(target=lambda: 1 / 0, name="link")
    thread.start()
    return asyncio.to_thread(thread.join)


@pytest.mark.parametrize(
    ("die", "event"), [(_of_a_task, "task_failed"), (_of_a_thread, "thread_failed")]
)
async def test_what_nobody_supervises_does_not_die_unseen(
    hooks: object, die: Callable[[], Awaitable[None]], event: str
) -> None:
    metrics = Metrics()
    watch_others(metrics)
    with capture_logs() as lines:
        await die()
        while failures(metrics, "other") != 1.0:
            gc.collect()
            await asyncio.sleep(0.01)
    assert [line["event"] for line in lines] == [event]


async def test_a_port_without_descriptors_is_told_once_a_minute() -> None:
    metrics = Metrics()
    watch_others(metrics)
    context = {
        "message": "socket.accept() out of system resource\nsocket: <...>",
        "exception": OSError(24, "Too many open files"),
    }
    with capture_logs() as logs:
        for _ in range(100):
            asyncio.get_running_loop().call_exception_handler(context)
    assert [line["event"] for line in logs] == ["port_out_of_descriptors"]
    assert not failures(metrics, "other")


async def test_a_call_that_blocks_for_ever_keeps_nobody() -> None:
    ended = threading.Event()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await on_daemon_thread(ended.wait, name="blocks")
    (thread,) = [one for one in threading.enumerate() if one.name == "blocks"]
    assert thread.daemon
    ended.set()
    thread.join()


async def test_what_a_thread_returns_or_raises_is_what_its_caller_gets() -> None:
    assert await on_daemon_thread(lambda: 7, name="returns") == 7
    with pytest.raises(ZeroDivisionError):
        await on_daemon_thread(lambda: 1 // 0, name="raises")
