"""Vertex AI with one project: Gemini as in `google.py`, and Imagen. It admits whom its own token endpoint gave a token."""

import base64
import json

from ..oauth import GoogleTokens
from ..pictures import look, picture
from ..server import Reply
from .google import Google, fields, refuse

RATIOS = {"1:1": (1024, 1024), "3:4": (896, 1280), "4:3": (1280, 896), "9:16": (768, 1408), "16:9": (1408, 768)}
TIERS = {"1K": 1, "2K": 2}
# By what they do.
GENERATORS = {"imagen-4.0-generate-001": set(TIERS), "imagen-4.0-fast-generate-001": set(), "imagen-3.0-generate-001": set()}
EDITOR = "imagen-3.0-capability-001"
UPSCALER = "imagen-4.0-upscale-preview"
EDITS = {"EDIT_MODE_DEFAULT": 1, "EDIT_MODE_INPAINT_INSERTION": 2, "EDIT_MODE_INPAINT_REMOVAL": 2}

FILTERED = {"raiFilteredReason": "Your current safety filter threshold filtered out 1 generated image. Support codes: 1"}


class VertexAi(Google):
    provider = "vertex-ai"
    options = {"vertex_region": "us-central1"}
    image_fields = {"imageOutputOptions": dict, "personGeneration": str}
    models_at = "/v1/projects/art-1/locations/us-central1/publishers/google/models/"
    not_found = "Publisher Model `publishers/google/models/{}` was not found or your project does not have access to it."

    def __init__(self):
        super().__init__()
        self.tokens = GoogleTokens()
        self.key = json.dumps(self.tokens.account)
        self.filter = []  # what takes the place of Imagen's first images; None: nothing does

    @property
    def base_url(self):
        return self.url + "/v1"

    def credential(self, variable):
        return {"vertex_service_account_json": {"env": variable}}

    def close(self):
        self.tokens.close()
        super().close()

    def admit(self, request):
        if not self.tokens.admits(request.headers.get("authorization", "")):
            info = {"reason": "ACCESS_TOKEN_TYPE_UNSUPPORTED", "domain": "googleapis.com"}
            refuse("Request had invalid authentication credentials.", 401, ("ErrorInfo", info))
        if "x-goog-api-key" in request.headers:
            refuse("API keys are not supported by this API.", 401)

    def serve(self, model, verb, body):
        if model not in (*GENERATORS, EDITOR, UPSCALER):
            return super().serve(model, verb, body)
        if verb != "predict":
            refuse(f"{model} is not supported in the {verb} API.")
        fields(body, "request", instances=list, parameters=dict)
        if len(body.get("instances", [])) != 1:
            refuse("Only one instance is supported.")
        instance, parameters = body["instances"][0], body.get("parameters", {})
        count = parameters.get("sampleCount", 4)
        if not isinstance(count, int) or not 1 <= count <= (1 if model == UPSCALER else 4):
            refuse("Number of output images should be in [1, 4].")
        options = fields(parameters.get("outputOptions", {}), "outputOptions", mimeType=str, compressionQuality=int)
        if model == UPSCALER:
            size = self._upscaled(instance, parameters)
        elif model == EDITOR:
            size = self._edited(instance, parameters)
        else:
            size = self._generated(instance, parameters, GENERATORS[model])
        data, kind = self.picture(size, {"imageOutputOptions": options})
        image = {"bytesBase64Encoded": base64.b64encode(data).decode(), "mimeType": kind}
        images = (self.filter + [image] * count)[:count]
        return Reply.json(200, {"predictions": [one for one in images if one is not None]})

    def picture(self, size, image_config):
        if image_config.get("personGeneration", "ALLOW_ALL") not in ("ALLOW_ALL", "ALLOW_ADULT", "ALLOW_NONE"):
            refuse("Invalid value at 'image_config.person_generation'")
        options = fields(image_config.get("imageOutputOptions", {}), "output", mimeType=str, compressionQuality=int)
        kind = options.get("mimeType", "image/png")
        if kind not in ("image/png", "image/jpeg") or not 0 <= options.get("compressionQuality", 75) <= 100:
            refuse("Invalid output options.")
        return picture(*size, kind=kind.removeprefix("image/")), kind

    def _generated(self, instance, parameters, tiers):
        fields(instance, "instance", prompt=str)
        self._common(
            parameters,
            aspectRatio=str,
            sampleImageSize=str,
            negativePrompt=str,
            enhancePrompt=bool,
        )
        if not instance.get("prompt"):
            refuse("Text prompt is required.")
        if parameters.get("aspectRatio", "1:1") not in RATIOS:
            refuse("Invalid aspect ratio.")
        if "sampleImageSize" in parameters and parameters["sampleImageSize"] not in tiers:
            refuse("Invalid sample image size.")
        factor = TIERS[parameters.get("sampleImageSize", "1K")]
        return tuple(side * factor for side in RATIOS[parameters.get("aspectRatio", "1:1")])

    def _edited(self, instance, parameters):
        fields(instance, "instance", prompt=str, referenceImages=list)
        self._common(
            parameters, editMode=str, editConfig=dict, guidanceScale=(int, float), negativePrompt=str
        )
        mode, references = parameters.get("editMode"), instance.get("referenceImages", [])
        if EDITS.get(mode) != len(references):
            refuse(f"Edit mode {mode} does not take these reference images.")
        kinds = {"referenceType": str, "referenceId": int, "referenceImage": dict, "maskImageConfig": dict}
        images = []
        for reference, kind in zip(references, ("REFERENCE_TYPE_RAW", "REFERENCE_TYPE_MASK")):
            fields(reference, "referenceImages", **kinds)
            if reference.get("referenceType") != kind:
                refuse("The reference images are of the wrong type.")
            images.append(self._image(reference.get("referenceImage", {})))
        if len(images) == 2:
            if references[1].get("maskImageConfig") != {"maskMode": "MASK_MODE_USER_PROVIDED"}:
                refuse("A mask needs a mask mode.")
            if images[1].size != images[0].size or "A" in images[1].getbands():
                refuse("The mask must be an opaque image of the size of the raw image.")
            self.mask = images[1].convert("L")
        return images[0].size

    def _upscaled(self, instance, parameters):
        fields(instance, "instance", prompt=str, image=dict)
        self._common(parameters, mode=str, upscaleConfig=dict)
        config = fields(parameters.get("upscaleConfig", {}), "upscaleConfig", upscaleFactor=str)
        if parameters.get("mode") != "upscale" or config.get("upscaleFactor") not in ("x2", "x3", "x4"):
            refuse("Invalid upscale factor.")
        return tuple(side * int(config["upscaleFactor"][1]) for side in self._image(instance.get("image", {})).size)

    def _common(self, parameters, **more):
        kinds = {"sampleCount": int, "includeRaiReason": bool, "safetySetting": str, "personGeneration": str}
        kinds |= {"addWatermark": bool, "seed": int, "language": str, "outputOptions": dict}
        fields(parameters, "parameters", **kinds, **more)
        if "seed" in parameters and parameters.get("addWatermark", True):
            refuse("Seed is not supported when watermark is enabled.")
        if parameters.get("safetySetting", "block_none") not in ("block_none", "block_only_high", "block_low_and_above"):
            refuse("Invalid safety setting.")

    def _image(self, value):
        fields(value, "image", bytesBase64Encoded=str, mimeType=str)
        try:
            return look(base64.b64decode(value["bytesBase64Encoded"], validate=True))
        except Exception:
            refuse("Failed to decode the image.")
