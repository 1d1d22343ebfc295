"""From start to end of a process: readiness, changes of its config, disconnecting callers, draining, and logs."""

import json
import signal
import socket
import threading
import time

import pytest
import requests

from emulators import faults
from gateway import OPS_KEY, TEAM_KEY, eventually, founding_config, run, secrets_of

GPT = {"prompt": "x", "model": "gpt-image-1"}


def hang_up_during_a_call(gateway, openai_api):
    """Seconds from a client's hanging up to the end of the upstream connection."""
    openai_api.always = faults.hang()
    body = json.dumps(GPT).encode()
    host, port = gateway.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as client:
        client.sendall(
            b"POST /v1/images/generations HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"x-portkey-config: pc-openai\r\nauthorization: Bearer %s\r\ncontent-length: %d\r\n\r\n%s"
            % (TEAM_KEY.encode(), len(body), body)
        )
        (upstream,) = openai_api.wait_for_calls(1)
        gone = time.monotonic()
    assert upstream.closed.wait(10), "the upstream connection stayed open"
    return upstream.closed_at - gone


def test_probes_and_metrics_are_on_the_admin_listener(founding):
    for path in ("/livez", "/readyz"):
        assert requests.get(founding.admin + path, timeout=5).status_code == 200
    founding.post(body=GPT, headers={"x-portkey-config": "pc-openai"})
    metrics = requests.get(founding.admin + "/metrics", timeout=5)
    assert metrics.headers["content-type"].startswith("text/plain")
    assert "imagegate_requests_total" in metrics.text and "imagegate_attempts_total" in metrics.text
    assert TEAM_KEY not in metrics.text
    for path in ("/livez", "/readyz", "/metrics"):
        assert requests.get(founding.url + path, timeout=5).status_code == 404


@pytest.mark.alone
def test_a_client_that_disconnects_ends_the_upstream_call_within_100_ms(founding, openai_api):
    assert hang_up_during_a_call(founding, openai_api) < 0.1


def test_a_client_that_disconnects_ends_every_call_of_its_fan_out(founding, openai_api):
    openai_api.always = faults.hang()
    with pytest.raises(requests.Timeout):
        founding.post(
            body={"prompt": "x", "model": "dall-e-3", "n": 3}, headers={"x-portkey-config": "pc-openai"}, timeout=1
        )
    calls = openai_api.wait_for_calls(3)
    assert all(call.closed.wait(5) for call in calls)


def test_a_client_that_disconnects_is_not_a_reason_to_try_the_next_target(founding, stability_api, openai_api):
    stability_api.always = faults.hang()
    with pytest.raises(requests.Timeout):
        founding.post(body={"prompt": "x"}, headers={"x-portkey-config": "pc-sdxl-dalle"}, timeout=1)
    assert stability_api.wait_for_calls(1)[0].closed.wait(5)
    founding.post(body=GPT, headers={"x-portkey-config": "pc-openai"})
    assert len(openai_api.calls) == 1


@pytest.mark.alone
def test_sixteen_requests_in_flight_finish_after_sigterm(founding, openai_api):
    openai_api.always = faults.hold()
    answers = []

    def call():
        answers.append(founding.post(body=GPT, headers={"x-portkey-config": "pc-openai"}, timeout=60))

    callers = [threading.Thread(target=call) for _ in range(16)]
    for caller in callers:
        caller.start()
    openai_api.wait_for_calls(16)
    founding.front.terminate()
    eventually(lambda: not founding.ready(), what="readiness to end")
    assert founding.front.popen.poll() is None, "it did not wait for its requests"
    openai_api.release()
    for caller in callers:
        caller.join(60)
    assert [answer.status_code for answer in answers] == [200] * 16
    assert all(answer.json()["data"][0]["b64_json"] for answer in answers)
    assert founding.front.wait() == 0


def test_a_stream_in_flight_finishes_after_sigterm(founding, openai_api):
    openai_api.always = faults.hold()
    lines = []

    def call():
        answer = founding.post(body={**GPT, "stream": True}, headers={"x-portkey-config": "pc-openai"}, stream=True)
        lines.extend(answer.iter_lines())

    caller = threading.Thread(target=call)
    caller.start()
    openai_api.wait_for_calls(1)
    founding.front.terminate()
    eventually(lambda: not founding.ready(), what="readiness to end")
    openai_api.release()
    caller.join(30)
    assert b"event: image_generation.completed" in lines
    assert founding.front.wait() == 0


