"""Bedrock beyond the ring: what each model is sent, masks, seeds, missing images, and who signs."""

import base64
import io
import json

import grpc
import pytest
import requests
from PIL import Image

from emulators import faults
from emulators.pictures import encode, look, mask, picture
from emulators.ring.bedrock import KEY_ID, Bedrock
from gateway import openai_error
from grpc_client import Client

NOVA, TITAN = "amazon.nova-canvas-v1:0", "amazon.titan-image-generator-v2:0"
OPERATIONS = {
    "edit": 2,
    "inpaint": 3,
    "outpaint": 4,
    "variation": 5,
    "upscale": 6,
    "remove_background": 7,
    "replace_background": 8,
    "erase": 9,
    "search_replace": 10,
    "search_recolor": 11,
    "control": 12,
}
SOURCE = picture(640, 320)
HOLE = {"data": mask(640, 320), "polarity": 3}


@pytest.fixture
def bedrock():
    emulator = Bedrock()
    yield emulator
    emulator.close()


@pytest.fixture
def gateway(serve, bedrock):
    """Starts a gateway for Bedrock, with further fields of the virtual key."""

    def gateway(**fields):
        key = {"provider": "bedrock", **bedrock.credential("SECRET"), **bedrock.options, **fields}
        return serve(
            {
                "listen": {"http": "127.0.0.1:0", "grpc": "127.0.0.1:0", "admin": "127.0.0.1:0"},
                "virtual_keys": {"it": {"base_url": bedrock.base_url, **key}},
                "configs": {"it": {"virtual_key": "it"}},
                "default_config": "it",
            },
            env={"SECRET": bedrock.key, "SESSION": "session-token/of+the+ring=="},
        )

    return gateway


@pytest.fixture
def client(gateway):
    client = Client(gateway().grpc)
    yield client
    client.close()


def edit(client, operation, model, **fields):
    request = client.request("EditImage", operation=OPERATIONS[operation], model=model, **fields)
    return client.call("EditImage", request, key=None).result


def sent(bedrock):
    return bedrock.calls[-1].json()


def tones(text):
    """The colours of a mask inside and outside of what `mask` selects."""
    image = look(base64.b64decode(text))
    assert image.mode == "L"
    return image.getpixel((161, 81)), image.getpixel((2, 2))


