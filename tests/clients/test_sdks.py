"""Clients as their users install them, with no change but the base URL."""

import base64
import json
import shutil
import subprocess

import openai
import portkey_ai
import pytest
import requests

from emulators import faults
from emulators.pictures import look
from gateway import PORTKEY_HEADERS, TEAM_KEY, check_headers, founding_config, openai_error


@pytest.fixture
def client(openai_only):
    return openai.OpenAI(base_url=openai_only.base_url, api_key=TEAM_KEY, max_retries=0)


@pytest.fixture
def env(openai_only):
    return {"BASE_URL": openai_only.base_url, "API_KEY": TEAM_KEY}


# OpenAI for Python


def test_openai_python_generates(client, openai_api, decode):
    raw = client.images.with_raw_response.generate(
        model="gpt-image-1",
        prompt="a red cat",
        background="opaque",
        moderation="low",
        n=2,
        output_format="jpeg",
        output_compression=80,
        quality="low",
        size="1536x1024",
        user="u1",
    )
    answer = raw.parse()
    pictures = [decode(image.b64_json) for image in answer.data]
    assert [(picture.size, picture.format) for picture in pictures] == [((1536, 1024), "JPEG")] * 2
    assert answer.usage.output_tokens == 2112
    assert (answer.size, answer.quality, answer.background) == ("1536x1024", "low", "opaque")
    assert answer.output_format == "jpeg"
    check_headers(raw.headers)
    assert raw.headers["x-portkey-last-used-option-index"] == "config"
    sent = openai_api.calls[0].json()
    assert sent["user"] == "u1" or sent["safety_identifier"] == "u1"
    assert (sent["moderation"], sent["output_compression"]) == ("low", 80)


def test_openai_python_generates_with_nothing_but_a_prompt(client, openai_api):
    answer = client.images.generate(prompt="a red cat")
    image = answer.data[0]
    data = base64.b64decode(image.b64_json) if image.b64_json else requests.get(image.url, timeout=10).content
    assert look(data).size == (1024, 1024)
    assert openai_api.calls[0].json()["model"], "the worker always names a model"


def test_openai_python_async_generates(openai_only, decode):
    import asyncio

    async def generate():
        async with openai.AsyncOpenAI(base_url=openai_only.base_url, api_key=TEAM_KEY, max_retries=0) as client:
            return await client.images.generate(model="gpt-image-1", prompt="async")

    assert decode(asyncio.run(generate()).data[0].b64_json).size == (1024, 1024)


def test_openai_python_edits_one_image(client, openai_api, image_files, decode):
    answer = client.images.edit(
        model="gpt-image-1", prompt="add a hat", image=open(image_files["a"], "rb"), n=1, size="1024x1024"
    )
    assert decode(answer.data[0].b64_json).size == (1024, 1024)
    (file,) = openai_api.calls[0].files
    assert file.data == image_files["a"].read_bytes(), "an input passes untouched"


def test_openai_python_edits_several_images_with_a_mask(client, openai_api, image_files, decode):
    answer = client.images.edit(
        model="gpt-image-1",
        prompt="merge",
        image=[open(image_files["a"], "rb"), open(image_files["b"], "rb")],
        mask=open(image_files["mask"], "rb"),
        input_fidelity="high",
    )
    assert decode(answer.data[0].b64_json).size == (1024, 1024)
    call = openai_api.calls[0]
    assert [part.name for part in call.files if part.name != "mask"] == ["image[]", "image[]"]
    assert call.files[0].data == image_files["a"].read_bytes()
    assert call.files[1].data == image_files["b"].read_bytes()
    assert call.form["input_fidelity"] == "high"


def test_openai_python_edits_bare_bytes_whose_type_is_unknown(client, image_files, decode):
    answer = client.images.edit(model="gpt-image-1", prompt="add a hat", image=image_files["a"].read_bytes())
    assert decode(answer.data[0].b64_json).size == (1024, 1024)


