"""Together AI's image API: one path for generations and edits, with the fields of its SDK.

The limits of sides and steps are those of the data file, and unconfirmed like them.
"""

import base64
import secrets

from ..pictures import look, picture
from ..server import Refused, Reply
from . import RingProvider

RATIOS = {"1:1": (1024, 1024), "4:3": (1184, 880), "16:9": (1392, 752), "3:2": (1248, 832), "21:9": (1568, 672)}
RATIOS |= {":".join(reversed(name.split(":"))): (height, width) for name, (width, height) in RATIOS.items()}
COMMON = {
    "model": str,
    "prompt": str,
    "n": int,
    "seed": int,
    "steps": int,
    "guidance_scale": (int, float),
    "negative_prompt": str,
    "output_format": str,
    "response_format": str,
    "disable_safety_checker": bool,
}
PIXELS = {"width": int, "height": int}
# Fields of each model besides the common ones, and its most steps.
MODELS = {
    "black-forest-labs/FLUX.1-schnell": (PIXELS, 4),
    "black-forest-labs/FLUX.1-kontext-pro": ({"aspect_ratio": str, "image_url": str}, 50),
    "black-forest-labs/FLUX.2-pro": (PIXELS | {"reference_images": list}, 50),
}


def failure(status, message, kind="invalid_request_error", code=None, headers=None):
    error = {"message": message, "type": kind, "param": None, "code": code}
    return Reply.json(status, {"id": secrets.token_hex(8), "error": error}, headers)


def refuse(message, status=400, **more):
    raise Refused(failure(status, message, **more))


class Together(RingProvider):
    provider = "together"
    model = "black-forest-labs/FLUX.1-schnell"
    edit_model = "black-forest-labs/FLUX.1-kontext-pro"
    max_n = 4
    edits = True
    price_usd = 0.002831  # 0.0027 a megapixel; shown to six digits

    @property
    def base_url(self):
        return self.url + "/v1"

    def answer(self, request):
        if request.headers.get("authorization") != f"Bearer {self.key}":
            refuse("Invalid API key provided.", 401, code="invalid_api_key")
        if request.path != "/v1/images/generations":
            refuse("Not found", 404)
        if request.method != "POST":
            refuse("Method not allowed", 405)
        if request.content_type != "application/json":
            refuse("Unsupported content type", 415)
        try:
            body = request.json()
        except ValueError:
            refuse("Could not parse the JSON body")
        width, height = self._check(body)
        kind = body.get("output_format", "jpeg")
        data = [
            {
                "index": i,
                "type": "b64_json",
                "b64_json": base64.b64encode(picture(width, height, i, kind)).decode(),
            }
            for i in range(body.get("n", 1))
        ]
        return Reply.json(200, {"id": secrets.token_hex(8), "model": body["model"], "object": "list", "data": data})

    def _check(self, body):
        if body.get("model") not in MODELS:
            refuse(f"Unable to access model {body.get('model')}.", 404, code="model_not_available")
        own, most_steps = MODELS[body["model"]]
        types = COMMON | own
        for name, value in body.items():
            if name not in types:
                refuse(f"Unrecognized key: {name}")
            if not isinstance(value, types[name]) or isinstance(value, bool) and types[name] is not bool:
                refuse(f"Invalid type for {name}", 422)
        if not body.get("prompt"):
            refuse("prompt is required")
        for name, low, high in [("n", 1, self.max_n), ("steps", 1, most_steps), ("width", 64, 1792), ("height", 64, 1792)]:
            if name in body and not low <= body[name] <= high:
                refuse(f"{name} must be between {low} and {high}")
        for name, values in [
            # The emulator has no addresses to give.
            ("response_format", ["base64"]),
            ("output_format", ["jpeg", "png"]),
            ("aspect_ratio", list(RATIOS)),
        ]:
            if name in body and body[name] not in values:
                refuse(f"{name} must be one of {', '.join(values)}")
        if "response_format" not in body:
            refuse("the emulator answers with base64 only")
        for address in body.get("reference_images", []) + [body[name] for name in ("image_url",) if name in body]:
            self._input(address)
        if "aspect_ratio" in body:
            return RATIOS[body["aspect_ratio"]]
        width, height = body.get("width", 1024), body.get("height", 1024)
        if width % 16 or height % 16:
            refuse("width and height must be multiples of 16")
        return width, height

    def _input(self, address):
        if not isinstance(address, str):
            refuse("images are addresses", 422)
        if address.startswith("data:"):
            head, _, data = address.partition(";base64,")
            if f"image/{look(base64.b64decode(data, validate=True)).format.lower()}" != head.removeprefix("data:"):
                refuse("the image is not of the type that it states")
        elif not address.startswith("https://"):
            refuse("the image's address cannot be fetched")

    def error(self, status, headers=None):
        kind, message = {
            429: ("rate_limit", "You have reached the rate limit of this model."),
            503: ("server_error", "The engine is currently overloaded, please try again later."),
        }.get(status, ("server_error", "Something went wrong."))
        return failure(status, message, kind, headers=headers)

    def refusal(self, request):
        return failure(422, "The request was flagged as NSFW content.", code="nsfw_content")