@pytest.mark.parametrize(
    "operation, model, fields, size",
    [
        ("edit", "stability.sd3-5-large-v1:0", {"prompt": "x", "strength": 0.5}, (640, 320)),
        ("inpaint", "us.stability.stable-image-inpaint-v1:0", {"prompt": "x", "mask": HOLE}, (640, 320)),
        ("outpaint", "us.stability.stable-outpaint-v1:0", {"outpaint": {"left": 64, "creativity": 0.5}}, (704, 320)),
        ("erase", "stability.stable-image-erase-object-v1:0", {"mask": HOLE}, (640, 320)),
        ("remove_background", "stability.stable-image-remove-background-v1:0", {}, (640, 320)),
        ("search_replace", "stability.stable-image-search-replace-v1:0", {"prompt": "a", "search_prompt": "b"}, (640, 320)),
        ("search_recolor", "stability.stable-image-search-recolor-v1:0", {"prompt": "a", "search_prompt": "b"}, (640, 320)),
        ("control", "stability.stable-image-control-sketch-v1:0", {"prompt": "a", "control": {"strength": 0.5}}, (640, 320)),
        ("control", "stability.stable-image-control-structure-v1:0", {"prompt": "a", "style": "anime"}, (640, 320)),
        ("control", "stability.stable-image-style-guide-v1:0", {"prompt": "a", "control": {"strength": 0.5}}, (1024, 1024)),
        ("control", "stability.stable-style-transfer-v1:0", {"prompt": "a", "control": {"strength": 0.5}}, (640, 320)),
        ("upscale", "stability.stable-fast-upscale-v1:0", {}, (2560, 1280)),
        ("upscale", "stability.stable-conservative-upscale-v1:0", {"prompt": "a", "upscale": {"creativity": 0.3}}, (640, 320)),
        ("upscale", "stability.stable-creative-upscale-v1:0", {"prompt": "a", "style": "anime"}, (640, 320)),
        ("edit", NOVA, {"prompt": "a", "strength": 0.5}, (1024, 1024)),
        ("variation", NOVA, {}, (1024, 1024)),
        ("remove_background", NOVA, {}, (640, 320)),
        ("replace_background", NOVA, {"prompt": "a beach", "search_prompt": "the dog"}, (640, 320)),
        ("control", NOVA, {"prompt": "a", "control": {"kind": 6, "strength": 0.5}}, (1024, 1024)),
        ("erase", TITAN, {"mask": HOLE}, (640, 320)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_operation_is_said_in_its_models_words(client, operation, model, fields, size):
    inputs = [{"data": SOURCE}] * (2 if "transfer" in model else 1)
    (image,) = edit(client, operation, model, inputs=inputs, **fields).images
    assert (image.width, image.height) == size


def test_inside_black_is_painted_and_around_white(client, bedrock):
    painted = {"prompt": "a hat", "inputs": [{"data": SOURCE}], "mask": HOLE}
    edit(client, "inpaint", NOVA, **painted)
    assert tones(sent(bedrock)["inPaintingParams"]["maskImage"]) == (0, 255)
    edit(client, "outpaint", NOVA, **painted)
    assert tones(sent(bedrock)["outPaintingParams"]["maskImage"]) == (255, 0)


def test_half_tones_of_a_mask_become_one_or_the_other_and_are_told(client, bedrock):
    soft = encode(Image.linear_gradient("L").resize((640, 320)), "png")
    result = edit(client, "inpaint", NOVA, prompt="a", inputs=[{"data": SOURCE}], mask={"data": soft, "polarity": 1})
    drawn = look(base64.b64decode(sent(bedrock)["inPaintingParams"]["maskImage"]))
    assert set(drawn.getdata()) == {0, 255} and drawn.getpixel((0, 0)) == 255 and drawn.getpixel((0, 319)) == 0
    assert "mask" in [warning.field for warning in result.report.warnings]


def test_transparent_inputs_are_refused_before_anything_is_sent(client, bedrock):
    with pytest.raises(grpc.RpcError) as failed:
        edit(client, "edit", NOVA, prompt="a", inputs=[{"data": mask(640, 320)}])
    assert failed.value.code() == grpc.StatusCode.UNIMPLEMENTED and "transparent" in failed.value.details()
    assert not bedrock.calls
    webp = io.BytesIO()
    Image.new("RGB", (640, 320), "red").save(webp, "WEBP")
    edit(client, "edit", NOVA, prompt="a", inputs=[{"data": webp.getvalue()}])


def test_fewer_images_than_asked_for_are_no_success(gateway, bedrock):
    gate = gateway()
    bedrock.moderated = 1
    answer = gate.post(body={"prompt": "x", "n": 3, "model": NOVA}, key=None)
    assert answer.status_code == 400, answer.text
    assert openai_error(answer)["code"] == "moderation_blocked"
    assert "content_rejected" in answer.headers["x-imagegate-attempts"]
    bedrock.moderated = 3
    answer = gate.post(body={"prompt": "x", "n": 3, "model": NOVA}, key=None)
    assert answer.status_code == 400 and openai_error(answer)["code"] == "moderation_blocked"


def test_a_seed_is_drawn_where_none_is_given(gateway, bedrock):
    gate = gateway()
    for seed in ({}, {}, {"seed": 7}):
        answer = gate.post(body={"prompt": "x", "model": NOVA, "size": "512x512", **seed}, key=None)
        assert answer.status_code == 200, answer.text
    first, second, given = [call.json()["imageGenerationConfig"]["seed"] for call in bedrock.calls]
    assert first != second and given == 7


def test_sizes_and_counts_are_fitted_to_the_model(gateway, bedrock):
    answer = gateway().post(body={"prompt": "x", "model": TITAN, "size": "1280x720", "n": 7, "quality": "hd"}, key=None)
    assert answer.status_code == 200, answer.text
    assert sorted(call.json()["imageGenerationConfig"]["numberOfImages"] for call in bedrock.calls) == [2, 5]
    config = sent(bedrock)["imageGenerationConfig"]
    assert (config["width"], config["height"], config["quality"]) == (1152, 640, "premium")
    assert "size adjusted" in answer.headers["x-imagegate-warnings"]
    assert answer.headers["x-imagegate-cost-usd"] == "unknown"


def test_a_session_token_is_sent_and_never_shown(gateway, bedrock):
    bedrock.session_token = "session-token/of+the+ring=="
    gate = gateway(aws_session_token={"env": "SESSION"})
    assert gate.post(body={"prompt": "x"}, key=None).status_code == 200
    # A wrong signature is answered with everything that should have been signed.
    bedrock.key = "another-secret"
    answer = gate.post(body={"prompt": "x"}, key=None)
    assert answer.status_code == 403 and "does not match" in answer.text
    assert bedrock.session_token not in answer.text + str(answer.headers) + gate.log


def test_an_api_key_of_bedrock_does_without_signing(gateway, bedrock):
    bedrock.api_key = "bedrock-api-key"
    gate = gateway(api_key="bedrock-api-key", aws_auth_type="apiKey")
    assert gate.post(body={"prompt": "x"}, key=None).status_code == 200
    bedrock.api_key = "another"
    answer = gate.post(body={"prompt": "x"}, key=None)
    assert answer.status_code == 403 and "permission_denied" in answer.headers["x-imagegate-attempts"]


def test_callers_may_bring_their_own_keys_but_not_redirect_stored_ones(gateway, bedrock):
    gate = gateway()
    stored = {"virtual_key": "it", "aws_auth_type": "assumedRole", "aws_role_arn": "arn:aws:iam::1:role/x"}
    answer = gate.post(body={"prompt": "x"}, key=None, headers={"x-portkey-config": json.dumps(stored)})
    assert answer.status_code == 400 and not bedrock.calls, answer.text
    # Nothing listens at the real address here: what counts is that the config is taken.
    config = {"provider": "bedrock", "aws_access_key_id": KEY_ID, "aws_secret_access_key": bedrock.key}
    config["aws_region"] = "no/region"
    answer = gate.post(body={"prompt": "x"}, key=None, headers={"x-portkey-config": json.dumps(config)})
    assert answer.status_code == 400 and "aws_region" in answer.text and bedrock.key not in answer.text


def test_faults_of_the_model_can_be_tried_again_and_are_no_refusals(gateway, bedrock):
    gate = gateway()
    config = {"virtual_key": "it", "retry": {"attempts": 1, "on_status_codes": [424, 503]}}
    bedrock.script.append(faults.status(424))
    answer = gate.post(body={"prompt": "x"}, key=None, headers={"x-portkey-config": json.dumps(config)})
    assert answer.status_code == 200 and len(bedrock.calls) == 2, answer.text
    assert " unavailable 424 " in answer.headers["x-imagegate-attempts"]


class TestTheEmulator:
    """It takes what is signed well, and nothing else."""

    BODY = {"prompt": "x"}

    def post(self, parts, **changed):
        url, headers, data = parts
        sent = {name: value for name, value in {**headers, **changed}.items() if name != "host" and value is not None}
        return requests.post(url, headers=sent, data=data, timeout=10)

    def refused(self, answer, kind):
        assert answer.status_code in (400, 403), answer.text
        assert answer.headers["x-amzn-ErrorType"].split(":")[0] == kind, answer.text

    def test_a_good_signature(self, bedrock):
        answer = self.post(bedrock.signed(bedrock.model, self.BODY))
        assert answer.status_code == 200 and answer.json()["finish_reasons"] == [None]

    def test_another_body_than_was_signed(self, bedrock):
        url, headers, _ = bedrock.signed(bedrock.model, self.BODY)
        self.refused(self.post((url, headers, b'{"prompt": "y"}')), "InvalidSignatureException")

    def test_another_model_than_was_signed(self, bedrock):
        url, headers, data = bedrock.signed(bedrock.model, self.BODY)
        self.refused(self.post((url.replace("core", "ultra"), headers, data)), "InvalidSignatureException")

    def test_an_old_signature(self, bedrock):
        parts = bedrock.signed(bedrock.model, self.BODY, x_amz_date="20260101T000000Z")
        self.refused(self.post(parts), "InvalidSignatureException")

    def test_no_date(self, bedrock):
        self.refused(self.post(bedrock.signed(bedrock.model, self.BODY, x_amz_date=None)), "IncompleteSignatureException")

    def test_a_header_that_is_not_signed(self, bedrock):
        parts = bedrock.signed(bedrock.model, self.BODY)
        self.refused(self.post(parts, **{"x-amz-meta": "1"}), "InvalidSignatureException")

    def test_a_token_of_nobody(self, bedrock):
        parts = bedrock.signed(bedrock.model, self.BODY, x_amz_security_token="nobody's")
        self.refused(self.post(parts), "UnrecognizedClientException")

    def test_no_signature(self, bedrock):
        url, headers, data = bedrock.signed(bedrock.model, self.BODY)
        self.refused(self.post((url, {**headers, "authorization": None}, data)), "MissingAuthenticationTokenException")

    @pytest.mark.parametrize(
        "model, body",
        [
            ("stability.stable-image-core-v1:1", {"prompt": "x", "width": 512}),
            ("stability.stable-image-core-v1:1", {"prompt": "x", "seed": "7"}),
            ("stability.stable-image-core-v1:1", {"prompt": "x", "output_format": "webp"}),
            ("stability.stable-image-core-v9:9", {"prompt": "x"}),
            (NOVA, {"taskType": "TEXT_IMAGE", "textToImageParams": {"text": ""}}),
            (NOVA, {"taskType": "TEXT_IMAGE", "textToImageParams": {"text": "x"}, "imageGenerationConfig": {"width": 1000}}),
            (TITAN, {"taskType": "TEXT_IMAGE", "textToImageParams": {"text": "x", "style": "PHOTOREALISM"}}),
        ],
    )
    def test_bodies_that_the_model_does_not_take(self, bedrock, model, body):
        self.refused(self.post(bedrock.signed(model, body)), "ValidationException")
