"""What a gateway remembers, in SQLite and in PostgreSQL: configs, keys, callers and the log outlive everything."""

import base64
import http.server
import json
import secrets
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
import requests

from emulators import faults
from gateway import OPS_KEY, TEAM_KEY, eventually, founding_config, run
from grpc_client import Admin

# Within this time other routers know of a change, and the log has a request.
SOON = 3
# Within this time a key that has expired by itself is refused.
EXPIRY = 1.5
SMALL = {"prompt": "a red fox", "size": "1024x1024", "response_format": "b64_json"}
ALL_SCOPES = ["generate", "configs", "keys", "logs", "admin"]


class Store:
    """Where a gateway keeps what it remembers."""

    def __init__(self, tmp_path, postgres=None):
        self.postgres = postgres
        self._tmp_path = tmp_path
        self.vault_key = base64.b64encode(secrets.token_bytes(32)).decode()
        self.env = {"VAULT_KEY": self.vault_key} | ({"STORE_URL": postgres.url()} if postgres else {})
        self.config = {"vault": {"key": {"env": "VAULT_KEY"}}}
        if postgres:
            self.config["store"] = {"url": {"env": "STORE_URL"}}

    def raw(self):
        """Every byte that it has written to disk, while it runs."""
        found = self.postgres.files() if self.postgres else []
        data = self._tmp_path / "data"
        assert self.postgres or list(data.glob("imagegate.db*")), list(data.iterdir())
        return found + [path.read_bytes() for path in data.rglob("*") if path.is_file()]


@pytest.fixture(params=["sqlite", "postgres"])
def store(request, tmp_path):
    return Store(tmp_path, request.getfixturevalue("postgres") if request.param == "postgres" else None)


@pytest.fixture
def shared(tmp_path, postgres):
    """A store for several routers."""
    return Store(tmp_path, postgres)


@pytest.fixture
def remembering(serve, stability_api, openai_api):
    """Starts a gateway with a store: `remembering(store)`. The same again is a restart."""

    def remembering(store, env=None, name="imagegate", **more):
        config = founding_config(stability_api, openai_api, **{**store.config, **more})
        return serve(config, {**store.env, **(env or {})}, name)

    return remembering


def image(gateway, config=None, key=TEAM_KEY, headers=None, body=None, **more):
    """A request for an image by a saved config or its text."""
    headers = dict(headers or {})
    if config is not None:
        headers["x-portkey-config"] = config if isinstance(config, str) else json.dumps(config)
    return gateway.post(key=key, headers=headers, body={**SMALL, **(body or {}), **more})


def answered(answer):
    assert answer.status_code == 200, answer.text[:1000]
    return answer


def logged(admin, answer, timeout=SOON):
    """The log's record of an answer, completely."""
    trace = answer if isinstance(answer, str) else answer.headers["x-portkey-trace-id"]
    (found,) = eventually(lambda: admin.requests(trace_id=trace), timeout, f"a record of {trace}")
    return admin.ask("GetRequest", id=found.id).request


def stored_key(admin, emulator, name="open ai", **more):
    """A virtual key for the emulator, stored."""
    more = {"provider": "openai", "key": emulator.key, "base_url": emulator.base_url, **more}
    return admin.ask("CreateVirtualKey", name=name, **more).virtual_key.slug


def saved_config(admin, content, name="hero", **more):
    return admin.ask("CreateConfig", name=name, config_json=json.dumps(content), **more).config.slug


def hero(virtual_key, model="dall-e-3"):
    return {"virtual_key": virtual_key, "override_params": {"model": model}}


# Configs and keys.


def test_configs_and_keys_survive_a_restart(remembering, store, openai_api):
    gateway = remembering(store)
    admin = Admin(gateway)
    virtual_key = stored_key(admin, openai_api, note="for heroes")
    slug = saved_config(admin, hero(virtual_key))
    assert slug.startswith("pc-hero-")
    admin.ask("UpdateConfig", slug=slug, config_json=json.dumps({**hero(virtual_key), "retry": {"attempts": 1}}))
    made = admin.ask("CreateApiKey", name="team b", scopes=["generate"], default_config=slug)
    assert made.key.startswith("ig_") and len(made.key) == 46
    before = [image(gateway, slug), image(gateway, key=made.key)]
    shown = [admin.ask("GetConfig", slug=slug), admin.ask("GetVirtualKey", slug=virtual_key), admin.ask("ListApiKeys")]
    admin.close()
    gateway.back.stop()

    gateway = remembering(store)
    admin = Admin(gateway)
    again = [image(gateway, slug), image(gateway, key=made.key)]
    for answer in before + again:
        assert answered(answer).headers["x-portkey-provider"] == "openai"
    later = [admin.ask("GetConfig", slug=slug), admin.ask("GetVirtualKey", slug=virtual_key), admin.ask("ListApiKeys")]
    assert [one.SerializeToString(deterministic=True) for one in later] == [
        one.SerializeToString(deterministic=True) for one in shown
    ]
    versions = admin.ask("ListConfigVersions", slug=slug).versions
    assert [version.version for version in versions] == [2, 1]
    assert "retry" not in json.loads(versions[1].config_json)


