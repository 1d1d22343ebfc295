"""What a provider cannot do as asked is fitted to it and reported, or the target is left out. Nothing is silent."""

import base64
import json

import pytest
import requests

from emulators import faults
from emulators.pictures import look
from gateway import founding_config, openai_error


def routed(virtual_key, model, **more):
    """An inline config with one target, as a header."""
    return {"x-portkey-config": json.dumps({"virtual_key": virtual_key, "override_params": {"model": model}, **more})}


def stability(model, **more):
    return routed("stability-ai-virtualkey", model, **more)


def openai(model, **more):
    return routed("open-ai-virtual-key", model, **more)


def pictures(answer):
    """The answer's images, decoded, however they are delivered."""
    assert answer.status_code == 200, answer.text[:1000]
    found = []
    for image in answer.json()["data"]:
        if image.get("b64_json"):
            found.append(base64.b64decode(image["b64_json"]))
        else:
            fetched = requests.get(image["url"], timeout=10)
            assert fetched.status_code == 200
            found.append(fetched.content)
    return found


def sizes(answer):
    return [look(data).size for data in pictures(answer)]


@pytest.mark.parametrize(
    "target",
    [stability("stable-diffusion-v1-6"), stability("core"), openai("dall-e-3"), openai("gpt-image-1")],
    ids=["stability v1", "stability core", "dall-e-3", "gpt-image-1"],
)
@pytest.mark.parametrize("shape", ["url", "b64_json"])
def test_every_provider_delivers_both_shapes(founding, target, shape):
    answer = founding.post(body={"prompt": "x", "response_format": shape}, headers=target)
    assert answer.status_code == 200, answer.text[:1000]
    (image,) = answer.json()["data"]
    assert image.get(shape), f"asked for {shape}, got {list(image)}"
    assert not image.get("b64_json" if shape == "url" else "url")
    (data,) = pictures(answer)
    assert look(data).format == "PNG"


def test_an_address_serves_the_picture_with_its_type_and_lifetime(founding):
    answer = founding.post(body={"prompt": "x", "response_format": "url"}, headers=stability("stable-diffusion-v1-6"))
    url = answer.json()["data"][0]["url"]
    assert url.startswith(founding.base_url + "/images/files/")
    fetched = requests.get(url, timeout=10)
    assert fetched.headers["content-type"] == "image/png"
    assert "max-age" in fetched.headers.get("cache-control", "") or fetched.headers.get("expires")
    assert requests.get(url + "x", timeout=10).status_code == 404
    for path in ("..%2f..%2fimagegate.yaml", "%2e%2e/x", "a%00b"):
        assert requests.get(f"{founding.base_url}/images/files/{path}", timeout=10).status_code in (400, 404)


def test_dalle_2_and_3_answer_with_an_address_unasked(founding):
    for model in ("dall-e-2", "dall-e-3"):
        answer = founding.post(body={"prompt": "x"}, headers=openai(model))
        assert answer.json()["data"][0]["url"]


def test_three_images_from_dalle_3_are_three_calls_with_one_each(founding, openai_api):
    answer = founding.post(
        body={"prompt": "x", "n": 3, "response_format": "b64_json"}, headers=openai("dall-e-3")
    )
    assert sizes(answer) == [(1024, 1024)] * 3
    assert [call.json().get("n", 1) for call in openai_api.calls] == [1, 1, 1]
    assert "n emulated" in answer.headers["x-imagegate-warnings"]
    assert all(image["revised_prompt"] for image in answer.json()["data"])


def test_calls_for_several_images_run_at_the_same_time(founding, openai_api):
    openai_api.always = faults.hold()
    import threading

    answers = []
    body = {"prompt": "x", "n": 3, "response_format": "b64_json"}
    caller = threading.Thread(target=lambda: answers.append(founding.post(body=body, headers=openai("dall-e-3"))))
    caller.start()
    openai_api.wait_for_calls(3)
    openai_api.release()
    caller.join(30)
    assert sizes(answers[0]) == [(1024, 1024)] * 3


