from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from tests.telemetry.test_record import done, made
from tgi_async.errors import GenerationError, StartError
from tgi_async.generation import Timings
from tgi_async.telemetry import traces
from tgi_async.telemetry.traces import OpenTelemetry, attributes_of, parts_of, sending_to

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"):
        monkeypatch.delenv(name, raising=False)


def installed() -> None:
    reason = "the extra `otel` is not installed"
    pytest.importorskip("opentelemetry.sdk.trace", reason=reason)
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason=reason)


@pytest.fixture
def collected() -> Iterator[tuple[OpenTelemetry, Any]]:
    """Traces, and where their spans come out."""
    installed()
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    spans = OpenTelemetry(SimpleSpanProcessor(exporter), service_name="mine", model_id="a/b")
    yield spans, exporter
    spans.close()


def test_a_span_has_the_fields_of_tgi() -> None:
    attributes = attributes_of(done(), "a/b")
    assert {name: attributes[name] for name in ("total_time", "queue_time", "seed")} == {
        "total_time": "2.5s",
        "queue_time": "500ms",
        "seed": "Some(7)",
    }
    assert {"parameters", "validation_time", "inference_time", "time_per_token"} <= set(attributes)


def test_a_span_follows_the_conventions_for_generative_ai() -> None:
    attributes = attributes_of(done(), "a/b")
    found = {
        name.removeprefix("gen_ai."): value
        for name, value in attributes.items()
        if name.startswith("gen_ai.")
    }
    assert found == {
        "operation.name": "text_completion",
        "provider.name": "tgi_async",
        "request.model": "a/b",
        "response.model": "a/b",
        "request.stream": False,
        "request.max_tokens": 20,
        "request.stop_sequences": ["x"],
        "request.temperature": 0.5,
        "request.seed": 7,
        "usage.input_tokens": 3,
        "usage.output_tokens": 4,
        "response.finish_reasons": ["length"],
    }
    assert attributes["http.response.status_code"] == 200
    assert attributes_of(made("/v1/chat/completions"), "a")["gen_ai.operation.name"] == "chat"


def test_the_first_event_of_a_stream_is_timed() -> None:
    seen = done()
    seen.first_event_at = seen.began_at + 250_000_000
    assert attributes_of(seen, "a/b")["gen_ai.response.time_to_first_chunk"] == 0.25


def test_a_span_is_as_long_as_its_request_and_of_this_service(collected: Any) -> None:
    spans, exporter = collected
    seen = done()
    spans.add(seen)
    *_, span = exporter.get_finished_spans()
    assert span.name == "generate"
    assert (span.start_time, span.end_time) == (seen.began_at, seen.began_at + 2_500_000_000)
    assert span.resource.attributes["service.name"] == "mine"
    assert dict(span.attributes)["gen_ai.response.finish_reasons"] == ("length",)
    assert span.parent is None


def test_a_span_belongs_to_the_trace_of_its_client(collected: Any) -> None:
    spans, exporter = collected
    spans.add(made(headers=[(b"traceparent", PARENT.encode())]))
    spans.add(made(headers=[(b"traceparent", b"nonsense")]))
    with_parent, without = exporter.get_finished_spans()
    assert f"{with_parent.context.trace_id:032x}" == PARENT.split("-")[1]
    assert f"{with_parent.parent.span_id:016x}" == PARENT.split("-")[2]
    assert without.parent is None


@pytest.mark.parametrize(("failure", "ok"), [("validation", True), ("generation", False)])
def test_an_error_of_the_server_is_one_of_the_span(collected: Any, failure: str, ok: bool) -> None:
    spans, exporter = collected
    seen = made()
    seen.failed(failure, GenerationError("out of memory"))
    spans.add(seen)
    *_, span = exporter.get_finished_spans()
    said = "Request failed during generation: Server error: out of memory"
    assert span.attributes["error.type"] == failure
    assert span.attributes["error.message"] == said
    assert (span.status.is_ok, span.status.description) == (ok, None if ok else said)


def test_a_span_has_one_for_each_part_of_its_request(collected: Any) -> None:
    spans, exporter = collected
    seen = done()
    began = time.monotonic()
    seen.submitted(seen.requests[0], began, Timings(queued=0.5, inference=1.5))
    spans.add(seen)
    *parts, whole = exporter.get_finished_spans()
    assert [part.name for part in parts] == ["validate", "queued", "infer"]
    assert {part.parent.span_id for part in parts} == {whole.context.span_id}
    assert {part.context.trace_id for part in parts} == {whole.context.trace_id}
    lengths = [(part.end_time - part.start_time) / 1e9 for part in parts]
    assert lengths == [0.001, 0.5, 1.5]
    validate, queued, infer = parts
    assert validate.start_time == whole.start_time
    assert queued.end_time == infer.start_time


