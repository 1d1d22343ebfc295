"""A real PostgreSQL of a test's own, and what can become of it: gone, frozen, back with its data.

Knows nothing of what the gateway keeps there.
"""

import datetime
import ipaddress
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

BINARIES = Path("/usr/lib/postgresql/15/bin")
# PostgreSQL refuses to run as root.
USER = "nobody"


def needs():
    """What is missing on this machine, as a sentence."""
    if not (BINARIES / "initdb").exists():
        return "these tests need PostgreSQL 15: apt-get install postgresql-15, on Debian"
    if os.geteuid() == 0 and not shutil.which("setpriv"):
        return "as root these tests need setpriv: apt-get install util-linux, on Debian"
    return None


def unprivileged(*command):
    """The command as somebody who is not root."""
    if os.geteuid() != 0:
        return list(command)
    return ["setpriv", f"--reuid={USER}", f"--regid={_group()}", "--clear-groups", *command]


def _group():
    import grp
    import pwd

    return grp.getgrgid(pwd.getpwnam(USER).pw_gid).gr_name


class Postgres:
    """A cluster of its own on a port of its own, which stay the same from start to start."""

    def __init__(self):
        # Not among pytest's folders, which are for their owner only.
        self._folder = Path(tempfile.mkdtemp(prefix="imagegate-postgres-"))
        self._data = self._folder / "data"
        self._process = None
        # More for the server's environment and settings, from its next start on.
        self.env, self.settings = {}, {}
        self.password = "pw-" + secrets.token_hex(12)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        password_file = self._folder / "password"
        password_file.write_text(self.password)
        self._own(self._folder, password_file)
        made = subprocess.run(
            unprivileged(
                BINARIES / "initdb", "--pgdata", self._data, "--username=postgres", "--pwfile", password_file,
                "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync",
            ),
            cwd=self._folder,
            env={"PATH": os.environ["PATH"]},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )  # fmt: skip
        assert made.returncode == 0, made.stderr

    @staticmethod
    def _own(*paths):
        if os.geteuid() == 0:
            for path in paths:
                shutil.chown(path, USER, _group())

    def url(self, port=None, password=None):
        return f"postgres://postgres:{password or self.password}@127.0.0.1:{port or self.port}/postgres"

    def start(self):
        """With what data it was stopped with, if it was."""
        settings = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": "off",
            "shared_buffers": "32MB",
            "max_connections": "60",
            # What is planted as a secret must not be found in this log either.
            "log_statement": "none",
            **self.settings,
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        self._process = subprocess.Popen(
            unprivileged(BINARIES / "postgres", "-D", self._data, *options),
            cwd=self._folder,
            env={"PATH": os.environ["PATH"], **self.env},
            stdin=subprocess.DEVNULL,
            stdout=self._log().open("ab"),
            stderr=subprocess.STDOUT,
        )
        deadline = time.monotonic() + 30
        while True:
            try:
                return self.sql("SELECT 1")
            except AssertionError:
                ended = self._process.poll() is not None
                assert not ended and time.monotonic() < deadline, self._log().read_text()
                time.sleep(0.05)

    def _log(self):
        return self._folder / "log"

    def sql(self, text):
        """What psql prints for some SQL, without headings."""
        finished = subprocess.run(
            [BINARIES / "psql", "--no-psqlrc", "--tuples-only", "--no-align", "--quiet", "-v", "ON_ERROR_STOP=1",
             "--command", text, self.url()],
            env={"PATH": os.environ["PATH"], "PGCONNECT_TIMEOUT": "5"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
        )  # fmt: skip
        assert finished.returncode == 0, finished.stderr
        return finished.stdout.strip()

    def files(self):
        """The bytes of every file that it has, once they are written."""
        self.sql("CHECKPOINT")
        return [path.read_bytes() for path in self._folder.rglob("*") if path.is_file() and path.name != "password"]

    def encrypt(self):
        """From its next start on it takes TLS connections only. Gives the file of who signs its certificate, which is
        for 127.0.0.1."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a test's PostgreSQL")])
        now = datetime.datetime.now(datetime.UTC)
        address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number()).add_extension(address, critical=False)
        builder = builder.not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
        certificate = builder.sign(key, hashes.SHA256())
        files = self._folder / "server.crt", self._folder / "server.key"
        files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        encoding = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        files[1].write_bytes(key.private_bytes(*encoding))
        files[1].chmod(0o600)
        self._own(*files)
        self.settings |= {"ssl": "on", "ssl_cert_file": files[0], "ssl_key_file": files[1]}
        (self._data / "pg_hba.conf").write_text("hostssl all all 127.0.0.1/32 scram-sha-256\n")
        return files[0]

    def dump(self):
        """All of its data, as SQL."""
        finished = subprocess.run(
            [BINARIES / "pg_dump", self.url()], env={"PATH": os.environ["PATH"]}, capture_output=True, timeout=30
        )
        assert finished.returncode == 0, finished.stderr
        return finished.stdout

    def kill(self):
        """It is gone at once, as in a crash."""
        self._signal_all(signal.SIGKILL)
        self._process.wait(10)

    def freeze(self):
        """It answers no more, but whoever connects to it does not know."""
        self._signal_all(signal.SIGSTOP)

    def thaw(self):
        self._signal_all(signal.SIGCONT)

    def _signal_all(self, number):
        for pid in [*self._members(), self._process.pid]:
            _signal(pid, number)

    def _members(self):
        """The processes that the server has started."""
        found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(self._process.pid)], capture_output=True, text=True)
        return [int(pid) for pid in re.findall(r"\d+", found.stdout)]

    def close(self):
        if self._process is not None and self._process.poll() is None:
            self.thaw()
            # Immediate shutdown: its other processes end with it, and no shared memory is left.
            self._process.send_signal(signal.SIGQUIT)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)


def _signal(pid, number):
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
