"""Requests beyond what a process may hold are told so at once; those that are let in are answered right."""

import base64
import os
import threading
from contextlib import contextmanager

import grpc
import pytest
import requests

from emulators.pictures import picture
from gateway import eventually, openai_error
from grpc_client import Client
from memory import metric

MB = 1 << 20
LIMITS = {"max_body_bytes": 8 * MB, "bytes_in_flight": 16 * MB}
# Cameras append what is no picture. Two of these are more than two thirds of what may be in flight.
LARGE = picture(64, 64) + os.urandom(6 * MB + MB // 2)


@pytest.fixture
def narrow(serve):
    return serve({"listen": {"http": "127.0.0.1:0", "grpc": "127.0.0.1:0", "admin": "127.0.0.1:0"}, "limits": LIMITS})


def edit(gateway, image, model="sandbox-1", key="a", wait=60):
    """An edit of the sandbox."""
    files = {"image": ("a.png", image, "image/png")}
    headers = {"x-portkey-provider": "sandbox", "authorization": f"Bearer {key}"}
    data = {"prompt": "x", "model": model}
    return requests.post(f"{gateway.base_url}/images/edits", headers=headers, files=files, data=data, timeout=wait)


def held(gateway):
    return metric(gateway, "imagegate_bytes_in_flight")


@contextmanager
def nearly_full(gateway):
    """Somebody waits for an answer that never comes, and takes the room for another large request meanwhile."""
    waits = threading.Thread(
        target=lambda: pytest.raises(requests.ReadTimeout, edit, gateway, LARGE, "sandbox-stall", wait=5)
    )
    waits.start()
    eventually(lambda: held(gateway) > 6 * MB, 5, "the first request")
    yield
    waits.join()
    eventually(lambda: held(gateway) == 0, 5, "the end of the first request")


def test_who_finds_no_room_is_told_so_and_who_needs_little_is_let_in(narrow):
    with nearly_full(narrow):
        refused = edit(narrow, LARGE)
        assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
        error = openai_error(refused)
        assert error["code"] == "overloaded" and "16 MiB (limits.bytes_in_flight)" in error["message"], error
        assert refused.elapsed.total_seconds() < 1, "nobody waits for the first request"
        assert edit(narrow, picture(64, 64)).status_code == 200
        assert metric(narrow, "imagegate_overloaded_total") == 1
    assert edit(narrow, LARGE).status_code == 200


def test_who_finds_no_room_over_grpc_is_told_so(narrow):
    client = Client(narrow.grpc)
    ask = lambda data: client.call(  # noqa: E731
        "EditImage",
        client.request("EditImage", prompt="x", inputs=[{"data": data}]),
        metadata=[("x-portkey-provider", "sandbox")],
    )
    with nearly_full(narrow):
        with pytest.raises(grpc.RpcError) as failed:
            ask(LARGE)
        assert failed.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED, failed.value
        details = client.details(failed.value)
        assert details["ErrorDetail"].code == "overloaded" and details["ErrorDetail"].status == 503
        assert details["RetryInfo"].retry_delay.seconds == 1
        assert ask(picture(64, 64)).result.images[0].data.startswith(b"\x89PNG")
    assert ask(LARGE).result.images[0].data.startswith(b"\x89PNG")


def test_a_crowd_of_uploads_is_answered_to_the_last(narrow):
    results = []
    ask = lambda i: results.append(edit(narrow, LARGE, key=i % 3))  # noqa: E731
    threads = [threading.Thread(target=ask, args=(i,)) for i in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 24
    refused = [answer for answer in results if answer.status_code == 503]
    served = [answer for answer in results if answer.status_code == 200]
    assert served and refused and len(served) + len(refused) == 24
    for answer in refused:
        assert openai_error(answer)["code"] == "overloaded" and answer.headers["retry-after"] == "1"
    for answer in served:
        assert base64.b64decode(answer.json()["data"][0]["b64_json"]).startswith(b"\x89PNG")
    assert metric(narrow, "imagegate_overloaded_total") == len(refused)
    eventually(lambda: held(narrow) == 0, 5, "nothing of it is left")
    assert edit(narrow, LARGE).status_code == 200
