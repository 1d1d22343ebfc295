"""AUTOMATIC1111's web UI with `--api-auth`: an answer comes when its images are done, tasks are asked for by id.

As strict as it gets: the real one ignores fields that it does not know. What it does without a word is done here as
well: sides are cut to multiples of 8, and an unknown checkpoint or sampler is another one.
"""

import base64
import io
import json

from PIL import Image

from .. import faults
from ..pictures import look, picture
from ..server import Refused, Reply
from . import RingProvider

CHECKPOINTS = {"dreamshaper_8", "juggernaut_xl"}
SAMPLERS = {"Euler", "Euler a", "DPM++ 2M"}
NUMBER = (int, float)
COMMON = {
    "prompt": str,
    "negative_prompt": str,
    "width": int,
    "height": int,
    "seed": int,
    "steps": int,
    "cfg_scale": NUMBER,
    "sampler_name": str,
    "scheduler": str,
    "batch_size": int,
    "denoising_strength": NUMBER,
    "force_task_id": str,
    "override_settings": dict,
    "override_settings_restore_afterwards": bool,
    "styles": list,
    "tiling": bool,
}
ENDPOINTS = {
    "/sdapi/v1/txt2img": {**COMMON, "enable_hr": bool, "hr_scale": NUMBER, "hr_upscaler": str},
    "/sdapi/v1/img2img": {
        **COMMON,
        "init_images": list,
        "mask": str,
        "mask_blur": int,
        "inpaint_full_res": bool,
        "inpainting_fill": int,
        "resize_mode": int,
    },
    "/sdapi/v1/extra-single-image": {
        "image": str,
        "upscaler_1": str,
        "resize_mode": int,
        "upscaling_resize": NUMBER,
        "upscaling_resize_w": int,
        "upscaling_resize_h": int,
    },
    "/internal/progress": {"id_task": str, "id_live_preview": int, "live_preview": bool},
}
SETTINGS = {"sd_model_checkpoint": str, "CLIP_stop_at_last_layers": int}


def failure(status, error="HTTPException", detail="", errors="", headers=None):
    return Reply.json(status, {"error": error, "detail": detail, "body": "", "errors": errors}, headers)


def refuse(*args):
    raise Refused(failure(*args))


def unprocessable(field, message, value=None):
    problem = {"type": "value_error", "loc": ["body", field], "msg": message, "input": value}
    raise Refused(Reply.json(422, {"detail": [problem]}))


def check(fields, types):
    for name, value in fields.items():
        if name not in types:
            unprocessable(name, "Extra inputs are not permitted", value)
        wanted = types[name]
        if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
            unprocessable(name, f"Input should not be of type {type(value).__name__}", value)


def decoded(text):
    try:
        return look(base64.b64decode(text, validate=True))
    except Exception:
        refuse(500, "HTTPException", "Invalid encoded image")


def encoded(data):
    return base64.b64encode(data).decode()


