"""Credentials that are not sent themselves: a login for a token, which requests share until it is nearly over."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from emulators import faults
from emulators.oauth import EntraTokens, GoogleTokens
from emulators.ring.azure_openai import AzureOpenAi
from emulators.ring.vertex_ai import VertexAi
from gateway import eventually, openai_error


class Application(AzureOpenAi):
    """Azure OpenAI that takes tokens of Entra ID only."""

    def __init__(self):
        super().__init__()
        self.tokens = EntraTokens()
        self.key = self.tokens.client_secret

    def credential(self, variable):
        return {**self.tokens.options, "azure_entra_client_secret": {"env": variable}}

    def inline(self, **changes):
        return {"provider": "azure-openai", **self.tokens.options, **self.options, **changes}

    def logged_in_at(self, url):
        return self.inline(azure_entra_authority=url)

    def guessed(self):
        return self.inline(azure_entra_client_secret="guessed")

    def admits(self, request):
        return self.tokens.admits(request.headers.get("authorization", "")) and "api-key" not in request.headers

    def close(self):
        self.tokens.close()
        super().close()


class Account(VertexAi):
    """Vertex AI, with what its service account looks like in a caller's config."""

    def inline(self, **changes):
        return {"provider": "vertex-ai", "vertex_service_account_json": {**self.tokens.account, **changes}, **self.options}

    def logged_in_at(self, url):
        return self.inline(token_uri=url)

    def guessed(self):
        other = GoogleTokens()
        other.close()
        return self.inline(private_key=other.account["private_key"])


@pytest.fixture(params=[Account, Application], ids=["vertex-ai", "azure-openai"])
def upstream(request):
    emulator = request.param()
    yield emulator
    emulator.close()


@pytest.fixture
def ask(serve, upstream):
    """Asks a gateway whose only virtual key logs in."""

    def gateway(key=None, allow=("127.0.0.0/8",)):
        virtual_key = {
            "provider": upstream.provider,
            **upstream.credential("SECRET"),
            "base_url": upstream.base_url,
            **upstream.options,
        }
        ask.gateway = serve(
            {
                "listen": {"http": "127.0.0.1:0", "grpc": "127.0.0.1:0", "admin": "127.0.0.1:0"},
                "virtual_keys": {"it": virtual_key},
                "configs": {"it": {"virtual_key": "it", "default_params": {"model": upstream.model}}},
                "default_config": "it",
                "egress": {"allow": list(allow)},
            },
            env={"SECRET": key or upstream.key},
        )
        return ask.gateway

    def ask(config=None):
        gate = ask.gateway or gateway()
        headers = {"x-portkey-config": json.dumps(config)} if config else {}
        body = {"prompt": "a lighthouse", "size": "1024x1024", "model": upstream.model}
        return gate.post(body=body, key=None, headers=headers)

    ask.gateway, ask.start = None, gateway
    return ask


def attempt(answer):
    parts = answer.headers["x-imagegate-attempts"].split(" ")
    return parts[2], parts[-1]


def secrets_of(upstream):
    """What nobody may ever see, in pieces that survive a line's end."""
    if isinstance(upstream, Application):
        return [upstream.key]
    return [line for line in upstream.tokens.account["private_key"].split("\n") if len(line) > 40]


def silent(upstream, ask, answer, *more):
    for secret in [*secrets_of(upstream), *more]:
        assert secret not in answer.text and secret not in str(answer.headers) and secret not in ask.gateway.log


def test_requests_share_a_token(ask, upstream):
    ask.start()
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: ask(), range(4)))
    answers.append(ask())
    assert [answer.status_code for answer in answers] == [200] * 5, answers[0].text
    assert len(upstream.tokens.calls) == 1 and len(upstream.calls) == 5
    silent(upstream, ask, answers[0], *upstream.tokens.ends)


def test_a_token_is_renewed_before_its_end(ask, upstream):
    upstream.tokens.lifetime_s = 5

    def renewed():
        answer = ask()
        assert answer.status_code == 200, answer.text
        return len(upstream.tokens.calls) == 2

    eventually(renewed, what="the second login")


def test_after_a_refused_token_the_next_request_logs_in_again(ask, upstream):
    assert ask().status_code == 200
    upstream.tokens.revoke()
    refused = ask()
    assert attempt(refused) == ("permission_denied", "rejected_unbilled")
    assert ask().status_code == 200
    assert len(upstream.tokens.calls) == 2


@pytest.mark.parametrize("fault", [faults.status(503), faults.html(502), faults.reset()], ids=["503", "html", "reset"])
def test_a_token_endpoint_that_is_down(ask, upstream, fault):
    upstream.tokens.always = fault
    answer = ask()
    assert answer.status_code in (502, 503), answer.text
    assert attempt(answer) == ("unavailable", "not_sent")
    assert upstream.calls == []
    openai_error(answer)
    silent(upstream, ask, answer)
    upstream.tokens.always = None
    assert ask().status_code == 200


def test_a_token_endpoint_that_nobody_serves(ask, upstream):
    upstream.tokens.refuse_connections()
    answer = ask()
    assert answer.status_code == 503 and attempt(answer) == ("unavailable", "not_sent")
    assert "connection refused" in openai_error(answer)["message"]
    assert upstream.calls == []


def test_a_token_endpoint_that_gives_none(ask, upstream):
    upstream.tokens.always = faults.not_json()
    answer = ask()
    assert answer.status_code == 502 and attempt(answer) == ("bad_answer", "not_sent")
    assert "login error" in openai_error(answer)["message"]
    assert upstream.calls == []


def test_a_credential_that_is_refused(ask, upstream):
    config = upstream.guessed()
    wrong = config.get("azure_entra_client_secret") or json.dumps(config["vertex_service_account_json"])
    ask.start(key=wrong)
    answer = ask()
    assert answer.status_code == 401, answer.text
    assert attempt(answer) == ("permission_denied", "not_sent")
    error = openai_error(answer)
    assert "login error: invalid_" in error["message"] and error["code"] in ("invalid_grant", "invalid_client")
    assert upstream.calls == []
    silent(upstream, ask, answer, "guessed")


def test_who_knows_an_accounts_name_only_has_no_part_in_its_token(ask, upstream):
    assert ask().status_code == 200
    answer = ask({**upstream.guessed(), "custom_host": upstream.base_url})
    assert attempt(answer) == ("permission_denied", "not_sent")
    assert len(upstream.calls) == 1


def test_a_callers_own_credential_logs_in_where_callers_may_go(ask, upstream):
    answer = ask({**upstream.inline(), "custom_host": upstream.base_url})
    assert answer.status_code == 200, answer.text
    assert len(upstream.tokens.calls) == 1


def test_a_callers_login_does_not_reach_protected_addresses(ask, upstream):
    ask.start(allow=())
    port = upstream.tokens.address.rpartition(":")[2]
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{port}", "169.254.169.254", "10.0.0.1"):
        answer = ask(upstream.logged_in_at(f"http://{host}"))
        assert answer.status_code == 403, f"{host}: {answer.text}"
        assert attempt(answer) == ("permission_denied", "not_sent"), host
    assert upstream.tokens.requests == [] and upstream.calls == []


def test_a_caller_does_not_say_as_whom_a_virtual_key_is_sent(ask, upstream):
    ask.start()
    for setting in ("vertex_service_account_json", "vertex_project_id", "azure_auth_mode", "azure_entra_authority"):
        answer = ask({"virtual_key": "it", setting: "other"})
        assert answer.status_code == 400 and "not for a request to say" in answer.text, f"{setting}: {answer.text}"
    assert upstream.tokens.requests == [] and upstream.calls == []
