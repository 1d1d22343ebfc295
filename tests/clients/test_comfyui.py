"""Workflows of one's own at ComfyUI, what uploads look like there, and how a job is given up that others share a queue with."""

import base64
import json

import pytest

from emulators.pictures import look, mask, picture
from emulators.ring.comfyui import ComfyUi, text
from emulators.server import Refused
from gateway import eventually, openai_error

KEY = "key-of-the-proxy"
WORKFLOW = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "v1-5-pruned-emaonly.safetensors"}},
    "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "oil painting of {{prompt}}, masterpiece", "clip": ["1", 1]}},
    "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "{{negative_prompt:blurry}}", "clip": ["1", 1]}},
    "4": {
        "class_type": "EmptyLatentImage",
        "inputs": {"width": "{{width:512}}", "height": "{{height:512}}", "batch_size": 1},
    },
    "5": {
        "class_type": "KSampler",
        "inputs": {
            "model": ["1", 0],
            "positive": ["2", 0],
            "negative": ["3", 0],
            "latent_image": ["4", 0],
            "seed": "{{seed}}",
            "steps": "{{steps:20}}",
            "cfg": 6.5,
            "sampler_name": "euler",
            "scheduler": "normal",
            "denoise": 1,
        },
    },
    "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
    "7": {"class_type": "PreviewImage", "inputs": {"images": ["6", 0]}},
    "8": {"class_type": "SaveImage", "inputs": {"images": ["6", 0], "filename_prefix": "shop/{{seed}}"}},
}


class BehindAProxy(ComfyUi):
    """It wants a token for whatever it is asked."""

    def answer(self, request):
        if request.headers.get("authorization") != f"Bearer {KEY}":
            raise Refused(text(401, "Unauthorized"))
        return super().answer(request)


@pytest.fixture
def comfy():
    emulator = ComfyUi()
    yield emulator
    emulator.close()


@pytest.fixture
def gateway(serve, comfy):
    def gateway(upstream=comfy, **options):
        return serve(
            {
                "listen": {"http": "127.0.0.1:0", "grpc": "127.0.0.1:0", "admin": "127.0.0.1:0"},
                "virtual_keys": {"it": {"provider": "comfyui", "base_url": upstream.url, **options}},
                "configs": {"it": {"virtual_key": "it"}},
                "default_config": "it",
            }
        )

    return gateway


def sent(comfy):
    """The graphs that were sent."""
    return [call.json()["prompt"] for call in comfy.calls if call.path == "/prompt"]


def image(answer):
    assert answer.status_code == 200, answer.text[:1000]
    return look(base64.b64decode(answer.json()["data"][0]["b64_json"]))


def test_a_workflow_of_ones_own_is_filled_and_what_it_has_no_slot_for_is_reported(gateway, comfy, tmp_path):
    file = tmp_path / "workflow_api.json"
    file.write_text(json.dumps(WORKFLOW))
    for number, workflow in enumerate([WORKFLOW, {"file": str(file)}]):
        body = {"prompt": 'a "{{seed}}" sign', "size": "640x384", "seed": 7, "steps": 12, "guidance": 3}
        answer = gateway(comfyui_workflow=workflow).post(body=body, key=None)
        assert image(answer).size == (640, 384)
        graph = sent(comfy)[number]
        assert graph["2"]["inputs"]["text"] == 'oil painting of a "{{seed}}" sign, masterpiece'
        assert graph["3"]["inputs"]["text"] == "blurry"
        assert graph["4"]["inputs"] == {"width": 640, "height": 384, "batch_size": 1}
        sampler = graph["5"]["inputs"]
        assert (sampler["seed"], sampler["steps"], sampler["cfg"]) == (7, 12, 6.5)
        assert graph["8"]["inputs"]["filename_prefix"] == "shop/7"
        warnings = answer.headers["x-imagegate-warnings"]
        assert "guidance dropped" in warnings and "{{guidance}}" in warnings
        assert "steps" not in warnings and "seed dropped" not in warnings


def test_several_images_are_several_jobs_with_seeds_that_differ(gateway, comfy):
    gate = gateway(comfyui_workflow=WORKFLOW)
    answer = gate.post(body={"prompt": "a fox", "n": 3}, key=None)
    assert answer.status_code == 200, answer.text[:1000]
    assert len(answer.json()["data"]) == 3
    seeds = [graph["5"]["inputs"]["seed"] for graph in sent(comfy)]
    assert len(set(seeds)) == 3


