"""Traces: OpenTelemetry spans from a notification to its jobs and their requests, if wanted.

Needs the extra `otel`. Without `setup` every function here does nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from worker.core.errors import Misconfigured

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

SERVICE = "image-volume-worker"
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

    `exporter` takes the place of the collector. Misconfigured if the extra is not installed.
    """
    global _provider, _settings  # noqa: PLW0603  one for the process, like the logs
    if (endpoint, ratio) == _settings and exporter is None:
        return
    end()
    if not endpoint and exporter is None:
        return
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
            [
                "[tracing] otlp_endpoint: OpenTelemetry is not installed: "
                "pip install 'image-volume-worker[otel]'"
            ]
        ) from error
    _settings = (endpoint, ratio)
    # OTEL_RESOURCE_ATTRIBUTES and OTEL_EXPORTER_OTLP_* of the environment count too
    resource = Resource.create({"service.name": SERVICE, "service.version": version})
    _provider = Provider(resource=resource, sampler=ParentBasedTraceIdRatio(ratio))
    _provider.add_span_processor(
        SimpleSpanProcessor(exporter)
        if exporter
        else BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint.rstrip("/") + TRACES))
    )


def end() -> None:
    """Send what is left, and begin no more spans."""
    global _provider, _settings
    provider, _provider, _settings = _provider, None, ("", 1.0)
    if provider:
        provider.shutdown()


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
