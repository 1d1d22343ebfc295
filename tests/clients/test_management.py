"""What a gateway remembers, managed with the reference's SDK, and the founding program with what it made."""

import csv
import io
import json

import openai
import pytest
import requests
from portkey_ai import Portkey, createHeaders
from portkey_ai.api_resources.exceptions import BadRequestError, NotFoundError

from gateway import OPS_KEY, TEAM_KEY, eventually, founding_config, openai_error

FIRST = {"virtual_key": "stability", "override_params": {"model": "stable-diffusion-v1-6"}}
SECOND = {"virtual_key": "openai", "override_params": {"model": "dall-e-3"}}
FALLBACK = {"strategy": {"mode": "fallback"}, "targets": [FIRST, SECOND]}


@pytest.fixture
def gateway(serve, stability_api, openai_api):
    """A gateway whose file has callers and nothing that they could call."""
    config = founding_config(stability_api, openai_api)
    del config["virtual_keys"], config["configs"]
    return serve({**config, "log": {"flush_ms": 20}})


@pytest.fixture
def portkey(gateway):
    return Portkey(base_url=gateway.base_url, api_key=OPS_KEY)


def call(gateway, method, path, body=None, key=OPS_KEY):
    """A call without any SDK."""
    return requests.request(
        method, gateway.base_url + path, json=body, headers={"x-portkey-api-key": key}, timeout=10
    )


def make_keys(portkey, stability_api, openai_api):
    """The virtual keys that `FALLBACK` names."""
    for name, provider, api in [("Stability", "stability-ai", stability_api), ("OpenAI", "openai", openai_api)]:
        portkey.virtual_keys.create(name=name, provider=provider, key=api.key, base_url=api.base_url)


def generate(gateway, config, key=TEAM_KEY, trace_id=None, metadata=None):
    """The guide's request, with a config by its slug."""
    headers = createHeaders(api_key=key, config=config, trace_id=trace_id, metadata=metadata)
    client = openai.OpenAI(api_key="REDUNDANT", base_url=gateway.base_url, default_headers=headers, max_retries=0)
    raw = client.images.with_raw_response.generate(
        model="stable-diffusion-v1-6", prompt="Lucy in the sky", n=1, size="1024x1024", response_format="b64_json"
    )
    return raw.headers, raw.parse()


def test_virtual_keys_and_configs_live_and_the_founding_program_runs_with_them(
    gateway, portkey, stability_api, openai_api, decode
):
    make_keys(portkey, stability_api, openai_api)
    listed = portkey.virtual_keys.list()
    assert listed.total == 2
    assert {key["slug"] for key in listed.data} == {"stability", "openai"}
    shown = portkey.virtual_keys.retrieve(slug="stability")
    assert shown.success and shown.data["provider"] == "stability-ai" and shown.data["status"] == "active"
    assert stability_api.key not in json.dumps(listed.data) + json.dumps(shown.data)

    saved = portkey.configs.create(name="Hero pictures", config=FALLBACK)
    assert saved.slug.startswith("pc-hero-pictures-") and saved.id and saved.version_id
    assert saved.data["slug"] == saved.slug
    got = portkey.configs.retrieve(slug=saved.slug)
    assert got.name == "Hero pictures" and got.config == FALLBACK and got.is_default == 0
    assert [config["slug"] for config in portkey.configs.list().data] == [saved.slug]

    headers, answer = generate(gateway, saved.slug)
    assert decode(answer.data[0].b64_json).size == (1024, 1024)
    assert headers["x-portkey-last-used-option-index"] == "config.targets[0]"

    updated = portkey.configs.update(slug=saved.slug, config={**FALLBACK, "targets": [SECOND, FIRST]})
    assert updated.version_id != saved.version_id
    headers, _ = generate(gateway, saved.slug)
    assert headers["x-portkey-provider"] == "openai"
    versions = call(gateway, "GET", f"/configs/{saved.slug}/versions").json()
    assert [version["version_id"] for version in versions["data"]] == [updated.version_id, saved.version_id]
    assert versions["data"][1]["config"] == FALLBACK

    back = call(gateway, "PUT", f"/configs/{saved.slug}", {"rollback_to": 1}).json()
    assert back["data"]["version"] == 3
    headers, _ = generate(gateway, saved.slug)
    assert headers["x-portkey-provider"] == "stability-ai"

    assert portkey.configs.delete(slug=saved.slug).success
    with pytest.raises(openai.APIStatusError) as failed:
        generate(gateway, saved.slug)
    assert openai_error(failed.value.response)["code"] == "config_not_found"
    assert portkey.virtual_keys.delete(slug="stability").success
    assert [key["slug"] for key in portkey.virtual_keys.list().data] == ["openai"]


