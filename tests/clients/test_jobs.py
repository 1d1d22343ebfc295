"""Requests that nobody waits for: jobs over HTTP and gRPC, `Prefer: respond-async`, webhooks, restarts."""

import base64
import http.server
import json
import queue
import threading
import time

import grpc
import openai
import pytest
import requests
import yaml

from emulators import faults
from emulators.pictures import look
from gateway import Gateway, eventually, openai_error
from grpc_client import Client

SLOW = "sandbox-slow-1500"
SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef0123456789abcdef").decode()
KEYS = {"KEY_A": "ig-a-0123456789abcdef", "KEY_B": "ig-b-0123456789abcdef", "HOOK_SECRET": SECRET, "UPSTREAM_KEY": "sk-up"}
A = KEYS["KEY_A"]


def config(**more):
    return {
        "listen": {"http": "127.0.0.1:0", "grpc": "127.0.0.1:0", "admin": "127.0.0.1:0"},
        "api_keys": [
            {"name": "a", "key": {"env": "KEY_A"}, "scopes": ["generate"]},
            {"name": "b", "key": {"env": "KEY_B"}, "scopes": ["generate"]},
        ],
        "configs": {"sandbox": {"provider": "sandbox"}},
        "default_config": "sandbox",
        "webhooks": {"secret": {"env": "HOOK_SECRET"}},
        "egress": {"allow": ["127.0.0.0/8"]},
        **more,
    }


@pytest.fixture
def gateway(serve):
    return serve(config(), env=KEYS)


def submit(gateway, key=A, headers=None, **body):
    body = {"model": SLOW, "prompt": "a lighthouse", "size": "256x256", **body}
    answer = gateway.post("/images/jobs", body=body, key=key, headers=headers)
    assert answer.status_code == 202, answer.text
    return answer


def get(gateway, job, key=A, headers=None):
    headers = {"authorization": f"Bearer {key}", **(headers or {})}
    return requests.get(f"{gateway.base_url}/images/jobs/{job}", headers=headers, timeout=30)


def over(gateway, job):
    """The answer about a job when it is over."""
    return eventually(lambda: (answer := get(gateway, job)).json()["status"] != "in_progress" and answer, what="the end")


def test_a_job_from_submission_to_result(gateway):
    answer = submit(gateway, n=2)
    job = answer.json()
    assert job["object"] == "image.job" and job["status"] == "in_progress" and job["error"] is None
    assert job["finished_at"] is job["expires_at"] is None and job["model"] == SLOW
    assert answer.headers["location"] == f"/v1/images/jobs/{job['id']}"
    assert answer.headers["x-imagegate-request-id"] == job["request_id"]
    running = get(gateway, job["id"])
    assert running.status_code == 200 and "result" not in running.json()
    answer = over(gateway, job["id"])
    done = answer.json()
    assert done["status"] == "completed" and done["expires_at"] - done["finished_at"] == 24 * 3600
    sizes = [look(base64.b64decode(image["b64_json"])).size for image in done["result"]["data"]]
    assert sizes == [(256, 256)] * 2
    # The result's headers are those that a request has.
    assert answer.headers["x-portkey-provider"] == "sandbox" and "x-imagegate-attempts" in answer.headers
    assert answer.headers["x-imagegate-request-id"] == job["request_id"]
    # And it stays.
    assert get(gateway, job["id"]).json() == done


def test_an_edit_as_a_job_with_links(gateway):
    picture = base64.b64decode(gateway.post(body={"prompt": "x", "size": "256x256"}, key=A).json()["data"][0]["b64_json"])
    answer = gateway.post(
        "/images/jobs",
        key=A,
        data={"prompt": "greener", "response_format": "url"},
        files={"image": ("a.png", picture, "image/png")},
    )
    assert answer.status_code == 202, answer.text
    done = over(gateway, answer.json()["id"]).json()
    assert done["status"] == "completed", done
    assert look(requests.get(done["result"]["data"][0]["url"], timeout=10).content)


def test_a_failed_job_says_why(gateway):
    job = submit(gateway, model="sandbox-refuse").json()["id"]
    answer = over(gateway, job)
    assert answer.status_code == 200
    failed = answer.json()
    assert failed["status"] == "failed" and failed["error"]["code"] == "moderation_blocked", failed
    assert answer.headers["x-imagegate-refused-by"] == "config sandbox"


def test_what_is_wrong_is_said_at_once(gateway):
    for body, param in [({"n": 0}, "n"), ({"prompt": ""}, "prompt"), ({"stream": True}, "stream")]:
        answer = gateway.post("/images/jobs", key=A, body={"model": SLOW, "prompt": "x", **body})
        assert answer.status_code == 400 and openai_error(answer)["param"] == param
    assert gateway.post("/images/jobs", key="wrong", body={"prompt": "x"}).status_code == 401


