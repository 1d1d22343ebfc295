"""Two routers and one Redis: what they share, and what becomes of requests when Redis does not answer."""

import base64
import io
import json
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
import requests
import yaml
from PIL import Image

from emulators import faults
from emulators.pictures import picture
from emulators.server import Reply
from gateway import OPS_KEY, TEAM_KEY, eventually, founding_config, openai_error, run, secrets_of
from redis_server import Network, RedisError

STABILITY = {"virtual_key": "stability-ai-virtualkey", "override_params": {"model": "stable-diffusion-v1-6"}}
OPENAI = {"virtual_key": "open-ai-virtual-key", "override_params": {"model": "gpt-image-1"}}
CACHED = {**OPENAI, "cache": {"mode": "simple", "max_age": 60}}
BODY = {"prompt": "a lighthouse", "size": "1024x1024"}


def routed(config, **headers):
    return {"x-portkey-config": json.dumps(config), **{name.replace("_", "-"): text for name, text in headers.items()}}


def fallback(*targets, **more):
    return {"strategy": {"mode": "fallback"}, "targets": list(targets), **more}


def images(answer):
    assert answer.status_code == 200, answer.text[:1000]
    return [base64.b64decode(image["b64_json"], validate=True) for image in answer.json()["data"]]


def with_key(gateway, key, config=OPENAI, body=BODY, timeout=60, caller=TEAM_KEY, **headers):
    return gateway.post(body=body, headers=routed(config, idempotency_key=key, **headers), key=caller, timeout=timeout)


def cached(gateway, prompt=BODY["prompt"], key=TEAM_KEY, max_age=60, **headers):
    """How the cache answers, and with what."""
    config = {**OPENAI, "cache": {"mode": "simple", "max_age": max_age}}
    answer = gateway.post(body={**BODY, "prompt": prompt}, headers=routed(config, **headers), key=key)
    assert answer.status_code == 200, answer.text[:1000]
    return answer.headers["x-portkey-cache-status"], images(answer)


def explained(gateway, config, body=BODY):
    """What would be done, target by target."""
    answer = gateway.post("/images/explain", body=body, headers=routed(config))
    assert answer.status_code == 200, answer.text[:1000]
    return answer.json()["targets"]


def metric(gateway, name, **labels):
    """Sum of the series that have these labels."""
    text = requests.get(gateway.admin + "/metrics", timeout=5).text
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    lines = re.findall(rf"^{name}(\{{.*\}})? (\S+)$", text, re.MULTILINE)
    return sum(float(value) for found, value in lines if all(label in found for label in wanted))


def logged(gateway, beginning):
    messages = (event.get("fields", {}).get("message", "") for event in gateway.front.events)
    return sum(message.startswith(beginning) for message in messages)


def check_outages(gateway, count):
    """One line at the beginning of each and one at its end."""
    eventually(lambda: logged(gateway, "redis is back") == count, what="the end of the outage in the log")
    assert logged(gateway, "redis is away") == count


def is_up(gateway):
    return metric(gateway, "imagegate_redis_up") == 1


def is_busy(gateway):
    return metric(gateway, "imagegate_requests_in_flight") == 1


def wait_until_down(*gateways):
    eventually(lambda: not any(map(is_up, gateways)), what="the outage to be noticed")


def wait_until_up(*gateways, timeout=10):
    eventually(lambda: all(map(is_up, gateways)), timeout, "the end of the outage to be noticed")


def pays_again(answer):
    """Whether the caller is told that its key holds at this router only."""
    return "idempotency-key notice: other routers" in answer.headers.get("x-imagegate-warnings", "")


def wait_until_shared(gateway, prompt=BODY["prompt"], timeout=10):
    body = {**BODY, "prompt": prompt}
    eventually(lambda: explained(gateway, CACHED, body)[0]["cached"], timeout, "the answer of the other router")


def share(a, b):
    """Fails unless what one of them has made is found by the other."""
    prompt = f"shared {os.urandom(4).hex()}"
    made = cached(a, prompt)[1]
    wait_until_shared(b, prompt)
    assert cached(b, prompt) == ("HIT", made)


def of(*pictures):
    """An answer with exactly these pictures."""

    async def fault(emulator, request, connection):
        data = [{"b64_json": base64.b64encode(image).decode()} for image in pictures]
        await connection.send(Reply.json(200, {"created": int(time.time()), "data": data}))
        request.answered = True
        return True

    return fault


def noise():
    """A picture that nothing makes smaller: about 2 MB."""
    buffer = io.BytesIO()
    Image.frombytes("LA", (1024, 1024), os.urandom(2 << 20)).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture
def call(openai_api):
    """Calls a function beside the test: `call(with_key, a, "order-1")` is a future."""
    pool = ThreadPoolExecutor(16)
    yield pool.submit
    openai_api.release()
    pool.shutdown(cancel_futures=True)


# The cache.


