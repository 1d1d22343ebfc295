"""The founding program, unchanged but for the base URL, in both of its generations.

Generation 1 names virtual keys and leaves a placeholder as the OpenAI client's key. Generation 2 gives the
gateway's key as the OpenAI client's key and names providers in the model: `@slug/model`.
"""

import openai
import pytest
from portkey_ai import createHeaders

from emulators import faults
from gateway import TEAM_KEY, check_headers, founding_config, openai_error

PROMPT = "Lucy in the sky with diamonds"
CONFIG_IDS = {1: "pc-sdxl-dalle", 2: "pc-by-model"}


def single_client(gateway, generation):
    """Step one of the guide: one provider."""
    if generation == 1:
        headers = createHeaders(provider="stabilityai", api_key=TEAM_KEY, virtual_key="stability-ai-virtualkey")
        return openai.OpenAI(api_key="REDUNDANT", base_url=gateway.base_url, default_headers=headers, max_retries=0)
    headers = createHeaders(provider="stabilityai")
    return openai.OpenAI(api_key=TEAM_KEY, base_url=gateway.base_url, default_headers=headers, max_retries=0)


def fallback_client(gateway, generation):
    """Step two of the guide: a saved config."""
    if generation == 1:
        headers = createHeaders(api_key=TEAM_KEY, config=CONFIG_IDS[1])
        return openai.OpenAI(api_key="REDUNDANT", base_url=gateway.base_url, default_headers=headers, max_retries=0)
    headers = createHeaders(config=CONFIG_IDS[2])
    return openai.OpenAI(api_key=TEAM_KEY, base_url=gateway.base_url, default_headers=headers, max_retries=0)


def generate(client, **more):
    """The guide's request. Gives headers and answer."""
    raw = client.images.with_raw_response.generate(
        **{
            "model": "stable-diffusion-v1-6",
            "prompt": PROMPT,
            "n": 1,
            "size": "1024x1024",
            "response_format": "b64_json",
            **more,
        }
    )
    return raw.headers, raw.parse()


generations = pytest.mark.parametrize("generation", [1, 2])


@generations
def test_a_single_provider_draws_the_picture(founding, stability_api, openai_api, decode, generation):
    headers, answer = generate(single_client(founding, generation))
    assert decode(answer.data[0].b64_json).size == (1024, 1024)
    assert headers["x-portkey-last-used-option-index"] == "config"
    assert headers["x-portkey-provider"] == "stability-ai"
    check_headers(headers)
    (call,) = stability_api.calls
    assert call.path == "/v1/generation/stable-diffusion-v1-6/text-to-image"
    assert [prompt["text"] for prompt in call.json()["text_prompts"]] == [PROMPT]
    assert openai_api.calls == []


def test_a_model_alone_can_name_the_virtual_key(founding, stability_api, decode):
    client = openai.OpenAI(api_key=TEAM_KEY, base_url=founding.base_url, max_retries=0)
    headers, answer = generate(client, model="@stability-ai-virtualkey/stable-diffusion-v1-6")
    assert decode(answer.data[0].b64_json).size == (1024, 1024)
    assert headers["x-portkey-provider"] == "stability-ai"
    assert stability_api.calls[0].path == "/v1/generation/stable-diffusion-v1-6/text-to-image"


def test_a_virtual_key_can_be_named_as_the_provider(founding, decode):
    headers = createHeaders(provider="@stability-ai-virtualkey")
    client = openai.OpenAI(api_key=TEAM_KEY, base_url=founding.base_url, default_headers=headers, max_retries=0)
    headers, answer = generate(client)
    assert decode(answer.data[0].b64_json).size == (1024, 1024)
    assert headers["x-portkey-provider"] == "stability-ai"