def test_an_older_version_comes_back_as_a_new_one(remembering, store):
    gateway = remembering(store)
    admin = Admin(gateway)
    slug = saved_config(admin, hero("open-ai-virtual-key"))
    admin.ask("UpdateConfig", slug=slug, config_json=json.dumps({"virtual_key": "stability-ai-virtualkey"}))
    assert answered(image(gateway, slug)).headers["x-portkey-provider"] == "stability-ai"
    assert admin.ask("UpdateConfig", slug=slug, rollback_to=1).config.version == 3
    assert answered(image(gateway, slug)).headers["x-portkey-provider"] == "openai"
    assert json.loads(admin.ask("GetConfig", slug=slug, version=2).config.config_json)["virtual_key"].startswith("stab")


def test_what_is_wrong_is_refused_and_not_stored(remembering, store, openai_api):
    admin = Admin(remembering(store))
    broken = {"strategy": {"mode": "falback"}, "targets": [{"virtual_key": "nobody"}]}
    assert admin.refusal("CreateConfig", name="x", config_json=json.dumps(broken))[0] == 400
    assert admin.refusal("CreateConfig", name="x", config_json="{")[0] == 400
    assert admin.refusal("CreateConfig", name="x", config_json="{}", slug="-x")[0] == 400
    slug = saved_config(admin, hero("open-ai-virtual-key"), slug="pc-mine")
    assert slug == "pc-mine"
    content = json.dumps(hero("open-ai-virtual-key"))
    assert admin.refusal("CreateConfig", name="x", config_json=content, slug=slug)[0] == 409
    assert admin.refusal("UpdateConfig", slug=slug, config_json=json.dumps(broken))[0] == 400
    assert [config.version for config in admin.ask("ListConfigs").configs] == [1]
    assert admin.refusal("GetConfig", slug="pc-nowhere") == (404, "config_not_found")
    assert admin.refusal("DeleteVirtualKey", slug="nowhere") == (404, "virtual_key_not_found")
    assert admin.refusal("GetApiKey", id="nowhere") == (404, "api_key_not_found")
    assert admin.refusal("GetRequest", id="nowhere") == (404, "request_not_found")
    assert admin.refusal("CreateVirtualKey", name="x", provider="opnai", key="k")[0] == 400


def test_scopes_say_who_may_manage(remembering, store):
    gateway = remembering(store)
    admin = Admin(gateway)
    calls = {"configs": "ListConfigs", "keys": "ListVirtualKeys", "logs": "ListRequests", "admin": "ListApiKeys"}
    for scope, own in calls.items():
        key = admin.ask("CreateApiKey", name=scope, scopes=[scope]).key
        caller = Admin(gateway, key)
        for call in calls.values():
            if call == own or scope == "admin":
                caller.ask(call)
            else:
                assert caller.refusal(call)[0] == 403, (scope, call)
    assert Admin(gateway, TEAM_KEY).refusal("ListConfigs")[0] == 403
    assert Admin(gateway, "ig_" + "x" * 43).refusal("ListConfigs")[0] == 401
    assert Admin(gateway, None).refusal("ListConfigs")[0] == 401


def test_two_routers_on_one_store_see_each_others_changes(remembering, shared, tmp_path, openai_api):
    a = remembering(shared, name="a", data_dir=str(tmp_path / "a"))
    b = remembering(shared, name="b", data_dir=str(tmp_path / "b"))
    admin = Admin(a)

    def soon(condition, what):
        eventually(condition, SOON, what)

    virtual_key = stored_key(admin, openai_api)
    slug = saved_config(admin, hero(virtual_key))
    soon(lambda: image(b, slug).status_code == 200, "the config at the other router")
    admin.ask("UpdateConfig", slug=slug, config_json=json.dumps({"virtual_key": "stability-ai-virtualkey"}))
    soon(lambda: image(b, slug).headers["x-portkey-provider"] == "stability-ai", "the new version there")
    Admin(b).ask("UpdateVirtualKey", slug=virtual_key, disabled=True)
    soon(lambda: image(a, hero(virtual_key)).status_code != 200, "the disabled virtual key")
    made = admin.ask("CreateApiKey", name="team b", scopes=["generate"])
    soon(lambda: image(b, "pc-openai", key=made.key).status_code == 200, "the API key there")
    Admin(b).ask("DeleteApiKey", id=made.api_key.id)
    soon(lambda: image(a, "pc-openai", key=made.key).status_code == 401, "the deleted API key")
    admin.ask("DeleteConfig", slug=slug)
    soon(lambda: image(b, slug).status_code in (400, 404), "the deleted config")
    # What one router answered is in the log of both.
    assert logged(Admin(a), answered(image(b, "pc-openai"))).provider == "openai"


