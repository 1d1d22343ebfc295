"""How much longer requests take while the store is slow, away, read-only or full: docs/benchmarks.md.

    .tools/venv/bin/python benches/store/outages.py [--rounds 5] [--seconds 8] [--rate 50] [STATE ...]

Measures the release build, or IMAGEGATE_BIN, with the faults of tests/clients/test_outages.py.
"""

import argparse
import os
import secrets
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "clients"))
os.environ.setdefault("IMAGEGATE_BIN", str(ROOT / "target" / "release" / "imagegate"))

import yaml  # noqa: E402

import postgres_server  # noqa: E402
from gateway import OPS_KEY, TEAM_KEY, Gateway, Process, eventually  # noqa: E402
from memory import sandbox_traffic  # noqa: E402
from test_outages import OUTAGES, is_well  # noqa: E402


class Fixtures:
    """What pytest would give to an outage."""

    def __init__(self):
        self.postgres = None

    def getfixturevalue(self, _):
        self.postgres = postgres_server.Postgres()
        self.postgres.start()
        return self.postgres


def config(outage, folder):
    return {
        "listen": {"http": "127.0.0.1:0", "grpc": "127.0.0.1:0", "admin": "127.0.0.1:0"},
        "data_dir": str(folder / "data"),
        "configs": {"pc-sandbox": {"provider": "sandbox"}},
        "default_config": "pc-sandbox",
        "api_keys": [{"name": "team-a", "key": TEAM_KEY}, {"name": "ops", "key": OPS_KEY, "scopes": ["admin"]}],
        **outage.store.config,
    }


def measure(state, rounds, seconds, rate):
    """The best p99 of some rounds in milliseconds: while the store is well, and while it is not."""
    folder, fixtures = Path(tempfile.mkdtemp(prefix="imagegate-outages-")), Fixtures()
    well, broken = [], []
    # One fault a process: some of them leave traces in the store, such as a pause of its own.
    for _ in range(rounds):
        here = folder / secrets.token_hex(4)
        here.mkdir()
        outage = OUTAGES[state](fixtures, here)
        file = here / "imagegate.yaml"
        file.write_text(yaml.safe_dump(config(outage, here)))
        process = Process(["serve", "--config", file], here, {**outage.store.env, **outage.env, "RUST_LOG": "info"})
        try:
            gateway = Gateway(process, process, file)
            traffic = sandbox_traffic(gateway, rate)
            time.sleep(1)
            began = time.monotonic()
            time.sleep(seconds)
            failed = time.monotonic()
            outage.begin()
            time.sleep(seconds)
            over = time.monotonic()
            outage.end()
            eventually(lambda: is_well(gateway), 60, f"the end of {state}")
            traffic.end()
            assert traffic.failures == [], traffic.failures
            well.append(traffic.p99(began, failed) * 1000)
            broken.append(traffic.p99(failed, over) * 1000)
        finally:
            process.kill()
            outage.close()
            if fixtures.postgres:
                fixtures.postgres.close()
    return min(well), min(broken)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--rate", type=float, default=50)
    parser.add_argument("states", nargs="*", default=list(OUTAGES), metavar="STATE", help=", ".join(OUTAGES))
    args = parser.parse_args()
    print("| state of the store | p99 while it is well, ms | p99 in that state, ms | added, ms |\n|---|---:|---:|---:|")
    for state in args.states:
        well, broken = measure(state, args.rounds, args.seconds, args.rate)
        print(f"| {state} | {well:.1f} | {broken:.1f} | {broken - well:+.1f} |", flush=True)


if __name__ == "__main__":
    main()
