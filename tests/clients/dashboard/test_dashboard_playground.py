"""The playground, in a real browser: the plan before anything is paid, and what comes of it while it comes."""

import base64
import json
import re
from urllib.parse import parse_qs, urlparse


from browser import LOG, READ_KEY
from emulators import faults
from emulators.pictures import look
from gateway import OPS_KEY, TEAM_KEY, eventually
from grpc_client import Admin
from memory import image

SANDBOX = {"provider": "sandbox"}


def field(page, name):
    """A field of the form; that each has a label is checked by `Browser.check`."""
    return page.locator(f"#playground [name={name}]")


def shown(picture):
    """An image on a page, once it is drawn: its size."""
    eventually(lambda: picture.evaluate("image => image.complete && image.naturalWidth") > 0, what="the image")
    return picture.evaluate("image => [image.naturalWidth, image.naturalHeight]")


def test_the_plan_comes_first_then_previews_and_images_and_no_prompt_is_in_the_address(gateway, browse, openai_api):
    browser = browse(gateway)
    page = browser.page
    browser.sign_in(OPS_KEY, "/playground")
    field(page, "prompt").fill("a <i>red</i> fox")
    field(page, "negative_prompt").fill("dogs")
    field(page, "config").select_option("pc-openai")
    field(page, "model").fill("gpt-image-1")
    field(page, "size").fill("1000x1000")
    field(page, "partial_images").select_option("2")
    page.get_by_role("button", name="Explain").click()
    plan = page.locator(".plan")
    plan.wait_for()
    assert "openai gpt-image-1" in plan.inner_text() and "the price of an answer is not known" in plan.inner_text()
    assert "size adjusted" in plan.inner_text() and "negative_prompt dropped" in plan.inner_text()
    assert not openai_api.calls, "explaining is free"
    address = parse_qs(urlparse(page.url).query)
    expected = {"config": "pc-openai", "model": "gpt-image-1", "size": "1000x1000", "partial_images": "2"}
    assert address == {name: [value] for name, value in expected.items()}

    openai_api.always = faults.hold_last()
    page.get_by_role("button", name="Generate").click()
    page.get_by_alt_text("preview 2 of image 1").wait_for()
    assert shown(page.get_by_alt_text("preview 2 of image 1")) == [1024, 1024]
    assert page.get_by_role("button", name="Generate").is_disabled()
    browser.check("playground-running")
    openai_api.release()
    page.get_by_text("done", exact=True).wait_for()
    picture = page.get_by_alt_text("image 1 of 1")
    assert shown(picture) == [1024, 1024] and picture.get_attribute("src").startswith("blob:")
    assert page.get_by_alt_text("preview 2 of image 1").count() == 0
    answer = page.locator(".column").inner_text()
    assert "png 1024×1024" in answer and "openai gpt-image-1" in answer and "size adjusted" in answer and "$0." in answer
    assert "ok" in page.locator(".waterfall tbody tr").inner_text()
    browser.check("playground-done")

    # The form is as it was, and the address makes the same one without its prompt.
    assert field(page, "prompt").input_value() == "a <i>red</i> fox"
    page.get_by_role("link", name="This request in the log").click()
    page.get_by_role("heading", name="Where the time went").wait_for()
    assert page.locator(".prompt").inner_text() == "a <i>red</i> fox"
    page.go_back()
    page.reload()
    assert field(page, "model").input_value() == "gpt-image-1"
    assert field(page, "config").input_value() == "pc-openai"
    assert field(page, "prompt").input_value() == ""


