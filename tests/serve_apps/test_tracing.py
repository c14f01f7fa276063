"""Spans of a request and its stages: in the caller's trace, with what went wrong, and with nobody's data."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import ClassVar

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NoOpTracerProvider, StatusCode

from avrec_ray.errors import ConfigError
from serve_apps import tracing
from tests.serve_apps.conftest import VERSION, CategoryModels

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def exporter() -> Iterator[InMemorySpanExporter]:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing.use_provider(provider)
    yield exporter
    tracing.use_provider(NoOpTracerProvider())


def spans_of(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


def test_a_list_is_a_span_with_its_stages_in_the_callers_trace(
    exporter: InMemorySpanExporter, client: httpx.Client
) -> None:
    headers = {"traceparent": PARENT, "X-Request-Id": "req-1"}
    client.post("/v1/recommend", json={"user_id": "secret-user"}, headers=headers)
    spans = spans_of(exporter)
    assert set(spans) == {"/v1/recommend", "stage profile", "stage match", "stage rerank"}
    root = spans["/v1/recommend"]
    assert root.context is not None
    assert root.parent is not None
    assert (f"{root.context.trace_id:032x}", f"{root.parent.span_id:016x}") == tuple(PARENT.split("-")[1:3])
    assert dict(root.attributes or {}) == {
        "http.request.method": "POST", "avrec.request_id": "req-1", "http.route": "/v1/recommend",
        "http.response.status_code": 200,
    }  # fmt: skip
    for name in ("profile", "match", "rerank"):
        stage = spans[f"stage {name}"]
        assert stage.parent is not None
        assert stage.parent.span_id == root.context.span_id
        assert dict(stage.attributes or {}) == {"avrec.model_version": VERSION}
    assert "secret-user" not in "".join(span.to_json() for span in spans.values())


def test_a_failed_stage_says_the_kind_of_its_error_alone(
    exporter: InMemorySpanExporter, client: httpx.Client, models: CategoryModels
) -> None:
    models.failing = {"match"}
    client.post("/v1/recommend", json={"user_id": "u1"})
    stage = spans_of(exporter)["stage match"]
    assert stage.status.status_code == StatusCode.ERROR
    assert dict(stage.attributes or {})["error.type"] == "ConnectionError"
    assert "actor died" not in stage.to_json()


def test_a_path_that_is_no_route_is_in_no_span(exporter: InMemorySpanExporter, client: httpx.Client) -> None:
    client.get("/v1/nothing/secret-path?q=secret-query")
    (span,) = exporter.get_finished_spans()
    assert span.name == "none"
    assert "secret" not in span.to_json()


def test_unknown_exporter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "carrier-pigeon")
    with pytest.raises(ConfigError, match="expected one of none, console, otlp"):
        tracing.begin_tracing("r1")


def test_console_exporter_writes_spans() -> None:
    code = (
        "from serve_apps import tracing; tracing.begin_tracing('r1')\n"
        "with tracing.stage_span('match', 'v1'): pass\n"
    )  # fmt: skip
    environment = {"OTEL_TRACES_EXPORTER": "console", "PATH": "/usr/bin:/bin"}
    told = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert '"name": "stage match"' in told.stdout
    assert '"service.instance.id": "r1"' in told.stdout


class Collector(BaseHTTPRequestHandler):
    """Keeps what is posted to it."""

    received: ClassVar[list[tuple[str, bytes]]] = []

    def do_POST(self) -> None:
        self.received.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_arguments: object) -> None:
        pass


def test_otlp_exporter_sends_spans_to_a_collector() -> None:
    code = (
        "from serve_apps import tracing; tracing.begin_tracing('r1')\n"
        "with tracing.stage_span('match', 'v1') as span: tracing.mark_failed(span, 'deadline')\n"
    )  # fmt: skip
    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        environment = {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "PATH": "/usr/bin:/bin"}
        subprocess.run([sys.executable, "-c", code], env=environment, check=True)  # spans go out before it ends
        server.shutdown()
        thread.join()
    ((path, body),) = Collector.received
    assert path == "/v1/traces"
    (of_service,) = ExportTraceServiceRequest.FromString(body).resource_spans
    (span,) = of_service.scope_spans[0].spans
    assert span.name == "stage match"
    assert {a.key: a.value.string_value for a in span.attributes} == {
        "avrec.model_version": "v1", "error.type": "deadline",
    }  # fmt: skip
    told = {a.key: a.value.string_value for a in of_service.resource.attributes}
    assert (told["service.name"], told["service.instance.id"]) == ("avrec_ray", "r1")