def test_too_few_images_are_a_failed_attempt(founding, stability_api, openai_api):
    stability_api.always = faults.fewer()
    answer = founding.post(
        body={"prompt": "x", "n": 2, "response_format": "b64_json"}, headers={"x-portkey-config": "pc-sdxl-dalle"}
    )
    assert len(pictures(answer)) == 2
    assert answer.headers["x-portkey-last-used-option-index"] == "config.targets[1]"


def test_one_of_several_calls_failing_is_a_failed_attempt(founding, openai_api):
    openai_api.script.extend([None, faults.status(500), None])
    answer = founding.post(body={"prompt": "x", "n": 3}, headers=openai("dall-e-3"))
    assert answer.status_code == 500
    openai_error(answer)


def test_response_format_is_not_sent_to_gpt_image_yet_satisfied(founding, openai_api):
    body = {"prompt": "x", "response_format": "b64_json"}
    answer = founding.post(body=body, headers=openai("gpt-image-1"))
    assert sizes(answer) == [(1024, 1024)]
    assert "response_format" not in openai_api.calls[0].json()


@pytest.mark.parametrize(
    "target, asked, drawn",
    [
        (stability("stable-diffusion-v1-6"), "1000x1000", (1024, 1024)),
        (stability("stable-diffusion-xl-1024-v1-0"), "1000x1000", (1024, 1024)),
        (stability("stable-diffusion-xl-1024-v1-0"), "1600x900", (1344, 768)),
        (stability("stable-diffusion-xl-1024-v1-0"), "1024x1536", (832, 1216)),
        (openai("dall-e-3"), "1000x1000", (1024, 1024)),
        (openai("dall-e-3"), "1600x900", (1792, 1024)),
        (openai("dall-e-3"), "512x896", (1024, 1792)),
        (openai("dall-e-2"), "300x300", (256, 256)),
        (openai("gpt-image-1"), "1600x900", (1536, 1024)),
        (openai("gpt-image-1"), "1000x1000", (1024, 1024)),
    ],
)
def test_an_impossible_size_becomes_the_nearest_and_is_reported(founding, target, asked, drawn):
    answer = founding.post(body={"prompt": "x", "size": asked}, headers=target)
    assert sizes(answer) == [drawn]
    warnings = answer.headers["x-imagegate-warnings"]
    assert "size" in warnings and "x".join(map(str, drawn)) in warnings


def test_a_free_size_stays_within_the_models_window(founding, openai_api):
    answer = founding.post(body={"prompt": "x", "size": "1000x1000"}, headers=openai("gpt-image-2"))
    ((width, height),) = sizes(answer)
    assert width == height and width in (992, 1008)
    assert "size" in answer.headers["x-imagegate-warnings"]


@pytest.mark.parametrize("asked, ratio", [("1792x1024", "16:9"), ("1024x1536", "2:3"), ("1024x1024", "1:1")])
def test_stability_core_is_asked_for_the_ratio(founding, stability_api, asked, ratio):
    answer = founding.post(body={"prompt": "x", "size": asked}, headers=stability("core"))
    assert answer.status_code == 200, answer.text[:500]
    assert stability_api.calls[0].form.get("aspect_ratio", "1:1") == ratio


def test_a_possible_size_passes_without_a_word(founding, stability_api):
    answer = founding.post(
        body={"prompt": "x", "size": "640x384"}, headers=stability("stable-diffusion-v1-6")
    )
    assert sizes(answer) == [(640, 384)]
    assert "size" not in answer.headers.get("x-imagegate-warnings", "")


