"""Every provider of the ring against every case, through the real binary: image, error kind, billing and cost."""

import base64
import time

import pytest

from emulators import faults
from emulators.pictures import look, picture
from emulators.ring import everyone
from gateway import eventually, openai_error

PROVIDERS = everyone()
PROMPT = "a lighthouse at dusk"


@pytest.fixture(params=PROVIDERS, ids=list(PROVIDERS))
def upstream(request):
    emulator = PROVIDERS[request.param]()
    yield emulator
    emulator.close()


@pytest.fixture
def ask(serve, upstream):
    """Asks a gateway whose only provider is `upstream`."""

    def gateway(key):
        return serve(
            {
                "listen": {"http": "127.0.0.1:0", "grpc": "127.0.0.1:0", "admin": "127.0.0.1:0"},
                "virtual_keys": {
                    "it": {
                        "provider": upstream.provider,
                        **upstream.credential("RING_KEY"),
                        "base_url": upstream.base_url,
                        **upstream.options,
                    }
                },
                "configs": {"it": {"virtual_key": "it", "default_params": {"model": upstream.model}}},
                "default_config": "it",
                "egress": {"allow": ["127.0.0.0/8"]},
            },
            env={"RING_KEY": key},
        )

    def ask(path="/images/generations", key=None, **body):
        gate = ask.gateway = ask.gateway or gateway(key or upstream.key)
        body = {"prompt": PROMPT, "size": upstream.size, "response_format": "b64_json", **body}
        more = {"files": body.pop("files"), "data": body} if "files" in body else {"body": body}
        return gate.post(path, key=None, headers=body.pop("headers", None), **more)

    ask.gateway = None
    return ask


def images(answer):
    assert answer.status_code == 200, answer.text[:1000]
    return [look(base64.b64decode(image["b64_json"], validate=True)) for image in answer.json()["data"]]


def attempt(answer):
    """Outcome, status and billing class of the only attempt."""
    parts = answer.headers["x-imagegate-attempts"].split(" ")
    return parts[2], parts[-1]


def failed(answer, status, outcome, billing):
    assert answer.status_code == status, answer.text[:1000]
    assert attempt(answer) == (outcome, billing), answer.headers["x-imagegate-attempts"]
    return openai_error(answer)


def test_a_picture(ask, upstream):
    answer = ask()
    (image,) = images(answer)
    width, height = map(int, upstream.size.split("x"))
    assert image.size == (width, height)
    assert answer.headers["x-portkey-provider"] == upstream.provider
    assert attempt(answer) == ("ok", "billed")
    if upstream.price_usd is None:
        assert answer.headers["x-imagegate-cost-usd"] == "unknown"
    else:
        assert float(answer.headers["x-imagegate-cost-usd"]) == pytest.approx(upstream.price_usd)


def test_the_callers_trace(ask, upstream):
    parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    assert ask(headers={"traceparent": parent}).status_code == 200
    # Without it: logins, and downloads of what was made.
    sent = {call.headers.get("traceparent") for call in upstream.calls}
    assert parent in sent and sent <= {parent, None}


def test_as_an_address(ask, upstream):
    answer = ask(response_format="url")
    assert answer.status_code == 200, answer.text[:1000]
    assert answer.json()["data"][0]["url"].startswith("http")


def test_more_pictures_than_it_makes_at_once(ask, upstream):
    count = upstream.max_n + 1
    answer = ask(n=count)
    assert len(images(answer)) == count
    assert "n emulated" in answer.headers["x-imagegate-warnings"]


def test_a_rate_limit_with_and_without_a_hint(ask, upstream):
    upstream.script.append(faults.status(429))
    answer = ask()
    failed(answer, 429, "rate_limited", "rejected_unbilled")
    if upstream.retry_after:
        name, value = upstream.retry_after
        upstream.script.append(faults.status(429, **{name.replace("-", "_"): value}))
        answer = ask()
        failed(answer, 429, "rate_limited", "rejected_unbilled")
        assert answer.headers["retry-after"] == value


@pytest.mark.parametrize("upstream", [name for name, one in PROVIDERS.items() if one.refuses], indirect=True)
def test_a_refusal(ask, upstream):
    upstream.script.append(faults.refusal())
    answer = ask()
    assert answer.status_code in (400, 403, 422), answer.text[:1000]
    assert attempt(answer)[0] == "content_rejected"
    assert openai_error(answer)["type"]
    assert answer.headers["x-imagegate-refused-by"] == f"config {upstream.provider}"


@pytest.mark.parametrize("upstream", [name for name, one in PROVIDERS.items() if one.has_key], indirect=True)
def test_a_bad_key(ask, upstream):
    answer = ask(key="not-the-key")
    outcome, billing = attempt(answer)
    # A credential that is no credential at all is not sent.
    assert outcome == "permission_denied" and billing in ("rejected_unbilled", "not_sent")
    assert "not-the-key" not in answer.text and upstream.key not in answer.text
    openai_error(answer)


def test_an_overloaded_provider(ask, upstream):
    upstream.script.append(faults.status(503))
    answer = ask()
    failed(answer, 503, "unavailable", attempt(answer)[1])
    assert attempt(answer)[1] in ("unknown", "rejected_unbilled")


def test_answers_that_are_none(ask, upstream):
    async def malformed(emulator, request, connection):
        await connection.send(emulator.malformed(request))
        request.answered = True
        return True

    for fault in (faults.html(200), faults.not_json(), malformed):
        upstream.script.append(fault)
        answer = ask()
        assert answer.status_code == 502, answer.text[:1000]
        assert attempt(answer)[0] == "bad_answer"


def test_an_edit(ask, upstream):
    model = upstream.edit_model or upstream.model
    answer = ask("/images/edits", model=model, files={"image": ("a.png", picture(1024, 1024, 0), "image/png")})
    if upstream.edits:
        assert len(images(answer)) == 1
    else:
        assert openai_error(answer)["code"] == "unsupported" and not upstream.calls


def test_an_answer_that_does_not_come(ask, upstream):
    upstream.always = faults.hang()
    answer = ask(headers={"x-portkey-request-timeout": "1200"})
    failed(answer, 408, "timeout", attempt(answer)[1])
    # Vertex AI's hangs at the login already, which costs nothing.
    assert attempt(answer)[1] in ("unknown", "not_sent")


@pytest.mark.parametrize("upstream", [name for name, one in PROVIDERS.items() if one.polls], indirect=True)
def test_a_slow_job_is_given_up_when_the_caller_goes(ask, upstream):
    upstream.hold_jobs()
    started = time.monotonic()
    answer = ask(headers={"x-portkey-request-timeout": "1500"})
    assert answer.status_code == 408 and attempt(answer) == ("timeout", "unknown")
    assert time.monotonic() - started < 10
    if upstream.cancels:
        eventually(lambda: upstream.cancelled == 1, what="the cancellation")