def test_each_target_is_asked_on_its_own_after_its_cost_was_agreed_to(gateway, browse, stability_api, openai_api):
    config = {
        "strategy": {"mode": "fallback"},
        "retry": {"attempts": 2},
        "targets": [
            {"virtual_key": "stability-ai-virtualkey", "override_params": {"model": "stable-diffusion-v1-6"}},
            {"virtual_key": "open-ai-virtual-key", "override_params": {"model": "dall-e-3", "quality": "hd"}},
            SANDBOX,
        ],
    }
    browser = browse(gateway)
    page = browser.page
    browser.sign_in(OPS_KEY, "/playground")
    field(page, "prompt").fill("a lighthouse")
    page.get_by_text("A config written here").click()
    field(page, "inline").fill(json.dumps(config, indent=2))
    field(page, "size").fill("512x512")
    field(page, "each").check()
    page.get_by_role("button", name="Generate", exact=True).click()
    go = page.get_by_role("button", name="Generate at 3 targets")
    go.wait_for()
    agreed = page.locator("div.notice").inner_text()
    assert "3 requests, one for each target, at most 9 calls" in agreed and re.search(r"at most \$0\.\d{4}", agreed)
    assert not stability_api.calls and not openai_api.calls
    browser.check("playground-agreement")

    openai_api.always = faults.status(400)
    go.click()
    columns = page.locator(".column")
    page.get_by_text("failed", exact=True).wait_for()
    for column, size in [(columns.nth(0), [512, 512]), (columns.nth(2), [512, 512])]:
        column.get_by_text("done", exact=True).wait_for()
        assert shown(column.get_by_role("img")) == size
        assert column.locator(".waterfall tbody tr").count() == 1, "nobody else was asked"
    assert "config.targets[0]" in columns.nth(0).get_by_role("heading").inner_text()
    failed = columns.nth(1)
    assert failed.get_by_role("alert").inner_text() and "400" in failed.locator(".waterfall").inner_text()
    assert "$0.0000" in failed.locator(".facts").inner_text(), "a refusal is not billed"
    # Everything that the config says of a target still holds.
    assert openai_api.calls[0].json()["quality"] == "hd" and len(openai_api.calls) == 1
    assert len(stability_api.calls) == 1
    browser.check("playground-columns")
    records = eventually(lambda: len(found := Admin(gateway).requests()) == 3 and found, what="three records")
    assert {record.config for record in records} == {"inline"}

    # What was agreed to is gone as soon as something else is asked for.
    field(page, "n").fill("2")
    assert go.count() == 0


def test_cancelling_ends_the_call_at_the_provider(gateway, browse, openai_api):
    openai_api.always = faults.hang()
    browser = browse(gateway)
    page = browser.page
    browser.sign_in(OPS_KEY, "/playground?config=pc-openai&model=gpt-image-1")
    field(page, "prompt").fill("a fox")
    page.get_by_role("button", name="Generate").click()
    (upstream,) = openai_api.wait_for_calls(1)
    cancel = page.get_by_role("button", name="Cancel")
    assert cancel.evaluate("button => button === document.activeElement")
    cancel.click()
    assert upstream.closed.wait(5)
    page.get_by_text("cancelled", exact=True).wait_for()
    (record,) = eventually(lambda: Admin(gateway).requests(), what="a record")
    assert record.outcome == "cancelled"
    assert page.get_by_role("button", name="Generate").is_enabled()


def test_what_is_wrong_is_said_in_full_beside_what_was_written(gateway, browse, stability_api, openai_api):
    browser = browse(gateway)
    page = browser.page
    browser.sign_in(OPS_KEY, "/playground?config=pc-sdxl-dalle&size=huge")
    field(page, "prompt").fill("a fox")
    page.get_by_role("button", name="Generate").click()
    page.get_by_role("alert").get_by_text('size: "huge" is not allowed').wait_for()
    field(page, "size").fill("1024x1024")
    page.get_by_text("A config written here").click()
    for written, said in [
        ("{", "config: not JSON: EOF"),
        ('{"strategy": {"mode": "fallback"}, "targets": [{"virtual_key": "nope"}]}', "targets.0.virtual_key"),
    ]:
        field(page, "inline").fill(written)
        page.get_by_role("button", name="Explain").click()
        page.get_by_role("alert").get_by_text(said).first.wait_for()
        assert field(page, "inline").input_value() == written
    field(page, "inline").fill("")
    stability_api.always = openai_api.always = faults.status(500)
    page.get_by_role("button", name="Generate").click()
    page.get_by_role("alert").get_by_text("every target failed").wait_for()
    assert page.locator(".waterfall tbody tr").count() == 2
    page.get_by_role("link", name="This request in the log").wait_for()
    browser.check("playground-failed")


