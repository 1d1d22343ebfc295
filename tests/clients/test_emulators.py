"""The emulators themselves: real clients get what they get from the providers, and nothing else passes."""

import base64
import io

import openai
import pytest
import requests

from emulators import faults
from emulators.pictures import look, mask, picture
from emulators.stability import RATIOS


@pytest.fixture
def client(openai_api):
    return openai.OpenAI(base_url=openai_api.base_url, api_key=openai_api.key, max_retries=0)


def test_the_sdk_generates_edits_varies_and_streams(client, image_files):
    answer = client.images.generate(model="dall-e-3", prompt="x", response_format="b64_json")
    assert look(base64.b64decode(answer.data[0].b64_json)).size == (1024, 1024)
    answer = client.images.edit(
        model="gpt-image-1",
        prompt="x",
        image=[open(image_files["a"], "rb"), open(image_files["b"], "rb")],
        mask=open(image_files["mask"], "rb"),
        size="1536x1024",
    )
    assert look(base64.b64decode(answer.data[0].b64_json)).size == (1536, 1024)
    answer = client.images.create_variation(image=open(image_files["a"], "rb"), size="256x256", n=2)
    assert [look(requests.get(d.url, timeout=5).content).size for d in answer.data] == [(256, 256)] * 2
    events = list(client.images.generate(model="gpt-image-1", prompt="x", stream=True, partial_images=2))
    assert [event.type.rsplit(".")[-1] for event in events] == ["partial_image", "partial_image", "completed"]


@pytest.mark.parametrize(
    "body, code",
    [
        ({"model": "gpt-image-1", "response_format": "b64_json"}, "unknown_parameter"),
        ({"model": "dall-e-3", "n": 2}, "invalid_value"),
        ({"model": "dall-e-2", "style": "vivid"}, "unknown_parameter"),
        ({"model": "dall-e-3", "size": "1000x1000"}, "invalid_value"),
        ({"model": "gpt-image-2", "size": "1000x1000"}, "invalid_value"),
        ({"model": "dall-e-2", "prompt": "x" * 1001}, "string_above_max_length"),
        ({"model": "dall-e-3", "quality": "high"}, "invalid_value"),
        ({"model": "gpt-image-1", "seed": 7}, "unknown_parameter"),
    ],
)
def test_openai_refuses_what_the_model_does_not_have(client, body, code):
    with pytest.raises(openai.BadRequestError) as refused:
        client.post("/images/generations", body={"prompt": "x", **body}, cast_to=object)
    assert refused.value.code == code


def test_openai_refuses_files_of_unknown_type_and_masks_that_do_not_fit(client, image_files):
    source = picture(512, 512)
    with pytest.raises(openai.BadRequestError) as refused:
        client.images.edit(model="gpt-image-1", prompt="x", image=source)
    assert refused.value.code == "unsupported_file_mimetype"
    for bad in (mask(256, 256), source):
        with pytest.raises(openai.BadRequestError):
            client.images.edit(
                model="gpt-image-1", prompt="x", image=open(image_files["a"], "rb"), mask=("m.png", io.BytesIO(bad))
            )


def engine(api, body, name="stable-diffusion-v1-6", key=None):
    return requests.post(
        f"{api.url}/v1/generation/{name}/text-to-image",
        json={"text_prompts": [{"text": "x"}], **body},
        headers={"authorization": f"Bearer {key or api.key}"},
        timeout=10,
    )


def test_stability_v1_draws_what_was_asked_for(stability_api):
    answer = engine(stability_api, {"width": 640, "height": 384, "samples": 2})
    assert [look(base64.b64decode(a["base64"])).size for a in answer.json()["artifacts"]] == [(640, 384)] * 2
    assert engine(stability_api, {}, key="wrong").json()["name"] == "unauthorized"


@pytest.mark.parametrize(
    "name, body",
    [
        ("stable-diffusion-v1-6", {"width": 1000, "height": 1000}),
        ("stable-diffusion-v1-6", {"samples": 11}),
        ("stable-diffusion-v1-6", {"style_preset": "vivid"}),
        ("stable-diffusion-v1-6", {"prompt": "x"}),
        ("stable-diffusion-xl-1024-v1-0", {"width": 1024, "height": 768}),
    ],
)
def test_stability_v1_refuses_what_the_engine_does_not_have(stability_api, name, body):
    answer = engine(stability_api, body, name)
    assert answer.status_code == 400 and answer.json()["message"]


def v2(api, operation, fields, files=None):
    return requests.post(
        f"{api.url}/v2beta/stable-image/{operation}",
        data=fields,
        files=files or {"none": ""},
        headers={"authorization": f"Bearer {api.key}", "accept": "application/json"},
        timeout=10,
    )


def test_stability_v2beta_takes_forms_with_its_own_fields_only(stability_api):
    answer = v2(stability_api, "generate/sd3", {"prompt": "x", "aspect_ratio": "16:9", "model": "sd3.5-medium"})
    assert look(base64.b64decode(answer.json()["image"])).size == RATIOS["16:9"]
    for fields in ({}, {"prompt": "x", "size": "1024x1024"}, {"prompt": "x", "aspect_ratio": "7:5"}):
        assert v2(stability_api, "generate/core", fields).json()["errors"]
    image = {"image": ("a.png", picture(512, 512), "image/png")}
    assert v2(stability_api, "edit/inpaint", {"prompt": "x"}, image).json()["finish_reason"] == "SUCCESS"


def test_a_caller_that_hangs_up_is_noticed(openai_api, client):
    openai_api.script.append(faults.hang())
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.5).images.generate(model="dall-e-3", prompt="x")
    assert openai_api.wait_for_calls(1)[0].closed.wait(5)


@pytest.mark.parametrize("fault", [faults.reset(), faults.half_body(), faults.html(200), faults.status(503)])
def test_faults_reach_the_caller(openai_api, client, fault):
    openai_api.script.append(fault)
    try:
        answer = client.images.generate(model="dall-e-3", prompt="x", response_format="b64_json")
    except openai.APIError:
        return
    assert not hasattr(answer, "data")
