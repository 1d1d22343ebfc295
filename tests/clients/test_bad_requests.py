"""Requests and configs that are wrong: refused with the place and the reason, at once, before any money is spent."""

import json

import pytest
import requests

from gateway import TEAM_KEY, founding_config, openai_error

KEY = {"provider": "openai", "api_key": "sk-x"}
PRESENCE = "Invalid configuration. It must have either"


def fallback(*targets, **more):
    return {"strategy": {"mode": "fallback"}, "targets": list(targets), **more}


# What is wrong, the path of the problem, and words of its text. An empty path is the config as a whole.
BAD_CONFIGS = {
    "unknown mode": ({"strategy": {"mode": "random"}, "targets": [KEY]}, "strategy,mode", "Invalid 'mode' value"),
    "no mode": ({"strategy": {}, "targets": [KEY]}, "strategy,mode", "Required"),
    "unknown provider deep down": (
        fallback(KEY, {"strategy": {"mode": "single"}, "targets": [{"provider": "nope", "api_key": "k"}]}),
        "targets,1,targets,0,provider",
        "Invalid 'provider' value. Must be one of: ",
    ),
    "nothing to call": ({"provider": "openai"}, "", PRESENCE),
    "a target with nothing to call": (fallback({"weight": 1}), "targets,0", PRESENCE),
    "retry without attempts": ({**KEY, "retry": {}}, "retry,attempts", "Required"),
    "attempts as text": ({**KEY, "retry": {"attempts": "3"}}, "retry,attempts", "Expected number, received string"),
    "cache without mode": ({**KEY, "cache": {}}, "cache,mode", "Required"),
    "unknown cache mode": ({**KEY, "cache": {"mode": "x"}}, "cache,mode", "Invalid 'cache.mode' value"),
    "cache as text": ({**KEY, "cache": "simple"}, "cache", "Expected object, received string"),
    "weight as text": (fallback({**KEY, "weight": "1"}), "targets,0,weight", "Expected number, received string"),
    "timeout as text": ({**KEY, "request_timeout": "1"}, "request_timeout", "Expected number, received string"),
    "a host in a private network": ({**KEY, "custom_host": "http://10.0.0.1/v1"}, "custom_host", "Invalid custom host"),
    "a host of cloud metadata": (
        fallback({**KEY, "custom_host": "http://169.254.169.254/"}),
        "targets,0,custom_host",
        "Invalid custom host",
    ),
    "a host that is a file": ({**KEY, "custom_host": "file:///etc/passwd"}, "custom_host", "Invalid custom host"),
    "forwarding the list itself": (
        {**KEY, "forward_headers": ["X-Portkey-Forward-Headers"]},
        "forward_headers",
        "must not contain the 'x-portkey-forward-headers' header",
    ),
    "a condition without query": (
        {"strategy": {"mode": "conditional", "conditions": [{"then": "a"}], "default": "a"}, "targets": [KEY]},
        "strategy,conditions,0,query",
        "Required",
    ),
    "a condition with a number as its target": (
        {"strategy": {"mode": "conditional", "conditions": [{"query": {}, "then": 1}]}, "targets": [KEY]},
        "strategy,conditions,0,then",
        "Expected string, received number",
    ),
    "the old format": ({"options": [KEY]}, "options", "This version of config is not supported"),
    "a fallback without targets": (fallback(), "targets", "at least one target"),
    "a single without targets": ({"strategy": {"mode": "single"}, "targets": []}, "targets", "at least one target"),
    "a fallback deep down without targets": (fallback(KEY, fallback()), "targets,1,targets", "at least one target"),
    "targets without a strategy": ({"targets": [KEY]}, "", PRESENCE),
    "targets without a strategy but a retry": ({"targets": [KEY], "retry": {"attempts": 1}}, "", PRESENCE),
    "a provider without a key": (fallback({"provider": "openai", "retry": {"attempts": 1}}), "targets,0", PRESENCE),
    "a misspelt field": ({**KEY, "overide_params": {}}, "overide_params", 'did you mean "override_params"'),
    "an unknown virtual key": (
        fallback({"virtual_key": "open-ai-virtual-kay"}),
        "targets,0,virtual_key",
        "open-ai-virtual-key",
    ),
}


def call(gateway, config, **headers):
    text = config if isinstance(config, str) else json.dumps(config)
    # Nothing here may hang: a config that does fails this call's deadline.
    return gateway.post(body={"prompt": "x"}, headers={"x-portkey-config": text, **headers}, timeout=10)