def test_a_key_that_must_not_be_used_is_refused_at_once(remembering, store, openai_api):
    gateway = remembering(store)
    admin = Admin(gateway)
    ends = int((time.time() + 2) * 1000)
    made = admin.ask("CreateApiKey", name="b", scopes=["generate"])
    short = admin.ask("CreateApiKey", name="c", scopes=["generate"], expires_unix_ms=ends)
    virtual_key = stored_key(admin, openai_api)
    brief = stored_key(admin, openai_api, "brief", expires_unix_ms=ends)
    for key in (made.key, short.key):
        answered(image(gateway, hero(virtual_key), key=key))
    answered(image(gateway, hero(brief)))

    admin.ask("UpdateApiKey", id=made.api_key.id, disabled=True)
    assert image(gateway, "pc-openai", key=made.key).status_code == 401
    admin.ask("UpdateApiKey", id=made.api_key.id, disabled=False)
    answered(image(gateway, "pc-openai", key=made.key))
    admin.ask("DeleteApiKey", id=made.api_key.id)
    assert image(gateway, "pc-openai", key=made.key).status_code == 401

    admin.ask("UpdateVirtualKey", slug=virtual_key, disabled=True)
    calls = len(openai_api.calls)
    assert image(gateway, hero(virtual_key)).status_code in (400, 401, 403, 404)
    assert len(openai_api.calls) == calls
    admin.ask("UpdateVirtualKey", slug=virtual_key, disabled=False)
    answered(image(gateway, hero(virtual_key)))

    time.sleep(max(0, ends / 1000 - time.time()) + EXPIRY)
    calls = len(openai_api.calls)
    assert image(gateway, "pc-openai", key=short.key).status_code == 401
    assert image(gateway, hero(brief)).status_code in (400, 401, 403, 404)
    assert len(openai_api.calls) == calls
    statuses = {key.name: key.status for key in admin.ask("ListVirtualKeys").virtual_keys}
    assert statuses == {"open ai": 1, "brief": 3}


def test_a_rotated_api_key_works_a_while_longer(remembering, store):
    gateway = remembering(store)
    admin = Admin(gateway)
    old = admin.ask("CreateApiKey", name="b", scopes=["generate"])
    new = admin.ask("RotateApiKey", id=old.api_key.id, overlap_s=3)
    assert new.api_key.id == old.api_key.id and new.key != old.key
    assert image(gateway, "pc-openai", key=old.key).status_code == 200
    assert image(gateway, "pc-openai", key=new.key).status_code == 200
    time.sleep(max(0, new.old_key_expires_unix_ms / 1000 - time.time()) + EXPIRY)
    assert image(gateway, "pc-openai", key=old.key).status_code == 401
    newest = admin.ask("RotateApiKey", id=old.api_key.id, overlap_s=0)
    assert image(gateway, "pc-openai", key=new.key).status_code == 401
    answered(image(gateway, "pc-openai", key=newest.key))


def test_a_rotated_virtual_key_is_used_at_once(remembering, store, openai_api):
    gateway = remembering(store)
    admin = Admin(gateway)
    virtual_key = stored_key(admin, openai_api, key="sk-revoked")
    assert image(gateway, hero(virtual_key)).status_code == 401
    admin.ask("UpdateVirtualKey", slug=virtual_key, key=openai_api.key)
    answered(image(gateway, hero(virtual_key)))


def test_an_api_key_uses_only_what_it_may(remembering, store, openai_api):
    gateway = remembering(store)
    admin = Admin(gateway)
    mine, other = stored_key(admin, openai_api, "mine"), stored_key(admin, openai_api, "other")
    allowed, forbidden = saved_config(admin, hero(mine), "allowed"), saved_config(admin, hero(other), "forbidden")
    names = {"configs": {"names": [allowed]}, "virtual_keys": {"names": [mine]}}
    key = admin.ask("CreateApiKey", name="b", scopes=["generate"], **names).key
    answered(image(gateway, allowed, key=key))
    answered(image(gateway, hero(mine), key=key))
    assert image(gateway, forbidden, key=key).status_code == 403
    assert image(gateway, hero(other), key=key).status_code == 403
    bound = {"default_config": allowed, "allow_config_override": False, "metadata": {"team": "bound"}}
    key = admin.ask("CreateApiKey", name="c", scopes=["generate"], **bound).key
    answer = answered(image(gateway, key=key))
    assert dict(logged(admin, answer).metadata) == {"team": "bound"}
    assert image(gateway, forbidden, key=key).status_code == 403


RED, BLUE = ("ig-" + secrets.token_hex(12) for _ in range(2))


