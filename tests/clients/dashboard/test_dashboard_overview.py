"""The dashboard's sums and the state of targets, in a real browser."""

import re

from emulators import faults
from gateway import OPS_KEY, eventually
from grpc_client import Admin
from memory import answered, image

SIZE = {"size": "1024x1024"}
CACHED = {
    "virtual_key": "open-ai-virtual-key",
    "override_params": {"model": "dall-e-3"},
    "cache": {"mode": "simple"},
}
# The breaker stays open for as long as the test looks.
ILL = {
    "strategy": {"mode": "fallback"},
    "breaker": {"consecutive_failures": 2, "cooldown_s": 3600},
    "targets": [
        {"virtual_key": "stability-ai-virtualkey", "override_params": {"model": "stable-diffusion-v1-6"}},
        {"virtual_key": "open-ai-virtual-key", "override_params": {"model": "dall-e-3"}},
    ],
}


def tile(page, name):
    """What stands under a name: the value, and everything else."""
    return page.locator(".tiles > div", has=page.get_by_role("link", name=name, exact=True)).inner_text().splitlines()


def test_an_empty_gateway_says_what_to_do_and_a_busy_one_what_it_did(gateway, browse, stability_api):
    browser = browse(gateway)
    page = browser.page
    browser.sign_in(OPS_KEY, "/")
    assert page.get_by_text("No request has come yet").is_visible()
    assert "authorization: Bearer" in page.locator("pre.command").inner_text()
    browser.check("overview-empty")

    answered(image(gateway, "pc-sdxl-dalle", body=SIZE))
    stability_api.always = faults.status(500)
    answered(image(gateway, "pc-sdxl-dalle", body=SIZE))
    for _ in range(2):
        answered(image(gateway, CACHED, body={"prompt": "the same again"}))
    assert image(gateway, "pc-stability", body=SIZE).status_code == 500
    eventually(lambda: len(list(Admin(gateway).requests())) == 5, what="five requests in the log")

    browser.open("/")
    assert tile(page, "Requests")[1] == "5"
    assert tile(page, "Failed")[1] == "1 (20.0 %)"
    assert tile(page, "Rescued by a fallback")[1] == "1 (20.0 %)"
    assert tile(page, "Answered from a cache")[1] == "1 (20.0 %)"
    assert re.match(r"[\d.]+m?s$", tile(page, "Took: p50")[1])
    assert page.get_by_role("img", name="Requests").locator("rect").count() >= 3
    page.get_by_text("The numbers by the hour").click()
    sums = page.locator("details tbody tr")
    assert sums.count() == 24
    assert sum(int(cell) for cell in sums.locator("td:nth-child(2)").all_inner_texts()) == 5
    page.get_by_text("saved about $0.0400").wait_for()
    openai = page.locator("tr", has=page.get_by_role("link", name="openai", exact=True)).locator("td").all_inner_texts()
    assert openai[:5] == ["3", "0", "1", "0", "1"]
    browser.check("overview")

    page.get_by_role("link", name="7 days").click()
    page.wait_for_url(re.compile(r"range=7d"))
    assert tile(page, "Requests")[1] == "5"
    page.get_by_role("link", name="1 hour").click()
    page.wait_for_url(re.compile(r"range=1h"))
    assert tile(page, "Requests")[1] == "5"
    page.get_by_role("link", name="Rescued by a fallback").click()
    page.wait_for_url(re.compile("fallback=true"))
    assert page.locator("tbody tr").count() == 1
    browser.open("/?whole=yes")
    assert page.get_by_role("link", name="stability-ai", exact=True).is_visible()
    browser.open("/?range=1y")
    assert "allowed: 1h, 24h, 7d, 30d" in page.get_by_role("alert").inner_text()


def test_targets_are_seen_as_they_fall_ill(remembering, store, browse, stability_api):
    gateway = remembering(store, configs={"pc-ill": ILL, "pc-openai": {"virtual_key": "open-ai-virtual-key"}})
    browser = browse(gateway)
    page = browser.page
    browser.sign_in(OPS_KEY, "/targets")
    rows = page.locator("tbody tr")
    first = page.locator("tr", has_text="pc-ill").filter(has_text="config.targets[0]")
    assert rows.count() == 3 and "not asked lately" in first.inner_text()
    page.get_by_role("status").get_by_text("live").wait_for()

    stability_api.always = faults.status(500)
    for _ in range(4):
        answered(image(gateway, "pc-ill", body=SIZE))
    first.get_by_text("left alone: breaker open").wait_for()
    second = page.locator("tr", has_text="pc-ill").filter(has_text="config.targets[1]")
    second.get_by_text("well", exact=True).wait_for()
    assert re.search(r"[\d.]+ s", second.inner_text())
    browser.check("targets")

    page.get_by_label("Only what is not well").check()
    page.get_by_role("button", name="Filter").click()
    page.wait_for_url(re.compile("unwell=true"))
    assert first.count() == 1 and second.count() == 0
    page.get_by_label("Config").select_option("pc-openai")
    page.get_by_role("button", name="Filter").click()
    page.wait_for_url(re.compile("config=pc-openai"))
    page.get_by_text("Nothing is unwell").wait_for()
    page.get_by_label("Only what is not well").uncheck()
    page.get_by_role("button", name="Filter").click()
    page.wait_for_url(lambda url: "unwell" not in url)
    assert all("pc-openai" in row for row in rows.all_inner_texts())