def test_every_invalid_config_is_refused_with_path_and_reason(serve, stability_api, openai_api):
    gateway = serve(founding_config(stability_api, openai_api, egress={"allow": []}))
    wrong = []
    for name, (config, path, reason) in BAD_CONFIGS.items():
        answer = call(gateway, config)
        body = answer.json()
        errors = body.get("errors", [])
        start = f"path: {path}, message: "
        if answer.status_code != 400:
            wrong.append(f"{name}: status {answer.status_code}")
        elif body.get("status") != "failure" or not body.get("message"):
            wrong.append(f"{name}: no status and message: {body}")
        elif not any(error.startswith(start) and reason in error for error in errors):
            wrong.append(f"{name}: wanted `{start}..{reason}..`, got {errors}")
        elif reason not in json.dumps(openai_error(answer), ensure_ascii=False) and '"' not in reason:
            wrong.append(f"{name}: the OpenAI-shaped error does not tell: {body['error']}")
    assert not wrong, "\n".join(wrong)
    assert openai_api.requests == [] and stability_api.requests == []


def test_all_problems_of_a_config_come_at_once(founding):
    config = {
        "strategy": {"mode": "random"},
        "targets": [{"provider": "nope", "api_key": "k"}, {**KEY, "weight": "x"}],
    }
    errors = call(founding, config).json()["errors"]
    for path in ("strategy,mode", "targets,0,provider", "targets,1,weight"):
        assert any(error.startswith(f"path: {path}, ") for error in errors), errors


@pytest.mark.parametrize("text", ["{bad", "null", "[]", '[{"provider": "openai"}]', "{}", '"text"', "17", "{" * 2000])
def test_a_config_that_says_nothing_is_refused(founding, text):
    answer = call(founding, text)
    assert answer.status_code == 400
    openai_error(answer)


def test_a_deep_or_wide_config_ends(founding):
    deep = KEY
    # As deep as JSON is read.
    for _ in range(60):
        deep = fallback(deep)
    wide = fallback(*[{"weight": 1}] * 100)
    for config in (deep, wide):
        assert call(founding, config).status_code < 600


def test_a_saved_config_that_does_not_exist_is_named(founding):
    answer = call(founding, "pc-unknown")
    assert answer.status_code in (400, 404)
    assert "pc-unknown" in openai_error(answer)["message"]


def test_a_virtual_key_that_does_not_exist_is_named(founding):
    answer = founding.post(body={"prompt": "x"}, headers={"x-portkey-virtual-key": "vk-unknown"})
    assert answer.status_code in (400, 404)
    assert "vk-unknown" in openai_error(answer)["message"]
    answer = founding.post(body={"prompt": "x", "model": "@vk-unknown/dall-e-3"})
    assert answer.status_code in (400, 404)
    assert "vk-unknown" in openai_error(answer)["message"]


def test_an_unknown_provider_is_refused(founding):
    answer = founding.post(body={"prompt": "x"}, headers={"x-portkey-provider": "nope"})
    assert answer.status_code == 400
    assert "nvalid provider" in openai_error(answer)["message"] or "nope" in openai_error(answer)["message"]


def test_a_request_without_a_route_says_what_to_send(founding):
    answer = founding.post(body={"prompt": "x"})
    assert answer.status_code == 400
    assert "x-portkey-config" in openai_error(answer)["message"]


@pytest.mark.parametrize(
    "host", ["http://169.254.169.254/", "http://10.1.2.3/v1", "http://[::1]/v1", "http://0x7f000001/", "ftp://x/", "nonsense"]
)
def test_a_custom_host_header_cannot_reach_inside(serve, stability_api, openai_api, host):
    gateway = serve(founding_config(stability_api, openai_api, egress={"allow": []}))
    answer = gateway.post(
        body={"prompt": "x"}, headers={"x-portkey-config": "pc-openai", "x-portkey-custom-host": host}
    )
    assert answer.status_code == 400
    assert "custom host" in openai_error(answer)["message"].lower()


def test_a_stored_key_is_not_sent_to_a_host_that_the_caller_names(founding):
    for header in ("pc-openai", '{"virtual_key": "open-ai-virtual-key", "custom_host": "https://images.example/v1"}'):
        headers = {"x-portkey-config": header, "x-portkey-custom-host": "https://images.example/v1"}
        answer = founding.post(body={"prompt": "x"}, headers=headers)
        assert answer.status_code == 403
        assert "open-ai-virtual-key" in openai_error(answer)["message"]


def test_a_custom_host_that_resolves_inside_is_refused(serve, stability_api, openai_api):
    gateway = serve(founding_config(stability_api, openai_api, egress={"allow": []}))
    host = openai_api.base_url.replace("127.0.0.1", "localhost")
    answer = gateway.post(
        body={"prompt": "x"}, headers={"x-portkey-config": "pc-openai", "x-portkey-custom-host": host}
    )
    assert 400 <= answer.status_code < 600
    assert openai_api.requests == [], "the provider's key went to a host that the caller chose"


def test_a_forward_headers_header_cannot_list_itself(founding):
    answer = founding.post(
        body={"prompt": "x"},
        headers={"x-portkey-config": "pc-openai", "x-portkey-forward-headers": "x-a, X-Portkey-Forward-Headers"},
    )
    assert answer.status_code == 400
    assert "forward" in openai_error(answer)["message"]


