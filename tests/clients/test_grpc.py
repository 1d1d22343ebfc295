"""The gRPC interface, from Python, with nothing but reflection."""

import gc
import time
import weakref

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from emulators import faults
from emulators.pictures import look
from gateway import TEAM_KEY, eventually
from grpc_client import Client

ROUTE = [("x-portkey-config", "pc-sdxl-dalle")]
SQUARE = {"dimensions": {"width": 1024, "height": 1024}}


@pytest.fixture
def client(founding):
    client = Client(founding.grpc)
    yield client
    client.close()


def test_reflection_lists_the_services(client):
    services = client.database.get_services()
    assert {"imagegate.v1.RouterService", "grpc.health.v1.Health"} <= set(services)


def test_classes_of_messages_are_not_left_to_the_garbage_collector(client):
    request = client.request("GenerateImage", prompt="x")
    kinds = [weakref.ref(type(message)) for message in (request, request.image, request.image.size.dimensions)]
    del request
    gc.collect()
    assert all(kind() is not None for kind in kinds)


def test_health_is_told_per_service(founding):
    health = health_pb2_grpc.HealthStub(grpc.insecure_channel(founding.grpc))
    for service in ("", "imagegate.v1.RouterService"):
        answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as failed:
        health.Check(health_pb2.HealthCheckRequest(service="nothing"), timeout=5)
    assert failed.value.code() == grpc.StatusCode.NOT_FOUND


def test_a_unary_call_gives_the_picture_and_what_was_done_for_it(client):
    answer = client.call("GenerateImage", client.request("GenerateImage", prompt="a red cat", size=SQUARE), metadata=ROUTE)
    (image,) = answer.result.images
    assert look(image.data).size == (image.width, image.height) == (1024, 1024)
    report = answer.result.report
    assert (report.provider, report.target) == ("stability-ai", "config.targets[0]")
    assert report.request_id and report.trace_id
    assert [(attempt.number, attempt.outcome) for attempt in report.attempts] == [(1, "ok")]
    assert answer.result.created_unix_s > 1_700_000_000


def test_a_unary_call_falls_back_and_tells_each_attempt(client, stability_api):
    stability_api.always = faults.filtered()
    answer = client.call("GenerateImage", client.request("GenerateImage", prompt="x"), metadata=ROUTE)
    report = answer.result.report
    assert (report.provider, report.model, report.target) == ("openai", "dall-e-3", "config.targets[1]")
    assert [attempt.outcome for attempt in report.attempts] == ["content_rejected", "ok"]
    assert len(report.refused_by) == 1
    assert look(answer.result.images[0].data).size == (1024, 1024)


def test_the_caller_may_be_named_by_a_bearer_token(client):
    metadata = [*ROUTE, ("authorization", f"Bearer {TEAM_KEY}")]
    answer = client.call("GenerateImage", client.request("GenerateImage", prompt="x"), key=None, metadata=metadata)
    assert len(answer.result.images) == 1


def test_adjusted_parameters_are_in_the_warnings(client):
    size = {"dimensions": {"width": 1000, "height": 1000}}
    request = client.request("GenerateImage", prompt="x", size=size, model="dall-e-3", n=2)
    answer = client.call("GenerateImage", request, metadata=[("x-portkey-config", "pc-openai")])
    assert [(image.width, image.height) for image in answer.result.images] == [(1024, 1024)] * 2
    warnings = {warning.field: warning for warning in answer.result.report.warnings}
    assert "1024x1024" in warnings["size"].detail
    assert "n" in warnings, "two calls for two images are a fact that the caller should know"


def test_costs_are_lines_and_unknown_is_not_zero(client):
    request = client.request("GenerateImage", prompt="x", model="gpt-image-1.5")
    answer = client.call("GenerateImage", request, metadata=[("x-portkey-config", "pc-openai")])
    lines = {line.item: line for line in answer.result.report.cost_lines}
    assert lines["output_image_token"].quantity == 1056
    assert lines["output_image_token"].amount_usd == pytest.approx(1056 * 32 / 1e6)
    assert answer.result.usage.output_image_tokens == 1056
    request = client.request("GenerateImage", prompt="x", model="stable-diffusion-v1-6")
    answer = client.call("GenerateImage", request, metadata=[("x-portkey-config", "pc-stability")])
    assert not any(line.HasField("amount_usd") for line in answer.result.report.cost_lines)


