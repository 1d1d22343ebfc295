"""The dashboard's pages of keys: made, limited, used, changed, rotated, switched off. Secrets are seen once, or never."""

import re

import requests

from browser import LOG, READ_KEY
from gateway import OPS_KEY, TEAM_KEY, eventually
from memory import hero, image

KEEPER_KEY = "ig-keeper-0123456789abcdef"
# A picture of 1024 x 1024 by DALL-E 3.
PRICE = 0.04


def row(page, name):
    return page.locator("tbody tr", has=page.get_by_role("link", name=name, exact=True))


def test_keys_are_made_used_against_their_budgets_rotated_and_switched_off(gateway, browse, openai_api):
    browser = browse(gateway)
    page = browser.page
    page.on("dialog", lambda dialog: dialog.accept())
    browser.sign_in(OPS_KEY, "/keys")
    assert page.get_by_text("None is stored").count() == 2

    page.get_by_role("link", name="New virtual key").click()
    page.get_by_label("Name", exact=True).fill("OpenAI & friends")
    page.get_by_label("Provider", exact=True).fill("opnai")
    page.get_by_label("Key", exact=True).fill("sk-wrong-0123456789")
    page.get_by_label("Note").fill("ask <mia>")
    page.get_by_role("button", name="Store").click()
    page.get_by_role("alert").locator("li", has_text='did you mean "openai"?').wait_for()
    assert page.get_by_label("Name", exact=True).input_value() == "OpenAI & friends"
    assert page.get_by_label("Note").input_value() == "ask <mia>"
    assert page.get_by_label("Key", exact=True).input_value() == ""
    assert "sk-wrong" not in page.content()
    page.get_by_label("Provider", exact=True).fill("openai")
    page.get_by_label("Key", exact=True).fill("sk-wrong-0123456789")
    page.get_by_label("Address").fill(openai_api.base_url)
    page.locator("[name=budget_monthly]").fill("1")
    browser.check("new-virtual-key")
    page.get_by_role("button", name="Store").click()
    page.get_by_text("It is stored.").wait_for()
    slug = re.search(r"/keys/virtual/([\w.-]+)", page.url)[1]
    page.get_by_text("$0.0000 of $1.0000 monthly").wait_for()

    browser.open("/keys")
    page.get_by_role("link", name="New API key").click()
    page.get_by_label("Name", exact=True).fill("batch")
    page.get_by_text("More", exact=True).click()
    page.locator("[name=budget_total]").fill("a lot")
    page.get_by_role("button", name="Make").click()
    page.get_by_role("alert").get_by_text("total=a lot: not an amount in USD").wait_for()
    assert page.get_by_label("generate").is_checked() and page.get_by_label("Name", exact=True).input_value() == "batch"
    page.locator("[name=budget_total]").fill(str(PRICE * 1.5))
    page.locator("[name=rate_rpd]").fill("100")
    page.get_by_role("button", name="Make").click()
    page.get_by_role("heading", name="The new key of batch").wait_for()
    first = page.get_by_label("API key").input_value()
    assert first not in page.url
    page.get_by_role("button", name="Copy").click()
    page.get_by_role("button", name=re.compile("Copied|Selected")).wait_for()
    browser.check("new-key")
    page.get_by_role("link", name="I have it").click()
    page.wait_for_url(re.compile(r"/keys/api/[\w-]+$"))
    api_key = page.url
    assert first not in page.content()

    # The credential is wrong, and is given anew.
    config = hero(slug)
    assert image(gateway, config, key=first).status_code in (401, 403)
    browser.open(f"/keys/virtual/{slug}")
    page.get_by_label("New key").fill(openai_api.key)
    page.get_by_role("button", name="Replace").click()
    page.get_by_text("It has another secret.").wait_for()
    assert image(gateway, config, key=first).status_code == 200

    def shown(name, text):
        browser.open("/keys")
        return text in row(page, name).inner_text()

    eventually(lambda: shown("batch", "$0.0400 of $0.0600 total"), what="the use of the API key's budget")
    eventually(lambda: shown("OpenAI & friends", "$0.0400 of $1.0000 monthly"), what="that of the virtual key's")
    eventually(lambda: shown("OpenAI & friends", "2 requests"), what="the cost of 30 days")
    assert "2 of 100 rpd" in row(page, "batch").inner_text()
    used = row(page, "OpenAI & friends").locator("svg.bars rect.good")
    assert float(used.get_attribute("width")) == 40
    browser.check("keys")
    # What is left does not do for another picture.
    assert image(gateway, config, key=first).status_code == 412

    page.goto(api_key)
    page.get_by_label("How long the old key works on").fill("soon")
    page.get_by_role("button", name="Rotate").click()
    page.get_by_role("alert").get_by_text("not a length of time").wait_for()
    page.get_by_label("How long the old key works on").fill("0s")
    page.get_by_role("button", name="Rotate").click()
    page.get_by_text("The old key works until").wait_for()
    second = page.get_by_label("API key").input_value()
    assert second != first
    eventually(lambda: image(gateway, config, key=first).status_code == 401, what="the end of the old key")

    page.goto(api_key)
    page.locator("[name=budget_total]").fill("5")
    page.get_by_label("Metadata").fill("team=blue")
    page.get_by_label("logs").check()
    page.get_by_label("Configs it may use").select_option("only these")
    page.get_by_label("These configs").fill("nowhere")
    page.get_by_role("button", name="Change").click()
    page.get_by_role("alert").get_by_text('config "nowhere" does not exist').wait_for()
    assert page.get_by_label("Metadata").input_value() == "team=blue" and page.get_by_label("logs").is_checked()
    page.get_by_label("These configs").fill("")
    page.get_by_label("Configs it may use").select_option("all of its tenant")
    page.get_by_role("button", name="Change").click()
    page.get_by_text("It is changed.").wait_for()
    assert "generate, logs" in page.locator(".facts").inner_text()
    browser.check("api-key")
    assert image(gateway, config, key=second).status_code == 200

    page.get_by_role("button", name="Disable").click()
    page.get_by_text("It is disabled").wait_for()
    assert image(gateway, config, key=second).status_code == 401
    page.get_by_role("button", name="Enable").click()
    page.get_by_text("It can be used again").wait_for()
    assert image(gateway, config, key=second).status_code == 200

    browser.open(f"/keys/virtual/{slug}")
    browser.check("virtual-key")
    page.get_by_role("button", name="Delete").click()
    page.wait_for_url(re.compile("/keys$"))
    page.goto(api_key)
    page.get_by_role("button", name="Delete").click()
    page.wait_for_url(re.compile("/keys$"))
    assert page.get_by_text("None is stored").count() == 2
    assert image(gateway, config, key=second).status_code == 401

    for secret in (first, second, openai_api.key, "sk-wrong-0123456789", OPS_KEY):
        assert secret not in gateway.log
    for path in ("/keys", "/logs"):
        browser.open(path)
        assert not any(secret in page.content() for secret in (first, second, openai_api.key, "sk-wrong"))


