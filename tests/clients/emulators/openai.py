"""OpenAI's Images API: models, fields, limits and errors as its documentation and its own clients state them.

Retired models are served as well: many servers still speak their dialect.
"""

import base64
import json
import re
import secrets
import time

from .pictures import look, picture
from .server import Emulator, Refused, Reply

KEY = "sk-openai-" + secrets.token_hex(12)

GPT_SIZES = ["auto", "1024x1024", "1536x1024", "1024x1536"]
GPT_QUALITIES = ["auto", "low", "medium", "high"]
MODELS = {
    "dall-e-2": {
        "prompt": 1000,
        "n": 10,
        "sizes": ["256x256", "512x512", "1024x1024"],
        "quality": ["standard"],
        "fields": {"response_format"},
    },
    "dall-e-3": {
        "prompt": 4000,
        "n": 1,
        "sizes": ["1024x1024", "1792x1024", "1024x1792"],
        "quality": ["standard", "hd"],
        "fields": {"response_format", "style"},
    },
}
GPT_FIELDS = {
    "background",
    "moderation",
    "output_compression",
    "output_format",
    "partial_images",
    "safety_identifier",
    "stream",
}
for name in ["gpt-image-1", "gpt-image-1-mini", "gpt-image-1.5", "chatgpt-image-latest"]:
    MODELS[name] = {"prompt": 32000, "n": 10, "sizes": GPT_SIZES, "quality": GPT_QUALITIES, "fields": GPT_FIELDS}
for name in ["gpt-image-2", "gpt-image-2-2026-04-21"]:
    MODELS[name] = {"prompt": 32000, "n": 10, "sizes": None, "quality": GPT_QUALITIES, "fields": GPT_FIELDS}
for name in ["gpt-image-2.5-sunburst", "gpt-image-2.5-flare", "gpt-image-2.6-sunburst", "gpt-image-2.6-flare"]:
    fields = GPT_FIELDS | ({"complexity"} if "2.6" in name else set())
    qualities = GPT_QUALITIES + ["xhigh", "max"]
    MODELS[name] = {"prompt": 32000, "n": 10, "sizes": None, "quality": qualities, "fields": fields}

COMMON = {"prompt", "model", "n", "size", "quality", "user"}
IMAGE_TYPES = {"image/png", "image/jpeg", "image/webp"}


def failure(status, message, kind="invalid_request_error", param=None, code=None, headers=None):
    body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    return Reply.json(status, body, {"x-request-id": "req_" + secrets.token_hex(8), **(headers or {})})


def refuse(message, param=None, code=None, kind="invalid_request_error", status=400):
    raise Refused(failure(status, message, kind, param, code))


