"""Traces: one from a notification over its job, however often that is tried, to its requests."""

from __future__ import annotations

import asyncio
import builtins
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.unit.test_openstack import IMAGE_ID, Bed, answer
from worker.core.errors import Misconfigured
from worker.core.job import Job, Key
from worker.observe import tracing
from worker.testing.fake_cloud import FakeCloud
from worker.testing.rig import FAST, STORES, Rig


@pytest.fixture
def exporter() -> Iterator[InMemorySpanExporter]:
    made = InMemorySpanExporter()
    tracing.setup("", ratio=1.0, version="1", exporter=made)
    yield made
    tracing.end()


def parent_of(span: ReadableSpan) -> int:
    return span.parent.span_id if span.parent else 0


def id_of(span: ReadableSpan) -> int:
    assert span.context
    return span.context.span_id


async def test_a_notification_is_the_parent_of_each_try_of_its_job(
    exporter: InMemorySpanExporter,
) -> None:
    cloud = FakeCloud(stores=STORES)
    cloud.quota = 0
    async with Rig(cloud, targets=(FAST,)) as rig:
        cloud.emit = rig.hear
        image = cloud.upload()
        async with asyncio.timeout(10):
            while not any(span.name == "job prewarm" for span in exporter.get_finished_spans()):
                await asyncio.sleep(0.001)
        cloud.quota = None
        await rig.quiet()
    spans = [
        span
        for span in exporter.get_finished_spans()
        if (span.attributes or {}).get("image_id") == image.id
    ]
    heard = {id_of(span): span for span in spans if span.name.startswith("notification ")}
    jobs = [span for span in spans if span.name == "job prewarm"]
    assert heard
    assert len(jobs) > 1
    assert all(parent_of(span) in heard for span in jobs)
    assert {"done"} <= {str((span.attributes or {})["outcome"]) for span in jobs}


async def test_a_request_is_a_span_of_its_job(exporter: InMemorySpanExporter) -> None:
    bed = Bed(answer(200, {"id": IMAGE_ID, "status": "active"}))
    with tracing.span("job"):
        await bed.cloud.get_image(IMAGE_ID)
    request, job = exporter.get_finished_spans()
    assert (request.name, parent_of(request)) == ("GET image", id_of(job))
    assert request.attributes
    assert request.attributes["http.response.status_code"] == 200
    assert request.attributes["url.path"] == "/v2/images/x"


def test_a_job_keeps_its_trace_in_a_lane(exporter: InMemorySpanExporter) -> None:
    with tracing.span("notification"):
        job = Job(key=Key("h", "i"), cause="c", first_at=1.0, trace=tracing.current())
    with tracing.span("job h", parent=Job.from_bytes(job.to_bytes()).trace):
        pass
    heard, done = exporter.get_finished_spans()
    assert parent_of(done) == id_of(heard)


def test_nothing_is_traced_unless_an_operator_wants_it() -> None:
    with tracing.span("job"):
        assert tracing.current() == ""
        tracing.note("outcome", "done")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def refuse(name: str, *args: Any, **more: Any) -> Any:
        if name.startswith("opentelemetry"):
            raise ImportError(name)
        return original(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(Misconfigured, match=r"image-volume-worker\[otel\]"):
        tracing.setup("http://127.0.0.1:4318", ratio=1.0, version="1")
    assert tracing.current() == ""


class Hanging(InMemorySpanExporter):
    """A collector that never ends an answer."""

    def __init__(self) -> None:
        super().__init__()
        self.ending = threading.Event()

    def shutdown(self) -> None:
        self.ending.wait()


def test_a_collector_that_hangs_keeps_nobody_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "FLUSH_WITHIN", 0.05)
    exporter = Hanging()
    tracing.setup("", ratio=1.0, version="1", exporter=exporter)
    tracing.end()
    assert tracing.current() == ""
    (thread,) = [one for one in threading.enumerate() if one.name == "tracing"]
    assert thread.daemon
    exporter.ending.set()
    thread.join()


def test_what_cannot_be_set_up_changes_nothing(exporter: InMemorySpanExporter) -> None:
    with pytest.raises(ValueError, match="Probability"):
        tracing.setup("http://127.0.0.1:4318", ratio=7.0, version="1")
    with tracing.span("job"):
        pass
    assert [span.name for span in exporter.get_finished_spans()] == ["job"]
