"""What a gateway remembers, in SQLite and in PostgreSQL: configs, keys, callers and the log outlive everything."""

import base64
import json
import secrets
import stat
import time

import pytest
import requests

from emulators import faults
from gateway import OPS_KEY, TEAM_KEY, eventually, founding_config, run
from grpc_client import Admin
from memory import ALL_SCOPES, EXPIRY, SOON, answered, hero, image, logged, saved_config, stored_key

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


def test_a_search_that_nothing_can_match_is_refused(varied):
    for wrong in [
        {"cache_status": "hits"},
        {"min_cost_usd": float("nan")},
        {"max_cost_usd": -1.0},
        {"statuses": [42]},
    ]:
        assert varied.refusal("ListRequests", filter=wrong)[0] == 400, wrong
        assert varied.refusal("GetUsage", filter=wrong)[0] == 400, wrong


def test_control_characters_are_refused_wherever_they_come(remembering, store, openai_api):
    admin = Admin(remembering(store))
    stored_key(admin, openai_api)
    config = json.dumps(hero("open-ai"))
    key = {"provider": "openai", "key": "sk-x"}
    for method, fields in [
        ("CreateConfig", {"name": "a\0b", "config_json": config}),
        ("CreateConfig", {"name": "a", "slug": "a\0b", "config_json": config}),
        ("CreateConfig", {"name": "a", "config_json": config + "\0"}),
        ("CreateVirtualKey", {"name": "a\0", **key}),
        ("CreateVirtualKey", {"name": "a", "note": "\0", **key}),
        ("CreateVirtualKey", {"name": "a", **key, "key": "sk-\n"}),
        ("UpdateVirtualKey", {"slug": "open-ai", "note": "\0"}),
        ("CreateApiKey", {"name": "a\0", "scopes": ["generate"]}),
        ("CreateApiKey", {"name": "a", "scopes": ["generate"], "metadata": {"a\0": "b"}}),
        ("CreateApiKey", {"name": "a", "scopes": ["generate"], "tenant": "a\0"}),
        ("CreateFeedback", {"trace_id": "t\0", "value": 1}),
        ("CreateFeedback", {"trace_id": "t", "value": 1, "metadata_json": "{}\0"}),
    ]:
        assert admin.refusal(method, **fields)[0] == 400, (method, fields)
    # What is looked up is not there, or cannot be.
    for method, fields in [("GetConfig", {"slug": "a\0"}), ("GetRequest", {"id": "\0"}), ("GetApiKey", {"id": "\0"})]:
        assert admin.refusal(method, **fields)[0] in (400, 404), method


def test_an_api_key_is_changed_as_a_whole(remembering, store, openai_api):
    gateway = remembering(store)
    admin = Admin(gateway)
    virtual_key = stored_key(admin, openai_api)
    slug = saved_config(admin, hero(virtual_key))
    assert admin.refusal("CreateApiKey", name="b")[0] == 400, "scopes are required"
    narrow = {"configs": {"names": [slug]}, "virtual_keys": {"names": [virtual_key]}}
    made = admin.ask("CreateApiKey", name="b", scopes=["generate"], metadata={"team": "red"}, **narrow)
    own, of_file = hero("open-ai-virtual-key"), "pc-openai"
    assert image(gateway, of_file, key=made.key).status_code == 403
    assert image(gateway, own, key=made.key).status_code == 403
    change = {"metadata": {"values": {"team": "blue"}}, "configs": {"all": True}}
    changed = admin.ask("UpdateApiKey", id=made.api_key.id, **change).api_key
    assert dict(changed.metadata) == {"team": "blue"} and not changed.HasField("configs")
    assert list(changed.virtual_keys.names) == [virtual_key]
    assert image(gateway, of_file, key=made.key).status_code == 403, "its virtual key is still not granted"
    admin.ask("UpdateApiKey", id=made.api_key.id, virtual_keys={"all": True})
    assert logged(admin, answered(image(gateway, of_file, key=made.key))).metadata == {"team": "blue"}
    assert admin.refusal("UpdateApiKey", id=made.api_key.id, virtual_keys={"names": ["nothing"]})[0] == 400
    assert admin.refusal("UpdateApiKey", id=made.api_key.id, scopes={})[0] == 400
    rest = {"headers": {"x-portkey-api-key": OPS_KEY}, "timeout": 5}
    url = f"{gateway.base_url}/api-keys/{made.api_key.id}"
    body = {"defaults": {"metadata": {"team": "green"}}, "configs": [slug], "virtual_keys": "all"}
    shown = requests.put(url, json=body, **rest).json()
    assert shown["defaults"]["metadata"] == {"team": "green"}
    assert (shown["configs"], shown["virtual_keys"]) == ([slug], None)


