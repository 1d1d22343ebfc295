"""Gemini's image models in the Gemini API. A wrong key is status 400 and a refusal 200, as they are at Google."""

import base64
import re

from ..pictures import look, picture
from ..server import Refused, Reply
from . import RingProvider

PIXELS = {
    "1:1": (1024, 1024),
    "2:3": (848, 1264),
    "3:2": (1264, 848),
    "3:4": (896, 1200),
    "4:3": (1200, 896),
    "4:5": (928, 1152),
    "5:4": (1152, 928),
    "9:16": (768, 1376),
    "16:9": (1376, 768),
    "21:9": (1584, 672),
}
TIERS = {"1K": 1, "2K": 2, "4K": 4}
MODELS = {"gemini-2.5-flash-image": set(), "gemini-3-pro-image": set(TIERS), "gemini-3.1-flash-lite-image": {"1K"}}
STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
RPC = "type.googleapis.com/google.rpc."


def failure(status, message, *details):
    error = {"code": status, "message": message, "status": STATUSES[status]}
    if details:
        error["details"] = [{"@type": RPC + kind, **fields} for kind, fields in details]
    return Reply.json(status, {"error": error})


def refuse(message, status=400, *details):
    raise Refused(failure(status, message, *details))


def fields(value, where, **kinds):
    """Only these members, of these types: Google's parser of messages takes no others."""
    if not isinstance(value, dict):
        refuse(f"Invalid value at '{where}': not an object")
    for name, member in value.items():
        if name not in kinds:
            refuse(f'Invalid JSON payload received. Unknown name "{name}" at \'{where}\': Cannot find field.')
        if not isinstance(member, kinds[name]) or isinstance(member, bool) and kinds[name] is int:
            refuse(f"Invalid value at '{where}.{name}'")
    return value


class Google(RingProvider):
    provider = "google"
    model = "gemini-2.5-flash-image"
    edits = True
    image_fields = {}  # further members of imageConfig
    # 6 tokens of text and 1290 of an image, in whole millionths.
    price_usd = round(6 * 0.3e-6 + 1290 * 30e-6, 6)

    # What stands in front of a model, and where such a model is said not to be.
    models_at = "/models/"
    not_found = "models/{} is not found for API version v1beta, or is not supported for generateContent."

    def answer(self, request):
        self.admit(request)
        found = re.fullmatch(re.escape(self.models_at) + r"([a-z0-9.@-]+):([A-Za-z]+)", request.path)
        if not found or request.method != "POST":
            return Reply(404, b"<html>404. That is an error.</html>", {"content-type": "text/html; charset=UTF-8"})
        if request.content_type != "application/json":
            refuse("Invalid JSON payload received.")
        try:
            body = request.json()
        except ValueError:
            refuse("Invalid JSON payload received. Unexpected end of string.")
        return self.serve(found[1], found[2], body)

    def admit(self, request):
        if request.headers.get("x-goog-api-key") != self.key:
            if "x-goog-api-key" not in request.headers:
                refuse("Method doesn't allow unregistered callers. Please use API Key.", 403)
            info = {"reason": "API_KEY_INVALID", "domain": "googleapis.com"}
            refuse("API key not valid. Please pass a valid API key.", 400, ("ErrorInfo", info))

    def serve(self, model, verb, body):
        if model not in MODELS or verb != "generateContent":
            refuse(self.not_found.format(model), 404)
        fields(body, "request", contents=list, generationConfig=dict, safetySettings=list, tools=list)
        given = self._input(body)
        config = body.get("generationConfig", {})
        size = self._size(config, MODELS[model]) or given or (1024, 1024)
        return self._images([self.picture(size, config.get("imageConfig", {}))], model)

    def picture(self, size, image_config):
        """The image, and its media type."""
        return picture(*size), "image/png"

    def _size(self, config, tiers):
        fields(config, "generation_config", responseModalities=list, seed=int, imageConfig=dict, temperature=(int, float))
        if "IMAGE" not in config.get("responseModalities", ["TEXT", "IMAGE"]):
            refuse("the model makes images")
        if not -(2**31) <= config.get("seed", 0) < 2**31:
            refuse("Invalid value at 'generation_config.seed' (TYPE_INT32)")
        image = fields(config.get("imageConfig", {}), "image_config", aspectRatio=str, imageSize=str, **self.image_fields)
        if image.get("aspectRatio", "1:1") not in PIXELS:
            refuse("aspect_ratio must be one of " + ", ".join(PIXELS))
        if "imageSize" in image and image["imageSize"] not in tiers:
            refuse("image_size is not supported by this model")
        if "aspectRatio" in image:
            factor = TIERS[image.get("imageSize", "1K")]
            return tuple(side * factor for side in PIXELS[image["aspectRatio"]])

    def _input(self, body):
        """Size of the last input image."""
        if not body.get("contents"):
            refuse("* GenerateContentRequest.contents: contents is not specified")
        size, texts = None, 0
        for content in body["contents"]:
            fields(content, "contents[0]", role=str, parts=list)
            if content.get("role", "user") not in ("user", "model") or not content.get("parts"):
                refuse("Please use a valid role: user, model.")
            for part in content["parts"]:
                fields(part, "parts[0]", text=str, inlineData=dict)
                if len(part) != 1:
                    refuse("parts must have one initialized field")
                texts += bool(part.get("text"))
                if "inlineData" not in part:
                    continue
                inline = fields(part["inlineData"], "inline_data", mimeType=str, data=str)
                if inline.get("mimeType") not in ("image/png", "image/jpeg", "image/webp"):
                    refuse(f"Unsupported MIME type: {inline.get('mimeType')}")
                try:
                    decoded = look(base64.b64decode(inline["data"], validate=True))
                except Exception:
                    refuse("Unable to process input image")
                if decoded.get_format_mimetype() != inline["mimeType"]:
                    refuse("Unable to process input image")
                size = decoded.size
        if not texts:
            refuse("the request has no text")
        return size

    def _images(self, pictures, model):
        parts = [{"inlineData": {"mimeType": kind, "data": base64.b64encode(p).decode()}} for p, kind in pictures]
        usage = {
            "promptTokenCount": 6,
            "candidatesTokenCount": 1290,
            "totalTokenCount": 1296,
            "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 6}],
            "candidatesTokensDetails": [{"modality": "IMAGE", "tokenCount": 1290}],
        }
        candidate = {"content": {"role": "model", "parts": parts}, "finishReason": "STOP", "index": 0}
        return Reply.json(
            200, {"candidates": [candidate], "usageMetadata": usage, "modelVersion": model, "responseId": "response-1"}
        )

    def error(self, status, headers=None):
        wait = (headers or {}).get("retry-after")
        details = [("RetryInfo", {"retryDelay": f"{wait}s"})] if wait else []
        if status == 429:
            quota = {"quotaId": "GenerateRequestsPerMinutePerProjectPerModel"}
            details.insert(0, ("QuotaFailure", {"violations": [quota]}))
        return failure(status, "it went wrong", *details)

    def refusal(self, request):
        candidate = {"finishReason": "IMAGE_SAFETY", "finishMessage": "Unable to show the generated image.", "index": 0}
        return Reply.json(200, {"candidates": [candidate], "responseId": "response-2"})