def test_another_credential_is_used_at_once(gateway, portkey, stability_api, openai_api, decode):
    portkey.virtual_keys.create(name="OpenAI", provider="openai", key="wrong", base_url=openai_api.base_url)
    saved = portkey.configs.create(name="one", config=json.dumps(SECOND))
    with pytest.raises(openai.APIStatusError):
        generate(gateway, saved.slug)
    portkey.virtual_keys.update(slug="openai", key=openai_api.key)
    _, answer = generate(gateway, saved.slug)
    assert decode(answer.data[0].b64_json)
    portkey.virtual_keys.update(slug="openai", status="disabled")
    assert portkey.virtual_keys.retrieve(slug="openai").data["status"] == "disabled"
    with pytest.raises(openai.APIStatusError):
        generate(gateway, saved.slug)


def test_providers_are_virtual_keys(gateway, portkey, openai_api):
    made = portkey.providers.create(
        name="OpenAI", integration_id=None, slug="oa", provider="openai", key=openai_api.key, note="ours"
    )
    assert made.slug == "oa" and made.id
    got = portkey.providers.retrieve(slug="oa")
    assert (got.name, got.note) == ("OpenAI", "ours")
    assert [provider.slug for provider in portkey.providers.list().data] == ["oa"]
    assert portkey.providers.update(slug="oa", name="Other").slug == "oa"
    assert portkey.virtual_keys.retrieve(slug="oa").data["name"] == "Other"
    with pytest.raises(BadRequestError, match="integration_id"):
        portkey.providers.create(name="x", integration_id="openai-prod")
    assert portkey.providers.delete(slug="oa").success


def test_pages_of_a_list(gateway, portkey, openai_api):
    for number in range(5):
        portkey.virtual_keys.create(name=f"key {number}", provider="openai", key=openai_api.key)
    seen = []
    for page in range(3):
        listed = call(gateway, "GET", f"/virtual-keys?current_page={page}&page_size=2").json()
        assert listed["total"] == 5
        seen += [key["slug"] for key in listed["data"]]
    assert sorted(seen) == [f"key-{number}" for number in range(5)]


def test_what_a_virtual_key_lacks_is_said_for_whoever_calls(gateway):
    lacking = {"name": "n", "provider": "bedrock"}
    error = openai_error(call(gateway, "POST", "/virtual-keys", lacking))["message"]
    assert "path: key, message: Required: the key that bedrock has given you, or the settings aws_access_key_id and" in error
    assert "env" not in error and "held_by" not in error
    misspelt = {"name": "n", "provider": "openai", "key": "k", "openai_projct": "p"}
    error = openai_error(call(gateway, "POST", "/virtual-keys", misspelt))["message"]
    assert 'openai has no such setting; did you mean "openai_project"?' in error


