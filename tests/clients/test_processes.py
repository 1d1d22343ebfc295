"""The roles in four processes: shim, router, and a worker for each provider."""

import time

import openai
import pytest
import requests
from portkey_ai import createHeaders

from emulators import faults
from emulators.pictures import look
from gateway import Gateway, TEAM_KEY, check_headers, eventually, founding_config, openai_error
from grpc_client import Client


@pytest.fixture
def four(cluster, stability_api, openai_api):
    return cluster(founding_config(stability_api, openai_api, stability_timeout_ms=1500))


def client(gateway):
    headers = createHeaders(api_key=TEAM_KEY, config="pc-sdxl-dalle")
    return openai.OpenAI(api_key="REDUNDANT", base_url=gateway.base_url, default_headers=headers, max_retries=0)


def generate(gateway, **more):
    raw = client(gateway).images.with_raw_response.generate(
        **{
            "model": "stable-diffusion-v1-6",
            "prompt": "a red cat",
            "size": "1024x1024",
            "response_format": "b64_json",
            **more,
        }
    )
    check_headers(raw.headers)
    return raw.headers["x-portkey-last-used-option-index"], raw.parse()


def test_the_founding_program_runs_across_processes(four, stability_api, decode):
    index, answer = generate(four)
    assert index == "config.targets[0]"
    assert decode(answer.data[0].b64_json).size == (1024, 1024)
    stability_api.always = faults.refusal()
    index, answer = generate(four)
    assert index == "config.targets[1]"
    assert decode(answer.data[0].b64_json).size == (1024, 1024)


@pytest.mark.parametrize(
    "fault",
    [faults.status(429), faults.html(200), faults.half_body(), faults.filtered(), faults.reset(), faults.hang()],
    ids=["429", "a page", "half a body", "a filtered image", "a reset", "a hang"],
)
def test_failures_keep_their_meaning_across_processes(four, stability_api, fault):
    stability_api.always = fault
    assert generate(four)[0] == "config.targets[1]"


def test_killing_the_stability_worker_still_yields_an_image(four, stability_api, decode):
    assert generate(four)[0] == "config.targets[0]"
    four.others["stability-ai"].kill()
    for _ in range(3):
        index, answer = generate(four)
        assert index == "config.targets[1]"
        assert decode(answer.data[0].b64_json).size == (1024, 1024)


def test_a_worker_that_dies_during_a_call_is_a_failed_attempt(four, stability_api):
    import threading

    stability_api.always = faults.hang()
    answers = []
    caller = threading.Thread(target=lambda: answers.append(generate(four)))
    caller.start()
    stability_api.wait_for_calls(1)
    four.others["stability-ai"].kill()
    caller.join(20)
    assert answers[0][0] == "config.targets[1]"


def test_a_worker_that_was_never_there_is_skipped_over(cluster, stability_api, openai_api):
    four = cluster(founding_config(stability_api, openai_api))
    four.others["stability-ai"].kill()
    assert generate(four)[0] == "config.targets[1]"


def test_a_worker_that_comes_back_is_used_again(four, start, stability_api):
    address = four.others["stability-ai"].address("worker")
    assert generate(four)[0] == "config.targets[0]"
    four.others["stability-ai"].kill()
    assert generate(four)[0] == "config.targets[1]"
    start("worker", "--provider", "stability-ai", "--listen", address).address("worker")
    eventually(lambda: generate(four)[0] == "config.targets[0]", 15, "use of the new worker")


def test_a_router_that_is_gone_is_an_error_of_openais_shape(four):
    four.back.kill()
    answer = four.post(body={"prompt": "x"}, headers={"x-portkey-config": "pc-openai"})
    assert answer.status_code == 503
    openai_error(answer)


def test_all_other_shapes_work_across_processes(four, image_files, decode):
    by_url = generate(four, response_format="url")[1]
    assert look(requests.get(by_url.data[0].url, timeout=10).content).size == (1024, 1024)
    plain = client(four).with_options(default_headers={"x-portkey-config": "pc-openai"})
    edited = plain.images.edit(model="gpt-image-1", prompt="hat", image=open(image_files["a"], "rb"))
    assert decode(edited.data[0].b64_json).size == (1024, 1024)
    varied = plain.images.create_variation(
        model="dall-e-2", image=open(image_files["a"], "rb"), response_format="b64_json"
    )
    assert decode(varied.data[0].b64_json).size == (1024, 1024)
    events = list(plain.images.generate(model="gpt-image-1", prompt="x", stream=True, partial_images=2))
    assert [event.type.rsplit(".")[-1] for event in events] == ["partial_image", "partial_image", "completed"]
    assert decode(events[-1].b64_json).size == (1024, 1024)
    assert any("dall-e-3" in model.id for model in plain.models.list())