def test_openai_python_varies(client, openai_api, image_files):
    answer = client.images.create_variation(
        model="dall-e-2", image=open(image_files["a"], "rb"), n=2, size="256x256", response_format="b64_json"
    )
    assert [look(base64.b64decode(image.b64_json)).size for image in answer.data] == [(256, 256)] * 2
    assert openai_api.calls[0].path == "/v1/images/variations"


def test_openai_python_varies_without_naming_a_model(client, image_files):
    answer = client.images.create_variation(image=open(image_files["a"], "rb"), n=1)
    image = answer.data[0]
    data = base64.b64decode(image.b64_json) if image.b64_json else requests.get(image.url, timeout=10).content
    assert look(data).size == (1024, 1024)


def test_openai_python_streams_previews_and_the_picture(client, decode):
    stream = client.images.generate(model="gpt-image-1", prompt="a red cat", stream=True, partial_images=2)
    events = list(stream)
    assert [event.type for event in events] == [
        "image_generation.partial_image",
        "image_generation.partial_image",
        "image_generation.completed",
    ]
    assert [event.partial_image_index for event in events[:2]] == [0, 1]
    assert all(decode(event.b64_json).size == (1024, 1024) for event in events)
    assert len({event.b64_json for event in events}) == 3
    assert events[-1].usage.total_tokens > 0
    assert stream.response.headers["x-portkey-trace-id"]


def test_a_streams_request_id_is_the_one_in_the_log(openai_only, client):
    stream = client.images.generate(model="gpt-image-1", prompt="a red cat", stream=True, partial_images=1)
    list(stream)
    request_id = stream.response.headers["x-imagegate-request-id"]
    openai_only.front.wait_for_log(lambda fields: fields.get("request_id") == request_id, timeout=5)


def test_openai_python_streams_an_edit(client, image_files, decode):
    stream = client.images.edit(
        model="gpt-image-1", prompt="a hat", image=open(image_files["a"], "rb"), stream=True, partial_images=1
    )
    events = list(stream)
    assert [event.type for event in events] == ["image_edit.partial_image", "image_edit.completed"]
    assert decode(events[-1].b64_json).size == (1024, 1024)


def test_a_provider_without_streaming_still_answers_a_stream(client, decode):
    events = list(
        client.images.generate(
            model="stable-diffusion-v1-6",
            prompt="a red cat",
            stream=True,
            partial_images=2,
            extra_headers={"x-portkey-config": "pc-stability"},
        )
    )
    assert events[-1].type == "image_generation.completed"
    assert decode(events[-1].b64_json)


def test_a_stream_falls_back_before_its_first_byte(client, stability_api, decode):
    stability_api.always = faults.status(500)
    config = {
        "strategy": {"mode": "fallback"},
        "targets": [
            {"virtual_key": "stability-ai-virtualkey", "override_params": {"model": "stable-diffusion-v1-6"}},
            {"virtual_key": "open-ai-virtual-key", "override_params": {"model": "gpt-image-1"}},
        ],
    }
    stream = client.images.generate(
        model="x", prompt="x", stream=True, extra_headers={"x-portkey-config": json.dumps(config)}
    )
    events = list(stream)
    assert events[-1].type == "image_generation.completed"
    assert decode(events[-1].b64_json).size == (1024, 1024)
    assert stream.response.headers["x-portkey-trace-id"]


def test_a_stream_that_fails_is_an_error_for_the_sdk(client, openai_api):
    openai_api.always = faults.status(500)
    with pytest.raises(openai.APIError):
        list(client.images.generate(model="gpt-image-1", prompt="x", stream=True, partial_images=1))


def test_openai_python_sees_errors_as_from_openai(client, openai_api):
    openai_api.always = faults.status(429, retry_after="7")
    with pytest.raises(openai.RateLimitError) as failed:
        client.images.generate(model="gpt-image-1", prompt="x")
    openai_error(failed.value.response)
    assert failed.value.response.headers["retry-after"] == "7"
    openai_api.always = faults.refusal()
    with pytest.raises(openai.BadRequestError) as failed:
        client.images.generate(model="gpt-image-1", prompt="x")
    assert failed.value.code == "moderation_blocked"