def test_each_generation_of_a_request_has_its_own_parts() -> None:
    seen = done()
    for queued in (0.25, 0.5):
        seen.submitted(seen.requests[0], time.monotonic(), Timings(queued, inference=1.0))
    validate, *parts = parts_of(seen)
    assert validate.name == "validate"
    assert [part.name for part in parts] == ["queued", "infer"] * 2
    assert [part.ended_at - part.began_at for part in parts] == [
        round(seconds * 1e9) for seconds in (0.25, 1.0, 0.5, 1.0)
    ]


def test_a_generation_that_did_not_end_is_as_long_as_its_request() -> None:
    seen = done()
    seen.failed("dropped", None)
    seen.submitted(seen.requests[0], time.monotonic(), Timings())
    seen.submitted(seen.requests[0], time.monotonic(), Timings(queued=0.5))
    validate, waiting, queued, infer = parts_of(seen)
    assert [validate.name, waiting.name, queued.name] == ["validate", "queued", "queued"]
    assert waiting.ended_at == infer.ended_at == seen.ended_at
    assert infer.began_at == queued.ended_at


@pytest.mark.parametrize(("failure", "names"), [("validation", ["validate"]), ("overloaded", [])])
def test_a_refused_request_was_validated_until_its_end(failure: str, names: list[str]) -> None:
    seen = made()
    seen.failed(failure, None)
    seen.total = 0.25
    parts = list(parts_of(seen))
    assert [part.name for part in parts] == names
    assert all(part.ended_at == seen.ended_at for part in parts)


@pytest.mark.parametrize("endpoint", ["localhost:4317", "", "grpc://collector"])
def test_an_endpoint_is_a_url(endpoint: str) -> None:
    with pytest.raises(StartError, match="--otlp-endpoint must begin with http:// or https://"):
        sending_to(endpoint)


def test_an_unknown_protocol_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")
    with pytest.raises(StartError, match=r"must be grpc or http/protobuf\. Given: 'http/json'"):
        sending_to("http://localhost:4317")


def test_missing_packages_are_reported_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace.export", None)
    with pytest.raises(StartError, match=r"pip install 'tgi-async\[otel\]'"):
        sending_to("http://localhost:4317")


def names_in(body: bytes) -> list[str]:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    return names_of(ExportTraceServiceRequest.FromString(body))


def names_of(request: Any) -> list[str]:
    return [
        span.name
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def test_spans_reach_a_collector_over_http(monkeypatch: pytest.MonkeyPatch) -> None:
    installed()
    posted: list[tuple[str, bytes]] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers["content-length"])
            posted.append((self.path, self.rfile.read(length)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *given: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Receiver) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
        processor = sending_to(f"http://127.0.0.1:{server.server_port}")
        spans = OpenTelemetry(processor, service_name="mine", model_id="a/b")
        spans.add(done())
        spans.close()
        server.shutdown()
    ((path, body),) = posted
    assert path == "/v1/traces"
    assert names_in(body) == ["validate", "generate"]


def test_spans_reach_a_collector_over_grpc() -> None:
    installed()
    grpc = pytest.importorskip("grpc", reason="the extra `otel` is not installed")
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as service
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

    got: list[str] = []

    class Receiver(service.TraceServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:
            got.extend(names_of(request))
            return ExportTraceServiceResponse()

    server = grpc.server(ThreadPoolExecutor(1))
    service.add_TraceServiceServicer_to_server(Receiver(), server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    spans = OpenTelemetry(
        sending_to(f"http://127.0.0.1:{port}"), service_name="mine", model_id="a/b"
    )
    spans.add(done())
    spans.close()
    server.stop(None).wait()
    assert got == ["validate", "generate"]


def test_a_collector_that_never_answers_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    installed()
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

    released = threading.Event()

    class Deaf(SpanExporter):
        def export(self, spans: Any) -> Any:
            released.wait(60)

        def shutdown(self) -> None: ...

    monkeypatch.setattr(traces, "LAST_EXPORT_SECONDS", 0.05)
    processor = BatchSpanProcessor(Deaf(), max_queue_size=4, max_export_batch_size=2)
    spans = OpenTelemetry(processor, service_name="mine", model_id="a/b")
    for _ in range(20):
        spans.add(done())
    spans.close()
    assert not released.is_set()
    released.set()