def test_tenants_see_nothing_of_each_other(remembering, store, openai_api):
    callers = [
        {"name": name, "key": {"env": name.upper()}, "scopes": ALL_SCOPES, "tenant": name} for name in ("red", "blue")
    ]
    gateway = remembering(store, {"RED": RED, "BLUE": BLUE}, api_keys=callers)
    red, blue = Admin(gateway, RED), Admin(gateway, BLUE)
    virtual_key = stored_key(red, openai_api)
    slug = saved_config(red, hero(virtual_key))
    api_key = red.ask("CreateApiKey", name="b", scopes=ALL_SCOPES)
    assert api_key.api_key.tenant == "red"
    record = logged(red, answered(image(gateway, slug, key=RED)))
    answered(image(gateway, slug, key=api_key.key))

    for call in ("ListConfigs", "ListVirtualKeys", "ListApiKeys", "ListRequests", "GetUsage"):
        answer = blue.ask(call)
        assert answer.ByteSize() == 0, (call, answer)
    assert blue.refusal("GetConfig", slug=slug)[0] == 404
    assert blue.refusal("ListConfigVersions", slug=slug)[0] == 404
    assert blue.refusal("UpdateConfig", slug=slug, name="mine")[0] == 404
    assert blue.refusal("DeleteConfig", slug=slug)[0] == 404
    assert blue.refusal("GetVirtualKey", slug=virtual_key)[0] == 404
    assert blue.refusal("UpdateVirtualKey", slug=virtual_key, key="k")[0] == 404
    assert blue.refusal("DeleteVirtualKey", slug=virtual_key)[0] == 404
    assert blue.refusal("GetApiKey", id=api_key.api_key.id)[0] == 404
    assert blue.refusal("RotateApiKey", id=api_key.api_key.id)[0] == 404
    assert blue.refusal("DeleteApiKey", id=api_key.api_key.id)[0] == 404
    assert blue.refusal("GetRequest", id=record.id)[0] == 404
    assert blue.refusal("CreateApiKey", name="x", scopes=["generate"], tenant="red")[0] == 403
    # What cannot be seen cannot be used or named in a config either.
    assert image(gateway, slug, key=BLUE).status_code in (400, 404)
    assert image(gateway, hero(virtual_key), key=BLUE).status_code in (400, 404)
    assert blue.refusal("CreateConfig", name="x", config_json=json.dumps(hero(virtual_key)))[0] == 400
    # The file's are everybody's.
    answered(image(gateway, "pc-openai", key=BLUE))
    assert {request.config for request in red.requests()} == {slug}
    assert len(red.ask("ListConfigs").configs) == 1


# The log.


def test_a_request_is_in_the_log_with_attempts_cost_and_cause(remembering, store, stability_api):
    gateway = remembering(store)
    admin = Admin(gateway)
    stability_api.always = faults.filtered()
    answer = answered(image(gateway, "pc-sdxl-dalle", headers={"x-portkey-metadata": json.dumps({"team": "red"})}))
    record = logged(admin, answer)
    assert record.id == answer.headers["x-imagegate-request-id"]
    assert (record.outcome, record.status, record.fallback, record.refused) == ("ok", 200, True, True)
    assert (record.provider, record.model, record.target) == ("openai", "dall-e-3", "config.targets[1]")
    assert (record.virtual_key, record.config, record.config_version) == ("open-ai-virtual-key", "pc-sdxl-dalle", 0)
    assert (record.calls, record.images, dict(record.metadata)) == (2, 1, {"team": "red"})
    assert abs(record.created_unix_ms / 1000 - time.time()) < 30 and record.duration_ms < 30_000
    first, second = record.report.attempts
    assert (first.provider, first.outcome, second.outcome) == ("stability-ai", "content_rejected", "ok")
    assert first.message and list(record.report.refused_by) == ["config.targets[0] stability-ai"]
    lines = record.report.cost_lines
    known = [line.amount_usd for line in lines if line.HasField("amount_usd")]
    assert record.cost_usd == pytest.approx(sum(known)) and sum(known) >= 0.04
    assert record.cost_unknown == (len(known) < len(lines))
    assert record.asked.size.dimensions.width == 1024 and record.prompt == ""


def test_a_failure_is_in_the_log_with_its_cause(remembering, store, stability_api, openai_api):
    gateway = remembering(store)
    admin = Admin(gateway)
    stability_api.always, openai_api.always = faults.status(429), faults.status(503)
    record = logged(admin, image(gateway, "pc-sdxl-dalle"))
    assert (record.outcome, record.status, record.images, record.fallback) == ("unavailable", 503, 0, False)
    assert record.provider == "openai" and record.error_message
    assert [attempt.status for attempt in record.report.attempts] == [429, 503]


@pytest.fixture
def varied(remembering, store, stability_api, openai_api):
    """A log with every kind of request, under trace ids from a to g."""
    gateway = remembering(store)
    cached = {**hero("open-ai-virtual-key"), "cache": {"mode": "simple"}}
    for trace, config, more in [
        ("a", "pc-openai", {"model": "dall-e-3", "quality": "hd", "metadata": {"team": "red"}}),
        ("b", "pc-stability", {"model": "stable-diffusion-v1-6", "metadata": {"team": "blue", "tier": "1"}}),
        ("c", "pc-sdxl-dalle", {"fault": faults.filtered(), "metadata": {"team": "blue"}}),
        ("d", "pc-openai", {"model": "dall-e-3", "broken": faults.status(503)}),
        ("e", cached, {"metadata": {"team": "red"}}),
        ("f", cached, {}),
        ("g", "pc-openai", {"model": "dall-e-3", "broken": faults.refusal()}),
    ]:
        stability_api.always, openai_api.always = more.pop("fault", None), more.pop("broken", None)
        headers = {"x-portkey-trace-id": trace, "x-portkey-metadata": json.dumps(more.pop("metadata", {}))}
        key = OPS_KEY if trace == "b" else TEAM_KEY
        image(gateway, config, key, headers, more)
        time.sleep(0.01)
    admin = Admin(gateway)
    eventually(lambda: len(admin.requests()) == 7, SOON, "all requests in the log")
    return admin


