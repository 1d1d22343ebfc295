"""A small HTTP/1.1 server for emulators. It keeps every request, sees when a caller hangs up, and can break
an answer in every way that a network can.

It deliberately knows nothing of any provider; see openai.py and stability.py for those.
"""

import asyncio
import json
import re
import socket
import struct
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

_loop = None
_loop_lock = threading.Lock()


def _shared_loop():
    """One event loop, in one background thread, serves all emulators of the test process."""
    global _loop
    with _loop_lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="emulators", daemon=True).start()
        return _loop


@dataclass
class Part:
    """One part of a multipart body."""

    name: str
    filename: str | None
    content_type: str | None
    data: bytes

    @property
    def text(self):
        return self.data.decode()


@dataclass
class Request:
    """What a caller sent."""

    method: str
    target: str
    headers: dict  # by lower-case name
    body: bytes
    arrived_at: float
    closed_at: float | None = None  # when the caller hung up, if it did before it had its answer
    answered: bool = False
    closed: threading.Event = field(default_factory=threading.Event)

    @property
    def path(self):
        return urlsplit(self.target).path

    @property
    def query(self):
        return {name: values[-1] for name, values in parse_qs(urlsplit(self.target).query).items()}

    @property
    def content_type(self):
        return self.headers.get("content-type", "").split(";")[0].strip().lower()

    def json(self):
        return json.loads(self.body)

    @property
    def parts(self):
        """Parts of the multipart body, in order."""
        found = re.search(r'boundary="?([^";]+)"?', self.headers.get("content-type", ""))
        if not found:
            return []
        parts = []
        for chunk in (b"\r\n" + self.body).split(b"\r\n--" + found[1].encode())[1:-1]:
            head, _, data = chunk.removeprefix(b"\r\n").partition(b"\r\n\r\n")
            headers = {}
            for line in head.decode().split("\r\n"):
                key, _, value = line.partition(":")
                headers[key.strip().lower()] = value.strip()
            disposition = headers.get("content-disposition", "")
            name = re.search(r'[; ]name="([^"]*)"', disposition)
            filename = re.search(r'filename="([^"]*)"', disposition)
            parts.append(
                Part(
                    name=name[1] if name else "",
                    filename=filename[1] if filename else None,
                    content_type=headers.get("content-type"),
                    data=data,
                )
            )
        return parts

    @property
    def form(self):
        """Text fields of the multipart body."""
        return {part.name: part.text for part in self.parts if part.filename is None}

    @property
    def files(self):
        """File parts of the multipart body."""
        return [part for part in self.parts if part.filename is not None]


@dataclass
class Reply:
    """What an emulator answers."""

    status: int = 200
    body: bytes = b""
    headers: dict = field(default_factory=dict)
    stream: list | None = None  # chunks, each sent at once

    @classmethod
    def json(cls, status, value, headers=None):
        return cls(status, json.dumps(value).encode(), {"content-type": "application/json", **(headers or {})})


class Refused(Exception):
    """Raised by an emulator's checks: the provider's own error."""

    def __init__(self, reply):
        super().__init__(reply.body.decode(errors="replace"))
        self.reply = reply


class _Protocol(asyncio.StreamReaderProtocol):
    """Notes the moment at which the peer hangs up, even while nobody reads."""

    def __init__(self, reader, connected):
        super().__init__(reader, connected)
        self.current = None
        self.gone = asyncio.Event()

    def eof_received(self):
        self._note()
        return super().eof_received()

    def connection_lost(self, exc):
        self._note()
        super().connection_lost(exc)

    def _note(self):
        self.gone.set()
        if self.current is not None and not self.current.answered and self.current.closed_at is None:
            self.current.closed_at = time.monotonic()
            self.current.closed.set()