def test_idle_connections_do_not_hold_up_the_end(founding):
    session = requests.Session()
    session.get(founding.base_url + "/models", headers={"authorization": f"Bearer {TEAM_KEY}"}, timeout=5)
    started = time.monotonic()
    founding.front.terminate()
    assert founding.front.wait() == 0
    assert time.monotonic() - started < 5
    session.close()


def provider(gateway):
    return gateway.post(body={"prompt": "x"}).headers["x-portkey-provider"]


def test_a_changed_file_is_taken_over_and_a_broken_one_is_not(serve, stability_api, openai_api):
    config = founding_config(stability_api, openai_api, default_config="pc-openai")
    gateway = serve(config)
    assert provider(gateway) == "openai"
    gateway.write_config({**config, "default_config": "pc-stability"})
    eventually(lambda: provider(gateway) == "stability-ai", what="the new default config")
    gateway.write_config({**config, "default_config": "pc-nowhere"})
    gateway.front.wait_for_log(lambda fields: "pc-nowhere" in json.dumps(fields))
    assert provider(gateway) == "stability-ai"
    gateway.config_file.write_text("listen: [this is: not: yaml")
    eventually(lambda: gateway.log.count("imagegate.yaml") >= 2 or None, 10, "a second refusal in the log")
    assert provider(gateway) == "stability-ai"
    gateway.write_config(config)
    eventually(lambda: provider(gateway) == "openai", what="the repaired config")


def test_prices_in_a_file_of_their_own_are_taken_over_and_bad_ones_are_not(serve, tmp_path, stability_api, openai_api):
    prices = tmp_path / "prices.yaml"

    def write(usd):
        model = {"ids": ["dall-e-3"], "prices": [{"item": "image", "usd": usd}]}
        new = prices.with_suffix(".new")
        new.write_text(json.dumps({"providers": {"openai": {"models": [model]}}}))
        new.replace(prices)

    def cost():
        answer = gateway.post(body={"prompt": "x", "model": "dall-e-3"}, headers={"x-portkey-config": "pc-openai"})
        return answer.headers["x-imagegate-cost-usd"]

    write(1)
    gateway = serve(founding_config(stability_api, openai_api, prices=str(prices)))
    assert cost() == "1.000000"
    write(2)
    eventually(lambda: cost() == "2.000000", what="the new price")
    write(-3)
    eventually(lambda: "-3 is not allowed" in gateway.log, 10, "a refusal in the log")
    assert cost() == "2.000000"
    unknown = {"openai": {"models": [{"ids": ["dall-e-2"], "prices": []}]}}
    gateway.write_config(founding_config(stability_api, openai_api, prices={"providers": unknown}))
    eventually(lambda: cost() == "0.040000", what="the price that the book has")
    assert "imagegate_unknown_prices_total{" not in requests.get(gateway.admin + "/metrics", timeout=5).text
    for _ in range(2):
        gateway.post(body={"prompt": "x", "model": "dall-e-2"}, headers={"x-portkey-config": "pc-openai"})
    counted = 'imagegate_unknown_prices_total{provider="openai",model="dall-e-2"} 2'
    eventually(lambda: counted in requests.get(gateway.admin + "/metrics", timeout=5).text, what="the count")
    assert gateway.log.count("a call has no price") == 1


def test_sighup_reads_the_file_again(serve, stability_api, openai_api):
    config = founding_config(stability_api, openai_api, default_config="pc-openai")
    gateway = serve(config)
    gateway.write_config({**config, "default_config": "pc-stability"})
    gateway.front.popen.send_signal(signal.SIGHUP)
    eventually(lambda: provider(gateway) == "stability-ai", what="the new default config")


def test_requests_in_flight_survive_a_change_of_the_file(serve, stability_api, openai_api):
    config = founding_config(stability_api, openai_api, default_config="pc-openai")
    gateway = serve(config)
    openai_api.script.append(faults.hold())
    answers = []
    caller = threading.Thread(target=lambda: answers.append(gateway.post(body=GPT)))
    caller.start()
    openai_api.wait_for_calls(1)
    gateway.write_config({**config, "default_config": "pc-stability"})
    gateway.front.wait_for_log(lambda fields: fields.get("message") == "configuration reloaded")
    assert provider(gateway) == "stability-ai"
    openai_api.release()
    caller.join(30)
    assert answers[0].headers["x-portkey-provider"] == "openai"


