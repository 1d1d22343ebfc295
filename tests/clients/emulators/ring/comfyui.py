"""ComfyUI: graphs are checked as ComfyUI checks them, then queued, listed in the history, and their files served.

It knows the nodes of the workflows that come with the gateway, and a few more for a workflow of one's own.
"""

import hashlib
import re
import uuid

from ..pictures import look, picture
from ..server import Refused, Reply
from . import RingProvider

CHECKPOINTS = ["sd_xl_base_1.0.safetensors", "v1-5-pruned-emaonly.safetensors"]
SAMPLERS = ["euler", "euler_ancestral", "heun", "dpmpp_2m", "dpmpp_2m_sde", "ddim", "uni_pc"]
SCHEDULERS = ["normal", "karras", "exponential", "sgm_uniform", "simple", "ddim_uniform", "beta"]
SEED = (int, 0, 2**64 - 1)
SIDE = (int, 16, 16384)
FRACTION = (float, 0, 1)
FILE = "a file among the inputs"
# By class: required inputs (a type that is linked, a list of values, a number with its range, a text), and outputs.
NODES = {
    "CheckpointLoaderSimple": ({"ckpt_name": CHECKPOINTS}, ["MODEL", "CLIP", "VAE"]),
    "CLIPTextEncode": ({"text": str, "clip": "CLIP"}, ["CONDITIONING"]),
    "EmptyLatentImage": ({"width": SIDE, "height": SIDE, "batch_size": (int, 1, 4096)}, ["LATENT"]),
    "KSampler": (
        {
            "model": "MODEL",
            "seed": SEED,
            "steps": (int, 1, 10000),
            "cfg": (float, 0, 100),
            "sampler_name": SAMPLERS,
            "scheduler": SCHEDULERS,
            "positive": "CONDITIONING",
            "negative": "CONDITIONING",
            "latent_image": "LATENT",
            "denoise": FRACTION,
        },
        ["LATENT"],
    ),
    "VAEDecode": ({"samples": "LATENT", "vae": "VAE"}, ["IMAGE"]),
    "VAEEncode": ({"pixels": "IMAGE", "vae": "VAE"}, ["LATENT"]),
    "SetLatentNoiseMask": ({"samples": "LATENT", "mask": "MASK"}, ["LATENT"]),
    "LoadImage": ({"image": FILE}, ["IMAGE", "MASK"]),
    "LoadImageMask": ({"image": FILE, "channel": ["alpha", "red", "green", "blue"]}, ["MASK"]),
    "PreviewImage": ({"images": "IMAGE"}, []),
    "SaveImage": ({"images": "IMAGE", "filename_prefix": str}, []),
}
OUTPUTS = {"SaveImage": "output", "PreviewImage": "temp"}


def invalid(kind, message, details="", node_errors=None):
    error = {"type": kind, "message": message, "details": details, "extra_info": {}}
    return Refused(Reply.json(400, {"error": error, "node_errors": node_errors or {}}))


def text(status, message):
    return Reply(status, message.encode(), {"content-type": "text/plain; charset=utf-8"})