def test_parameters_that_stability_lacks_are_dropped_and_reported(founding, stability_api):
    answer = founding.post(
        body={"prompt": "x", "style": "vivid", "quality": "hd", "background": "opaque"},
        headers=stability("stable-diffusion-v1-6"),
    )
    assert answer.status_code == 200, answer.text[:500]
    sent = stability_api.calls[0].json()
    assert "style_preset" not in sent and "quality" not in sent
    for name in ("style", "quality"):
        assert name in answer.headers["x-imagegate-warnings"]


def test_parameters_that_stability_has_reach_it(founding, stability_api):
    body = {
        "prompt": "x",
        "negative_prompt": "blurry",
        "style": "photographic",
        "seed": 7,
        "steps": 20,
        "cfg_scale": 9.5,
    }
    answer = founding.post(body=body, headers=stability("stable-diffusion-v1-6"))
    assert answer.status_code == 200, answer.text[:500]
    sent = stability_api.calls[0].json()
    assert (sent["style_preset"], sent["seed"], sent["steps"], sent["cfg_scale"]) == ("photographic", 7, 20, 9.5)
    negative = [prompt for prompt in sent["text_prompts"] if prompt.get("weight", 1) < 0]
    assert [prompt["text"] for prompt in negative] == ["blurry"]


@pytest.mark.parametrize(
    "model, asked, sent",
    [
        ("dall-e-3", "hd", "hd"),
        ("dall-e-3", "high", "hd"),
        ("dall-e-3", "low", "standard"),
        ("gpt-image-1", "hd", "high"),
        ("gpt-image-1", "standard", "medium"),
        ("gpt-image-1", "max", "high"),
        ("gpt-image-2.5-flare", "max", "max"),
    ],
)
def test_quality_is_spelled_as_the_model_knows_it(founding, openai_api, model, asked, sent):
    answer = founding.post(body={"prompt": "x", "quality": asked}, headers=openai(model))
    assert answer.status_code == 200, answer.text[:500]
    assert openai_api.calls[0].json().get("quality", "standard") == sent


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
@pytest.mark.parametrize(
    "target", [stability("stable-diffusion-v1-6"), openai("dall-e-3"), openai("gpt-image-1")], ids=["v1", "dalle", "gpt"]
)
def test_every_provider_delivers_every_format(founding, target, kind):
    body = {"prompt": "x", "output_format": kind, "response_format": "b64_json"}
    answer = founding.post(body=body, headers=target)
    (data,) = pictures(answer)
    assert look(data).format == kind.upper()


def test_bytes_are_untouched_when_no_conversion_was_asked_for(founding):
    from emulators.pictures import picture

    body = {"prompt": "x", "size": "1024x1024", "response_format": "b64_json"}
    for target in (stability("stable-diffusion-v1-6"), openai("dall-e-3"), openai("gpt-image-1")):
        assert pictures(founding.post(body=body, headers=target)) == [picture(1024, 1024)]


def test_a_prompt_too_long_for_a_target_is_not_sent_there(founding, stability_api, openai_api):
    answer = founding.post(body={"prompt": "x" * 3000}, headers={"x-portkey-config": "pc-sdxl-dalle"})
    assert answer.status_code == 200, answer.text[:500]
    assert stability_api.calls == []
    assert answer.headers["x-portkey-last-used-option-index"] == "config.targets[1]"
    assert "skipped" in answer.headers["x-imagegate-attempts"]


def test_a_target_that_cannot_vary_is_skipped_without_a_call(founding, stability_api, openai_api, image_files):
    config = {
        "strategy": {"mode": "fallback"},
        "targets": [
            {"virtual_key": "stability-ai-virtualkey", "override_params": {"model": "core"}},
            {"virtual_key": "open-ai-virtual-key", "override_params": {"model": "dall-e-3"}},
            {"virtual_key": "open-ai-virtual-key", "override_params": {"model": "dall-e-2"}},
        ],
    }
    answer = founding.post(
        "/images/variations",
        headers={"x-portkey-config": json.dumps(config)},
        files={"image": ("a.png", image_files["a"].read_bytes(), "image/png")},
        data={"response_format": "b64_json"},
    )
    assert sizes(answer) == [(1024, 1024)]
    assert answer.headers["x-portkey-last-used-option-index"] == "config.targets[2]"
    assert answer.headers["x-imagegate-attempts"].count("skipped") == 2
    assert stability_api.calls == [] and len(openai_api.calls) == 1


