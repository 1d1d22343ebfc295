"""The command line."""

import json
import textwrap

import pytest
import requests

from emulators.pictures import look
from gateway import founding_config, run


def test_help_shows_an_example_for_each_command(tmp_path):
    overview = run(["--help"], tmp_path)
    assert overview.returncode == 0
    commands = ["serve", "router", "worker", "shim", "generate", "check", "conform", "configs", "keys", "logs", "usage"]
    for command in commands:
        assert command in overview.stdout
        shown = run([command, "--help"], tmp_path)
        assert shown.returncode == 0
        assert f"imagegate {command}" in shown.stdout.split("Usage:", 1)[-1]


def test_check_is_silent_about_nothing(tmp_path):
    file = tmp_path / "imagegate.yaml"
    file.write_text(
        textwrap.dedent(
            """\
            listen: { http: 127.0.0.1:8787 }
            virtual_keys:
              one: { provider: opnai, api_key: k }
              two: { provider: openai, apikey: k }
            configs:
              hero:
                strategy: { mode: falback }
                targets:
                  - { virtual_key: three }
            default_config: heros
            """
        )
    )
    checked = run(["check", file], tmp_path)
    assert checked.returncode == 1
    shown = checked.stdout + checked.stderr
    for line, path, hint in [
        (3, "virtual_keys.one.provider", "openai"),
        (4, "virtual_keys.two.apikey", "api_key"),
        (7, "configs.hero.strategy.mode", "fallback"),
        (9, "configs.hero.targets.0.virtual_key", "three"),
        (10, "default_config", "hero"),
    ]:
        found = [text for text in shown.splitlines() if f"line {line}," in text and path in text]
        assert any(hint in text for text in found), shown


def test_check_passes_a_good_file(tmp_path, stability_api, openai_api):
    import yaml

    from gateway import secrets_of

    file = tmp_path / "imagegate.yaml"
    file.write_text(yaml.safe_dump(founding_config(stability_api, openai_api)))
    checked = run(["check", file], tmp_path, secrets_of(stability_api, openai_api))
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("text", ["", "a: [", "- 1\n- 2\n", "listen: 7\n", "a: &x [*x]\n"])
def test_check_survives_what_is_no_config(tmp_path, text):
    file = tmp_path / "imagegate.yaml"
    file.write_text(text)
    checked = run(["check", file], tmp_path)
    assert checked.returncode in (0, 1)
    assert "panicked" not in checked.stderr


def test_a_missing_file_is_named(tmp_path):
    for command in (["check", "nowhere.yaml"], ["serve", "--config", "nowhere.yaml"]):
        finished = run(command, tmp_path)
        assert finished.returncode != 0
        assert "nowhere.yaml" in finished.stderr + finished.stdout


FREE_PORTS = {f"IMAGEGATE_LISTEN_{role}": "127.0.0.1:0" for role in ("HTTP", "GRPC", "ADMIN")}


@pytest.fixture
def offline(start):
    """A gateway without a file: it draws placeholder art."""
    return start("serve", env=FREE_PORTS)


@pytest.fixture
def generate(offline, tmp_path):
    router = "http://" + offline.address("grpc")
    return lambda *args: run(["generate", *args, "--router", router], tmp_path)


def test_generate_writes_a_picture(generate, tmp_path):
    finished = generate("a red fox", "--size", "512x384", "-o", "fox.png")
    assert finished.returncode == 0, finished.stderr
    picture = look((tmp_path / "fox.png").read_bytes())
    assert (picture.size, picture.format) == ((512, 384), "PNG")
    assert "sandbox" in finished.stdout + finished.stderr


def test_generate_writes_several_pictures(generate, tmp_path):
    finished = generate("a red fox", "-n", "2", "--size", "256x256", "-o", "fox.webp")
    assert finished.returncode == 0, finished.stderr
    pictures = [look(file.read_bytes()) for file in sorted(tmp_path.glob("*.webp"))]
    assert [(picture.size, picture.format) for picture in pictures] == [((256, 256), "WEBP")] * 2


def test_generate_shows_which_target_answered_and_why(generate):
    finished = generate("a red fox", "--config-id", "demo-fallback", "-o", "fox.png")
    assert finished.returncode == 0, finished.stderr
    shown = finished.stdout + finished.stderr
    assert "targets[0]" in shown and "targets[1]" in shown and "503" in shown


def test_generate_fails_with_a_reason(generate, tmp_path):
    finished = generate("a red fox", "--config-id", "nowhere", "-o", "fox.png")
    assert finished.returncode != 0
    assert "nowhere" in finished.stderr
    assert not (tmp_path / "fox.png").exists()


def test_generate_says_when_there_is_no_router(tmp_path):
    finished = run(["generate", "a red fox", "--router", "http://127.0.0.1:9", "-o", "fox.png"], tmp_path)
    assert finished.returncode != 0
    assert "http://127.0.0.1:9" in finished.stderr


def test_generate_runs_in_its_own_process_with_a_config(tmp_path):
    file = tmp_path / "imagegate.yaml"
    file.write_text("configs: { demo: { provider: sandbox } }\ndefault_config: demo\n")
    finished = run(["generate", "a red fox", "--config", file, "-o", "fox.jpeg"], tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert look((tmp_path / "fox.jpeg").read_bytes()).format == "JPEG"


def test_serve_without_a_file_draws_offline(offline):
    url = "http://" + offline.address("http")
    answer = requests.post(
        f"{url}/v1/images/generations",
        json={"prompt": "a red fox", "size": "640x480", "response_format": "url"},
        timeout=30,
    )
    assert answer.status_code == 200, answer.text[:500]
    assert look(requests.get(answer.json()["data"][0]["url"], timeout=10).content).size == (640, 480)


def test_an_unknown_provider_of_a_worker_is_refused(tmp_path):
    finished = run(["worker", "--provider", "opnai", "--listen", "127.0.0.1:0"], tmp_path)
    assert finished.returncode != 0
    assert "opnai" in finished.stderr and "openai" in finished.stderr


def test_providers_shows_what_is_known(tmp_path):
    finished = run(["providers"], tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert "stability-ai\n" in finished.stdout and "sandbox (no key needed)" in finished.stdout
    assert "gpt-image-1.5 (retirement 2026-12-01, successor gpt-image-2)" in finished.stdout

    finished = run(["providers", "stabilityai", "--json"], tmp_path)
    (provider,) = json.loads(finished.stdout)
    assert provider["name"] == "stability-ai"
    core = next(model for model in provider["models"] if model["model"] == "core")
    assert core["max_n"] == 1 and "generate" in core["operations"] and core["prices"][0] == "$0.03 image (generate)"

    unknown = run(["providers", "nobody"], tmp_path)
    assert unknown.returncode == 1 and "; known: automatic1111, " in unknown.stderr and ", sandbox, " in unknown.stderr
