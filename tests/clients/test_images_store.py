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
        ({"secret_access_key": "marker-secret"}, ("access denied", "SignatureDoesNotMatch")),
        ({"access_key_id": "marker-id"}, ("access denied", "InvalidAccessKeyId")),
        ({"url": "s3://no-such-bucket"}, ("there is no such bucket", "NoSuchBucket")),
    ],
)
def test_a_wrong_key_or_bucket_is_said_without_the_key(gateways, wrong, told):
    (gateway,) = gateways("a", images_more=wrong)
    assert ask(gateway).status_code == 500
    reasons = {event["fields"].get("reason") for event in gateway.back.events if "is away" in str(event)}
    assert any(text in reason for text in told for reason in reasons), reasons
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


@pytest.mark.parametrize(
    "flags, env, told",
    [
        (["--images-url", "pictures"], {}, "--images-url: not allowed; allowed: s3://BUCKET/PREFIX or file:///FOLDER"),
        (["--images-region", "eu-central-1"], {}, "--images-region: only a bucket has this"),
        (
            ["--images-url", "s3://pictures"],
            {"IMAGEGATE_IMAGES_ENDPOINT": "http://minio", "IMAGEGATE_IMAGES_ALLOW_HTTP": "false"},
            "--images-endpoint: http is plain text: write https, or --images-allow-http",
        ),
    ],
)
def test_what_is_wrong_in_a_shims_flags_is_said(tmp_path, flags, env, told):
    ended = run(["shim", "--router", "http://127.0.0.1:1", "--listen", "127.0.0.1:0", *flags], tmp_path, env)
    assert ended.returncode == 1 and told in ended.stderr, ended.stderr


def test_empty_variables_say_nothing_to_a_shim(start):
    names = ["URL", "REGION", "ENDPOINT", "ALLOW_HTTP", "VIRTUAL_HOSTED"]
    env = {f"IMAGEGATE_IMAGES_{name}": "" for name in names}
    assert start("shim", "--router", "http://127.0.0.1:1", "--listen", "127.0.0.1:0", env=env).address("http")


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


@pytest.fixture
def digesting(serve, stability_api, openai_api):
    return serve(founding_config(stability_api, openai_api, default_config="pc-openai", log={"images": "digests"}))


def test_the_log_has_the_digests_of_what_the_client_got(digesting):
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
        answer = digesting.post(**request)
        images, record = got(digesting, answer), logged(digesting, answer)
        records.append(record)
        made = record["images_made"]
        assert record["images"] == len(made) == len(images)
        assert [image["sha256"] for image in made] == [sha256(image) for image in images]
        for image, data in zip(made, images):
            picture = look(data)
            assert (image["width"], image["height"]) == picture.size
            assert image["format"] == picture.format.lower() and image["bytes"] == len(data)
    assert [record["cache_status"] for record in records[-2:]] == ["miss", "hit"]
    assert metric(digesting, "imagegate_request_log_digests_skipped_total") == 0


def test_of_a_request_whose_content_must_not_be_kept_there_is_no_digest(digesting):
    answer = digesting.post(
        body={**LARGE, "response_format": "b64_json"}, headers={"x-portkey-debug": "false"}
    )
    (data,) = got(digesting, answer)
    (image,) = logged(digesting, answer)["images_made"]
    known = {"format": "png", "width": 1024, "height": 1024, "bytes": len(data)}
    assert image == {**known, "sha256": None, "thumbnail": False, "full": False}


def test_without_being_told_to_the_log_digests_nothing(openai_only):
    answer = openai_only.post(body={**LARGE, "response_format": "b64_json"})
    (data,) = got(openai_only, answer)
    (image,) = logged(openai_only, answer)["images_made"]
    assert (image["bytes"], image["sha256"]) == (len(data), None)


def test_a_request_that_ends_with_the_process_is_in_the_log_with_its_digest(serve, stability_api, openai_api):
    config = founding_config(stability_api, openai_api, default_config="pc-openai", log={"flush_ms": 60_000, "images": "digests"})
    gateway = serve(config)
    answer = ask(gateway, "b64_json")
    (data,) = got(gateway, answer)
    gateway.back.stop()
    (image,) = logged(serve(config), answer)["images_made"]
    assert image["sha256"] == sha256(data)


# Thumbnails and whole images in the request log.


def shown(gateway, record, index=0, key=OPS_KEY, **query):
    path = f"{gateway.base_url}/logs/{record['id']}/images/{index}"
    return requests.get(path, params=query, headers={"x-portkey-api-key": key}, timeout=10)


def kept(gateway, record, index=0, **query):
    """An image that the log keeps, once it is there: it is put after the record is written."""
    answer = eventually(lambda: (got := shown(gateway, record, index, **query)).status_code == 200 and got, 5)
    assert answer.headers["cache-control"] == "no-store" and answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"] == "default-src 'none'; sandbox"
    return answer


