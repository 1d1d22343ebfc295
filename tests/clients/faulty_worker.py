"""A worker that keeps every promise, and others that break exactly one: what `imagegate conform` must find."""

import io
import sys
import threading
import time
from concurrent import futures

import grpc
from google.rpc import status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from PIL import Image

from gateway import ROOT

sys.path.insert(0, str(ROOT / "examples" / "worker-python"))
from conformance import Testable  # noqa: E402
from worker import CHUNK_BYTES, image_pb2, worker_pb2, worker_pb2_grpc  # noqa: E402

KEY = "the-right-key"
FORMATS = {image_pb2.IMAGE_FORMAT_PNG: "PNG", image_pb2.IMAGE_FORMAT_JPEG: "JPEG"}
# Faults by name: the worker's class, and the checks that must fail.
FAULTS = {}


def breaks(*checks):
    def register(kind):
        FAULTS[kind.__name__] = (kind, set(checks))
        return kind

    return register


class Paint(worker_pb2_grpc.WorkerServiceServicer):
    """The provider `paint`, without a fault. Images have one colour, which the seed decides."""

    has_health = True

    def record(self):
        model = worker_pb2.ModelCapability(
            model="paint-1",
            operations=[image_pb2.OPERATION_GENERATE, image_pb2.OPERATION_EDIT, image_pb2.OPERATION_INPAINT],
            max_n=3,
            size=worker_pb2.SizeRule(free=worker_pb2.FreeSize(multiple_of=8, min_side=64, max_side=512)),
            max_prompt_chars=200,
            max_inputs=2,
            formats=FORMATS,
            parameters=[
                worker_pb2.ParameterRule(name="quality", values=["low", "high"]),
                worker_pb2.ParameterRule(name="guidance", min=1, max=9.5),
                worker_pb2.ParameterRule(name="seed"),
            ],
            max_partial_images=1,
            prices=[worker_pb2.Price(item="credit", usd=0.01)],
        )
        return worker_pb2.Provider(name="paint", models=[model])

    def Describe(self, request, context):
        return worker_pb2.DescribeResponse(providers=[self.record()])

    def Generate(self, request, context):
        if request.provider != "paint":
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "not served here")
        if request.upstream.credential.api_key != KEY:
            self.deny(context)
        if request.image.model not in ("", "paint-1"):
            self.unknown(context)
        self.accept(request.image, context)
        yield from self.answer(request.image)

    def deny(self, context):
        context.abort(grpc.StatusCode.UNAUTHENTICATED, "wrong key")

    def unknown(self, context):
        context.abort(grpc.StatusCode.NOT_FOUND, "no such model")

    def accept(self, image, context):
        chars, allowed = len(image.prompt), self.record().models[0].max_prompt_chars
        if chars > allowed:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{chars} characters of {allowed}")

    def answer(self, image):
        yield worker_pb2.GenerateResponse(progress=image_pb2.Progress(fraction=0.5))
        yield from self.previews(image)
        painted = [self.paint(image, index) for index in range(self.count(image))]
        yield from self.chunks(painted)
        yield from self.last(self.done(image, painted))

    def previews(self, image):
        for index in range(image.partial_images):
            preview = image_pb2.PartialImage(data=self.paint(image, 0), partial_index=index)
            yield worker_pb2.GenerateResponse(partial_image=preview)

    def count(self, image):
        return image.n or 1

    def size(self, image):
        return image.size.dimensions.width, image.size.dimensions.height

    def format(self, image):
        return FORMATS.get(image.output.format, "PNG")

    def paint(self, image, index):
        into = io.BytesIO()
        Image.new("RGB", self.size(image), ((image.seed + index) * 40 % 256, 80, 160)).save(into, self.format(image))
        return into.getvalue()

    def chunks(self, painted):
        for index, data in enumerate(painted):
            for start in range(0, len(data), CHUNK_BYTES):
                yield self.chunk(index, data[start : start + CHUNK_BYTES])

    def chunk(self, index, data):
        return worker_pb2.GenerateResponse(image_chunk=image_pb2.ImageChunk(image_index=index, data=data))

    def done(self, image, painted):
        images = []
        for index, data in enumerate(painted):
            whole = Image.open(io.BytesIO(data))
            kind = next(kind for kind, name in FORMATS.items() if name == whole.format)
            images.append(
                image_pb2.Image(
                    format=kind,
                    width=whole.width,
                    height=whole.height,
                    finish_reason=image_pb2.FINISH_REASON_STOP,
                )
            )
            if image.HasField("seed"):
                images[-1].seed = image.seed + index
        return worker_pb2.GenerateDone(images=images, usage=image_pb2.Usage(credits=len(images)))

    def last(self, done):
        yield worker_pb2.GenerateResponse(done=done)