@pytest.mark.parametrize("is_large", [False, True], ids=["small", "2 MB each"])
def test_an_answer_of_one_router_is_a_hit_at_the_other_byte_for_byte(fleet, openai_api, is_large):
    a, b = fleet()
    pictures = [noise(), noise()] if is_large else [picture(1024, 1024, 3), picture(1024, 1024, 4)]
    openai_api.script.append(of(*pictures))
    body = {**BODY, "n": 2}
    first = a.post(body=body, headers=routed(CACHED))
    assert (first.headers["x-portkey-cache-status"], images(first)) == ("MISS", pictures)
    eventually(lambda: explained(b, CACHED, body)[0]["cached"], what="the answer in Redis")
    again = b.post(body=body, headers=routed(CACHED))
    assert (again.headers["x-portkey-cache-status"], images(again)) == ("HIT", pictures)
    assert {**again.json(), "created": 0} == {**first.json(), "created": 0}
    assert "x-imagegate-attempts" not in again.headers
    assert len(openai_api.calls) == 1


def test_a_usage_and_a_changed_prompt_are_shared_with_the_image(fleet):
    a, b = fleet()
    for model in ("gpt-image-1", "dall-e-3"):
        config = {**CACHED, "override_params": {"model": model}}
        body = {**BODY, "response_format": "b64_json"}
        first = a.post(body=body, headers=routed(config)).json()
        assert first.get("usage") or first["data"][0]["revised_prompt"]
        eventually(lambda: explained(b, config, body)[0]["cached"], what="the answer in Redis")
        again = b.post(body=body, headers=routed(config))
        assert again.headers["x-portkey-cache-status"] == "HIT"
        assert {**again.json(), "created": 0} == {**first, "created": 0}


def test_an_answer_made_anew_at_one_router_is_found_by_the_other(fleet, openai_api):
    a, b = fleet()
    old, new = picture(1024, 1024, 5), picture(1024, 1024, 6)
    openai_api.script.extend([of(old), of(new)])
    assert cached(a) == ("MISS", [old])
    assert cached(a, x_portkey_cache_force_refresh="true") == ("REFRESH", [new])
    wait_until_shared(b)
    assert cached(b) == ("HIT", [new])
    assert len(openai_api.calls) == 2


def test_an_answer_made_anew_replaces_the_copy_that_the_other_router_has_by_then(fleet, openai_api):
    a, b = fleet()
    old, new = picture(1024, 1024, 5), picture(1024, 1024, 6)
    openai_api.script.extend([of(old), of(new)])
    cached(a)
    wait_until_shared(b)
    assert cached(b) == ("HIT", [old])
    cached(a, x_portkey_cache_force_refresh="true")
    eventually(lambda: cached(b) == ("HIT", [new]), 3, "the new answer at the other router")
    assert len(openai_api.calls) == 2


def test_the_age_of_an_answer_counts_from_when_it_was_made(fleet, openai_api):
    a, b = fleet()
    # Ages are told in whole seconds: what is made at the beginning of one shows most.
    eventually(lambda: time.time() % 1 < 0.05, what="the beginning of a second")
    assert cached(a, max_age=3)[0] == "MISS"
    made = time.monotonic()
    eventually(lambda: time.monotonic() - made > 1.7)
    assert cached(b, max_age=3)[0] == "HIT"
    eventually(lambda: time.monotonic() - made > 3.3)
    assert cached(b, max_age=3)[0] == "MISS", "given again after its time"
    assert len(openai_api.calls) == 2


def test_a_copy_is_not_younger_than_its_answer(fleet, openai_api):
    a, b = fleet()
    assert cached(a)[0] == "MISS"
    made = time.monotonic()
    eventually(lambda: time.monotonic() - made > 2.2)
    assert cached(b)[0] == "HIT"
    assert cached(b, max_age=2)[0] == "MISS", "a request never gets an answer that is older than its own max_age"


def test_the_answers_of_two_callers_do_not_meet_in_redis(fleet, openai_api):
    a, b = fleet()
    assert cached(a)[0] == "MISS"
    wait_until_shared(b)
    assert cached(b, key=OPS_KEY)[0] == "MISS"
    assert cached(b, x_portkey_cache_namespace="other")[0] == "MISS"
    assert cached(b)[0] == "HIT"
    assert len(openai_api.calls) == 3


def test_deployments_with_a_prefix_each_share_nothing(serve, redis, tmp_path, stability_api, openai_api):
    config = founding_config(stability_api, openai_api)
    a, b = (
        serve(
            {**config, "data_dir": str(tmp_path / name), "redis": {"url": {"env": "REDIS_URL"}, "prefix": name}},
            {"REDIS_URL": redis.url()},
            name,
        )
        for name in ("one", "two")
    )
    for gateway in (a, b):
        assert cached(gateway)[0] == "MISS"
        assert "x-imagegate-replay-of" not in with_key(gateway, "order-1").headers
    eventually(lambda: len(redis.keys("one:*")) == len(redis.keys("two:*")) == 3, what="what is shared")
    assert len(redis.keys()) == 6


def test_an_answer_that_this_version_cannot_read_is_made_anew(fleet, redis, openai_api):
    a, b = fleet()
    cached(a)
    (key,) = eventually(lambda: redis.keys("imagegate:cache:*"), what="the answer in Redis")
    redis.command("SET", key, b"\xff not ours", "KEEPTTL")
    assert cached(b)[0] == "MISS"
    assert len(openai_api.calls) == 2


