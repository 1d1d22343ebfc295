"""Black Forest Labs: jobs of the FLUX models, asked for at the address that the first answer names."""

import base64
import secrets

from ..pictures import look, picture
from ..server import Refused, Reply
from . import RingProvider

TEXT, BOOLEAN, WHOLE, NUMBER = (str,), (bool,), (int,), (int, float)
COMMON = {"prompt": TEXT, "seed": WHOLE, "output_format": TEXT, "safety_tolerance": WHOLE, "prompt_upsampling": BOOLEAN}
PIXELS = {"width": WHOLE, "height": WHOLE}
REFERENCES = {"input_image": TEXT} | {f"input_image_{i}": TEXT for i in range(2, 9)}
TUNING = {"steps": WHOLE, "guidance": NUMBER}
FLUX_1 = COMMON | PIXELS | {"image_prompt": TEXT}
FIELDS = {
    "flux-2-pro": COMMON | PIXELS | REFERENCES,
    "flux-2-max": COMMON | PIXELS | REFERENCES,
    "flux-2-flex": COMMON | PIXELS | REFERENCES | TUNING,
    "flux-kontext-pro": COMMON | {"aspect_ratio": TEXT, "input_image": TEXT, "input_image_2": TEXT},
    "flux-pro-1.1-ultra": COMMON
    | {"aspect_ratio": TEXT, "raw": BOOLEAN, "image_prompt": TEXT, "image_prompt_strength": NUMBER},
    "flux-pro-1.1": FLUX_1,
    "flux-dev": FLUX_1 | TUNING,
    "flux-pro-1.0-fill": COMMON | TUNING | {"image": TEXT, "mask": TEXT},
    "flux-pro-1.0-expand": COMMON | TUNING | {"image": TEXT, "top": WHOLE, "bottom": WHOLE, "left": WHOLE, "right": WHOLE},
}
IMAGES = {"image", "mask", "image_prompt"} | set(REFERENCES)


def problem(field, message, status=422):
    return Refused(Reply.json(status, {"detail": [{"loc": ["body", field], "msg": message, "type": "value_error"}]}))


class BlackForestLabs(RingProvider):
    provider = "black-forest-labs"
    model = "flux-2-pro"
    polls = True
    edits = True
    price_usd = 0.03

    def __init__(self):
        self.jobs = {}  # outcome, picture, and how often it was asked for, by id
        self.held = False
        super().__init__()

    @property
    def base_url(self):
        return self.url + "/v1"

    def hold_jobs(self):
        self.held = True

    def error(self, status, headers=None):
        return Reply.json(status, {"detail": f"an error of status {status}"}, headers)

    def refusal(self, request):
        return self.submit(request, "Request Moderated")

    def answer(self, request):
        if request.path.startswith("/delivery/"):
            # Signed addresses on a host that is nobody's API: a key has no business there.
            assert "x-key" not in request.headers and request.method == "GET"
            return Reply(200, self.jobs[request.path.split("/")[2]][1], {"content-type": "image/jpeg"})
        if request.headers.get("x-key") != self.key:
            raise Refused(Reply.json(403, {"detail": "Not authenticated"}))
        if request.path == "/v1/get_result":
            if request.method != "GET":
                raise Refused(Reply.json(405, {"detail": "Method Not Allowed"}))
            return self.look_up(request.query.get("id", ""))
        if request.path.removeprefix("/v1/") not in FIELDS:
            raise Refused(Reply.json(404, {"detail": "Not Found"}))
        if request.method != "POST":
            raise Refused(Reply.json(405, {"detail": "Method Not Allowed"}))
        return self.submit(request, "Ready")

    def submit(self, request, outcome):
        width, height = self.check(request)
        job = secrets.token_hex(8)
        self.jobs[job] = [outcome, picture(width, height, len(self.jobs), "jpeg"), 0]
        return Reply.json(200, {"id": job, "polling_url": f"{self.base_url}/get_result?id={job}", "cost": 3.0})

    def check(self, request):
        """The size of the result."""
        fields = FIELDS[request.path.removeprefix("/v1/")]
        if request.content_type != "application/json":
            raise problem("body", "is no JSON")
        body = request.json()
        for name, value in body.items():
            if name not in fields:
                raise problem(name, "extra fields are not permitted")
            if type(value) not in fields[name]:
                raise problem(name, "has the wrong type")
        if not body.get("prompt") and not IMAGES & set(body):
            raise problem("prompt", "field required")
        if body.get("output_format", "jpeg") not in ("jpeg", "png"):
            raise problem("output_format", "must be jpeg or png")
        if not 0 <= body.get("safety_tolerance", 2) <= (5 if IMAGES & set(body) or "flux-2" in request.path else 6):
            raise problem("safety_tolerance", "is out of range")
        for name in IMAGES & set(body):
            try:
                look(base64.b64decode(body[name], validate=True))
            except Exception:
                raise problem(name, "is no image in base64") from None
        for name in PIXELS:
            if name in body and not (64 <= body[name] <= 2048 and body[name] % 16 == 0):
                raise problem(name, "must be a multiple of 16 from 64 to 2048")
        return body.get("width", 1024), body.get("height", 768)

    def look_up(self, job):
        if job not in self.jobs:
            return Reply.json(404, {"id": job, "status": "Task not found", "result": None})
        known = self.jobs[job]
        known[2] += 1
        if self.held or known[2] == 1:
            return Reply.json(200, {"id": job, "status": "Pending", "result": None, "progress": 0.5})
        if known[0] != "Ready":
            details = {"Moderation Reasons": ["Violence"]}
            return Reply.json(200, {"id": job, "status": known[0], "result": None, "details": details})
        result = {"sample": f"{self.url}/delivery/{job}/sample.jpeg?sig=1", "seed": 42, "duration": 0.1}
        return Reply.json(200, {"id": job, "status": "Ready", "result": result, "progress": 1.0, "cost": 3.0})