def test_without_script_the_page_has_the_plan_and_the_finished_images(gateway, browse, image_files, openai_api):
    browser = browse(gateway, java_script_enabled=False)
    page = browser.page
    browser.sign_in(OPS_KEY, "/playground?config=pc-openai&model=gpt-image-1&n=2&partial_images=3")
    field(page, "prompt").fill("a hat")
    page.get_by_role("button", name="Explain").click()
    page.locator(".plan").wait_for()
    assert field(page, "prompt").input_value() == "a hat"
    field(page, "image").set_input_files(image_files["a"])
    page.get_by_role("button", name="Generate", exact=True).click()
    page.get_by_role("heading", name="Answer").wait_for()
    pictures = [picture.get_attribute("src") for picture in page.locator(".column img").all()]
    assert len(pictures) == 2 and pictures[0] != pictures[1]
    for picture in pictures:
        kind, text = picture.split(";base64,")
        assert kind == "data:image/png" and look(base64.b64decode(text, validate=True)).size == (1024, 1024)
    (call,) = openai_api.calls
    assert call.path == "/v1/images/edits" and call.files[0].data == image_files["a"].read_bytes()
    assert "stream" not in call.form, "previews that nobody sees are not paid for"

    field(page, "size").fill("huge")
    field(page, "each").check()
    page.get_by_role("button", name="Generate", exact=True).click()
    page.get_by_role("alert").get_by_text('"huge" is not allowed').wait_for()
    field(page, "size").fill("")
    page.get_by_role("button", name="Generate", exact=True).click()
    page.get_by_role("button", name="Generate at 1 target").click()
    page.get_by_role("heading", name="openai gpt-image-1").wait_for()
    assert len(openai_api.calls) == 2


def test_one_target_is_for_callers_that_may_choose_their_route(remembering, store, browse, stability_api, openai_api):
    gateway = remembering(
        store,
        log=LOG,
        api_keys=[
            {"name": "ops", "key": {"env": "OPS_KEY"}, "scopes": ["admin"]},
            {"name": "team-a", "key": {"env": "TEAM_A_KEY"}, "scopes": ["generate"]},
            {"name": "reader", "key": READ_KEY, "scopes": ["read"]},
        ],
    )
    headers = {"x-imagegate-target": "config.targets[1]", "idempotency-key": "one"}
    answer = image(gateway, "pc-sdxl-dalle", headers=headers)
    assert answer.status_code == 200 and answer.headers["x-portkey-last-used-option-index"] == "config.targets[1]"
    assert not stability_api.calls, answer.headers["x-imagegate-attempts"]
    again = image(gateway, "pc-sdxl-dalle", headers={**headers, "x-imagegate-target": "config.targets[0]"})
    assert again.status_code == 422, "another target is another request"
    wrong = image(gateway, "pc-sdxl-dalle", headers={"x-imagegate-target": "config.targets[2]"})
    assert wrong.status_code == 400 and wrong.json()["error"]["param"] == "x-imagegate-target"
    assert "allowed: config.targets[0], config.targets[1]" in wrong.json()["error"]["message"]
    made = Admin(gateway).ask(
        "CreateApiKey", name="only", scopes=["generate"], default_config="pc-sdxl-dalle", allow_config_override=False
    )
    assert image(gateway, key=made.key).status_code == 200
    refused = image(gateway, key=made.key, headers={"x-imagegate-target": "config.targets[0]"})
    assert refused.status_code == 403 and "no other route" in refused.json()["error"]["message"]

    # Who may list nothing writes the config's name; who may only look has no playground.
    browser = browse(gateway)
    page = browser.page
    browser.sign_in(TEAM_KEY, "/playground")
    field(page, "config").fill("pc-openai")
    field(page, "prompt").fill("a fox")
    page.get_by_role("button", name="Generate").click()
    page.get_by_text("done", exact=True).wait_for()
    assert page.get_by_role("link", name="This request in the log").count() == 0
    reader = browse(gateway)
    reader.sign_in(READ_KEY, "/logs")
    assert reader.page.get_by_role("link", name="Playground").count() == 0
    tried = reader.page.request.post(
        gateway.admin + "/playground/stream", multipart={"prompt": "x"}, headers={"origin": gateway.admin}
    )
    assert 'no scope' in tried.text()
