"""A receiver of OTLP, over gRPC or over HTTP, that keeps what it is sent. It knows the protocol and nothing of the gateway."""

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics_pb, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as traces_pb, trace_service_pb2_grpc

KINDS = {2: "server", 3: "client"}
STATUSES = {0: "unset", 1: "ok", 2: "error"}


def plain(value):
    """An attribute's value."""
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [plain(one) for one in value.array_value.values]
    return getattr(value, kind) if kind else None


def attributes(pairs):
    found = {pair.key: plain(pair.value) for pair in pairs}
    assert len(found) == len(pairs), f"a name is there twice: {pairs}"
    return found


@dataclass
class Span:
    """One span, with its ids in digits."""

    name: str
    kind: str
    trace: str
    id: str
    parent: str
    state: str
    flags: int
    start: int
    end: int
    attributes: dict
    events: list  # names and attributes, in their order
    status: str
    message: str
    resource: dict = field(repr=False)
    text: str = field(repr=False)  # all of it

    @classmethod
    def read(cls, span, resource):
        times = [event.time_unix_nano for event in span.events]
        assert all(span.start_time_unix_nano <= time <= span.end_time_unix_nano for time in times)
        return cls(
            name=span.name,
            kind=KINDS.get(span.kind, span.kind),
            trace=span.trace_id.hex(),
            id=span.span_id.hex(),
            parent=span.parent_span_id.hex(),
            state=span.trace_state,
            flags=span.flags,
            start=span.start_time_unix_nano,
            end=span.end_time_unix_nano,
            attributes=attributes(span.attributes),
            events=[(event.name, attributes(event.attributes)) for event in span.events],
            status=STATUSES[span.status.code],
            message=span.status.message,
            resource=attributes(resource.attributes),
            text=str(span),
        )


class Collector:
    """`Collector("grpc")` or `Collector("http")`. It listens from `start` to `stop`, always at the same port."""

    def __init__(self, protocol):
        self._protocol = protocol
        self._changed = threading.Condition()
        self._server = None
        self.spans, self.metrics, self.headers = [], [], []
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self):
        if self._protocol == "grpc":
            self._server = grpc.server(ThreadPoolExecutor(2))
            trace_service_pb2_grpc.add_TraceServiceServicer_to_server(_Grpc(self, traces_pb.ExportTraceServiceResponse), self._server)
            metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(_Grpc(self, metrics_pb.ExportMetricsServiceResponse), self._server)
            assert self._server.add_insecure_port(f"127.0.0.1:{self.port}") == self.port
            self._server.start()
        else:
            self._server = ThreadingHTTPServer(("127.0.0.1", self.port), _Http)
            self._server.collector = self
            threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def stop(self):
        server, self._server = self._server, None
        if server is None:
            return
        if self._protocol == "grpc":
            server.stop(None).wait(10)
        else:
            server.shutdown()
            server.server_close()

    def take(self, request, headers):
        with self._changed:
            self.headers.append(headers)
            for group in getattr(request, "resource_spans", []):
                for scope in group.scope_spans:
                    assert scope.scope.name == "imagegate"
                    self.spans.extend(Span.read(span, group.resource) for span in scope.spans)
            for group in getattr(request, "resource_metrics", []):
                self.metrics.append([metric for scope in group.scope_metrics for metric in scope.metrics])
            self._changed.notify_all()

    def wait_for_spans(self, count, timeout=15):
        """Waits until so many have come, and gives all."""
        return self._wait(lambda: len(self.spans) >= count and list(self.spans), timeout, f"{count} spans")

    def wait_for_metrics(self, timeout=15):
        """Waits until something measured has come, and gives the last of each by its name."""
        newest = lambda: self.metrics and {metric.name: metric for metric in self.metrics[-1]}
        return self._wait(newest, timeout, "metrics")

    def _wait(self, condition, timeout, what):
        with self._changed:
            if not self._changed.wait_for(condition, timeout):
                raise AssertionError(f"no {what} within {timeout} s, but {self.spans}")
            return condition()


class _Grpc:
    """Either service."""

    def __init__(self, collector, answer):
        self._collector, self._answer = collector, answer

    def Export(self, request, context):  # noqa: N802
        self._collector.take(request, dict(context.invocation_metadata()))
        return self._answer()


class _Http(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    REQUESTS = {"/v1/traces": traces_pb.ExportTraceServiceRequest, "/v1/metrics": metrics_pb.ExportMetricsServiceRequest}

    def do_POST(self):  # noqa: N802
        assert self.headers["content-type"] == "application/x-protobuf"
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.collector.take(self.REQUESTS[self.path].FromString(body), {k.lower(): v for k, v in self.headers.items()})
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass
