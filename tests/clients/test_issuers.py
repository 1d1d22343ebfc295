"""Callers that bring a token of an OpenID Connect issuer instead of an API key."""

import json
import time

import grpc
import pytest
import requests
import yaml

from emulators.issuer import Issuer
from gateway import OPS_KEY, eventually, founding_config, openai_error
from grpc_client import Admin, Client

SMALL = {"prompt": "a red fox", "size": "1024x1024", "response_format": "b64_json"}


@pytest.fixture
def issuer():
    issuer = Issuer()
    yield issuer
    issuer.close()


@pytest.fixture
def trusting(serve, stability_api, openai_api, issuer):
    """Starts a gateway that trusts the issuer: `trusting(scope_claim="scope")`."""

    def trusting(env=None, config=None, **more):
        entry = {"issuer": issuer.url, "audience": issuer.audience, **more}
        base = founding_config(stability_api, openai_api, default_config="pc-openai", log={"flush_ms": 20})
        return serve({**base, "jwt_issuers": [entry], **(config or {})}, env)

    return trusting


def refused(answer, status=401):
    assert answer.status_code == status, answer.text
    return openai_error(answer)["message"]


def metrics(gateway):
    return requests.get(gateway.admin + "/metrics", timeout=5).text


def test_a_token_is_as_good_as_an_api_key(trusting, issuer, openai_api):
    issuer.publish("curve", "EC")
    gateway = trusting(metadata_claims={"_user": "sub", "team": "team"})
    tokens = [issuer.token(team="blue"), issuer.token("curve", aud=["other", "imagegate"])]
    for token in tokens:
        for headers in ({"authorization": f"Bearer {token}"}, {"x-portkey-api-key": token}, {"api-key": token}):
            answer = gateway.post(body=SMALL, key=None, headers=headers)
            assert answer.status_code == 200, answer.text
    client = Client(gateway.grpc)
    assert client.call("ListModels", client.request("ListModels"), key=tokens[0]).models
    models = requests.get(gateway.base_url + "/models", headers={"authorization": f"Bearer {tokens[0]}"}, timeout=5)
    assert models.status_code == 200

    caller = f"jwt:{issuer.url.replace(':', '%3A')}:batch-7"
    lines = [event["fields"] for event in gateway.back.events if event["fields"].get("message") == "request"]
    assert {line["caller"] for line in lines} == {caller}
    admin = Admin(gateway)
    found = eventually(lambda: len(logged := admin.requests(caller=caller)) == 6 and logged, 10, "the log")
    said = [dict(request.metadata) for request in found if "team" in request.metadata]
    assert said == [{"_user": "batch-7", "team": "blue"}] * 3
    # Once for each key set that it had not seen; the rest are looked up.
    assert issuer.asked_for_keys() <= 2
    sent = json.dumps([[request.headers, request.body.decode(errors="replace")] for request in openai_api.requests])
    for token in tokens:
        assert token not in gateway.log and token not in sent


