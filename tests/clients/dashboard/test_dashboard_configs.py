"""The dashboard's pages of configs, in a real browser: written, refused, seen, compared and taken back."""

import json
import re

from browser import LOG, READ_KEY
from gateway import OPS_KEY, TEAM_KEY, openai_error
from grpc_client import Admin
from memory import answered, image, logged, saved_config, stored_key

STABILITY = {"virtual_key": "stability-ai-virtualkey", "override_params": {"model": "stable-diffusion-v1-6"}}
OPENAI = {"virtual_key": "open-ai-virtual-key", "override_params": {"model": "dall-e-3"}}
READER = {"name": "reader", "key": READ_KEY, "scopes": ["read"]}


def fallback(*targets):
    return json.dumps({"strategy": {"mode": "fallback"}, "targets": targets}, indent=2)


def boxes(page):
    """What the picture's boxes say, from left to right and from top to bottom."""
    return [" | ".join(box.locator("text").all_text_contents()) for box in page.locator(".picture .node").all()]


def served_by(gateway, slug):
    record = logged(Admin(gateway), answered(image(gateway, slug)))
    return record.provider, record.config_version


def press(page, button):
    page.get_by_role("button", name=button, exact=True).click()


def agree(page):
    page.once("dialog", lambda dialog: dialog.accept())


def test_a_config_is_written_refused_changed_compared_and_taken_back(remembering, store, browse):
    gateway = remembering(store, log=LOG)
    browser = browse(gateway)
    page = browser.page
    browser.sign_in(OPS_KEY, "/configs")
    page.get_by_text("No config has been saved yet.").wait_for()
    page.get_by_role("link", name="pc-sdxl-dalle").click()
    page.get_by_text("stands in the gateway's file").wait_for()
    assert [box.split(" | ")[0] for box in boxes(page)] == ["fallback", "first", "if that fails"]

    page.get_by_role("link", name="Configs", exact=True).click()
    page.get_by_role("link", name="New config").click()
    page.get_by_label("Name", exact=True).fill("hero")
    text = page.get_by_label("JSON or YAML")
    text.fill(fallback(STABILITY, OPENAI))
    press(page, "Check")
    page.get_by_text("Valid. Not saved yet.").wait_for()
    assert boxes(page) == [
        "fallback",
        "first | stability-ai | stable-diffusion-v1-6 | key stability-ai-virtualkey",
        "if that fails | openai | dall-e-3 | key open-ai-virtual-key",
    ]
    press(page, "Save")
    page.get_by_text("Saved.", exact=True).wait_for()
    slug = re.search(r"/configs/([\w-]+)", page.url)[1]
    assert served_by(gateway, slug) == ("stability-ai", 1)

    wrong = fallback(STABILITY, {**OPENAI, "virtual_key": "open-ai-virtual-kee", "retry": {"attempts": "two"}})
    text.fill(wrong)
    press(page, "Save")
    alert = page.get_by_role("alert")
    alert.get_by_text("The config is not valid:").wait_for()
    line = 1 + wrong[: wrong.index("open-ai-virtual-kee")].count("\n")
    assert f'line {line}: targets.1.virtual_key: virtual key "open-ai-virtual-kee" does not exist' in alert.inner_text()
    assert "targets.1.retry.attempts: Expected number, received string" in alert.inner_text()
    assert text.input_value() == wrong, "nothing that was typed is lost"
    assert page.locator(".lines .wrong").count() == 2
    alert.get_by_role("link", name=f"line {line}", exact=True).click()
    selected = "editor => editor.value.slice(editor.selectionStart, editor.selectionEnd)"
    assert "open-ai-virtual-kee" in text.evaluate(selected)
    browser.check("invalid")
    assert served_by(gateway, slug) == ("stability-ai", 1)

    text.fill(fallback(OPENAI, STABILITY))
    press(page, "Save")
    page.get_by_text("Saved.", exact=True).wait_for()
    assert [box.split(" | ")[1] for box in boxes(page)[1:]] == ["openai", "stability-ai"]
    assert served_by(gateway, slug) == ("openai", 2)
    browser.check("config")

    # Somebody else saves while the page is open.
    Admin(gateway).ask("UpdateConfig", slug=slug, config_json=fallback(STABILITY))
    text.fill(fallback(OPENAI))
    press(page, "Save")
    alert.get_by_text("Not saved: while you had version 2 open, version 3 was saved").wait_for()
    assert text.input_value() == fallback(OPENAI)
    assert alert.locator(".added").filter(has_text="open-ai-virtual-key").count() == 1
    press(page, "Save")
    page.get_by_text("Saved.", exact=True).wait_for()
    assert served_by(gateway, slug) == ("openai", 4)

    text.fill(fallback(STABILITY))
    press(page, "Try on the log")
    tried = page.get_by_role("status")
    tried.get_by_text("if every first target answers").wait_for()
    assert tried.get_by_role("row", name="stability-ai/stable-diffusion-v1-6").first.is_visible()
    assert text.input_value() == fallback(STABILITY)

    page.get_by_role("link", name="since 1", exact=True).click()
    page.get_by_role("heading", name="hero: what changed").wait_for()
    assert page.locator(".diff .added").count() == page.locator(".diff .removed").count() > 1
    browser.check("diff")
    page.get_by_role("link", name="Back to the config").click()

    page.get_by_role("link", name="version 1", exact=True).click()
    page.get_by_text("This is version 1.").wait_for()
    assert not text.is_editable()
    agree(page)
    page.get_by_role("button", name="Roll back to 1").first.click()
    page.get_by_text("Saved.", exact=True).wait_for()
    assert served_by(gateway, slug) == ("stability-ai", 5)
    browser.open("/configs")
    row = page.locator("tbody tr", has_text=slug)
    assert "hero" in row.inner_text() and "5" in row.inner_text()
    browser.check("configs")

    row.get_by_role("link", name="hero").click()
    agree(page)
    press(page, "Delete this config")
    page.get_by_text("No config has been saved yet.").wait_for()
    assert openai_error(image(gateway, slug))["code"] == "config_not_found"