def test_jobs_belong_to_their_caller(gateway):
    job = submit(gateway).json()["id"]
    assert get(gateway, job, key=KEYS["KEY_B"]).status_code == 404
    assert gateway.post(f"/images/jobs/{job}/cancel", key=KEYS["KEY_B"]).status_code == 404
    assert get(gateway, job, key="wrong").status_code == 401
    for unknown in ["job_" + "0" * 32, "..%2f..%2fsecret", "job_"]:
        assert get(gateway, unknown).status_code == 404
    assert over(gateway, job).json()["status"] == "completed"


def test_events_tell_every_change(gateway):
    job = submit(gateway).json()["id"]
    answer = get(gateway, job, headers={"accept": "text/event-stream"})
    assert answer.headers["content-type"] == "text/event-stream"
    states = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]
    assert [state["status"] for state in states][:1] == ["in_progress"]
    assert [state["status"] for state in states][-1] == "completed"
    assert all(state["id"] == job and "result" not in state for state in states)


def upstream_config(openai_api):
    key = {"provider": "openai", "api_key": {"env": "UPSTREAM_KEY"}, "base_url": openai_api.base_url}
    return config(virtual_keys={"up": key}, configs={"up": {"virtual_key": "up"}}, default_config="up")


def test_a_cancelled_job_is_given_up_at_the_provider(serve, openai_api):
    gateway = serve(upstream_config(openai_api), env={**KEYS, "UPSTREAM_KEY": openai_api.key})
    openai_api.always = faults.hang()
    job = submit(gateway, model="dall-e-3", size="1024x1024").json()["id"]
    (call,) = openai_api.wait_for_calls(1)
    answer = gateway.post(f"/images/jobs/{job}/cancel", key=A)
    assert answer.status_code == 200 and answer.json()["status"] == "cancelled"
    assert call.closed.wait(10), "the upstream connection stayed open"
    assert get(gateway, job).json()["status"] == "cancelled"
    # A job that is over stays as it is.
    assert gateway.post(f"/images/jobs/{job}/cancel", key=A).json()["status"] == "cancelled"


def test_no_more_jobs_than_may_run(serve):
    gateway = serve(config(limits={"jobs": 1}), env=KEYS)
    first = submit(gateway).json()["id"]
    answer = gateway.post("/images/jobs", key=A, body={"model": SLOW, "prompt": "x"})
    assert answer.status_code == 429 and openai_error(answer)["code"] == "too_many_jobs"
    over(gateway, first)
    submit(gateway)


def prefer(gateway, text, model, **headers):
    started = time.monotonic()
    answer = gateway.post(
        body={"model": model, "prompt": "x", "size": "256x256"}, key=A, headers={"prefer": text, **headers}
    )
    return answer, time.monotonic() - started


def test_a_result_that_is_there_in_time_is_the_answer(gateway):
    answer, _ = prefer(gateway, "respond-async, wait=20", "sandbox")
    assert answer.status_code == 200 and "preference-applied" not in answer.headers
    assert look(base64.b64decode(answer.json()["data"][0]["b64_json"])).size == (256, 256)
    answer, _ = prefer(gateway, "respond-async, wait=20", "sandbox-refuse")
    assert answer.status_code == 400 and openai_error(answer)["code"] == "moderation_blocked"


def test_a_result_that_is_not_is_handed_off(gateway):
    answer, took = prefer(gateway, "respond-async, wait=1", "sandbox-slow-2500")
    assert answer.status_code == 202 and answer.headers["preference-applied"] == "respond-async"
    assert 0.9 < took < 2.4
    job = answer.json()["id"]
    assert over(gateway, job).json()["status"] == "completed"
    # It is known by now that it takes longer: why wait?
    answer, took = prefer(gateway, "respond-async, wait=1", "sandbox-slow-2500")
    assert answer.status_code == 202 and took < 0.8
    # Nor is there anything to wait for without a word on how long.
    answer, took = prefer(gateway, "respond-async", "sandbox-slow-2500")
    assert answer.status_code == 202 and took < 0.8


def test_an_sdk_that_would_have_timed_out_gets_a_job(gateway):
    client = openai.OpenAI(base_url=gateway.base_url, api_key=A, timeout=2, max_retries=0)
    ask = dict(model="sandbox-slow-4000", prompt="x", size="256x256")
    with pytest.raises((openai.APITimeoutError, openai.APIStatusError)):
        client.images.generate(**ask)
    raw = client.images.with_raw_response.generate(**ask, extra_headers={"Prefer": "respond-async"})
    assert raw.status_code == 202
    answer = over(gateway, json.loads(raw.text)["id"])
    assert look(base64.b64decode(answer.json()["result"]["data"][0]["b64_json"]))


