"""Ideogram 3.0: forms in, addresses out, which are signed and need no key."""

import re
import secrets
import zlib

from ..pictures import look, picture
from ..server import Refused, Reply
from . import RingProvider

SIZES = set(
    "512x1536 576x1408 576x1472 576x1536 640x1344 640x1408 640x1472 640x1536 704x1152 704x1216 704x1280 704x1344 "
    "704x1408 704x1472 736x1312 768x1088 768x1216 768x1280 768x1344 800x1280 832x960 832x1024 832x1088 832x1152 "
    "832x1216 832x1248 864x1152 896x960 896x1024 896x1088 896x1120 896x1152 960x832 960x896 960x1024 960x1088 "
    "1024x832 1024x896 1024x960 1024x1024 1088x768 1088x832 1088x896 1088x960 1120x896 1152x704 1152x832 1152x864 "
    "1152x896 1216x704 1216x768 1216x832 1248x832 1280x704 1280x768 1280x800 1312x736 1344x640 1344x704 1344x768 "
    "1408x576 1408x640 1408x704 1472x576 1472x640 1472x704 1536x512 1536x576 1536x640".split()
)
RATIOS = set("1x3 3x1 1x2 2x1 9x16 16x9 10x16 16x10 2x3 3x2 3x4 4x3 4x5 5x4 1x1".split())
COMMON = {"seed", "num_images", "rendering_speed", "style_preset", "style_codes", "color_palette", "custom_model_uri"}
SIZED = {"resolution", "aspect_ratio"}
# By path below /v1: fields besides the files, and the files.
ENDPOINTS = {
    "ideogram-v3/generate": (COMMON | SIZED | {"prompt", "negative_prompt", "magic_prompt", "style_type"}, set()),
    "ideogram-v3/remix": (
        COMMON | SIZED | {"prompt", "negative_prompt", "magic_prompt", "style_type", "image_weight"},
        {"image"},
    ),
    "ideogram-v3/edit": (COMMON | {"prompt", "magic_prompt", "style_type"}, {"image", "mask"}),
    "ideogram-v3/reframe": (COMMON | {"resolution"}, {"image"}),
    "ideogram-v3/replace-background": (COMMON | {"prompt", "magic_prompt"}, {"image"}),
    "remove-background": (set(), {"image"}),
}
VALUES = {
    "resolution": SIZES,
    "aspect_ratio": RATIOS,
    "rendering_speed": {"FLASH", "TURBO", "DEFAULT", "QUALITY"},
    "magic_prompt": {"AUTO", "ON", "OFF"},
    "style_type": {"AUTO", "GENERAL", "REALISTIC", "DESIGN", "FICTION"},
}
RANGES = {"seed": (0, 2147483647), "num_images": (1, 8), "image_weight": (1, 100)}


def refuse(message, status=400):
    raise Refused(Reply.json(status, {"error": message}))


def unprocessable(name, message):
    raise Refused(Reply.json(422, {"detail": [{"loc": ["body", name], "msg": message, "type": "value_error"}]}))


class Ideogram(RingProvider):
    provider = "ideogram"
    model = "ideogram-v3"
    max_n = 8
    edits = True
    price_usd = 0.06

    def __init__(self):
        self.files = {}
        super().__init__()

    def answer(self, request):
        if request.path.startswith("/api/images/ephemeral/"):
            return self._file(request)
        if request.headers.get("api-key") != self.key:
            refuse("Unauthorized", 401)
        found = ENDPOINTS.get(request.path.removeprefix("/v1/")) if request.path.startswith("/v1/") else None
        if found is None:
            refuse("Not found", 404)
        if request.method != "POST":
            refuse("Method not allowed", 405)
        if request.content_type != "multipart/form-data":
            refuse("the body must be multipart/form-data", 415)
        names, wanted = found
        for name, value in request.form.items():
            if name not in names:
                unprocessable(name, "extra fields not permitted")
            if name in VALUES and value not in VALUES[name]:
                refuse(f"Invalid {name}")
            if name in RANGES:
                low, high = RANGES[name]
                if not re.fullmatch(r"\d+", value) or not low <= int(value) <= high:
                    unprocessable(name, f"must be a whole number of {low} to {high}")
        if "prompt" in names and not request.form.get("prompt"):
            unprocessable("prompt", "field required")
        if request.path.endswith("/reframe") and "resolution" not in request.form:
            unprocessable("resolution", "field required")
        if {"resolution", "aspect_ratio"} <= set(request.form):
            refuse("resolution and aspect_ratio exclude each other")
        size = self._inputs(request, wanted)
        return self._images(request, size)

    def _inputs(self, request, wanted):
        pictures = {}
        for part in request.files:
            if part.name not in wanted or part.name in pictures:
                unprocessable(part.name, "unexpected file")
            if part.content_type not in ("image/png", "image/jpeg", "image/webp") or len(part.data) > 10 << 20:
                refuse(f"{part.name} must be a JPEG, PNG or WebP of at most 10 MB")
            try:
                pictures[part.name] = look(part.data)
            except Exception:
                refuse(f"{part.name} cannot be read")
        for name in sorted(wanted - set(pictures)):
            unprocessable(name, "field required")
        if "mask" in pictures:
            if pictures["mask"].size != pictures["image"].size:
                refuse("the mask must have the size of the image")
            if "A" in pictures["mask"].getbands() or not set(pictures["mask"].convert("L").getdata()) <= {0, 255}:
                refuse("the mask must be black and white")
        return pictures["image"].size if "image" in pictures else None

    def _images(self, request, size):
        text = request.form.get("resolution")
        size = tuple(map(int, text.split("x"))) if text else size or (1024, 1024)
        seed = int(request.form.get("seed", 12345))
        items = []
        for i in range(int(request.form.get("num_images", 1))):
            # The signature is good for one file.
            name, signature = f"{secrets.token_hex(8)}.png", secrets.token_hex(8)
            self.files[name] = (signature, picture(*size, colour=i + zlib.crc32(request.body[:64])))
            items.append(
                {
                    "url": f"{self.url}/api/images/ephemeral/{name}?exp=1&sig={signature}",
                    "prompt": request.form.get("prompt", ""),
                    "resolution": f"{size[0]}x{size[1]}",
                    "is_image_safe": True,
                    "seed": seed + i,
                    "style_type": request.form.get("style_type", "GENERAL"),
                }
            )
        return Reply.json(200, {"created": "2026-01-23T04:56:07Z", "data": items})

    def _file(self, request):
        signature, data = self.files.get(request.path.rsplit("/", 1)[1], (None, None))
        if request.method != "GET" or signature is None or request.query.get("sig") != signature:
            return Reply(403, b"<Error><Code>AccessDenied</Code></Error>", {"content-type": "application/xml"})
        if {"api-key", "authorization"} & set(request.headers):
            return Reply(400, b"no credential belongs here", {"content-type": "text/plain"})
        return Reply(200, data, {"content-type": "image/png"})

    def error(self, status, headers=None):
        return Reply.json(status, {"error": "it went wrong"}, headers)

    def refusal(self, request):
        item = {"url": None, "prompt": "", "resolution": "1024x1024", "is_image_safe": False, "seed": 1}
        return Reply.json(200, {"created": "2026-01-23T04:56:07Z", "data": [item]})