def test_unknown_body_fields_are_reported_and_not_refused(client, openai_api):
    raw = client.images.with_raw_response.generate(
        model="gpt-image-1", prompt="x", extra_body={"seed": 7, "extra_headers": {"x-a": "b"}}
    )
    assert raw.status_code == 200
    assert "seed" in raw.headers["x-imagegate-warnings"]
    assert "seed" not in openai_api.calls[0].json()


def test_openai_python_lists_models(client):
    models = [model.id for model in client.models.list()]
    assert any("dall-e-3" in model for model in models)
    assert any("gpt-image" in model for model in models)
    by_id = {model.id: model.capabilities for model in client.models.list()}
    dall_e = by_id["dall-e-3"]
    assert dall_e["operations"] == ["generate"] and dall_e["max_n"] == 1 and "1792x1024" in dall_e["sizes"]
    assert dall_e["retired_on"] and dall_e["successor"] in by_id


def test_json_edits_take_data_urls(openai_only, openai_api, image_files, decode):
    data_url = "data:image/png;base64," + base64.b64encode(image_files["a"].read_bytes()).decode()
    body = {"model": "gpt-image-1", "prompt": "a hat", "images": [{"image_url": data_url}]}
    answer = openai_only.post("/images/edits", body)
    assert answer.status_code == 200, answer.text[:500]
    assert decode(answer.json()["data"][0]["b64_json"]).size == (1024, 1024)
    assert len(openai_api.calls) == 1


def test_azure_openai_python_generates_and_edits(openai_only, openai_api, image_files, decode):
    client = openai.AzureOpenAI(
        azure_endpoint=openai_only.url, api_key=TEAM_KEY, api_version="2025-04-01-preview", max_retries=0
    )
    answer = client.images.generate(model="gpt-image-1", prompt="azure")
    assert decode(answer.data[0].b64_json).size == (1024, 1024)
    answer = client.images.edit(model="gpt-image-1", prompt="azure", image=open(image_files["a"], "rb"))
    assert decode(answer.data[0].b64_json).size == (1024, 1024)
    assert [call.path for call in openai_api.calls] == ["/v1/images/generations", "/v1/images/edits"]
    with pytest.raises(openai.AuthenticationError):
        openai.AzureOpenAI(
            azure_endpoint=openai_only.url, api_key="wrong", api_version="2025-04-01-preview", max_retries=0
        ).images.generate(model="gpt-image-1", prompt="azure")


# Portkey for Python


def portkey(gateway, **more):
    return portkey_ai.Portkey(base_url=gateway.base_url, api_key=TEAM_KEY, **more)


def test_portkey_python_generates_with_a_saved_config(openai_only, stability_api, decode):
    stability_api.always = faults.status(429)
    answer = portkey(openai_only, config="pc-sdxl-dalle").images.generate(
        prompt="a red cat", model="stable-diffusion-v1-6", size="1024x1024", response_format="b64_json"
    )
    assert decode(answer.data[0].b64_json).size == (1024, 1024)
    headers = answer.get_headers()
    assert headers["last-used-option-index"] == "config.targets[1]"
    assert headers["trace-id"]


def test_portkey_python_generates_with_an_inline_config_and_a_trace_id(openai_only, openai_api, decode):
    config = {
        "provider": "openai",
        "api_key": openai_api.key,
        "custom_host": openai_api.base_url,
        "retry": {"attempts": 1},
    }
    client = portkey(openai_only, config=config, trace_id="trace-7", metadata={"_user": "u"})
    answer = client.images.generate(prompt="a red cat", model="gpt-image-1")
    assert decode(answer.data[0].b64_json).size == (1024, 1024)
    assert answer.get_headers()["trace-id"] == "trace-7"


