"""Images that can be fetched later, in a bucket of a real server of S3's language: by url, and in the request log."""

import base64
import hashlib
import json
import os
import time

import pytest
import requests
import yaml

from emulators.pictures import look
from gateway import OPS_KEY, TEAM_KEY, Gateway, eventually, founding_config, openai_error, run
from s3_server import BUCKET

LARGE = {"prompt": "a red fox", "size": "1024x1024"}


def images(s3, **more):
    """The gateway's settings for the bucket."""
    return {
        "url": f"s3://{BUCKET}/gateway",
        "endpoint": s3.endpoint,
        "allow_http": True,
        "access_key_id": {"env": "IMAGES_ID"},
        "secret_access_key": {"env": "IMAGES_SECRET"},
        "timeout_ms": 1000,
        **more,
    }


def secrets(s3):
    return {"IMAGES_ID": s3.access_key_id, "IMAGES_SECRET": s3.secret_access_key}


@pytest.fixture
def gateways(serve, tmp_path, s3, stability_api, openai_api):
    """Starts gateways with data of their own and one bucket: `a, b = gateways("a", "b")`."""

    def gateways(*names, env=None, images_more=None, **more):
        more = {"default_config": "pc-openai", "images": images(s3, **(images_more or {})), **more}
        config = founding_config(stability_api, openai_api, **more)
        env = {**secrets(s3), **(env or {})}
        return [serve({**config, "data_dir": str(tmp_path / name)}, env, name) for name in names]

    return gateways


def ask(gateway, response_format="url", key=TEAM_KEY, **more):
    return gateway.post(key=key, body={**LARGE, "response_format": response_format, **more})


def link(gateway, **more):
    """The path of an image's link, which is the same at every replica."""
    answer = ask(gateway, **more)
    assert answer.status_code == 200, answer.text[:1000]
    url = answer.json()["data"][0]["url"]
    assert url.startswith(gateway.url + "/v1/images/files/")
    return url.removeprefix(gateway.url)


def metric(gateway, name):
    """The sum of a metric's series."""
    lines = requests.get(gateway.admin + "/metrics", timeout=5).text.splitlines()
    values = [float(line.rsplit(" ", 1)[1]) for line in lines if line.split("{")[0].split(" ")[0] == name]
    return sum(values)


def said(gateway, what):
    """How often the log says it."""
    return sum(what in event.get("fields", {}).get("message", "") for event in gateway.back.events)


# Images by url.


def test_every_replica_serves_an_image_that_one_has_kept(gateways, s3):
    a, b = gateways("a", "b")
    path = link(a)
    got = [requests.get(gateway.url + path, timeout=10) for gateway in (a, b)]
    assert [answer.status_code for answer in got] == [200, 200]
    assert got[0].content == got[1].content and got[0].content[:4] == b"\x89PNG"
    (name,) = s3.objects("gateway/files")
    assert name == "gateway/files/" + path.rsplit("/", 1)[1]
    for answer in got:
        assert answer.headers["content-type"] == "image/png"
        assert answer.headers["content-security-policy"] == "default-src 'none'; sandbox"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert int(answer.headers["content-length"]) == len(answer.content)
        assert answer.headers["cache-control"].startswith("private, max-age=35")
    assert requests.get(a.url + "/v1/images/files/" + "0" * 32 + ".png", timeout=10).status_code == 404


def test_shims_alone_share_a_bucket_with_credentials_from_the_usual_places(
    start, tmp_path, s3, stability_api, openai_api
):
    config = founding_config(stability_api, openai_api, default_config="pc-openai", data_dir=str(tmp_path / "router"))
    del config["listen"]["http"]
    file = tmp_path / "router.yaml"
    file.write_text(yaml.safe_dump(config))
    router = start("router", "--config", file)
    flags = ["--images-url", f"s3://{BUCKET}", "--images-endpoint", s3.endpoint, "--images-allow-http"]
    shims = []
    for name in ("a", "b"):
        listen = ["--router", "http://" + router.address("grpc"), "--listen", "127.0.0.1:0"]
        data = ["--data-dir", tmp_path / name]
        shims.append(Gateway(start("shim", *listen, *data, *flags, env=s3.env()), router, file))
    path = link(shims[0])
    assert requests.get(shims[1].url + path, timeout=10).content[:4] == b"\x89PNG"
    assert list(s3.objects("files")) == ["files/" + path.rsplit("/", 1)[1]]
    assert not (tmp_path / "a").exists()


