"""Builds the container image, and runs what it holds as an engine would: crun, the image's own user and entrypoint, a
read-only root, no capabilities, an own process table. Only the network is this machine's.

Needs root, buildah and crun.
"""

import hashlib
import json
import os
import secrets
import shutil
import subprocess
import tarfile
from pathlib import Path

from gateway import ROOT, Process, binary

# crun refuses some machines' mixture of cgroup versions, and the tests limit nothing: it gets to see none.
WITHOUT_CGROUPS = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /sys/fs/cgroup && exec "$@"', "sh"]
HOSTS = "127.0.0.1 localhost\n127.0.0.1 worker.internal provider.internal\n"


def needs():
    """What is missing on this machine, as a sentence."""
    if os.geteuid() != 0:
        return "the container tests need root"
    if missing := [program for program in ("buildah", "crun", "dpkg-query") if not shutil.which(program)]:
        return f"the container tests need {', '.join(missing)}: apt-get install buildah crun, on Debian"
    return None


class Image:
    """The built image: an OCI layout, and its layers unpacked."""

    def __init__(self, folder):
        self.layout = folder / "layout"
        self.root = folder / "root"
        built = subprocess.run(
            [ROOT / "container" / "image", binary(), self.layout], capture_output=True, text=True, timeout=100
        )
        assert built.returncode == 0, f"container/image failed:\n{built.stdout}\n{built.stderr}"
        (entry,) = json.loads((self.layout / "index.json").read_bytes())["manifests"]
        self.digest = entry["digest"]
        self.manifest = json.loads(self.blob(entry["digest"]))
        self.image = json.loads(self.blob(self.manifest["config"]["digest"]))
        self.config = self.image["config"]
        self.members = []
        self.root.mkdir(mode=0o755)
        for layer in self.manifest["layers"]:
            with tarfile.open(self._blob_path(layer["digest"])) as tar:
                self.members += tar.getmembers()
                tar.extractall(self.root, filter="fully_trusted")

    def _blob_path(self, digest):
        return self.layout / "blobs" / digest.replace(":", "/")

    def blob(self, digest):
        data = self._blob_path(digest).read_bytes()
        assert digest == "sha256:" + hashlib.sha256(data).hexdigest()
        return data


class Container(Process):
    """A running container. `files` are what an engine would mount: paths inside, and the text or the file there."""

    def __init__(self, image, folder, args, env=None, files=None):
        self.id = "imagegate-" + secrets.token_hex(6)
        self._folder = Path(folder) / self.id
        self._folder.mkdir()
        mounts = [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "noexec", "mode=755"]},
            {
                "destination": "/data",
                "type": "tmpfs",
                "source": "tmpfs",
                "options": ["nosuid", "nodev", "noexec", "mode=700", "uid=65532", "gid=65532", "size=64m"],
            },
        ]
        for inside, content in {"/etc/hosts": HOSTS, **(files or {})}.items():
            if isinstance(content, str):
                content, text = self._folder / inside.strip("/").replace("/", "-"), content
                content.write_text(text)
            options = ["bind", "ro", "nosuid", "nodev", "noexec"]
            mounts.append({"destination": inside, "type": "bind", "source": str(content), "options": options})
        uid, gid = map(int, image.config["User"].split(":"))
        env = {"IMAGEGATE_LOG_FORMAT": "json", "RUST_LOG": "info", **(env or {})}
        bundle = {
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": uid, "gid": gid},
                "args": [*image.config["Entrypoint"], *map(str, args or image.config["Cmd"])],
                "env": [*image.config["Env"], *(f"{name}={value}" for name, value in env.items())],
                "cwd": image.config["WorkingDir"],
                "capabilities": {},
                "noNewPrivileges": True,
            },
            "root": {"path": str(image.root), "readonly": True},
            "mounts": mounts,
            "linux": {"namespaces": [{"type": kind} for kind in ("mount", "pid", "ipc", "uts")]},
        }
        (self._folder / "config.json").write_text(json.dumps(bundle))
        self._crun = [*WITHOUT_CGROUPS, "crun", "--root", str(self._folder / "state"), "--cgroup-manager", "disabled"]
        super().__init__(args, folder, command=[*self._crun, "run", "--bundle", str(self._folder), self.id])

    def _do(self, *command):
        return subprocess.run([*self._crun, *command], capture_output=True, text=True, timeout=20)

    @property
    def pid(self):
        """The process's number outside."""
        return json.loads(self._do("state", self.id).stdout)["pid"]

    def exec(self, *command):
        """Tries to run something else inside."""
        return self._do("exec", self.id, *command)

    def kill(self):
        self._do("kill", self.id, "KILL")
        super().kill()

    def stop(self):
        self._do("delete", "--force", self.id)
        super().stop()
