"""Strategies, health, explanations and idempotency keys, as a client of the real binary meets them."""

import json
import time

import openai
import pytest
import requests

from emulators import faults
from gateway import OPS_KEY, TEAM_KEY, openai_error, run

STABILITY = {"virtual_key": "stability-ai-virtualkey", "override_params": {"model": "stable-diffusion-v1-6"}}
OPENAI = {"virtual_key": "open-ai-virtual-key", "override_params": {"model": "dall-e-3"}}
PROMPT = {"prompt": "a lighthouse", "size": "1024x1024", "response_format": "b64_json"}


def routed(config, **headers):
    return {"x-portkey-config": json.dumps(config), **headers}


def fallback(*targets, **more):
    return {"strategy": {"mode": "fallback"}, "targets": list(targets), **more}


def conditional(query):
    return {
        "strategy": {"mode": "conditional", "conditions": [{"query": query, "then": "paid"}], "default": "free"},
        "targets": [{**STABILITY, "name": "free"}, {**OPENAI, "name": "paid"}],
    }


def provider(answer):
    assert answer.status_code == 200, answer.text[:1000]
    return answer.headers["x-portkey-provider"]


@pytest.mark.parametrize(
    ("query", "metadata", "expected"),
    [
        ({"metadata.plan": "pro"}, {"plan": "pro"}, "openai"),
        ({"metadata.plan": "pro"}, {"plan": "free"}, "stability-ai"),
        ({"metadata.plan": {"$ne": "free"}}, {}, "stability-ai"),
        ({"params.size": "1024x1024", "metadata.age": {"$gte": 18}}, {"age": "18"}, "openai"),
        ({"url.pathname": {"$regex": "generations$"}}, {}, "openai"),
    ],
)
def test_a_condition_chooses_the_target(founding, query, metadata, expected):
    headers = routed(conditional(query), **{"x-portkey-metadata": json.dumps(metadata)})
    assert provider(founding.post(body=PROMPT, headers=headers)) == expected


def test_an_edit_has_params_to_ask_about_too(founding, image_files):
    config = conditional({"params.model": "gpt-image-1", "params.quality": "high"})
    config["targets"][1]["override_params"] = {"model": "gpt-image-1"}
    with image_files["a"].open("rb") as image:
        answer = founding.post(
            "/images/edits",
            headers=routed(config),
            data={"prompt": "add a boat", "model": "gpt-image-1", "quality": "high"},
            files={"image": ("a.png", image, "image/png")},
        )
    assert provider(answer) == "openai"


def test_a_query_that_cannot_work_is_refused_with_its_place(founding):
    answer = founding.post(body=PROMPT, headers=routed(conditional({"params.n": {"$in": 3}})))
    assert answer.status_code == 400
    error = openai_error(answer)
    assert "strategy.conditions.0.query.params.n.$in" in error["message"]


def test_a_balance_uses_both_targets_in_turn(founding):
    config = {"strategy": {"mode": "loadbalance", "policy": "round_robin"}, "targets": [STABILITY, OPENAI]}
    seen = [provider(founding.post(body=PROMPT, headers=routed(config))) for _ in range(4)]
    assert sorted(seen) == ["openai", "openai", "stability-ai", "stability-ai"]
    assert seen[0] != seen[1]


def test_a_hedge_answers_from_the_second_target_and_hangs_up_on_the_first(founding, stability_api):
    stability_api.script.append(faults.hang())
    config = {"strategy": {"mode": "hedge", "after_ms": 300}, "targets": [STABILITY, OPENAI]}
    started = time.monotonic()
    answer = founding.post(body=PROMPT, headers=routed(config))
    assert provider(answer) == "openai"
    assert 0.3 <= time.monotonic() - started < 10
    assert "cancelled" in answer.headers["x-imagegate-attempts"]


def test_a_target_that_fails_too_often_is_left_alone_and_explained(founding, stability_api):
    stability_api.always = faults.status(500)
    config = fallback({**STABILITY, "breaker": {"consecutive_failures": 2}}, OPENAI)
    answers = [founding.post(body=PROMPT, headers=routed(config)) for _ in range(4)]
    assert [provider(answer) for answer in answers] == ["openai"] * 4
    assert len(stability_api.calls) == 2
    assert "skipped" in answers[3].headers["x-imagegate-attempts"]

    explained = founding.post("/images/explain", body=PROMPT, headers=routed(config)).json()
    first, second = explained["targets"]
    assert (first["decision"], first["reason"]) == ("skipped", "breaker_open")
    assert first["state"]["breaker"] == "open"
    assert (second["decision"], second["target"]) == ("tried", "config.targets[1]")

    metrics = requests.get(founding.admin + "/metrics", timeout=5).text
    assert 'imagegate_breakers_open{provider="stability-ai"} 1' in metrics
    assert 'imagegate_targets_skipped_total{provider="stability-ai",reason="breaker_open"} 2' in metrics


def test_a_provider_that_asks_for_a_pause_gets_it_from_the_next_requests(founding, stability_api):
    stability_api.script.append(faults.status(429, retry_after="30"))
    config = fallback(STABILITY, OPENAI)
    for _ in range(3):
        assert provider(founding.post(body=PROMPT, headers=routed(config))) == "openai"
    assert len(stability_api.calls) == 1


