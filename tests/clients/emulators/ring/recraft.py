"""Recraft's raster models: OpenAI's dialect, with units spent in the answer and errors that are often plain text."""

import base64
import json

from ..pictures import look, picture
from ..server import Refused, Reply
from . import RingProvider

SIZES = set("1024x1024 1365x1024 1536x1024 1820x1024 2048x1024 1434x1024 1280x1024 1707x1024".split())
SIZES |= {"x".join(reversed(size.split("x"))) for size in SIZES}
STYLES = {"realistic_image", "digital_illustration", "vector_illustration", "logo_raster", "any"}
COMMON = {"response_format"}
PROMPTED = COMMON | {"prompt", "model", "n", "style", "substyle", "style_id", "negative_prompt", "controls", "random_seed"}
# By path below /images: fields besides the files, the files, units for one image.
ENDPOINTS = {
    "generations": (PROMPTED | {"size", "text_layout"}, set(), 40),
    "imageToImage": (PROMPTED | {"strength"}, {"image"}, 40),
    "inpaint": (PROMPTED, {"image", "mask"}, 40),
    "outpaint": (
        (PROMPTED - {"negative_prompt", "random_seed"})
        | {"size", "expand_left", "expand_right", "expand_top", "expand_bottom", "zoom_out_percentage"},
        {"image"},
        40,
    ),
    "replaceBackground": (PROMPTED, {"image"}, 40),
    "removeBackground": (COMMON, {"image"}, 10),
    "vectorize": (COMMON, {"image"}, 10),
    "eraseRegion": (COMMON, {"image", "mask"}, 2),
    "crispUpscale": (COMMON, {"image"}, 4),
    "creativeUpscale": (COMMON, {"image"}, 250),
}
NUMBERS = {"n": int, "random_seed": int, "strength": float, "expand_left": int, "expand_right": int}
NUMBERS |= {"expand_top": int, "expand_bottom": int, "zoom_out_percentage": float, "controls": dict, "text_layout": list}


def text(status, message, headers=None):
    return Reply(status, message.encode(), {"content-type": "text/plain; charset=utf-8", **(headers or {})})


def refuse(code, message):
    raise Refused(Reply.json(400, {"code": code, "message": message}))


class RecraftAi(RingProvider):
    provider = "recraft-ai"
    model = "recraftv3"
    max_n = 6
    edits = True
    price_usd = 0.04

    def answer(self, request):
        if request.headers.get("authorization") != f"Bearer {self.key}":
            raise Refused(text(401, "request unauthorized"))
        found = ENDPOINTS.get(request.path.removeprefix("/images/")) if request.path.startswith("/images/") else None
        if found is None or request.method != "POST":
            raise Refused(text(404, "404 page not found"))
        names, files, units = found
        body = self._form(request) if files else self._json(request)
        for name, value in body.items():
            if name not in names:
                refuse("invalid_request", f"unknown field {name}")
            kind = NUMBERS.get(name, str)
            if not isinstance(value, (int, float) if kind is float else kind) or isinstance(value, bool):
                refuse("invalid_request", f"{name} has a wrong type")
        self._values(body, names)
        size = self._inputs(request, files) if files else None
        if "size" in body:
            size = tuple(map(int, body["size"].split("x")))
        images = [picture(*(size or (1024, 1024)), colour=i, kind="webp") for i in range(body.get("n", 1))]
        items = [{"image_id": f"image-{i}", "b64_json": base64.b64encode(data).decode()} for i, data in enumerate(images)]
        answer = {"data": items} if "prompt" in names else {"image": items[0]}
        return Reply.json(200, {"created": 1790000000, "credits": units * len(items), **answer})

    def _json(self, request):
        if request.content_type != "application/json":
            raise Refused(text(415, "unsupported media type"))
        try:
            return request.json()
        except ValueError:
            refuse("invalid_request", "the body is no JSON")

    def _form(self, request):
        if request.content_type != "multipart/form-data":
            raise Refused(text(415, "unsupported media type"))
        try:
            return {name: json.loads(value) if name in NUMBERS else value for name, value in request.form.items()}
        except ValueError:
            refuse("invalid_request", "a number is none")

    def _values(self, body, names):
        if "prompt" in names:
            if not 1 <= len(body.get("prompt", "")) <= 1000:
                refuse("invalid_prompt", "prompt must have 1 to 1000 characters")
            if body.get("model", self.model) != self.model:
                refuse("invalid_model", "unknown model")
        if body.get("size", "1024x1024") not in SIZES:
            refuse("invalid_image_size", "size is not one of this model's")
        if not 1 <= body.get("n", 1) <= 6:
            refuse("invalid_request", "n must be 1 to 6")
        if body.get("style", "any") not in STYLES or {"style", "style_id"} <= set(body):
            refuse("invalid_style", "unknown style")
        if "strength" in names and not 0 <= body.get("strength", -1) <= 1:
            refuse("invalid_request", "strength must be 0 to 1")
        if body.get("response_format") != "b64_json":
            refuse("invalid_request", "this emulator has no addresses")

    def _inputs(self, request, wanted):
        pictures = {}
        for part in request.files:
            if part.name not in wanted or part.name in pictures:
                refuse("invalid_request", f"unexpected file {part.name}")
            if part.content_type not in ("image/png", "image/jpeg", "image/webp") or len(part.data) > 5 << 20:
                refuse("invalid_image", f"{part.name} must be a PNG, JPEG or WebP of at most 5 MB")
            try:
                pictures[part.name] = look(part.data)
            except Exception:
                refuse("invalid_image", f"{part.name} cannot be read")
            if max(pictures[part.name].size) > 4096:
                refuse("invalid_image", f"{part.name} is too large")
        if set(pictures) != wanted:
            refuse("invalid_request", "a file is missing")
        if "mask" in pictures and (pictures["mask"].size != pictures["image"].size or pictures["mask"].mode != "L"):
            refuse("invalid_mask", "the mask must be grayscale and as large as the image")
        return pictures["image"].size

    def error(self, status, headers=None):
        return text(status, "it went wrong", headers)

    def refusal(self, request):
        return Reply.json(400, {"code": "moderation_failed", "message": "the prompt did not pass moderation"})