def test_neither_secrets_nor_prompts_nor_images_are_in_the_log(serve, stability_api, openai_api):
    gateway = serve(founding_config(stability_api, openai_api), env={"RUST_LOG": "trace"})
    prompt = "a very private prompt about nobody"
    inline_key = "sk-inline-0123456789"
    stability_api.script.extend([faults.status(401), faults.refusal(), faults.html(200)])
    for _ in range(4):
        gateway.post(body={"prompt": prompt, "response_format": "b64_json"}, headers={"x-portkey-config": "pc-sdxl-dalle"})
    inline = {"provider": "openai", "api_key": inline_key, "custom_host": openai_api.base_url}
    gateway.post(body={"prompt": prompt}, headers={"x-portkey-config": json.dumps(inline)})
    gateway.post(body={"prompt": prompt}, key="wrong-gateway-key-42")
    gateway.post(body={"prompt": prompt}, headers={"x-portkey-config": '{"api_key": "%s", "strategy": {}}' % inline_key})
    gateway.front.terminate()
    assert gateway.front.wait() == 0
    log = gateway.log
    assert len(gateway.front.events) > 5
    leaks = [stability_api.key, openai_api.key, TEAM_KEY, OPS_KEY, inline_key, "wrong-gateway-key-42", prompt, "iVBORw0KGgo"]
    # Libraries write what they please at `trace`; ours is what counts.
    ours = "\n".join(line for line in log.splitlines() if '"target":"imagegate' in line)
    assert ours
    assert [leak for leak in leaks if leak in ours] == []
    for line in log.splitlines():
        if '"level":"TRACE"' not in line and '"level":"DEBUG"' not in line:
            assert not [leak for leak in leaks if leak in line], line


def test_each_request_is_one_line_in_the_log(founding):
    answer = founding.post(body=GPT, headers={"x-portkey-config": "pc-openai"})
    request_id = answer.headers["x-imagegate-request-id"]
    found = founding.front.wait_for_log(lambda fields: fields.get("request_id") == request_id and fields)
    assert found["outcome"] == "ok"
    assert "duration_ms" in found and "attempts" in found
    lines = [e for e in founding.front.events if e.get("fields", {}).get("request_id") == request_id]
    assert len(lines) == 1


def test_errors_never_show_the_providers_key(founding, openai_api):
    for fault in (faults.status(401), faults.html(502), faults.reset()):
        openai_api.always = fault
        answer = founding.post(body=GPT, headers={"x-portkey-config": "pc-openai"})
        assert openai_api.key not in answer.text + json.dumps(dict(answer.headers))


def test_it_refuses_to_start_open_to_the_network(start, tmp_path, stability_api, openai_api):
    import yaml

    config = founding_config(stability_api, openai_api, data_dir=str(tmp_path / "data"))
    del config["api_keys"]
    config["listen"]["http"] = "0.0.0.0:0"
    file = tmp_path / "open.yaml"
    file.write_text(yaml.safe_dump(config))
    process = start("serve", "--config", file)
    assert process.wait() != 0
    assert "auth: open" in process.log and "0.0.0.0" in process.log
    file.write_text(yaml.safe_dump({**config, "auth": "open"}))
    assert start("serve", "--config", file).address("http").startswith("0.0.0.0:")


def test_on_loopback_it_may_be_open(serve, stability_api, openai_api):
    config = founding_config(stability_api, openai_api, default_config="pc-openai")
    del config["api_keys"]
    assert serve(config).post(body=GPT, key=None).status_code == 200


def test_a_missing_secret_is_named_at_the_start(tmp_path, stability_api, openai_api):
    import yaml

    file = tmp_path / "imagegate.yaml"
    file.write_text(yaml.safe_dump(founding_config(stability_api, openai_api)))
    env = secrets_of(stability_api, openai_api)
    del env["STABILITY_API_KEY"], env["TEAM_A_KEY"]
    finished = run(["serve", "--config", file], tmp_path, env)
    assert finished.returncode != 0
    for word in ("STABILITY_API_KEY", "stability-ai-virtualkey", "TEAM_A_KEY"):
        assert word in finished.stderr
    assert openai_api.key not in finished.stderr


def test_an_address_in_use_is_named(founding, start, tmp_path, stability_api, openai_api):
    import yaml

    config = founding_config(stability_api, openai_api, data_dir=str(tmp_path / "other"))
    config["listen"]["http"] = founding.url.removeprefix("http://")
    file = tmp_path / "second.yaml"
    file.write_text(yaml.safe_dump(config))
    process = start("serve", "--config", file)
    assert process.wait() != 0
    assert config["listen"]["http"] in process.log