def test_a_stream_gives_previews_then_chunks_then_the_result(client):
    request = client.request("StreamImage", prompt="x", model="gpt-image-1", partial_images=2)
    events = list(client.call("StreamImage", request, metadata=[("x-portkey-config", "pc-openai")]))
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds.count("partial_image") == 2 and kinds[-1] == "result" and kinds.count("result") == 1
    assert kinds.index("image_chunk") > kinds.index("partial_image")
    chunks = [event.image_chunk for event in events if event.WhichOneof("event") == "image_chunk"]
    assert all(len(chunk.data) <= 256 << 10 for chunk in chunks)
    (image,) = events[-1].result.images
    assert image.data == b"" and (image.width, image.height) == (1024, 1024)
    assert look(b"".join(chunk.data for chunk in chunks)).size == (1024, 1024)


def test_a_stream_of_several_images_keeps_their_order(client):
    request = client.request("StreamImage", prompt="x", model="dall-e-3", n=3)
    events = list(client.call("StreamImage", request, metadata=[("x-portkey-config", "pc-openai")]))
    images = {}
    for event in events:
        if event.WhichOneof("event") == "image_chunk":
            chunk = event.image_chunk
            images[chunk.image_index] = images.get(chunk.image_index, b"") + chunk.data
    assert sorted(images) == [0, 1, 2]
    assert all(look(data).size == (1024, 1024) for data in images.values())


def test_a_large_picture_passes(client, openai_api, monkeypatch):
    import io
    import os

    from PIL import Image

    from emulators import openai as emulated

    noise = io.BytesIO()
    Image.frombytes("RGB", (1600, 1200), os.urandom(1600 * 1200 * 3)).save(noise, "PNG")
    monkeypatch.setattr(emulated, "picture", lambda *args, **more: noise.getvalue())
    assert len(noise.getvalue()) > 5 << 20
    request = client.request("GenerateImage", prompt="x", model="gpt-image-1", n=2)
    answer = client.call("GenerateImage", request, metadata=[("x-portkey-config", "pc-openai")])
    assert [image.data == noise.getvalue() for image in answer.result.images] == [True, True]


def test_edits_and_variations_take_bytes(client, image_files):
    source = image_files["a"].read_bytes()
    mask = {"data": image_files["mask"].read_bytes(), "polarity": 3}
    request = client.request("EditImage", prompt="hat", model="gpt-image-1", inputs=[{"data": source}], mask=mask)
    answer = client.call("EditImage", request, metadata=[("x-portkey-config", "pc-openai")])
    assert look(answer.result.images[0].data).size == (1024, 1024)
    request = client.request("VaryImage", model="dall-e-2", inputs=[{"data": source}])
    answer = client.call("VaryImage", request, metadata=[("x-portkey-config", "pc-openai")])
    assert look(answer.result.images[0].data).size == (1024, 1024)


def test_models_are_listed(client):
    answer = client.call("ListModels", client.request("ListModels"), metadata=ROUTE)
    listed = {(model.provider, model.id) for model in answer.models}
    assert any(provider == "openai" and "dall-e-3" in model for provider, model in listed)


