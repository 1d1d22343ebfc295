"""The commands that manage what a gateway remembers."""

import json
import re

import pytest
import yaml

from emulators import faults
from gateway import OPS_KEY, TEAM_KEY, Process, eventually, run


@pytest.fixture
def gateway(founding):
    return founding


@pytest.fixture
def command(gateway, tmp_path):
    """Runs a command at the gateway: `command("keys", "list")` is what it prints."""

    def command(*args, key=OPS_KEY, code=0, env=None, text=""):
        env = {"IMAGEGATE_ROUTER": "http://" + gateway.grpc, "IMAGEGATE_API_KEY": key, **(env or {})}
        finished = run(args, tmp_path, env, text=text)
        assert finished.returncode == code, finished.stdout + finished.stderr
        assert "panicked" not in finished.stderr
        return finished.stdout if code == 0 else finished.stderr

    return command


def parsed(text):
    return json.loads(text)


def post(gateway, config=None, key=TEAM_KEY, **headers):
    if config:
        headers["x-portkey-config"] = config
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return gateway.post(key=key, headers=headers, body={"prompt": "x", "size": "1024x1024"})


def add(command, openai_api, *more):
    args = ["keys", "add", "open ai", "--provider", "openai", "--base-url", openai_api.base_url]
    return command(*args, *more, env={"IMAGEGATE_PROVIDER_KEY": openai_api.key})


def test_a_virtual_key_from_its_making_to_its_end(command, gateway, openai_api, tmp_path):
    assert add(command, openai_api, "--note", "for tests", "--slug", "mine", "--expires", "90d") == "mine: stored\n"
    config = json.dumps({"virtual_key": "mine"})
    assert post(gateway, config).status_code == 200
    heading, row = command("keys", "list").splitlines()
    assert heading.split() == ["SLUG", "NAME", "PROVIDER", "STATUS", "EXPIRES", "CREATED", "NOTE"]
    assert row.startswith("mine  open ai  openai    active  20") and row.endswith("for tests")
    shown = command("keys", "show", "mine")
    assert re.search(r"^base url +" + re.escape(openai_api.base_url) + "$", shown, re.M)
    assert openai_api.key not in shown + command("keys", "list", "--json")
    assert parsed(command("keys", "show", "mine", "--json"))["provider"] == "openai"

    assert command("keys", "disable", "mine") == "mine: disabled\n"
    assert post(gateway, config).status_code != 200
    assert parsed(command("keys", "list", "--json"))[0]["status"] == "disabled"
    command("keys", "enable", "mine")
    assert post(gateway, config).status_code == 200

    (tmp_path / "key.txt").write_text("sk-wrong\n")
    command("keys", "rotate", "mine", "--key-file", "key.txt")
    assert post(gateway, config).status_code == 401
    command("keys", "rotate", "mine", text=openai_api.key + "\n")
    assert post(gateway, config).status_code == 200
    assert command("keys", "rm", "mine") == "mine: deleted\n"
    assert "mine" in command("keys", "show", "mine", code=1)


def test_a_virtual_key_needs_its_credential(command):
    assert "standard input has no key" in command("keys", "add", "x", "--provider", "openai", code=1)
    assert "nowhere.txt" in command("keys", "rotate", "x", "--key-file", "nowhere.txt", code=1)
    assert "--key" in command("keys", "add", "x", "--provider", "openai", "--key", "sk-x", code=2)


def test_options_of_a_virtual_key_are_named_and_not_shown(command):
    add = ["keys", "add", "azure", "--provider", "azure-openai", "--option", "azure_resource_name=hidden-name"]
    more = ["--option", "azure_deployment_id=d=1", "--option", "azure_api_version=2024-10-21"]
    command(*add, *more, text="key")
    shown = command("keys", "show", "azure")
    assert "azure_resource_name" in shown and "hidden-name" not in shown


def test_an_api_key_from_its_making_to_its_end(command, gateway, tmp_path):
    key = command("keys", "api", "create", "team b", "--scope", "generate", "--default-config", "pc-openai").strip()
    assert re.fullmatch(r"ig_[\w-]{43}", key)
    assert post(gateway, key=key).status_code == 200
    (listed,) = parsed(command("keys", "api", "list", "--json"))
    assert (listed["name"], listed["scopes"], listed["default_config"]) == ("team b", ["generate"], "pc-openai")
    assert key.startswith(listed["hint"]) and key not in command("keys", "api", "list")
    identity = listed["id"]

    rotated = parsed(command("keys", "api", "rotate", identity, "--overlap", "0s", "--json"))
    assert post(gateway, key=key).status_code == 401 and post(gateway, key=rotated["key"]).status_code == 200
    assert rotated["old_key_expires_unix_ms"] > 0
    assert command("keys", "api", "disable", identity) == f"{identity} (team b): disabled\n"
    assert post(gateway, key=rotated["key"]).status_code == 401
    command("keys", "api", "enable", identity)
    assert post(gateway, key=rotated["key"]).status_code == 200
    command("keys", "api", "rm", identity)
    assert post(gateway, key=rotated["key"]).status_code == 401
    assert command("keys", "api", "list").count("\n") == 1


