"""A provider for imagegate in one file: it draws colour gradients.

It shows everything that proto/imagegate/v1/worker.proto asks of a worker: Describe says what the provider can
do, Generate carries out one call. It has no retries, no routing and no size rules of its own: the router has
fitted every request to Describe's answer before it comes here.

    python worker.py 127.0.0.1:50061

With --conform it also has the models that `imagegate conform` tests refusals and slowness with.
"""

import hashlib
import importlib
import random
import struct
import sys
import tempfile
import zlib
from concurrent import futures
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_tools import protoc

PROTO = Path(__file__).resolve().parents[2] / "proto"
CHUNK_BYTES = 256 * 1024


def generated_code():
    """Python code for the protos, made afresh at each start."""
    files = [f"imagegate/v1/{name}.proto" for name in ("image", "worker")]
    includes = [f"-I{PROTO}", f"-I{Path(protoc.__file__).parent / '_proto'}"]
    with tempfile.TemporaryDirectory(prefix="imagegate-worker-") as into:
        if protoc.main(["", *includes, f"--python_out={into}", f"--grpc_python_out={into}", *files]):
            sys.exit("the protos do not compile")
        sys.path.insert(0, into)
        names = ("image_pb2", "worker_pb2", "worker_pb2_grpc")
        return [importlib.import_module(f"imagegate.v1.{name}") for name in names]


image_pb2, worker_pb2, worker_pb2_grpc = generated_code()


class Gradient(worker_pb2_grpc.WorkerServiceServicer):
    """The provider `gradient`."""

    def Describe(self, request, context):
        """What the provider can do. The router asks now and then, and trusts the answer."""
        model = worker_pb2.ModelCapability(
            model="gradient-1",
            operations=[image_pb2.OPERATION_GENERATE],
            max_n=4,
            size=worker_pb2.SizeRule(free=worker_pb2.FreeSize(multiple_of=8, min_side=64, max_side=2048)),
            max_prompt_chars=1000,
            formats=[image_pb2.IMAGE_FORMAT_PNG],
            parameters=[worker_pb2.ParameterRule(name="seed")],
            prices=[worker_pb2.Price(item="image", usd=0.001)],
        )
        # Keyless: it needs no credential. With one, it would come in request.upstream.credential.
        provider = worker_pb2.Provider(name="gradient", models=[model], keyless=True)
        return worker_pb2.DescribeResponse(providers=[provider])

    def Generate(self, request, context):
        """One call: progress while it lasts, the images in chunks, then what there is to say about them."""
        wanted = request.image
        if request.provider != "gradient":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f'this worker does not serve "{request.provider}"')
        if wanted.model not in ("", "gradient-1"):
            context.abort(grpc.StatusCode.NOT_FOUND, f'there is no model "{wanted.model}"')
        if "forbidden" in wanted.prompt:
            # The codes are listed in worker.proto; this one is a refusal of the content.
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "this prompt is not allowed")
        size = wanted.size.dimensions
        width, height = size.width or 1024, size.height or 1024
        seed = wanted.seed if wanted.HasField("seed") else random.randrange(2**32)

        drawn = []
        count = wanted.n or 1
        for index in range(count):
            if not context.is_active():
                return  # cancelled, or the deadline has passed: nobody waits any more
            drawn.append(draw(wanted.prompt, seed + index, width, height))
            progress = image_pb2.Progress(fraction=len(drawn) / count, state="drawing")
            yield worker_pb2.GenerateResponse(progress=progress)

        images = []
        for index, data in enumerate(drawn):
            for start in range(0, len(data), CHUNK_BYTES):
                chunk = image_pb2.ImageChunk(image_index=index, data=data[start : start + CHUNK_BYTES])
                yield worker_pb2.GenerateResponse(image_chunk=chunk)
            images.append(
                image_pb2.Image(
                    format=image_pb2.IMAGE_FORMAT_PNG,
                    width=width,
                    height=height,
                    seed=seed + index,
                    finish_reason=image_pb2.FINISH_REASON_STOP,
                )
            )
        yield worker_pb2.GenerateResponse(done=worker_pb2.GenerateDone(images=images))


def draw(prompt, seed, width, height):
    """A PNG whose colours follow from prompt and seed."""
    digest = hashlib.sha256(f"{prompt}|{seed}".encode()).digest()
    top, bottom = digest[:3], digest[3:6]
    rows = []
    for y in range(height):
        part = y / height
        pixel = bytes(round(a + (b - a) * part) for a, b in zip(top, bottom, strict=True))
        rows.append(b"\0" + pixel * width)  # 0: the row is not filtered
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", zlib.compress(b"".join(rows)))
        + png_chunk(b"IEND", b"")
    )


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def main():
    arguments = [argument for argument in sys.argv[1:] if argument != "--conform"]
    address = arguments[0] if arguments else "127.0.0.1:50061"
    worker = Gradient()
    if "--conform" in sys.argv:
        from conformance import Testable

        worker = Testable(worker, worker_pb2, image_pb2)
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
    worker_pb2_grpc.add_WorkerServiceServicer_to_server(worker, server)
    status = health.HealthServicer()
    for service in (health.OVERALL_HEALTH, "imagegate.v1.WorkerService"):
        status.set(service, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(status, server)
    port = server.add_insecure_port(address)
    server.start()
    print(f"gradient listens on {address.rsplit(':', 1)[0]}:{port}", flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