def test_thumbnails_are_small_pictures_of_what_the_client_got(gateways, s3):
    (gateway,) = gateways("a", log={"images": "thumbnails"})
    wide = {"prompt": "a fox", "model": "dall-e-3", "size": "1792x1024", "response_format": "b64_json"}
    webp = {"prompt": "a fox", "model": "gpt-image-1", "output_format": "webp"}
    several = {"prompt": "a fox", "model": "dall-e-2", "size": "256x256", "n": 2, "response_format": "b64_json"}
    for body, size in [(wide, (256, 146)), (webp, (256, 256)), (several, (256, 256))]:
        answer = gateway.post(body=body)
        images, record = got(gateway, answer), logged(gateway, answer)
        assert [(image["thumbnail"], image["full"]) for image in record["images_made"]] == [(True, False)] * len(images)
        for index, data in enumerate(images):
            small = kept(gateway, record, index)
            assert small.headers["content-type"] == "image/jpeg" and len(small.content) < 40_000
            picture = look(small.content)
            assert picture.size == size and picture.format == "JPEG"
            assert close(picture, look(data)), "a thumbnail of another image"
        assert shown(gateway, record, size="full").status_code == 404
        assert shown(gateway, record, len(images)).status_code == 404
    assert len(s3.objects("gateway/log")) == 4


def close(small, large):
    """Whether one picture is the other one, smaller."""
    large = large.convert("RGB").resize(small.size)
    small = small.convert("RGB")
    worst = 0
    for x, y in [(x, y) for x in range(8, small.width, 24) for y in range(8, small.height, 24)]:
        worst = max(worst, *(abs(a - b) for a, b in zip(small.getpixel((x, y)), large.getpixel((x, y)))))
    return worst < 48


def test_whole_images_are_what_the_client_got_byte_for_byte(gateways, s3, tmp_path):
    (gateway,) = gateways("a", log={"images": "full"})
    answer = ask(gateway, "b64_json")
    (data,), record = got(gateway, answer), logged(gateway, answer)
    whole = kept(gateway, record, size="full")
    assert whole.content == data and whole.headers["content-type"] == "image/png"
    assert look(kept(gateway, record).content).size == (256, 256)
    env = {"IMAGEGATE_ROUTER": "http://" + gateway.grpc, "IMAGEGATE_API_KEY": OPS_KEY}
    listing = run(["logs", "show", record["id"]], tmp_path, env)
    assert sha256(data) in listing.stdout and "full" in listing.stdout
    for more, expected in [(["--full"], data), ([], kept(gateway, record).content)]:
        saved = run(["logs", "image", record["id"], "0", "-o", "image", *more], tmp_path, env)
        assert saved.returncode == 0, saved.stderr
        assert (tmp_path / "image").read_bytes() == expected
    missing = run(["logs", "image", record["id"], "7", "-o", "other"], tmp_path, env)
    assert missing.returncode == 1 and "the request has 1 images" in missing.stderr
    assert not (tmp_path / "other").exists()


def test_nothing_is_kept_unless_somebody_says_so(gateways, s3):
    (gateway,) = gateways("a")
    record = logged(gateway, ask(gateway, "b64_json"))
    assert not record["images_made"][0]["thumbnail"] and "prompt" not in record
    refused = shown(gateway, record)
    assert refused.status_code == 404 and "log.images" in openai_error_message(refused)
    assert not s3.objects("gateway/log")


def openai_error_message(answer):
    return answer.json()["error"]["message"]


def test_a_request_that_must_not_be_kept_leaves_no_picture(gateways, s3):
    (gateway,) = gateways("a", log={"images": "full", "prompts": True})
    silent = gateway.post(
        body={**LARGE, "response_format": "b64_json"}, headers={"x-portkey-debug": "false"}
    )
    record = logged(gateway, silent)
    (image,) = record["images_made"]
    assert (image["sha256"], image["thumbnail"], image["full"]) == (None, False, False)
    loud = logged(gateway, ask(gateway, "b64_json"))
    kept(gateway, loud)
    for size in ("full", "thumbnail"):
        assert shown(gateway, record, size=size).status_code == 404
    assert not [name for name in s3.objects() if record["id"] in name]
    assert "prompt" in loud and "prompt" not in record