def test_a_provider_header_with_its_key_needs_no_virtual_key(founding, stability_api, decode):
    headers = createHeaders(api_key=TEAM_KEY, provider="stability-ai", custom_host=stability_api.base_url)
    client = openai.OpenAI(
        api_key=stability_api.key, base_url=founding.base_url, default_headers=headers, max_retries=0
    )
    _, answer = generate(client)
    assert decode(answer.data[0].b64_json).size == (1024, 1024)


@generations
def test_stability_answers_while_it_is_well(founding, stability_api, openai_api, decode, generation):
    headers, answer = generate(fallback_client(founding, generation))
    assert decode(answer.data[0].b64_json).size == (1024, 1024)
    assert headers["x-portkey-last-used-option-index"] == "config.targets[0]"
    check_headers(headers)
    assert len(stability_api.calls) == 1
    assert openai_api.calls == []


FAILURES = {
    "401": faults.status(401),
    "402": faults.status(402),
    "404": faults.status(404),
    "429": faults.status(429, retry_after="60"),
    "500": faults.status(500),
    "a page with 200": faults.html(200),
    "a page with 502": faults.html(502),
    "no JSON": faults.not_json(),
    "half a body": faults.half_body(),
    "no artifacts": faults.empty(),
    "a filtered image": faults.filtered(),
    "a refused prompt": faults.refusal(),
    "broken base64": faults.broken_base64(),
    "half a PNG": faults.truncated_png(),
    "a reset": faults.reset(),
    "a hang": faults.hang(),
    "a hang in the body": faults.hang_in_body(),
}


@generations
@pytest.mark.parametrize("failure", FAILURES)
def test_dalle_answers_when_stability_gives(serve, stability_api, openai_api, decode, generation, failure):
    gateway = serve(founding_config(stability_api, openai_api, stability_timeout_ms=1500))
    stability_api.always = FAILURES[failure]
    headers, answer = generate(fallback_client(gateway, generation))
    assert decode(answer.data[0].b64_json).size == (1024, 1024)
    assert headers["x-portkey-last-used-option-index"] == "config.targets[1]"
    assert headers["x-portkey-provider"] == "openai"
    check_headers(headers)
    assert len(stability_api.calls) == 1, "the config asks for no retry"
    (call,) = openai_api.calls
    assert call.json()["model"] == "dall-e-3"
    assert call.json()["prompt"] == PROMPT
    assert bool(headers.get("x-imagegate-refused-by")) == (failure in ("a refused prompt", "a filtered image"))


@generations
def test_dalle_answers_when_stability_refuses_connections(
    serve, stability_api, openai_api, decode, generation
):
    gateway = serve(founding_config(stability_api, openai_api))
    stability_api.refuse_connections()
    headers, answer = generate(fallback_client(gateway, generation))
    assert decode(answer.data[0].b64_json).size == (1024, 1024)
    assert headers["x-portkey-last-used-option-index"] == "config.targets[1]"
    assert openai_api.calls[0].json()["model"] == "dall-e-3"


def test_a_timeout_header_bounds_each_attempt(founding, stability_api, decode):
    stability_api.always = faults.hang()
    headers = createHeaders(api_key=TEAM_KEY, config="pc-sdxl-dalle", request_timeout=1500)
    client = openai.OpenAI(api_key="REDUNDANT", base_url=founding.base_url, default_headers=headers, max_retries=0)
    headers, answer = generate(client)
    assert decode(answer.data[0].b64_json).size == (1024, 1024)
    assert headers["x-portkey-last-used-option-index"] == "config.targets[1]"


def test_a_slow_but_complete_answer_is_an_answer(founding, stability_api, decode):
    stability_api.always = faults.drip()
    headers, answer = generate(fallback_client(founding, 1))
    assert decode(answer.data[0].b64_json).size == (1024, 1024)
    assert headers["x-portkey-last-used-option-index"] == "config.targets[0]"