def test_a_bad_token_is_refused_with_what_is_wrong(trusting, issuer):
    gateway = trusting()
    other = Issuer()
    now = int(time.time())
    cases = [
        (issuer.token(exp=now - 120), "expired at 20"),
        (issuer.token(exp=None), "never expires"),
        (issuer.token(nbf=now + 120), "is not valid before 20"),
        (issuer.token(aud="somebody"), "is for another audience (aud); allowed: imagegate"),
        (issuer.token(iss="https://other.example"), "is from an issuer (iss) that this gateway does not know"),
        (other.token(iss=issuer.url), "has a wrong signature"),
        (issuer.token(alg="none"), "is not signed as its issuer's have to be"),
        (issuer.token(alg="HS256"), "is not signed as its issuer's have to be"),
        (issuer.token()[:-8] + "AAAAAAAA", "has a wrong signature"),
        (issuer.token("unknown", other.key), "is signed with a key that"),
        (issuer.token(sub=None), "has no sub that can be used"),
    ]
    other.close()
    for token, why in cases:
        for headers in ({"authorization": f"Bearer {token}"}, {"x-portkey-api-key": token}):
            message = refused(gateway.post(body=SMALL, key=None, headers=headers))
            assert message.startswith("the token " + why), message
            assert not any(part in message for part in token.split(".") if len(part) > 20)
    assert gateway.post(body=SMALL, key=issuer.token(exp=now - 30)).status_code == 200, "clocks differ"
    # An API key beside a token that is of no use is a valid key.
    both = {"x-portkey-api-key": OPS_KEY, "authorization": f"Bearer {cases[0][0]}"}
    assert gateway.post(body=SMALL, key=None, headers=both).status_code == 200
    assert not any(token in gateway.log for token, _ in cases if len(token) > 40)
    with pytest.raises(grpc.RpcError) as error:
        client = Client(gateway.grpc)
        client.call("ListModels", client.request("ListModels"), key=cases[0][0])
    assert error.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_new_keys_are_found_and_bogus_ones_cause_no_storm(trusting, issuer):
    gateway = trusting()
    old = issuer.token()
    assert gateway.post(body=SMALL, key=old).status_code == 200
    before = issuer.asked_for_keys()
    for number in range(30):
        refused(gateway.post(body=SMALL, key=issuer.token(f"bogus-{number}", issuer.key)))
    assert issuer.asked_for_keys() - before <= 2
    issuer.publish("second")
    new = issuer.token("second")
    eventually(lambda: gateway.post(body=SMALL, key=new).status_code == 200, 15, "the new key")
    assert gateway.post(body=SMALL, key=old).status_code == 200
    # A key that is withdrawn takes its tokens with it, also those that were verified before.
    del issuer.published["first"]
    issuer.publish("third")
    eventually(lambda: gateway.post(body=SMALL, key=issuer.token("third")).status_code == 200, 15, "the third key")
    assert "is signed with a key that" in refused(gateway.post(body=SMALL, key=old))


def test_an_issuer_may_be_away_at_the_start_and_later(trusting, issuer):
    issuer.is_away = True
    gateway = trusting()
    token = issuer.token()
    message = refused(gateway.post(body=SMALL, key=token), 503)
    assert "the keys of" in message and "cannot be had now" in message
    assert gateway.post(body=SMALL, key=OPS_KEY).status_code == 200
    up = f'imagegate_jwt_issuer_up{{issuer="{issuer.url}"}} '
    assert up + "0" in metrics(gateway)
    issuer.is_away = False
    eventually(lambda: gateway.post(body=SMALL, key=token).status_code == 200, 20, "the keys")
    assert up + "1" in metrics(gateway)
    issuer.is_away = True
    unknown = issuer.token("new", issuer.key)
    eventually(lambda: gateway.post(body=SMALL, key=unknown).status_code == 503, 10, "the issuer's absence")
    assert up + "0" in metrics(gateway)
    assert gateway.post(body=SMALL, key=issuer.token()).status_code == 200, "its keys are still known"
    alarms = [e for e in gateway.back.events if "keys of an issuer cannot be had" in e["fields"].get("message", "")]
    assert len(alarms) == 2 and alarms[0]["level"] == "ERROR"


def test_claims_say_what_a_caller_may_do_and_where(trusting, issuer):
    gateway = trusting(scope_claim="scope", tenant_claim="org")
    may = issuer.token(scope="openid imagegate:generate", org="acme")
    manager = issuer.token(scope="imagegate:configs imagegate:logs", org="acme", sub="mia")
    nobody = issuer.token(scope="openid admin", org="acme")
    assert gateway.post(body=SMALL, key=may).status_code == 200
    assert 'the token of "mia" has no scope "generate"' in refused(gateway.post(body=SMALL, key=manager), 403)
    refused(gateway.post(body=SMALL, key=nobody), 403)
    assert "names no tenant in org" in refused(gateway.post(body=SMALL, key=issuer.token(org="a b", scope="")))

    content = json.dumps({"virtual_key": "open-ai-virtual-key"})
    acme, own = Admin(gateway, manager), Admin(gateway)
    slug = acme.ask("CreateConfig", name="acme's", config_json=content).config.slug
    assert acme.ask("GetConfig", slug=slug).config.created_by.endswith(":acme/mia")
    assert own.refusal("GetConfig", slug=slug) == (404, "config_not_found")
    assert Admin(gateway, may).refusal("ListConfigs")[0] == 403
    assert gateway.post(body=SMALL, key=may, headers={"x-portkey-config": slug}).status_code == 200
    rest = requests.get(gateway.base_url + "/configs", headers={"authorization": f"Bearer {manager}"}, timeout=5)
    assert [config["slug"] for config in rest.json()["data"]] == [slug]
    eventually(lambda: len(acme.requests(success=True)) == 2, 10, "the tenant's log")
    assert own.requests() == []