def test_what_is_in_redis_ends_and_shows_neither_keys_nor_prompts(fleet, redis, stability_api, openai_api):
    a, _ = fleet()
    prompt, key = "a private prompt about nobody", "order-of-somebody"
    assert with_key(a, key, CACHED, {**BODY, "prompt": prompt}).status_code == 200
    keys = eventually(lambda: redis.keys() if len(redis.keys()) == 3 else None, what="what is shared")
    lives = {re.sub(r"[0-9a-f]{64}", "DIGEST", key): redis.command("PTTL", key) / 1000 for key in keys}
    expected = {
        "imagegate:cache:DIGEST": 60,
        "imagegate:idempotency:DIGEST": 24 * 60 * 60,
        "imagegate:idempotency:DIGEST:answer": 60 * 60,
    }
    assert set(lives) == set(expected)
    for name, life in expected.items():
        assert life - 30 < lives[name] <= life, name
    everything = b"\n".join(part for name in keys for part in (name.encode(), redis.command("GET", name)))
    for secret in (prompt, key, TEAM_KEY, openai_api.key, stability_api.key, "team-a"):
        assert secret.encode() not in everything


# Idempotency keys.


def test_the_same_key_at_two_routers_is_paid_once_by_an_sdk(fleet, openai_api):
    def generate(gateway, prompt):
        client = openai.OpenAI(api_key=TEAM_KEY, base_url=gateway.base_url, max_retries=0)
        raw = client.images.with_raw_response.generate(
            prompt=prompt, model="gpt-image-1", extra_headers=routed(OPENAI, idempotency_key="order-1")
        )
        return raw.headers, raw.parse()

    a, b = fleet()
    first_headers, first = generate(a, "a lighthouse")
    again_headers, again = generate(b, "a lighthouse")
    assert (again.data, again.usage) == (first.data, first.usage)
    assert len(openai_api.calls) == 1
    assert again_headers["x-imagegate-replay-of"] == first_headers["x-imagegate-request-id"]
    assert again_headers["x-portkey-provider"] == "openai"
    assert float(again_headers.get("x-imagegate-cost-usd", 0)) == 0
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        generate(b, "another lighthouse")
    assert refused.value.code == "idempotency_key_reused"
    assert len(openai_api.calls) == 1


def test_every_repetition_names_the_first_request(fleet, openai_api):
    a, b = fleet()
    first = with_key(a, "order-1").headers["x-imagegate-request-id"]
    assert [with_key(gateway, "order-1").headers["x-imagegate-replay-of"] for gateway in (b, b, a)] == [first] * 3
    assert len(openai_api.calls) == 1


def test_large_images_are_replayed_byte_for_byte(fleet, openai_api):
    a, b = fleet()
    pictures = [noise(), noise()]
    openai_api.script.append(of(*pictures))
    assert [images(with_key(gateway, "order-1", body={**BODY, "n": 2})) for gateway in (a, b)] == [pictures] * 2
    assert len(openai_api.calls) == 1


def test_keys_of_two_callers_do_not_meet_in_redis(fleet, openai_api):
    a, b = fleet()
    for gateway, caller in ((a, TEAM_KEY), (b, OPS_KEY)):
        answer = with_key(gateway, "order-1", caller=caller)
        assert answer.status_code == 200 and "x-imagegate-replay-of" not in answer.headers
    assert len(openai_api.calls) == 2


def test_the_same_key_at_both_routers_at_once_is_one_call(fleet, openai_api, call):
    a, b = fleet()
    openai_api.script.append(faults.hold())
    first = call(with_key, a, "order-1")
    openai_api.wait_for_calls(1)
    second = call(with_key, b, "order-1")
    eventually(lambda: is_busy(b), what="the second request at its router")
    openai_api.release()
    first, second = first.result(), second.result()
    assert images(second) == images(first)
    assert second.headers["x-imagegate-replay-of"] == first.headers["x-imagegate-request-id"]
    assert len(openai_api.calls) == 1


def test_another_request_with_a_key_that_another_router_has_is_refused_at_once(fleet, openai_api, call):
    a, b = fleet()
    openai_api.script.append(faults.hold())
    first = call(with_key, a, "order-1")
    openai_api.wait_for_calls(1)
    refused = with_key(b, "order-1", body={**BODY, "prompt": "another"})
    assert (refused.status_code, openai_error(refused)["code"]) == (422, "idempotency_key_reused")
    openai_api.release()
    assert first.result().status_code == 200
    assert len(openai_api.calls) == 1


def test_a_wrong_request_does_not_take_a_key_from_the_right_one(fleet, openai_api):
    a, b = fleet()
    first = with_key(a, "order-1")
    assert with_key(b, "order-1", body={**BODY, "prompt": "another"}).status_code == 422
    again = with_key(b, "order-1")
    assert again.status_code == 200, again.text
    assert images(again) == images(first)
    assert len(openai_api.calls) == 1


def test_a_key_that_failed_at_one_router_is_the_others_with_another_request(fleet, openai_api):
    a, b = fleet()
    openai_api.script.append(faults.status(400))
    assert with_key(a, "order-1").status_code == 400
    corrected = {**BODY, "prompt": "a corrected prompt"}
    assert with_key(b, "order-1", body=corrected).status_code == 200
    again = with_key(a, "order-1", body=corrected)
    assert again.status_code == 200 and "x-imagegate-replay-of" in again.headers, again.text
    assert len(openai_api.calls) == 2


