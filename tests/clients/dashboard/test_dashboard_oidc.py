"""People who sign in to the dashboard at an OpenID Connect provider, and all that may go wrong on the way."""

import time
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
import yaml
from cryptography.hazmat.primitives.asymmetric import rsa

from emulators.openid import OpenID
from gateway import OPS_KEY, eventually, founding_config

SECRET = "s3cret:ä with blanks"


@pytest.fixture
def provider():
    provider = OpenID(secret=SECRET)
    yield provider
    provider.close()


@pytest.fixture
def trusting(serve, stability_api, openai_api, provider):
    """Starts a gateway whose people sign in at the provider: `trusting(sign_in, session_s=60)`."""

    def trusting(sign_in=None, issuer=None, **more):
        audience = [provider.audience, provider.client]
        issuer = {"issuer": provider.url, "audience": audience, "scopes": ["logs"], **(issuer or {})}
        secret = {"env": "OIDC_SECRET"}
        usual = {"issuer": provider.url, "client_id": provider.client, "client_secret": secret, "name": "Platform"}
        dashboard = {"sign_in": {**usual, **(sign_in or {})}, **more}
        config = founding_config(stability_api, openai_api, jwt_issuers=[issuer], dashboard=dashboard)
        return serve(config, {"OIDC_SECRET": SECRET})

    return trusting


def begun(gateway, session, headers=None):
    """The address at the provider that the browser is sent to."""
    address = gateway.admin + "/sign-in/issuer?to=/logs"
    answer = session.get(address, headers=headers, allow_redirects=False, timeout=10)
    assert answer.status_code == 303, answer.text
    return answer.headers["location"]


def ended(gateway, provider, **how):
    """What the browser is told when it has come back."""
    session = requests.Session()
    back = provider.signs_in(begun(gateway, session), **how)
    return session.get(back, allow_redirects=False, timeout=10)


def test_somebody_signs_in_at_the_provider_and_comes_back_to_the_page(trusting, browse, provider):
    gateway = trusting()
    browser = browse(gateway)
    page, addresses = browser.page, []
    page.on("request", lambda request: addresses.append(request.url))
    browser.open("/logs?provider=openai")
    assert "/sign-in" in page.url
    browser.check("sign-in")
    page.get_by_role("link", name="Platform").click()
    page.get_by_role("button", name="Deny").click()
    page.get_by_role("heading", name="You are not signed in").wait_for()
    alert = page.get_by_role("alert").inner_text()
    assert alert == f"{provider.url} has not let you in: access_denied: not <b>you</b>"
    browser.elsewhere.clear()
    browser.check("not-signed-in")

    page.get_by_role("link", name="Try again").click()
    page.get_by_label("Name").fill("alice")
    page.get_by_role("button", name="Allow").click()
    page.wait_for_url(gateway.admin + "/logs?provider=openai")
    assert page.locator(".visitor").get_by_text("alice").is_visible()
    assert page.get_by_role("link", name="Keys").count() == 0, "its issuer gives it the log alone"

    (token,) = provider.given
    cookies = {cookie["name"]: cookie for cookie in page.context.cookies()}
    assert list(cookies) == ["imagegate_session"], "the attempt is over"
    session = cookies["imagegate_session"]
    # The token lasts 300 seconds, and the session no longer.
    assert session["httpOnly"] and 200 < session["expires"] - time.time() <= 300
    seen = "\n".join([*addresses, *(cookie["value"] for cookie in cookies.values()), gateway.log, page.content()])
    verifier = next(request.body for request in provider.requests if request.path == "/token").decode()
    verifier = parse_qs(verifier)["code_verifier"][0]
    for secret in (token, token.split(".")[1], SECRET, "s3cret", verifier):
        assert secret not in seen

    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url(lambda url: "/sign-in" in url)
    browser.open("/logs")
    assert "/sign-in" in page.url
    browser.sign_in(OPS_KEY, "/keys")
    assert page.get_by_role("heading", name="Virtual keys").is_visible()


