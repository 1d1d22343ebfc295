"""Azure OpenAI with one resource: the dialect of `emulators/openai.py` behind deployments and an `api-key` header."""

import dataclasses
import json
import re

from ..openai import OpenAI
from ..server import Refused, Reply
from . import RingProvider

DEPLOYMENTS = {"pictures": "gpt-image-2"}
# Images of gpt-image models from this version on.
VERSIONS = ["2025-04-01-preview"]


def failure(status, code, message, headers=None, **more):
    return Reply.json(status, {"error": {"code": code, "message": message, **more}}, headers)


def refuse(status, code, message):
    raise Refused(failure(status, code, message))


class AzureOpenAi(OpenAI, RingProvider):
    provider = "azure-openai"
    model = "gpt-image-2"
    max_n = 10
    edits = True
    options = {"deployment_id": "pictures", "api_version": VERSIONS[0]}
    # 6 tokens of text and 1056 of the image.
    price_usd = 0.03171

    def __init__(self):
        super().__init__(RingProvider.key)

    @property
    def base_url(self):
        return self.url + "/openai"

    def admits(self, request):
        return request.headers.get("api-key") == self.key and "authorization" not in request.headers

    def answer(self, request):
        if not self.admits(request):
            refuse(401, "401", "Access denied due to invalid subscription key or wrong API endpoint.")
        found = re.fullmatch(r"/openai/deployments/([^/]+)/images/(generations|edits)", request.path)
        if not found:
            refuse(404, "404", "Resource not found")
        if request.method != "POST":
            refuse(405, "405", "Method not allowed")
        if request.query.get("api-version") not in VERSIONS:
            refuse(404, "404", "Resource not found")
        if found[1] not in DEPLOYMENTS:
            refuse(404, "DeploymentNotFound", "The API deployment for this resource does not exist.")
        if found[2] == "edits":
            return self._images(request, self._edit(request), "image_edit")
        if request.content_type != "application/json":
            refuse(415, "415", "Unsupported media type")
        try:
            body = self._deployed(request.json())
        except ValueError:
            refuse(400, "BadRequest", "The body is no JSON")
        whole = dataclasses.replace(request, body=json.dumps(body).encode())
        return self._images(request, self._generation(whole), "image_generation")

    def _form(self, request):
        return self._deployed(super()._form(request))

    def _deployed(self, body):
        if "model" in body:
            refuse(400, "unknown_parameter", "Unknown parameter: 'model'.")
        return {**body, "model": DEPLOYMENTS["pictures"]}

    def error(self, status, headers=None):
        code, message = {
            429: ("429", "Requests to this operation have exceeded the call rate limit of your tier."),
            503: ("ServiceUnavailable", "The service is temporarily unable to process your request."),
        }.get(status, ("InternalServerError", "The server had an error."))
        return failure(status, code, message, headers)

    def refusal(self, request):
        results = {"violence": {"filtered": True, "severity": "high"}, "hate": {"filtered": False, "severity": "safe"}}
        inner = {"code": "ResponsibleAIPolicyViolation", "content_filter_results": results}
        message = "Your request was rejected by the content filters of this deployment."
        return failure(400, "BadRequest", message, innererror=inner)
