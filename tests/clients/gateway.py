"""Starts the real binary and waits until it is there. Knows its command line, its config file and its log format."""

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import requests
import yaml

ROOT = Path(__file__).resolve().parents[2]
TOOLS = Path(os.environ.get("IMAGEGATE_TOOLS", ROOT / ".tools"))

TEAM_KEY = "ig-team-" + secrets.token_hex(12)
OPS_KEY = "ig-ops-" + secrets.token_hex(12)
START_TIMEOUT = 30
# Seconds. A line of the log leaves a hundredth of one late, from a thread that may have to wait for a processor.
LINES_LATE = 0.1


def binary():
    """`IMAGEGATE_BIN`, else the debug build."""
    if named := os.environ.get("IMAGEGATE_BIN"):
        return named
    return str(ROOT / os.environ.get("CARGO_TARGET_DIR", "target") / "debug" / "imagegate")


def eventually(condition, timeout=10, what="the condition"):
    """Waits until `condition()` gives something true, and gives it back."""
    deadline = time.monotonic() + timeout
    while True:
        if value := condition():
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true within {timeout} s")
        time.sleep(0.02)


class Process:
    """One imagegate process: the binary with `args`, or whatever `command` makes of them."""

    def __init__(self, args, cwd, env=None, command=None):
        self.args = [str(arg) for arg in args]
        self._lines, self._out = [], []
        self._changed = threading.Condition()
        clean = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG", "TMPDIR", "LLVM_PROFILE_FILE")}
        clean |= {"IMAGEGATE_LOG_FORMAT": "json", "RUST_LOG": "info", **(env or {})}
        self.popen = subprocess.Popen(
            command or [binary(), *self.args],
            cwd=cwd,
            env=clean,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        self._readers = [
            threading.Thread(target=self._read, args=(pipe, into), daemon=True)
            for pipe, into in [(self.popen.stderr, self._lines), (self.popen.stdout, self._out)]
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, pipe, into):
        for line in pipe:
            with self._changed:
                into.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    @property
    def log(self):
        """Everything written so far, to stderr and stdout."""
        self._wait_for_late_lines()
        with self._changed:
            return "\n".join(self._lines + self._out)

    @property
    def events(self):
        """Log lines that are JSON."""
        self._wait_for_late_lines()
        return self._events()

    def _wait_for_late_lines(self):
        if self.popen.poll() is None:
            time.sleep(LINES_LATE)

    def _events(self):
        with self._changed:
            lines = list(self._lines)
        events = []
        for line in lines:
            try:
                events.append(json.loads(line))
            except ValueError:
                pass
        return events

    def wait_for_log(self, found, timeout=START_TIMEOUT):
        """Waits until `found(event)` is true of a log event, and gives what it gave."""
        deadline = time.monotonic() + timeout
        while True:
            for event in self._events():
                if value := found(event.get("fields", {})):
                    return value
            left = deadline - time.monotonic()
            if self.popen.poll() is not None or left < 0:
                state = "is still running" if self.popen.poll() is None else f"ended with code {self.wait()}"
                raise AssertionError(f"imagegate {' '.join(self.args)} {state}; its log:\n{self.log}")
            with self._changed:
                self._changed.wait(min(left, 0.2))

    def address(self, role):
        """Where the process listens in this role."""
        return self.wait_for_log(
            lambda fields: fields.get("message") == "listening" and fields.get("role") == role and fields["address"]
        )

    def terminate(self):
        self.popen.send_signal(signal.SIGTERM)

    def kill(self):
        self.popen.kill()
        self.popen.wait(10)

    def wait(self, timeout=30):
        """The exit code."""
        code = self.popen.wait(timeout)
        for reader in self._readers:
            reader.join(5)
        return code

    def stop(self):
        if self.popen.poll() is None:
            self.terminate()
            try:
                self.popen.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()


class Gateway:
    """A running gateway: one process, or one in each role."""

    def __init__(self, front, back, config_file, others=()):
        self.front = front  # has the HTTP listener
        self.back = back  # has the gRPC and admin listeners
        self.config_file = config_file
        self.others = dict(others)
        self.url = "http://" + front.address("http")
        self.base_url = self.url + "/v1"
        self.grpc = back.address("grpc")
        self.admin = "http://" + back.address("admin")
        eventually(self.ready, START_TIMEOUT, "readiness")

    @property
    def processes(self):
        return list(dict.fromkeys([self.front, self.back, *self.others.values()]))

    @property
    def log(self):
        return "\n".join(process.log for process in self.processes)

    def ready(self):
        try:
            return requests.get(self.admin + "/readyz", timeout=5).status_code == 200
        except requests.ConnectionError:
            if self.back.popen.poll() is not None:
                raise AssertionError(f"the gateway ended; its log:\n{self.back.log}") from None
            return False

    def post(self, path="/images/generations", body=None, key=TEAM_KEY, headers=None, timeout=30, **more):
        """A plain HTTP call, without any SDK."""
        headers = {"authorization": f"Bearer {key}", **(headers or {})} if key else dict(headers or {})
        if body is not None:
            more["json"] = body
        return requests.post(self.base_url + path, headers=headers, timeout=timeout, **more)

    def write_config(self, config):
        """Replaces the config file in one step."""
        new = self.config_file.with_suffix(".new")
        new.write_text(yaml.safe_dump(config, sort_keys=False))
        new.replace(self.config_file)


def founding_config(stability, openai, stability_timeout_ms=None, **more):
    """The config of the founding program: Stable Diffusion, then DALL-E 3."""
    first = {"virtual_key": "stability-ai-virtualkey", "override_params": {"model": "stable-diffusion-v1-6"}}
    second = {"virtual_key": "open-ai-virtual-key", "override_params": {"model": "dall-e-3"}}
    first_by_model = {"override_params": {"model": "@stability-ai-virtualkey/stable-diffusion-v1-6"}}
    second_by_model = {"override_params": {"model": "@open-ai-virtual-key/dall-e-3"}}
    if stability_timeout_ms:
        first["request_timeout"] = first_by_model["request_timeout"] = stability_timeout_ms
    config = {
        "listen": {"http": "127.0.0.1:0", "grpc": "127.0.0.1:0", "admin": "127.0.0.1:0"},
        "virtual_keys": {
            "stability-ai-virtualkey": {
                "provider": "stability-ai",
                "api_key": {"env": "STABILITY_API_KEY"},
                "base_url": stability.base_url,
            },
            "open-ai-virtual-key": {
                "provider": "openai",
                "api_key": "${OPENAI_API_KEY}",
                "base_url": openai.base_url,
            },
        },
        "configs": {
            "pc-sdxl-dalle": {"strategy": {"mode": "fallback"}, "targets": [first, second]},
            "pc-by-model": {"strategy": {"mode": "fallback"}, "targets": [first_by_model, second_by_model]},
            "pc-openai": {"virtual_key": "open-ai-virtual-key"},
            "pc-stability": {"virtual_key": "stability-ai-virtualkey"},
        },
        "api_keys": [
            {"name": "team-a", "key": {"env": "TEAM_A_KEY"}, "scopes": ["generate"]},
            {
                "name": "ops",
                "key": {"env": "OPS_KEY"},
                "scopes": ["generate", "configs", "keys", "logs", "admin"],
            },
        ],
        # Emulators are on loopback; only what arrives with a request needs it.
        "egress": {"allow": ["127.0.0.0/8"]},
    }
    return {**config, **more}


def secrets_of(stability, openai):
    """The environment that `founding_config` reads."""
    return {
        "STABILITY_API_KEY": stability.key,
        "OPENAI_API_KEY": openai.key,
        "TEAM_A_KEY": TEAM_KEY,
        "OPS_KEY": OPS_KEY,
    }


def run(args, cwd, env=None, timeout=60, text=""):
    """Runs a command of the binary to its end, with a text on its standard input."""
    clean = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG", "TMPDIR", "LLVM_PROFILE_FILE")}
    return subprocess.run(
        [binary(), *map(str, args)],
        cwd=cwd,
        env={**clean, **(env or {})},
        input=text,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def script(command, file, args, env, cwd):
    """Runs a client that is a program of its own. Its last line is its result, as JSON."""
    finished = subprocess.run(
        [command, str(file), *args],
        cwd=cwd,
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert finished.returncode == 0, f"{file} {args} failed:\n{finished.stdout[-2000:]}\n{finished.stderr[-4000:]}"
    return json.loads(finished.stdout.strip().splitlines()[-1])


def node_scripts(into):
    """Copies the Node clients beside their installed modules, which are not in the tracked tree."""
    for file in (Path(__file__).parent / "node").glob("*.mjs"):
        shutil.copy(file, into)
    modules = Path(into) / "node_modules"
    if not modules.exists():
        modules.symlink_to(TOOLS / "node" / "node_modules")
    return Path(into)


PORTKEY_HEADERS = [
    "x-portkey-last-used-option-index",
    "x-portkey-retry-attempt-count",
    "x-portkey-cache-status",
    "x-portkey-provider",
    "x-portkey-trace-id",
]


def check_headers(headers):
    """What every answer with a route carries."""
    for name in PORTKEY_HEADERS:
        assert headers.get(name), f"{name} is missing or empty"
    assert headers.get("x-imagegate-request-id")
    assert headers.get("x-imagegate-attempts")


def openai_error(response):
    """The error object of an answer, checked for OpenAI's shape."""
    error = response.json()["error"]
    assert {"message", "type", "param", "code"} <= set(error), error
    assert isinstance(error["message"], str) and error["message"]
    assert response.headers.get("x-portkey-trace-id"), "an error without a trace id is retried by Portkey's SDKs"
    assert not re.search(r"<html|panicked|src/", error["message"])
    return error
