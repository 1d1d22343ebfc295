"""A disk that is full, read-only or slow, for one program: `faulty_disk.c`, compiled and told what to do."""

import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")


def needs():
    """What is missing on this machine, as a sentence."""
    if not shutil.which("cc"):
        return "these tests need a C compiler: apt-get install gcc libc6-dev, on Debian"
    return None


class Disk:
    """What is below `folder` has the fault that was said last: `full`, `readonly`, `slow` (a sync takes two seconds)
    or `stuck` (a write takes a tenth of one, too). `env` is for the program."""

    def __init__(self, folder):
        self._about = folder
        # Also for programs that are somebody else.
        self._folder = Path(tempfile.mkdtemp(prefix="imagegate-disk-"))
        self._folder.chmod(0o755)
        library, self._control = self._folder / "faulty_disk.so", self._folder / "control"
        made = subprocess.run(
            ["cc", "-shared", "-fPIC", "-O1", "-o", library, SOURCE, "-ldl"], capture_output=True, text=True, timeout=60
        )
        assert made.returncode == 0, made.stderr
        self.mend()
        self.env = {"LD_PRELOAD": str(library), "FAULTY_DISK": str(self._control)}

    def fail(self, fault):
        self._control.write_text(f"{fault} {self._about}\n")

    def mend(self):
        self._control.write_text("")

    def close(self):
        shutil.rmtree(self._folder, ignore_errors=True)