def test_silence_ends_at_the_first_byte_limit(founding, stability_api):
    stability_api.script.append(faults.hang())
    config = fallback({**STABILITY, "first_byte_timeout_ms": 300}, OPENAI)
    started = time.monotonic()
    answer = founding.post(body=PROMPT, headers=routed(config))
    assert provider(answer) == "openai"
    assert time.monotonic() - started < 10
    # A provider that has begun to answer may take its time.
    stability_api.script.append(faults.hang_in_body())
    config = fallback({**STABILITY, "first_byte_timeout_ms": 300, "request_timeout": 1500}, OPENAI)
    started = time.monotonic()
    assert provider(founding.post(body=PROMPT, headers=routed(config))) == "openai"
    assert time.monotonic() - started >= 1.5


def test_a_whole_request_ends_at_its_own_limit(founding, stability_api, openai_api):
    stability_api.always = openai_api.always = faults.hang()
    config = fallback(STABILITY, OPENAI, request_timeout=60_000)
    headers = routed(config, **{"x-imagegate-total-timeout-ms": "700"})
    started = time.monotonic()
    answer = founding.post(body=PROMPT, headers=headers)
    assert answer.status_code == 504
    assert time.monotonic() - started < 5
    openai_error(answer)


def test_an_explanation_calls_nobody_and_matches_what_runs(founding, stability_api, openai_api):
    config = fallback({**STABILITY, "override_params": {"model": "core"}}, OPENAI, retry={"attempts": 2})
    body = {**PROMPT, "n": 2, "quality": "hd"}
    explained = founding.post("/images/explain", body=body, headers=routed(config)).json()
    assert not stability_api.calls and not openai_api.calls
    assert [target["decision"] for target in explained["targets"]] == ["tried", "tried"]
    first = explained["targets"][0]
    assert (first["model"], first["calls"], first["max_tries"]) == ("core", 2, 3)
    assert first["price_usd"] == pytest.approx(0.06)
    assert {warning["field"] for warning in first["warnings"]} >= {"n", "quality"}

    answer = founding.post(body=body, headers=routed(config))
    assert answer.headers["x-portkey-last-used-option-index"] == first["target"]
    assert len(stability_api.calls) == first["calls"]
    for warning in first["warnings"]:
        assert f"{warning['field']} {warning['action']}" in answer.headers["x-imagegate-warnings"]


def test_the_explain_command_shows_the_plan(founding, stability_api, tmp_path):
    args = ["explain", "a lighthouse", "--config-id", "pc-sdxl-dalle", "--router", "http://" + founding.grpc]
    finished = run(args, tmp_path, {"IMAGEGATE_API_KEY": TEAM_KEY})
    assert finished.returncode == 0, finished.stderr
    lines = finished.stdout.splitlines()
    assert lines[0] == "route pc-sdxl-dalle"
    assert "1. config.targets[0] stability-ai stable-diffusion-v1-6" in lines[1]
    assert "2. config.targets[1] openai dall-e-3" in finished.stdout
    assert not stability_api.calls

    refused = run([*args, "--size", "huge"], tmp_path, {"IMAGEGATE_API_KEY": TEAM_KEY})
    assert refused.returncode == 1 and "huge" in refused.stderr


def test_the_same_idempotency_key_is_paid_once_by_an_sdk(founding, openai_api):
    client = openai.OpenAI(api_key=TEAM_KEY, base_url=founding.base_url, max_retries=0)

    def generate(prompt, key):
        headers = {"Idempotency-Key": key, **routed(OPENAI)}
        raw = client.images.with_raw_response.generate(
            prompt=prompt, model="dall-e-3", response_format="b64_json", extra_headers=headers
        )
        return raw.headers, raw.parse().data[0].b64_json

    first_headers, first = generate("a lighthouse", "order-1")
    again_headers, again = generate("a lighthouse", "order-1")
    assert again == first and len(openai_api.calls) == 1
    assert again_headers["x-imagegate-replay-of"] == first_headers["x-imagegate-request-id"]
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        generate("another lighthouse", "order-1")
    assert refused.value.code == "idempotency_key_reused"
    assert len(openai_api.calls) == 1


def test_idempotency_keys_of_two_callers_do_not_meet(founding, openai_api):
    for key in (TEAM_KEY, OPS_KEY):
        headers = {"idempotency-key": "order-1", **routed(OPENAI)}
        answer = founding.post(body=PROMPT, headers=headers, key=key)
        assert answer.status_code == 200 and "x-imagegate-replay-of" not in answer.headers
    assert len(openai_api.calls) == 2


def test_a_cached_answer_is_given_again_and_made_anew_on_demand(founding, openai_api):
    config = {**OPENAI, "cache": {"mode": "simple", "max_age": 60}}
    body = {**PROMPT, "n": 2}

    def ask(key=TEAM_KEY, **headers):
        answer = founding.post(body=body, headers=routed(config, **headers), key=key)
        assert answer.status_code == 200, answer.text[:1000]
        return answer.headers["x-portkey-cache-status"], [image["b64_json"] for image in answer.json()["data"]]

    status, made = ask()
    assert status == "MISS" and len(openai_api.calls) == 2
    assert ask() == ("HIT", made)
    assert len(openai_api.calls) == 2
    assert ask(**{"x-portkey-cache-force-refresh": "false"})[0] == "HIT"
    assert ask(**{"x-portkey-cache-namespace": "other"})[0] == "MISS"
    assert ask(key=OPS_KEY)[0] == "MISS", "another caller's answer"
    assert ask(**{"x-portkey-cache-force-refresh": "true"})[0] == "REFRESH"
    explained = founding.post("/images/explain", body=body, headers=routed(config)).json()
    assert explained["targets"][0]["cached"] is True
    answer = founding.post(body=body, headers=routed(OPENAI))
    assert answer.headers["x-portkey-cache-status"] == "DISABLED"