def test_a_token_never_goes_to_a_provider(trusting, issuer, openai_api):
    gateway = trusting()
    token = issuer.token()
    named = {"x-portkey-provider": "openai", "x-portkey-custom-host": openai_api.base_url}
    mine = {"authorization": f"Bearer {token}"}
    answer = gateway.post(body=SMALL, key=None, headers={**mine, "x-portkey-provider": "openai"})
    assert answer.status_code == 200, answer.text
    assert openai_api.calls[-1].headers["authorization"] == f"Bearer {openai_api.key}"
    before = len(openai_api.calls)
    # Nor to a host that came with the request, nor if it has expired, nor because somebody wants it forwarded.
    gateway.post(body=SMALL, key=None, headers={**mine, **named, "x-portkey-api-key": OPS_KEY})
    expired = {"authorization": f"Bearer {issuer.token(exp=1)}", "x-portkey-api-key": OPS_KEY}
    gateway.post(body=SMALL, key=None, headers={**expired, **named})
    forward = {"x-portkey-config": "pc-openai", "x-portkey-forward-headers": "x-portkey-api-key, api-key, x-mine"}
    own = {"x-portkey-api-key": token, "api-key": OPS_KEY, "x-mine": "7"}
    assert gateway.post(body=SMALL, key=None, headers={**forward, **own}).status_code == 200
    assert openai_api.calls[-1].headers["x-mine"] == "7"
    assert len(openai_api.calls) > before
    sent = json.dumps([request.headers for request in openai_api.requests])
    assert "eyJ" not in sent and OPS_KEY not in sent
    # The provider's own key beside the token still is the provider's.
    own_key = {"x-portkey-api-key": token, "authorization": f"Bearer {openai_api.key}"}
    assert gateway.post(body=SMALL, key=None, headers={**own_key, **named}).status_code == 200


def test_keys_may_lie_in_a_file_and_the_shim_may_be_elsewhere(cluster, stability_api, openai_api, issuer, tmp_path):
    file = tmp_path / "jwks.json"
    file.write_text(json.dumps(issuer.key_set()))
    entry = {"issuer": issuer.url, "audience": "imagegate", "jwks_file": str(file), "scopes": ["generate", "configs"]}
    config = founding_config(stability_api, openai_api, default_config="pc-openai", jwt_issuers=[entry])
    del config["api_keys"]
    gateway = cluster(config)
    eventually(lambda: gateway.post(body=SMALL, key=issuer.token()).status_code == 200, 10, "the shim's router")
    assert gateway.post(body=SMALL, key=None).status_code == 401, "a gateway with issuers is not open"
    listed = requests.get(gateway.base_url + "/configs", headers={"x-portkey-api-key": issuer.token()}, timeout=5)
    assert listed.status_code == 200
    assert requests.get(gateway.base_url + "/configs", timeout=5).status_code == 401
    issuer.publish("second")
    file.write_text(json.dumps(issuer.key_set()))
    eventually(lambda: gateway.post(body=SMALL, key=issuer.token("second")).status_code == 200, 10, "the new file")
    assert issuer.requests == []


def test_a_reload_keeps_the_keys_that_are_known(trusting, issuer):
    gateway = trusting()
    assert gateway.post(body=SMALL, key=issuer.token()).status_code == 200
    issuer.is_away = True
    config = yaml.safe_load(gateway.config_file.read_text())
    gateway.write_config({**config, "image_lifetime_s": 60})
    eventually(lambda: "configuration reloaded" in gateway.log, 10, "the reload")
    assert gateway.post(body=SMALL, key=issuer.token()).status_code == 200