def test_no_target_that_can_serve_is_an_error_that_says_why(founding, stability_api, image_files):
    answer = founding.post(
        "/images/variations",
        headers=stability("core"),
        files={"image": ("a.png", image_files["a"].read_bytes(), "image/png")},
    )
    assert answer.status_code == 400
    assert "variation" in openai_error(answer)["message"]
    assert stability_api.calls == [], "the image never left"


def test_strict_params_refuse_before_any_call(founding, stability_api):
    answer = founding.post(
        body={"prompt": "x", "size": "1000x1000"},
        headers=stability("stable-diffusion-xl-1024-v1-0", params_policy="strict"),
    )
    assert answer.status_code == 400
    assert "size" in openai_error(answer)["message"]
    assert stability_api.calls == []


def test_override_default_and_drop_params_apply_in_their_order(founding, openai_api):
    config = {
        "virtual_key": "open-ai-virtual-key",
        "override_params": {"model": "gpt-image-1", "quality": "low"},
        "default_params": {"size": "1536x1024", "user": "default"},
        "drop_params": ["user"],
    }
    answer = founding.post(
        body={"prompt": "x", "quality": "high", "model": "dall-e-3"}, headers={"x-portkey-config": json.dumps(config)}
    )
    assert sizes(answer) == [(1536, 1024)]
    sent = openai_api.calls[0].json()
    assert (sent["model"], sent["quality"]) == ("gpt-image-1", "low")
    assert "user" not in sent


def test_override_params_hold_for_multipart_too(founding, openai_api, image_files):
    answer = founding.post(
        "/images/edits",
        headers=openai("gpt-image-1"),
        files={"image": ("a.png", image_files["a"].read_bytes(), "image/png")},
        data={"prompt": "hat", "model": "dall-e-2"},
    )
    assert answer.status_code == 200, answer.text[:500]
    assert openai_api.calls[0].form["model"] == "gpt-image-1"


def test_stability_edits_with_an_openai_mask(founding, stability_api, image_files):
    """OpenAI's mask is transparent where it edits, Stability's is white there."""
    answer = founding.post(
        "/images/edits",
        headers=stability("inpaint"),
        files={
            "image": ("a.png", image_files["a"].read_bytes(), "image/png"),
            "mask": ("mask.png", image_files["mask"].read_bytes(), "image/png"),
        },
        data={"prompt": "hat", "response_format": "b64_json"},
    )
    assert sizes(answer) == [(512, 512)]
    (call,) = stability_api.calls
    assert call.path == "/v2beta/stable-image/edit/inpaint"
    sent = {part.name: part for part in call.files}
    mask = look(sent["mask"].data).convert("L")
    assert mask.getpixel((200, 200)) == 255 and mask.getpixel((5, 5)) == 0


@pytest.mark.parametrize("model", ["sd3.5-large", "sd3.5-medium", "sd3", "ultra", "core"])
def test_stability_v2beta_models_generate(founding, stability_api, model):
    answer = founding.post(body={"prompt": "x", "response_format": "b64_json"}, headers=stability(model))
    assert len(pictures(answer)) == 1
    (call,) = stability_api.calls
    if model.startswith("sd3."):
        assert call.path.endswith("/sd3") and call.form["model"] == model


def test_several_images_from_a_model_that_draws_one(founding, stability_api):
    answer = founding.post(body={"prompt": "x", "n": 2, "seed": 5}, headers=stability("core"))
    assert len(pictures(answer)) == 2
    seeds = sorted(int(call.form["seed"]) for call in stability_api.calls)
    assert len(set(seeds)) == 2 and seeds[0] == 5, "each image has a seed of its own"