class Automatic1111(RingProvider):
    provider = "automatic1111"
    model = "dreamshaper_8"
    max_n = 4
    key = "artist:key-of-the-ring"
    refuses = False
    polls = True
    cancels = True
    edits = True

    def __init__(self):
        super().__init__()
        self.current_task = None  # what runs; ours, once `hold_jobs` has let it begin
        self.pending_tasks = []
        self.state = {"progress": 0.25, "eta": 30.0}  # of what runs
        self.knows_tasks = True

    def answer(self, request):
        if request.method != "POST" or request.path not in {*ENDPOINTS, "/sdapi/v1/interrupt"}:
            raise Refused(Reply.json(404, {"detail": "Not Found"}))
        if request.path == "/internal/progress":
            # No credential is wanted here: it is part of the web UI, not of the API.
            return self._progress(self._body(request))
        basic = base64.b64encode(self.key.encode()).decode()
        if request.headers.get("authorization") != f"Basic {basic}":
            refuse(401, "HTTPException", "Incorrect username or password")
        if request.path == "/sdapi/v1/interrupt":
            self.cancelled += 1
            return Reply.json(200, {})
        body = self._body(request)
        if request.path == "/sdapi/v1/extra-single-image":
            return self._upscaled(body)
        return self._drawn(body, request.path.endswith("img2img"))

    def _body(self, request):
        if request.content_type != "application/json":
            unprocessable("body", "Input should be a valid dictionary")
        try:
            body = request.json()
        except ValueError:
            unprocessable("body", "JSON decode error")
        check(body, ENDPOINTS[request.path])
        return body

    def _progress(self, body):
        if not self.knows_tasks:
            raise Refused(Reply.json(404, {"detail": "Not Found"}))
        task = body["id_task"]
        state = {"active": task == self.current_task, "queued": task in self.pending_tasks, "completed": False}
        running = self.state if state["active"] else {"progress": None, "eta": None}
        return Reply.json(200, {**state, **running, "live_preview": None, "id_live_preview": -1, "textinfo": None})

    def _drawn(self, body, is_edit):
        settings = body.get("override_settings", {})
        check(settings, SETTINGS)
        if settings and body.get("override_settings_restore_afterwards") is not True:
            unprocessable("override_settings_restore_afterwards", "settings must not outlast the request")
        if is_edit:
            if len(body.get("init_images", [])) != 1:
                refuse(404, "HTTPException", "Init image not found")
            decoded(body["init_images"][0])
            if "mask" in body:
                decoded(body["mask"])
        if not 0 <= body.get("denoising_strength", 0.75) <= 1 or not 1 <= body.get("steps", 50) <= 150:
            refuse(500, "AssertionError", "", "bad number of steps or bad strength")
        count = body.get("batch_size", 1)
        if not 1 <= count <= self.max_n:
            refuse(500, "OutOfMemoryError", "", "CUDA out of memory.")
        width, height = (body.get(side, 512) // 8 * 8 for side in ("width", "height"))
        seed = body.get("seed", 1234567)
        checkpoint = settings.get("sd_model_checkpoint")
        sampler = body.get("sampler_name", "Euler").removesuffix(" Karras")
        info = {
            "prompt": body.get("prompt", ""),
            "seed": seed,
            "all_seeds": [seed + i for i in range(count)],
            "sd_model_name": checkpoint if checkpoint in CHECKPOINTS else "loaded_one",
            "sd_model_hash": "879db523c3",
            "sampler_name": sampler if sampler in SAMPLERS else "DPM++ 2M",
            "index_of_first_image": 0,
        }
        images = [encoded(picture(width, height, seed + i)) for i in range(count)]
        echo = {**body, "init_images": None, "mask": None}
        return Reply.json(200, {"images": images, "parameters": echo, "info": json.dumps(info)})

    def _upscaled(self, body):
        image = decoded(body.get("image", ""))
        if body.get("upscaler_1") not in ("Lanczos", "R-ESRGAN 4x+"):
            refuse(500, "AssertionError", "", f"could not find upscaler named {body.get('upscaler_1')}")
        if body.get("resize_mode", 0) == 1:
            size = (body["upscaling_resize_w"], body["upscaling_resize_h"])
        else:
            size = tuple(int(side * body.get("upscaling_resize", 2)) for side in image.size)
        buffer = io.BytesIO()
        image.resize(size, Image.LANCZOS).save(buffer, format="PNG")
        return Reply.json(200, {"html_info": "", "image": encoded(buffer.getvalue())})

    def error(self, status, headers=None):
        if status in (429, 503):
            # From a proxy in front.
            return Reply(status, b"try again later", {"content-type": "text/plain", **(headers or {})})
        return failure(status, "RuntimeError", "", "it went wrong", headers)

    def hold_jobs(self):
        self.always = drawing


async def drawing(emulator, request, connection):
    """Jobs begin, one at a time, and end when the test calls `release()`; nobody notices a caller who leaves."""
    if not request.path.endswith("2img"):
        await connection.send(emulator.reply_to(request))
        request.answered = True
        return True
    task = request.json().get("force_task_id")
    if emulator.current_task is None:
        emulator.current_task = task
    else:
        emulator.pending_tasks.append(task)
    return await faults.hold()(emulator, request, connection)
