"""xAI's image API: fields, limits and statuses as its documentation and its SDK state them; error texts are guesses."""

import base64
import json
import secrets

from ..pictures import look, picture
from ..server import Refused, Reply
from . import RingProvider

RATIOS = ["1:1", "3:4", "4:3", "9:16", "16:9", "2:3", "3:2", "9:19.5", "19.5:9", "9:20", "20:9", "1:2", "2:1", "auto"]
MODELS = {
    "grok-imagine-image": {"resolution"},
    "grok-imagine-image-2.0": {"resolution", "quality"},
}
COMMON = {"model", "prompt", "n", "aspect_ratio", "response_format", "user"}
TICKS = 200_000_000


def failure(status, code, message, headers=None):
    return Reply.json(status, {"code": code, "error": message}, headers)


def refuse(message, status=400, code="Client specified an invalid argument"):
    raise Refused(failure(status, code, message))


class Xai(RingProvider):
    provider = "x-ai"
    model = "grok-imagine-image"
    max_n = 10
    edits = True
    price_usd = 0.02

    @property
    def base_url(self):
        return self.url + "/v1"

    def answer(self, request):
        if request.headers.get("authorization") is None:
            refuse("No credentials", 401, "Unauthenticated")
        if request.headers["authorization"] != f"Bearer {self.key}":
            refuse("Incorrect API key provided: te***ng. You can obtain an API key from https://console.x.ai.")
        if request.method != "POST" or request.path not in ("/v1/images/generations", "/v1/images/edits"):
            refuse("Not found", 404, "Some requested entity was not found")
        if request.content_type != "application/json" or not request.body:
            refuse("Expected request with `Content-Type: application/json`", 415, "")
        try:
            body = request.json()
        except ValueError:
            refuse("Failed to parse the request body as JSON", 422)
        edit = request.path.endswith("/edits")
        self._check(body, edit)
        images = []
        for i in range(body.get("n", 1)):
            data = base64.b64encode(picture(*self._pixels(body), i, "jpeg")).decode()
            # The SDK strips such a prefix, so both forms occur.
            text = f"data:image/jpeg;base64,{data}" if i % 2 else data
            images.append({"b64_json": text, "revised_prompt": "", "respect_moderation": True})
        usage = {"cost_in_usd_ticks": TICKS * len(images)}
        return Reply.json(200, {"data": images, "usage": usage}, {"x-request-id": secrets.token_hex(16)})

    def _check(self, body, edit):
        if body.get("model") not in MODELS:
            refuse(f"The model {body.get('model')} does not exist.", 404, "Some requested entity was not found")
        allowed = COMMON | MODELS[body["model"]] | ({"image", "images"} if edit else set())
        for name in body:
            if name not in allowed:
                refuse(f"Argument not supported: {name}")
        for name in ("prompt", "user"):
            if not isinstance(body.get(name, "-" if name == "user" else None), str):
                refuse(f"{name}: expected a string", 422)
        if type(body.get("n", 1)) is not int or not 1 <= body.get("n", 1) <= self.max_n:
            refuse("n must be between 1 and 10")
        for name, values in [
            ("aspect_ratio", RATIOS),
            ("resolution", ["1k", "2k"]),
            ("quality", ["low", "medium", "high"]),
            # The emulator has no addresses to give.
            ("response_format", ["b64_json"]),
        ]:
            if body.get(name, values[0]) not in values:
                refuse(f"{name}: unknown variant, expected one of {', '.join(values)}", 422)
        if body.get("response_format") is None:
            refuse("the emulator answers with b64_json only")
        if edit:
            self._inputs(body)

    def _inputs(self, body):
        if ("image" in body) == ("images" in body):
            refuse("one of image and images is required")
        images = body["images"] if "images" in body else [body["image"]]
        if not isinstance(images, list) or not 1 <= len(images) <= 3:
            refuse("images: expected 1 to 3 images")
        for image in images:
            if not isinstance(image, dict) or set(image) != {"type", "url"} or image["type"] != "image_url":
                refuse("image: expected an object with type and url", 422)
            if image["url"].startswith("data:"):
                head, _, data = image["url"].partition(";base64,")
                if f"image/{look(base64.b64decode(data, validate=True)).format.lower()}" != head.removeprefix("data:"):
                    refuse("image: the data is not of the type that it states")
            elif not image["url"].startswith("https://"):
                refuse("image: unsupported address")

    def _pixels(self, body):
        ratio = body.get("aspect_ratio", "1:1").replace("auto", "1:1")
        width, height = map(float, ratio.split(":"))
        scale = (2048 if body.get("resolution") == "2k" else 1024) / (width * height) ** 0.5
        return round(width * scale), round(height * scale)

    def error(self, status, headers=None):
        code, message = {
            429: ("Some resource has been exhausted", "Too many requests"),
            503: ("The service is currently unavailable", "The model is at capacity"),
        }.get(status, ("Internal error", "Something went wrong"))
        return failure(status, code, message, headers)

    def refusal(self, request):
        whole = self.reply_to(request)
        assert whole.status == 200, whole.body
        usage = json.loads(whole.body)["usage"]
        return Reply.json(200, {"data": [{"b64_json": "", "respect_moderation": False}], "usage": usage}, whole.headers)