def test_a_version_that_is_not_valid_any_more_is_not_gone_back_to(remembering, store, browse, openai_api):
    gateway = remembering(store, log=LOG)
    admin = Admin(gateway)
    key = stored_key(admin, openai_api)
    slug = saved_config(admin, {"virtual_key": key})
    admin.ask("UpdateConfig", slug=slug, config_json=json.dumps(OPENAI))
    admin.ask("DeleteVirtualKey", slug=key)
    browser = browse(gateway)
    page = browser.page
    browser.sign_in(OPS_KEY, f"/configs/{slug}")
    agree(page)
    page.get_by_role("button", name="Roll back to 1").click()
    page.get_by_role("alert").get_by_text(f'virtual key "{key}" does not exist').first.wait_for()
    assert boxes(page) == ["openai | dall-e-3 | key open-ai-virtual-key"], "the one in force is as it was"
    assert served_by(gateway, slug) == ("openai", 2)


def test_a_reader_sees_configs_and_changes_none(remembering, store, browse):
    ops = {"name": "ops", "key": {"env": "OPS_KEY"}, "scopes": ["generate", "configs", "keys", "logs", "admin"]}
    gateway = remembering(store, api_keys=[ops, READER], log=LOG)
    slug = saved_config(Admin(gateway), OPENAI)
    browser = browse(gateway)
    page = browser.page
    browser.sign_in(READ_KEY, "/configs")
    assert page.get_by_role("link", name="New config").count() == 0
    page.get_by_role("link", name="hero").click()
    assert boxes(page) == ["openai | dall-e-3 | key open-ai-virtual-key"]
    assert not page.get_by_label("JSON or YAML").is_editable()
    buttons = page.locator("main button").all_text_contents()
    assert buttons == ["Try on the log"]
    own = {"origin": gateway.admin}
    for address, form in [
        ("/configs/new", {"name": "x", "config": "{}"}),
        (f"/configs/{slug}", {"name": "x", "config": "{}", "opened": "1"}),
        (f"/configs/{slug}/rollback", {"version": "1"}),
        (f"/configs/{slug}/delete", {}),
    ]:
        answer = page.request.post(gateway.admin + address, form=form, headers=own)
        assert answer.status == 403 and "no scope" in answer.text(), address
    assert Admin(gateway).ask("GetConfig", slug=slug).config.name == "hero"


def test_whether_a_config_could_be_saved_is_told_without_saving_it(remembering, store):
    gateway = remembering(store)
    admin = Admin(gateway)
    plan = admin.ask("CheckConfig", slug="pc-sdxl-dalle").plan
    assert [(target.target, target.model) for target in plan.children] == [
        ("config.targets[0]", "stable-diffusion-v1-6"),
        ("config.targets[1]", "dall-e-3"),
    ]
    assert admin.ask("CheckConfig", config_json=json.dumps(OPENAI)).plan.provider == "openai"
    assert admin.refusal("CheckConfig", slug="pc-gone") == (404, "config_not_found")
    assert admin.refusal("CheckConfig", slug="pc-openai", config_json="{}")[0] == 400
    with_key = json.dumps({"provider": "openai", "api_key": "sk-secret"})
    assert admin.refusal("CheckConfig", config_json=with_key) == (400, "invalid_config")
    assert Admin(gateway, TEAM_KEY).refusal("CheckConfig", slug="pc-openai")[0] == 403
    assert not admin.ask("ListConfigs").configs
