"""Fireworks AI's workflows for FLUX: the answer is the image itself, its seed and state stand in headers."""

import re

from ..pictures import picture
from ..server import Refused, Reply
from . import RingProvider

PIXELS = {
    "1:1": (1024, 1024),
    "21:9": (1536, 640),
    "16:9": (1344, 768),
    "3:2": (1216, 832),
    "5:4": (1152, 896),
    "4:5": (896, 1152),
    "2:3": (832, 1216),
    "9:16": (768, 1344),
    "9:21": (640, 1536),
    "4:3": (1152, 864),
    "3:4": (864, 1152),
}
MODELS = {"accounts/fireworks/models/flux-1-schnell-fp8", "accounts/fireworks/models/flux-1-dev-fp8"}
FIELDS = {
    "prompt": str,
    "aspect_ratio": str,
    "seed": int,
    "num_inference_steps": int,
    "guidance_scale": (int, float),
}


def failure(status, message, headers=None):
    if status in (401, 429):
        # From the gateway before the models.
        code = "oauth.v2.InvalidApiKey" if status == 401 else "policies.ratelimit.QuotaViolation"
        return Reply.json(status, {"fault": {"faultstring": message, "detail": {"errorcode": code}}}, headers)
    kind = "invalid_request_error" if status < 500 else "server_error"
    return Reply.json(status, {"error": {"object": "error", "type": kind, "message": message}}, headers)


def refuse(message, status=400):
    raise Refused(failure(status, message))


def unprocessable(*problems):
    detail = [{"loc": ["body", name], "msg": message, "type": "value_error"} for name, message in problems]
    raise Refused(Reply.json(422, {"detail": detail}))


class FireworksAi(RingProvider):
    provider = "fireworks-ai"
    model = "accounts/fireworks/models/flux-1-schnell-fp8"
    price_usd = 0.0014

    def answer(self, request):
        if request.headers.get("authorization") != f"Bearer {self.key}":
            refuse("Invalid ApiKey", 401)
        found = re.fullmatch(r"/workflows/([\w./-]+)/text_to_image", request.path)
        if not found or found[1] not in MODELS:
            refuse("Model not found, inaccessible, and/or not deployed", 404)
        if request.method != "POST":
            refuse("Method Not Allowed", 405)
        if request.content_type != "application/json":
            refuse("the body must be JSON", 415)
        try:
            body = request.json()
        except ValueError:
            unprocessable(("", "JSON decode error"))
        problems = [(name, "extra fields not permitted") for name in body if name not in FIELDS]
        problems += [
            (name, f"wrong type: {type(value).__name__}")
            for name, value in body.items()
            if name in FIELDS and (not isinstance(value, FIELDS[name]) or isinstance(value, bool))
        ]
        if not body.get("prompt"):
            problems.append(("prompt", "field required"))
        if problems:
            unprocessable(*problems)
        if body.get("aspect_ratio", "1:1") not in PIXELS:
            unprocessable(("aspect_ratio", "unexpected value"))
        if not 0 <= body.get("seed", 0) < 2**32 or body.get("num_inference_steps", 4) < 1:
            unprocessable(("seed", "out of range"))
        accept = request.headers.get("accept")
        if accept not in ("image/png", "image/jpeg"):
            refuse("accept must be image/png, image/jpeg or application/json", 406)
        return self._image(body, accept, "SUCCESS")

    def _image(self, body, accept, reason):
        data = picture(*PIXELS[body.get("aspect_ratio", "1:1")], kind=accept.removeprefix("image/"))
        seed = body.get("seed") or 1234567
        return Reply(200, data, {"content-type": accept, "seed": str(seed), "finish-reason": reason})

    def error(self, status, headers=None):
        return failure(status, "it went wrong", headers)

    def refusal(self, request):
        return self._image(request.json(), "image/png", "CONTENT_FILTERED")