def test_a_config_error_keeps_its_shape_across_processes(four):
    answer = four.post(
        body={"prompt": "x"}, headers={"x-portkey-config": '{"strategy": {"mode": "random"}, "targets": []}'}
    )
    assert answer.status_code == 400
    assert answer.json()["status"] == "failure"
    assert any(error.startswith("path: strategy,mode, ") for error in answer.json()["errors"])
    openai_error(answer)


def test_grpc_streams_across_processes(four):
    grpc_client = Client(four.grpc)
    request = grpc_client.request("StreamImage", prompt="x", model="gpt-image-1", partial_images=1)
    events = list(grpc_client.call("StreamImage", request, metadata=[("x-portkey-config", "pc-openai")]))
    assert [event.WhichOneof("event") for event in events][-1] == "result"
    data = b"".join(event.image_chunk.data for event in events if event.WhichOneof("event") == "image_chunk")
    assert look(data).size == (1024, 1024)
    grpc_client.close()


def test_a_worker_describes_itself(four):
    worker = Client(four.others["openai"].address("worker"), "imagegate.v1.WorkerService")
    (provider,) = worker.call("Describe", worker.request("Describe"), key=None).providers
    assert provider.name == "openai"
    models = {model.model: model for model in provider.models}
    assert models["dall-e-3"].lifecycle.retired_on == "2026-05-12"
    worker.close()


def test_a_secret_held_by_the_worker_is_nowhere_else(start, tmp_path, stability_api, openai_api, decode):
    import yaml

    held = {"open-ai-virtual-key": {"provider": "openai", "api_key": {"env": "OPENAI_API_KEY"}}}
    (tmp_path / "worker.yaml").write_text(yaml.safe_dump({"virtual_keys": held}))
    args = ["--provider", "openai", "--listen", "127.0.0.1:0", "--config", tmp_path / "worker.yaml"]
    worker = start("worker", *args)
    config = founding_config(stability_api, openai_api, default_config="pc-openai", data_dir=str(tmp_path / "data"))
    config["virtual_keys"]["open-ai-virtual-key"] = {
        "provider": "openai",
        "held_by": "worker",
        "base_url": openai_api.base_url,
    }
    config["workers"] = {"openai": "http://" + worker.address("worker")}
    file = tmp_path / "router.yaml"
    file.write_text(yaml.safe_dump(config))
    router = start("router", "--config", file, env={"OPENAI_API_KEY": ""})
    gateway = Gateway(router, router, file)
    answer = gateway.post(body={"prompt": "x", "model": "gpt-image-1"})
    assert answer.status_code == 200, answer.text[:500]
    assert decode(answer.json()["data"][0]["b64_json"]).size == (1024, 1024)
    assert openai_api.calls[0].headers["authorization"] == f"Bearer {openai_api.key}"


@pytest.mark.alone
def test_a_client_that_disconnects_ends_the_upstream_call_across_processes(four, openai_api):
    from test_lifecycle import hang_up_during_a_call

    assert hang_up_during_a_call(four, openai_api) < 0.1


def test_every_process_ends_well_on_sigterm(four):
    generate(four)
    for process in four.processes:
        process.terminate()
    started = time.monotonic()
    assert [process.wait() for process in four.processes] == [0] * 4
    assert time.monotonic() - started < 10


def test_no_secret_of_a_provider_reaches_the_shims_log(four, stability_api, openai_api):
    generate(four)
    for secret in (stability_api.key, openai_api.key, TEAM_KEY, "a red cat"):
        assert secret not in four.log


def test_the_callers_trace_goes_through_all_processes_to_the_provider(four, stability_api, openai_api):
    stability_api.always = faults.status(500)
    parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    generate(four, extra_headers={"traceparent": parent, "tracestate": "vendor=1"})
    for call in (stability_api.calls[-1], openai_api.calls[-1]):
        assert (call.headers["traceparent"], call.headers["tracestate"]) == (parent, "vendor=1")


def test_a_request_without_a_trace_begins_one_by_its_own_id(four, stability_api):
    answer = client(four).images.with_raw_response.generate(
        model="stable-diffusion-v1-6", prompt="a red cat", size="1024x1024", extra_headers={"traceparent": "nonsense"}
    )
    trace = answer.headers["x-imagegate-request-id"].replace("-", "")
    assert stability_api.calls[-1].headers["traceparent"] == f"00-{trace}-{trace[16:]}-00"