def test_a_request_that_waits_for_another_router_ends_at_its_own_deadline(fleet, openai_api, call):
    a, b = fleet()
    openai_api.script.append(faults.hold())
    first = call(with_key, a, "order-1")
    openai_api.wait_for_calls(1)
    started = time.monotonic()
    assert with_key(b, "order-1", x_imagegate_total_timeout_ms="700").status_code == 504
    assert 0.4 < time.monotonic() - started < 5
    openai_api.release()
    assert first.result().status_code == 200
    assert len(openai_api.calls) == 1


def test_a_request_that_failed_at_one_router_is_run_by_the_other(fleet, openai_api):
    a, b = fleet()
    openai_api.script.append(faults.status(400))
    assert with_key(a, "order-1").status_code == 400
    assert with_key(b, "order-1").status_code == 200
    assert len(openai_api.calls) == 2


def test_whoever_waits_runs_the_request_once_it_has_failed_at_the_other_router(fleet, openai_api, call):
    a, b = fleet()
    openai_api.script.append(faults.hold(faults.status(400)))
    first = call(with_key, a, "order-1")
    openai_api.wait_for_calls(1)
    second = call(with_key, b, "order-1")
    eventually(lambda: is_busy(b), what="the second request at its router")
    openai_api.release()
    assert (first.result().status_code, second.result().status_code) == (400, 200)
    assert "x-imagegate-replay-of" not in second.result().headers
    assert len(openai_api.calls) == 2


def test_a_client_that_leaves_one_router_frees_its_key_for_the_other(fleet, openai_api):
    a, b = fleet()
    openai_api.script.append(faults.hang())
    with pytest.raises(requests.Timeout):
        with_key(a, "order-1", timeout=1)
    assert openai_api.wait_for_calls(1)[0].closed.wait(5)
    assert with_key(b, "order-1").status_code == 200
    assert len(openai_api.calls) == 2


def test_a_redis_that_takes_no_scripts_is_done_without(fleet, redis, openai_api):
    a, _ = fleet()
    redis.command("ACL", "SETUSER", "default", "-eval")
    first = with_key(a, "order-1")
    assert first.status_code == 200 and pays_again(first)
    assert images(with_key(a, "order-1")) == images(first)
    assert len(openai_api.calls) == 1


def test_answers_can_stay_with_their_router(fleet, redis, openai_api):
    a, b = fleet(redis_more={"max_answer_bytes": 0})
    first = with_key(a, "order-1")
    assert images(with_key(a, "order-1")) == images(first)
    refused = with_key(b, "order-1")
    assert (refused.status_code, openai_error(refused)["code"]) == (409, "idempotency_answer_gone")
    assert cached(a, "a lighthouse")[0] == cached(b, "a lighthouse")[0] == "MISS"
    assert not redis.keys("*:answer") and not redis.keys("*:cache:*")
    assert len(openai_api.calls) == 3


def test_an_answer_that_redis_has_no_more_is_not_paid_for_again(fleet, redis, openai_api):
    a, b = fleet()
    first = with_key(a, "order-1")
    (kept,) = redis.keys("*:answer")
    redis.command("DEL", kept)
    refused = with_key(b, "order-1")
    assert refused.status_code == 409
    assert openai_error(refused)["code"] == "idempotency_answer_gone"
    assert images(with_key(a, "order-1")) == images(first), "its own router has it still"
    assert len(openai_api.calls) == 1


def test_a_key_whose_request_fails_while_its_router_ends_is_free_for_the_other(fleet, openai_api, call):
    a, b = fleet()
    openai_api.script.append(faults.hold(faults.status(400)))
    first = call(with_key, a, "order-1")
    openai_api.wait_for_calls(1)
    a.front.terminate()
    eventually(lambda: not a.ready(), what="readiness to end")
    openai_api.release()
    assert first.result().status_code == 400
    assert a.front.wait() == 0
    assert with_key(b, "order-1", x_imagegate_total_timeout_ms="4000").status_code == 200
    assert len(openai_api.calls) == 2


def test_the_key_of_a_router_that_was_killed_is_free_after_its_requests_deadline(fleet, openai_api, call):
    a, b = fleet()
    openai_api.script.append(faults.hold())
    began = time.monotonic()
    first = call(with_key, a, "order-1", x_imagegate_total_timeout_ms="2000")
    openai_api.wait_for_calls(1)
    a.front.kill()
    assert isinstance(first.exception(), requests.ConnectionError)
    # One that waits no longer than the first would have is not paid for.
    assert with_key(b, "order-1", x_imagegate_total_timeout_ms="1000").status_code == 504
    assert len(openai_api.calls) == 1
    assert with_key(b, "order-1", x_imagegate_total_timeout_ms="20000").status_code == 200
    assert len(openai_api.calls) == 2
    assert openai_api.calls[1].arrived_at - began > 2


# Hints.


def guarded(**breaker):
    return fallback({**STABILITY, "breaker": {"consecutive_failures": 2, **breaker}}, OPENAI)