def test_an_api_key_may_be_narrow(command, gateway):
    args = ["--scope", "generate,logs", "--config", "pc-openai", "--only-default-config", "--metadata", "team=red"]
    made = parsed(command("keys", "api", "create", "b", "--default-config", "pc-openai", *args, "--json"))
    assert (made["configs"], made["virtual_keys"], made["allow_config_override"]) == (["pc-openai"], None, False)
    assert post(gateway, "pc-stability", key=made["key"]).status_code == 403
    wider = ["--all-configs", "--only-default-config=false", "--metadata", "team=blue"]
    changed = parsed(command("keys", "api", "update", made["id"], *wider, "--json"))
    assert (changed["configs"], changed["metadata"], changed["scopes"]) == (None, {"team": "blue"}, made["scopes"])
    assert post(gateway, "pc-stability", key=made["key"]).status_code == 200
    assert command("usage", key=made["key"])
    assert "scope" in command("configs", "list", key=made["key"], code=1)


def test_a_config_from_its_making_to_its_end(command, gateway, tmp_path):
    first = {"virtual_key": "open-ai-virtual-key", "override_params": {"model": "dall-e-3"}}
    (tmp_path / "hero.yaml").write_text(yaml.safe_dump(first))
    (tmp_path / "hero.json").write_text(json.dumps({**first, "virtual_key": "stability-ai-virtualkey"}))
    said = command("configs", "save", "hero", "hero.yaml")
    slug = re.fullmatch(r"(pc-hero-[0-9a-f]{6}): version 1\n", said)[1]
    assert post(gateway, slug).headers["x-portkey-provider"] == "openai"
    assert command("configs", "save", "hero", "hero.json", "--slug", slug) == f"{slug}: version 2\n"
    assert [line.split()[0] for line in command("configs", "versions", slug).splitlines()] == ["VERSION", "2", "1"]
    diff = command("configs", "diff", slug, "1", "2")
    assert diff.startswith(f"--- {slug} version 1\n+++ {slug} version 2\n@@ ")
    assert '-  "virtual_key": "open-ai-virtual-key"\n+  "virtual_key": "stability-ai-virtualkey"\n' in diff
    assert command("configs", "diff", slug, "1", "1") == ""
    assert command("configs", "rollback", slug, "1") == f"{slug}: version 3\n"
    assert parsed(command("configs", "show", slug)) == first
    assert parsed(command("configs", "show", slug, "2"))["virtual_key"] == "stability-ai-virtualkey"
    assert parsed(command("configs", "show", slug, "--json"))["version"] == 3
    assert parsed(command("configs", "list", "--json"))[0]["slug"] == slug
    assert slug in command("configs", "list")
    # What is shown can be saved again.
    command("configs", "save", "copy", "-", text=command("configs", "show", slug))
    assert command("configs", "rm", slug) == f"{slug}: deleted\n"
    assert slug in command("configs", "show", slug, code=1)


def test_a_config_is_tried_before_it_is_saved(command, gateway, tmp_path):
    post(gateway, "pc-openai")
    post(gateway, "pc-stability")
    eventually(lambda: len(command("logs").splitlines()) == 2, 5, "the log")
    (tmp_path / "hero.yaml").write_text("{virtual_key: open-ai-virtual-key, override_params: {model: dall-e-2}}\n")
    said = command("configs", "dry-run", "hero.yaml", "--since", "1h")
    assert said.startswith("hero.yaml on 2 requests, 20")
    assert re.search(r"^openai/dall-e-2 +0 +2 +\$0\.0400$", said, re.M), said
    assert "2 of 2 would go another way" in said and "if every first target answers" in said
    tried = parsed(command("configs", "dry-run", "hero.yaml", "--provider", "openai", "--json"))
    assert tried["summary"]["requests"] == 1 and tried["requests"][0]["first"]["model"] == "dall-e-2"
    slug = command("configs", "save", "hero", "hero.yaml").split(":")[0]
    post(gateway, slug)
    eventually(lambda: command("logs", "--config", slug, "--version", "1"), 5, "the log")
    assert command("logs", "--config", slug, "--version", "2") == ""
    assert command("configs", "versions", slug).splitlines()[1].split()[4] == "1"
    assert command("configs", "dry-run", slug + "@1", "--until", "1h") == f"{slug}@1: valid; no request in the log matches\n"
    (tmp_path / "wrong.yaml").write_text("targets:\n  - { virtual_key: nobody }\n")
    assert "line 2, column 7: targets.0.virtual_key" in command("configs", "dry-run", "wrong.yaml", code=1)
    assert "no-such-config" in command("configs", "dry-run", "no-such-config", code=1)


def test_a_wrong_config_is_refused_with_its_lines(command, tmp_path):
    (tmp_path / "wrong.yaml").write_text("strategy: { mode: falback }\ntargets:\n  - { virtual_key: nobody }\n")
    said = command("configs", "save", "wrong", "wrong.yaml", code=1)
    assert "line 1, column 13: strategy.mode" in said and "fallback" in said
    assert "line 3, column 7: targets.0.virtual_key" in said
    (tmp_path / "broken.yaml").write_text("a: [")
    assert "broken.yaml: line " in command("configs", "save", "x", "broken.yaml", code=1)