class Listener(http.server.BaseHTTPRequestHandler):
    """Takes webhooks, after refusing some."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        self.server.got.put((body, dict(self.headers)))
        status = 500 if self.server.refusals else 204
        self.server.refusals = max(0, self.server.refusals - 1)
        self.send_response(status)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def listener():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Listener)
    server.got, server.refusals = queue.Queue(), 0
    server.url = f"http://127.0.0.1:{server.server_port}/hook"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_webhook_is_signed_and_repeated_until_it_is_taken(gateway, listener):
    listener.refusals = 1
    job = submit(gateway, model="sandbox", headers={"x-imagegate-webhook-url": listener.url}).json()["id"]
    first, second = listener.got.get(timeout=20), listener.got.get(timeout=20)
    assert first[0] == second[0]
    verifier = openai.OpenAI(api_key="none", webhook_secret=SECRET).webhooks
    for body, headers in (first, second):
        verifier.verify_signature(body, headers)
        with pytest.raises(openai.InvalidWebhookSignatureError):
            verifier.verify_signature(body + " ", headers)
    event = json.loads(first[0])
    assert (event["object"], event["type"]) == ("event", "image.job.completed")
    assert event["data"]["id"] == job and event["data"]["status"] == "completed" and "result" not in event["data"]
    assert SECRET not in gateway.log


def test_a_webhook_reaches_no_private_address(serve, listener):
    gateway = serve(config(egress={"allow": []}), env=KEYS)
    job = submit(gateway, model="sandbox", headers={"x-imagegate-webhook-url": listener.url}).json()["id"]
    assert over(gateway, job).json()["status"] == "completed"
    gateway.back.wait_for_log(lambda fields: fields.get("message") == "a webhook was not taken")
    assert listener.got.empty()


def test_a_webhook_that_cannot_be_is_refused(serve):
    gateway = serve({**config(), "webhooks": None}, env=KEYS)
    for url, said in [("https://example.com", "webhooks.secret"), ("nonsense", "not an address")]:
        answer = gateway.post("/images/jobs", key=A, body={"prompt": "x"}, headers={"x-imagegate-webhook-url": url})
        assert answer.status_code == 400 and said in openai_error(answer)["message"]

    def outcomes():
        return [event["fields"]["outcome"] for event in gateway.back.events if event["fields"].get("message") == "request"]

    # A line may be read after the answer.
    eventually(lambda: outcomes() == ["unsupported", "invalid_request"], what="a line for each")


def test_jobs_outlive_a_restart_and_running_ones_hold_up_the_end(serve, start, tmp_path):
    gateway = serve(config(), env=KEYS)
    finished = submit(gateway, model="sandbox").json()["id"]
    before = over(gateway, finished).json()
    running = submit(gateway).json()["id"]
    gateway.back.terminate()
    assert gateway.back.wait() == 0
    process = start("serve", "--config", gateway.config_file, env=KEYS)
    again = Gateway(process, process, gateway.config_file)
    assert get(again, finished).json() == before
    assert get(again, running).json()["status"] == "completed"
    assert not list((tmp_path / "data" / "jobs").glob("*.part"))


def test_a_job_whose_disk_is_full_lives_in_memory(serve, tmp_path):
    gateway = serve(config(), env=KEYS)
    data = tmp_path / "data"
    data.mkdir(exist_ok=True)
    (data / "jobs").write_text("in the way")
    job = submit(gateway, model="sandbox").json()["id"]
    done = over(gateway, job).json()
    assert done["status"] == "completed" and look(base64.b64decode(done["result"]["data"][0]["b64_json"]))


def test_jobs_over_grpc_through_separate_processes(start, tmp_path):
    file = tmp_path / "imagegate.yaml"
    file.write_text(yaml.safe_dump({**config(), "data_dir": str(tmp_path / "data")}))
    router = start("router", "--config", file, env=KEYS)
    shim = start("shim", "--router", "http://" + router.address("grpc"), "--listen", "127.0.0.1:0")
    gateway = Gateway(shim, router, file)
    client = Client(gateway.grpc)
    request = client.request("SubmitImage", model=SLOW, prompt="a lighthouse", n=2)
    job = client.call("SubmitImage", request, key=A).job
    assert job.state == 1 and job.caller == "a"

    def about(method, **fields):
        message = client.request(method)
        message.id = job.id
        for name, value in fields.items():
            setattr(message, name, value)
        return client.call(method, message, key=A)

    events = list(about("WatchJob"))
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[0] == "job" and kinds[-1] == "result" and kinds.count("result") == 1
    bytes_of = [b"", b""]
    for event in events:
        if event.WhichOneof("event") == "image_chunk":
            assert len(event.image_chunk.data) <= 256 << 10
            bytes_of[event.image_chunk.image_index] += event.image_chunk.data
    found = about("GetJob")
    assert [image.data for image in found.result.images] == bytes_of and all(map(look, bytes_of))
    assert not about("GetJob", omit_result=True).HasField("result")
    assert about("CancelJob").job.state == 2
    # The same over the shim in its own process.
    assert over(gateway, job.id).json()["status"] == "completed"
    with pytest.raises(grpc.RpcError) as error:
        list(client.call("WatchJob", client.request("WatchJob"), key=A))
    assert error.value.code() == grpc.StatusCode.NOT_FOUND
    client.close()