def test_api_keys_are_made_used_changed_rotated_and_deleted(gateway, portkey, stability_api, openai_api, decode):
    make_keys(portkey, stability_api, openai_api)
    saved = portkey.configs.create(name="hero", config=FALLBACK)
    made = portkey.api_keys.create(
        type="organisation",
        sub_type="service",
        name="batch",
        scopes=["completions.write"],
        defaults={"config_id": saved.slug, "metadata": {"team": "batch"}},
    )
    assert made.key.startswith("ig_") and made.id
    _, answer = generate(gateway, None, key=made.key)
    assert decode(answer.data[0].b64_json)
    assert call(gateway, "GET", "/configs", key=made.key).status_code == 403

    got = portkey.api_keys.retrieve(id=made.id)
    assert (got.name, got.scopes, got.status) == ("batch", ["generate"], "active")
    assert got.defaults["config_id"] == saved.slug
    listed = portkey.api_keys.list()
    assert [key["id"] for key in listed.data] == [made.id]
    assert made.key not in json.dumps(listed.data)

    portkey.api_keys.update(id=made.id, scopes=["generate", "configs"])
    assert call(gateway, "GET", "/configs", key=made.key).status_code == 200
    rotated = call(gateway, "POST", f"/api-keys/{made.id}/rotate", {"overlap_s": 0}).json()
    assert rotated["data"]["key"] != made.key
    assert call(gateway, "GET", "/configs", key=rotated["key"]).status_code == 200
    assert call(gateway, "GET", "/configs", key=made.key).status_code == 401
    assert portkey.api_keys.delete(id=made.id).success
    assert call(gateway, "GET", "/configs", key=rotated["key"]).status_code == 401


def test_requests_are_found_summed_up_exported_and_judged(gateway, portkey, stability_api, openai_api):
    make_keys(portkey, stability_api, openai_api)
    slug = portkey.configs.create(name="hero", config=FALLBACK).slug
    ids = []
    for trace in ("one", "two", "three"):
        headers, _ = generate(gateway, slug, trace_id=trace, metadata={"_user": "mia", "trace": trace})
        ids.append(headers["x-imagegate-request-id"])
    logs = eventually(
        lambda: (found := call(gateway, "GET", "/logs").json()) and len(found["data"]) == 3 and found, what="the log"
    )
    assert [log["id"] for log in logs["data"]] == ids[::-1]
    newest = logs["data"][0]
    assert (newest["trace_id"], newest["config"], newest["ai_org"]) == ("three", slug, "stability-ai")
    assert newest["is_success"] and newest["response_status_code"] == 200 and not newest["fallback"]

    def search(query):
        return [log["trace_id"] for log in call(gateway, "GET", f"/logs?{query}").json()["data"]]

    assert search("trace_id=two") == ["two"]
    assert search('metadata={"trace":"one"}') == ["one"]
    assert search(f"configs={slug}&ai_org_model=stability-ai__stable-diffusion-v1-6") == ["three", "two", "one"]
    assert search("success=false") == [] and search("time_of_generation_max=2020-01-01") == []
    first = call(gateway, "GET", "/logs?page_size=2").json()
    assert search(f"page_size=2&page_token={first['next_page_token']}") == ["one"]

    given = portkey.feedback.create(trace_id="two", value=5, metadata={"by": "mia"})
    assert given.status == "success" and len(given.feedback_ids) == 1
    portkey.feedback.update(feedback_id=given.feedback_ids[0], value=-3)
    assert len(portkey.feedback.bulk_create(feedbacks=[{"trace_id": "one", "value": 1}]).feedback_ids) == 1
    one = call(gateway, "GET", f"/logs/{ids[1]}").json()["data"]
    assert [feedback["value"] for feedback in one["feedback"]] == [-3]
    assert one["report"]["attempts"][0]["target"] == "config.targets[0]"
    assert "Lucy" not in json.dumps(one), "prompts are not kept"

    lines = call(gateway, "GET", "/logs/export?format=ndjson").text.splitlines()
    assert [json.loads(line)["trace_id"] for line in lines] == ["three", "two", "one"]
    table = list(csv.DictReader(io.StringIO(call(gateway, "GET", "/logs/export?format=csv&trace_id=two").text)))
    assert [row["id"] for row in table] == [ids[1]]
    assert json.loads(table[0]["metadata"])["_user"] == "mia"

    between = {"time_of_generation_min": "2020-01-01T00:00:00Z", "time_of_generation_max": "2099-01-01T00:00:00Z"}
    users = portkey.analytics.groups.users(**between)
    assert [(user["user"], user["requests"]) for user in users.data] == [("mia", 3)]
    assert portkey.analytics.groups.ai_models(**between).data[0]["ai_model"] == "stable-diffusion-v1-6"
    assert portkey.analytics.groups.metadata(metadata_key="trace", **between).total == 3
    graph = portkey.analytics.graphs.requests(**between)
    assert graph.summary["total"] == 3
    assert sum(point["total"] for point in graph.data_points) == 3
    assert all(point["timestamp"].endswith("Z") for point in graph.data_points)
    assert portkey.analytics.summary.cache(**between).data["requests"] == 3


