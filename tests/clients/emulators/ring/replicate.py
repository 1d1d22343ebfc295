"""Replicate: predictions of flux-dev, asked for and given up at the addresses that the first answer names."""

import base64
import re
import secrets

from ..pictures import look, picture
from ..server import Refused, Reply
from . import RingProvider

RATIOS = {"1:1": (1024, 1024), "16:9": (1344, 768), "21:9": (1536, 640), "3:2": (1216, 832), "4:3": (1152, 896)}
RATIOS |= {"5:4": (1088, 896)}
RATIOS |= {":".join(reversed(name.split(":"))): (height, width) for name, (width, height) in RATIOS.items()}
# Types of flux-dev's inputs, and the range of numbers.
INPUTS = {
    "prompt": (str, None),
    "image": (str, None),
    "aspect_ratio": (str, None),
    "output_format": (str, None),
    "megapixels": (str, None),
    "seed": (int, None),
    "num_outputs": (int, (1, 4)),
    "num_inference_steps": (int, (1, 50)),
    "output_quality": (int, (0, 100)),
    "prompt_strength": (float, (0, 1)),
    "guidance": (float, (0, 10)),
    "go_fast": (bool, None),
    "disable_safety_checker": (bool, None),
}


def problem(status, title, detail, headers=None, **more):
    body = {"title": title, "detail": detail, "status": status, "type": "about:blank", **more}
    return Reply.json(status, body, {"content-type": "application/problem+json", **(headers or {})})


def invalid(field, text):
    fields = [{"type": "invalid", "field": f"input.{field}", "description": text}]
    return Refused(problem(422, "Input validation failed", f"- input.{field}: {text}", invalid_fields=fields))


class Replicate(RingProvider):
    provider = "replicate"
    model = "black-forest-labs/flux-dev"
    max_n = 4
    polls = True
    cancels = True
    edits = True
    price_usd = 0.025

    def __init__(self):
        self.jobs = {}  # status, pictures, and how often it was asked for, by id
        self.held = False
        super().__init__()

    @property
    def base_url(self):
        return self.url + "/v1"

    @property
    def calls(self):
        return [request for request in super().calls if not request.path.endswith("/cancel")]

    def hold_jobs(self):
        self.held = True

    def error(self, status, headers=None):
        return problem(status, "Error", f"an error of status {status}", headers)

    def refusal(self, request):
        return self.submit(request, error="NSFW content detected. Try a different prompt.")

    def answer(self, request):
        if request.path.startswith("/files/"):
            assert "authorization" not in request.headers and request.method == "GET"
            _, _, job, index = request.path.split("/")
            return Reply(200, self.jobs[job]["pictures"][int(index.removesuffix(".webp"))], {"content-type": "image/webp"})
        if request.headers.get("authorization") != f"Bearer {self.key}":
            raise Refused(problem(401, "Unauthenticated", "You did not pass a valid authentication token"))
        if request.path == f"/v1/models/{self.model}/predictions" and request.method == "POST":
            return self.submit(request)
        found = re.fullmatch(r"/v1/predictions/(\w+)(/cancel)?", request.path)
        if not found or found[1] not in self.jobs or request.method != ("POST" if found[2] else "GET"):
            raise Refused(problem(404, "Not found", "The requested resource could not be found."))
        job = self.jobs[found[1]]
        if found[2]:
            job["status"] = "canceled"
            self.cancelled += 1
        elif job["status"] in ("starting", "processing") and not self.held:
            job["asked"] += 1
            job["status"] = "processing" if job["asked"] == 1 else "failed" if job["error"] else "succeeded"
        return Reply.json(200, self.prediction(found[1]))

    def submit(self, request, error=None):
        wait = re.fullmatch(r"wait(=([1-9]|[1-5]\d|60))?", request.headers.get("prefer", "wait"))
        if not wait:
            raise Refused(problem(400, "Bad request", "the Prefer header is not wait=1 to wait=60"))
        if request.content_type != "application/json" or set(request.json()) != {"input"}:
            raise Refused(problem(422, "Input validation failed", "- input: is required, and nothing else"))
        fields = request.json()["input"]
        self.check(fields)
        width, height = RATIOS[fields.get("aspect_ratio", "1:1")]
        kind = {"jpg": "jpeg"}.get(fields.get("output_format"), fields.get("output_format", "webp"))
        pictures = [picture(width, height, i, kind) for i in range(fields.get("num_outputs", 1))]
        job = secrets.token_hex(8)
        self.jobs[job] = {"status": "starting", "pictures": pictures, "asked": 0, "error": error}
        return Reply.json(201, self.prediction(job))

    def check(self, fields):
        if not fields.get("prompt"):
            raise invalid("prompt", "is required")
        for name, value in fields.items():
            if name not in INPUTS:
                raise invalid(name, "is no input of this model")
            kind, limits = INPUTS[name]
            if type(value) is not kind and not (kind is float and type(value) is int):
                raise invalid(name, "has the wrong type")
            if limits and not limits[0] <= value <= limits[1]:
                raise invalid(name, f"must be {limits[0]} to {limits[1]}")
        if fields.get("aspect_ratio", "1:1") not in RATIOS:
            raise invalid("aspect_ratio", "is none of the ratios")
        if fields.get("output_format", "webp") not in ("webp", "jpg", "png"):
            raise invalid("output_format", "must be webp, jpg or png")
        if "image" in fields and not fields["image"].startswith("https://"):
            try:
                look(base64.b64decode(fields["image"].split(";base64,")[1], validate=True))
            except Exception:
                raise invalid("image", "is neither an address nor a data url of an image") from None

    def prediction(self, job):
        known = self.jobs[job]
        done = known["status"] == "succeeded"
        output = [f"{self.url}/files/{job}/{i}.webp" for i in range(len(known["pictures"]))] if done else None
        at = f"{self.base_url}/predictions/{job}"
        return {
            "id": job,
            "model": self.model,
            "version": "hidden",
            "status": known["status"],
            "output": output,
            "error": known["error"] if known["status"] == "failed" else None,
            "logs": "Using seed: 42\n",
            "metrics": {"predict_time": 0.1} if done else {},
            "urls": {"get": at, "cancel": at + "/cancel", "stream": at + "/stream"},
        }
