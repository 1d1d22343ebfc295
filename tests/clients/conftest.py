"""Fixtures: emulators of the providers, and the gateway in front of them."""

import base64
import re
import shutil

import pytest
import yaml

import postgres_server
import redis_server
import s3_server
from emulators.openai import OpenAI
from emulators.pictures import look
from emulators.stability import Stability
from gateway import Gateway, Process, TOOLS, binary, founding_config, node_scripts, script, secrets_of
from memory import Store


def pytest_configure(config):
    if not shutil.which(binary()):
        pytest.exit(f"no gateway at {binary()}: run `cargo build`, or set IMAGEGATE_BIN", returncode=2)


def pytest_terminal_summary(terminalreporter):
    """The ring's matrix: every provider against every case."""
    cases, cells = {}, {}
    for outcome, mark in (("passed", "ok"), ("failed", "FAILED"), ("error", "ERROR")):
        for report in terminalreporter.getreports(outcome):
            found = re.search(r"test_ring\.py::test_(\w+)\[([\w-]+)\]$", report.nodeid)
            if found:
                case, provider = found.groups()
                cells.setdefault(provider, {})[cases.setdefault(case, len(cases))] = mark
    if cells:
        names = sorted(cases)
        terminalreporter.write_sep("=", "provider x case")
        for number, case in enumerate(names, 1):
            terminalreporter.write_line(f"{number:2} {case.replace('_', ' ')}")
        terminalreporter.write_line(" " * 20 + "".join(f"{number:>7}" for number in range(1, len(names) + 1)))
        for provider in sorted(cells):
            marks = (cells[provider].get(cases[case], "-") for case in names)
            terminalreporter.write_line(f"{provider:20}" + "".join(f"{mark:>7}" for mark in marks))


@pytest.fixture
def openai_api():
    emulator = OpenAI()
    yield emulator
    emulator.close()


@pytest.fixture
def stability_api():
    emulator = Stability()
    yield emulator
    emulator.close()


@pytest.fixture
def start(tmp_path, stability_api, openai_api):
    """Starts any command of the binary: `start("worker", "--provider", "openai", ...)`."""
    started = []

    def start(*args, env=None):
        process = Process(args, tmp_path, {**secrets_of(stability_api, openai_api), **(env or {})})
        started.append(process)
        return process

    yield start
    for process in started:
        process.stop()


@pytest.fixture
def serve(start, tmp_path):
    """Starts a gateway in one process: `serve(config)`. Several of them have a name each."""

    def serve(config, env=None, name="imagegate"):
        config = {"data_dir": str(tmp_path / "data"), **config}
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(config, sort_keys=False))
        process = start("serve", "--config", file, env=env)
        return Gateway(process, process, file)

    return serve


@pytest.fixture
def redis(tmp_path):
    """A Redis of the test's own, started."""
    if missing := redis_server.needs():
        pytest.skip(missing)
    server = redis_server.Redis(tmp_path / "redis")
    server.start()
    yield server
    server.close()


@pytest.fixture
def postgres():
    """A PostgreSQL of the test's own, started."""
    if missing := postgres_server.needs():
        pytest.skip(missing)
    server = postgres_server.Postgres()
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(params=["sqlite", "postgres"])
def store(request, tmp_path):
    return Store(tmp_path, request.getfixturevalue("postgres") if request.param == "postgres" else None)


@pytest.fixture
def shared(tmp_path, postgres):
    """A store for several routers."""
    return Store(tmp_path, postgres)


@pytest.fixture
def remembering(serve, stability_api, openai_api):
    """Starts a gateway with a store: `remembering(store)`. The same again is a restart."""

    def remembering(store, env=None, name="imagegate", **more):
        config = founding_config(stability_api, openai_api, **{**store.config, **more})
        return serve(config, {**store.env, **(env or {})}, name)

    return remembering


@pytest.fixture
def s3(tmp_path):
    """A server of S3's language of the test's own, started, with one bucket."""
    if missing := s3_server.needs():
        pytest.skip(missing)
    server = s3_server.S3(tmp_path / "s3")
    server.start()
    yield server
    server.close()


@pytest.fixture
def fleet(serve, redis, tmp_path, stability_api, openai_api):
    """Starts two gateways with the same config and the same Redis: `a, b = fleet()`. Time limits are long, so that a
    busy machine is not taken for an outage."""

    def fleet(url=None, env=None, timeout_ms=1000, redis_more=None, **more):
        config = founding_config(stability_api, openai_api, default_config="pc-openai", **more)
        config["redis"] = {"url": {"env": "REDIS_URL"}, "timeout_ms": timeout_ms, **(redis_more or {})}
        env = {"REDIS_URL": url or redis.url(), **(env or {})}
        return [serve({**config, "data_dir": str(tmp_path / name)}, env, name) for name in ("a", "b")]

    return fleet


@pytest.fixture
def cluster(start, tmp_path):
    """Starts a gateway in four processes: shim, router, and one worker for each provider."""

    def cluster(config, env=None):
        workers = {
            name: start("worker", "--provider", name, "--listen", "127.0.0.1:0", env=env)
            for name in ("stability-ai", "openai")
        }
        uris = {name: "http://" + process.address("worker") for name, process in workers.items()}
        listen = {role: address for role, address in config["listen"].items() if role != "http"}
        config = {"data_dir": str(tmp_path / "data"), **config, "listen": listen, "workers": uris}
        file = tmp_path / "imagegate.yaml"
        file.write_text(yaml.safe_dump(config, sort_keys=False))
        router = start("router", "--config", file, env=env)
        shim = start("shim", "--router", "http://" + router.address("grpc"), "--listen", "127.0.0.1:0", env=env)
        return Gateway(shim, router, file, workers)

    return cluster


@pytest.fixture
def founding(serve, stability_api, openai_api):
    """A gateway with the founding program's config."""
    return serve(founding_config(stability_api, openai_api))


@pytest.fixture
def openai_only(serve, stability_api, openai_api):
    """A gateway that answers whatever names no route from OpenAI, as a drop-in for it."""
    return serve(founding_config(stability_api, openai_api, default_config="pc-openai"))


@pytest.fixture
def node(tmp_path):
    """Runs a Node client: `node("openai.mjs", "generate", env)`."""
    folder = tmp_path / "node"
    folder.mkdir()
    node_scripts(folder)
    return lambda file, *args, env: script("node", folder / file, args, env, folder)


@pytest.fixture
def heavy_python(tmp_path, request):
    """Runs a Python client that needs an environment of its own."""
    python = TOOLS / "venv-heavy" / "bin" / "python"
    folder = request.path.parent / "heavy"
    return lambda file, *args, env: script(str(python), folder / file, args, env, tmp_path)


@pytest.fixture
def image_files(tmp_path):
    """Files to edit: two pictures and a mask."""
    from emulators.pictures import mask, picture

    files = {"a": picture(512, 512, 0), "b": picture(512, 512, 1), "mask": mask(512, 512)}
    paths = {}
    for name, data in files.items():
        paths[name] = tmp_path / f"{name}.png"
        paths[name].write_bytes(data)
    return paths


@pytest.fixture
def decode():
    """Decodes base64 and the image in it, completely."""
    return lambda text: look(base64.b64decode(text, validate=True))
