"""Stability AI's platform API: the engines of v1, and v2beta's generate, edit, control and upscale.

Retired engines are served as well: many servers still speak their dialect.
"""

import base64
import json
import re
import secrets

from .pictures import look, picture
from .server import Emulator, Refused, Reply

KEY = "sk-stability-" + secrets.token_hex(12)

SDXL = "1024x1024 1152x896 896x1152 1216x832 832x1216 1344x768 768x1344 1536x640 640x1536".split()
STYLES = (
    "3d-model analog-film anime cinematic comic-book digital-art enhance fantasy-art isometric line-art low-poly "
    "modeling-compound neon-punk origami photographic pixel-art tile-texture"
).split()
SAMPLERS = (
    "DDIM DDPM K_DPMPP_2M K_DPMPP_2S_ANCESTRAL K_DPM_2 K_DPM_2_ANCESTRAL K_EULER K_EULER_ANCESTRAL K_HEUN K_LMS"
).split()
GUIDANCE = "NONE FAST_BLUE FAST_GREEN SIMPLE SLOW SLOWER SLOWEST".split()
ENGINES = {
    "stable-diffusion-xl-1024-v1-0",
    "stable-diffusion-xl-1024-v0-9",
    "stable-diffusion-v1-6",
    "stable-diffusion-v1-5",
    "stable-diffusion-512-v2-1",
    "stable-diffusion-768-v2-1",
}
V1_COMMON = {"cfg_scale", "clip_guidance_preset", "sampler", "samples", "seed", "steps", "style_preset", "extras"}

RATIOS = {
    "21:9": (1536, 640),
    "16:9": (1344, 768),
    "3:2": (1216, 832),
    "5:4": (1152, 896),
    "1:1": (1024, 1024),
    "4:5": (896, 1152),
    "2:3": (832, 1216),
    "9:16": (768, 1344),
    "9:21": (640, 1536),
}
SD3_MODELS = "sd3.5-large sd3.5-large-turbo sd3.5-medium sd3-large sd3-large-turbo sd3-medium".split()
COMMON = {"seed", "output_format"}
# By path below /v2beta/stable-image: required text, optional text, required files, optional files.
V2 = {
    "generate/ultra": (
        {"prompt"},
        COMMON | {"negative_prompt", "aspect_ratio", "strength", "style_preset"},
        set(),
        {"image"},
    ),
    "generate/core": ({"prompt"}, COMMON | {"negative_prompt", "aspect_ratio", "style_preset"}, set(), set()),
    "generate/sd3": (
        {"prompt"},
        COMMON | {"negative_prompt", "aspect_ratio", "strength", "style_preset", "model", "mode", "cfg_scale"},
        set(),
        {"image"},
    ),
    "edit/erase": (set(), COMMON | {"grow_mask"}, {"image"}, {"mask"}),
    "edit/inpaint": ({"prompt"}, COMMON | {"negative_prompt", "grow_mask", "style_preset"}, {"image"}, {"mask"}),
    "edit/outpaint": (
        set(),
        COMMON | {"left", "right", "up", "down", "prompt", "creativity", "style_preset"},
        {"image"},
        set(),
    ),
    "edit/search-and-replace": (
        {"prompt", "search_prompt"},
        COMMON | {"negative_prompt", "grow_mask", "style_preset"},
        {"image"},
        set(),
    ),
    "edit/search-and-recolor": (
        {"prompt", "select_prompt"},
        COMMON | {"negative_prompt", "grow_mask", "style_preset"},
        {"image"},
        set(),
    ),
    "edit/remove-background": (set(), {"output_format"}, {"image"}, set()),
    "control/sketch": ({"prompt"}, COMMON | {"control_strength", "negative_prompt", "style_preset"}, {"image"}, set()),
    "control/structure": ({"prompt"}, COMMON | {"control_strength", "negative_prompt", "style_preset"}, {"image"}, set()),
    "control/style": ({"prompt"}, COMMON | {"fidelity", "aspect_ratio", "negative_prompt"}, {"image"}, set()),
    "upscale/fast": (set(), {"output_format"}, {"image"}, set()),
    "upscale/conservative": ({"prompt"}, COMMON | {"negative_prompt", "creativity"}, {"image"}, set()),
    "upscale/creative": ({"prompt"}, COMMON | {"negative_prompt", "creativity", "style_preset"}, {"image"}, set()),
}