def test_an_inline_config_with_provider_keys_works_like_a_saved_one(founding, stability_api, openai_api, decode):
    stability_api.always = faults.status(500)
    config = {
        "strategy": {"mode": "fallback"},
        "targets": [
            {
                "provider": "stability-ai",
                "api_key": stability_api.key,
                "custom_host": stability_api.base_url,
                "override_params": {"model": "stable-diffusion-v1-6"},
            },
            {
                "strategy": {"mode": "fallback", "on_status_codes": [429]},
                "targets": [
                    {
                        "provider": "openai",
                        "api_key": openai_api.key,
                        "custom_host": openai_api.base_url,
                        "override_params": {"model": "dall-e-3"},
                    }
                ],
            },
        ],
    }
    headers = createHeaders(api_key=TEAM_KEY, config=config)
    client = openai.OpenAI(api_key="REDUNDANT", base_url=founding.base_url, default_headers=headers, max_retries=0)
    headers, answer = generate(client)
    assert decode(answer.data[0].b64_json).size == (1024, 1024)
    assert headers["x-portkey-last-used-option-index"] == "config.targets[1].targets[0]"


def test_a_status_that_is_not_listed_does_not_fall_back(founding, stability_api, openai_api):
    stability_api.always = faults.status(500)
    config = {
        "strategy": {"mode": "fallback", "on_status_codes": [429]},
        "targets": [{"virtual_key": "stability-ai-virtualkey"}, {"virtual_key": "open-ai-virtual-key"}],
    }
    headers = createHeaders(api_key=TEAM_KEY, config=config)
    client = openai.OpenAI(api_key="REDUNDANT", base_url=founding.base_url, default_headers=headers, max_retries=0)
    with pytest.raises(openai.InternalServerError) as failed:
        generate(client)
    assert failed.value.response.headers["x-portkey-last-used-option-index"] == "config.targets[0]"
    assert openai_api.calls == []


@pytest.mark.parametrize(
    "stability_status, openai_status", [(500, 429), (429, 500), (401, 503), (500, 401), (503, 400)]
)
def test_all_targets_down_is_the_last_status_and_names_each_failure(
    founding, stability_api, openai_api, stability_status, openai_status
):
    stability_api.always = faults.status(stability_status)
    openai_api.always = faults.status(openai_status)
    with pytest.raises(openai.APIStatusError) as failed:
        generate(fallback_client(founding, 1))
    response = failed.value.response
    assert response.status_code == openai_status
    error = openai_error(response)
    for word in ("stability-ai", "openai", str(stability_status), str(openai_status)):
        assert word in error["message"], f"{word} is not in: {error['message']}"
    assert response.headers["x-portkey-last-used-option-index"] == "config.targets[1]"
    check_headers(response.headers)


def test_all_targets_silent_is_a_timeout(serve, stability_api, openai_api):
    config = founding_config(stability_api, openai_api)
    config["configs"]["pc-sdxl-dalle"]["request_timeout"] = 500
    gateway = serve(config)
    stability_api.always = openai_api.always = faults.hang()
    with pytest.raises(openai.APIStatusError) as failed:
        generate(fallback_client(gateway, 1))
    assert failed.value.response.status_code == 408
    assert "500" in openai_error(failed.value.response)["message"]


def test_a_prompt_that_everybody_refuses_is_reported_as_refused(founding, stability_api, openai_api):
    stability_api.always = openai_api.always = faults.refusal()
    with pytest.raises(openai.BadRequestError) as failed:
        generate(fallback_client(founding, 1))
    error = openai_error(failed.value.response)
    assert error["code"] in ("content_policy_violation", "moderation_blocked")
    assert failed.value.response.headers["x-imagegate-refused-by"]


def test_an_unreachable_last_target_is_an_error_of_openais_shape(founding, stability_api, openai_api):
    stability_api.refuse_connections()
    openai_api.refuse_connections()
    with pytest.raises(openai.InternalServerError) as failed:
        generate(fallback_client(founding, 1))
    openai_error(failed.value.response)
    check_headers(failed.value.response.headers)
