"""Models to test a worker with, around any worker: `<provider>-refuse`, `-fail-429`, `-slow-<ms>`, `-large`, `-idle`.

`imagegate conform` asks for them, to see what no worker does unasked. docs/writing-a-worker.md says what each
promises. Serve them for tests only.
"""

import struct
import threading
import zlib

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

PADDING_BYTES = 64_000_000
CHUNK_BYTES = 256 * 1024


class Testable:
    """A worker with these models besides its own. Each works like the provider's first model, but for its name."""

    endings = ("refuse", "fail-*", "slow-*", "large", "idle")

    def __init__(self, worker, worker_pb2, image_pb2):
        self.worker, self.worker_pb2, self.image_pb2 = worker, worker_pb2, image_pb2
        self.lock = threading.Lock()
        self.working = 0

    def Describe(self, request, context):
        answer = self.worker.Describe(request, context)
        for provider in answer.providers:
            first = provider.models[0]
            for ending in self.endings:
                provider.models.add().CopyFrom(first)
                provider.models[-1].model = f"{provider.name}-{ending}"
        return answer

    def Generate(self, request, context):
        with self.lock:
            others, self.working = self.working, self.working + 1
        try:
            kind, _, value = request.image.model.removeprefix(f"{request.provider}-").partition("-")
            play = getattr(self, f"play_{kind}", None)
            if play is None:
                yield from self.worker.Generate(request, context)
                return
            request.image.model = ""
            yield from play(request, context, value, others)
        finally:
            with self.lock:
                self.working -= 1

    def play_refuse(self, request, context, value, others):
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "this prompt is refused, as its model says")
        yield

    def play_fail(self, request, context, value, others):
        """A rate limit, with the time after which the router may come back."""
        wait = any_pb2.Any()
        wait.Pack(error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=1)))
        message = "too many requests, as the model says"
        status = status_pb2.Status(code=code_pb2.RESOURCE_EXHAUSTED, message=message, details=[wait])
        context.abort_with_status(rpc_status.to_status(status))
        yield

    def play_slow(self, request, context, value, others):
        """Waits as long as somebody waits for it."""
        gone = threading.Event()
        if not context.add_callback(gone.set) or gone.wait(int(value) / 1000):
            return
        yield from self.worker.Generate(request, context)

    def play_large(self, request, context, value, others):
        events = list(self.worker.Generate(request, context))
        png = b"".join(event.image_chunk.data for event in events if event.WhichOneof("event") == "image_chunk")
        png = padded(png)
        for start in range(0, len(png), CHUNK_BYTES):
            chunk = self.image_pb2.ImageChunk(image_index=0, data=png[start : start + CHUNK_BYTES])
            yield self.worker_pb2.GenerateResponse(image_chunk=chunk)
        yield events[-1]

    def play_idle(self, request, context, value, others):
        if others:
            context.abort(grpc.StatusCode.UNAVAILABLE, f"working at {others} other calls")
        yield from self.worker.Generate(request, context)


def padded(png):
    """The same PNG with 64 MB that mean nothing, in a chunk that decoders skip."""
    body = b"paDd" + bytes(PADDING_BYTES)
    chunk = struct.pack(">I", PADDING_BYTES) + body + struct.pack(">I", zlib.crc32(body))
    end = len(png) - 12  # the IEND chunk
    return png[:end] + chunk + png[end:]