def test_each_filter_selects_exactly_the_right_requests(varied):
    everything = {record.trace_id: record for record in varied.requests()}
    assert "".join(everything) == "gfedcba", "the newest first"

    def select(**filter):
        return "".join(sorted(record.trace_id for record in varied.requests(**filter)))

    for filter, expected in [
        ({}, "abcdefg"),
        ({"provider": "stability-ai"}, "b"),
        ({"provider": "openai"}, "acdefg"),
        ({"model": "dall-e-3"}, "acdefg"),
        ({"model": "stable-diffusion-v1-6"}, "b"),
        ({"model": "nothing"}, ""),
        ({"config": "pc-openai"}, "adg"),
        ({"config": "inline"}, "ef"),
        ({"virtual_key": "stability-ai-virtualkey"}, "b"),
        ({"caller": everything["b"].caller}, "b"),
        ({"success": True}, "abcef"),
        ({"success": False}, "dg"),
        ({"statuses": [503]}, "d"),
        ({"statuses": [503, 400]}, "dg"),
        ({"fallback": True}, "c"),
        ({"fallback": False}, "abdefg"),
        ({"refused": True}, "cg"),
        ({"refused": False}, "abdef"),
        ({"trace_id": "e"}, "e"),
        ({"metadata": {"team": "blue"}}, "bc"),
        ({"metadata": {"team": "blue", "tier": "1"}}, "b"),
        ({"metadata": {"tier": "2"}}, ""),
        ({"metadata": {"te%": "red"}}, ""),
        ({"cache_status": "hit"}, "f"),
        ({"cache_status": "miss"}, "e"),
        ({"min_cost_usd": 0.05}, "a"),
        ({"from_unix_ms": everything["e"].created_unix_ms}, "efg"),
        ({"until_unix_ms": everything["e"].created_unix_ms}, "abcd"),
        ({"from_unix_ms": everything["b"].created_unix_ms, "until_unix_ms": everything["d"].created_unix_ms}, "bc"),
        ({"provider": "openai", "metadata": {"team": "red"}, "success": True, "max_cost_usd": 0.05}, "e"),
        ({"trace_id": "' OR 1=1 --"}, ""),
    ]:
        assert select(**filter) == expected, filter
    cheap = {trace for trace, one in everything.items() if one.HasField("cost_usd") and one.cost_usd <= 0.02}
    assert select(max_cost_usd=0.02) == "".join(sorted(cheap)) and "f" in cheap


def test_pages_follow_each_other(varied):
    seen, token = [], ""
    while True:
        page = varied.ask("ListRequests", page_size=3, page_token=token)
        assert len(page.requests) == (3 if page.next_page_token else 1)
        assert not any(record.HasField("report") for record in page.requests)
        seen += [record.trace_id for record in page.requests]
        token = page.next_page_token
        if not token:
            break
    assert seen == list("gfedcba")
    assert varied.refusal("ListRequests", page_token="nonsense")[0] == 400
    assert varied.refusal("ListRequests", page_size=1001)[0] == 400


@pytest.mark.parametrize("by", ["provider", "model", "config", "caller", "outcome", "status", "metadata.team", ""])
def test_usage_is_the_sum_of_the_log(varied, by):
    log = varied.requests()

    def key(record):
        if by.startswith("metadata."):
            return record.metadata.get(by.removeprefix("metadata."), "")
        return str(getattr(record, by)) if by else ""

    expected = {}
    for record in log:
        if by.startswith("metadata.") and not key(record):
            continue  # It is in no group.
        group = expected.setdefault(key(record), [0] * 8)
        is_known = record.HasField("cost_usd")
        facts = [1, record.status == 200, record.status == 200 and record.fallback, record.refused]
        facts += [record.cache_status == 1, record.images]
        if by not in ("provider", "model"):
            facts.append(record.cost_unknown or not is_known)
            group[7] += record.cost_usd if is_known else 0
        for i, fact in enumerate(facts):
            group[i] += int(fact)
    for record in log if by in ("provider", "model") else []:
        # It counts for whoever was or may have been paid.
        lines = varied.ask("GetRequest", id=record.id).request.report.cost_lines
        for payee in {getattr(line, by) for line in lines}:
            group = expected.setdefault(payee, [0] * 8)
            theirs = [line for line in lines if getattr(line, by) == payee]
            group[6] += int(any(not line.HasField("amount_usd") for line in theirs))
            group[7] += sum(line.amount_usd for line in theirs)
    groups = varied.ask("GetUsage", group_by=by).groups
    found = {
        group.key: [
            group.requests, group.succeeded, group.rescued, group.refused,
            group.cache_hits, group.images, group.cost_unknown, pytest.approx(group.cost_usd),
        ]
        for group in groups
    }  # fmt: skip
    assert found == expected
    costs = [group.cost_usd for group in groups]
    assert costs == sorted(costs, reverse=True), "the dearest first"


def test_usage_of_a_filter_and_by_time(varied):
    (group,) = varied.ask("GetUsage", filter={"metadata": {"team": "blue"}}).groups
    assert group.requests == 2 and group.rescued == 1
    days = varied.ask("GetUsage", group_by="day").groups
    assert sum(day.requests for day in days) == 7 and [day.key for day in days] == sorted(day.key for day in days)
    assert varied.refusal("GetUsage", group_by="prompt")[0] == 400


