"""Thousands of small requests that wait for their provider at once: whether all are answered, and in how much memory.

    cargo build --release && python3 benches/admission/waiting.py

5,000 requests come together, each on a connection of its own, and the provider takes two seconds for an image of 1 KB. Ends
with an error where one is not answered.
"""

import argparse
import asyncio
import base64
import collections
import json
import os
import re
import sys

from crowd import ROOT, gateway, peak, picture, port

IMAGE = base64.b64encode(picture(0) + os.urandom(700)).decode()
BODY = json.dumps({"model": "gpt-image-1", "prompt": "a lighthouse at dusk"})
LENGTH = re.compile(rb"(?i)content-length: (\d+)")


async def provide(reader, writer):
    """OpenAI's generations, after two seconds."""
    answer = json.dumps({"created": 1, "data": [{"b64_json": IMAGE}]}).encode()
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(answer)}\r\n\r\n".encode()
    try:
        while asked := await reader.readuntil(b"\r\n\r\n"):
            await reader.readexactly(int(LENGTH.search(asked)[1]))
            await asyncio.sleep(2)
            writer.write(head + answer)
    except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
        pass
    finally:
        writer.close()


async def ask(address, upstream):
    reader, writer = await asyncio.open_connection(*address)
    head = [
        "POST /v1/images/generations HTTP/1.1", "host: localhost", "content-type: application/json",
        f"content-length: {len(BODY)}", "authorization: Bearer sk-bench", "x-portkey-provider: openai",
        f"x-portkey-custom-host: {upstream}/v1", "\r\n",
    ]
    writer.write(("\r\n".join(head) + BODY).encode())
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        body = await reader.readexactly(int(LENGTH.search(head)[1]))
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        return type(error).__name__
    finally:
        writer.close()
    status = int(head.split()[1])
    return status if status != 200 or json.loads(body)["data"][0]["b64_json"] == IMAGE else "200 with another image"


async def measure(options):
    server = await asyncio.start_server(provide, "127.0.0.1", 0, backlog=options.requests)
    upstream = "http://127.0.0.1:%d" % server.sockets[0].getsockname()[1]
    address = ("127.0.0.1", port())
    async with gateway(options.binary, address) as process:
        idle = peak(process)
        outcomes = await asyncio.gather(*(ask(address, upstream) for _ in range(options.requests)))
        each = (peak(process) - idle) * 1024 / options.requests
    print(f"{options.requests} at once: {dict(collections.Counter(outcomes))}; {each:.0f} KB each")
    return set(outcomes) == {200}


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--binary", default=str(ROOT / "target/release/imagegate"))
    arguments.add_argument("--requests", type=int, default=5000)
    sys.exit(0 if asyncio.run(measure(arguments.parse_args())) else 1)
