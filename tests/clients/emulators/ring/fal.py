"""fal's queue with flux/dev: submission, state, result and cancellation at the addresses of the first answer."""

import base64
import re
import secrets

from ..pictures import look, picture
from ..server import Refused, Reply
from . import RingProvider

NAMED = {
    "square_hd": (1024, 1024),
    "square": (512, 512),
    "portrait_4_3": (768, 1024),
    "portrait_16_9": (576, 1024),
    "landscape_4_3": (1024, 768),
    "landscape_16_9": (1024, 576),
}
# Types of inputs, and the range of numbers.
COMMON = {
    "prompt": (str, None),
    "seed": (int, None),
    "num_images": (int, (1, 4)),
    "num_inference_steps": (int, (1, 50)),
    "guidance_scale": (float, (1, 20)),
    "output_format": (str, None),
    "enable_safety_checker": (bool, None),
    "sync_mode": (bool, None),
    "acceleration": (str, None),
}
INPUTS = {
    "/fal-ai/flux/dev": COMMON | {"image_size": (object, None)},
    "/fal-ai/flux/dev/image-to-image": COMMON | {"image_url": (str, None), "strength": (float, (0, 1))},
}
VIOLATION = "content_policy_violation"


def problem(field, text, kind="value_error"):
    detail = [{"loc": ["body", field], "msg": text, "type": kind, "url": f"https://docs.fal.ai/errors#{kind}"}]
    return Reply.json(422, {"detail": detail})


class Fal(RingProvider):
    provider = "fal"
    model = "fal-ai/flux/dev"
    max_n = 4
    polls = True
    cancels = True
    edits = True

    def __init__(self):
        self.jobs = {}  # status, pictures and the error that is its result, by id
        self.held = False
        super().__init__()

    def hold_jobs(self):
        self.held = True

    def error(self, status, headers=None):
        return Reply.json(status, {"detail": f"an error of status {status}"}, headers)

    def refusal(self, request):
        return self.submit(request, problem("prompt", "flagged by a content checker", VIOLATION))

    def answer(self, request):
        if request.path.startswith("/files/"):
            assert "authorization" not in request.headers and request.method == "GET"
            _, _, job, index = request.path.split("/")
            return Reply(200, self.jobs[job]["pictures"][int(index)], {"content-type": "image/jpeg"})
        if request.headers.get("authorization") != f"Key {self.key}":
            raise Refused(Reply.json(401, {"detail": "Cannot access application: invalid key"}))
        if request.path in INPUTS:
            if request.method != "POST":
                raise Refused(Reply.json(405, {"detail": "Method Not Allowed"}))
            return self.submit(request)
        # Only the owner and the app stand there, not what is below the app.
        found = re.fullmatch(r"/fal-ai/flux/requests/(\w+)(/status|/cancel)?", request.path)
        if not found or found[1] not in self.jobs:
            raise Refused(Reply.json(404, {"detail": "Request not found"}))
        if request.method != ("PUT" if found[2] == "/cancel" else "GET"):
            raise Refused(Reply.json(405, {"detail": "Method Not Allowed"}))
        return {"/status": self.state, "/cancel": self.cancel, None: self.result}[found[2]](found[1])

    def submit(self, request, failure=None):
        if request.content_type != "application/json":
            raise Refused(problem("body", "is no JSON"))
        fields = request.json()
        size = self.check(INPUTS[request.path], fields)
        kind = fields.get("output_format", "jpeg")
        pictures = [picture(*size, i, kind) for i in range(fields.get("num_images", 1))]
        job = secrets.token_hex(8)
        self.jobs[job] = {"states": ["IN_QUEUE", "IN_PROGRESS"], "pictures": pictures, "failure": failure}
        at = f"{self.url}/fal-ai/flux/requests/{job}"
        urls = {"response_url": at, "status_url": at + "/status", "cancel_url": at + "/cancel"}
        return Reply.json(200, {"request_id": job, "status": "IN_QUEUE", "queue_position": 1, **urls})

    def check(self, inputs, fields):
        """The size of the result."""
        for name in {"prompt", "image_url"} & set(inputs):
            if not fields.get(name):
                raise Refused(problem(name, "field required", "missing"))
        for name, value in fields.items():
            if name not in inputs:
                raise Refused(problem(name, "extra fields are not permitted", "extra_forbidden"))
            kind, limits = inputs[name]
            if kind is not object and type(value) is not kind and not (kind is float and type(value) is int):
                raise Refused(problem(name, "has the wrong type", "type_error"))
            if limits and not limits[0] <= value <= limits[1]:
                raise Refused(problem(name, f"must be {limits[0]} to {limits[1]}", "less_than_equal"))
        if fields.get("output_format", "jpeg") not in ("jpeg", "png"):
            raise Refused(problem("output_format", "must be jpeg or png", "enum"))
        if "image_url" in fields:
            try:
                return look(base64.b64decode(fields["image_url"].split(";base64,")[1], validate=True)).size
            except Exception:
                raise Refused(problem("image_url", "cannot be loaded", "image_load_error")) from None
        size = fields.get("image_size", "landscape_4_3")
        if size in list(NAMED):
            return NAMED[size]
        if type(size) is not dict or set(size) != {"width", "height"} or not all(64 <= side <= 2048 for side in size.values()):
            raise Refused(problem("image_size", "is neither a name nor two sides", "enum"))
        return size["width"], size["height"]

    def state(self, job):
        states = self.jobs[job]["states"]
        if not states:
            return Reply.json(200, {"status": "COMPLETED", "request_id": job, "metrics": {"inference_time": 0.1}})
        state = states[0] if self.held else states.pop(0)
        return Reply.json(202, {"status": state, "request_id": job, **({"queue_position": 0} if state == "IN_QUEUE" else {})})

    def cancel(self, job):
        if not self.jobs[job]["states"]:
            return Reply.json(400, {"status": "ALREADY_COMPLETED"})
        self.cancelled += 1
        return Reply.json(202, {"status": "CANCELLATION_REQUESTED"})

    def result(self, job):
        known = self.jobs[job]
        if known["states"]:
            return Reply.json(400, {"detail": "Request is still in progress"})
        if known["failure"]:
            return known["failure"]
        images = [{"url": f"{self.url}/files/{job}/{i}", "content_type": "image/jpeg"} for i in range(len(known["pictures"]))]
        body = {"images": images, "seed": 7, "has_nsfw_concepts": [False] * len(images), "timings": {}}
        return Reply.json(200, body, {"x-fal-request-id": job})
