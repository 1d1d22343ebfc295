"""The container image, built from the Dockerfile around the binary under test, and run."""

import errno
import http.server
import json
import re
import shutil
import ssl
import subprocess
import sys
import threading
from base64 import b64encode
from datetime import UTC, datetime, timedelta
from pathlib import Path

import openai
import pytest
import requests
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from container import Container, Image, needs
from emulators.pictures import look, picture
from gateway import ROOT, TEAM_KEY, Gateway, binary, eventually, founding_config, secrets_of

# One image for all of them, so they belong to one process (`--dist loadgroup`).
pytestmark = pytest.mark.xdist_group("container")

CONFIG_FILE = "/etc/imagegate/imagegate.yaml"
BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
LISTEN = {f"IMAGEGATE_LISTEN_{role}": "127.0.0.1:0" for role in ("HTTP", "GRPC", "ADMIN")}

PROGRAMS = {"usr/local/bin/imagegate", "lib64/ld-linux-x86-64.so.2", "lib/ld-linux-aarch64.so.1"}
LIBRARY = re.compile(r"lib/(x86_64|aarch64)-linux-gnu/(libc\.so\.6|libm\.so\.6|libgcc_s\.so\.1)")
FILES = {
    "etc/group",
    "etc/nsswitch.conf",
    "etc/os-release",
    "etc/passwd",
    "etc/ssl/certs/ca-certificates.crt",
    "usr/share/doc/ca-certificates/copyright",
    "usr/share/doc/imagegate/Cargo.lock",
    "usr/share/doc/imagegate/Cargo.toml",
    "usr/share/doc/imagegate/LICENSE",
    "usr/share/doc/libc6/copyright",
    "usr/share/doc/libgcc-s1/copyright",
    "var/lib/dpkg/status.d/ca-certificates",
    "var/lib/dpkg/status.d/libc6",
    "var/lib/dpkg/status.d/libgcc-s1",
}


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    if missing := needs():
        pytest.fail(missing)
    folder = tmp_path_factory.mktemp("image")
    folder.chmod(0o755)
    yield Image(folder)
    # Several hundred megabytes of debug information, which pytest would keep.
    shutil.rmtree(folder)


@pytest.fixture
def container(image, tmp_path, stability_api, openai_api):
    """Runs the image: `container("serve", ...)`."""
    started = []

    def container(*args, env=None, files=None):
        env = {**secrets_of(stability_api, openai_api), **(env or {})}
        started.append(Container(image, tmp_path, args, env, files))
        return started[-1]

    yield container
    for one in started:
        one.stop()


def gateway_of(container, role, config, files=None):
    """A gateway in one container, with a config file: `serve`, or `router` with its own shim."""
    one = container(role, "--config", CONFIG_FILE, files={CONFIG_FILE: yaml.safe_dump(config), **(files or {})})
    return Gateway(one, one, None)


def test_the_image_says_what_it_is(image):
    config = image.config
    assert config["User"] == "65532:65532"
    assert config["Entrypoint"] == ["/usr/local/bin/imagegate"]
    assert config["Cmd"] == ["serve"]
    assert config["WorkingDir"] == "/"
    assert set(config["ExposedPorts"]) == {"8787/tcp", "50051/tcp", "50061/tcp", "9090/tcp"}
    assert "Volumes" not in config
    assert [one.split("=")[0] for one in config["Env"]] == ["PATH"], "a setting here would win over the operator's file"
    version = subprocess.run([binary(), "--version"], capture_output=True, text=True, check=True).stdout.split()[1]
    labels = {name.removeprefix("org.opencontainers.image."): value for name, value in config["Labels"].items()}
    assert labels.pop("revision")
    assert labels.pop("io.buildah.version")
    cargo = (ROOT / "Cargo.toml").read_text()
    assert labels == {
        "title": "imagegate",
        "description": re.search('^description = "(.*)"$', cargo, re.M)[1],
        "licenses": re.search('^license = "(.*)"$', cargo, re.M)[1],
        "version": version,
    }


def test_the_build_stage_asks_for_the_rust_that_the_package_needs():
    needed = re.search('^rust-version = "(.*)"$', (ROOT / "Cargo.toml").read_text(), re.M)[1]
    assert re.search(r"^ARG RUST_IMAGE=rust:(\d+\.\d+)-", (ROOT / "Dockerfile").read_text(), re.M)[1] == needed