def raw(gateway, data, content_type, path="/images/generations"):
    headers = {"authorization": f"Bearer {TEAM_KEY}", "x-portkey-config": "pc-openai"}
    if content_type:
        headers["content-type"] = content_type
    return requests.post(gateway.base_url + path, data=data, headers=headers, timeout=30)


@pytest.mark.parametrize("body", [b"", b"{", b"not json", b"[]", b"17", b'"x"', b"\xff\xfe", b'{"prompt": "\\ud800"}'])
def test_a_body_that_is_no_json_object_is_refused(founding, openai_api, body):
    answer = raw(founding, body, "application/json")
    assert answer.status_code == 400
    openai_error(answer)
    assert openai_api.requests == []


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded"])
def test_another_content_type_is_refused(founding, content_type):
    answer = raw(founding, b"prompt=x", content_type)
    assert answer.status_code in (400, 415)
    assert "content type" in openai_error(answer)["message"].lower()


def test_json_with_a_charset_is_json(founding):
    assert raw(founding, b'{"prompt": "x", "model": "gpt-image-1"}', "application/json; charset=utf-8").status_code == 200


@pytest.mark.parametrize(
    "body, param",
    [
        ({}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": 7}, "prompt"),
        ({"prompt": "x", "n": 0}, "n"),
        ({"prompt": "x", "n": 1000}, "n"),
        ({"prompt": "x", "n": "two"}, "n"),
        ({"prompt": "x", "n": 1.5}, "n"),
        ({"prompt": "x", "size": "huge"}, "size"),
        ({"prompt": "x", "size": "0x0"}, "size"),
        ({"prompt": "x", "size": 1024}, "size"),
        ({"prompt": "x", "response_format": "gif"}, "response_format"),
        ({"prompt": "x", "output_format": "bmp"}, "output_format"),
        ({"prompt": "x", "quality": "bad"}, "quality"),
        ({"prompt": "x", "stream": "yes"}, "stream"),
        ({"prompt": "x", "model": 7}, "model"),
    ],
)
def test_a_wrong_value_is_refused_with_its_name(founding, openai_api, body, param):
    answer = founding.post(body=body, headers={"x-portkey-config": "pc-openai"})
    assert answer.status_code == 400, answer.text[:500]
    assert openai_error(answer)["param"] == param
    assert openai_api.calls == []


def test_a_null_is_as_good_as_absent(founding):
    body = {"prompt": "x", "n": None, "size": None, "quality": None, "model": "gpt-image-1"}
    assert founding.post(body=body, headers={"x-portkey-config": "pc-openai"}).status_code == 200


def test_an_edit_without_an_image_or_with_no_image_in_it_is_refused(founding, openai_api):
    answer = founding.post("/images/edits", headers={"x-portkey-config": "pc-openai"}, files={"prompt": (None, "x")})
    assert answer.status_code == 400
    assert openai_error(answer)["param"] in ("image", "images")
    answer = founding.post(
        "/images/edits",
        headers={"x-portkey-config": "pc-openai"},
        files={"image": ("a.png", b"this is no image", "image/png")},
        data={"prompt": "x"},
    )
    assert answer.status_code == 400
    assert openai_error(answer)["param"] in ("image", "images")
    assert openai_api.calls == []


@pytest.mark.parametrize("content_type", ["multipart/form-data", "multipart/form-data; boundary=x"])
def test_a_broken_form_is_refused(founding, content_type):
    answer = raw(founding, b"--y\r\nnonsense", content_type, "/images/edits")
    assert answer.status_code == 400
    openai_error(answer)


def test_a_body_of_100_mb_is_too_large(founding, openai_api):
    body = b'{"prompt": "' + b"x" * (100 << 20) + b'"}'
    try:
        answer = raw(founding, body, "application/json")
    except requests.ConnectionError:
        # It may stop reading at the limit; a client that ignores the answer until it has sent all sees this.
        answer = None
    if answer is not None:
        assert answer.status_code == 413
        openai_error(answer)
    assert raw(founding, b'{"prompt": "x"}', "application/json").status_code == 200
    assert len(openai_api.calls) == 1


def test_a_body_announced_as_100_mb_is_refused_unread(founding):
    import http.client

    connection = http.client.HTTPConnection(founding.url.removeprefix("http://"), timeout=10)
    connection.putrequest("POST", "/v1/images/generations")
    for name, value in [
        ("authorization", f"Bearer {TEAM_KEY}"),
        ("x-portkey-config", "pc-openai"),
        ("content-type", "application/json"),
        ("content-length", str(100 << 20)),
    ]:
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    assert answer.status == 413
    assert answer.headers["x-portkey-trace-id"]


def test_unknown_paths_and_methods_have_openais_shape(founding):
    headers = {"authorization": f"Bearer {TEAM_KEY}"}
    answer = requests.get(founding.base_url + "/nothing", headers=headers, timeout=5)
    assert answer.status_code == 404
    openai_error(answer)
    answer = requests.get(founding.base_url + "/images/generations", headers=headers, timeout=5)
    assert answer.status_code == 405
    openai_error(answer)