def test_feedback_is_kept_with_its_request(remembering, store):
    gateway = remembering(store)
    admin = Admin(gateway)
    answer = answered(image(gateway, "pc-openai", headers={"x-portkey-trace-id": "liked"}))
    record = logged(admin, answer)
    made = Admin(gateway, TEAM_KEY).ask("CreateFeedback", trace_id="liked", value=7, metadata_json='{"by":"ann"}').feedback
    Admin(gateway, TEAM_KEY).ask("UpdateFeedback", id=made.id, value=9, weight=0.5)
    (feedback,) = admin.ask("GetRequest", id=record.id).request.feedback
    assert (feedback.value, feedback.weight, json.loads(feedback.metadata_json)) == (9, 0.5, {"by": "ann"})
    assert admin.refusal("CreateFeedback", trace_id="liked", value=11)[0] == 400
    assert admin.refusal("UpdateFeedback", id="nowhere", value=1) == (404, "feedback_not_found")


def test_prompts_are_kept_only_where_that_is_wanted(remembering, store):
    canary, kept = "a canary " + secrets.token_hex(8), "a kept fox " + secrets.token_hex(8)
    gateway = remembering(store, log={"prompts": True, "flush_ms": 100})
    admin = Admin(gateway)
    assert logged(admin, answered(image(gateway, "pc-openai", prompt=kept))).prompt == kept
    record = logged(admin, image(gateway, "pc-openai", headers={"x-portkey-debug": "false"}, prompt=canary))
    assert (record.prompt, record.status, record.provider) == ("", 200, "openai")
    gateway.back.stop()
    gateway = remembering(store)
    record = logged(Admin(gateway), image(gateway, "pc-openai", prompt=canary))
    assert record.prompt == ""
    raw = store.raw()
    assert not any(canary.encode() in data for data in raw)
    assert any(kept.encode() in data for data in raw), "this test could not have found anything"
    assert canary not in gateway.log


def test_the_log_is_written_before_the_process_ends(remembering, store):
    gateway = remembering(store, log={"flush_ms": 60_000})
    trace = answered(image(gateway, "pc-openai")).headers["x-portkey-trace-id"]
    assert Admin(gateway).requests(trace_id=trace) == []
    gateway.back.terminate()
    assert gateway.back.wait() == 0
    assert logged(Admin(remembering(store)), trace).status == 200


# When something breaks.


class Traffic:
    """Requests at a steady rate from several threads, and when each was answered."""

    def __init__(self, ask, rate, threads=8):
        self._ask, self._pause = ask, threads / rate
        self._ended = threading.Event()
        self.answers, self.failures = [], []
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def _run(self):
        session = requests.Session()
        due = time.monotonic()
        while not self._ended.is_set():
            try:
                self.answers.append((self._ask(session), time.monotonic()))
            except requests.RequestException as error:
                self.failures.append(error)
                # Whoever is not there is not there the next moment either.
                time.sleep(0.01)
            due = max(due + self._pause, time.monotonic() - self._pause)
            self._ended.wait(max(0, due - time.monotonic()))

    def end(self):
        self._ended.set()
        for thread in self._threads:
            thread.join(40)


FLUSH = 0.5
# What a busy machine may take to write a batch, beyond the time between two.
WRITE = 1.0


@pytest.mark.alone
@pytest.mark.timeout(300)
def test_a_crash_loses_nothing_that_was_acknowledged(remembering, store):
    more = {"configs": {"pc-sandbox": {"provider": "sandbox"}}, "virtual_keys": {}, "log": {"flush_ms": int(FLUSH * 1000)}}
    configs, keys, callers = {}, set(), {}
    for number in range(5):
        gateway = remembering(store, **more)
        admin = Admin(gateway)
        killed = threading.Event()

        def ask(session):
            trace = secrets.token_hex(8)
            headers = {"authorization": f"Bearer {TEAM_KEY}", "x-portkey-config": "pc-sandbox", "x-portkey-trace-id": trace}
            body = {"prompt": "x", "size": "32x32"}
            answer = session.post(gateway.base_url + "/images/generations", json=body, headers=headers, timeout=10)
            assert answer.status_code == 200, answer.text
            return trace

        def write():
            """Saves what it can until the crash. What was answered counts."""
            try:
                for i in range(10_000):
                    content = {"provider": "sandbox", "override_params": {"seed": i}}
                    slug = saved_config(admin, content, f"c{number}")
                    configs[slug] = content
                    content = {**content, "request_timeout": 1000 + i}
                    admin.ask("UpdateConfig", slug=slug, config_json=json.dumps(content))
                    configs[slug] = content
                    fields = {"provider": "openai", "key": f"sk-{i}"}
                    keys.add(admin.ask("CreateVirtualKey", name=f"k{number}", **fields).virtual_key.slug)
                    made = admin.ask("CreateApiKey", name=f"a{number}", scopes=["generate"])
                    callers[made.api_key.id] = made.key
            except grpc.RpcError:
                assert killed.is_set(), "a write failed before the crash"

        with ThreadPoolExecutor(1) as pool:
            writer = pool.submit(write)
            traffic = Traffic(ask, rate=200)
            time.sleep(3)
            killed.set()
            before = time.monotonic()
            gateway.back.kill()
            traffic.end()
            writer.result(30)
        assert len(traffic.answers) > 200, "there was too little traffic to say anything"

        gateway = remembering(store, **more)
        admin = Admin(gateway)
        found = {config.slug for config in admin.ask("ListConfigs").configs}
        assert set(configs) <= found
        for slug, content in list(configs.items())[-5:]:
            kept = json.loads(admin.ask("GetConfig", slug=slug).config.config_json)
            # An update that was written but not answered counts either way.
            assert kept.items() >= content.items()
            answered(image(gateway, slug, size="32x32"))
        assert keys <= {key.slug for key in admin.ask("ListVirtualKeys").virtual_keys}
        assert set(callers) <= {key.id for key in admin.ask("ListApiKeys").api_keys}
        answered(image(gateway, "pc-sandbox", key=list(callers.values())[-1], size="32x32"))
        traces = {record.trace_id for record in admin.requests()}
        lost = [at for trace, at in traffic.answers if trace not in traces]
        longest = max((before - at for at in lost), default=0)
        assert longest < FLUSH + WRITE, f"{len(lost)} of {len(traffic.answers)} lost, the oldest {longest:.2f} s before"
        admin.close()
        gateway.back.stop()