class Testing(Testable):
    """Paint with the models that show how it fails. A large image takes long, and is asked for only where it matters."""

    endings = tuple(ending for ending in Testable.endings if ending != "large")


class serving:
    """A worker with a fault, or without one, on a port of its own: `with serving("WrongSize") as uri`."""

    def __init__(self, fault=None):
        kind, _ = FAULTS.get(fault, (Paint, ()))
        worker = kind() if issubclass(kind, Paint) else Paint()
        tested = kind if issubclass(kind, Testable) else Testing if fault else Testable
        self.server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
        servicer = tested(worker, worker_pb2, image_pb2)
        worker_pb2_grpc.add_WorkerServiceServicer_to_server(servicer, self.server)
        if worker.has_health:
            status = health.HealthServicer()
            for service in (health.OVERALL_HEALTH, "imagegate.v1.WorkerService"):
                status.set(service, health_pb2.HealthCheckResponse.SERVING)
            health_pb2_grpc.add_HealthServicer_to_server(status, self.server)
        self.port = self.server.add_insecure_port("127.0.0.1:0")

    def __enter__(self):
        self.server.start()
        return f"http://127.0.0.1:{self.port}"

    def __exit__(self, *_):
        self.server.stop(0)


@breaks("health")
class HealthMissing(Paint):
    has_health = False


@breaks("describe")
class DescribeChanges(Paint):
    described = 0

    def Describe(self, request, context):
        answer = super().Describe(request, context)
        self.described += 1
        answer.providers[0].models[0].max_prompt_chars -= self.described
        return answer


@breaks("record")
class RecordMakesNoSense(Paint):
    def record(self):
        record = super().record()
        record.models[0].lifecycle.retired_on = "2999-02-30"
        return record


@breaks("call")
class NothingWorks(Paint):
    def accept(self, image, context):
        context.abort(grpc.StatusCode.INTERNAL, f"nobody has paid for {KEY}")


@breaks("size")
class WrongSize(Paint):
    def size(self, image):
        width, height = super().size(image)
        return width + 8, height


@breaks("count")
class CountIgnored(Paint):
    def count(self, image):
        return 1


@breaks("format")
class FormatIgnored(Paint):
    def format(self, image):
        return "PNG"


@breaks("prompt")
class PromptCountedInBytes(Paint):
    def accept(self, image, context):
        if len(image.prompt.encode()) > 200:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the prompt is too long")


@breaks("parameters")
class DeclaredValueRejected(Paint):
    def accept(self, image, context):
        if image.quality == image_pb2.QUALITY_HIGH:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "quality high is not allowed")


@breaks("parameters")
class LimitRejected(Paint):
    def accept(self, image, context):
        if image.guidance > 9:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "guidance is at most 9")


@breaks("inputs")
class MaskRejected(Paint):
    def accept(self, image, context):
        if image.HasField("mask"):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "masks are not supported")


@breaks("inputs")
class SecondInputRejected(Paint):
    def accept(self, image, context):
        if len(image.inputs) > 1:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "one image, please")


@breaks("progress")
class PreviewsUnasked(Paint):
    def previews(self, image):
        yield worker_pb2.GenerateResponse(partial_image=image_pb2.PartialImage(data=self.paint(image, 0)))


@breaks("done")
class DoneTwice(Paint):
    def last(self, done):
        yield from super().last(done)
        yield from super().last(done)


@breaks("done")
class DoneMissing(Paint):
    def last(self, done):
        yield from ()