def test_what_is_broken_for_one_router_is_passed_over_by_the_other(fleet, stability_api):
    a, b = fleet()
    config = guarded(cooldown_s=60)
    stability_api.always = faults.status(500)
    for _ in range(2):
        assert a.post(body=BODY, headers=routed(config)).status_code == 200
    eventually(lambda: explained(b, config)[0]["reason"] == "breaker_open", 1, "what the other router knows")
    assert explained(b, config)[0]["state"]["breaker"] == "open"
    answer = b.post(body=BODY, headers=routed(config))
    assert answer.headers["x-portkey-last-used-option-index"] == "config.targets[1]"
    assert "config.targets[0] stability-ai skipped" in answer.headers["x-imagegate-attempts"]
    assert metric(b, "imagegate_breakers_open", provider="stability-ai") == 1
    assert metric(b, "imagegate_targets_skipped_total", reason="breaker_open") == 1
    assert len(stability_api.calls) == 2
    # Without a breaker in its config a target is called all the same.
    assert b.post(body=BODY, headers=routed(fallback({**STABILITY, "breaker": False}, OPENAI))).status_code == 200
    assert len(stability_api.calls) == 3


def test_a_pause_that_one_router_was_asked_for_is_kept_by_the_other(fleet, stability_api):
    a, b = fleet()
    config = fallback(STABILITY, OPENAI)
    stability_api.script.append(faults.status(429, retry_after="30"))
    assert a.post(body=BODY, headers=routed(config)).headers["x-portkey-provider"] == "openai"
    eventually(lambda: explained(b, config)[0]["reason"] == "rate_limited", 1, "what the other router knows")
    answer = b.post(body=BODY, headers=routed(config))
    assert answer.headers["x-portkey-provider"] == "openai"
    assert "config.targets[0] stability-ai skipped" in answer.headers["x-imagegate-attempts"]
    assert len(stability_api.calls) == 1


def test_a_router_that_was_told_finds_out_by_itself_when_the_outage_is_over(fleet, stability_api):
    a, b = fleet()
    config = guarded(cooldown_s=2)
    stability_api.always = faults.status(500)
    for _ in range(2):
        a.post(body=BODY, headers=routed(config))
    eventually(lambda: explained(b, config)[0]["reason"] == "breaker_open", 1, "what the other router knows")
    stability_api.always = None
    answer = eventually(
        lambda: (answer := b.post(body=BODY, headers=routed(config))).headers["x-portkey-provider"] == "stability-ai"
        and answer,
        what="the probe",
    )
    assert answer.status_code == 200
    assert len(stability_api.calls) == 3
    assert explained(b, config)[0]["state"]["breaker"] == "closed"
    assert explained(a, config)[0]["state"]["breaker"] == "open", "it has not asked yet"


def test_hints_are_told_once_and_never_come_back(fleet, redis, stability_api, openai_api):
    heard = redis.hear("imagegate:hints")
    a, b = fleet()

    def reason(gateway, config):
        return explained(gateway, config)[0]["reason"]

    def pause(gateway, model):
        """Makes a router leave a model alone. What it tells of that is behind all that it had to tell before."""
        openai_api.script.append(faults.status(429, retry_after="40"))
        gateway.post(body=BODY, headers=routed({**OPENAI, "override_params": {"model": model}}))
        return fallback({**OPENAI, "override_params": {"model": model}}, OPENAI)

    stability_api.script.extend([faults.status(500), faults.status(500), faults.status(429, retry_after="40")])
    for _ in range(2):
        a.post(body=BODY, headers=routed(guarded(cooldown_s=60)))
    eventually(lambda: reason(b, guarded()) == "breaker_open", 1, "the open breaker at the other router")
    a.post(body=BODY, headers=routed(STABILITY))
    eventually(lambda: reason(b, guarded()) == "rate_limited", 1, "the pause at the other router")
    paused = pause(b, "gpt-image-1-mini")
    eventually(lambda: reason(a, paused) == "rate_limited", 1, "the pause at the first router")
    paused = pause(a, "gpt-image-1.5")
    eventually(lambda: reason(b, paused) == "rate_limited", 1, "the pause at the other router")
    hints = [json.loads(hint) for hint in heard]
    told = [(hint["provider"], *sorted(set(hint) & {"open_ms", "paused_ms"})) for hint in hints]
    assert told == [
        ("stability-ai", "open_ms"),
        ("stability-ai", "paused_ms"),
        ("openai", "paused_ms"),
        ("openai", "paused_ms"),
    ]
    assert [hint["from"] == hints[0]["from"] for hint in hints] == [True, True, False, True]
    assert [hint["target"] == hints[0]["target"] for hint in hints] == [True, True, False, False]
    for hint, length in zip(hints, (60_000, 40_000, 40_000, 40_000), strict=True):
        assert length - 10_000 < hint.get("open_ms", hint.get("paused_ms")) <= length
    message = explained(a, guarded())[0]["message"]
    assert float(re.search(r"another ([\d.]+) s", message)[1]) < 40
    for secret in (stability_api.key, openai_api.key, stability_api.address, "a lighthouse"):
        assert secret.encode() not in b"".join(heard)


def test_a_message_that_is_no_hint_is_passed_over(fleet, redis, stability_api):
    a, b = fleet()
    config = guarded(cooldown_s=60)
    for nonsense in (b"", b"\xff", b"{}", b'{"from": "x", "target": "y", "provider": "z", "open_ms": -1}'):
        redis.command("PUBLISH", "imagegate:hints", nonsense)
    stability_api.always = faults.status(500)
    for _ in range(2):
        a.post(body=BODY, headers=routed(config))
    eventually(lambda: explained(b, config)[0]["reason"] == "breaker_open", 1, "what the other router knows")