class OpenAI(Emulator):
    """`url` is the server, `base_url` what a client or a virtual key names."""

    def __init__(self, key=KEY):
        self.key = key
        self.stored = {}
        super().__init__()

    @property
    def base_url(self):
        return self.url + "/v1"

    def answer(self, request):
        if request.path.startswith("/files/"):
            return self._file(request)
        if request.headers.get("authorization") != f"Bearer {self.key}":
            refuse("Incorrect API key provided.", code="invalid_api_key", status=401)
        match request.method, request.path:
            case "GET", "/v1/models":
                return Reply.json(200, {"object": "list", "data": [{"id": m, "object": "model"} for m in MODELS]})
            case "POST", "/v1/images/generations":
                return self._images(request, self._generation(request), "image_generation")
            case "POST", "/v1/images/edits":
                return self._images(request, self._edit(request), "image_edit")
            case "POST", "/v1/images/variations":
                return self._images(request, self._variation(request), "image_variation")
        refuse(f"Invalid URL ({request.method} {request.path})", status=404)

    # What each operation accepts.

    def _generation(self, request):
        if request.content_type != "application/json":
            refuse("Unsupported content type. This API method only accepts 'application/json' requests.")
        try:
            body = request.json()
        except ValueError:
            refuse("We could not parse the JSON body of your request.")
        for name, kinds in [("n", int), ("stream", bool), ("partial_images", int), ("output_compression", int)]:
            if name in body and (type(body[name]) is not kinds):
                refuse(f"Invalid type for '{name}'.", name, "invalid_type")
        for name, value in body.items():
            if value is None or (isinstance(value, str) and value == "" and name != "user"):
                refuse(f"Invalid value for '{name}'.", name, "invalid_value")
        return self._checked(body, extra=set())

    def _edit(self, request):
        if request.content_type == "application/json":
            body = request.json()
            if not str(body.get("model")).startswith(("gpt-", "chatgpt-")):
                refuse("JSON edits need a GPT image model.", "model", "invalid_value")
            images = body.get("images")
            if not isinstance(images, list) or not 1 <= len(images) <= 16:
                refuse("Invalid 'images'.", "images", "invalid_value")
            for reference in images + ([body["mask"]] if "mask" in body else []):
                if set(reference) not in ({"image_url"}, {"file_id"}):
                    refuse("Give exactly one of image_url and file_id.", "images", "invalid_value")
            checked = self._checked(body, extra={"images", "mask", "input_fidelity"})
        elif request.content_type == "multipart/form-data":
            body = self._form(request)
            extra = {"input_fidelity", "mask"}
            checked = self._checked(body, extra)
            dall_e = body["model"] == "dall-e-2"
            if body["model"] == "dall-e-3":
                refuse("Invalid value: 'dall-e-3'. The model does not support edits.", "model", "invalid_value")
            self._files(request, 1 if dall_e else 16, square_png=dall_e)
        else:
            refuse("Unsupported content type. Use 'multipart/form-data' or 'application/json'.")
        fidelity = body.get("input_fidelity")
        if fidelity is not None:
            model = body["model"]
            if model == "dall-e-2" or model.startswith("gpt-image-2"):
                refuse("Unknown parameter: 'input_fidelity'.", "input_fidelity", "unknown_parameter")
            allowed = ["low"] if model == "gpt-image-1-mini" else ["low", "high"]
            self._one_of("input_fidelity", fidelity, allowed)
        return checked

    def _variation(self, request):
        if request.content_type != "multipart/form-data":
            refuse("Unsupported content type. This API method only accepts 'multipart/form-data' requests.")
        body = self._form(request)
        body.setdefault("model", "dall-e-2")
        if body["model"] != "dall-e-2":
            refuse("Invalid value. Value must be 'dall-e-2'.", "model", "invalid_value")
        if "prompt" in body or "mask" in {part.name for part in request.parts}:
            refuse("Unknown parameter: 'prompt'.", "prompt", "unknown_parameter")
        self._files(request, 1, square_png=True)
        return self._checked({**body, "prompt": "-"}, extra=set())

    def _form(self, request):
        """Text fields of a form, with the types that JSON would have."""
        body = {}
        for part in request.parts:
            if part.filename is not None:
                continue
            if part.name in body:
                refuse(f"Duplicate parameter: '{part.name}'.", part.name, "duplicate_parameter")
            value = part.text
            if part.name in ("n", "partial_images", "output_compression"):
                if not re.fullmatch(r"\d+", value):
                    refuse(f"Invalid type for '{part.name}'.", part.name, "invalid_type")
                value = int(value)
            elif part.name == "stream":
                value = {"true": True, "false": False}.get(value) or self._one_of("stream", value, ["true", "false"])
            body[part.name] = value
        return body

    def _files(self, request, most, square_png):
        images, mask = [], None
        names = [part.name for part in request.files]
        for part in request.files:
            field = part.name.removesuffix("[]")
            if field not in ("image", "mask"):
                refuse(f"Unknown parameter: '{part.name}'.", part.name, "unknown_parameter")
            if not part.filename:
                refuse(f"Invalid file '{field}': no file name.", field, "invalid_value")
            if part.content_type not in IMAGE_TYPES:
                shown = part.content_type or "application/octet-stream"
                refuse(
                    f"Invalid file '{field}': unsupported mimetype ('{shown}'). Supported file formats are "
                    "'image/jpeg', 'image/png', and 'image/webp'.",
                    field,
                    "unsupported_file_mimetype",
                )
            try:
                decoded = look(part.data)
            except Exception:
                refuse(f"Invalid image file or mode for '{field}'.", field, "invalid_image_file")
            if decoded.get_format_mimetype() != part.content_type:
                refuse(f"Invalid file '{field}': its type is not {part.content_type}.", field, "invalid_image_file")
            if field == "mask":
                mask = (part, decoded)
            else:
                images.append((part, decoded))
        if not images:
            refuse("Missing required parameter: 'image'.", "image", "missing_required_parameter")
        if names.count("image") > 1:
            refuse(
                "Duplicate parameter: 'image'. You provided multiple values for this parameter, whereas only one is "
                "allowed. If you are trying to provide a list of values, use the array syntax instead e.g. "
                "'image[]=<value>'.",
                "image",
                "duplicate_parameter",
            )
        if len(images) > most:
            refuse(f"Too many images: at most {most}.", "image", "invalid_value")
        limit = 4 if square_png else 50
        for part, decoded in images:
            if len(part.data) >= limit << 20:
                refuse(f"Invalid file 'image': must be less than {limit} MB.", "image", "invalid_value")
            if square_png and (part.content_type != "image/png" or decoded.width != decoded.height):
                refuse("Uploaded image must be a PNG and square.", "image", "invalid_image_format")
        if mask is not None:
            part, decoded = mask
            if part.content_type != "image/png" or len(part.data) >= 4 << 20:
                refuse("Invalid mask: must be a PNG of less than 4 MB.", "mask", "invalid_value")
            if "A" not in decoded.getbands() and "transparency" not in decoded.info:
                refuse("Invalid mask image format - mask image missing alpha channel.", "mask", "invalid_image_format")
            if decoded.size != images[0][1].size:
                refuse("Invalid mask image format - mask size does not match image size.", "mask", "invalid_image_format")

    def _checked(self, body, extra):
        """Everything that generation, edit and variation have in common."""
        if "model" not in body:
            refuse("you must provide a model parameter", "model", "missing_required_parameter")
        model = MODELS.get(body["model"])
        if model is None:
            refuse(
                f"The model '{body['model']}' does not exist or you do not have access to it.",
                code="model_not_found",
                status=404,
            )
        for name in body:
            if name not in COMMON | model["fields"] | extra:
                refuse(f"Unknown parameter: '{name}'.", name, "unknown_parameter")
        prompt = body.get("prompt")
        if not isinstance(prompt, str):
            refuse("Missing required parameter: 'prompt'.", "prompt", "missing_required_parameter")
        if len(prompt) > model["prompt"]:
            refuse(
                f"Invalid 'prompt': string too long. Expected a string with maximum length {model['prompt']}, but got a "
                f"string with length {len(prompt)} instead.",
                "prompt",
                "string_above_max_length",
            )
        if not 1 <= body.get("n", 1) <= model["n"]:
            refuse(f"Invalid 'n': expected a value between 1 and {model['n']}.", "n", "invalid_value")
        self._size(body, model)
        for name, allowed in [
            ("quality", model["quality"]),
            ("response_format", ["url", "b64_json"]),
            ("style", ["vivid", "natural"]),
            ("background", ["auto", "transparent", "opaque"]),
            ("moderation", ["auto", "low"]),
            ("output_format", ["png", "jpeg", "webp"]),
            ("complexity", ["low", "medium", "high"]),
        ]:
            if name in body:
                self._one_of(name, body[name], allowed)
        if body.get("background") == "transparent" and body.get("output_format") == "jpeg":
            refuse("Transparent background needs png or webp.", "background", "invalid_value")
        if "output_compression" in body:
            if not 0 <= body["output_compression"] <= 100:
                refuse("Invalid 'output_compression'.", "output_compression", "invalid_value")
            if body.get("output_format", "png") == "png" and body["output_compression"] != 100:
                refuse("Compression less than 100 is not supported for PNG.", "output_compression", "invalid_value")
        if "partial_images" in body:
            if not body.get("stream"):
                refuse("'partial_images' needs 'stream'.", "partial_images", "invalid_value")
            if not 0 <= body["partial_images"] <= 3:
                refuse("Invalid 'partial_images'.", "partial_images", "invalid_value")
        return body

    def _one_of(self, name, value, allowed):
        if value not in allowed:
            listed = ", ".join(f"'{choice}'" for choice in allowed)
            refuse(f"Invalid value: '{value}'. Supported values are: {listed}.", name, "invalid_value")

    def _size(self, body, model):
        size = body.get("size")
        if size is None:
            return
        if model["sizes"] is not None:
            if size not in model["sizes"]:
                kind = "image_generation_user_error" if "auto" in model["sizes"] else "invalid_request_error"
                listed = ", ".join(f"'{choice}'" for choice in model["sizes"])
                refuse(f"Invalid value: '{size}'. Supported values are: {listed}.", "size", "invalid_value", kind)
            return
        if size == "auto":
            return
        found = re.fullmatch(r"(\d+)x(\d+)", size)
        width, height = (int(found[1]), int(found[2])) if found else (0, 0)
        if (
            not found
            or width % 16
            or height % 16
            or max(width, height) > 3840
            or max(width, height) > 3 * min(width, height)
            or not 655_360 <= width * height <= 8_294_400
        ):
            refuse(f"Invalid size '{size}'.", "size", "invalid_value", "image_generation_user_error")

    # What comes back.

    def _images(self, request, body, event):
        model, n = body["model"], body.get("n", 1)
        kind = body.get("output_format", "png")
        size = body.get("size", "auto" if "stream" in MODELS[model]["fields"] else "1024x1024")
        width, height = (1024, 1024) if size == "auto" else map(int, size.split("x"))
        pictures = [picture(width, height, i, kind) for i in range(n)]
        headers = {
            "x-request-id": "req_" + secrets.token_hex(8),
            "openai-processing-ms": "12",
            "openai-version": "2020-10-01",
            "x-ratelimit-limit-requests": "500",
            "x-ratelimit-remaining-requests": "499",
            "x-ratelimit-reset-requests": "120ms",
        }
        if model.startswith("dall-e"):
            data = []
            for i, image in enumerate(pictures):
                if body.get("response_format", "url") == "url":
                    entry = {"url": self._store(image)}
                else:
                    entry = {"b64_json": base64.b64encode(image).decode()}
                if model == "dall-e-3":
                    entry["revised_prompt"] = "A careful rendering, number %d" % i
                data.append(entry)
            return Reply.json(200, {"created": int(time.time()), "data": data}, headers)
        text, image_tokens = len(body["prompt"]) // 4 + 1, 1056 * n
        common = {
            "background": body.get("background", "opaque").replace("auto", "opaque"),
            "output_format": kind,
            "quality": body.get("quality", "high").replace("auto", "high"),
            "size": f"{width}x{height}",
        }
        usage = {
            "input_tokens": text,
            "input_tokens_details": {"text_tokens": text, "image_tokens": 0},
            "output_tokens": image_tokens,
            "output_tokens_details": {"image_tokens": image_tokens, "text_tokens": 0},
            "total_tokens": text + image_tokens,
        }
        if body.get("stream"):
            events = []
            for i in range(body.get("partial_images", 0)):
                partial = base64.b64encode(picture(width, height, 5 + i, kind)).decode()
                events.append({"type": f"{event}.partial_image", "partial_image_index": i, "b64_json": partial, **common})
            for image in pictures:
                final = base64.b64encode(image).decode()
                events.append({"type": f"{event}.completed", "b64_json": final, **common, "usage": usage})
            lines = []
            for entry in events:
                entry["created_at"] = int(time.time())
                lines.append(f"event: {entry['type']}\ndata: {json.dumps(entry)}\n\n".encode())
            return Reply(200, headers={**headers, "content-type": "text/event-stream; charset=utf-8"}, stream=lines)
        data = [{"b64_json": base64.b64encode(image).decode()} for image in pictures]
        return Reply.json(200, {"created": int(time.time()), **common, "data": data, "usage": usage}, headers)

    def _store(self, image):
        name = secrets.token_hex(8)
        self.stored[name] = image
        return f"{self.url}/files/{name}.png?sig=x"

    def _file(self, request):
        # A signed address, as object stores have it: a second credential is refused.
        if "authorization" in request.headers:
            return Reply(400, b"<Error><Code>InvalidArgument</Code></Error>", {"content-type": "application/xml"})
        image = self.stored.get(request.path.removeprefix("/files/").removesuffix(".png"))
        if image is None:
            return Reply(404, b"<Error><Code>BlobNotFound</Code></Error>", {"content-type": "application/xml"})
        return Reply(200, image, {"content-type": "image/png"})

    # What goes wrong.

    def error(self, status, headers=None):
        kinds = {
            400: ("Invalid value.", "invalid_request_error", "invalid_value"),
            401: ("Incorrect API key provided.", "invalid_request_error", "invalid_api_key"),
            403: ("Your organization must be verified to use the model.", "invalid_request_error", None),
            404: ("The model does not exist.", "invalid_request_error", "model_not_found"),
            429: ("Rate limit reached on images per min: Limit 5, Used 5.", "requests", "rate_limit_exceeded"),
        }
        message, kind, code = kinds.get(
            status, ("The server had an error while processing your request.", "server_error", None)
        )
        return failure(status, message, kind, None, code, headers)

    def refusal(self, request):
        if b"dall-e" in request.body:
            return failure(
                400,
                "Your request was rejected as a result of our safety system.",
                code="content_policy_violation",
            )
        reply = failure(
            400,
            "Your request was rejected by the safety system. safety_violations=[violence].",
            "image_generation_user_error",
            code="moderation_blocked",
        )
        return reply

    def filtered(self, request):
        body = {
            "error": {
                "message": "Your request was rejected by the safety system.",
                "type": "image_generation_user_error",
                "param": None,
                "code": "moderation_blocked",
                "moderation_details": {"moderation_stage": "output", "categories": ["violence"]},
            }
        }
        return Reply.json(400, body)

    def empty(self, request):
        return Reply.json(200, {"created": int(time.time()), "data": []})

    def fewer(self, request):
        return self._altered(request, lambda data: data[:-1])

    def with_image_text(self, request, text):
        return self._altered(request, lambda data: [{"b64_json": text} for _ in data])

    def by_address(self, request):
        return self._altered(
            request, lambda data: [{"url": self._store(base64.b64decode(entry["b64_json"]))} for entry in data]
        )

    def another_size(self, request):
        return self.with_image_text(request, base64.b64encode(picture(768, 512)).decode())

    def truncated(self, request):
        def cut(entry):
            whole = base64.b64decode(entry["b64_json"])
            return {"b64_json": base64.b64encode(whole[: len(whole) // 2]).decode()}

        return self._altered(request, lambda data: [cut(entry) for entry in data])

    def _altered(self, request, change):
        reply = self.reply_to(request)
        if reply.status != 200:
            return reply
        body = json.loads(reply.body)
        body["data"] = change(body["data"])
        return Reply.json(200, body)
