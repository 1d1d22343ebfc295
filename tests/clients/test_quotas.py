"""Rate limits and budgets in real processes: several routers, restarts, and what clients are told."""

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
import requests
from portkey_ai import Portkey

from emulators import faults
from gateway import OPS_KEY, TEAM_KEY, eventually, founding_config, run
from grpc_client import Admin

# dall-e-3 at 1024x1024 costs four cents.
PRICE = 0.04
BODY = {"prompt": "a lighthouse", "size": "1024x1024", "model": "dall-e-3"}


def budget(usd, **more):
    return {"type": "cost", "credit_limit": usd, **more}


def limited(config, caller=None, key=None):
    """The same config with limits of the caller `team-a`, and of OpenAI's virtual key."""
    config["api_keys"][0].update(caller or {})
    config["virtual_keys"]["open-ai-virtual-key"].update(key or {})
    return config


def post(gateway, key=TEAM_KEY, **headers):
    return gateway.post(body=BODY, key=key, headers={name.replace("_", "-"): text for name, text in headers.items()})


def statuses(gateways, count):
    """Of so many requests at once, in turn at each gateway."""
    with ThreadPoolExecutor(count) as pool:
        answers = pool.map(lambda i: post(gateways[i % len(gateways)]), range(count))
        return sorted(answer.status_code for answer in answers)


def quotas(gateway):
    found = Admin(gateway).ask("ListQuotas").quotas
    return {(quota.subject, quota.name): quota for quota in found}


def spent(gateway, subject="api_key", name="team-a"):
    return round(quotas(gateway)[subject, name].usd, 6)


def logged(gateway, beginning):
    messages = (event.get("fields", {}).get("message", "") for event in gateway.front.events)
    return sum(message.startswith(beginning) for message in messages)


@pytest.fixture
def two(serve, redis, tmp_path, stability_api, openai_api):
    """Two routers and one Redis, with limits: `a, b = two(caller=...)`."""

    def two(**limits):
        config = limited(founding_config(stability_api, openai_api, default_config="pc-openai"), **limits)
        config["redis"] = {"url": {"env": "REDIS_URL"}, "timeout_ms": 1000}
        env = {"REDIS_URL": redis.url()}
        return [serve({**config, "data_dir": str(tmp_path / name)}, env, name) for name in ("a", "b")]

    return two


@pytest.fixture
def one(serve, stability_api, openai_api):
    """A router with a store of its own, and limits. The same again is a restart."""

    def one(**limits):
        return serve(limited(founding_config(stability_api, openai_api, default_config="pc-openai"), **limits))

    return one


# Several routers.


@pytest.mark.parametrize("whose", ["caller", "key"])
def test_a_hundred_requests_at_two_routers_spend_what_there_is_and_no_more(two, openai_api, whose):
    a, b = two(**{whose: {"usage_limits": budget(10 * PRICE, periodic_reset="monthly")}})
    assert statuses([a, b], 100) == [200] * 10 + [412] * 90
    assert len(openai_api.calls) == 10


def test_requests_at_two_routers_are_counted_together(two, openai_api):
    a, b = two(caller={"rate_limits": [{"type": "requests", "unit": "rpw", "value": 12}]})
    assert statuses([a, b], 40) == [200] * 12 + [429] * 28
    assert len(openai_api.calls) == 12


def test_what_a_router_has_not_spent_is_soon_free_at_the_other(two, openai_api):
    a, b = two(caller={"usage_limits": budget(PRICE)})
    openai_api.script.append(faults.status(400))
    assert post(a).status_code == 400
    eventually(lambda: post(b).status_code == 200, 2, "the money to be free")
    eventually(lambda: post(a).status_code == 412, 2, "the other's spending")
    assert len(openai_api.calls) == 2


def test_without_redis_each_router_keeps_the_limit_and_with_it_again_both_do(two, redis, openai_api):
    a, b = two(caller={"usage_limits": budget(10 * PRICE)})
    assert statuses([a, b], 6) == [200] * 6
    eventually(lambda: spent(a) == spent(b) == round(6 * PRICE, 6), 3, "what each has heard of the other")
    redis.kill()
    # What each of them knows of: six were made, so each has four left.
    outcome = statuses([a, b], 40)
    assert 4 <= outcome.count(200) <= 8 and outcome.count(412) == 40 - outcome.count(200)
    redis.start()
    eventually(lambda: logged(a, "redis is back") and logged(b, "redis is back"), 15, "Redis to be noticed")
    # It has forgotten everything, the routers have not.
    assert statuses([a, b], 10) == [412] * 10
    assert len(openai_api.calls) == 6 + outcome.count(200)


def test_redis_learns_neither_names_nor_values(two, redis):
    a, _ = two(caller={"usage_limits": budget(1)})
    assert post(a).status_code == 200
    keys = eventually(lambda: redis.keys("imagegate:quota:*"), what="the counter")
    assert all(re.fullmatch(r"imagegate:quota:[0-9a-f]{64}", key) for key in keys)