def test_a_retired_model_is_served_with_a_warning(founding):
    answer = founding.post(body={"prompt": "x"}, headers=openai("dall-e-3"))
    assert answer.status_code == 200
    assert "retired" in answer.headers["x-imagegate-warnings"]


def test_an_unknown_model_is_passed_through(founding, openai_api):
    answer = founding.post(body={"prompt": "x"}, headers=openai("gpt-image-9"))
    assert openai_api.calls[0].json()["model"] == "gpt-image-9"
    assert answer.status_code == 404
    assert openai_error(answer)["code"] == "model_not_found"


def test_forwarded_headers_reach_the_provider(founding, openai_api):
    answer = founding.post(
        body={"prompt": "x"},
        headers={**openai("gpt-image-1"), "x-portkey-forward-headers": "x-mine", "x-mine": "1", "x-other": "2"},
    )
    assert answer.status_code == 200
    assert openai_api.calls[0].headers["x-mine"] == "1"
    assert "x-other" not in openai_api.calls[0].headers


def test_no_header_of_the_caller_reaches_the_provider_unasked(founding, openai_api):
    from gateway import TEAM_KEY

    founding.post(body={"prompt": "x"}, headers={**openai("gpt-image-1"), "cookie": "a=b", "x-portkey-api-key": TEAM_KEY})
    sent = openai_api.calls[0].headers
    assert TEAM_KEY not in json.dumps(sent)
    assert not [name for name in sent if name.startswith("x-portkey") or name == "cookie"]


def test_retries_are_counted(founding, stability_api):
    stability_api.script.extend([faults.status(503), None])
    answer = founding.post(
        body={"prompt": "x"},
        headers=stability("stable-diffusion-v1-6", retry={"attempts": 2, "on_status_codes": [503]}),
    )
    assert answer.status_code == 200, answer.text[:500]
    assert answer.headers["x-portkey-retry-attempt-count"] == "1"
    assert len(stability_api.calls) == 2


def test_a_refusal_can_be_returned_instead_of_falling_back(founding, stability_api, openai_api):
    stability_api.always = faults.refusal()
    config = {
        "strategy": {"mode": "fallback", "on_refusal": "return"},
        "targets": [
            {"virtual_key": "stability-ai-virtualkey", "override_params": {"model": "stable-diffusion-v1-6"}},
            {"virtual_key": "open-ai-virtual-key"},
        ],
    }
    answer = founding.post(body={"prompt": "x"}, headers={"x-portkey-config": json.dumps(config)})
    assert answer.status_code == 400
    assert openai_error(answer)["code"] == "moderation_blocked"
    assert openai_api.calls == []


def test_a_caller_has_its_own_default_config(serve, stability_api, openai_api):
    config = founding_config(stability_api, openai_api, default_config="pc-stability")
    config["api_keys"][0]["default_config"] = "pc-openai"
    gateway = serve(config)
    answer = gateway.post(body={"prompt": "x", "model": "gpt-image-1"})
    assert answer.headers["x-portkey-provider"] == "openai"


def test_an_address_in_the_providers_answer_is_fetched_without_credentials(founding, openai_api):
    openai_api.always = faults.by_address()
    body = {"prompt": "x", "n": 2, "response_format": "b64_json"}
    answer = founding.post(body=body, headers=openai("gpt-image-1"))
    assert sizes(answer) == [(1024, 1024)] * 2
    fetched = [request for request in openai_api.requests if request.path.startswith("/files/")]
    assert len(fetched) == 2
    assert all("authorization" not in request.headers for request in fetched)