def test_an_image_is_gone_after_its_lifetime_and_swept_by_one_of_them(gateways, s3):
    a, b = gateways("a", "b", image_lifetime_s=2)
    path = link(a)
    assert requests.get(b.url + path, timeout=10).status_code == 200
    eventually(lambda: requests.get(b.url + path, timeout=10).status_code == 404, 5, "the end of the lifetime")
    eventually(lambda: not s3.objects("gateway/files"), 10, "the sweep")
    assert list(s3.objects()) == ["gateway/swept/files"]


@pytest.mark.parametrize("how", ["gone", "frozen"])
def test_without_the_bucket_only_links_fail(gateways, s3, openai_api, how):
    (gateway,) = gateways("a")
    path = link(gateway)
    s3.kill() if how == "gone" else s3.freeze()
    calls = len(openai_api.requests)
    began = time.monotonic()
    failed = ask(gateway)
    assert time.monotonic() - began < 5
    assert failed.status_code == 500
    assert openai_error(failed)["message"] == "the image was made but cannot be kept for its URL"
    assert len(openai_api.requests) == calls + 1, "an image was paid for twice"
    assert ask(gateway, "b64_json").status_code == 200
    unread = requests.get(gateway.url + path, timeout=10)
    assert unread.status_code == 503 and unread.headers["retry-after"] == "5"
    assert metric(gateway, "imagegate_images_up") == 0
    s3.start() if how == "gone" else s3.thaw()
    eventually(lambda: ask(gateway).status_code == 200, 10, "links")
    assert requests.get(gateway.url + path, timeout=10).status_code == 200
    assert metric(gateway, "imagegate_images_up") == 1 and metric(gateway, "imagegate_images_errors_total") > 1
    assert said(gateway, "the place of images is away") == said(gateway, "is there again") == 1
    assert path.rsplit("/", 1)[1] not in gateway.log, "the name of an image is in the log"


def test_a_bucket_that_is_away_at_the_start_is_said_and_does_no_harm(gateways, s3):
    s3.kill()
    (gateway,) = gateways("a")
    eventually(lambda: said(gateway, "the place of images is away"), 10, "the alarm")
    assert ask(gateway, "b64_json").status_code == 200


@pytest.mark.parametrize(
    "wrong, told",
    [
        ({"secret_access_key": "marker-secret"}, "access denied"),
        ({"access_key_id": "marker-id"}, "access denied"),
        ({"url": "s3://no-such-bucket"}, "there is no such bucket"),
    ],
)
def test_a_wrong_key_or_bucket_is_said_without_the_key(gateways, wrong, told):
    (gateway,) = gateways("a", images_more=wrong)
    assert ask(gateway).status_code == 500
    reasons = {event["fields"].get("reason") for event in gateway.back.events if "is away" in str(event)}
    assert len(reasons) == 1 and told in reasons.pop(), gateway.log
    assert "marker" not in gateway.log
    assert ask(gateway, "b64_json").status_code == 200


@pytest.mark.parametrize(
    "wrong, told",
    [
        ({"url": "s3://"}, "images.url: not allowed; allowed: s3://BUCKET/PREFIX or file:///FOLDER"),
        ({"allow_http": False}, "images.endpoint: http is plain text: write https, or allow_http: true"),
        ({"secret_access_key": None}, "images.secret_access_key: Required: an access key has two halves"),
        ({"buckt": "x"}, "images.buckt: unknown field"),
    ],
)
def test_what_is_wrong_is_said_at_the_start(tmp_path, s3, stability_api, openai_api, wrong, told):
    config = founding_config(stability_api, openai_api, images=images(s3, **wrong))
    file = tmp_path / "imagegate.yaml"
    file.write_text(yaml.safe_dump(config))
    keys = {"STABILITY_API_KEY": "k", "OPENAI_API_KEY": "k", "TEAM_A_KEY": "a", "OPS_KEY": "b", **secrets(s3)}
    ended = run(["serve", "--config", file], tmp_path, keys)
    assert ended.returncode == 1 and told in ended.stderr, ended.stderr


