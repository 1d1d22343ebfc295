"""A server of one's own in the manner of LocalAI and stable-diffusion.cpp.

It ignores fields that it does not know, as they do, and is strict about those that it does. It gives an address for
every second call, whatever was asked for.
"""

import base64
import re
import secrets
import time

from ..pictures import look, picture
from ..server import Refused, Reply
from . import RingProvider

MODEL = "flux.1-dev"
TYPES = {
    "prompt": str,
    "n": int,
    "size": str,
    "seed": int,
    "num_inference_steps": int,
    "guidance_scale": (int, float),
    "negative_prompt": str,
    "response_format": str,
    "output_format": str,
}


def failure(status, message, headers=None):
    return Reply.json(status, {"error": {"code": status, "message": message, "type": ""}}, headers)


def refuse(message, status=400):
    raise Refused(failure(status, message))


class OpenAiCompatible(RingProvider):
    provider = "openai-compatible"
    model = MODEL
    size = "768x512"
    edits = True

    def __init__(self):
        self.stored = {}
        self.served = 0
        super().__init__()

    @property
    def base_url(self):
        return self.url + "/v1"

    def answer(self, request):
        if request.path.startswith("/generated-images/"):
            return self._file(request)
        if request.headers.get("authorization") != f"Bearer {self.key}":
            refuse("An authentication key is required", 401)
        if request.path not in ("/v1/images/generations", "/v1/images/edits"):
            refuse("Resource not found", 404)
        if request.method != "POST":
            refuse("Method not allowed", 405)
        body = self._edit(request) if request.path.endswith("/edits") else self._generation(request)
        width, height = self._check(body)
        data = []
        for i in range(body.get("n", 1)):
            image = picture(width, height, i, body.get("output_format", "png"))
            data.append(self._entry(image))
        usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        return Reply.json(200, {"created": int(time.time()), "id": secrets.token_hex(8), "data": data, "usage": usage})

    def _generation(self, request):
        if request.content_type != "application/json":
            refuse("Unsupported media type", 415)
        try:
            return request.json()
        except ValueError:
            refuse("the body is not json")

    def _edit(self, request):
        if request.content_type != "multipart/form-data":
            refuse("Unsupported media type", 415)
        files = [part for part in request.files if part.name in ("image", "image[]")]
        if not files:
            refuse("image is required")
        for part in request.files:
            if part.name not in ("image", "image[]", "mask"):
                refuse(f"unexpected file {part.name}")
            if look(part.data).get_format_mimetype() != part.content_type:
                refuse(f"{part.name} is not of the type that it states")
        numbers = {"n": int, "seed": int, "num_inference_steps": int, "guidance_scale": float}
        return {name: numbers.get(name, str)(text) for name, text in request.form.items()}

    def _check(self, body):
        if body.get("model") != MODEL:
            refuse(f"model {body.get('model')} not found", 404)
        for name, kinds in TYPES.items():
            if name in body and (not isinstance(body[name], kinds) or isinstance(body[name], bool)):
                refuse(f"{name} has the wrong type")
        if not body.get("prompt"):
            refuse("prompt is required")
        if not 1 <= body.get("n", 1) <= 4:
            refuse("n is out of range")
        if body.get("response_format", "url") not in ("url", "b64_json"):
            refuse("response_format is invalid")
        if body.get("output_format", "png") not in ("png", "jpeg", "webp"):
            refuse("output_format is invalid")
        found = re.fullmatch(r"(\d+)x(\d+)", body.get("size", "512x512"))
        if not found:
            refuse("size is invalid")
        width, height = int(found[1]), int(found[2])
        if width % 8 or height % 8 or not 64 <= min(width, height) <= max(width, height) <= 2048:
            refuse("size is out of range")
        return width, height

    def _entry(self, image):
        self.served += 1
        if self.served % 2:
            name = secrets.token_hex(8)
            self.stored[name] = image
            return {"url": f"{self.url}/generated-images/{name}.png", "b64_json": ""}
        return {"b64_json": base64.b64encode(image).decode()}

    def _file(self, request):
        image = self.stored.get(request.path.removeprefix("/generated-images/").removesuffix(".png"))
        # It needs no key, so that whoever sends one gives it away.
        if image is None or "authorization" in request.headers:
            refuse("Resource not found", 404)
        return Reply(200, image, {"content-type": "image/png"})

    def error(self, status, headers=None):
        message = {429: "too many requests", 503: "the backend is loading"}.get(status, "backend error")
        return failure(status, message, headers)

    def refusal(self, request):
        # None of these servers refuses by itself, but a filter before one does in the dialect's way.
        error = {"message": "blocked", "type": "invalid_request_error", "param": None, "code": "content_policy_violation"}
        return Reply.json(400, {"error": error})
