"""OpenTelemetry spans of a request and its stages; off, and free, unless OTEL_TRACES_EXPORTER asks for them.

A request goes on with the trace of its `traceparent` header. Spans hold what access_log.py may hold, and no more: no
path, query, body, user or item.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry import trace
from opentelemetry.propagate import extract
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, TracerProvider

from avrec_ray.errors import ConfigError

EXPORTERS = ("none", "console", "otlp")
_NAME = "avrec_ray"
_tracer: Tracer = trace.NoOpTracerProvider().get_tracer(_NAME)


def use_provider(provider: TracerProvider) -> None:
    """Send the spans of this process there."""
    global _tracer  # one a process, as OpenTelemetry's own
    _tracer = provider.get_tracer(_NAME)


def begin_tracing(replica: str) -> None:
    """Export the spans of this process as the environment says; by default nowhere.

    OTEL_TRACES_EXPORTER is none, console or otlp; OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_TRACES_SAMPLER and the like are
    OpenTelemetry's own.

    Raises:
        ConfigError: an unknown exporter, or one that is not installed.
    """
    name = os.environ.get("OTEL_TRACES_EXPORTER", "none")
    if name not in EXPORTERS:
        raise ConfigError(f"OTEL_TRACES_EXPORTER={name!r}; expected one of {', '.join(EXPORTERS)}")
    if name == "none":
        return
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider as SdkProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    name_of_service = os.environ.get("OTEL_SERVICE_NAME", _NAME)
    resource = Resource.create({"service.name": name_of_service, "service.instance.id": replica})
    provider = SdkProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(_exporter(name)))
    use_provider(provider)


@contextmanager
def request_span(headers: list[tuple[bytes, bytes]], method: str, request_id: str) -> Iterator[Span]:
    """The span of a request that begins now, in the trace of whoever sent it."""
    carrier = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in headers}
    wanted = {name: carrier[name] for name in ("traceparent", "tracestate") if name in carrier}
    attributes = {"http.request.method": method, "avrec.request_id": request_id}
    with _tracer.start_as_current_span("request", extract(wanted), SpanKind.SERVER, attributes) as span:
        yield span


def end_request(span: Span, route: str, status: int) -> None:
    """Name the span after its route's template, and tell how it went; `status` 0: the client left."""
    span.update_name(route)
    span.set_attribute("http.route", route)
    span.set_attribute("http.response.status_code", status)
    if status >= 500:
        span.set_status(Status(StatusCode.ERROR))


@contextmanager
def stage_span(name: str, model_version: str) -> Iterator[Span]:
    """The span of one stage of a list."""
    attributes = {"avrec.model_version": model_version}
    with _tracer.start_as_current_span(f"stage {name}", attributes=attributes, record_exception=False) as span:
        yield span


def mark_failed(span: Span, kind: str) -> None:
    """Tell that a stage failed, by the kind of its error alone: a message may hold anything."""
    span.set_status(Status(StatusCode.ERROR))
    span.set_attribute("error.type", kind)


def _exporter(name: str) -> Any:
    if name == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ModuleNotFoundError as error:
        raise ConfigError(
            "OTEL_TRACES_EXPORTER=otlp needs its exporter; run: pip install 'avrec_ray[traces]'"
        ) from error
    return OTLPSpanExporter()