def test_the_image_holds_what_is_listed_and_nothing_else(image):
    found = {member.name.removeprefix("./").rstrip("/"): member for member in image.members}
    files = {name for name, member in found.items() if not member.isdir()}
    system = {name for name in files if LIBRARY.fullmatch(name)}
    assert all(found[name].isfile() for name in files), "links or devices"
    programs = {name for name in files if found[name].mode & 0o111}
    assert programs <= PROGRAMS and len(programs) == 2
    assert files - programs - system == FILES
    assert {name.rpartition("/")[2] for name in system} == {"libc.so.6", "libm.so.6", "libgcc_s.so.1"}
    parents = {str(parent) for name in files for parent in Path(name).parents} - {"."}
    assert set(found) - files - {""} == parents | {"data"}


def test_nothing_in_the_image_can_be_changed_by_its_user(image):
    for member in image.members:
        assert not member.mode & 0o7022, f"{member.name} is {member.mode:o}"
        owner = 65532 if member.name.strip("./") == "data" else 0
        assert (member.uid, member.gid) == (owner, owner), member.name


def test_the_same_binary_gives_the_same_image(image, tmp_path):
    again = Image(tmp_path)
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    assert again.digest == image.digest


def test_the_file_system_alone_is_enough_to_run_the_binary(container):
    one = container("--version")
    assert one.wait() == 0
    assert re.fullmatch(r"imagegate \d+\.\d+\.\d+\S*", one.log)


def test_the_process_has_no_privileges_no_shell_and_nowhere_to_write(container):
    one = container(env=LISTEN)
    one.address("http")
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{one.pid}/status").read_text().splitlines())
    assert status["Uid"].split() == status["Gid"].split() == ["65532"] * 4
    assert status["NSpid"].split()[-1] == "1"
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    for folder in ("/", "/usr/local/bin", "/etc"):
        with pytest.raises(OSError) as refused:
            open(f"/proc/{one.pid}/root{folder}/x", "w")
        assert refused.value.errno == errno.EROFS
    assert one.exec("/usr/local/bin/imagegate", "--version").returncode == 0
    for shell in ("/bin/sh", "/bin/bash", "/usr/bin/env", "sh", "busybox"):
        refused = one.exec(shell)
        assert refused.returncode != 0 and "not found" in refused.stderr.lower() + refused.stdout.lower(), refused


def test_without_arguments_it_serves_the_embedded_config_on_loopback(container):
    one = container(env=LISTEN)
    gateway = Gateway(one, one, None)
    client = openai.OpenAI(api_key="REDUNDANT", base_url=gateway.base_url, max_retries=0)
    answer = client.images.generate(
        prompt="a lighthouse at dusk", model="sandbox-1", size="256x256", response_format="url"
    )
    assert look(requests.get(answer.data[0].url, timeout=10).content).size == (256, 256)
    assert list(Path(f"/proc/{one.pid}/root/data/images").iterdir()), "the image is not in the mounted /data"


def test_an_address_that_others_reach_needs_a_file_that_says_who_may_call(container):
    one = container(env={**LISTEN, "IMAGEGATE_LISTEN_HTTP": "0.0.0.0:0"})
    assert one.wait() == 1
    assert "there are no api_keys" in one.log


def test_sigterm_to_the_first_process_ends_it_with_0(container):
    one = container(env=LISTEN)
    Gateway(one, one, None)
    one.terminate()
    assert one.wait() == 0


def test_a_router_finds_a_worker_in_another_container_by_its_name(container, stability_api, openai_api):
    worker = container("worker", "--provider", "openai", "--listen", "127.0.0.1:0")
    port = worker.address("worker").rpartition(":")[2]
    config = founding_config(stability_api, openai_api, default_config="pc-openai")
    config["workers"] = {"openai": f"http://worker.internal:{port}"}
    gateway = gateway_of(container, "router", config)
    answer = gateway.post(body={"prompt": "a red cat", "model": "gpt-image-1"})
    assert answer.status_code == 200, answer.text
    assert len(openai_api.calls) == 1
    worker.kill()
    assert gateway.post(body={"prompt": "a red cat", "model": "gpt-image-1"}).status_code >= 500