# Restarts.


def test_what_was_spent_stays_spent_after_a_crash(one, openai_api):
    limits = {"usage_limits": budget(5 * PRICE, periodic_reset="weekly"), "rate_limits": [{"unit": "rpw", "value": 7}]}
    gateway = one(caller=limits)
    assert statuses([gateway], 3) == [200] * 3
    # Longer than log.flush_ms.
    time.sleep(1.2)
    gateway.back.kill()
    gateway = one(caller=limits)
    assert spent(gateway) == 3 * PRICE
    assert statuses([gateway], 10) == [200] * 2 + [412] * 2 + [429] * 6
    gateway.back.stop()
    assert statuses([one(caller=limits)], 2) == [429] * 2
    assert len(openai_api.calls) == 5


def test_routers_with_one_database_hear_of_each_other_without_redis(serve, postgres, stability_api, openai_api, tmp_path):
    config = founding_config(stability_api, openai_api, default_config="pc-openai")
    config = limited(config, caller={"usage_limits": budget(3 * PRICE, periodic_reset="daily")})
    config |= {"store": {"url": {"env": "STORE_URL"}}, "vault": {"key": "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVoxMjM0NTY="}}
    env = {"STORE_URL": postgres.url()}
    a, b = (serve({**config, "data_dir": str(tmp_path / name)}, env, name) for name in ("a", "b"))
    assert [post(a).status_code for _ in range(2)] == [200] * 2
    # A router hears of the others when it writes what it has used itself.
    kept = "SELECT COALESCE(SUM(amount), 0) FROM counters"
    eventually(lambda: postgres.sql(kept) == f"{2 * PRICE * 1e9:.0f}", 20, "what the first one has used")
    assert post(b).status_code == 200
    eventually(lambda: spent(b) == 3 * PRICE, 20, "the spending of the other")
    assert post(b).status_code == 412
    assert len(openai_api.calls) == 3


# What clients are told.


def test_sdks_see_the_usual_errors(one):
    gateway = one(caller={"usage_limits": budget(PRICE), "rate_limits": [{"unit": "rpw", "value": 2}]})
    client = openai.OpenAI(api_key=TEAM_KEY, base_url=gateway.base_url, max_retries=0)
    client.images.generate(**BODY)
    with pytest.raises(openai.APIStatusError) as spent_error:
        client.images.generate(**BODY)
    error = spent_error.value
    assert (error.status_code, error.code, error.type) == (412, "budget_exceeded", "insufficient_quota")
    assert error.body["message"] == 'the budget of API key "team-a" is spent: $0.04 in all; it does not reset'
    with pytest.raises(openai.RateLimitError) as limit_error:
        client.images.generate(**BODY)
    error = limit_error.value
    assert error.code == "rate_limit_exceeded"
    said = r'the rate limit of API key "team-a" is reached: 2 requests a week; it resets at 20\d\d-\d\d-\d\dT00:00:00Z .*'
    assert re.fullmatch(said, error.body["message"])
    assert 0 < int(error.response.headers["retry-after"]) <= 7 * 86400


def test_refusals_are_in_the_log_and_in_the_metrics(one):
    gateway = one(caller={"usage_limits": budget(2 * PRICE, alert_threshold=PRICE)})
    for status in (200, 200, 412):
        assert post(gateway).status_code == status
    admin = Admin(gateway)
    records = eventually(lambda: (found := admin.requests()) and len(found) == 3 and found, what="the log")
    assert [(record.outcome, record.status) for record in records][0] == ("quota_exhausted", 412)
    assert logged(gateway, "a budget has reached its alert threshold") == 1
    metrics = requests.get(gateway.admin + "/metrics", timeout=5).text
    assert 'imagegate_over_quota_total{subject="api_key",limit="budget"} 1' in metrics
    used = re.search(r"^imagegate_budget_used_ratio\{(.*)\} (.*)$", metrics, re.MULTILINE)
    assert float(used[2]) == 1 and 'name="team-a"' in used[1]


def test_a_reload_changes_limits_and_forgets_nothing(one, openai_api, stability_api):
    gateway = one(caller={"usage_limits": budget(PRICE)})
    assert [post(gateway).status_code for _ in range(2)] == [200, 412]
    config = founding_config(stability_api, openai_api, default_config="pc-openai")
    config = limited(config, caller={"usage_limits": budget(2 * PRICE)})
    gateway.write_config({**config, "data_dir": str(gateway.config_file.parent / "data")})
    eventually(lambda: post(gateway).status_code == 200, what="the higher limit")
    assert post(gateway).status_code == 412


# Management.


