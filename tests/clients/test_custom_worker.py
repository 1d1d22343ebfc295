"""A worker of one's own, in another language: examples/worker-python behind the router, by config alone."""

import re
import subprocess
import sys

import grpc
import pytest

from emulators.pictures import look
from gateway import ROOT, eventually, openai_error
from grpc_client import Client


@pytest.fixture
def gradient():
    """The example, as its README starts it."""
    worker = subprocess.Popen(
        [sys.executable, "-u", str(ROOT / "examples" / "worker-python" / "worker.py"), "127.0.0.1:0"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    line = worker.stdout.readline()
    yield "http://" + re.search(r"127\.0\.0\.1:\d+", line)[0]
    worker.terminate()
    worker.wait(10)


@pytest.fixture
def gateway(serve, gradient):
    return serve(
        {
            "listen": {"http": "127.0.0.1:0", "grpc": "127.0.0.1:0", "admin": "127.0.0.1:0"},
            "workers": {"gradient": gradient},
            "configs": {"mine": {"provider": "gradient"}},
            "default_config": "mine",
        }
    )


def generate(gateway, **body):
    return gateway.post(body={"prompt": "sunset", "response_format": "b64_json", **body}, key=None)


def test_it_serves_images_by_config_alone(gateway, decode):
    answer = generate(gateway, size="640x480")
    assert answer.status_code == 200, answer.text[:500]
    assert decode(answer.json()["data"][0]["b64_json"]).size == (640, 480)
    assert answer.headers["x-portkey-provider"] == "gradient"


def test_its_record_is_honoured(gateway, decode):
    answer = generate(gateway, size="5000x5000", n=2, quality="high")
    assert answer.status_code == 200, answer.text[:500]
    pictures = [decode(image["b64_json"]) for image in answer.json()["data"]]
    assert len(pictures) == 2 and max(pictures[0].size) <= 2048
    for name in ("size", "quality"):
        assert name in answer.headers["x-imagegate-warnings"]


def test_the_same_seed_draws_the_same_picture(gateway):
    first, again, other = (generate(gateway, seed=seed).json()["data"][0]["b64_json"] for seed in (1, 1, 2))
    assert first == again != other


def test_its_progress_and_chunks_reach_a_grpc_caller(gateway):
    client = Client(gateway.grpc)
    size = {"dimensions": {"width": 1024, "height": 1024}}
    request = client.request("StreamImage", prompt="sunset", size=size)
    events = list(client.call("StreamImage", request, key=None))
    kinds = [event.WhichOneof("event") for event in events]
    assert "progress" in kinds and kinds[-1] == "result"
    data = b"".join(event.image_chunk.data for event in events if event.WhichOneof("event") == "image_chunk")
    assert look(data).size == (1024, 1024)
    client.close()


def test_what_it_cannot_do_is_refused_without_a_call(gateway, image_files):
    answer = gateway.post(
        "/images/edits",
        key=None,
        files={"image": ("a.png", image_files["a"].read_bytes(), "image/png")},
        data={"prompt": "hat"},
    )
    assert answer.status_code == 400
    assert "edit" in openai_error(answer)["message"]


def test_its_refusal_is_a_refusal(gateway):
    answer = generate(gateway, prompt="something forbidden")
    assert answer.status_code == 400
    assert openai_error(answer)["code"] == "moderation_blocked"


def test_a_router_waits_for_no_worker_to_start(serve):
    gateway = serve(
        {
            "listen": {"http": "127.0.0.1:0", "grpc": "127.0.0.1:0", "admin": "127.0.0.1:0"},
            "workers": {"gradient": "http://127.0.0.1:9"},
            "configs": {"mine": {"provider": "gradient"}},
            "default_config": "mine",
        }
    )
    answer = generate(gateway)
    assert answer.status_code == 503
    assert "gradient" in openai_error(answer)["message"]


def test_the_example_runs_alone(gradient):
    channel = grpc.insecure_channel(gradient.removeprefix("http://"))
    eventually(lambda: grpc.channel_ready_future(channel).result(5) is None, what="a connection")
    channel.close()
