"""AWS Bedrock's InvokeModel: signatures of version 4, computed anew here, and the bodies of Amazon's and Stability's models.

What is signed is AWS's specification of Signature Version 4; error texts of validation are made up.
"""

import base64
import hashlib
import hmac
import json
import re
import time
from datetime import datetime, timezone
from urllib.parse import quote, unquote

from ..pictures import look, picture
from ..server import Refused, Reply
from ..stability import RATIOS, STYLES
from . import RingProvider

KEY_ID = "AKIDRINGEXAMPLE"
REGION = "eu-west-1"
MAX_SKEW_S = 300
FILTERED = (
    "This request has been blocked by our content filters. Our filters automatically flagged this prompt because it may "
    "conflict our AUP or AWS Responsible AI Policy. Please adjust your text prompt to submit a new request."
)
WITHHELD = "The generated image(s) has been blocked by our content filters because it may conflict our AUP."
CLASSES = {
    400: "ValidationException",
    403: "AccessDeniedException",
    404: "ResourceNotFoundException",
    408: "ModelTimeoutException",
    424: "ModelErrorException",
    429: "ThrottlingException",
    500: "InternalServerException",
    503: "ServiceUnavailableException",
}

SEED, FORMAT, PROMPT = {"seed"}, {"output_format"}, {"prompt"}
NEGATIVE, STYLE, GROW = {"negative_prompt"}, {"style_preset"}, {"grow_mask"}
TEXT_TO_IMAGE = (PROMPT, SEED | FORMAT | NEGATIVE | {"aspect_ratio", "mode"})
# By model: what it must be given, and what it may be given.
SERVICES = {
    "sd3-5-large-v1:0": (PROMPT, TEXT_TO_IMAGE[1] | {"image", "strength"}),
    "stable-image-core-v1:1": TEXT_TO_IMAGE,
    "stable-image-ultra-v1:1": TEXT_TO_IMAGE,
    "stable-image-inpaint-v1:0": (PROMPT | {"image"}, {"mask"} | SEED | FORMAT | NEGATIVE | STYLE | GROW),
    "stable-image-erase-object-v1:0": ({"image"}, {"mask"} | SEED | FORMAT | GROW),
    "stable-image-remove-background-v1:0": ({"image"}, FORMAT),
    "stable-image-search-replace-v1:0": (PROMPT | {"image", "search_prompt"}, SEED | FORMAT | NEGATIVE | STYLE | GROW),
    "stable-image-search-recolor-v1:0": (PROMPT | {"image", "select_prompt"}, SEED | FORMAT | NEGATIVE | STYLE | GROW),
    "stable-outpaint-v1:0": ({"image"}, PROMPT | SEED | FORMAT | STYLE | {"left", "right", "up", "down", "creativity"}),
    "stable-image-control-sketch-v1:0": (PROMPT | {"image"}, SEED | FORMAT | NEGATIVE | STYLE | {"control_strength"}),
    "stable-image-control-structure-v1:0": (PROMPT | {"image"}, SEED | FORMAT | NEGATIVE | STYLE | {"control_strength"}),
    "stable-image-style-guide-v1:0": (PROMPT | {"image"}, SEED | FORMAT | NEGATIVE | {"aspect_ratio", "fidelity"}),
    "stable-style-transfer-v1:0": (
        {"init_image", "style_image"},
        PROMPT | SEED | FORMAT | NEGATIVE | {"style_strength", "composition_fidelity", "change_strength"},
    ),
    "stable-fast-upscale-v1:0": ({"image"}, FORMAT),
    "stable-conservative-upscale-v1:0": (PROMPT | {"image"}, SEED | FORMAT | NEGATIVE | {"creativity"}),
    "stable-creative-upscale-v1:0": (PROMPT | {"image"}, SEED | FORMAT | NEGATIVE | STYLE | {"creativity"}),
}
IMAGES = {"image", "mask", "init_image", "style_image"}
LIMITS = {
    "seed": (0, 4294967294),
    "strength": (0, 1),
    "grow_mask": (0, 20),
    "creativity": (0.1, 1),
    "control_strength": (0, 1),
    "fidelity": (0, 1),
    "style_strength": (0, 1),
    "composition_fidelity": (0, 1),
    "change_strength": (0.1, 1),
    "left": (0, 2000),
    "right": (0, 2000),
    "up": (0, 2000),
    "down": (0, 2000),
}