# When Redis does not answer.


def test_without_redis_at_the_start_routers_work_alone_until_it_is_there(fleet, redis, openai_api):
    redis.kill()
    a, b = fleet()
    wait_until_down(a, b)
    for gateway in (a, b):
        assert [cached(gateway)[0] for _ in range(2)] == ["MISS", "HIT"]
        answers = [with_key(gateway, "order-1") for _ in range(2)]
        assert all(map(pays_again, answers)) and images(answers[0]) == images(answers[1])
        assert answers[1].headers["x-imagegate-replay-of"] == answers[0].headers["x-imagegate-request-id"]
        assert gateway.ready(), "without Redis it can still serve"
    assert len(openai_api.calls) == 4
    redis.start()
    wait_until_up(a, b)
    share(a, b)
    for gateway in (a, b):
        check_outages(gateway, 1)
        assert metric(gateway, "imagegate_redis_errors_total") >= 1


@pytest.mark.parametrize("keep_data", [True, False], ids=["with its data", "without its data"])
def test_a_redis_that_crashes_and_comes_back_is_used_again(fleet, redis, openai_api, keep_data):
    a, b = fleet()
    share(a, b)
    before = with_key(a, "before")
    paid = len(openai_api.calls)
    for outage in (1, 2):
        redis.kill(keep_data)
        wait_until_down(a, b)
        for gateway in (a, b):
            answer = with_key(gateway, f"during-{outage}")
            assert answer.status_code == 200 and pays_again(answer)
            assert cached(gateway, f"during {outage}")[0] == "MISS"
        paid += 4
        assert images(with_key(a, "before")) == images(before)
        assert len(openai_api.calls) == paid
        redis.start()
        wait_until_up(a, b)
        for gateway in (a, b):
            check_outages(gateway, outage)
    again = with_key(b, "before")
    assert again.status_code == 200 and not pays_again(again)
    assert ("x-imagegate-replay-of" in again.headers) == keep_data
    share(a, b)
    share(b, a)
    assert metric(a, "imagegate_redis_errors_total", operation="ping") >= 1


def test_hints_are_heard_again_after_an_outage(fleet, redis, stability_api):
    a, b = fleet()
    redis.kill()
    wait_until_down(a, b)
    redis.start()
    wait_until_up(a, b)
    eventually(lambda: redis.command("PUBSUB", "NUMSUB", "imagegate:hints")[1] == 2, what="both routers to listen")
    config = guarded(cooldown_s=60)
    stability_api.always = faults.status(500)
    for _ in range(2):
        a.post(body=BODY, headers=routed(config))
    eventually(lambda: explained(b, config)[0]["reason"] == "breaker_open", 1, "what the other router knows")


def test_a_frozen_redis_costs_its_time_limit_once(fleet, redis):
    limit = 0.4
    a, b = fleet(timeout_ms=int(limit * 1000))
    share(a, b)
    redis.freeze()
    took = []
    for number in range(30):
        started = time.monotonic()
        assert cached(a, f"frozen {number}")[0] == "MISS"
        took.append(time.monotonic() - started)
    assert took[0] < limit + 1
    assert sum(seconds >= limit for seconds in took) <= 2, took
    answer = with_key(a, "order-1")
    assert answer.status_code == 200 and pays_again(answer)
    wait_until_down(a, b)
    redis.thaw()
    wait_until_up(a, b)
    share(a, b)
    share(b, a)
    for gateway in (a, b):
        check_outages(gateway, 1)


def test_requests_at_once_do_not_pay_for_a_frozen_redis_one_after_the_other(fleet, redis, call):
    limit = 0.5
    a, _ = fleet(timeout_ms=int(limit * 1000))
    share(a, a)
    redis.freeze()
    started = time.monotonic()
    answers = [call(with_key, a, f"order-{number}") for number in range(10)]
    assert all(answer.result().status_code == 200 for answer in answers)
    assert time.monotonic() - started < limit + 2.5
    redis.thaw()


def test_a_key_that_was_tried_at_a_frozen_redis_is_not_taken_for_running_afterwards(fleet, redis):
    a, b = fleet(timeout_ms=300)
    redis.freeze()
    assert pays_again(with_key(a, "order-1"))
    redis.thaw()
    wait_until_up(a, b)
    # Well below what the first request might have taken.
    assert with_key(b, "order-1", x_imagegate_total_timeout_ms="10000").status_code == 200, "nobody runs it"


REFUSALS = {
    "its replicas are missing": ("CONFIG SET min-replicas-to-write 1", "CONFIG SET min-replicas-to-write 0"),
    "its memory is full": ("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0"),
    "it has become a replica": ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE"),
}


@pytest.fixture(params=REFUSALS.values(), ids=REFUSALS.keys())
def refusal(request, redis):
    """Two functions: Redis takes no writes any more, and takes them again."""
    begin, end = request.param
    return lambda: redis.command(*begin.split()), lambda: redis.command(*end.split())