def test_portkey_python_generates_with_a_virtual_key(openai_only, stability_api, decode):
    client = portkey(openai_only, virtual_key="stability-ai-virtualkey")
    answer = client.images.generate(prompt="a red cat", model="stable-diffusion-v1-6", response_format="b64_json")
    assert decode(answer.data[0].b64_json)
    assert len(stability_api.calls) == 1


def test_portkey_python_edits_and_varies(openai_only, image_files, decode):
    client = portkey(openai_only, config="pc-openai")
    answer = client.images.edit(prompt="add a hat", model="gpt-image-1", image=open(image_files["a"], "rb"))
    assert decode(answer.data[0].b64_json).size == (1024, 1024)
    answer = client.images.create_variation(
        image=open(image_files["a"], "rb"), model="dall-e-2", size="512x512", response_format="b64_json"
    )
    assert decode(answer.data[0].b64_json).size == (512, 512)


def test_portkey_python_streams(openai_only, decode):
    events = list(
        portkey(openai_only, config="pc-openai").images.generate(
            prompt="x", model="gpt-image-1", stream=True, partial_images=2
        )
    )
    assert events[-1].type == "image_generation.completed"
    assert decode(events[-1].b64_json).size == (1024, 1024)


def test_portkey_python_does_not_send_a_failed_call_twice(openai_only, openai_api):
    openai_api.always = faults.status(500)
    with pytest.raises(Exception) as failed:
        portkey(openai_only, config="pc-openai").with_options(max_retries=0).images.generate(
            prompt="x", model="gpt-image-1"
        )
    assert type(failed.value).__name__ == "InternalServerError"
    assert len(openai_api.calls) == 1


# Other Python clients


def test_langchain_gets_an_address_of_a_picture(heavy_python, env):
    result = heavy_python("langchain_client.py", env=env)
    answer = requests.get(result["url"], timeout=10)
    assert look(answer.content).size == (1024, 1024)
    assert answer.headers["content-type"] == "image/png"


def test_litellm_generates(heavy_python, env, decode):
    result = heavy_python("litellm_client.py", "generate", env=env)
    assert decode(result["images"][0]).size == (1024, 1024)


def test_litellm_edits(heavy_python, env, image_files, decode):
    result = heavy_python("litellm_client.py", "edit", str(image_files["a"]), env=env)
    assert decode(result["images"][0]).size == (1024, 1024)


# Node


def sizes(result):
    return [look(base64.b64decode(image)).size for image in result["images"]]


def test_openai_node_generates(node, env):
    result = node("openai.mjs", "generate", env=env)
    assert sizes(result) == [(1024, 1024)] * 2
    assert all(result["headers"].get(name) for name in PORTKEY_HEADERS)


def test_openai_node_edits_one_image(node, env, image_files):
    assert sizes(node("openai.mjs", "edit", str(image_files["a"]), env=env)) == [(1024, 1024)]


def test_openai_node_edits_an_untyped_stream(node, env, image_files):
    assert sizes(node("openai.mjs", "edit-stream", str(image_files["a"]), env=env)) == [(1024, 1024)]


def test_openai_node_edits_several_images(node, env, image_files, openai_api):
    files = [str(image_files["a"]), str(image_files["b"])]
    assert sizes(node("openai.mjs", "edit", *files, env=env)) == [(1024, 1024)]
    assert len(openai_api.calls[0].files) == 2


def test_openai_node_streams(node, env):
    result = node("openai.mjs", "stream", env=env)
    assert result["types"] == [
        "image_generation.partial_image",
        "image_generation.partial_image",
        "image_generation.completed",
    ]
    assert sizes(result)[-1] == (1024, 1024)


def test_openai_node_varies(node, env, image_files):
    assert sizes(node("openai.mjs", "variation", str(image_files["a"]), env=env)) == [(256, 256)]


def test_portkey_node_generates_and_falls_back(node, env, stability_api):
    stability_api.always = faults.reset()
    result = node("portkey.mjs", "generate", env=env)
    assert sizes(result) == [(1024, 1024)]
    assert result["headers"]["last-used-option-index"] == "config.targets[1]"