def test_requests_are_known_by_the_version_they_used_and_tried_on_another(remembering, store, openai_api):
    gateway = remembering(store)
    admin = Admin(gateway)
    key = stored_key(admin, openai_api)
    slug = saved_config(admin, hero(key))
    answered(image(gateway, slug))
    admin.ask("UpdateConfig", slug=slug, config_json=json.dumps(hero(key, "gpt-image-1")))
    for _ in range(2):
        answered(image(gateway, slug))
    eventually(lambda: len(admin.requests(config=slug)) == 3, SOON, "the log")
    versions = {version.version: version for version in admin.ask("ListConfigVersions", slug=slug).versions}
    assert {number: version.requests for number, version in versions.items()} == {1: 1, 2: 2}
    assert versions[1].first_request_unix_ms == versions[1].last_request_unix_ms
    assert versions[1].last_request_unix_ms < versions[2].first_request_unix_ms < versions[2].last_request_unix_ms
    assert [request.model for request in admin.requests(config=slug, config_version=1)] == ["dall-e-3"]
    groups = admin.ask("GetUsage", group_by="config_version").groups
    assert {group.key: group.requests for group in groups} == {f"{slug}@1": 1, f"{slug}@2": 2}

    calls = len(openai_api.calls)
    tried = admin.ask("DryRunConfig", slug=slug, version=1, filter={"config": slug})
    summary = tried.summary
    assert (summary.requests, summary.routed, summary.changed) == (3, 3, 2)
    shares = {share.model: (share.requests, share.recorded_requests) for share in summary.shares}
    assert shares == {"dall-e-3": (3, 1), "gpt-image-1": (0, 2)}
    assert summary.expected_cost_usd == pytest.approx(3 * 0.04)
    assert summary.recorded_cost_usd == pytest.approx(sum(request.cost_usd for request in admin.requests()))
    assert [request.changed for request in tried.requests] == [True, True, False]
    newest = admin.ask("DryRunConfig", config_json=json.dumps(hero(key)), limit=1)
    assert [request.id for request in newest.requests] == [tried.requests[0].id]
    assert any("more requests match" in note for note in newest.summary.notes)
    assert admin.ask("DryRunConfig", slug="pc-openai").summary.routed == 3, "a config of the file"
    assert len(openai_api.calls) == calls
    for refusal, fields in {
        (400, "invalid_config"): {"config_json": json.dumps({"virtual_key": "gone"})},
        (404, "config_not_found"): {"slug": "pc-gone"},
        (404, "config_version_not_found"): {"slug": slug, "version": 9},
    }.items():
        assert admin.refusal("DryRunConfig", **fields) == refusal
    for fields in ({}, {"slug": slug, "config_json": "{}"}, {"config_json": "{}", "version": 1}, {"slug": slug, "limit": 1001}):
        assert admin.refusal("DryRunConfig", **fields)[0] == 400
    for scopes in (["configs"], ["logs"]):
        narrow = Admin(gateway, admin.ask("CreateApiKey", name="narrow", scopes=scopes).key)
        assert narrow.refusal("DryRunConfig", slug=slug)[0] == 403


def test_graphs_of_users_tokens_errors_and_feedback(remembering, store, openai_api):
    gateway = remembering(store)
    admin = Admin(gateway)
    config = hero(stored_key(admin, openai_api), "gpt-image-1")
    mine, _, theirs = (answered(image(gateway, config, user=user)) for user in ("mia", "mia", "bo"))
    openai_api.always = faults.status(429)
    assert image(gateway, config, user="bo").status_code == 429
    assert image(gateway, "pc-gone").status_code == 404
    eventually(lambda: len(admin.requests()) == 5, SOON, "the log")
    for answer, value, weight in [(mine, 10, 1.0), (mine, -5, 0.5), (theirs, 3, 0.0)]:
        admin.ask("CreateFeedback", trace_id=answer.headers["x-portkey-trace-id"], value=value, weight=weight)

    def graph(name, **search):
        headers = {"x-portkey-api-key": OPS_KEY}
        answer = requests.get(f"{gateway.base_url}/analytics/graphs/{name}", params=search, headers=headers, timeout=10)
        body = answered(answer).json()
        assert body["object"] == "analytics-graph" and all("timestamp" in point for point in body["data_points"])
        return body["summary"]

    assert graph("users") == {"total": 2}
    assert graph("users/requests", success="true") == {"total": 3, "users": 2, "avg": 1.5}
    assert graph("errors/status-codes") == {"total": 2, "status_codes": {"404": 1, "429": 1}}
    assert graph("errors/stacks") == {"total": 2, "stacks": {"not_found": 1, "rate_limited": 1}}
    counted = [admin.ask("GetRequest", id=request.id).request.usage for request in admin.requests(success=True)]
    total = sum(usage.input_text_tokens + usage.input_image_tokens + usage.output_image_tokens for usage in counted)
    assert graph("tokens")["total"] == total > 0
    assert graph("cache/latency")["avg"] is None and graph("cache/latency")["avg_of_others"] > 0
    assert graph("feedbacks") == {"total": 3}
    assert graph("feedbacks/scores", provider="openai") == {
        "total": 3, "avg": pytest.approx(8 / 3), "scores": {"-5": 1, "3": 1, "10": 1}
    }
    assert graph("feedbacks/weighted", metadata=json.dumps({"_user": "mia"})) == {"total": 2, "avg": 5.0}


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


# Connections.


def test_a_database_is_reached_over_tls(serve, shared, postgres, stability_api, openai_api):
    postgres.kill()
    authority = postgres.encrypt()
    postgres.start()
    config = founding_config(stability_api, openai_api, **shared.config)

    def start(name, **parameters):
        parameters = "&".join(f"{name}={value}" for name, value in parameters.items())
        return serve(config, {**shared.env, "STORE_URL": f"{postgres.url()}?{parameters}"}, name)

    for name, parameters in {
        "unchecked": {"sslmode": "require"},
        "checked": {"sslmode": "verify-full", "sslrootcert": authority},
    }.items():
        slug = stored_key(Admin(start(name, **parameters)), openai_api, name)
        assert postgres.sql("SELECT count(*) FROM pg_stat_ssl WHERE ssl") != "0"
        assert slug == name
    for name, parameters in {
        "plain": {"sslmode": "disable"},
        "stranger": {"sslmode": "verify-full"},
    }.items():
        with pytest.raises(AssertionError) as failed:
            start(name, **parameters)
        assert "the store cannot be reached" in str(failed.value) and postgres.password not in str(failed.value)