def test_a_redis_that_refuses_writes_is_read_and_done_without(fleet, redis, openai_api, refusal):
    begin, end = refusal
    a, b = fleet()
    made = cached(a)[1]
    wait_until_shared(b)
    begin()
    with pytest.raises(RedisError):
        redis.command("SET", "x", "y")
    assert cached(b) == ("HIT", made)
    assert [cached(gateway, "another")[0] for gateway in (a, b, a)] == ["MISS", "MISS", "HIT"]
    answer = with_key(a, "order-1")
    assert answer.status_code == 200 and pays_again(answer)
    eventually(lambda: metric(a, "imagegate_redis_errors_total", operation="cache_write") >= 1, what="an error")
    assert metric(a, "imagegate_redis_errors_total", operation="idempotency") >= 1
    end()
    share(a, b)
    assert not pays_again(with_key(b, "order-2"))


def test_a_key_that_was_answered_is_replayed_while_redis_refuses_writes(fleet, openai_api, refusal):
    begin, _ = refusal
    a, b = fleet()
    first = with_key(a, "order-1")
    begin()
    again = with_key(b, "order-1")
    assert len(openai_api.calls) == 1
    assert images(again) == images(first)


def test_a_redis_that_refuses_writes_is_said_once(fleet, redis, refusal):
    begin, end = refusal
    a, _ = fleet()

    def warnings_of_redis(gateway):
        return [event for event in gateway.front.events if event["level"] == "WARN" and "redis" in json.dumps(event)]

    for outage in (1, 2):
        begin()
        for number in range(3):
            assert pays_again(with_key(a, f"order-{outage}-{number}"))
        eventually(lambda: len(warnings_of_redis(a)) == outage, 3, "a line in the log")
        end()
        eventually(lambda: not pays_again(with_key(a, os.urandom(4).hex())), what="the end of it")


def test_with_a_wrong_password_routers_work_alone_and_say_so(fleet, redis, openai_api):
    a, b = fleet(url=redis.url(password="pw-of-another-redis"))
    answers = [with_key(gateway, "order-1") for gateway in (a, b)]
    assert all(map(pays_again, answers)) and len(openai_api.calls) == 2
    assert [cached(gateway)[0] for gateway in (a, b)] == ["MISS", "MISS"]
    wait_until_down(a, b)
    for gateway in (a, b):
        eventually(lambda: logged(gateway, "redis is away") == 1, what="the outage in the log")
        assert metric(gateway, "imagegate_redis_errors_total", operation="ping") >= 1
        assert "pw-of-another-redis" not in gateway.log


def test_a_password_that_redis_takes_later_is_tried_again(fleet, redis):
    a, b = fleet(url=redis.url(password="pw-of-tomorrow"))
    cached(a)
    redis.command("CONFIG", "SET", "requirepass", "pw-of-tomorrow")
    redis.password = "pw-of-tomorrow"
    eventually(lambda: cached(a, os.urandom(4).hex()) and redis.keys(), what="use of the new password")
    wait_until_up(a, b)
    share(a, b)


@pytest.mark.parametrize("outage", ["kill", "freeze"])
def test_what_another_router_runs_is_not_paid_for_when_redis_goes_away(fleet, redis, openai_api, outage, call):
    a, b = fleet(timeout_ms=400)
    openai_api.script.append(faults.hold())
    first = call(with_key, a, "order-1")
    openai_api.wait_for_calls(1)
    asked = redis.calls("get")
    second = call(with_key, b, "order-1")
    # By its second question the router has the answer to its first.
    eventually(lambda: redis.calls("get") >= asked + 2, what="the second request to wait")
    getattr(redis, outage)()
    second = second.result()
    assert second.status_code == 503
    assert int(second.headers["retry-after"]) >= 1
    assert openai_error(second)["message"]
    openai_api.release()
    first = first.result()
    assert first.status_code == 200 and pays_again(first)
    assert len(openai_api.calls) == 1


@pytest.fixture
def network(redis):
    network = Network(redis.port)
    yield network
    network.close()


def test_connections_that_die_without_a_word_are_replaced(fleet, redis, network, stability_api):
    a, b = fleet(url=redis.url(port=network.port))
    share(a, b)
    network.lose_connections()

    def is_shared():
        # What was written to a connection that had died is lost; what is made later is not.
        prompt = f"shared {os.urandom(4).hex()}"
        made = cached(a, prompt)[1]
        try:
            wait_until_shared(b, prompt, 1)
        except AssertionError:
            return False
        return cached(b, prompt) == ("HIT", made)

    eventually(is_shared, 20, "sharing over new connections")


def test_an_idle_connection_that_dies_without_a_word_is_replaced_to_hear_hints(fleet, redis, network, stability_api):
    a, b = fleet(url=redis.url(port=network.port))
    share(a, b)
    network.lose_listeners()
    stability_api.always = faults.status(429, retry_after="30")

    def is_told():
        # Each is another pause and another hint: one that was lost is not told again.
        a.post(body=BODY, headers=routed(STABILITY))
        return explained(b, fallback(STABILITY, OPENAI))[0]["reason"] == "rate_limited"

    eventually(is_told, 10, "a hint")


# What must not be seen.


