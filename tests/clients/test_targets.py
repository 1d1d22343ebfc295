"""How targets and the workers elsewhere stand, as `imagegate targets` and AdminService tell."""

import json

import grpc
import pytest
import yaml

from emulators import faults
from gateway import OPS_KEY, TEAM_KEY, Gateway, eventually, founding_config, run
from grpc_client import Admin


def targets(gateway, cwd, *args, key=OPS_KEY, code=0):
    env = {"IMAGEGATE_ROUTER": "http://" + gateway.grpc, "IMAGEGATE_API_KEY": key}
    finished = run(("targets", *args), cwd, env)
    assert finished.returncode == code, finished.stdout + finished.stderr
    return finished.stdout if code == 0 else finished.stderr


def listed(gateway, cwd, config):
    answer = json.loads(targets(gateway, cwd, "--json", "--config-id", config))
    return answer["targets"], answer["endpoints"]


def test_each_target_of_a_config_is_shown_as_it_stands(founding, stability_api, tmp_path):
    config = "pc-sdxl-dalle"
    before, endpoints = listed(founding, tmp_path, config)
    assert [(one["target"], one["provider"], one["state"]) for one in before] == [
        ("config.targets[0]", "stability-ai", None),
        ("config.targets[1]", "openai", None),
    ]
    assert endpoints == []

    stability_api.always = faults.status(500)
    for _ in range(7):
        body = {"prompt": "a lighthouse", "size": "1024x1024"}
        assert founding.post(body=body, headers={"x-portkey-config": config}).status_code == 200
    (first, second), _ = listed(founding, tmp_path, config)
    assert (first["state"]["breaker"], first["state"]["ejected"]) == ("open", "breaker_open")
    assert (second["state"]["breaker"], second["state"]["ejected"]) == ("closed", "")
    assert second["state"]["latency_s"] > 0
    shown = targets(founding, tmp_path, "--config-id", config)
    assert "left alone: breaker open" in shown and "well" in shown
    assert targets(founding, tmp_path).count(config) == 2


def test_what_has_no_model_of_its_own_is_shown_by_the_models_that_were_asked_for(founding, tmp_path):
    assert founding.post(body={"prompt": "x", "model": "gpt-image-1"}, headers={"x-portkey-config": "pc-openai"}).ok
    found, _ = listed(founding, tmp_path, "pc-openai")
    assert [(one["model"], one["state"] is not None) for one in found] == [("gpt-image-1", True), ("", False)]


def test_who_may_not_read_the_log_sees_no_targets(founding, tmp_path):
    assert "scope" in targets(founding, tmp_path, key=TEAM_KEY, code=1)
    assert 'config "nope" does not exist' in targets(founding, tmp_path, "--config-id", "nope", code=1)


@pytest.fixture
def split(start, stability_api, openai_api, tmp_path):
    """A router with the worker of OpenAI in another process."""
    worker = start("worker", "--provider", "openai", "--listen", "127.0.0.1:0")
    config = founding_config(stability_api, openai_api, default_config="pc-openai", data_dir=str(tmp_path / "data"))
    config["workers"] = {"openai": "http://" + worker.address("worker")}
    config["api_keys"].append({"name": "other", "key": "ig-other", "tenant": "other", "scopes": ["logs"]})
    file = tmp_path / "router.yaml"
    file.write_text(yaml.safe_dump(config))
    router = start("router", "--config", file)
    gateway = Gateway(router, router, file)
    gateway.worker = worker
    return gateway


def test_workers_elsewhere_are_shown_to_those_who_run_the_gateway(split, tmp_path):
    def states():
        return [(one.provider, one.address, one.state) for one in Admin(split).ask("ListTargets").endpoints]

    address = split.worker.address("worker")
    ready, ejected = 1, 3
    eventually(lambda: states() == [("openai", address, ready)])
    shown = targets(split, tmp_path).splitlines()[-1].split()
    assert shown == ["openai", address, "ready", "0"]
    other = Admin(split, "ig-other").ask("ListTargets")
    assert not other.endpoints and {one.config for one in other.targets} >= {"pc-openai"}
    split.worker.kill()
    eventually(lambda: states() == [("openai", address, ejected)])


def test_a_caller_without_a_key_is_refused(split):
    with pytest.raises(grpc.RpcError) as refused:
        Admin(split, "ig-unknown").ask("ListTargets")
    assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
