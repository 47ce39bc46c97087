"""Traces: spans of each request that generates, sent to an OpenTelemetry collector.

They are made whole at the request's end and handed to a thread that sends them in batches. When the
collector does not keep up, spans are dropped; requests never wait.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from importlib.metadata import version
from typing import TYPE_CHECKING, NamedTuple, Protocol

from tgi_async.errors import StartError
from tgi_async.generation import GenerationRequest
from tgi_async.telemetry.record import RequestRecord

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.sdk.trace.export import SpanExporter

LAST_EXPORT_SECONDS = 3.0
"""Time that the collector gets to take the last spans when the server stops."""

Attributes = dict[str, str | int | float | list[str]]


class Traces(Protocol):
    """Collects spans."""

    def add(self, seen: RequestRecord) -> None:
        """Take the spans of a request that has ended. Does not block."""


class ChildSpan(NamedTuple):
    """A child span: one phase of a request. Unix times, in nanoseconds."""

    name: str
    began_at: int
    ended_at: int


class OpenTelemetry:
    """Creates spans for the server of `model_id` and gives them to `processor`."""

    def __init__(self, processor: SpanProcessor, *, service_name: str, model_id: str) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        resource = Resource.create(
            {"service.name": service_name, "service.version": version("tgi-async")}
        )
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("tgi_async", version("tgi-async"))
        self._parent_of = TraceContextTextMapPropagator().extract
        self._model_id = model_id

    def add(self, seen: RequestRecord) -> None:
        """Take the spans of a request that has ended. Does not block."""
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        span = self._tracer.start_span(
            seen.name,
            context=self._parent_of(seen.headers),
            kind=SpanKind.SERVER,
            start_time=seen.began_at,
        )
        if span.is_recording():
            span.set_attributes(attributes_of(seen, self._model_id))
            if seen.failure is not None:
                span.set_attribute("error.type", seen.failure)
                if seen.reason:
                    span.set_attribute("error.message", seen.reason)
                # A client's mistake is not an error of the server.
                if seen.failure in ("generation", "incomplete"):
                    span.set_status(Status(StatusCode.ERROR, seen.reason or seen.failure))
            inside = set_span_in_context(span)
            for part in parts_of(seen):
                child = self._tracer.start_span(part.name, inside, start_time=part.began_at)
                child.end(part.ended_at)
        span.end(seen.ended_at)

    def close(self) -> None:
        """Send the remaining spans; blocks for at most LAST_EXPORT_SECONDS."""
        # Otherwise the shutdown with an unreachable collector takes half a minute.
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(LAST_EXPORT_SECONDS)


def sending_to(endpoint: str) -> SpanProcessor:
    """Return traces that are sent to the collector at this URL, from a thread.

    Over gRPC, as TGI does, unless OpenTelemetry's own variable asks for `http/protobuf`.

    Raises:
        StartError: no such URL, no such protocol, or the packages are missing.
    """
    if not endpoint.startswith(("http://", "https://")):
        raise StartError(
            f"--otlp-endpoint must begin with http:// or https://. Given: {endpoint!r}."
        )
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get(
        "OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"
    )
    if protocol not in ("grpc", "http/protobuf"):
        raise StartError(
            "The environment variable OTEL_EXPORTER_OTLP_PROTOCOL must be grpc or http/protobuf. "
            f"Given: {protocol!r}."
        )
    try:
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        exporter = _grpc(endpoint) if protocol == "grpc" else _http(endpoint)
    except ImportError as error:
        raise StartError(
            f"--otlp-endpoint needs packages that are not installed ({error.name}). Install them "
            "with: pip install 'tgi-async[otel]'"
        ) from error
    return BatchSpanProcessor(exporter)


def parts_of(seen: RequestRecord) -> Iterator[ChildSpan]:
    """Yield the child spans: validation, then the queue time and the inference of each generation.

    A part that did not come to an end ended with the request. Names are TGI's.
    """
    validated = seen.validation
    if seen.failure in ("validation", "template"):
        validated = validated or seen.total
    if validated:
        yield ChildSpan("validate", seen.began_at, seen.began_at + round(validated * 1e9))
    for submitted, timings in seen.generations:
        began = seen.unix_time(submitted)
        if not timings.queued:
            yield ChildSpan("queued", began, seen.ended_at)
            continue
        started = began + round(timings.queued * 1e9)
        yield ChildSpan("queued", began, started)
        inferred = round(timings.inference * 1e9)
        yield ChildSpan("infer", started, started + inferred if inferred else seen.ended_at)


def attributes_of(seen: RequestRecord, model_id: str) -> Attributes:
    """Return the attributes of a request's span: HTTP's and generative AI's conventions, TGI's
    fields."""
    found: Attributes = {
        "http.request.method": seen.method,
        "url.path": seen.path,
        "url.scheme": seen.scheme,
        "server.address": seen.headers.get("host", ""),
        "client.address": seen.client,
        "gen_ai.operation.name": "chat" if seen.name == "chat_completions" else "text_completion",
        "gen_ai.provider.name": "tgi_async",
        "gen_ai.request.model": model_id,
        "gen_ai.response.model": model_id,
        "gen_ai.request.stream": seen.streamed,
        "gen_ai.usage.input_tokens": seen.n_prompt,
        "gen_ai.usage.output_tokens": seen.n_generated,
        **seen.tgi_fields(),
    }
    if seen.status is not None:
        found["http.response.status_code"] = seen.status
    if seen.request_id:
        found["http.response.header.x-request-id"] = [seen.request_id]
    if seen.finish_reasons:
        found["gen_ai.response.finish_reasons"] = list(seen.finish_reasons)
    if seen.first_event_at is not None:
        first = (seen.first_event_at - seen.began_at) / 1e9
        found["gen_ai.response.time_to_first_chunk"] = first
    if seen.requests:
        found |= _asked(seen.requests[0], len(seen.requests))
    return found


def _asked(request: GenerationRequest, n: int) -> Attributes:
    """Return the request's parameters that change anything."""
    sampling = request.sampling
    found: Attributes = {}
    if n > 1:
        found["gen_ai.request.choice.count"] = n
    if request.max_new_tokens is not None:
        found["gen_ai.request.max_tokens"] = request.max_new_tokens
    if request.stop:
        found["gen_ai.request.stop_sequences"] = list(request.stop)
    if sampling.do_sample:
        found["gen_ai.request.temperature"] = sampling.temperature
        if sampling.top_k:
            found["gen_ai.request.top_k"] = sampling.top_k
        if sampling.top_p < 1:
            found["gen_ai.request.top_p"] = sampling.top_p
        # The seed is unsigned; OpenTelemetry's whole numbers are not.
        if sampling.seed < 2**63:
            found["gen_ai.request.seed"] = sampling.seed
    if penalty := sampling.output_frequency_penalty or sampling.frequency_penalty:
        found["gen_ai.request.frequency_penalty"] = penalty
    if sampling.output_presence_penalty:
        found["gen_ai.request.presence_penalty"] = sampling.output_presence_penalty
    return found


def _grpc(endpoint: str) -> SpanExporter:
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(endpoint=endpoint)


def _http(endpoint: str) -> SpanExporter:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    path = "v1/traces"
    whole = endpoint if endpoint.endswith(path) else f"{endpoint.rstrip('/')}/{path}"
    return OTLPSpanExporter(endpoint=whole)