@pytest.mark.parametrize("how", ["freeze", "kill"])
def test_requests_go_on_without_the_store(remembering, shared, postgres, openai_api, how):
    gateway = remembering(shared)
    admin = Admin(gateway)
    slug = saved_config(admin, hero(stored_key(admin, openai_api)))
    key = admin.ask("CreateApiKey", name="b", scopes=["generate"], default_config=slug).key
    body = {"prompt": "x", "size": "1024x1024"}

    def ask(session):
        headers = {"authorization": f"Bearer {key}"}
        answer = session.post(gateway.base_url + "/images/generations", json=body, headers=headers, timeout=20)
        assert answer.status_code == 200, answer.text
        return answer.headers["x-portkey-trace-id"]

    def alarms():
        events = [event for event in gateway.back.events if event.get("level") in ("WARN", "ERROR")]
        return [event for event in events if "store" in json.dumps(event["fields"]).lower()]

    traffic = Traffic(ask, rate=10, threads=4)
    time.sleep(1)
    assert alarms() == []
    getattr(postgres, how)()
    began = time.monotonic()
    for call, fields in [
        ("ListConfigs", {}),
        ("CreateConfig", {"name": "x", "config_json": json.dumps({"provider": "sandbox"})}),
        ("ListRequests", {}),
    ]:
        assert admin.refusal(call, timeout=20, **fields)[0] == 503, call
    assert time.monotonic() - began < 30
    time.sleep(3)
    assert len(alarms()) == 1, alarms()
    during = len(traffic.answers)
    postgres.thaw() if how == "freeze" else postgres.start()

    def works():
        try:
            return admin.ask("ListConfigs").configs
        except grpc.RpcError:
            return None

    eventually(works, 20, "management after the outage")
    assert slug in {config.slug for config in works()}
    saved_config(admin, {"provider": "sandbox"}, "later")
    assert logged(admin, answered(image(gateway, slug)), 10).status == 200
    traffic.end()
    assert traffic.failures == [] and len(traffic.answers) > during > 20
    waits = [later - earlier for (_, earlier), (_, later) in zip(traffic.answers, traffic.answers[1:])]
    assert max(waits) < 5, "requests waited for the store"


def test_a_key_expires_without_the_store_too(remembering, shared, postgres):
    gateway = remembering(shared)
    admin = Admin(gateway)
    ends = int((time.time() + 3) * 1000)
    brief = admin.ask("CreateApiKey", name="b", scopes=["generate"], expires_unix_ms=ends).key
    old = admin.ask("CreateApiKey", name="c", scopes=["generate"])
    admin.ask("RotateApiKey", id=old.api_key.id, overlap_s=2)
    answered(image(gateway, "pc-openai", key=brief))
    answered(image(gateway, "pc-openai", key=old.key))
    postgres.kill()
    time.sleep(max(0, ends / 1000 - time.time()) + EXPIRY)
    assert [image(gateway, "pc-openai", key=key).status_code for key in (brief, old.key)] == [401, 401]


def test_a_store_that_is_away_at_the_start_is_said(serve, shared, postgres, stability_api, openai_api, tmp_path):
    postgres.kill()
    config = founding_config(stability_api, openai_api, **shared.config)
    with pytest.raises(AssertionError) as failed:
        serve(config, shared.env)
    assert "store" in str(failed.value).lower() and postgres.password not in str(failed.value)


# Secrets.