def failure(status, name, messages, v1, headers=None):
    body = {"id": secrets.token_hex(16), "name": name}
    body |= {"message": messages[0]} if v1 else {"errors": messages}
    return Reply.json(status, body, headers)


class Stability(Emulator):
    """`url` is the server, and what a virtual key names as its base."""

    def __init__(self, key=KEY):
        self.key = key
        self.results = {}
        super().__init__()

    @property
    def base_url(self):
        return self.url

    def answer(self, request):
        v1 = request.path.startswith("/v1/")
        accepted = {f"Bearer {self.key}"} | ({self.key} if v1 else set())
        if request.headers.get("authorization") not in accepted:
            raise Refused(failure(401, "unauthorized", ["missing or invalid API key"], v1))
        if request.method == "GET" and request.path == "/v1/engines/list":
            engines = [{"id": e, "name": e, "description": e, "type": "PICTURE"} for e in sorted(ENGINES)]
            return Reply.json(200, engines)
        if request.method == "GET" and request.path == "/v1/user/balance":
            return Reply.json(200, {"credits": 100.0})
        if found := re.fullmatch(r"/v1/generation/([^/]+)/(text-to-image|image-to-image|image-to-image/masking)", request.path):
            return self._engine(request, found[1], found[2])
        if found := re.fullmatch(r"/v2beta/results/([0-9a-f]{64})", request.path):
            return self._result(request, found[1])
        operation = request.path.removeprefix("/v2beta/stable-image/")
        if request.method == "POST" and request.path.startswith("/v2beta/") and operation in V2:
            return self._v2(request, operation)
        raise Refused(failure(404, "not_found", ["no such route"], v1))

    # v1

    def _engine(self, request, engine, operation):
        def refuse(name, message):
            raise Refused(failure(400, name, [message], v1=True))

        if engine not in ENGINES:
            raise Refused(failure(404, "not_found", [f"The specified engine (ID {engine}) was not found"], v1=True))
        if operation == "text-to-image":
            if request.content_type != "application/json":
                refuse("bad_request", "content-type must be application/json")
            try:
                body = request.json()
            except ValueError:
                refuse("bad_request", "body must be JSON")
            allowed = V1_COMMON | {"text_prompts", "width", "height"}
            for name in ["width", "height", "samples", "steps", "seed"]:
                if name in body and type(body[name]) is not int:
                    refuse("bad_request", f"{name}: must be an integer")
            width, height = body.get("width", 512), body.get("height", 512)
            self._dimensions(engine, width, height, refuse)
        else:
            if request.content_type != "multipart/form-data":
                refuse("bad_request", "content-type must be multipart/form-data")
            masking = operation.endswith("masking")
            body = self._v1_form(request, refuse)
            allowed = V1_COMMON | {"text_prompts"}
            allowed |= {"mask_source"} if masking else {"init_image_mode", "image_strength"}
            allowed |= set() if masking else {"step_schedule_start", "step_schedule_end"}
            width, height = self._v1_files(request, body, masking, refuse)
        for name in body:
            if name not in allowed:
                refuse("bad_request", f"{name}: is not allowed")
        prompts = body.get("text_prompts")
        if not isinstance(prompts, list) or not prompts:
            refuse("invalid_prompts", "text_prompts: must have at least one entry")
        for prompt in prompts:
            if set(prompt) - {"text", "weight"} or not prompt.get("text") or len(prompt["text"]) > 2000:
                refuse("invalid_prompts", "text_prompts: each needs a text of 1 to 2000 characters")
        for name, low, high in [
            ("samples", 1, 10),
            ("cfg_scale", 0, 35),
            ("steps", 10, 50),
            ("seed", 0, 4294967295),
            ("image_strength", 0, 1),
        ]:
            if name in body and not low <= body[name] <= high:
                refuse("invalid_samples" if name == "samples" else "bad_request", f"{name}: must be {low} to {high}")
        for name, values in [
            ("style_preset", STYLES),
            ("sampler", SAMPLERS),
            ("clip_guidance_preset", GUIDANCE),
            ("init_image_mode", ["IMAGE_STRENGTH", "STEP_SCHEDULE"]),
            ("mask_source", ["MASK_IMAGE_WHITE", "MASK_IMAGE_BLACK", "INIT_IMAGE_ALPHA"]),
        ]:
            if name in body and body[name] not in values:
                refuse("bad_request", f"{name}: must be one of {', '.join(values)}")
        return self._artifacts(request, body, width, height, refuse)

    def _dimensions(self, engine, width, height, refuse):
        if width % 64 or height % 64 or min(width, height) < 128:
            refuse("invalid_height_or_width", "height and width must be multiples of 64 and at least 128")
        if "xl-1024" in engine:
            if f"{width}x{height}" not in SDXL:
                refuse("invalid_sdxl_v1_dimensions", "for SDXL the allowed dimensions are " + ", ".join(SDXL))
        elif engine == "stable-diffusion-v1-6":
            if not (320 <= width <= 1536 and 320 <= height <= 1536):
                refuse("invalid_height_or_width", "height and width must be 320 to 1536")
        elif not (589_824 if "768" in engine else 262_144) <= width * height <= 1_048_576:
            refuse("invalid_pixel_count", "the number of pixels is out of range")

    def _v1_form(self, request, refuse):
        body, prompts = {}, {}
        for name, value in request.form.items():
            if found := re.fullmatch(r"text_prompts\[(\d+)\]\[(text|weight)\]", name):
                entry = prompts.setdefault(int(found[1]), {})
                entry[found[2]] = value if found[2] == "text" else float(value)
                continue
            try:
                body[name] = int(value) if name in ("samples", "steps", "seed") else value
                if name in ("cfg_scale", "image_strength", "step_schedule_start", "step_schedule_end"):
                    body[name] = float(value)
            except ValueError:
                refuse("bad_request", f"{name}: must be a number")
        body["text_prompts"] = [prompts[i] for i in sorted(prompts)]
        return body

    def _v1_files(self, request, body, masking, refuse):
        files = {part.name: part for part in request.files}
        if set(files) - ({"init_image", "mask_image"} if masking else {"init_image"}):
            refuse("bad_request", "unexpected file")
        if "init_image" not in files:
            refuse("bad_request", "init_image: is required")
        pictures = {}
        for name, part in files.items():
            if part.content_type not in ("image/png", "image/jpeg"):
                refuse("invalid_mime_type", f"{name}: unsupported mime type {part.content_type}")
            try:
                pictures[name] = look(part.data)
            except Exception:
                refuse("bad_request", f"{name}: cannot be decoded")
        if masking:
            source = body.get("mask_source")
            if source is None:
                refuse("bad_request", "mask_source: is required")
            if source.startswith("MASK_IMAGE") and "mask_image" not in pictures:
                refuse("invalid_mask_image", "mask_image: is required")
            if "mask_image" in pictures and pictures["mask_image"].size != pictures["init_image"].size:
                refuse("invalid_mask_image", "mask_image: must have the dimensions of init_image")
        return pictures["init_image"].size

    def _artifacts(self, request, body, width, height, refuse):
        samples = body.get("samples", 1)
        if request.headers.get("accept") == "image/png":
            if samples != 1:
                refuse("invalid_samples", "samples: must be 1 for image/png")
            headers = {"content-type": "image/png", "finish-reason": "SUCCESS", "seed": "1050625087"}
            return Reply(200, picture(width, height), headers)
        artifacts = [
            {
                "base64": base64.b64encode(picture(width, height, i)).decode(),
                "seed": body.get("seed") or 1050625087 + i,
                "finishReason": "SUCCESS",
            }
            for i in range(samples)
        ]
        return Reply.json(200, {"artifacts": artifacts})

    # v2beta

    def _v2(self, request, operation):
        def refuse(*messages, status=400, name="bad_request"):
            raise Refused(failure(status, name, list(messages), v1=False))

        if request.content_type != "multipart/form-data":
            refuse("content-type: must be multipart/form-data")
        accept = request.headers.get("accept", "image/*")
        if accept not in ("application/json", "image/*", "*/*"):
            refuse("accept: must be image/* or application/json")
        required, optional, required_files, optional_files = V2[operation]
        form, files = {}, {}
        for part in request.parts:
            into = form if part.filename is None else files
            if part.name in into:
                refuse(f"{part.name}: given twice")
            into[part.name] = part
        form = {name: part.text for name, part in form.items()}
        # Clients may add one empty part to make their form a multipart one.
        files = {name: part for name, part in files.items() if part.name not in ("none", "") or part.data}
        problems = [f"{name}: is not allowed" for name in form if name not in required | optional]
        problems += [f"{name}: is not allowed" for name in files if name not in required_files | optional_files]
        problems += [f"{name}: is required" for name in sorted(required - set(form))]
        problems += [f"{name}: is required" for name in sorted(required_files - set(files))]
        if problems:
            refuse(*problems)
        self._v2_values(operation, form, files, refuse)
        pictures = {}
        for name, part in files.items():
            if part.content_type not in ("image/png", "image/jpeg", "image/webp"):
                refuse(f"{name}: unsupported type {part.content_type}")
            try:
                pictures[name] = look(part.data)
            except Exception:
                refuse(f"{name}: cannot be decoded")
            if min(pictures[name].size) < (32 if operation == "upscale/fast" else 64):
                refuse(f"{name}: is too small")
        return self._image(request, operation, form, pictures, accept)

    def _v2_values(self, operation, form, files, refuse):
        for name in ("prompt", "search_prompt", "select_prompt"):
            if name in form and not 1 <= len(form[name]) <= 10000:
                refuse(f"{name}: must be 1 to 10000 characters")
        formats = ["png", "jpeg", "webp"]
        if operation == "generate/sd3":
            formats = ["png", "jpeg"]
        elif operation == "edit/remove-background":
            formats = ["png", "webp"]
        for name, values in [
            ("output_format", formats),
            ("aspect_ratio", list(RATIOS)),
            ("style_preset", STYLES),
            ("model", SD3_MODELS),
            ("mode", ["text-to-image", "image-to-image"]),
        ]:
            if name in form and form[name] not in values:
                refuse(f"{name}: must be one of {', '.join(values)}")
        for name, low, high in [
            ("seed", 0, 4294967294),
            ("strength", 0, 1),
            ("cfg_scale", 1, 10),
            ("control_strength", 0, 1),
            ("fidelity", 0, 1),
            ("grow_mask", 0, 100 if operation == "edit/inpaint" else 20),
            ("left", 0, 2000),
            ("right", 0, 2000),
            ("up", 0, 2000),
            ("down", 0, 2000),
            ("creativity", 0, 1),
        ]:
            if name in form:
                try:
                    good = low <= float(form[name]) <= high
                except ValueError:
                    good = False
                if not good:
                    refuse(f"{name}: must be {low} to {high}")
        if operation == "generate/ultra" and ("image" in files) != ("strength" in form):
            refuse("image, strength: are required together")
        if operation == "generate/sd3":
            from_image = form.get("mode") == "image-to-image"
            if from_image != ("image" in files) or from_image != ("strength" in form):
                refuse("mode: image and strength belong to image-to-image")
            if from_image and "aspect_ratio" in form:
                refuse("aspect_ratio: is not allowed for image-to-image")
            if form.get("model") == "sd3-large-turbo" and "negative_prompt" in form:
                refuse("negative_prompt: is not allowed for sd3-large-turbo")
        if operation == "edit/outpaint" and not any(int(form.get(s, 0)) for s in ("left", "right", "up", "down")):
            refuse("one of left, right, up and down must not be 0")

    def _image(self, request, operation, form, pictures, accept):
        width, height = RATIOS[form.get("aspect_ratio", "1:1")]
        if operation == "generate/core":
            # Core draws about one and a half megapixels.
            width, height = (round(side * 1.25 / 64) * 64 for side in (width, height))
        if "image" in pictures and operation != "control/style":
            width, height = pictures["image"].size
        if operation == "edit/outpaint":
            width += int(form.get("left", 0)) + int(form.get("right", 0))
            height += int(form.get("up", 0)) + int(form.get("down", 0))
        elif operation == "upscale/fast":
            width, height = width * 4, height * 4
        kind = form.get("output_format", "png")
        data = picture(width, height, kind=kind)
        seed = int(form.get("seed", 0)) or 343940597
        if operation == "upscale/creative":
            name = secrets.token_hex(32)
            self.results[name] = [data, kind, seed, 1]
            return Reply.json(200, {"id": name})
        return self._finished(data, kind, seed, accept)

    def _finished(self, data, kind, seed, accept, reason="SUCCESS"):
        headers = {"x-request-id": secrets.token_hex(16)}
        if accept == "application/json":
            body = {"image": base64.b64encode(data).decode(), "finish_reason": reason, "seed": seed}
            return Reply.json(200, body, headers)
        headers |= {"content-type": f"image/{kind}", "finish-reason": reason, "seed": str(seed)}
        return Reply(200, data, headers)

    def _result(self, request, name):
        if name not in self.results:
            raise Refused(failure(404, "not_found", ["no such generation"], v1=False))
        entry = self.results[name]
        if entry[3]:
            entry[3] -= 1
            return Reply.json(202, {"id": name, "status": "in-progress"})
        return self._finished(*entry[:3], request.headers.get("accept", "image/*"))

    # What goes wrong.

    def error(self, status, headers=None):
        names = {
            400: ("bad_request", "something is wrong"),
            401: ("unauthorized", "missing or invalid API key"),
            402: ("payment_required", "you have run out of credits"),
            403: ("permission_denied", "you lack permission"),
            404: ("not_found", "not found"),
            413: ("payload_too_large", "the request is too large"),
            422: ("invalid_language", "only English is supported"),
            429: ("rate_limit_exceeded", "you have exceeded the limit of 150 requests in 10 seconds"),
            500: ("internal_error", "an unexpected server error has occurred"),
        }
        name, message = names.get(status, ("internal_error", "an unexpected server error has occurred"))
        body = {"id": secrets.token_hex(16), "name": name, "message": message, "errors": [message]}
        return Reply.json(status, body, headers)

    def refusal(self, request):
        if request.path.startswith("/v1/"):
            message = "Invalid prompts detected: your request was flagged by our content moderation system"
            return failure(400, "invalid_prompts", [message], v1=True)
        message = "Your request was flagged by our content moderation system, as a result your request was denied."
        return failure(403, "content_moderation", [message], v1=False)

    def filtered(self, request):
        return self._altered(request, lambda a: {**a, "finishReason": "CONTENT_FILTERED"}, reason="CONTENT_FILTERED")

    def empty(self, request):
        body = {"artifacts": []} if request.path.startswith("/v1/") else {"finish_reason": "SUCCESS", "seed": 1}
        return Reply.json(200, body)

    def fewer(self, request):
        reply = self.reply_to(request)
        if reply.status != 200 or not request.path.startswith("/v1/"):
            return self.empty(request)
        return Reply.json(200, {"artifacts": json.loads(reply.body)["artifacts"][:-1]})

    def with_image_text(self, request, text):
        return self._altered(request, lambda a: {**a, "base64": text}, image=lambda _: text)

    def truncated(self, request):
        def half(text):
            whole = base64.b64decode(text)
            return base64.b64encode(whole[: len(whole) // 2]).decode()

        return self._altered(request, lambda a: {**a, "base64": half(a["base64"])}, image=half)

    def _altered(self, request, artifact, reason=None, image=None):
        reply = self.reply_to(request)
        if reply.status != 200:
            return reply
        if request.path.startswith("/v1/"):
            return Reply.json(200, {"artifacts": [artifact(a) for a in json.loads(reply.body)["artifacts"]]})
        if reply.headers["content-type"] == "application/json":
            body = json.loads(reply.body)
            body["finish_reason"] = reason or body["finish_reason"]
            body["image"] = image(body["image"]) if image else body["image"]
            return Reply.json(200, body)
        if image:
            return Reply(200, reply.body[: len(reply.body) // 2], reply.headers)
        return Reply(200, reply.body, {**reply.headers, "finish-reason": reason})
