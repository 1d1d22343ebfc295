"""How many instructions a request costs the gateway, against the counts that are kept: docs/performance.md.

    cargo build --release
    .tools/venv/bin/python benches/instructions/count.py [--update]

Needs valgrind. Counts do not depend on the machine's mood, so a rise is a change of the code: one of more than 5 % in any
workload ends with 1 and the numbers. `--update` keeps what was counted, in counts.json beside this file.
"""

import argparse
import base64
import http.client
import json
import os
import random
import re
import struct
import sys
import tempfile
import threading
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT / "tests" / "clients"))
os.environ.setdefault("IMAGEGATE_BIN", str(ROOT / "target" / "release" / "imagegate"))

from gateway import Process, binary  # noqa: E402

KEPT = HERE / "counts.json"
TOLERANCE = 0.05

# What starting and ending cost is in both counts, and not in their difference.
FEW, MANY = 100, 1100
# Largest answers take longest under valgrind.
FEW_LARGE, MANY_LARGE = 20, 120

KEY = "ig-bench-key-of-the-instruction-counts"

CONFIG = """
listen: {{ http: "127.0.0.1:0", grpc: "127.0.0.1:0", admin: "127.0.0.1:0" }}
data_dir: {folder}
# All at the end: how often would depend on how long it takes.
log: {{ flush_ms: 60000 }}
api_keys: [{{ name: bench, key: {key} }}]
virtual_keys:
  small: {{ provider: openai, api_key: none, base_url: "http://127.0.0.1:{port}/small/v1" }}
  large: {{ provider: openai, api_key: none, base_url: "http://127.0.0.1:{port}/large/v1" }}
  broken: {{ provider: openai, api_key: none, base_url: "http://127.0.0.1:{port}/broken/v1" }}
"""

FALLBACK = {"strategy": {"mode": "fallback"}, "targets": [{"virtual_key": "broken"}, {"virtual_key": "small"}]}

WORKLOADS = {
    "1 KB": ({"x-portkey-virtual-key": "small"}, FEW, MANY),
    "2 MB": ({"x-portkey-virtual-key": "large"}, FEW_LARGE, MANY_LARGE),
    "500, then 1 KB": ({"x-portkey-config": json.dumps(FALLBACK)}, FEW, MANY),
}


def png(length):
    """A PNG of noise with right check sums that is `length` bytes long."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    noise = random.Random(7)
    side = 16
    rows = b"".join(b"\0" + noise.randbytes(side) for _ in range(side))
    parts = [
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)),
        chunk(b"IDAT", zlib.compress(rows)),
    ]
    end = chunk(b"IEND", b"")
    missing = length - sum(map(len, parts)) - len(end) - 12
    return b"".join([*parts, chunk(b"paDd", noise.randbytes(missing)), end])


def answer(text_bytes):
    text = base64.b64encode(png(text_bytes // 4 * 3)).decode()
    return json.dumps({"created": 1700000000, "data": [{"b64_json": text}]}).encode()


ANSWERS = {
    "small": (200, answer(1 << 10)),
    "large": (200, answer(2 << 20)),
    "broken": (500, b'{"error":{"message":"no","type":"server_error"}}'),
}


class Provider(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        status, body = ANSWERS[self.path.split("/")[1]]
        head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        self.wfile.write(head.encode() + body)

    def log_message(self, *_):
        pass


def ask(connection, headers):
    body = json.dumps({"model": "gpt-image-1", "prompt": "a lighthouse at dusk"})
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json", **headers}
    connection.request("POST", "/v1/images/generations", body, headers)
    response = connection.getresponse()
    text = response.read()
    if response.status != 200:
        sys.exit(f"{response.status}: {text[:500]!r}")


def instructions(port, headers, requests):
    with tempfile.TemporaryDirectory(prefix="imagegate-instructions-") as folder:
        config, counts = Path(folder) / "imagegate.yaml", Path(folder) / "counts"
        config.write_text(CONFIG.format(folder=folder, key=KEY, port=port))
        arguments = ["serve", "--config", str(config)]
        valgrind = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={counts}"]
        process = Process(arguments, folder, command=[*valgrind, binary(), *arguments])
        try:
            connection = http.client.HTTPConnection(process.address("http"))
            for _ in range(requests):
                ask(connection, headers)
            connection.close()
            process.terminate()
            if process.wait(120) != 0:
                sys.exit(f"the gateway ended badly:\n{process.log}")
        finally:
            process.kill()
        return int(re.search(r"^(?:summary|totals): (\d+)", counts.read_text(), re.M)[1])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--update", action="store_true")
    args = parser.parse_args()
    provider = ThreadingHTTPServer(("127.0.0.1", 0), Provider)
    threading.Thread(target=provider.serve_forever, daemon=True).start()
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    counted, risen = {}, []
    print("| request | instructions | kept | |\n|---|---:|---:|---:|")
    for name, (headers, few, many) in WORKLOADS.items():
        port = provider.server_address[1]
        more = instructions(port, headers, many) - instructions(port, headers, few)
        counted[name] = more // (many - few)
        before = kept.get(name)
        change = counted[name] / before - 1 if before else 0
        print(f"| {name} | {counted[name]:,} | {before or 0:,} | {change:+.1%} |", flush=True)
        if change > TOLERANCE:
            risen.append(f"{name}: {before:,} -> {counted[name]:,} ({change:+.1%})")
    if args.update:
        KEPT.write_text(json.dumps(counted, indent=2) + "\n")
    elif risen:
        sys.exit("more instructions than are kept: " + "; ".join(risen))


main()