def test_a_key_says_what_is_kept_of_its_requests(gateways, s3):
    keys = [
        {"name": "quiet", "key": "quiet-key", "log": {"prompts": False, "images": "none"}},
        {"name": "loud", "key": "loud-key", "log": {"images": "full"}},
        {"name": "plain", "key": "plain-key"},
        {"name": "ops", "key": OPS_KEY, "scopes": ["admin", "logs"]},
    ]
    (gateway,) = gateways("a", api_keys=keys, log={"images": "thumbnails", "prompts": True})
    admin = {"x-portkey-api-key": OPS_KEY}
    stored = {"name": "stored", "scopes": ["generate"], "log": {"images": "full"}}
    made = requests.post(gateway.base_url + "/api-keys", json=stored, headers=admin, timeout=10).json()
    expected = {
        "quiet-key": (False, False, False),
        "loud-key": (True, True, True),
        "plain-key": (True, True, False),
        made["key"]: (True, True, True),
    }
    for key, what in expected.items():
        record = logged(gateway, ask(gateway, "b64_json", key=key))
        (image,) = record["images_made"]
        assert ("prompt" in record, image["thumbnail"], image["full"]) == what, key
        assert (shown(gateway, record).status_code == 404) or what[1]
    path = f"{gateway.base_url}/api-keys/{made['id']}"
    assert requests.get(path, headers=admin, timeout=10).json()["log"] == {"prompts": None, "images": "full"}
    change = {"log": {"prompts": False, "images": "none"}}
    assert requests.put(path, json=change, headers=admin, timeout=10).json()["log"] == change["log"]
    record = logged(gateway, ask(gateway, "b64_json", key=made["key"]))
    assert "prompt" not in record and not record["images_made"][0]["thumbnail"]
    renamed = requests.put(path, json={"name": "renamed"}, headers=admin, timeout=10).json()
    assert renamed["log"] == change["log"]


def test_tenants_do_not_see_each_others_pictures(gateways):
    keys = [
        {"name": name, "key": name + "-key", "tenant": name, "scopes": ["generate", "logs"]} for name in ("a/..", "b")
    ]
    keys.append({"name": "ops", "key": OPS_KEY, "scopes": ["admin"]})
    (gateway,) = gateways("a", api_keys=keys, log={"images": "full"})
    record_id = ask(gateway, "b64_json", key="a/..-key").headers["x-imagegate-request-id"]
    record = {"id": record_id}
    eventually(lambda: shown(gateway, record, key="a/..-key").status_code == 200, 5)
    for key in ("b-key", OPS_KEY):
        answer = shown(gateway, record, key=key)
        assert answer.status_code == 404 and openai_error_message(answer) == f'request "{record_id}" does not exist'
    assert shown(gateway, record, key="a-key").status_code == 401


def test_pictures_are_seen_at_every_router_and_forgotten_with_their_day(gateways, s3, postgres):
    store = {"url": {"env": "STORE_URL"}}
    vault = {"key": {"env": "VAULT_KEY"}}
    env = {"STORE_URL": postgres.url(), "VAULT_KEY": base64.b64encode(os.urandom(32)).decode()}
    log = {"images": "full", "retention_days": 1}
    a, b = gateways("a", "b", env=env, store=store, vault=vault, log=log)
    answer = ask(a, "b64_json")
    (data,), record = got(a, answer), logged(b, answer)
    assert kept(b, record, size="full").content == data
    (today,) = (s3.buckets / BUCKET / "gateway/log").iterdir()
    today.rename(today.with_name("2026-01-01"))
    fresh = logged(a, ask(a, "b64_json"))
    kept(a, fresh)
    for gateway in (a, b):
        gateway.back.stop()
    # It looks when it starts.
    (c,) = gateways("c", env=env, store=store, vault=vault, log=log)
    eventually(lambda: not s3.objects("gateway/log/2026-01-01"), 10, "the end of an old day")
    kept(c, fresh, size="full")


def test_pictures_that_wait_are_kept_when_the_process_ends(gateways, s3):
    (gateway,) = gateways("a", log={"images": "full"})
    s3.freeze()
    answer = ask(gateway, "b64_json")
    gateway.back.terminate()
    s3.thaw()
    assert gateway.back.wait() == 0
    names = {name.rsplit("/", 1)[1] for name in s3.objects("gateway/log")}
    assert names == {"0.image.png", "0.thumbnail.jpeg"}
    (gateway,) = gateways("a", log={"images": "full"})
    assert kept(gateway, logged(gateway, answer), size="full").content == got(gateway, answer)[0]


def test_without_the_bucket_the_log_goes_on_without_pictures(gateways, s3):
    (gateway,) = gateways("a", log={"images": "full"})
    s3.kill()
    answer = ask(gateway, "b64_json")
    (data,), record = got(gateway, answer), logged(gateway, answer)
    assert record["images_made"][0]["sha256"] == sha256(data)
    assert shown(gateway, record).status_code == 503
    lost = "imagegate_request_log_images_lost_total"
    eventually(lambda: metric(gateway, lost) == 2, 10, "the count of what is missing")