def test_a_folder_of_ones_own(serve, tmp_path, stability_api, openai_api):
    folder = tmp_path / "some images"
    images = {"url": folder.as_uri()}
    gateway = serve(founding_config(stability_api, openai_api, default_config="pc-openai", images=images))
    path = link(gateway)
    assert os.listdir(folder / "files") == [path.rsplit("/", 1)[1]]
    assert requests.get(gateway.url + path, timeout=10).content[:4] == b"\x89PNG"


# Digests in the request log.


def logged(gateway, answer, timeout=5):
    """The log's record of an answer, as the management API shows it."""
    path = gateway.base_url + "/logs/" + answer.headers["x-imagegate-request-id"]

    def found():
        got = requests.get(path, headers={"x-portkey-api-key": OPS_KEY}, timeout=10)
        return got.status_code == 200 and got.json()["data"]

    return eventually(found, timeout, f"the record at {path}")


def got(gateway, answer):
    """The bytes of an answer's images."""
    assert answer.status_code == 200, answer.text[:1000]
    images = []
    for image in answer.json()["data"]:
        if "url" in image:
            images.append(requests.get(image["url"], timeout=10).content)
        else:
            images.append(base64.b64decode(image["b64_json"], validate=True))
    return images


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def test_the_log_has_the_digests_of_what_the_client_got(openai_only):
    cached = {"virtual_key": "open-ai-virtual-key", "cache": {"mode": "simple"}}
    hit = {"x-portkey-config": json.dumps(cached)}
    asked = [
        {"body": {**LARGE, "model": "dall-e-2", "size": "512x512", "n": 3, "response_format": "b64_json"}},
        {"body": {**LARGE, "response_format": "url"}},
        {"body": {**LARGE, "model": "gpt-image-1", "output_format": "webp", "output_compression": 60}},
        # The second of these is answered by the cache.
        {"body": {**LARGE, "prompt": "again", "response_format": "b64_json"}, "headers": hit},
        {"body": {**LARGE, "prompt": "again", "response_format": "b64_json"}, "headers": hit},
    ]
    records = []
    for request in asked:
        answer = openai_only.post(**request)
        images, record = got(openai_only, answer), logged(openai_only, answer)
        records.append(record)
        made = record["images_made"]
        assert record["images"] == len(made) == len(images)
        assert [image["sha256"] for image in made] == [sha256(image) for image in images]
        for image, data in zip(made, images):
            picture = look(data)
            assert (image["width"], image["height"]) == picture.size
            assert image["format"] == picture.format.lower() and image["bytes"] == len(data)
    assert [record["cache_status"] for record in records[-2:]] == ["miss", "hit"]
    assert metric(openai_only, "imagegate_request_log_digests_skipped_total") == 0


def test_of_a_request_whose_content_must_not_be_kept_there_is_no_digest(openai_only):
    answer = openai_only.post(
        body={**LARGE, "response_format": "b64_json"}, headers={"x-portkey-debug": "false"}
    )
    (data,) = got(openai_only, answer)
    (image,) = logged(openai_only, answer)["images_made"]
    assert image == {"sha256": None, "format": "png", "width": 1024, "height": 1024, "bytes": len(data)}


def test_a_request_that_ends_with_the_process_is_in_the_log_with_its_digest(serve, stability_api, openai_api):
    config = founding_config(stability_api, openai_api, default_config="pc-openai", log={"flush_ms": 60_000})
    gateway = serve(config)
    answer = ask(gateway, "b64_json")
    (data,) = got(gateway, answer)
    gateway.back.stop()
    (image,) = logged(serve(config), answer)["images_made"]
    assert image["sha256"] == sha256(data)