@pytest.mark.parametrize(
    "fault, code, reason",
    [
        (faults.status(429, retry_after="7"), grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED"),
        (faults.status(401), grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED"),
        (faults.status(503), grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE"),
        (faults.refusal(), grpc.StatusCode.FAILED_PRECONDITION, "CONTENT_REJECTED"),
        (faults.html(200), grpc.StatusCode.INTERNAL, "BAD_ANSWER"),
    ],
)
def test_a_failure_is_a_status_with_details(client, openai_api, fault, code, reason):
    openai_api.always = fault
    request = client.request("GenerateImage", prompt="x", model="gpt-image-1")
    with pytest.raises(grpc.RpcError) as failed:
        client.call("GenerateImage", request, metadata=[("x-portkey-config", "pc-openai")])
    assert failed.value.code() == code
    details = client.details(failed.value)
    info = details["ErrorInfo"]
    assert (info.reason, info.domain, info.metadata["provider"]) == (reason, "imagegate", "openai")
    assert details["ErrorDetail"].report.attempts[0].target == "config"
    if reason == "RATE_LIMITED":
        assert details["RetryInfo"].retry_delay.seconds == 7


def test_all_targets_down_is_the_last_ones_status_with_every_attempt(client, stability_api, openai_api):
    stability_api.always = faults.status(500)
    openai_api.always = faults.status(429)
    with pytest.raises(grpc.RpcError) as failed:
        client.call("GenerateImage", client.request("GenerateImage", prompt="x"), metadata=ROUTE)
    assert failed.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    report = client.details(failed.value)["ErrorDetail"].report
    assert [(attempt.provider, attempt.status) for attempt in report.attempts] == [("stability-ai", 500), ("openai", 429)]


def test_a_wrong_config_is_an_invalid_argument_with_its_places(client):
    metadata = [("x-portkey-config", '{"strategy": {"mode": "fallback"}, "targets": []}')]
    with pytest.raises(grpc.RpcError) as failed:
        client.call("GenerateImage", client.request("GenerateImage", prompt="x"), metadata=metadata)
    assert failed.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    (violation,) = client.details(failed.value)["BadRequest"].field_violations
    assert violation.field == "targets" and violation.description


def test_a_caller_without_a_key_is_unauthenticated(client, openai_api, stability_api):
    for key in (None, "wrong"):
        with pytest.raises(grpc.RpcError) as failed:
            client.call("GenerateImage", client.request("GenerateImage", prompt="x"), key=key, metadata=ROUTE)
        assert failed.value.code() == grpc.StatusCode.UNAUTHENTICATED
    assert openai_api.calls == [] and stability_api.calls == []


def test_the_callers_deadline_ends_the_call_and_the_upstream_one(client, openai_api):
    openai_api.always = faults.hang()
    request = client.request("GenerateImage", prompt="x", model="gpt-image-1")
    started = time.monotonic()
    with pytest.raises(grpc.RpcError) as failed:
        client.call("GenerateImage", request, metadata=[("x-portkey-config", "pc-openai")], timeout=1)
    assert failed.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - started < 3
    assert openai_api.wait_for_calls(1)[0].closed.wait(2)


@pytest.mark.alone
def test_a_cancelled_call_ends_the_upstream_one_within_100_ms(client, openai_api):
    openai_api.always = faults.hang()
    request = client.request("StreamImage", prompt="x", model="gpt-image-1")
    call = client.call("StreamImage", request, metadata=[("x-portkey-config", "pc-openai")])
    (upstream,) = openai_api.wait_for_calls(1)
    cancelled = time.monotonic()
    call.cancel()
    assert upstream.closed.wait(5)
    assert upstream.closed_at - cancelled < 0.1


def test_health_turns_not_serving_before_the_end(founding, openai_api):
    import threading

    openai_api.always = faults.hold()
    body = {"prompt": "x", "model": "gpt-image-1"}
    answers = []
    post = lambda: answers.append(founding.post(body=body, headers={"x-portkey-config": "pc-openai"}))
    caller = threading.Thread(target=post)
    caller.start()
    openai_api.wait_for_calls(1)
    health = health_pb2_grpc.HealthStub(grpc.insecure_channel(founding.grpc))
    changes = health.Watch(health_pb2.HealthCheckRequest(service="imagegate.v1.RouterService"), timeout=20)
    assert next(changes).status == health_pb2.HealthCheckResponse.SERVING
    founding.front.terminate()
    assert next(changes).status == health_pb2.HealthCheckResponse.NOT_SERVING
    eventually(lambda: not founding.ready(), what="readiness to end")
    changes.cancel()
    openai_api.release()
    caller.join(20)
    assert answers[0].status_code == 200
    assert founding.front.wait() == 0


def test_an_open_health_watch_does_not_hold_up_the_end(founding):
    health = health_pb2_grpc.HealthStub(grpc.insecure_channel(founding.grpc))
    changes = health.Watch(health_pb2.HealthCheckRequest(service=""), timeout=60)
    assert next(changes).status == health_pb2.HealthCheckResponse.SERVING
    started = time.monotonic()
    founding.front.terminate()
    assert founding.front.wait() == 0
    assert time.monotonic() - started < 10
    changes.cancel()