def test_the_password_of_redis_is_nowhere(fleet, redis, openai_api):
    a, b = fleet(env={"RUST_LOG": "debug"})
    share(a, b)
    answers = [with_key(a, "order-1")]
    redis.kill()
    wait_until_down(a, b)
    answers += [with_key(gateway, f"order-{number}") for number, gateway in enumerate((a, b, a))]
    redis.start()
    wait_until_up(a, b)
    shown = [requests.get(gateway.admin + "/metrics", timeout=5).text for gateway in (a, b)]
    shown += [answer.text + json.dumps(dict(answer.headers)) for answer in answers]
    for gateway in (a, b):
        gateway.front.terminate()
        assert gateway.front.wait() == 0
        shown.append(gateway.log)
    assert "redis is away" in a.log and '"operation":"ping"' in a.log
    assert not [text for text in shown if redis.password in text]


WRONG_URLS = {
    "another protocol": "http://:{password}@localhost:6379/0",
    "no protocol": ":{password}@localhost:6379",
    "a port that is none": "redis://:{password}@localhost:notaport/0",
    "a port too large": "redis://:{password}@localhost:99999/0",
    "a database that is none": "redis://:{password}@localhost:6379/first",
    "no host": "redis://",
}


@pytest.mark.parametrize("url", WRONG_URLS.values(), ids=WRONG_URLS.keys())
def test_a_wrong_address_is_refused_by_check_without_showing_it(tmp_path, stability_api, openai_api, url):
    password = "hunter2-0123456789"
    config = founding_config(stability_api, openai_api, data_dir=str(tmp_path / "data"))
    file = tmp_path / "imagegate.yaml"
    file.write_text(yaml.safe_dump({**config, "redis": {"url": {"env": "REDIS_URL"}}}))
    env = {**secrets_of(stability_api, openai_api), "REDIS_URL": url.format(password=password)}
    for command in (["check", file], ["serve", "--config", file]):
        finished = run(command, tmp_path, env, timeout=20)
        shown = finished.stdout + finished.stderr
        assert finished.returncode != 0, f"{command[0]} takes it"
        assert "redis.url" in shown and "redis://HOST:PORT/DB" in shown
        assert password not in shown


def test_check_names_every_problem_of_the_redis_settings(tmp_path, stability_api, openai_api):
    config = founding_config(stability_api, openai_api)
    file = tmp_path / "imagegate.yaml"
    settings = {"url": "http://:hunter2@localhost", "prefix": "two words", "timeout_ms": 0, "adress": "x"}
    file.write_text(yaml.safe_dump({**config, "redis": settings}))
    finished = run(["check", file], tmp_path, secrets_of(stability_api, openai_api))
    shown = finished.stdout + finished.stderr
    assert finished.returncode != 0
    for field in ("redis.url", "redis.prefix", "redis.timeout_ms", "redis.adress"):
        assert field in shown
    assert "hunter2" not in shown
    file.write_text(yaml.safe_dump({**config, "redis": {"prefix": "x"}}))
    assert "redis.url" in run(["check", file], tmp_path, secrets_of(stability_api, openai_api)).stderr


# Many at once.


def test_forty_requests_with_ten_keys_at_two_routers_are_ten_calls(fleet, openai_api, call):
    gateways = fleet()
    asked = [(n % 10, call(with_key, gateways[n // 2 % 2], f"order-{n % 10}")) for n in range(40)]
    answers = [(key, answer.result()) for key, answer in asked]
    assert all(answer.status_code == 200 for _, answer in answers)
    assert len(openai_api.calls) == 10
    for key in range(10):
        of_key = [answer.headers for other, answer in answers if other == key]
        (first,) = [headers["x-imagegate-request-id"] for headers in of_key if "x-imagegate-replay-of" not in headers]
        assert len(of_key) == 4
        assert {headers.get("x-imagegate-replay-of", first) for headers in of_key} == {first}


def test_many_requests_for_few_answers_make_each_at_most_once_per_router(fleet, redis, openai_api, call):
    gateways = fleet()
    asked = [call(cached, gateways[n // 5 % 2], f"picture {n % 5}") for n in range(40)]
    assert all(answer.result()[1] for answer in asked)
    assert 5 <= len(openai_api.calls) <= 10
    paid = len(openai_api.calls)
    eventually(lambda: len(redis.keys("imagegate:cache:*")) == 5, what="the answers in Redis")
    assert {cached(gateway, f"picture {n}")[0] for gateway in gateways for n in range(5)} == {"HIT"}
    assert len(openai_api.calls) == paid


def test_requests_with_keys_come_through_while_redis_restarts(fleet, redis, openai_api, call):
    gateways = fleet(timeout_ms=300)
    answers = []
    for round in range(4):
        asked = [call(with_key, gateways[n % 2], f"order-{round}-{n}") for n in range(10)]
        if round == 1:
            redis.kill()
        if round == 2:
            redis.start()
        answers += [answer.result() for answer in asked]
    assert [answer.status_code for answer in answers] == [200] * 40
    assert len(openai_api.calls) == 40
    wait_until_up(*gateways)
    for round in range(4):
        again = [with_key(gateways[n % 2], f"order-{round}-{n}") for n in range(10)]
        assert all(answer.headers.get("x-imagegate-replay-of") for answer in again)
    assert len(openai_api.calls) == 40