TITAN_SIZES = (
    "1024x1024 768x768 512x512 768x1152 1152x768 384x576 576x384 768x1280 1280x768 384x640 640x384 896x1152 1152x896 "
    "448x576 576x448 768x1408 1408x768 384x704 704x384 640x1408 1408x640 320x704 704x320 1152x640 1173x640"
).split()
NOVA_STYLES = (
    "3D_ANIMATED_FAMILY_FILM DESIGN_SKETCH FLAT_VECTOR_ILLUSTRATION GRAPHIC_NOVEL_ILLUSTRATION MAXIMALISM "
    "MIDCENTURY_RETRO PHOTOREALISM SOFT_DIGITAL_PAINTING"
).split()
PAINTING = {"text", "negativeText", "image", "maskImage", "maskPrompt"}
# By task: the member with its parameters, and what may be in it.
TASKS = {
    "TEXT_IMAGE": (
        "textToImageParams",
        {"text", "negativeText", "style", "conditionImage", "controlMode", "controlStrength"},
    ),
    "COLOR_GUIDED_GENERATION": ("colorGuidedGenerationParams", {"text", "negativeText", "colors", "referenceImage"}),
    "IMAGE_VARIATION": ("imageVariationParams", {"text", "negativeText", "images", "similarityStrength"}),
    "INPAINTING": ("inPaintingParams", PAINTING),
    "OUTPAINTING": ("outPaintingParams", PAINTING | {"outPaintingMode"}),
    "BACKGROUND_REMOVAL": ("backgroundRemovalParams", {"image"}),
}
AMAZON = {"amazon.nova-canvas-v1:0": 858993459, "amazon.titan-image-generator-v2:0": 2147483646}


def failure(status, message, kind=None, headers=None):
    kind = kind or CLASSES.get(status, "InternalServerException")
    named = {"x-amzn-ErrorType": f"{kind}:http://internal.amazon.com/coral/", "x-amzn-RequestId": "ring-request"}
    return Reply.json(status, {"message": message}, {**named, **(headers or {})})


def refuse(message, status=400, kind=None):
    raise Refused(failure(status, message, kind))


def unsigned(message, kind="InvalidSignatureException", status=403):
    refuse(message, status, kind)


def canonical_request(method, path, headers, names, body):
    """Each step of the path is encoded once more than it was sent."""
    path = "/".join(quote(step, safe="-_.~") for step in path.split("/"))
    lines = [f"{name}:{' '.join(headers[name].split())}\n" for name in names]
    return "\n".join([method, path, "", "".join(lines), ";".join(names), hashlib.sha256(body).hexdigest()])