def test_an_answer_of_another_size_is_reported(founding, openai_api):
    openai_api.always = faults.another_size()
    body = {"prompt": "x", "size": "1024x1024", "response_format": "b64_json"}
    answer = founding.post(body=body, headers=openai("dall-e-3"))
    assert sizes(answer) == [(768, 512)]
    assert "768x512" in answer.headers["x-imagegate-warnings"]
    assert answer.json().get("size", "768x512") == "768x512"


@pytest.mark.parametrize("policy, model, status", [("substitute", "gpt-image-2", 200), ("fail", None, 400)])
def test_a_retired_model_can_be_substituted_or_refused(serve, stability_api, openai_api, policy, model, status):
    gateway = serve(founding_config(stability_api, openai_api, retired_models=policy))
    answer = gateway.post(body={"prompt": "x"}, headers=openai("dall-e-3"))
    assert answer.status_code == status, answer.text[:500]
    assert [call.json()["model"] for call in openai_api.calls] == ([model] if model else [])
    if status == 200:
        assert "dall-e-3" in answer.headers["x-imagegate-warnings"]


def test_the_cost_is_told_and_an_unknown_one_is_not_zero(founding):
    answer = founding.post(body={"prompt": "x"}, headers=openai("gpt-image-1.5"))
    assert float(answer.headers["x-imagegate-cost-usd"]) == pytest.approx(1 * 5 / 1e6 + 1056 * 32 / 1e6, abs=1e-5)
    answer = founding.post(body={"prompt": "x"}, headers=stability("stable-diffusion-v1-6"))
    assert answer.headers["x-imagegate-cost-usd"] == "unknown"


def test_fields_that_openai_lacks_are_shown_only_when_asked_for(founding):
    target = stability("stable-diffusion-v1-6")
    strict = founding.post(body={"prompt": "x", "seed": 7}, headers=target).json()["data"][0]
    assert "seed" not in strict
    loose = {**target, "x-portkey-strict-open-ai-compliance": "false"}
    assert founding.post(body={"prompt": "x", "seed": 7}, headers=loose).json()["data"][0]["seed"] == 7


def test_an_input_may_be_an_address(founding, openai_api):
    from emulators.pictures import picture

    address = openai_api._store(picture(512, 512))
    body = {"model": "gpt-image-1", "prompt": "hat", "images": [{"image_url": address}]}
    answer = founding.post("/images/edits", body, headers=openai("gpt-image-1"))
    assert sizes(answer) == [(1024, 1024)]


@pytest.mark.parametrize(
    "address", ["http://169.254.169.254/latest/meta-data", "http://10.0.0.1/a.png", "file:///etc/passwd", "http://localhost:1/"]
)
def test_an_input_address_cannot_reach_inside(serve, stability_api, openai_api, address):
    gateway = serve(founding_config(stability_api, openai_api, egress={"allow": []}))
    body = {"model": "gpt-image-1", "prompt": "hat", "images": [{"image_url": address}]}
    answer = gateway.post("/images/edits", body, headers=openai("gpt-image-1"))
    assert answer.status_code == 400, answer.text[:500]
    openai_error(answer)


def test_the_whole_request_has_a_deadline(serve, stability_api, openai_api):
    config = founding_config(stability_api, openai_api, limits={"total_timeout_ms": 1000})
    gateway = serve(config)
    stability_api.always = openai_api.always = faults.hang()
    answer = gateway.post(body={"prompt": "x"}, headers={"x-portkey-config": "pc-sdxl-dalle"}, timeout=10)
    assert answer.status_code in (408, 504)
    openai_error(answer)
    assert openai_api.calls == [], "there was no time left for the second target"


def test_a_key_without_the_scope_cannot_generate(serve, stability_api, openai_api):
    config = founding_config(stability_api, openai_api, default_config="pc-openai")
    config["api_keys"][0]["scopes"] = ["logs"]
    answer = serve(config).post(body={"prompt": "x"})
    assert answer.status_code == 403
    assert "generate" in openai_error(answer)["message"]
    assert openai_api.calls == []