def test_logs_and_usage_tell_what_happened(command, gateway, stability_api, openai_api):
    stability_api.script.append(faults.filtered())
    fell_back = post(gateway, "pc-sdxl-dalle", x_portkey_metadata=json.dumps({"team": "red"}))
    post(gateway, "pc-stability")
    openai_api.always = faults.status(503)
    post(gateway, "pc-openai")
    eventually(lambda: len(command("logs").splitlines()) >= 3, 5, "the log")
    lines = command("logs").splitlines()
    identity = fell_back.headers["x-imagegate-request-id"]
    assert identity in lines[0] and " 200 " in lines[0] and "openai/dall-e-3" in lines[0]
    assert "fallback calls:2 refused" in lines[0] and re.search(r"\d+(ms|\.\ds)", lines[0])
    assert "fallback" not in lines[1] and " 503 " in lines[2]
    assert command("logs", "--fallback", "--since", "1h").splitlines() == lines[:1]
    assert command("logs", "--success=false").splitlines() == lines[2:]
    assert command("logs", "-n", "1").splitlines() == lines[2:]
    assert command("logs", "--until", "1h") == ""
    assert command("logs", "--metadata", "team=red", "--status", "200,201").splitlines() == lines[:1]
    records = [parsed(line) for line in command("logs", "--json").splitlines()]
    assert [record["fallback"] for record in records] == [True, False, False]

    shown = command("logs", "show", identity)
    assert re.search(r"^1 +config.targets\[0\] +stability-ai/\S+ +content_rejected 4\d\d ", shown.replace("\n ", "\n"), re.M)
    assert "cost lines" in shown and "team=red" in shown and "answered by  openai/dall-e-3" in shown
    record = parsed(command("logs", "show", identity, "--json"))
    assert [attempt["outcome"] for attempt in record["attempts"]] == ["content_rejected", "ok"]
    assert record["cost_lines"][-1]["item"] == "image"

    table = command("usage", "--by", "provider").splitlines()
    assert table[0].split() == ["GROUP", "REQUESTS", "OK", "RESCUED", "REFUSED", "CACHED", "IMAGES", "MEAN", "COST"]
    rows = {row.split()[0]: row.split() for row in table[1:]}
    assert rows["openai"][1:5] == ["2", "1", "1", "1"] and rows["openai"][8].startswith("$0.04")
    assert rows["stability-ai"][8] == "$0.0300" and rows["total"][1] == "3"
    groups = parsed(command("usage", "--by", "provider", "--json"))
    assert sum(group["requests"] for group in groups) == 3
    assert command("usage", "--since", "7d", "--fallback").splitlines()[1].split()[:2] == ["all", "1"]
    assert re.match(r"20\d\d-\d\d-\d\d +3 ", command("usage", "--by", "day").splitlines()[1])
    assert "not a time" in command("usage", "--since", "soon", code=2)


def test_logs_follow(gateway, tmp_path):
    post(gateway, "pc-openai")
    env = {"IMAGEGATE_ROUTER": "http://" + gateway.grpc, "IMAGEGATE_API_KEY": OPS_KEY, "RUST_LOG": "warn"}
    following = Process(["logs", "-f", "--json"], tmp_path, env)
    try:
        seen = lambda: following.log.splitlines()
        eventually(lambda: len(seen()) == 1, 10, "the first request")
        later = [post(gateway, "pc-openai").headers["x-imagegate-request-id"] for _ in range(3)]
        eventually(lambda: len(seen()) >= 4, 10, "the later requests")
        assert [parsed(line)["id"] for line in seen()[1:]] == later
    finally:
        following.kill()


def test_a_key_without_the_scope_is_told_so(command):
    for args in (["configs", "list"], ["keys", "list"], ["keys", "api", "list"], ["logs"], ["usage"]):
        assert "error: " in command(*args, key=TEAM_KEY, code=1)


def test_commands_say_when_there_is_no_router(tmp_path):
    for args in (["configs", "list"], ["keys", "list"], ["logs"], ["usage"]):
        finished = run([*args, "--router", "http://127.0.0.1:9"], tmp_path)
        assert finished.returncode == 1 and "no router answers at http://127.0.0.1:9" in finished.stderr


def test_every_management_command_has_help_with_an_example(tmp_path):
    for args in [
        *(["configs", name] for name in ("list", "show", "save", "versions", "diff", "rollback", "dry-run", "rm")),
        *(["keys", name] for name in ("list", "add", "show", "rotate", "disable", "enable", "rm", "api")),
        *(["keys", "api", name] for name in ("list", "create", "rotate", "disable", "enable", "rm")),
        ["logs", "show"],
    ]:
        finished = run([*args, "--help"], tmp_path)
        assert finished.returncode == 0
        example = finished.stdout.split("Example:")[-1]
        assert f"imagegate {' '.join(args)}" in example, args
