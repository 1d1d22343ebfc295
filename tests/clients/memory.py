"""What a gateway remembers: a store to start it with, and the calls that tests of it have in common."""

import base64
import collections
import json
import re
import secrets
import threading
import time

import requests

from gateway import TEAM_KEY, eventually

# Within this time other routers know of a change, and the log has a request.
SOON = 3
# Within this time a key that has expired by itself is refused.
EXPIRY = 1.5
SMALL = {"prompt": "a red fox", "size": "1024x1024", "response_format": "b64_json"}
ALL_SCOPES = ["generate", "configs", "keys", "logs", "admin"]


class Store:
    """Where a gateway keeps what it remembers."""

    def __init__(self, tmp_path, postgres=None):
        self.postgres = postgres
        self._tmp_path = tmp_path
        self.vault_key = base64.b64encode(secrets.token_bytes(32)).decode()
        self.env = {"VAULT_KEY": self.vault_key} | ({"STORE_URL": postgres.url()} if postgres else {})
        self.config = {"vault": {"key": {"env": "VAULT_KEY"}}}
        if postgres:
            self.config["store"] = {"url": {"env": "STORE_URL"}}

    def raw(self):
        """Every byte that it has written to disk, while it runs."""
        found = self.postgres.files() if self.postgres else []
        data = self._tmp_path / "data"
        assert self.postgres or list(data.glob("imagegate.db*")), list(data.iterdir())
        return found + [path.read_bytes() for path in data.rglob("*") if path.is_file()]


def image(gateway, config=None, key=TEAM_KEY, headers=None, body=None, **more):
    """A request for an image by a saved config or its text."""
    headers = dict(headers or {})
    if config is not None:
        headers["x-portkey-config"] = config if isinstance(config, str) else json.dumps(config)
    return gateway.post(key=key, headers=headers, body={**SMALL, **(body or {}), **more})


def answered(answer):
    assert answer.status_code == 200, answer.text[:1000]
    return answer


def logged(admin, answer, timeout=SOON):
    """The log's record of an answer, completely."""
    trace = answer if isinstance(answer, str) else answer.headers["x-portkey-trace-id"]
    (found,) = eventually(lambda: admin.requests(trace_id=trace), timeout, f"a record of {trace}")
    return admin.ask("GetRequest", id=found.id).request


def stored_key(admin, emulator, name="open ai", **more):
    """A virtual key for the emulator, stored."""
    more = {"provider": "openai", "key": emulator.key, "base_url": emulator.base_url, **more}
    return admin.ask("CreateVirtualKey", name=name, **more).virtual_key.slug


def saved_config(admin, content, name="hero", **more):
    return admin.ask("CreateConfig", name=name, config_json=json.dumps(content), **more).config.slug


def hero(virtual_key, model="dall-e-3"):
    return {"virtual_key": virtual_key, "override_params": {"model": model}}


Answer = collections.namedtuple("Answer", "result began ended")


class Traffic:
    """Requests at a steady rate from several threads, and when each was answered."""

    def __init__(self, ask, rate, threads=8):
        self._ask, self._pause = ask, threads / rate
        self._ended = threading.Event()
        self.answers, self.failures = [], []
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def _run(self):
        session = requests.Session()
        due = time.monotonic()
        while not self._ended.is_set():
            began = time.monotonic()
            try:
                result = self._ask(session)
                self.answers.append(Answer(result, began, time.monotonic()))
            except requests.RequestException as error:
                self.failures.append(error)
                # Whoever is not there is not there the next moment either.
                time.sleep(0.01)
            due = max(due + self._pause, time.monotonic() - self._pause)
            self._ended.wait(max(0, due - time.monotonic()))

    def p99(self, since, until):
        """In seconds, of what was asked between two times."""
        times = sorted(answer.ended - answer.began for answer in self.answers if since <= answer.began < until)
        assert len(times) >= 50, f"{len(times)} answers say nothing"
        return times[int(len(times) * 0.99)]

    def end(self):
        self._ended.set()
        for thread in self._threads:
            thread.join(40)


def sandbox_traffic(gateway, rate, key=TEAM_KEY, config=None, threads=8):
    """Small images, drawn by the gateway itself. The results are trace ids."""

    def ask(session):
        trace = secrets.token_hex(8)
        headers = {"authorization": f"Bearer {key}", "x-portkey-trace-id": trace}
        headers |= {"x-portkey-config": config} if config else {}
        body = {"prompt": "x", "size": "32x32"}
        answer = session.post(gateway.base_url + "/images/generations", json=body, headers=headers, timeout=10)
        assert answer.status_code == 200, answer.text
        return trace

    return Traffic(ask, rate, threads)


def metric(gateway, name):
    """The sum of a metric's series; 0 without any."""
    text = requests.get(gateway.admin + "/metrics", timeout=10).text
    found = re.findall(rf"^{name}(?:{{[^}}]*}})? ([0-9.e+]+)$", text, re.MULTILINE)
    return sum(map(float, found))


def alarms(gateway):
    """What the gateway has said that somebody should look at."""
    return [event["fields"] for event in gateway.back.events if event.get("level") in ("WARN", "ERROR")]
