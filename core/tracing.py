"""Traces of what coordinator and workers do, sent to a collector by OpenTelemetry (OTLP over HTTP).

Off until ``start``: nothing of OpenTelemetry's SDK is imported, and a span is a look at a variable.
A span says what was asked of whom and how long it took. It holds only attributes of a closed list:
no bodies, no queries of URLs, no values of statements, no messages of exceptions, no clients.

Sites are not traced: how long a site works says how many records it holds.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span as OtelSpan
    from opentelemetry.trace import SpanKind

Kind = Literal["internal", "server", "client", "producer", "consumer"]
Value = str | int
HEADER = "traceparent"
ATTRIBUTES = frozenset(
    {
        "db.operation.name",
        "db.system.name",
        "error.type",
        "fhv.problem",
        "fhv.request_id",
        "fhv.subject",
        "http.request.method",
        "http.response.status_code",
        "http.route",
        "messaging.destination.name",
        "messaging.message.id",
        "messaging.system",
        "url.path",
    }
)
_SCOPE = "fedhypevae"
_PATIENCE_S = 3.0  # with a collector, for one batch; a process that ends waits no longer

_provider: TracerProvider | None = None


class Span:
    """What happens now. Of a trace that nobody wants, nothing is kept."""

    def __init__(self, inner: OtelSpan | None) -> None:
        self._inner = inner

    def note(self, attributes: Mapping[str, Value], name: str | None = None) -> None:
        """Add attributes, and give it its final name. Raises ``ValueError`` for an attribute that
        is not in the list.
        """
        if self._inner is None:
            return
        self._inner.set_attributes(_checked(attributes))
        if name is not None:
            self._inner.update_name(name)

    def fail(self, kind: str) -> None:
        """It did not succeed. ``kind``: a type or a code, never a message."""
        if self._inner is not None:
            from opentelemetry.trace import Status, StatusCode

            self._inner.set_attribute("error.type", kind)
            self._inner.set_status(Status(StatusCode.ERROR))

    def end(self) -> None:
        """For a span from ``begin``."""
        if self._inner is not None:
            self._inner.end()


_NOTHING = nullcontext(Span(None))  # can be entered any number of times


def usable(endpoint: str | None) -> str | None:
    """The collector's URL, None if there is none. Raises ``ValueError`` for what is no such URL."""
    if not endpoint:
        return None
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be http://host[:port] or https://host[:port]")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must hold no user or password: set OTEL_EXPORTER_OTLP_HEADERS")
    return endpoint.rstrip("/")


def start(service: str, endpoint: str, version: str) -> None:
    """Trace this process from now on. A collector that is away costs spans and nothing else."""
    global _provider
    if _provider is not None:
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    logging.getLogger("opentelemetry").setLevel(logging.ERROR)  # a line a batch, not one a retry
    about = Resource.create({"service.name": service, "service.version": version})
    provider = TracerProvider(resource=about)  # the sampler is that of OTEL_TRACES_SAMPLER
    exporter = OTLPSpanExporter(endpoint=f"{endpoint}/v1/traces", timeout=_PATIENCE_S)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    _provider = provider


def stop() -> None:
    """Send what is left, for a few seconds at most."""
    global _provider
    if _provider is not None:
        provider, _provider = _provider, None
        provider.shutdown()


def is_on() -> bool:
    return _provider is not None


def current() -> str | None:
    """The present span as a ``traceparent``; None without one."""
    if _provider is None:
        return None
    from opentelemetry import trace

    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return None
    flags = int(context.trace_flags)
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{flags:02x}"


def headers() -> dict[str, str]:
    """What a request or a message carries, so that its receiver goes on with this trace."""
    found = current()
    return {} if found is None else {HEADER: found}


def span(
    name: str,
    kind: Kind = "internal",
    attributes: Mapping[str, Value] | None = None,
    *,
    parent: str | None = None,
) -> AbstractContextManager[Span]:
    """A span for the time of a block, below ``parent`` (a ``traceparent``) or the present one; the
    first of a trace if there is neither. An exception that leaves the block is named by its type.
    """
    if _provider is None:
        return _NOTHING
    return _spanned(_provider, name, kind, attributes or {}, parent)


def child(
    name: str, kind: Kind = "internal", attributes: Mapping[str, Value] | None = None
) -> AbstractContextManager[Span]:
    """``span`` within a trace; outside of one, nothing."""
    return _NOTHING if current() is None else span(name, kind, attributes)


def begin(name: str, kind: Kind, attributes: Mapping[str, Value]) -> Span | None:
    """A span below the present one, to be ended by its ``end``; outside of a trace, None."""
    if _provider is None or current() is None:
        return None
    tracer = _provider.get_tracer(_SCOPE)
    return Span(tracer.start_span(name, kind=_kind(kind), attributes=_checked(attributes)))


@contextmanager
def _spanned(
    provider: TracerProvider,
    name: str,
    kind: Kind,
    attributes: Mapping[str, Value],
    parent: str | None,
) -> Iterator[Span]:
    with provider.get_tracer(_SCOPE).start_as_current_span(
        name,
        context=_context(parent),
        kind=_kind(kind),
        attributes=_checked(attributes),
        record_exception=False,  # its message may quote anything
        set_status_on_exception=False,
    ) as inner:
        made = Span(inner)
        try:
            yield made
        except BaseException as error:
            made.fail(type(error).__name__)
            raise


def _context(parent: str | None) -> Context | None:
    if parent is None:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({HEADER: parent})


def _kind(kind: Kind) -> SpanKind:
    from opentelemetry.trace import SpanKind

    return SpanKind[kind.upper()]


def _checked(attributes: Mapping[str, Value]) -> Mapping[str, Value]:
    if unknown := set(attributes) - ATTRIBUTES:
        raise ValueError(f"no span has {sorted(unknown)}: see core.tracing.ATTRIBUTES")
    return attributes