def test_who_may_not_change_keys_sees_them_or_nothing(remembering, store, browse):
    keys = [
        {"name": "ops", "key": {"env": "OPS_KEY"}, "scopes": ["generate", "configs", "keys", "logs", "admin"]},
        {"name": "team-a", "key": {"env": "TEAM_A_KEY"}, "scopes": ["generate", "logs"]},
        {"name": "reader", "key": READ_KEY, "scopes": ["read"], "rate_limits": [{"unit": "rpd", "value": 7}]},
        {"name": "keeper", "key": KEEPER_KEY, "scopes": ["keys"]},
    ]
    gateway = remembering(store, api_keys=keys, log=LOG)
    browser = browse(gateway)
    page = browser.page
    browser.sign_in(READ_KEY, "/keys")
    assert page.get_by_role("heading", name="API keys").is_visible()
    page.get_by_text("0 of 7 rpd").wait_for()
    assert page.get_by_role("link", name=re.compile("^New")).count() == 0
    own = {"origin": gateway.admin}
    refused = page.request.post(gateway.admin + "/keys/new-api-key", form={"name": "x", "scopes": "admin"}, headers=own)
    assert refused.status == 403 and "no scope" in refused.text()
    page.get_by_role("button", name="Sign out").click()

    browser.sign_in(KEEPER_KEY, "/keys")
    assert page.get_by_role("link", name="New virtual key").is_visible()
    assert page.get_by_role("heading", name="API keys").count() == 0
    page.get_by_role("button", name="Sign out").click()

    browser.sign_in(TEAM_KEY, "/logs")
    assert page.get_by_role("link", name="Keys").count() == 0
    browser.open("/keys")
    assert "no scope" in page.get_by_role("alert").inner_text()


def test_the_first_key_of_an_open_gateway_closes_it(remembering, store):
    gateway = remembering(store, api_keys=[])
    form = {"name": "ops", "scopes": ["admin", "logs"]}
    own = {"origin": gateway.admin}
    answer = requests.post(gateway.admin + "/keys/new-api-key", data=form, headers=own)
    assert answer.status_code == 200 and "asks everybody for a key" in answer.text
    assert answer.headers["cache-control"] == "no-store"
    key = re.search(r'id="key"[^>]* value="([^"]+)"', answer.text)[1]
    assert "/sign-in" in requests.get(gateway.admin + "/keys").url
    signed_in = requests.Session()
    answer = signed_in.post(gateway.admin + "/sign-in", data={"key": key, "to": "/keys"}, headers=own)
    assert answer.status_code == 200 and "<h1>Keys</h1>" in answer.text and key not in answer.text
