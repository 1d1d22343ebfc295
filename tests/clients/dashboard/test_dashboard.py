"""The dashboard, in a real browser: what people see of requests, and what they do with it."""

import re

import requests

from browser import LOG, READ_KEY
from emulators import faults
from gateway import OPS_KEY, TEAM_KEY, eventually
from grpc_client import Admin
from memory import answered, image, logged


def test_a_request_that_falls_back_is_seen_opened_found_and_replayed(gateway, browse, stability_api):
    browser = browse(gateway)
    page = browser.page
    browser.sign_in(OPS_KEY, "/logs")
    page.get_by_text("No request is like that yet").wait_for()
    page.get_by_role("status").get_by_text("live").wait_for()

    stability_api.always = faults.status(500)
    prompt = "a lighthouse <b>in</b> the fog"
    answered(image(gateway, "pc-sdxl-dalle", body={"prompt": prompt, "size": "1024x1024"}))
    row = page.locator("tbody tr", has_text=prompt)
    row.wait_for()
    assert row.get_by_text("fallback", exact=True).is_visible()
    assert "openai" in row.inner_text() and "200 ok" in row.inner_text()
    thumbnail = row.locator("img")
    eventually(lambda: thumbnail.evaluate("image => image.naturalWidth") > 0, what="the thumbnail")
    browser.check("logs")

    row.get_by_role("link", name=prompt).click()
    page.get_by_role("heading", name="Where the time went").wait_for()
    attempts = page.locator(".waterfall tbody tr")
    assert attempts.count() == 2
    assert "stability-ai" in attempts.nth(0).inner_text() and "500" in attempts.nth(0).inner_text()
    assert "openai" in attempts.nth(1).inner_text() and "ok" in attempts.nth(1).inner_text()
    begin = [float(bar.get_attribute("x")) for bar in page.locator(".waterfall rect").all()]
    assert begin[0] < begin[1] or begin[0] == 0
    browser.check("request")

    browser.open("/logs")
    page.get_by_label("Fallback").select_option("yes")
    page.get_by_role("button", name="Filter").click()
    page.wait_for_url(re.compile("fallback=true"))
    assert page.locator("tbody tr").count() == 1
    page.get_by_label("Fallback").select_option("no")
    page.get_by_role("button", name="Filter").click()
    page.wait_for_url(re.compile("fallback=false"))
    page.get_by_text("No request is like that").wait_for()

    stability_api.always = None
    page.go_back()
    page.get_by_role("link", name=prompt).click()
    before = page.url
    page.get_by_role("button", name="Replay").click()
    page.wait_for_url(lambda url: url != before and "/replay" not in url)
    page.get_by_role("heading", name="Where the time went").wait_for()
    assert page.locator(".waterfall tbody tr").count() == 1
    assert "stability-ai" in page.locator(".waterfall tbody tr").inner_text()

    page.get_by_role("button", name="Good").click()
    page.locator("#feedback + ul li", has_text="1").wait_for()


def test_what_a_provider_would_have_billed_is_not_sent_without_what_the_log_has_not_kept(remembering, store, browse):
    gateway = remembering(store, log={"flush_ms": 100})
    record = logged(Admin(gateway), answered(image(gateway, "pc-openai", body={"prompt": "a secret plan"})))
    browser = browse(gateway)
    browser.sign_in(OPS_KEY, f"/logs/{record.id}")
    assert "secret plan" not in browser.page.content()
    assert browser.page.get_by_label("Prompt").input_value() == ""
    browser.page.get_by_role("button", name="Replay").click()
    assert browser.page.url.endswith(record.id), "an empty prompt is not sent"


def test_who_may_not_sees_nothing_and_a_reader_changes_nothing(remembering, store, browse):
    keys = [
        {"name": "ops", "key": {"env": "OPS_KEY"}, "scopes": ["generate", "configs", "keys", "logs", "admin"]},
        {"name": "team-a", "key": {"env": "TEAM_A_KEY"}, "scopes": ["generate"]},
        {"name": "reader", "key": READ_KEY, "scopes": ["read"]},
    ]
    gateway = remembering(store, api_keys=keys, log=LOG)
    record = logged(Admin(gateway), answered(image(gateway, "pc-openai", body={"prompt": "x"})))
    browser = browse(gateway)
    page = browser.page

    browser.open("/logs?provider=openai")
    assert "/sign-in" in page.url
    browser.check("sign-in")
    page.get_by_label("API key").fill("ig-wrong")
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("alert").get_by_text("not valid").wait_for()
    page.get_by_label("API key").fill(READ_KEY)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(re.compile(r"/logs\?provider=openai"))
    assert page.locator("tbody tr").count() == 1

    page.locator("a.row").click()
    page.get_by_role("heading", name="Cost").wait_for()
    assert page.get_by_role("button", name="Replay").count() == 0
    refused = page.request.post(
        gateway.admin + f"/logs/{record.id}/replay", form={"prompt": "x"}, headers={"origin": gateway.admin}
    )
    assert refused.status == 403 and 'no scope' in refused.text()

    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url(re.compile("/sign-in"))
    browser.open("/logs")
    assert "/sign-in" in page.url
    browser.sign_in(TEAM_KEY, "/")
    browser.open("/logs")
    assert "no scope" in page.get_by_role("alert").inner_text()


def test_other_sites_can_neither_post_nor_frame_nor_steer_whoever_signs_in(gateway):
    answer = requests.post(gateway.admin + "/sign-in", data={"key": OPS_KEY, "to": "//evil.example"}, allow_redirects=False)
    assert answer.status_code == 403, "a post that comes from nowhere"
    own = {"origin": gateway.admin}
    answer = requests.post(
        gateway.admin + "/sign-in", data={"key": OPS_KEY, "to": "//evil.example"}, headers=own, allow_redirects=False
    )
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=Lax" in cookie and OPS_KEY not in cookie
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert "unsafe-inline" not in answer.headers["content-security-policy"]
    session = {"cookie": cookie.split(";")[0]}
    assert requests.get(gateway.admin + "/logs", headers=session).status_code == 200
    evil = {**session, "origin": "https://evil.example", "sec-fetch-site": "cross-site"}
    assert requests.post(gateway.admin + "/sign-out", headers=evil).status_code == 403
    assert requests.get(gateway.admin + "/metrics").status_code == 200
    assert OPS_KEY not in gateway.log


def test_without_keys_the_dashboard_is_for_its_own_machine(remembering, store):
    gateway = remembering(store, api_keys=[])
    assert requests.get(gateway.admin + "/logs").status_code == 200
    assert requests.get(gateway.admin + "/logs", headers={"host": "evil.example"}).status_code == 403
    assert requests.get(gateway.admin + "/metrics", headers={"host": "evil.example"}).status_code == 200
