"""Cloudflare Workers AI: forms or JSON in, images or JSON out, by model; what a call took stands in a header."""

import base64
import re

from ..pictures import look, picture
from ..server import Refused, Reply
from . import RingProvider

ACCOUNT = "0123456789abcdef0123456789abcdef"
NUMBER = (int, float)
DIFFUSION = {
    "prompt": str,
    "negative_prompt": str,
    "width": int,
    "height": int,
    "image": list,
    "image_b64": str,
    "mask": list,
    "num_steps": int,
    "strength": NUMBER,
    "guidance": NUMBER,
    "seed": int,
}
FLUX_1 = {"prompt": str, "steps": int, "seed": int}
FLUX_2 = {"prompt": str, "width": int, "height": int, "guidance": float, "seed": int}
PHOENIX = {name: DIFFUSION[name] for name in DIFFUSION if name not in ("image", "image_b64", "mask", "strength")}
# Fields, most steps, range of sides, neurons; `None` where there is no such thing.
MODELS = {
    "@cf/black-forest-labs/flux-1-schnell": (FLUX_1, 8, None, "172.80"),
    "@cf/black-forest-labs/flux-2-klein-4b": (FLUX_2, None, (256, 1920), "104.20"),
    "@cf/leonardo/phoenix-1.0": (PHOENIX, 50, (0, 2048), "2370.00"),
    "@cf/stabilityai/stable-diffusion-xl-base-1.0": (DIFFUSION, 20, (256, 2048), "0.00"),
    "@cf/runwayml/stable-diffusion-v1-5-img2img": (DIFFUSION, 20, (256, 2048), "0.00"),
    "@cf/runwayml/stable-diffusion-v1-5-inpainting": (DIFFUSION, 20, (256, 2048), "0.00"),
}
RAY = {"cf-ray": "8f1a2b3c4d5e6f70-FRA"}


def failure(status, code, message, headers=None):
    body = {"success": False, "errors": [{"code": code, "message": message}], "messages": [], "result": None}
    return Reply.json(status, body, {**RAY, **(headers or {})})


def refuse(status, code, message):
    raise Refused(failure(status, code, message))


def bad_input(message):
    refuse(400, 5006, f"AiError: Bad input: Error: {message}")


def decoded(data):
    try:
        return look(data)
    except Exception:
        refuse(400, 3016, "AiError: Could not decode the image")


class WorkersAi(RingProvider):
    provider = "workers-ai"
    model = "@cf/black-forest-labs/flux-2-klein-4b"
    edits = True
    edit_model = "@cf/runwayml/stable-diffusion-v1-5-img2img"
    # 104.2 neurons, as far as the gateway shows.
    price_usd = 0.001146

    @property
    def base_url(self):
        return f"{self.url}/client/v4/accounts/{ACCOUNT}/ai/run"

    def answer(self, request):
        found = re.fullmatch(rf"/client/v4/accounts/{ACCOUNT}/ai/run/(@\w+/[\w.-]+/[\w.-]+)", request.path)
        if not found:
            refuse(404, 7003, "Could not route to the given path, perhaps your object identifier is invalid?")
        if request.method != "POST":
            refuse(405, 10405, "Method not allowed for this authentication scheme")
        if request.headers.get("authorization") != f"Bearer {self.key}":
            refuse(401, 10000, "Authentication error")
        model = found[1]
        if model not in MODELS:
            refuse(400, 5007, f"No such model {model} or task")
        body = self._form(request) if MODELS[model][0] is FLUX_2 else self._json(request)
        return self._image(model, body, self._checked(model, body))

    def _json(self, request):
        if request.content_type != "application/json":
            bad_input("the body must be JSON")
        try:
            return request.json()
        except ValueError:
            refuse(400, 3003, "Request is missing headers or body: body")

    def _form(self, request):
        if request.content_type != "multipart/form-data":
            bad_input("required properties at '/' are 'multipart'")
        body = {}
        for name, text in request.form.items():
            if name not in FLUX_2:
                bad_input(f"no such property: {name}")
            try:
                body[name] = FLUX_2[name](text)
            except ValueError:
                bad_input(f"type mismatch of '/{name}'")
        for i, part in enumerate(request.files):
            if part.name != f"input_image_{i}" or i > 3:
                bad_input(f"no such property: {part.name}")
            if max(decoded(part.data).size) > 512:
                bad_input("input images must be smaller than 512x512")
        return body

    def _checked(self, model, body):
        fields, max_steps, sides, _ = MODELS[model]
        for name, value in body.items():
            if name not in fields:
                bad_input(f"additional properties are not allowed: {name}")
            if not isinstance(value, fields[name]) or isinstance(value, bool):
                bad_input(f"type mismatch of '/{name}'")
        if not body.get("prompt") or len(body["prompt"]) > (2048 if fields is FLUX_1 else 100_000):
            bad_input("required properties at '/' are 'prompt'")
        if not 1 <= body.get("steps", body.get("num_steps", 1)) <= (max_steps or 1):
            bad_input("'/num_steps' is out of range")
        if not 0 <= body.get("strength", 1) <= 1 or body.get("seed", 0) < 0:
            bad_input("'/strength' or '/seed' is out of range")
        image = base64.b64decode(body["image_b64"]) if "image_b64" in body else bytes(body.get("image", b""))
        if image:
            decoded(image)
        elif "v1-5" in model:
            bad_input("input tensor `image` is missing")
        if "inpainting" in model:
            decoded(bytes(body.get("mask", b"")))
        elif "mask" in body:
            bad_input("input tensor `mask` is not present in the model")
        if sides is None:
            return 1024, 1024
        size = body.get("width", 1024), body.get("height", 768 if fields is FLUX_2 else 1024)
        if not all(sides[0] <= side <= sides[1] for side in size):
            bad_input("'/width' or '/height' is out of range")
        return size

    def _image(self, model, body, size):
        fields, _, _, neurons = MODELS[model]
        headers = {**RAY, "cf-ai-neurons": neurons}
        if fields in (FLUX_1, FLUX_2):
            data = picture(*size, body.get("seed", 0), kind="jpeg")
            envelope = {"result": {"image": base64.b64encode(data).decode()}, "success": True, "errors": [], "messages": []}
            return Reply.json(200, envelope, headers)
        kind = "jpeg" if fields is PHOENIX else "png"
        return Reply(200, picture(*size, body.get("seed", 0), kind=kind), {**headers, "content-type": f"image/{kind}"})

    def error(self, status, headers=None):
        code, message = {
            429: (3021, "AiError: too many requests"),
            503: (8004, "AiError: service unavailable"),
        }.get(status, (8001, "AiError: internal server error"))
        return failure(status, code, message, headers)

    def refusal(self, request):
        return failure(400, 3030, "AiError: AiError: Input prompt contains NSFW content (6a1f)")