REFUSALS = {
    "an unknown field": ("POST", "/configs", {"name": "x", "confg": {}, "config": SECOND}, 400, 'did you mean "config"?'),
    "an invalid config": ("POST", "/configs", {"name": "x", "config": {"targets": []}}, 400, "targets"),
    "a workspace": ("POST", "/configs", {"name": "x", "config": {}, "workspace_id": "w"}, 400, "workspace_id"),
    "a status": ("PUT", "/configs/pc-x", {"status": "archived"}, 400, "status"),
    "a budget of tokens": (
        "POST",
        "/virtual-keys",
        {"name": "x", "provider": "openai", "key": "k", "usage_limits": {"type": "tokens", "credit_limit": 1}},
        400,
        "usage_limits.type",
    ),
    "a wrong unit": ("PUT", "/virtual-keys/x", {"rate_limits": [{"unit": "rpy", "value": 1}]}, 400, "rate_limits.0.unit"),
    "an unknown provider": ("POST", "/virtual-keys", {"name": "x", "provider": "nobody", "key": "k"}, 400, "nobody"),
    "an unknown scope": ("POST", "/api-keys", {"name": "x", "scopes": ["configs.read"]}, 400, "configs.read"),
    "a user": ("POST", "/api-keys/workspace/user", {"name": "x", "user_id": "u"}, 400, "user_id"),
    "no such config": ("GET", "/configs/pc-none", None, 404, "pc-none"),
    "no such virtual key": ("GET", "/virtual-keys/none", None, 404, "none"),
    "no such request": ("GET", "/logs/none", None, 404, "none"),
    "no such graph": ("GET", "/analytics/graphs/nonsense", None, 404, "requests/rescued"),
    "no such parameter": ("GET", "/logs?providers=openai", None, 400, 'did you mean "provider"?'),
    "an opinion out of range": ("POST", "/feedback", {"trace_id": "t", "value": 11}, 400, "-10 to 10"),
    "an export job": ("POST", "/logs/exports", {"filters": {}}, 404, "/v1/logs/export"),
    "an import": ("POST", "/logs", {"request": {}}, 405, "method"),
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_what_cannot_be_done_is_refused_by_name(gateway, refusal):
    method, path, body, status, words = REFUSALS[refusal]
    response = call(gateway, method, path, body)
    assert response.status_code == status, response.text
    assert words in openai_error(response)["message"]


def test_without_a_key_or_a_scope_nothing_is_managed(gateway):
    for key, status in [("wrong", 401), (TEAM_KEY, 403)]:
        for path in ("/configs", "/virtual-keys", "/api-keys", "/logs", "/analytics/groups/users"):
            response = call(gateway, "GET", path, key=key)
            assert response.status_code == status, (path, response.text)
            error = openai_error(response)
            body = response.json()
            assert body["success"] is False and body["data"]["message"] == error["message"]


def test_a_taken_slug_is_a_conflict(gateway, portkey, stability_api, openai_api):
    make_keys(portkey, stability_api, openai_api)
    body = {"name": "x", "slug": "pc-x", "config": SECOND}
    assert call(gateway, "POST", "/configs", body).json()["slug"] == "pc-x"
    assert call(gateway, "POST", "/configs", body).status_code == 409


def test_a_shim_alone_manages_the_router_behind_it(cluster, stability_api, openai_api, decode):
    gateway = cluster({**founding_config(stability_api, openai_api), "log": {"flush_ms": 20}})
    portkey = Portkey(base_url=gateway.base_url, api_key=OPS_KEY)
    saved = portkey.configs.create(name="x", config={**SECOND, "virtual_key": "open-ai-virtual-key"})
    headers, answer = generate(gateway, saved.slug)
    assert decode(answer.data[0].b64_json) and headers["x-portkey-provider"] == "openai"
    with pytest.raises(NotFoundError):
        portkey.configs.retrieve(slug="pc-none")