def test_a_graph_that_was_made_before_gives_the_same_image(gateway, comfy):
    gate = gateway(comfyui_workflow=WORKFLOW)
    first, second = (gate.post(body={"prompt": "a fox", "seed": 1}, key=None) for _ in range(2))
    assert first.json()["data"][0]["b64_json"] == second.json()["data"][0]["b64_json"]
    assert sent(comfy)[0] == sent(comfy)[1]


def test_inputs_lie_under_the_name_of_their_content_and_the_mask_is_white_where_it_edits(gateway, comfy):
    gate = gateway()
    files = {"image": ("a.png", picture(512, 512, 3), "image/png"), "mask": ("m.png", mask(512, 512), "image/png")}
    for _ in range(2):
        data = {"prompt": "a hat", "model": "sd_xl_base_1.0.safetensors", "response_format": "b64_json"}
        answer = gate.post("/images/edits", key=None, data=data, files=files)
        assert image(answer).size == (512, 512)
    uploads = {name: data for (kind, folder, name), data in comfy.files.items() if (kind, folder) == ("input", "imagegate")}
    assert len(uploads) == 2, "what is there is not kept twice"
    graph = sent(comfy)[-1]
    loaded = {node["class_type"]: node["inputs"]["image"].removeprefix("imagegate/") for node in graph.values() if "image" in node["inputs"]}
    assert uploads[loaded["LoadImage"]] == picture(512, 512, 3)
    red = look(uploads[loaded["LoadImageMask"]]).convert("RGB").getchannel("R")
    # `mask` has its hole from a quarter to a half.
    assert (red.getpixel((200, 200)), red.getpixel((400, 400))) == (255, 0)


def test_an_edit_is_nothing_for_a_workflow_without_a_slot_for_images(gateway, comfy):
    files = {"image": ("a.png", picture(512, 512), "image/png")}
    answer = gateway(comfyui_workflow=WORKFLOW).post("/images/edits", key=None, data={"prompt": "a hat"}, files=files)
    error = openai_error(answer)
    assert (error["code"], error["param"]) == ("unsupported", "image") and "{{image}}" in error["message"]
    assert not comfy.calls


def test_what_comfyui_refuses_is_said_with_its_node_and_input(gateway, comfy):
    answer = gateway().post(body={"prompt": "a fox", "model": "nope.safetensors", "sampler": "eular"}, key=None)
    assert answer.status_code == 400
    message = openai_error(answer)["message"]
    assert "CheckpointLoaderSimple (node 1)" in message and "KSampler (node 5)" in message
    assert "sampler_name: 'eular' not in ['euler'," in message


def test_a_token_goes_with_every_request_where_one_is_configured(gateway):
    proxied = BehindAProxy()
    try:
        answer = gateway(proxied, api_key=KEY).post(body={"prompt": "a fox", "model": ComfyUi.model}, key=None)
        assert image(answer).size == (1024, 1024)
        assert "/view" in [request.path for request in proxied.requests]
    finally:
        proxied.close()


def test_a_job_that_waits_is_taken_from_the_queue_and_what_runs_goes_on(gateway, comfy):
    comfy.hold_jobs()
    gate = gateway(comfyui_workflow=WORKFLOW)
    # Somebody else's.
    comfy.jobs["a-job-in-the-editor"] = [WORKFLOW, ["8"], 0]
    answer = gate.post(body={"prompt": "a fox"}, key=None, headers={"x-portkey-request-timeout": "1500"})
    assert answer.status_code == 408, answer.text
    eventually(lambda: comfy.cancelled == 1, what="the deletion")
    assert list(comfy.jobs) == ["a-job-in-the-editor"]
    assert not [call for call in comfy.calls if call.path == "/interrupt"]


def test_a_caller_cannot_bring_a_workflow_to_the_operators_machine(gateway, comfy):
    config = {"virtual_key": "it", "comfyui_workflow": WORKFLOW}
    answer = gateway().post(body={"prompt": "a fox"}, key=None, headers={"x-portkey-config": json.dumps(config)})
    assert answer.status_code == 400 and "comfyui_workflow" in answer.text
    assert not comfy.calls