@breaks("done")
class DataInDone(Paint):
    def done(self, image, painted):
        done = super().done(image, painted)
        done.images[0].data = painted[0]
        return done


@breaks("chunks")
class ChunksTooLarge(Paint):
    def chunks(self, painted):
        for index, data in enumerate(painted):
            yield self.chunk(index, data + bytes(CHUNK_BYTES))


@breaks("chunks")
class ChunksOutOfOrder(Paint):
    def chunks(self, painted):
        yield from reversed(list(super().chunks(painted)))


@breaks("chunks")
class ChunksOfAnotherImage(Paint):
    def chunk(self, index, data):
        return super().chunk(index + 1, data)


@breaks("images")
class Truncated(Paint):
    def chunks(self, painted):
        yield from super().chunks([data[: len(data) // 2] for data in painted])


@breaks("images")
class ImageMissing(Paint):
    def chunks(self, painted):
        yield from super().chunks(painted[:-1])


@breaks("images")
class DoneLies(Paint):
    def done(self, image, painted):
        done = super().done(image, painted)
        done.images[0].width += 1
        return done


@breaks("usage")
class NothingCounted(Paint):
    def done(self, image, painted):
        return worker_pb2.GenerateDone(images=super().done(image, painted).images)


@breaks("cost")
class NegativeCost(Paint):
    def done(self, image, painted):
        done = super().done(image, painted)
        done.reported_cost_usd = -0.02
        return done


@breaks("concurrency")
class AnswersMixedUp(Paint):
    """The request is kept where the next one finds it."""

    def answer(self, image):
        self.image = image
        time.sleep(0.03)
        yield from super().answer(self.image)


@breaks("unknown-model")
class UnknownModelIsUnknown(Paint):
    def unknown(self, context):
        raise KeyError("model")


@breaks("unknown-model")
class AnyModelTaken(Paint):
    def unknown(self, context):
        pass


@breaks("bad-credential")
class WrongKeyIsInternal(Paint):
    def deny(self, context):
        context.abort(grpc.StatusCode.INTERNAL, "status 401")


@breaks("refusal")
class RefusalIsSuccess(Testing):
    def play_refuse(self, request, context, value, others):
        yield from self.worker.Generate(request, context)


@breaks("refusal")
class RefusalIsInternal(Testing):
    def play_refuse(self, request, context, value, others):
        context.abort(grpc.StatusCode.INTERNAL, "the filter said no")
        yield


class Disagreeing(grpc.Status):
    code = grpc.StatusCode.FAILED_PRECONDITION
    details = "refused"
    trailing_metadata = (("grpc-status-details-bin", status_pb2.Status(code=13).SerializeToString()),)


@breaks("error-details")
class DetailsDisagree(Testing):
    def play_refuse(self, request, context, value, others):
        context.abort_with_status(Disagreeing())
        yield


@breaks("rate-limit")
class RateLimitIsUnavailable(Testing):
    def play_fail(self, request, context, value, others):
        context.abort(grpc.StatusCode.UNAVAILABLE, "status 429")
        yield


@breaks("rate-limit")
class RateLimitWithoutTime(Testing):
    def play_fail(self, request, context, value, others):
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "status 429")
        yield


@breaks("large-image")
class LargeImageTooLarge(Testable):
    def play_large(self, request, context, value, others):
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "message larger than max")
        yield


@breaks("deadline")
class DeadlineIgnored(Testing):
    """It hears a caller that leaves, but not a deadline that passes."""

    def play_slow(self, request, context, value, others):
        gone = threading.Event()
        until = time.monotonic() + int(value) / 1000
        context.add_callback(gone.set)
        if gone.wait(int(value) / 1000) and context.time_remaining() > 0:
            return
        time.sleep(max(0, until - time.monotonic()))
        yield from self.worker.Generate(request, context)


@breaks("cancellation")
class CancellationIgnored(Testing):
    """It looks at the deadline, but not at the caller."""

    def play_slow(self, request, context, value, others):
        time.sleep(max(0, min(int(value) / 1000, context.time_remaining())))
        if context.time_remaining() < 0.1:
            context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "out of time")
        yield from self.worker.Generate(request, context)
