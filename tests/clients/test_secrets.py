"""No secret comes out anywhere: they are planted everywhere, and all that comes out is searched."""

import base64
import http.server
import json
import os
import secrets
import threading

import pytest
import requests
import yaml

from emulators.openai import OpenAI, failure
from gateway import OPS_KEY, TEAM_KEY, eventually, founding_config, run, secrets_of
from grpc_client import Admin
from memory import ALL_SCOPES, SOON, answered, hero, image, saved_config, stored_key


class Rude(OpenAI):
    """A provider that quotes the key that it refuses."""

    def answer(self, request):
        sent = request.headers.get("authorization", "").removeprefix("Bearer ")
        if sent != self.key:
            return failure(401, f"Incorrect API key provided: {sent}.", "invalid_request_error", None, f"bad {sent}")
        return super().answer(request)


@pytest.fixture
def rude():
    emulator = Rude()
    yield emulator
    emulator.close()


class Quiet(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.server.got.append(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def hook():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    server.got = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


class Planted:
    """Secrets by what they are, and where they must not be."""

    def __init__(self):
        self.secrets, self.places = {}, {}

    def __call__(self, what, secret=None):
        self.secrets[what] = secret or f"{what.replace(' ', '-')}-{secrets.token_hex(12)}"
        return self.secrets[what]

    def saw(self, place, *texts):
        texts = [text if isinstance(text, bytes) else text.encode() for text in texts]
        self.places.setdefault(place, []).extend(texts)

    def search(self):
        for what, secret in self.secrets.items():
            # As it is, as base64 wherever it begins, and in hex.
            forms = [secret.encode(), secret.encode().hex().encode()]
            forms += [base64.b64encode(b"\0" * i + secret.encode())[4:-4] for i in range(3)]
            if what.startswith("vault"):
                forms.append(base64.b64decode(secret))
            for place, texts in self.places.items():
                for text in texts:
                    for form in forms:
                        at = text.find(form)
                        around = text[max(0, at - 200) : at + 40]
                        assert at < 0, f"{what} is in {place}: ...{around}"


def vault_key():
    return base64.b64encode(secrets.token_bytes(32)).decode()


@pytest.mark.timeout(240)
def test_no_secret_comes_out_anywhere(remembering, store, openai_api, rude, hook, redis, tmp_path):
    planted = Planted()
    planted("the file's API key", OPS_KEY)
    planted("another API key of the file", TEAM_KEY)
    planted("the provider's key", openai_api.key)
    planted("vault key", store.vault_key)
    old_vault = planted("vault key of before", vault_key())
    webhook = planted("the webhook secret", "whsec_" + base64.b64encode(secrets.token_bytes(24)).decode())
    file_key, file_option = planted("a key of the file"), planted("a setting of the file")
    wrong, wronger = planted("a stored key"), planted("a stored key of later")
    option, session = planted("a stored setting"), planted("another stored setting")
    passed, forwarded = planted("a key of a request"), planted("a forwarded header")
    host_password, hook_token = planted("a host's password"), planted("a token in a webhook's address")
    unknown, inline = planted("an unknown API key"), planted("a key in a config")
    # Not secret as such, but not to be kept either where nobody said so.
    prompt, quiet = planted("a prompt"), planted("a prompt not to be logged")
    redis_password = planted("the redis password", redis.password)
    if store.postgres:
        planted("the database's password", store.postgres.password)

    env = {
        "RUST_LOG": "trace", "RUST_BACKTRACE": "full", "HOOK_SECRET": webhook, "OLD_VAULT": old_vault,
        "FILE_KEY": file_key, "FILE_OPTION": file_option, "REDIS_URL": redis.url(),
    }  # fmt: skip
    bedrock = {"provider": "bedrock", "aws_access_key_id": "AKID", "aws_secret_access_key": "${FILE_OPTION}"}
    gateway = remembering(
        store,
        env,
        webhooks={"secret": {"env": "HOOK_SECRET"}},
        vault={"key": {"env": "VAULT_KEY"}, "previous_keys": [{"env": "OLD_VAULT"}]},
        redis={"url": {"env": "REDIS_URL"}, "timeout_ms": 1000},
        virtual_keys={
            "open-ai-virtual-key": {
                "provider": "openai", "api_key": {"env": "OPENAI_API_KEY"}, "base_url": openai_api.base_url,
            },
            "stability-ai-virtualkey": {"provider": "stability-ai", "api_key": {"env": "FILE_KEY"}},
            "rude": {"provider": "openai", "api_key": {"env": "FILE_KEY"}, "base_url": rude.base_url},
            "aws": {**bedrock, "aws_region": "us-east-1"},
        },
    )  # fmt: skip
    admin = Admin(gateway)

    def ask(method, **fields):
        answer = admin.ask(method, **fields)
        planted.saw("AdminService", answer.SerializeToString(), str(answer))
        return answer

    def told(answer):
        planted.saw("answers over HTTP", answer.content, str(answer.headers))
        return answer

    # What is stored, and shown of it.
    virtual_key = stored_key(admin, openai_api)
    refused = stored_key(admin, rude, "refused", key=wrong)
    azure = {
        "azure_resource_name": "x", "azure_deployment_id": "y", "azure_api_version": "2024-10-21",
        "azure_ad_token": option,
    }  # fmt: skip
    ask("CreateVirtualKey", name="azure", provider="azure-openai", key=wrong, options=azure)
    cloud = {"aws_access_key_id": "AKID", "aws_secret_access_key": option, "aws_session_token": session, "aws_region": "x"}
    ask("CreateVirtualKey", name="cloud", provider="bedrock", options=cloud)
    ask("UpdateVirtualKey", slug=refused, key=wronger)
    slug = saved_config(admin, hero(virtual_key))
    for content in ({"provider": "openai", "api_key": inline}, {"targets": [{"provider": "openai", "api_key": inline}]}):
        assert admin.refusal("CreateConfig", name="x", config_json=json.dumps(content)) == (400, "invalid_config")
    made = admin.ask("CreateApiKey", name="b", scopes=ALL_SCOPES)
    rotated = admin.ask("RotateApiKey", id=made.api_key.id)
    for what, answer in {"an API key": made, "a rotated API key": rotated}.items():
        planted(what, answer.key)
        planted.saw("AdminService", answer.api_key.SerializeToString())

    # Requests of every kind, most of which fail.
    for key in (made.key, rotated.key):
        told(answered(image(gateway, slug, key=key, prompt=prompt)))
        quoted = told(image(gateway, hero(refused), key=key, prompt=prompt))
        assert quoted.status_code == 401 and "[credential]" in quoted.text, quoted.text
        told(image(gateway, hero("azure"), key=key, prompt=prompt))
        told(image(gateway, {"virtual_key": "cloud", "override_params": {"model": "x"}}, key=key, prompt=prompt))
    told(image(gateway, {"virtual_key": "rude"}, prompt=prompt, headers={"x-portkey-debug": "false"}))
    told(image(gateway, hero(virtual_key), prompt=quiet, headers={"x-portkey-debug": "false"}))
    told(image(gateway, slug, key=unknown))
    told(image(gateway, slug, key=None, headers={"x-portkey-api-key": unknown}))
    own = {"x-portkey-api-key": TEAM_KEY, "authorization": f"Bearer {passed}", "x-portkey-provider": "openai"}
    own |= {"x-portkey-custom-host": rude.base_url, "x-portkey-forward-headers": "x-token", "x-token": forwarded}
    quoted = told(image(gateway, key=None, headers=own, prompt=prompt))
    assert rude.calls and quoted.status_code >= 400, quoted.text
    with_password = f"http://user:{host_password}@127.0.0.1:1"
    assert told(image(gateway, key=None, headers={**own, "x-portkey-custom-host": with_password})).status_code == 400
    told(image(gateway, {"provider": "openai", "api_key": inline, "custom_host": rude.base_url}, prompt=prompt))
    told(image(gateway, '{"provider": "openai", "api_key": "' + inline))
    told(gateway.post("/images/jobs", body={"prompt": 7}, key=made.key))
    told(gateway.post("/images/explain", body={"prompt": prompt, "size": "1024x1024"}, headers={"x-portkey-config": slug}))
    address = f"http://127.0.0.1:{hook.server_port}/hook?token={hook_token}"
    headers = {"x-portkey-config": slug, "x-imagegate-webhook-url": address, "x-portkey-debug": "false"}
    submitted = told(gateway.post("/images/jobs", body={"prompt": quiet, "size": "1024x1024"}, headers=headers))
    assert submitted.status_code == 202, submitted.text
    eventually(lambda: hook.got, 20, "the webhook")
    planted.saw("webhooks", *hook.got)
    told(gateway.post("/images/jobs", body={"prompt": "x"}, headers={**headers, "x-imagegate-webhook-url": f"ftp://u:{hook_token}@x"}))

    # Everything that shows what there is.
    eventually(lambda: len(admin.requests()) >= 10, SOON, "the log")
    caller = Admin(gateway, rotated.key)
    for call in ("ListConfigs", "ListVirtualKeys", "ListApiKeys", "ListRequests", "GetUsage"):
        ask(call)
        planted.saw("AdminService", caller.ask(call).SerializeToString())
    for record in admin.requests():
        ask("GetRequest", id=record.id)
    for one in (virtual_key, refused, "azure", "cloud"):
        ask("GetVirtualKey", slug=one)
    ask("GetApiKey", id=made.api_key.id)
    ask("GetConfig", slug=slug)
    ask("ListConfigVersions", slug=slug)
    rest = [
        "configs", f"configs/{slug}", f"configs/{slug}/versions", "virtual-keys", f"virtual-keys/{refused}", "providers",
        "api-keys", f"api-keys/{made.api_key.id}", "logs", "logs/export?format=ndjson", "logs/export?format=csv",
        "analytics/groups/caller", "analytics/graphs/requests", "models", "configs/nowhere", f"virtual-keys/{unknown}x",
    ]  # fmt: skip
    for path in rest[:-1]:
        told(requests.get(f"{gateway.base_url}/{path}", headers={"x-portkey-api-key": OPS_KEY}, timeout=20))
    for key in (passed, unknown):
        told(requests.get(f"{gateway.base_url}/configs", headers={"x-portkey-api-key": key}, timeout=20))
    new = {"name": "n", "provider": "nobody", "key": wrong, "aws_session_token": session}
    told(gateway.post("/virtual-keys", body=new, key=OPS_KEY))
    told(gateway.post("/configs", body={"name": "n", "config": {"provider": "openai", "api_key": inline}}, key=OPS_KEY))
    planted.saw("metrics", requests.get(gateway.admin + "/metrics", timeout=10).content)
    planted.saw("the store", *store.raw())
    if store.postgres:
        planted.saw("a dump", store.postgres.dump())
    for name in redis.keys():
        planted.saw("redis", str(name))

    # The commands, with secrets in their environment and in a file that is wrong.
    mine = {**store.env, **env, **secrets_of(openai_api, openai_api), "IMAGEGATE_API_KEY": OPS_KEY, "IMAGEGATE_ROUTER": "http://" + gateway.grpc}
    broken = yaml.safe_load(gateway.config_file.read_text())
    broken["virtual_keys"]["x"] = {"provider": "openai", "api_key": file_key, "base_url": f"ftp://user:{host_password}@x", "nokey": file_key}
    broken["virtual_keys"]["y"] = {"provider": "openai", "api_key": file_key, "base_url": with_password}
    broken["vault"]["key"], broken["webhooks"]["secret"] = old_vault[:-4], "whsec_" + webhook
    broken["redis"]["url"], broken["store"] = f"http://:{redis_password}@x", {"url": f"mysql://u:{host_password}@x/d"}
    broken["configs"]["x"] = {"provider": "openai", "api_key": inline, "custom_host": with_password}
    file = tmp_path / "broken.yaml"
    file.write_text(yaml.safe_dump(broken))
    commands = [["check", gateway.config_file], ["check", file], ["serve", "--config", file], ["providers"]]
    commands += [["explain", "--config", gateway.config_file, prompt], ["logs"], ["usage"], ["configs", "list"], ["keys", "list"]]
    commands += [[*command, "--help"] for command in ([], ["serve"], ["keys", "create"], ["generate"], ["logs"], ["router"], ["worker"], ["shim"])]
    for command in commands:
        finished = run(command, tmp_path, {**mine, "RUST_LOG": "trace"}, timeout=60)
        planted.saw(f"the output of {command[0] if command else 'imagegate'}", finished.stdout, finished.stderr)
        if command[:2] == ["check", file]:
            assert finished.returncode == 1 and "credentials in an address" in finished.stdout + finished.stderr
        elif command and command[0] not in ("serve", "explain") and "--help" not in command:
            assert finished.returncode == 0, (command, finished.stderr)

    log = gateway.log
    gateway.back.stop()
    planted.saw("the log", log, gateway.log)
    planted.saw("files", *[path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file() and path.name != "vault.key"])
    planted.search()
    assert len(log) > 10_000, "nothing was logged"
    assert all(planted.places[place] for place in ("the store", "AdminService", "answers over HTTP", "files"))


def test_the_file_of_the_vaults_key_is_all_that_has_it(serve, stability_api, openai_api, tmp_path):
    config = founding_config(stability_api, openai_api)
    gateway = serve(config, {"RUST_LOG": "trace"})
    stored_key(Admin(gateway), openai_api)
    gateway.back.stop()
    (key,) = [path.read_text() for path in (tmp_path / "data").glob("vault.key")]
    planted = Planted()
    planted("vault key", key.strip())
    planted.saw("the log", gateway.log)
    others = [path for path in (tmp_path / "data").rglob("*") if path.is_file() and path.name != "vault.key"]
    planted.saw("files", *[path.read_bytes() for path in others])
    planted.search()
    assert os.stat(tmp_path / "data" / "vault.key").st_mode & 0o777 == 0o600
