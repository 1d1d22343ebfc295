"""Random requests for every provider with a strict emulator: images and a complete list of changes, or a reason.

That nothing is lost is proved for every model in src/provider/promises; here the emulators agree, which reject what
the real providers reject.
"""

import base64
import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from emulators.openai import OpenAI
from emulators.pictures import look, mask, picture
from emulators.ring import everyone
from emulators.stability import Stability
from gateway import openai_error

REQUESTS = 40
CALLERS = 8

# By provider: its emulator, and for generating and editing the models that are asked.
PROVIDERS = {name: (kind, [kind.model], [kind.edit_model or kind.model]) for name, kind in everyone().items()}
PROVIDERS["openai"] = (OpenAI, ["gpt-image-1", "gpt-image-2", "dall-e-3"], ["gpt-image-1", "gpt-image-2", "dall-e-2"])
PROVIDERS["stability-ai"] = (Stability, ["core", "sd3.5-large", "stable-diffusion-xl-1024-v1-0"], ["ultra", "sd3.5-large"])

SIZES = [
    "auto", "256x256", "512x512", "768x768", "1024x1024", "1000x1000", "1024x768", "768x1024", "1280x720", "720x1280",
    "1536x1024", "1024x1536", "1501x777", "333x999", "1:1", "16:9", "9:16", "4:3", "2:3", "21:9",
]
# What a request may say beside the prompt, each with texts and numbers that nothing else in a body has.
PARAMETERS = {
    "seed": lambda draw, unique: draw.choice([7_310_000, 4_000_000_000]) + unique,
    "steps": lambda draw, _: draw.choice([17, 23, 37]),
    "guidance": lambda draw, _: draw.choice([3.25, 6.25]),
    "strength": lambda draw, _: draw.choice([0.25, 0.85]),
    "negative_prompt": lambda draw, unique: f"no-rain-{unique}",
    "user": lambda draw, unique: f"user-{unique}",
    "style": lambda draw, _: draw.choice(["anime", "vivid", "digital_illustration", "photographic"]),
    "sampler": lambda draw, _: draw.choice(["K_EULER", "dpmpp_2m"]),
    "made_up": lambda draw, unique: f"extra-{unique}",
    "quality": lambda draw, _: draw.choice(["low", "medium", "high"]),
    "background": lambda draw, _: draw.choice(["opaque", "transparent"]),
    "moderation": lambda draw, _: draw.choice(["low"]),
    "output_compression": lambda draw, _: draw.choice([40, 83]),
    "input_fidelity": lambda draw, _: draw.choice(["low", "high"]),
}
# Of these, the ones that providers take as they are, so that they can be looked for in what was sent.
VERBATIM = ["seed", "negative_prompt", "user", "made_up"]


@pytest.fixture(params=sorted(PROVIDERS))
def upstream(request):
    """A provider's name, its emulator, and the models for generating and for editing."""
    kind, generating, editing = PROVIDERS[request.param]
    emulator = kind()
    yield request.param, emulator, generating, editing
    emulator.close()


@pytest.fixture
def gateway(serve, upstream):
    name, emulator, *_ = upstream
    credential = emulator.credential("KEY") if hasattr(emulator, "credential") else {"api_key": {"env": "KEY"}}
    return serve(
        {
            "listen": {"http": "127.0.0.1:0", "grpc": "127.0.0.1:0", "admin": "127.0.0.1:0"},
            "virtual_keys": {
                "it": {"provider": name, **credential, "base_url": emulator.base_url, **getattr(emulator, "options", {})}
            },
            "configs": {"it": {"virtual_key": "it", "breaker": False}},
            "default_config": "it",
            "egress": {"allow": ["127.0.0.0/8"]},
        },
        env={"KEY": emulator.key},
    )


def drawn(draw, unique, models, editing):
    """One request: the fields of its body, and the files."""
    body = {"model": draw.choice(models), "prompt": f"picture-{unique}-of-many", "response_format": "b64_json"}
    if draw.random() < 0.8:
        body["size"] = draw.choice(SIZES)
    if draw.random() < 0.5:
        body["n"] = draw.randint(1, 2)
    if draw.random() < 0.4:
        body["output_format"] = draw.choice(["png", "jpeg", "webp"])
    for name, value in PARAMETERS.items():
        if draw.random() < 0.25:
            body[name] = value(draw, unique)
    if body.get("sampler") == "K_EULER" and models[0].endswith(".safetensors"):
        body["sampler"] = "euler"  # a ComfyUI has whatever samplers are installed, so that no list can be checked
    files = []
    if editing:
        side = draw.choice([512, 1024])
        files = [("image", ("a.png", picture(side, side, colour), "image/png")) for colour in range(draw.choice([1, 1, 2]))]
        if draw.random() < 0.3:
            files.append(("mask", ("mask.png", mask(side, side), "image/png")))
    return body, files


def shape(width, height):
    return (width > height) - (width < height)


def sent_for(emulator, body):
    """The bodies and headers of the calls that were made for a request."""
    prompt = body["prompt"].encode()
    return [call.body + repr(call.headers).encode() for call in emulator.calls if prompt in call.body]


def check_images(body, answer, files):
    images = [look(base64.b64decode(image["b64_json"], validate=True)) for image in answer.json()["data"]]
    warned = {part.split(" ")[0] for part in answer.headers.get("x-imagegate-warnings", "").split(" | ")}
    assert len(images) == body.get("n", 1)
    size = body.get("size", "auto")
    for image in images:
        if "output_format" in body:
            assert image.format == body["output_format"].upper()
        if size != "auto" and not (files and "size" in warned):
            width, height = map(int, size.replace(":", "x").split("x"))
            assert shape(*image.size) in (0, shape(width, height)), f"{size} became {image.size}"
        if "x" in size and image.size != tuple(map(int, size.split("x"))):
            assert "size" in warned, f"{size} became {image.size} without a word"
    return warned


def check(emulator, body, files, answer):
    """True for images, false for a reason why there are none."""
    sent = sent_for(emulator, body)
    if answer.status_code != 200:
        error = openai_error(answer)
        assert answer.status_code == 400 and error["code"] == "unsupported", answer.text[:500]
        assert sent == [], f"it was called, and refused: {answer.text[:500]}"
        return False
    warned = check_images(body, answer, files)
    for name in VERBATIM:
        if name in body and name not in warned:
            assert any(str(body[name]).encode() in call for call in sent), f"{name} is lost: {sent[0][:1000]}"
    return True


@pytest.mark.parametrize("editing", [False, True], ids=["generate", "edit"])
def test_what_is_asked_for_is_made_or_reported_or_refused(upstream, gateway, editing):
    name, emulator, generating, editing_models = upstream
    models = editing_models if editing else generating
    draw = random.Random(f"{name} {editing}")
    drawn_requests = [drawn(draw, 1000 + i, models, editing) for i in range(REQUESTS)]

    def ask(one):
        body, files = one
        path = "/images/edits" if editing else "/images/generations"
        more = {"files": files, "data": body} if files else {"body": body}
        return gateway.post(path, key=None, **more)

    with ThreadPoolExecutor(CALLERS) as callers:
        answers = list(callers.map(ask, drawn_requests))
    made = [
        check(emulator, body, files, answer) for (body, files), answer in zip(drawn_requests, answers, strict=True)
    ]
    can_edit = getattr(emulator, "edits", True)
    assert sum(made) >= (REQUESTS / 4 if can_edit or not editing else 0), f"{sum(made)} of {REQUESTS} were made"