class ComfyUi(RingProvider):
    """No node runs: an image is a plain one of the size that its graph leads to."""

    provider = "comfyui"
    model = "sd_xl_base_1.0.safetensors"
    has_key = False
    refuses = False
    polls = True
    cancels = True
    edits = True

    def __init__(self):
        self.files = {}  # bytes by type, subfolder and name
        self.jobs = {}  # graph and how often its queue was asked for, by id
        self.done = {}  # entries of the history, by id
        self.held = False
        super().__init__()

    def credential(self, variable):
        return {}

    def hold_jobs(self):
        self.held = True

    def error(self, status, headers=None):
        reply = text(status, f"{status}: an error of a proxy")
        return Reply(status, reply.body, {**reply.headers, **(headers or {})})

    def answer(self, request):
        routes = {
            "/upload/image": ("POST", self._upload),
            "/prompt": ("POST", self._prompt),
            "/queue": ("GET", self._queue),
            "/interrupt": ("POST", self._interrupt),
            "/view": ("GET", self._view),
        }
        if request.path.startswith("/history/"):
            method, route = "GET", self._history
        elif request.path == "/queue" and request.method == "POST":
            method, route = "POST", self._delete
        elif request.path in routes:
            method, route = routes[request.path]
        else:
            return text(404, "404: Not Found")
        if request.method != method:
            return text(405, "405: Method Not Allowed")
        return route(request)

    def _body(self, request):
        if request.content_type != "application/json":
            raise Refused(text(500, "500 Internal Server Error"))
        return request.json()

    def _upload(self, request):
        if request.content_type != "multipart/form-data" or set(request.form) - {"type", "subfolder", "overwrite"}:
            raise Refused(text(400, ""))
        (part,) = request.files
        form = request.form
        if part.name != "image" or not part.filename or ".." in form.get("subfolder", "") + part.filename:
            raise Refused(text(400, ""))
        kind, folder, name = form.get("type", "input"), form.get("subfolder", ""), part.filename
        stem, dot, ending = name.rpartition(".")
        i = 1
        while form.get("overwrite") not in ("true", "1") and self.files.get((kind, folder, name), part.data) != part.data:
            name = f"{stem} ({i}){dot}{ending}"
            i += 1
        self.files[kind, folder, name] = part.data
        return Reply.json(200, {"name": name, "subfolder": folder, "type": kind})

    def _prompt(self, request):
        body = self._body(request)
        if "prompt" not in body:
            raise invalid("no_prompt", "No prompt provided", "No prompt provided")
        assert not set(body) - {"prompt", "client_id", "prompt_id", "number", "front", "extra_data"}, "it reads no other"
        graph = body["prompt"]
        for name, node in graph.items():
            if node.get("class_type") not in NODES:
                message = f"Cannot execute because node {node.get('class_type')} does not exist."
                raise invalid("invalid_prompt", message, f"Node ID '#{name}'")
        outputs = [name for name, node in graph.items() if node["class_type"] in OUTPUTS]
        if not outputs:
            raise invalid("prompt_no_outputs", "Prompt has no outputs")
        problems = {}
        good = [name for name in outputs if self._valid(graph, name, problems)]
        if not good:
            raise invalid("prompt_outputs_failed_validation", "Prompt outputs failed validation", "", problems)
        job = str(uuid.uuid4())
        self.jobs[job] = [graph, good, 0]
        return Reply.json(200, {"prompt_id": job, "number": len(self.jobs), "node_errors": problems})

    def _valid(self, graph, name, problems):
        """Whether a node and all that it hangs on are as ComfyUI wants them."""
        node = graph[name]
        inputs, valid, found = node["inputs"], True, []

        def wrong(kind, message, field, details=""):
            found.append({"type": kind, "message": message, "details": f"{field}{details}", "extra_info": {"input_name": field}})

        for field, rule in NODES[node["class_type"]][0].items():
            value = inputs.get(field)
            if field not in inputs:
                wrong("required_input_missing", "Required input is missing", field)
            elif isinstance(value, list):
                if len(value) != 2 or value[0] not in graph:
                    wrong("bad_linked_input", "Bad linked input, must be a length-2 list of [node_id, slot_index]", field)
                    continue
                types = NODES[graph[value[0]]["class_type"]][1]
                if types[value[1]] != rule:
                    wrong("return_type_mismatch", "Return type mismatch between linked nodes", field)
                else:
                    valid &= self._valid(graph, value[0], problems)
            elif isinstance(rule, tuple):
                # What can be made a number is one to ComfyUI; what the gateway sends is to be one already.
                kind, low, high = rule
                if not isinstance(value, (int, kind)) or isinstance(value, bool):
                    wrong("invalid_input_type", f"Failed to convert an input value to a {kind.__name__.upper()} value", field)
                elif value < low:
                    wrong("value_smaller_than_min", f"Value {value} smaller than min of {low}", field)
                elif value > high:
                    wrong("value_bigger_than_max", f"Value {value} bigger than max of {high}", field)
            elif rule is FILE:
                folder, _, file = str(value).rpartition("/")
                if ("input", folder, file) not in self.files:
                    wrong("custom_validation_failed", "Custom validation failed for node", field, f" - Invalid image file: {value}")
            elif isinstance(rule, list):
                if value not in rule:
                    wrong("value_not_in_list", "Value not in list", field, f": '{value}' not in {rule}")
            elif rule is not str or not isinstance(value, str):
                wrong("invalid_input_type", "Failed to convert an input value", field)
        if found:
            problems[name] = {"errors": found, "dependent_outputs": [], "class_type": node["class_type"]}
        return valid and not found

    def _queue(self, request):
        """Every job is seen running once, and is done when it is asked for the next time."""
        for job, (graph, good, seen) in list(self.jobs.items()):
            if seen and not self.held:
                self._finish(job, graph, good)
            else:
                self.jobs[job][2] += 1
        rows = [[number, job, graph, {}, good] for number, (job, (graph, good, _)) in enumerate(self.jobs.items())]
        return Reply.json(200, {"queue_running": rows[:1], "queue_pending": rows[1:]})

    def _finish(self, job, graph, good):
        del self.jobs[job]
        outputs = {}
        for name in good:
            kind = OUTPUTS[graph[name]["class_type"]]
            digest = hashlib.sha256(f"{sorted(graph.items())}{name}".encode()).hexdigest()[:8]
            folder, _, prefix = graph[name]["inputs"].get("filename_prefix", "temp").rpartition("/")
            file = f"{prefix} {digest}_00001_.png"
            self.files[kind, folder, file] = self._made(graph, name, int(digest, 16))
            outputs[name] = {"images": [{"filename": file, "subfolder": folder, "type": kind}]}
        status = {"status_str": "success", "completed": True, "messages": [["execution_start", {"prompt_id": job}]]}
        self.done[job] = {"prompt": [1, job, graph, {}, good], "outputs": outputs, "status": status}

    def _made(self, graph, name, colour):
        """A picture of the size that the graph leads to, from the latent or the input that it begins with."""
        node = graph[name]
        inputs = node["inputs"]
        if node["class_type"] == "EmptyLatentImage":
            return picture(inputs["width"] // 8 * 8, inputs["height"] // 8 * 8, colour)
        if node["class_type"] == "LoadImage":
            folder, _, file = inputs["image"].rpartition("/")
            image = look(self.files["input", folder, file])
            return picture(image.width // 8 * 8, image.height // 8 * 8, colour)
        for field in ("images", "samples", "latent_image", "pixels"):
            if field in inputs:
                return self._made(graph, inputs[field][0], colour)
        raise AssertionError(f"{node['class_type']} begins with nothing")

    def _history(self, request):
        job = request.path.removeprefix("/history/")
        return Reply.json(200, {job: self.done[job]} if job in self.done else {})

    def _view(self, request):
        asked = request.query
        if not re.fullmatch(r"[^/]+", asked.get("filename", "")) or ".." in asked["filename"]:
            return text(400, "")
        data = self.files.get((asked.get("type", "output"), asked.get("subfolder", ""), asked["filename"]))
        return Reply(200, data, {"content-type": "image/png"}) if data else text(404, "")

    def _delete(self, request):
        for job in self._body(request)["delete"]:
            # What runs is not in the queue any more.
            if job in list(self.jobs)[1:]:
                del self.jobs[job]
                self.cancelled += 1
        return Reply(200)

    def _interrupt(self, request):
        running = next(iter(self.jobs), None)
        assert self._body(request).get("prompt_id") == running, "it would interrupt somebody else's job"
        del self.jobs[running]
        self.cancelled += 1
        return Reply(200)


