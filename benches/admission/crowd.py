"""Many large uploads at once on a gateway that may hold few of them: who is answered how, when, and in how much memory.

    cargo build --release && python3 benches/admission/crowd.py

500 edits of four images, 20 MB each, come together at a gateway with the default of 1 GiB in flight. Each one that is let
in must reach the provider byte for byte and get its own picture back; each other one must be told so. Ends with an error
where one is not, or where the process was ever larger than 0.9 GiB.
"""

import argparse
import asyncio
import base64
import collections
import contextlib
import hashlib
import json
import os
import re
import socket
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BOUNDARY = "a-boundary-that-is-in-no-image"
IMAGES = 4
# Prompts from this number on are answered late.
SLOW, SLOW_SECONDS = 1_000_000, 10


def picture(number):
    """A PNG of 32 x 1 pixels that are a number's bits."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 32, 1, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" + struct.pack(">I", number))) + chunk(b"IEND", b"")


def signed(size, number):
    """An image of so many bytes that ends with their digest, behind what is the picture."""
    data = picture(number)
    data += os.urandom(size - len(data) - 32)
    return data + hashlib.sha256(data).digest()


def part(name, data, more=""):
    return f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + data + b"\r\n"


def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


async def provide(reader, writer):
    """OpenAI's edits, as far as these requests go: the picture of the prompt's number, if all images came as they left."""
    try:
        while head := (await reader.readuntil(b"\r\n\r\n")).decode():
            length = int(re.search(r"(?i)content-length: (\d+)", head)[1])
            boundary = re.search(r"boundary=\"?([^\s\";]+)", head)[1].encode()
            parts = (await reader.readexactly(length)).split(b"--" + boundary)[1:-1]
            fields = [(re.search(rb'name="([^"]+)"', part)[1], part.partition(b"\r\n\r\n")[2][:-2]) for part in parts]
            images = [data for name, data in fields if name == b"image[]"]
            whole = len(images) == IMAGES and all(hashlib.sha256(data[:-32]).digest() == data[-32:] for data in images)
            number = int(dict(fields)[b"prompt"])
            await asyncio.sleep(SLOW_SECONDS if number >= SLOW else 0)
            image = base64.b64encode(picture(number)).decode()
            answer = {"created": 1, "data": [{"b64_json": image}]} if whole else {"error": {"message": "not as it left"}}
            body = json.dumps(answer).encode()
            status = "200 OK" if whole else "400 Bad Request"
            writer.write(f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
    except (asyncio.IncompleteReadError, asyncio.CancelledError):
        pass
    finally:
        writer.close()


async def upload(address, upstream, number, body):
    """What became of an upload, and the seconds until its answer began."""
    prompt = part("prompt", str(number).encode())
    head = [
        "POST /v1/images/edits HTTP/1.1", "host: localhost", f"content-length: {len(prompt) + len(body)}",
        f"content-type: multipart/form-data; boundary={BOUNDARY}", "authorization: Bearer sk-bench",
        "x-portkey-provider: openai", f"x-portkey-custom-host: {upstream}/v1", "\r\n",
    ]
    loop = asyncio.get_running_loop()
    with socket.socket() as wire:
        wire.setblocking(False)
        await loop.sock_connect(wire, address)
        began = time.monotonic()

        async def send():
            try:
                await loop.sock_sendall(wire, "\r\n".join(head).encode() + prompt)
                await loop.sock_sendall(wire, memoryview(body))
            except OSError:
                pass

        # Like a client that writes on, whatever it could have read meanwhile.
        sending = asyncio.create_task(send())
        answer, took = b"", 0
        while not (found := re.match(rb"(?is)HTTP/1.1 (\d+).*?content-length: (\d+).*?\r\n\r\n", answer)) or len(answer) < found.end() + int(found[2]):
            try:
                some = await loop.sock_recv(wire, 1 << 16)
            except OSError as error:
                return f"{type(error).__name__} after {len(answer)} bytes", took
            took = took or time.monotonic() - began
            if not some:
                return f"the end after {len(answer)} bytes", took
            answer += some
        await sending
    status, said = int(found[1]), json.loads(answer[found.end() :])
    if status == 200:
        return status if base64.b64decode(said["data"][0]["b64_json"]) == picture(number) else "200 with another's picture", took
    if status == 503:
        return status if b"retry-after: " in answer.lower() and said["error"]["code"] == "overloaded" else "503 that says nothing", took
    return f"{status} {said}", took


@contextlib.asynccontextmanager
async def gateway(binary, address):
    """`serve` at an address, with what is in force by default."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "imagegate.yaml")
        config.write_text(
            f"listen: {{ http: '{address[0]}:{address[1]}', grpc: '127.0.0.1:{port()}', admin: '127.0.0.1:{port()}' }}\n"
            f"data_dir: '{folder}/data'\negress: {{ allow: ['127.0.0.0/8'] }}\nauth: open\n"
        )
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen([binary, "serve", "--config", config], **quiet)
        try:
            while True:
                try:
                    (await asyncio.open_connection(*address))[1].close()
                    break
                except OSError:
                    await asyncio.sleep(0.05)
            yield process
        finally:
            process.terminate()
            process.wait()


def outcomes_of(uploads):
    return collections.Counter(status for status, _ in uploads)


def peak(process):
    return int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())[1]) / 1024


async def measure(options):
    server = await asyncio.start_server(provide, "127.0.0.1", 0, limit=1 << 20)
    upstream = "http://127.0.0.1:%d" % server.sockets[0].getsockname()[1]
    address = ("127.0.0.1", port())
    size = options.mb * 1_000_000 // IMAGES
    body = b"".join(
        [part("model", b"gpt-image-1")]
        + [part("image[]", signed(size, i), f'; filename="{i}.png"\r\nContent-Type: image/png') for i in range(IMAGES)]
        + [f"--{BOUNDARY}--\r\n".encode()]
    )
    async with gateway(options.binary, address) as process:
        idle = peak(process)
        (alone, _) = await upload(address, upstream, 0, body)
        after_one = peak(process)
        assert alone == 200, alone
        outcomes = await asyncio.gather(*(upload(address, upstream, i, body) for i in range(options.uploads)))
        most = peak(process)
        # A full house in which nothing moves, so that the time of a refusal is the gateway's own.
        waiting = [asyncio.create_task(upload(address, upstream, SLOW + i, body)) for i in range(outcomes_of(outcomes)[200] + 1)]
        await asyncio.sleep(SLOW_SECONDS / 2)
        others = [await upload(address, upstream, 0, body) for _ in range(30)]
        await asyncio.gather(*waiting)
    counts = outcomes_of(outcomes)
    print(f"idle {idle:.0f} MB; one upload of {options.mb} MB: {after_one - idle:.0f} MB more")
    print(f"{options.uploads} at once: {dict(counts)}; largest {most:.0f} MB")
    waits = sorted(took * 1000 for status, took in others if status == 503) or [0]
    print(f"{options.mb} MB more in a full house: {dict(outcomes_of(others))}, ", end="")
    print(f"refused after {waits[len(waits) // 2]:.0f} ms (median), {waits[-1]:.0f} ms (at most)")
    return set(counts) <= {200, 503} and most < 0.9 * 1024


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--binary", default=str(ROOT / "target/release/imagegate"))
    arguments.add_argument("--uploads", type=int, default=500)
    arguments.add_argument("--mb", type=int, default=20)
    sys.exit(0 if asyncio.run(measure(arguments.parse_args())) else 1)
