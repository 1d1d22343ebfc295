"""A server that answers only when the image is done: what is told of a job meanwhile, and which job is interrupted."""

import pytest

from emulators.pictures import look, picture
from emulators.ring.automatic1111 import Automatic1111
from gateway import eventually
from grpc_client import Client

PROMPT = "a lighthouse at dusk"
SIZE = {"dimensions": {"width": 512, "height": 512}}


@pytest.fixture
def server():
    emulator = Automatic1111()
    yield emulator
    emulator.close()


@pytest.fixture
def gateway(serve, server):
    key = {"provider": server.provider, "api_key": {"env": "RING_KEY"}, "base_url": server.base_url}
    return serve(
        {
            "listen": {"http": "127.0.0.1:0", "grpc": "127.0.0.1:0", "admin": "127.0.0.1:0"},
            "virtual_keys": {"it": key},
            "configs": {"it": {"virtual_key": "it"}},
            "default_config": "it",
        },
        env={"RING_KEY": server.key},
    )


def generate(gateway, **body):
    return gateway.post(body={"prompt": PROMPT, "size": "512x512", "response_format": "b64_json", **body}, key=None)


def drawings(server):
    return [call for call in server.calls if call.path == "/sdapi/v1/txt2img"]


def leave_when(gateway, server, seen):
    """Asks for an image, and hangs up when a progress is told of which this is true."""
    drawn = len(drawings(server))
    client = Client(gateway.grpc)
    request = client.request("StreamImage", prompt=PROMPT, size=SIZE)
    events = client.call("StreamImage", request, key=None)
    assert any(seen(event.progress) for event in events if event.WhichOneof("event") == "progress")
    events.cancel()
    (drawing,) = drawings(server)[drawn:]
    assert drawing.closed.wait(10), "the request was not given up"
    client.close()


def test_progress_reaches_whoever_follows(gateway, server):
    server.hold_jobs()
    client = Client(gateway.grpc)
    request = client.request("StreamImage", prompt=PROMPT, size=SIZE)
    told, data, last = [], b"", None
    for event in client.call("StreamImage", request, key=None):
        last = event.WhichOneof("event")
        if last == "progress":
            told.append((event.progress.state, event.progress.fraction))
            if event.progress.fraction == 0.25:
                server.state = {"progress": 0.75, "eta": 10.0}
            elif event.progress.fraction == 0.75:
                server.release()
        elif last == "image_chunk":
            data += event.image_chunk.data
    assert [fraction for _, fraction in told if fraction] == [0.25, 0.75]
    assert last == "result" and look(data).size == (512, 512)
    assert server.cancelled == 0
    client.close()


def test_a_job_is_interrupted_when_its_caller_goes(gateway, server):
    server.hold_jobs()
    leave_when(gateway, server, lambda progress: progress.fraction == 0.25)
    eventually(lambda: server.cancelled == 1, what="the interruption")


def test_nobody_elses_job_is_interrupted(gateway, server):
    server.hold_jobs()
    server.current_task = "task(somebody-else)"
    leave_when(gateway, server, lambda progress: progress.state == "queued")
    # One that is almost done is as good as somebody else's: the next may run before the interruption arrives.
    server.current_task, server.state = None, {"progress": 0.95, "eta": 1.0}
    leave_when(gateway, server, lambda progress: progress.fraction == 0.95)
    # What is to be given up is said in turn, so whatever was said of the first two stands before this.
    server.current_task, server.state = None, {"progress": 0.1, "eta": 60.0}
    leave_when(gateway, server, lambda progress: progress.fraction == 0.1)
    eventually(lambda: server.cancelled > 0, what="the interruption")
    assert server.cancelled == 1


def test_a_server_without_task_ids_serves_as_well(gateway, server):
    server.knows_tasks = False
    server.hold_jobs()
    leave_when(gateway, server, lambda _: any(call.path == "/internal/progress" for call in server.calls))
    server.release()
    answer = generate(gateway)
    assert answer.status_code == 200, answer.text[:500]
    assert server.cancelled == 0


def test_what_the_server_does_not_have_is_told(gateway):
    answer = generate(gateway, model="no-such-checkpoint", sampler="Euler b", seed=7, n=2)
    assert answer.status_code == 200, answer.text[:500]
    warnings = answer.headers["x-imagegate-warnings"]
    assert "model" in warnings and "sampler" in warnings
    answer = generate(gateway, model="juggernaut_xl", sampler="DPM++ 2M Karras")
    assert "sampler" not in answer.headers["x-imagegate-warnings"]


def test_without_a_model_the_loaded_checkpoint_draws(gateway, server):
    answer = generate(gateway, clip_skip=2, enable_hr=True, mask_blur=8)
    assert answer.status_code == 200, answer.text[:500]
    (drawing,) = drawings(server)
    body = drawing.json()
    assert body["override_settings"] == {"CLIP_stop_at_last_layers": 2}
    assert body["enable_hr"] is True and "mask_blur" not in body
    assert "mask_blur" in answer.headers["x-imagegate-warnings"]


def test_an_image_is_enlarged(gateway):
    client = Client(gateway.grpc)
    enlarged = {"upscale": {"target": {"width": 512, "height": 256}}, "operation": 6}
    request = client.request("EditImage", inputs=[{"data": picture(128, 64)}], **enlarged)
    result = client.call("EditImage", request, key=None).result
    assert look(result.images[0].data).size == (512, 256)
    client.close()