class HttpsProvider:
    """Answers as OpenAI would, with a certificate of an authority that nobody knows."""

    def __init__(self, folder):
        key, self.authority = self._issue("an unknown authority", None)
        own_key, certificate = self._issue("provider.internal", (key, self.authority))
        pem = serialization.Encoding.PEM
        plain = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        file = folder / "provider.pem"
        file.write_bytes(own_key.private_bytes(pem, *plain) + certificate.public_bytes(pem))
        self.authority = self.authority.public_bytes(pem).decode()
        self.failures, self.requests = [], []
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        provider = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                provider.requests.append(self.rfile.read(int(self.headers["content-length"])))
                body = json.dumps({"created": 1, "data": [{"b64_json": b64encode(picture(1024, 1024)).decode()}]})
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_):
                pass

        class Server(http.server.ThreadingHTTPServer):
            def get_request(self):
                connection, peer = super().get_request()
                connection.settimeout(10)
                try:
                    return context.wrap_socket(connection, server_side=True), peer
                except OSError as error:
                    provider.failures.append(error)
                    raise

        self.server = Server(("127.0.0.1", 0), Handler)
        self.base_url = f"https://provider.internal:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @staticmethod
    def _issue(name, issuer):
        """A key and its certificate, of `issuer` or self-signed."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer[1].subject if issuer else subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=not issuer, path_length=None), critical=True)
        )
        if issuer:
            builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        return key, builder.sign(issuer[0] if issuer else key, hashes.SHA256())

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def https_provider(tmp_path):
    provider = HttpsProvider(tmp_path)
    yield provider
    provider.close()


def https_config(provider, stability_api, openai_api):
    config = founding_config(stability_api, openai_api, default_config="pc-openai")
    config["virtual_keys"]["open-ai-virtual-key"]["base_url"] = provider.base_url
    return config


def test_an_https_provider_of_an_unknown_authority_is_not_trusted(container, https_provider, stability_api, openai_api):
    gateway = gateway_of(container, "serve", https_config(https_provider, stability_api, openai_api))
    assert gateway.post(body={"prompt": "a red cat", "model": "gpt-image-1"}).status_code >= 500
    eventually(lambda: https_provider.failures, what="a failed handshake")
    assert "UNKNOWN_CA" in str(https_provider.failures[0])
    assert not https_provider.requests


@pytest.mark.parametrize("beside", [True, False], ids=["beside the bundle", "in place of the bundle"])
def test_an_authority_of_ones_own_can_be_mounted(image, container, https_provider, stability_api, openai_api, beside):
    config = https_config(https_provider, stability_api, openai_api)
    file = BUNDLE.replace("ca-certificates.crt", "own.crt") if beside else BUNDLE
    gateway = gateway_of(container, "serve", config, {file: https_provider.authority})
    answer = gateway.post(body={"prompt": "a red cat", "model": "gpt-image-1"})
    assert answer.status_code == 200, answer.text
    assert not https_provider.failures


def test_the_authorities_are_those_of_debians_package(image):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(image.root / BUNDLE.strip("/"))
    package = Path("/usr/share/ca-certificates/mozilla")
    assert len(context.get_ca_certs()) == len(list(package.iterdir())) > 100


def test_without_authorities_it_does_not_start(container):
    # What the other two would see if the bundle lay where nobody looks.
    one = container(env=LISTEN, files={BUNDLE: ""})
    assert one.wait() == 1
    assert "HTTP client" in one.log


def test_hadolint_has_nothing_to_say():
    hadolint = Path(sys.executable).with_name("hadolint")
    found = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stdout + found.stderr


def test_the_build_context_has_all_sources_and_nothing_private(image, tmp_path):
    listing = tmp_path / "Containerfile"
    listing.write_text("FROM scratch\nCOPY . /\n")
    buildah = ["buildah", "--root", tmp_path / "store", "--runroot", tmp_path / "run", "--storage-driver", "vfs"]
    build = [*buildah, "bud", "--quiet", "--isolation", "chroot", "--ignorefile", ROOT / ".dockerignore"]
    try:
        built = subprocess.run([*build, "--file", listing, "--tag", "context", ROOT], capture_output=True, text=True, timeout=60)
        assert built.returncode == 0, built.stderr
        made = subprocess.run([*buildah, "from", "context"], capture_output=True, text=True, check=True).stdout.strip()
        folder = subprocess.run([*buildah, "mount", made], capture_output=True, text=True, check=True).stdout.strip()
        found = {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}
    finally:
        shutil.rmtree(tmp_path / "store", ignore_errors=True)
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
    sources = {"src", "proto", "benches", "container", "build.rs", "Cargo.toml", "Cargo.lock", "LICENSE"}
    paths = {ROOT / name for name in sources} | {path for name in sources for path in (ROOT / name).rglob("*")}
    assert found == {str(path.relative_to(ROOT)) for path in paths if path.is_file()}
    # What the compiler read for the binary under test, where cargo says so.
    read = Path(binary() + ".d")
    if read.exists():
        paths = [Path(path) for path in read.read_text().split(": ", 1)[1].split()]
        base = next(path.parent for path in paths if path.name == "build.rs")
        paths = {path.relative_to(base) for path in paths if path.suffix}
        assert {str(path) for path in paths if path.parts[0] != "target"} <= found