def test_portkey_node_edits(node, env, image_files):
    assert sizes(node("portkey.mjs", "edit", str(image_files["a"]), env=env)) == [(1024, 1024)]


@pytest.mark.parametrize("case", ["gpt-image", "dall-e-3", "compatible"])
def test_vercel_ai_generates(node, env, case):
    assert sizes(node("vercel_ai.mjs", case, env=env)) == [(1024, 1024)] * 2


def test_vercel_ai_edits(node, env, image_files):
    assert sizes(node("vercel_ai.mjs", "edit", str(image_files["a"]), env=env)) == [(1024, 1024)]


# curl


def curl(gateway, *args):
    finished = subprocess.run(
        ["curl", "--silent", "--show-error", "--include", "-H", f"Authorization: Bearer {TEAM_KEY}", *args],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
    )
    assert finished.returncode == 0, finished.stderr
    head, _, body = finished.stdout.partition(b"\r\n\r\n")
    return head.decode().lower(), json.loads(body)


@pytest.mark.skipif(not shutil.which("curl"), reason="no curl on this machine")
def test_curl_generates_and_edits(openai_only, image_files, decode):
    url = openai_only.base_url + "/images"
    head, body = curl(
        openai_only,
        f"{url}/generations",
        "-H",
        "Content-Type: application/json",
        "-d",
        '{"model": "dall-e-3", "prompt": "a red cat", "response_format": "b64_json"}',
    )
    assert decode(body["data"][0]["b64_json"]).size == (1024, 1024)
    assert all(name + ": " in head for name in PORTKEY_HEADERS)
    file = f"@{image_files['a']}"
    _, body = curl(
        openai_only, f"{url}/edits", "-F", "model=gpt-image-1", "-F", "prompt=hat", "-F", f"image[]={file};type=image/png"
    )
    assert decode(body["data"][0]["b64_json"]).size == (1024, 1024)


# What every client relies on


@pytest.mark.parametrize(
    "body, headers",
    [
        ({"prompt": "x", "model": "gpt-image-1"}, {}),
        ({"prompt": "x", "model": "gpt-image-1"}, {"x-portkey-trace-id": ""}),
        ({"prompt": ""}, {}),
        ({"prompt": "x"}, {"x-portkey-config": "pc-unknown"}),
        ({"prompt": "x"}, {"x-portkey-config": "{}"}),
        ({"prompt": "x"}, {"authorization": "Bearer wrong"}),
    ],
)
def test_the_trace_id_is_never_empty(openai_only, body, headers):
    answer = openai_only.post(body=body, headers=headers)
    assert answer.headers["x-portkey-trace-id"]
    assert answer.headers["x-imagegate-request-id"]


def test_a_trace_id_is_kept(openai_only):
    answer = openai_only.post(body={"prompt": "x"}, headers={"x-portkey-trace-id": "mine"})
    assert answer.headers["x-portkey-trace-id"] == "mine"


def test_a_w3c_trace_is_continued(openai_only):
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    answer = openai_only.post(
        body={"prompt": "x", "model": "gpt-image-1"}, headers={"traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
    )
    assert trace in answer.headers["traceparent"]


def test_callers_without_a_key_are_turned_away(openai_only, openai_api, stability_api):
    for key in (None, "wrong", openai_api.key):
        answer = openai_only.post(body={"prompt": "x"}, key=key)
        assert answer.status_code == 401
        assert openai_error(answer)["code"] == "invalid_api_key"
    assert openai_api.calls == []


def test_the_placeholder_key_of_portkeys_python_client_is_no_provider_key(serve, stability_api, openai_api):
    gateway = serve(founding_config(stability_api, openai_api, default_config="pc-openai"))
    answer = gateway.post(
        body={"prompt": "x", "model": "gpt-image-1"},
        key=None,
        headers={"x-portkey-api-key": TEAM_KEY, "authorization": "Bearer OPENAI_API_KEY"},
    )
    assert answer.status_code == 200
    assert openai_api.calls[0].headers["authorization"] == f"Bearer {openai_api.key}"