def test_the_vault_is_needed_for_several_routers_and_made_for_one(serve, store, stability_api, openai_api, tmp_path):
    config = founding_config(stability_api, openai_api, **{**store.config, "vault": None})
    if store.postgres:
        file = tmp_path / "without.yaml"
        file.write_text(json.dumps({**config, "vault": None}))
        secrets_ = {"STABILITY_API_KEY": "x", "OPENAI_API_KEY": "x", "TEAM_A_KEY": "x" * 20, "OPS_KEY": "y" * 20}
        checked = run(["check", file], tmp_path, {**store.env, **secrets_})
        assert checked.returncode == 1 and "vault" in checked.stdout + checked.stderr
        return
    config.pop("vault")
    gateway = serve(config, store.env)
    slug = stored_key(Admin(gateway), openai_api)
    key_file = tmp_path / "data" / "vault.key"
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    gateway.back.stop()
    answered(image(serve(config, store.env), hero(slug)))


def test_a_vault_key_is_replaced_without_losing_what_it_locks(remembering, store, openai_api):
    gateway = remembering(store)
    slug = stored_key(Admin(gateway), openai_api)
    gateway.back.stop()
    new = {"NEW_KEY": base64.b64encode(secrets.token_bytes(32)).decode()}
    vault = {"key": {"env": "NEW_KEY"}, "previous_keys": [{"env": "VAULT_KEY"}]}
    answered(image(remembering(store, new, vault=vault), hero(slug)))


class Quiet(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.server.got.append(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def hook():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    server.got, server.url = [], f"http://127.0.0.1:{server.server_port}/hook"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_no_secret_leaves_the_vault(remembering, store, openai_api, hook):
    webhook = "whsec_" + base64.b64encode(secrets.token_bytes(24)).decode()
    option = "option-" + secrets.token_hex(12)
    env = {"RUST_LOG": "trace", "HOOK_SECRET": webhook}
    gateway = remembering(store, env, webhooks={"secret": {"env": "HOOK_SECRET"}})
    admin = Admin(gateway)
    told = []

    def ask(method, **fields):
        answer = admin.ask(method, **fields)
        told.append(answer.SerializeToString() + str(answer).encode())
        return answer

    virtual_key = stored_key(admin, openai_api)
    wrong = "sk-wrong-" + secrets.token_hex(12)
    refused = stored_key(admin, openai_api, "refused", key=wrong)
    azure = {"azure_resource_name": "x", "azure_deployment_name": "y", "azure_api_version": "2024-10-21", "azure_ad_token": option}
    created = admin.ask("CreateVirtualKey", name="azure", provider="azure-openai", key=wrong, options=azure)
    told.append(created.SerializeToString())
    slug = saved_config(admin, hero(virtual_key))
    made = admin.ask("CreateApiKey", name="b", scopes=ALL_SCOPES)
    rotated = admin.ask("RotateApiKey", id=made.api_key.id)
    for answer in (made, rotated):
        told.append(answer.api_key.SerializeToString())
    told.append(ask("UpdateVirtualKey", slug=refused, key=wrong + "-2").SerializeToString())

    for key in (made.key, rotated.key):
        answered(image(gateway, slug, key=key))
        image(gateway, hero(refused), key=key)
        image(gateway, {"provider": "azure-openai", "virtual_key": "azure"}, key=key, headers={"x-portkey-debug": "false"})
    image(gateway, slug, key=made.key + "x")
    submitted = gateway.post("/images/jobs", body={"prompt": 7}, key=made.key)  # a bad one, for its error
    assert submitted.status_code >= 400
    headers = {"x-portkey-config": slug, "x-imagegate-webhook-url": hook.url}
    submitted = gateway.post("/images/jobs", body={"prompt": "x", "size": "1024x1024"}, headers=headers)
    assert submitted.status_code == 202, submitted.text
    eventually(lambda: hook.got, 20, "the webhook")

    caller = Admin(gateway, rotated.key)
    eventually(lambda: len(admin.requests()) >= 7, SOON, "the log")
    for call in ("ListConfigs", "ListVirtualKeys", "ListApiKeys", "ListRequests", "GetUsage"):
        ask(call)
        told.append(caller.ask(call).SerializeToString())
    for record in admin.requests():
        ask("GetRequest", id=record.id)
    for one in (virtual_key, refused, "azure"):
        ask("GetVirtualKey", slug=one)
    ask("GetApiKey", id=made.api_key.id)
    ask("GetConfig", slug=slug)
    ask("ListConfigVersions", slug=slug)
    metrics = requests.get(gateway.admin + "/metrics", timeout=10).content
    raw = store.raw()
    gateway.back.stop()

    planted = {
        "the provider's key": openai_api.key,
        "a provider's refused key": wrong,
        "a provider's option": option,
        "an API key": made.key,
        "a rotated API key": rotated.key,
        "the vault key": store.vault_key,
        "the webhook secret": webhook,
        "the file's API key": OPS_KEY,
    }
    if store.postgres:
        planted["the database's password"] = store.postgres.password
    places = {"the log": [gateway.log.encode()], "metrics": [metrics], "AdminService": told, "the store": raw}
    for what, secret in planted.items():
        # As it is, as base64 wherever it begins, and in hex.
        forms = [secret.encode(), secret.encode().hex().encode()]
        forms += [base64.b64encode(b"\0" * i + secret.encode())[4:-4] for i in range(3)]
        if what == "the vault key":
            forms.append(base64.b64decode(secret))
        for place, texts in places.items():
            for text in texts:
                assert not any(form in text for form in forms), f"{what} is in {place}"
    assert len(gateway.log) > 10_000, "nothing was logged"
