"""Traces: OpenTelemetry spans from a notification to its jobs and their requests, if wanted.

Needs the extra `otel`. Without `setup` every function here does nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from worker.core.errors import Misconfigured

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

SERVICE = "image-volume-worker"
FLUSH_WITHIN = 5.0
"""Seconds that the collector has for the last spans."""
TRACES = "/v1/traces"
"""The path of OTLP over HTTP for traces, below a collector's URL."""

Value = str | int | float | bool


_provider: TracerProvider | None = None
_settings: tuple[str, float] = ("", 1.0)


def setup(
    endpoint: str, *, ratio: float, version: str, exporter: SpanExporter | None = None
) -> None:
    """Send spans to this OTLP collector (http://HOST:4318), from a share `ratio` of notifications
    and comparisons on; "" ends it.

    `exporter` takes the place of the collector. Misconfigured if the extra is not installed. May
    block for `FLUSH_WITHIN` seconds: what is left is sent to the collector before.
    """
    global _provider, _settings
    if (endpoint, ratio) == _settings and exporter is None:
        return
    provider = _built(endpoint, ratio, version, exporter) if endpoint or exporter else None
    before, _provider, _settings = _provider, provider, (endpoint, ratio)
    _shut_down(before)


def check(endpoint: str) -> None:
    """Raise Misconfigured if spans are to be sent and the extra is not installed."""
    if endpoint:
        _built(endpoint, 1.0, "", None).shutdown()


def _built(
    endpoint: str, ratio: float, version: str, exporter: SpanExporter | None
) -> TracerProvider:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
            OTLPSpanExporter,
        )
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider as Provider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import (  # noqa: PLC0415
            BatchSpanProcessor,
            SimpleSpanProcessor,
        )
        from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio  # noqa: PLC0415
    except ImportError as error:
        raise Misconfigured(
            "[tracing] otlp_endpoint: OpenTelemetry is not installed: "
            "pip install 'image-volume-worker[otel]'"
        ) from error
    # OTEL_RESOURCE_ATTRIBUTES and OTEL_EXPORTER_OTLP_* of the environment count too
    resource = Resource.create({"service.name": SERVICE, "service.version": version})
    provider = Provider(resource=resource, sampler=ParentBasedTraceIdRatio(ratio))
    provider.add_span_processor(
        SimpleSpanProcessor(exporter)
        if exporter
        else BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint.rstrip("/") + TRACES))
    )
    return provider


def end() -> None:
    """Send what is left, for `FLUSH_WITHIN` seconds at most, and begin no more spans."""
    global _provider, _settings
    provider, _provider, _settings = _provider, None, ("", 1.0)
    _shut_down(provider)


def _shut_down(provider: TracerProvider | None) -> None:
    if provider is None:
        return
    # A collector that drips its answers would keep us for half a minute
    ending = threading.Thread(target=provider.shutdown, name="tracing", daemon=True)
    ending.start()
    ending.join(FLUSH_WITHIN)


@contextmanager
def span(
    name: str, attributes: Mapping[str, Value] | None = None, *, parent: str = ""
) -> Iterator[None]:
    """A span around the block, below the one around it, or below `parent` as `current` gave it."""
    if _provider is None:
        yield
        return
    from opentelemetry.trace.propagation.tracecontext import (  # noqa: PLC0415
        TraceContextTextMapPropagator,
    )

    context = TraceContextTextMapPropagator().extract({"traceparent": parent}) if parent else None
    tracer = _provider.get_tracer(SERVICE)
    with tracer.start_as_current_span(name, context=context, attributes=attributes):
        yield


def note(key: str, value: Value) -> None:
    """Add to the span around us what is known only now."""
    if _provider is None:
        return
    from opentelemetry.trace import get_current_span  # noqa: PLC0415

    get_current_span().set_attribute(key, value)


def current() -> str:
    """Return the span around us in W3C's form, as a job carries it; "" if there is none."""
    if _provider is None:
        return ""
    from opentelemetry.trace.propagation.tracecontext import (  # noqa: PLC0415
        TraceContextTextMapPropagator,
    )

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent", "")