def test_whatever_does_not_fit_is_refused_with_what_to_do(trusting, provider):
    gateway = trusting()
    stranger = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    now = int(time.time())
    for more, status, why in [
        ({"nonce": "another"}, 401, "the token was made for another sign-in (nonce)"),
        ({"nonce": None}, 401, "the token was made for another sign-in (nonce)"),
        ({"aud": "imagegate"}, 401, "the token is for another audience (aud); allowed: dashboard"),
        ({"aud": "somebody"}, 401, "the token is for another audience (aud)"),
        ({"iss": "https://other.example"}, 401, "that this gateway does not know"),
        ({"exp": now - 300}, 401, "the token expired at"),
        ({"exp": now - 5}, 401, "clocks of the issuer"),
        ({"pad": "x" * 4000}, 400, "too long for a browser to keep"),
    ]:
        provider.more = more
        answer = ended(gateway, provider)
        assert answer.status_code == status and why in answer.text, (more, answer.text)
        assert "imagegate_session" not in answer.headers.get("set-cookie", "")
        assert "Try again" in answer.text and "/sign-in?to=%2Flogs" in answer.text
        assert provider.given[-1] not in answer.text
    provider.more, provider.private = {}, stranger
    assert "has a wrong signature" in ended(gateway, provider).text
    provider.private = None

    session = requests.Session()
    back = provider.signs_in(begun(gateway, session))
    changed = back.replace("state=", "state=x")
    strangers = requests.get(back, timeout=10)
    for answer in (session.get(changed, timeout=10), strangers, session.get(back.replace("iss=http", "iss=no"), timeout=10)):
        assert answer.status_code == 400 and "this sign-in was not begun here" in answer.text
    assert session.get(back, allow_redirects=False, timeout=10).status_code == 303
    assert session.get(back, timeout=10).status_code == 400, "the attempt is over"

    provider.secret = "another"
    answer = ended(gateway, provider)
    assert answer.status_code == 401 and "gives no token for this sign-in: invalid_client" in answer.text
    back = provider.signs_in(begun(gateway, session))
    provider.is_away = True
    answer = session.get(back, timeout=10)
    assert answer.status_code == 503 and "cannot be asked now" in answer.text and "HTTP 503" in answer.text
    answer = session.get(gateway.admin + "/sign-in/issuer?to=//evil.example", timeout=10)
    assert answer.status_code == 503 and "Try it again in a moment" in answer.text
    reasons = [e["fields"]["reason"] for e in gateway.back.events if "could not sign in" in e["fields"].get("message", "")]
    assert len(reasons) == 12, reasons
    assert not any(token in gateway.log for token in provider.given) and "s3cret" not in gateway.log


def test_what_somebody_may_do_and_for_how_long_is_what_the_file_says(trusting, provider):
    provider.methods = ["client_secret_post"]
    public = "https://gateway.example"
    gateway = trusting(issuer={"scope_claim": "roles", "scopes": None}, session_s=60, public_url=public + "/")
    provider.more = {"roles": "imagegate:nothing"}
    session = requests.Session()

    def back():
        address = provider.signs_in(begun(gateway, session))
        assert address.startswith(public + "/sign-in/callback?")
        return gateway.admin + address.removeprefix(public)

    answer = session.get(back(), timeout=10)
    assert answer.status_code == 403 and "has no scope" in answer.text and "jwt_issuers" in answer.text
    provider.more = {"roles": "imagegate:read"}
    over_tls = {"x-forwarded-proto": "https"}
    answer = session.get(back(), headers=over_tls, allow_redirects=False, timeout=10)
    assert (answer.status_code, answer.headers["location"]) == (303, "/logs")
    cookies = answer.headers["set-cookie"]
    assert "imagegate_session=" in cookies and "Max-Age=60; Secure" in cookies
    pair = next(part for part in cookies.replace(",", ";").split(";") if "imagegate_session=" in part).strip()
    logs = requests.get(gateway.admin + "/keys", headers={"cookie": pair}, timeout=10)
    assert logs.status_code == 200 and "alice" in logs.text


def test_without_a_public_address_the_provider_is_told_the_browsers_own(trusting, provider):
    gateway = trusting()
    for headers, wanted in [
        ({"host": "gw.example:8443", "x-forwarded-proto": "https"}, "https://gw.example:8443/sign-in/callback"),
        ({}, gateway.admin + "/sign-in/callback"),
    ]:
        query = parse_qs(urlsplit(begun(gateway, requests.Session(), headers)).query)
        assert query["redirect_uri"] == [wanted]


def test_a_dashboard_that_is_switched_off_has_no_pages(serve, stability_api, openai_api):
    config = founding_config(stability_api, openai_api, dashboard={"enabled": False})
    gateway = serve(config)

    def status(path):
        return requests.get(gateway.admin + path, timeout=5).status_code

    assert {status(path) for path in ("/", "/logs", "/sign-in", "/sign-in/issuer", "/assets/style.css")} == {404}
    assert (status("/metrics"), status("/readyz")) == (200, 200)
    gateway.write_config({**yaml.safe_load(gateway.config_file.read_text()), "dashboard": {"enabled": True}})
    eventually(lambda: status("/sign-in") == 200, 10, "the dashboard")
    assert "Sign in with" not in requests.get(gateway.admin + "/sign-in", timeout=5).text
    assert status("/sign-in/issuer") == 404