class Connection:
    """One caller's connection, as faults see it."""

    def __init__(self, reader, writer, protocol):
        self.reader, self.writer, self.protocol = reader, writer, protocol

    async def read_request(self):
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        lines = head.decode("latin-1").split("\r\n")
        method, target, _ = lines[0].split(" ", 2)
        headers = {}
        for line in lines[1:]:
            name, colon, value = line.partition(":")
            if colon:
                headers[name.strip().lower()] = value.strip()
        if headers.get("expect", "").lower() == "100-continue":
            self.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if headers.get("transfer-encoding", "").lower() == "chunked":
            body = b""
            while size := int((await self.reader.readline()).split(b";")[0], 16):
                body += await self.reader.readexactly(size)
                await self.reader.readline()
            await self.reader.readline()
        else:
            body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        return Request(method, target, headers, body, time.monotonic())

    def write_head(self, status, headers):
        lines = [f"HTTP/1.1 {status} Status"] + [f"{name}: {value}" for name, value in headers.items()]
        self.writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())

    async def send(self, reply):
        if reply.stream is None:
            self.write_head(reply.status, {**reply.headers, "content-length": len(reply.body)})
            self.writer.write(reply.body)
        else:
            self.write_head(reply.status, {**reply.headers, "transfer-encoding": "chunked"})
            for chunk in reply.stream:
                self.writer.write(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
                await self.writer.drain()
            self.writer.write(b"0\r\n\r\n")
        await self.writer.drain()

    def reset(self):
        """Ends the connection with a TCP reset instead of a farewell."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


class Emulator:
    """Base of the providers. A subclass has `answer(request) -> Reply` and `error(status, headers) -> Reply`.

    `script` holds what happens to the next requests, one entry each: None for a normal answer, else a fault from
    faults.py. When it is empty, `always` holds for every request.
    """

    def __init__(self):
        self.requests = []
        self.script = deque()
        self.always = None
        self.gate = threading.Event()  # what `hold` and `hang` wait for
        self._changed = threading.Condition()
        self._loop = _shared_loop()
        self._connections = set()
        self._server = self._run(self._listen())
        self.address = "127.0.0.1:%d" % self._server.sockets[0].getsockname()[1]
        self.url = f"http://{self.address}"

    def answer(self, request):
        raise NotImplementedError

    def error(self, status, headers=None):
        raise NotImplementedError

    @property
    def calls(self):
        """Requests for images, without look-ups of results and files."""
        return [request for request in self.requests if request.method == "POST"]

    def wait_for_calls(self, count, timeout=10):
        """Waits until `count` requests have arrived, and gives them."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.calls) >= count, timeout):
                raise AssertionError(f"{len(self.calls)} of {count} requests arrived within {timeout} s")
        return self.calls

    def release(self):
        """Lets every held request go on."""
        self.gate.set()

    def close(self):
        self.gate.set()
        self._run(self._close())

    def refuse_connections(self):
        """From now on, nobody listens here."""
        self._run(self._close())

    def _run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    async def _listen(self):
        def factory():
            reader = asyncio.StreamReader(limit=2**20)
            protocol = _Protocol(reader, lambda r, w: self._serve(r, w, protocol))
            return protocol

        return await asyncio.get_running_loop().create_server(factory, "127.0.0.1", 0, backlog=256)

    async def _close(self):
        self._server.close()
        for writer in list(self._connections):
            writer.transport.abort()

    async def _serve(self, reader, writer, protocol):
        self._connections.add(writer)
        connection = Connection(reader, writer, protocol)
        try:
            while (request := await connection.read_request()) is not None:
                protocol.current = request
                fault = self._next_fault() if request.method == "POST" else None
                with self._changed:
                    self.requests.append(request)
                    self._changed.notify_all()
                if fault is None:
                    await connection.send(self.reply_to(request))
                    request.answered = True
                elif not await fault(self, request, connection):
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._connections.discard(writer)
            writer.close()

    def _next_fault(self):
        return self.script.popleft() if self.script else self.always

    def reply_to(self, request):
        """The provider's answer: strict, but well."""
        try:
            return self.answer(request)
        except Refused as refused:
            return refused.reply
