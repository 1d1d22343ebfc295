"""Prometheus' own judge of metrics and rules. Knows where it is."""

import shutil
import subprocess

from gateway import TOOLS


def binary():
    return shutil.which("promtool") or shutil.which("promtool", path=TOOLS / "promtool")


def needs():
    """What is missing on this machine, as a sentence."""
    return None if binary() else "these tests need promtool: it is in Debian's package prometheus"


def promtool(*args, stdin=None, cwd=None):
    """What it has to say, and whether it is content."""
    finished = subprocess.run(
        [binary(), *map(str, args)], input=stdin, capture_output=True, text=True, cwd=cwd, timeout=60
    )
    return finished.returncode == 0, finished.stdout + finished.stderr