def test_the_reference_sdk_limits_a_virtual_key(founding, openai_api):
    client = Portkey(base_url=founding.base_url, api_key=OPS_KEY)
    client.virtual_keys.create(
        name="Limited",
        provider="openai",
        key=openai_api.key,
        slug="limited",
        base_url=openai_api.base_url,
        usage_limits={"type": "cost", "credit_limit": 2 * PRICE, "periodic_reset": "monthly"},
        rate_limits=[{"type": "requests", "unit": "rpm", "value": 100}],
    )
    config = json.dumps({"virtual_key": "limited"})
    outcomes = [post(founding, key=OPS_KEY, x_portkey_config=config).status_code for _ in range(3)]
    assert outcomes == [200, 200, 412]
    url, auth = founding.base_url + "/virtual-keys/limited", {"x-portkey-api-key": OPS_KEY}
    shown = requests.get(url, headers=auth, timeout=5).json()["data"]
    assert (shown["status"], shown["usage_limits"]["credit_limit"]) == ("exhausted", 2 * PRICE)
    assert shown["rate_limits"] == [{"type": "requests", "unit": "rpm", "value": 100}]
    assert shown["usage_limits"]["next_usage_reset_at"].endswith("-01T00:00:00Z")

    changed = requests.put(url, headers=auth, json={"usage_limits": budget(3 * PRICE)}, timeout=5)
    assert changed.status_code == 200
    # Another period is another counter; the rate limit stays.
    shown = requests.get(url, headers=auth, timeout=5).json()["data"]
    assert (shown["status"], shown["usage_limits"]["next_usage_reset_at"]) == ("active", None)
    assert shown["rate_limits"]
    assert post(founding, key=OPS_KEY, x_portkey_config=config).status_code == 200


def test_the_commands_limit_keys_and_show_what_is_used(founding, openai_api, tmp_path):
    def command(*args, code=0, env=None):
        env = {"IMAGEGATE_ROUTER": "http://" + founding.grpc, "IMAGEGATE_API_KEY": OPS_KEY, **(env or {})}
        finished = run(args, tmp_path, env)
        assert finished.returncode == code, finished.stdout + finished.stderr
        return finished.stdout if code == 0 else finished.stderr

    command("keys", "add", "mine", "--provider", "openai", "--base-url", openai_api.base_url, "--rate", "rpd=5",
            env={"IMAGEGATE_PROVIDER_KEY": openai_api.key})  # fmt: skip
    assert "5 rpd" in command("keys", "show", "mine")
    assert command("keys", "limit", "mine", "--budget", "monthly=1:0.5") == "mine: is limited\n"
    assert post(founding, x_portkey_config=json.dumps({"virtual_key": "mine"})).status_code == 200
    heading, *rows = command("quotas").splitlines()
    assert heading.split() == ["OF", "NAME", "LIMIT", "USED", "IN", "FLIGHT", "RESETS"]
    assert re.match(r"virtual key +mine +\$1\.0000 monthly +\$0\.0400 +\$0\.0000 +20", rows[0]), rows
    shown = json.loads(command("quotas", "--json"))
    assert (shown[0]["usd"], shown[0]["budget"]["alert_usd"]) == (PRICE, 0.5)
    assert command("keys", "limit", "mine") == "mine: has no limits\n"
    assert json.loads(command("quotas", "--json")) == []
    wrong = command("keys", "limit", "mine", "--rate", "rpm=0", code=1)
    assert "rate_limits.0.value" in wrong and "0 is not allowed; allowed: a whole number from 1" in wrong

    key = command("keys", "api", "create", "app", "--scope", "generate", "--rate", "rpw=1").strip()
    def app():
        return post(founding, key=key, x_portkey_config="pc-openai").status_code

    assert [app(), app()] == [200, 429]
    row = next(row for row in command("keys", "api", "list").splitlines() if " app " in row)
    assert "1 rpw" in row
    assert command("keys", "api", "limit", row.split()[0]) == f"{row.split()[0]} (app): has no limits\n"
    assert app() == 200


def test_a_tenant_sees_its_own_limits_only(serve, stability_api, openai_api):
    config = founding_config(stability_api, openai_api, default_config="pc-openai")
    config["api_keys"].append({"name": "red", "key": "ig-red", "tenant": "red", "scopes": ["generate", "logs"]})
    config["quotas"] = [
        {"tenant": "red", "rate_limits": [{"unit": "rpw", "value": 9}]},
        {"metadata": "_user", "rate_limits": [{"unit": "rpw", "value": 1}]},
    ]
    gateway = serve(config)
    for key, user, status in [("ig-red", "al", 200), (TEAM_KEY, "al", 200), ("ig-red", "al", 429), ("ig-red", "bo", 200)]:
        assert post(gateway, key=key, x_portkey_metadata=json.dumps({"_user": user})).status_code == status
    seen = {
        (quota.subject, quota.name): quota.requests for quota in Admin(gateway, "ig-red").ask("ListQuotas").quotas
    }
    # What one limit refuses no other counts.
    assert seen == {("tenant", "red"): 2, ("metadata", "_user=al"): 1, ("metadata", "_user=bo"): 1}
    assert set(quotas(gateway)) == {("metadata", "_user=al")}
