"""Imagen at Vertex AI: several images of one call, those that its filter takes away, and masks."""

import base64

import pytest

from emulators.pictures import look, mask, picture
from emulators.ring.vertex_ai import EDITOR, FILTERED, VertexAi
from gateway import openai_error

IMAGEN = "imagen-4.0-generate-001"


@pytest.fixture
def upstream():
    emulator = VertexAi()
    yield emulator
    emulator.close()


@pytest.fixture
def gateway(serve, upstream):
    virtual_key = {
        "provider": "vertex-ai",
        # As people paste it.
        "vertex_service_account_json": upstream.tokens.account,
        "base_url": upstream.base_url,
        **upstream.options,
    }
    return serve(
        {
            "listen": {"http": "127.0.0.1:0", "grpc": "127.0.0.1:0", "admin": "127.0.0.1:0"},
            "virtual_keys": {"it": virtual_key},
            "configs": {"it": {"virtual_key": "it"}},
            "default_config": "it",
        }
    )


def images(answer):
    assert answer.status_code == 200, answer.text[:1000]
    return [look(base64.b64decode(image["b64_json"])) for image in answer.json()["data"]]


def generate(gateway, **body):
    body = {"model": IMAGEN, "prompt": "a lighthouse", "response_format": "b64_json", **body}
    return gateway.post(body=body, key=None)


def test_four_images_are_one_call(gateway, upstream):
    answer = generate(gateway, n=4, size="1536x2816", output_format="jpeg", seed=7)
    found = images(answer)
    assert [image.size for image in found] == [(1536, 2816)] * 4 and {image.format for image in found} == {"JPEG"}
    assert len(upstream.calls) == 1
    assert "addWatermark adjusted" in answer.headers["x-imagegate-warnings"]
    assert float(answer.headers["x-imagegate-cost-usd"]) == pytest.approx(0.16)


@pytest.mark.parametrize(
    "filter", [[FILTERED], [None], [FILTERED] * 3, [None] * 3], ids=["one", "one-missing", "all", "all-missing"]
)
def test_a_filtered_image_is_a_refusal(gateway, upstream, filter):
    upstream.filter = filter
    answer = generate(gateway, n=3)
    assert answer.status_code == 400, answer.text[:1000]
    assert openai_error(answer)["code"] == "moderation_blocked"
    assert answer.headers["x-imagegate-attempts"].split(" ")[2] == "content_rejected"


def test_a_mask_is_white_where_it_edits(gateway, upstream):
    files = {"image": ("a.png", picture(512, 512), "image/png"), "mask": ("m.png", mask(512, 512), "image/png")}
    form = {"model": EDITOR, "prompt": "a boat", "response_format": "b64_json"}
    answer = gateway.post("/images/edits", key=None, files=files, data=form)
    assert [image.size for image in images(answer)] == [(512, 512)]
    assert upstream.mask.getpixel((192, 192)) == 255 and upstream.mask.getpixel((0, 0)) == 0
