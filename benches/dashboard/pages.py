"""How long pages of the dashboard take over a full request log, and how smooth its live list is: docs/benchmarks.md.

    cargo bench --bench month -- --keep FOLDER
    .tools/venv/bin/python benches/dashboard/pages.py FOLDER [--rounds 20] [--rate 100] [--seconds 20]

Measures the release build, or IMAGEGATE_BIN. FOLDER is left with some requests more.
"""

import argparse
import contextlib
import json
import os
import sqlite3
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "clients"))
os.environ.setdefault("IMAGEGATE_BIN", str(ROOT / "target" / "release" / "imagegate"))

import base64  # noqa: E402

import requests  # noqa: E402
import yaml  # noqa: E402

from browser import Browser, chromium  # noqa: E402
from gateway import OPS_KEY, TEAM_KEY, Gateway, Process  # noqa: E402
from memory import sandbox_traffic  # noqa: E402

# Of benches/month.
TENANT = "studio"
VAULT_KEY = base64.b64encode(bytes([1]) * 32).decode()

PAGES = ["/logs", "/logs?fallback=true", "/logs?status=429", "/logs?provider=openai&success=false", "/", "/?range=30d"]

# How far apart frames are, while the list goes on.
FRAMES = """seconds => new Promise(done => {
  const gaps = [], began = performance.now();
  let last = began;
  const frame = now => {
    gaps.push(now - last);
    last = now;
    if (now - began < seconds * 1000) requestAnimationFrame(frame);
    else done(gaps.slice(1).sort((a, b) => a - b));
  };
  requestAnimationFrame(frame);
})"""


def config(folder):
    keys = [
        {"name": "team-a", "key": TEAM_KEY, "tenant": TENANT},
        {"name": "ops", "key": OPS_KEY, "scopes": ["admin"], "tenant": TENANT},
    ]
    return {
        "listen": {"http": "127.0.0.1:0", "grpc": "127.0.0.1:0", "admin": "127.0.0.1:0"},
        "data_dir": str(folder),
        "vault": {"key": VAULT_KEY},
        "log": {"images": "thumbnails", "prompts": True},
        "api_keys": keys,
    }


def let_it_end_now(folder):
    """A month that goes on after now has its newest requests where live ones would be."""
    with contextlib.closing(sqlite3.connect(folder / "imagegate.db")) as store, store:
        (newest,) = store.execute("SELECT max(created_ms) FROM requests").fetchone()
        ahead = newest - int(time.time() * 1000)
        if ahead > 0:
            store.execute("UPDATE requests SET created_ms = created_ms - ?", (ahead,))


def pages(gateway, rounds):
    session = requests.Session()
    begun = session.post(gateway.admin + "/sign-in", data={"key": OPS_KEY}, headers={"origin": gateway.admin})
    assert begun.ok, begun.text
    print("| page | median, ms | worst, ms | KB |\n|---|---:|---:|---:|")
    for path in PAGES:
        took = []
        for _ in range(rounds):
            began = time.perf_counter()
            answer = session.get(gateway.admin + path)
            took.append((time.perf_counter() - began) * 1000)
            assert answer.status_code == 200, answer.text
        print(f"| {path} | {statistics.median(took):.1f} | {max(took):.1f} | {len(answer.content) / 1000:.0f} |")


def live(gateway, folder, rate, seconds):
    with chromium() as browser:
        window = Browser(browser.new_page(), gateway, folder)
        window.sign_in(OPS_KEY, "/logs")
        before = window.page.locator("tbody").inner_text()
        traffic = sandbox_traffic(gateway, rate, config=json.dumps({"provider": "sandbox"}))
        time.sleep(2)
        gaps = window.page.evaluate(FRAMES, seconds)
        rows = window.page.locator("tbody").inner_text()
        traffic.end()
        assert not traffic.failures and not window.complaints, (traffic.failures[:3], window.complaints)
        assert rows != before, "no new request was shown"
        at = lambda part: gaps[int(len(gaps) * part)]  # noqa: E731
        print(
            f"live at {len(traffic.answers) / (seconds + 2):.0f} requests/s: {len(gaps) / seconds:.0f} frames/s, "
            f"between frames p50 {at(0.5):.0f} ms, p99 {at(0.99):.0f} ms, worst {gaps[-1]:.0f} ms"
        )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--rate", type=int, default=100)
    parser.add_argument("--seconds", type=int, default=20)
    args = parser.parse_args()
    here = Path(tempfile.mkdtemp(prefix="imagegate-dashboard-"))
    file = here / "imagegate.yaml"
    file.write_text(yaml.safe_dump(config(args.folder.resolve())))
    let_it_end_now(args.folder)
    process = Process(["serve", "--config", file], here, {"RUST_LOG": "warn,imagegate::serve=info"})
    try:
        gateway = Gateway(process, process, file)
        pages(gateway, args.rounds)
        live(gateway, here, args.rate, args.seconds)
    finally:
        process.kill()


main()