def signature(secret, date, region, canonical):
    scope = f"{date[:8]}/{region}/bedrock/aws4_request"
    text = "\n".join(["AWS4-HMAC-SHA256", date, scope, hashlib.sha256(canonical.encode()).hexdigest()])
    key = b"AWS4" + secret.encode()
    for part in scope.split("/"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


class Bedrock(RingProvider):
    provider = "bedrock"
    model = "stability.stable-image-core-v1:1"
    edits = True
    edit_model = "stability.sd3-5-large-v1:0"
    options = {"aws_region": REGION}
    price_usd = 0.04
    session_token = None  # what must be sent beside the keys
    api_key = None  # taken in place of a signature
    moderated = 0  # images that Amazon's models withhold of what they made

    def credential(self, variable):
        return {"aws_access_key_id": KEY_ID, "aws_secret_access_key": {"env": variable}}

    def answer(self, request):
        found = re.fullmatch(r"/model/([^/]+)/invoke", request.path)
        if not found or request.method != "POST" or "?" in request.target:
            refuse("Unable to determine service/operation name to be authorized", 404, "UnknownOperationException")
        self._authenticate(request)
        accept = request.headers.get("accept", "*/*")
        if request.content_type != "application/json" or accept not in ("*/*", "application/json"):
            refuse("The content type or accept type is not supported by this model.")
        try:
            body = request.json()
        except ValueError:
            refuse("Malformed input request, please reformat your input and try again.")
        model = re.sub(r"^(us|eu|apac)\.", "", unquote(found[1]))
        if model in AMAZON:
            return self._amazon(model, body)
        if model.removeprefix("stability.") in SERVICES and model.startswith("stability."):
            return self._stability(model.removeprefix("stability."), body)
        refuse("The provided model identifier is invalid.")

    # Signature Version 4

    def _authenticate(self, request):
        headers, given = request.headers, request.headers.get("authorization", "")
        if not given:
            unsigned("Missing Authentication Token", "MissingAuthenticationTokenException")
        if given.startswith("Bearer "):
            if self.api_key is None or given != f"Bearer {self.api_key}":
                unsigned("Authentication failed: Please make sure your API Key is valid.", "AccessDeniedException")
            return
        credential = r"Credential=([^/]+)/(\d{8})/([^/]+)/([^/]+)/aws4_request"
        pattern = rf"AWS4-HMAC-SHA256 {credential}, SignedHeaders=([a-z0-9;-]+), Signature=([0-9a-f]{{64}})"
        parts = re.fullmatch(pattern, given)
        if not parts:
            unsigned("Authorization header is malformed", "IncompleteSignatureException", 400)
        key_id, day, region, service, names, claimed = parts.groups()
        date = headers.get("x-amz-date", "")
        if not re.fullmatch(r"\d{8}T\d{6}Z", date):
            message = "Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header."
            unsigned(message, "IncompleteSignatureException", 400)
        if key_id != KEY_ID or headers.get("x-amz-security-token") != self.session_token:
            unsigned("The security token included in the request is invalid.", "UnrecognizedClientException")
        if (day, region, service) != (date[:8], REGION, "bedrock"):
            unsigned("Credential should be scoped to a valid region and to the correct service: 'bedrock'.")
        names = names.split(";")
        must = {"host"} | {name for name in headers if name.startswith("x-amz-") or name == "content-type"}
        if names != sorted(names) or not must <= set(names) or not set(names) <= set(headers):
            unsigned("'Host' and all 'x-amz-' headers must be signed.")
        canonical = canonical_request(request.method, request.path, headers, names, request.body)
        if not hmac.compare_digest(signature(self.key, date, REGION, canonical), claimed):
            message = "The request signature we calculated does not match the signature you provided."
            unsigned(f"{message}\n\nThe Canonical String for this request should have been\n'{canonical}'\n")
        sent = datetime.strptime(date, "%Y%m%dT%H%M%SZ").replace(tzinfo=timezone.utc).timestamp()
        if abs(time.time() - sent) > MAX_SKEW_S:
            unsigned(f"Signature expired: {date} is now earlier than the allowed time")

    # Stability's models

    def _stability(self, model, body):
        required, optional = SERVICES[model]
        self._members(body, required, optional, "#")
        pictures = {name: self._picture(body[name], name) for name in IMAGES & set(body)}
        for name, value in body.items():
            if name in LIMITS:
                low, high = LIMITS[name]
                if type(value) not in (int, float) or not low <= value <= high:
                    refuse(f"#/{name}: must be {low} to {high}")
            elif not isinstance(value, str):
                refuse(f"#/{name}: expected type: String")
        formats = ["png", "jpeg"] if model.startswith("stable-image-core") else ["png", "jpeg", "webp"]
        for name, values in [
            ("output_format", formats),
            ("aspect_ratio", list(RATIOS)),
            ("style_preset", STYLES),
            ("mode", ["text-to-image"] + ["image-to-image"] * model.startswith("sd3")),
        ]:
            if name in body and body[name] not in values:
                refuse(f"#/{name}: {body[name]} is not a valid enum value")
        from_image = body.get("mode") == "image-to-image"
        if model.startswith("sd3") and (from_image != ("image" in body) or from_image != ("strength" in body)):
            refuse("image-to-image requires image and strength")
        if from_image and "aspect_ratio" in body:
            refuse("aspect_ratio is valid for text-to-image only")
        if "outpaint" in model and not any(body.get(side) for side in ("left", "right", "up", "down")):
            refuse("one of left, right, up and down must not be 0")
        if "mask" in pictures and pictures["mask"].size != pictures["image"].size:
            refuse("mask: must have the size of the image")
        source = pictures.get("image") or pictures.get("init_image")
        size = RATIOS[body.get("aspect_ratio", "1:1")]
        if source is not None and "guide" not in model:
            size = self._result_size(model, source.size, body)
        data = picture(*size, body.get("seed", 0) % 10, body.get("output_format", "png"))
        return self._made({"seeds": [body.get("seed") or 77], "finish_reasons": [None], "images": [self._base64(data)]})

    @staticmethod
    def _result_size(model, size, body):
        if "fast-upscale" in model:
            return tuple(side * 4 for side in size)
        if "outpaint" in model:
            across, down = body.get("left", 0) + body.get("right", 0), body.get("up", 0) + body.get("down", 0)
            return size[0] + across, size[1] + down
        return size

    # Amazon's models

    def _amazon(self, model, body):
        if body.get("taskType") not in TASKS:
            refuse("#/taskType: is not a valid enum value")
        name, allowed = TASKS[body["taskType"]]
        removes = body["taskType"] == "BACKGROUND_REMOVAL"
        self._members(body, {"taskType", name}, set() if removes else {"imageGenerationConfig"}, "#")
        params = body[name]
        self._members(params, set(), allowed if "nova" in model else allowed - {"style"}, f"#/{name}")
        source = self._params(model, body["taskType"], params)
        config = body.get("imageGenerationConfig", {})
        # What is painted in an image keeps its size.
        sized = {"width", "height"} if source is None else set()
        self._members(config, set(), sized | {"numberOfImages", "quality", "cfgScale", "seed"}, "#/imageGenerationConfig")
        for member, low, high in [("numberOfImages", 1, 5), ("cfgScale", 1.1, 10), ("seed", 0, AMAZON[model])]:
            value = config.get(member, low)
            kinds = (int, float) if member == "cfgScale" else (int,)
            if type(value) not in kinds or not low <= value <= high:
                refuse(f"#/imageGenerationConfig/{member}: must be {low} to {high}")
        if config.get("quality", "standard") not in ("standard", "premium"):
            refuse("#/imageGenerationConfig/quality: is not a valid enum value")
        size = source.size if source is not None else self._size(model, config)
        count = config.get("numberOfImages", 1)
        images = [self._base64(picture(*size, i)) for i in range(max(count - self.moderated, 0))]
        if not images:
            refuse(FILTERED)
        return self._made({"images": images, "error": WITHHELD if len(images) < count else None})

    def _params(self, model, task, params):
        """Checks what belongs to a task, and gives the image that is edited."""
        text = params.get("text")
        if not (1 if task == "TEXT_IMAGE" else 0) <= len(text or "") <= (1024 if "nova" in model else 512) or text == "":
            refuse("text: expected minLength: 1, maxLength: 1024 or 512")
        if params.get("style", NOVA_STYLES[0]) not in NOVA_STYLES:
            refuse("style: is not a valid enum value")
        if params.get("outPaintingMode", "DEFAULT") not in ("DEFAULT", "PRECISE"):
            refuse("outPaintingMode: is not a valid enum value")
        for member, low in [("similarityStrength", 0.2), ("controlStrength", 0)]:
            if member in params and (type(params[member]) not in (int, float) or not low <= params[member] <= 1):
                refuse(f"{member}: must be {low} to 1")
        if ("controlMode" in params) > ("conditionImage" in params):
            refuse("controlMode: needs a conditionImage")
        if task == "IMAGE_VARIATION" and not 1 <= len(params.get("images", [])) <= 5:
            refuse("images: must be 1 to 5")
        if task == "COLOR_GUIDED_GENERATION" and not (
            1 <= len(params.get("colors", [])) <= 10 and all(re.fullmatch("#[0-9A-Fa-f]{6}", c) for c in params["colors"])
        ):
            refuse("colors: must be 1 to 10 colors such as #FF9800")
        for image in params.get("images", []) + [params[n] for n in ("conditionImage", "referenceImage") if n in params]:
            self._opaque(image)
        if task not in ("INPAINTING", "OUTPAINTING", "BACKGROUND_REMOVAL"):
            return None
        if "image" not in params:
            refuse("image: is required")
        source = self._opaque(params["image"])
        if task != "BACKGROUND_REMOVAL" and ("maskImage" in params) == ("maskPrompt" in params):
            refuse("Either maskImage or maskPrompt must be given, and not both")
        if "maskImage" in params:
            mask = self._opaque(params["maskImage"])
            if mask.size != source.size or mask.mode not in ("L", "RGB", "1"):
                refuse("maskImage: must have the size of the image, and no alpha channel")
            if set(mask.convert("RGB").getdata()) - {(0, 0, 0), (255, 255, 255)}:
                refuse("maskImage: must be pure black and white")
        return source

    def _size(self, model, config):
        size = width, height = config.get("width", 1024), config.get("height", 1024)
        if "nova" in model:
            good = all(320 <= side <= 4096 and side % 16 == 0 for side in size)
            good = good and width * height <= 4_194_304 and max(size) <= 4 * min(size)
        else:
            good = f"{width}x{height}" in TITAN_SIZES
        if not good:
            refuse(f"The provided width and height values are not valid: {width}x{height}")
        return size

    # Both

    def _members(self, value, required, optional, where):
        if not isinstance(value, dict):
            refuse(f"{where}: expected type: JSONObject")
        for name in sorted(required - set(value)):
            refuse(f"{where}: required key [{name}] not found")
        for name in value:
            if name not in required | optional:
                refuse(f"{where}: extraneous key [{name}] is not permitted, please reformat your input and try again.")

    def _picture(self, text, name):
        try:
            image = look(base64.b64decode(text, validate=True))
        except Exception:
            refuse(f"{name}: is not an image in base64")
        if min(image.size) < 64:
            refuse(f"{name}: each side must be at least 64 pixels")
        return image

    def _opaque(self, text):
        image = self._picture(text, "image")
        if image.format not in ("PNG", "JPEG") or "A" in image.mode and image.getchannel("A").getextrema()[0] < 255:
            refuse("The image must be PNG or JPEG, and its alpha channel may not have transparent pixels.")
        return image

    @staticmethod
    def _base64(data):
        return base64.b64encode(data).decode()

    @staticmethod
    def _made(body):
        return Reply.json(200, body, {"x-amzn-RequestId": "ring-request"})

    def error(self, status, headers=None):
        return failure(status, "it went wrong", headers=headers)

    def refusal(self, request):
        body = request.json()
        if "taskType" in body:
            return failure(400, FILTERED)
        return self._made({"finish_reasons": ["Filter reason: prompt"]})

    def signed(self, model, body, **changed):
        """A request's parts as a client would sign them; `changed` headers are signed as well, or left out if None."""
        data = json.dumps(body).encode()
        headers = {
            "content-type": "application/json",
            "host": self.address,
            "x-amz-date": datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ"),
            **{name.replace("_", "-"): value for name, value in changed.items()},
        }
        headers = {name: value for name, value in headers.items() if value is not None}
        path = f"/model/{quote(model, safe='')}/invoke"
        names = sorted(headers)
        date = headers.get("x-amz-date", "20260101T000000Z")
        canonical = canonical_request("POST", path, headers, names, data)
        made = signature(self.key, date, REGION, canonical)
        scope = f"{KEY_ID}/{date[:8]}/{REGION}/bedrock/aws4_request"
        headers["authorization"] = f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders={';'.join(names)}, Signature={made}"
        return self.url + path, headers, data
