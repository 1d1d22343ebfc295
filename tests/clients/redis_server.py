"""A real Redis of a test's own, and what can become of it: gone, gone with its data, frozen, out of reach.

Knows nothing of what the gateway keeps there.
"""

import asyncio
import re
import secrets
import shutil
import signal
import socket
import subprocess
import threading
import time


def needs():
    """What is missing on this machine, as a sentence."""
    if not shutil.which("redis-server"):
        return "these tests need redis-server: apt-get install redis-server, on Debian"
    return None


class RedisError(Exception):
    """What Redis answers to a command that it does not take."""


class Connection:
    """One client of Redis."""

    def __init__(self, port, password):
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self._file = self._socket.makefile("rb")
        self.command("AUTH", password)

    def command(self, *parts):
        """Bytes, numbers, lists or None, as Redis answers."""
        self.send(*parts)
        return self.read()

    def send(self, *parts):
        parts = [part if isinstance(part, bytes) else str(part).encode() for part in parts]
        framed = b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)
        self._socket.sendall(b"*%d\r\n%s" % (len(parts), framed))

    def read(self):
        line = self._file.readline()
        if not line:
            raise ConnectionError("Redis hung up")
        kind, rest = line[:1], line[1:-2]
        match kind:
            case b"+":
                return rest
            case b"-":
                raise RedisError(rest.decode())
            case b":":
                return int(rest)
            case b"$":
                return None if rest == b"-1" else self._file.read(int(rest) + 2)[:-2]
            case _:
                return None if rest == b"-1" else [self.read() for _ in range(int(rest))]

    def wait_forever(self):
        """From now on `read` takes as long as it takes."""
        self._socket.settimeout(None)

    def close(self):
        # What reads in another thread is woken by this, and not by closing alone.
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._socket.close()


class Redis:
    """redis-server on a port of its own, which stays the same from start to start."""

    def __init__(self, folder):
        self._folder = folder
        self._folder.mkdir()
        self._process = self._listener = None
        self.password = "pw-" + secrets.token_hex(12)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    def url(self, port=None, password=None):
        return f"redis://:{password or self.password}@127.0.0.1:{port or self.port}/0"

    def start(self):
        """With what data it was stopped with, if it was."""
        lines = [f"port {self.port}", "bind 127.0.0.1", f"requirepass {self.password}", 'save ""', "appendonly no"]
        self._process = subprocess.Popen(
            ["redis-server", "-"],
            cwd=self._folder,
            stdin=subprocess.PIPE,
            stdout=(self._folder / "log").open("ab"),
            stderr=subprocess.STDOUT,
        )
        with self._process.stdin as config:
            config.write("\n".join(lines).encode())
        deadline = time.monotonic() + 20
        while True:
            try:
                return self.command("PING")
            except (OSError, RedisError):
                ended = self._process.poll() is not None
                assert not ended and time.monotonic() < deadline, (self._folder / "log").read_text()
                time.sleep(0.02)

    def command(self, *parts):
        """One command, over a connection of its own."""
        connection = Connection(self.port, self.password)
        try:
            return connection.command(*parts)
        finally:
            connection.close()

    def kill(self, keep_data=False):
        """It is gone at once, as in a crash."""
        if keep_data:
            self.command("SAVE")
        else:
            (self._folder / "dump.rdb").unlink(missing_ok=True)
        self._process.kill()
        self._process.wait(10)

    def freeze(self):
        """It answers no more, but whoever connects to it does not know."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self):
        self._process.send_signal(signal.SIGCONT)

    def keys(self, pattern="*"):
        return sorted(key.decode() for key in self.command("KEYS", pattern))

    def calls(self, command):
        """How often it was asked something."""
        told = re.search(rf"cmdstat_{command}:calls=(\d+)", self.command("INFO", "commandstats").decode())
        return int(told[1]) if told else 0

    def hear(self, channel):
        """A list that what is published fills."""
        heard, connection = [], Connection(self.port, self.password)
        connection.wait_forever()
        connection.command("SUBSCRIBE", channel)

        def listen():
            try:
                while True:
                    heard.append(connection.read()[2])
            except (OSError, ValueError):
                pass

        threading.Thread(target=listen, daemon=True).start()
        self._listener = connection
        return heard

    def close(self):
        if self._listener is not None:
            self._listener.close()
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(10)


class Network:
    """A way to a server on which connections can die without a word, as they do when a host or a NAT in between is
    replaced: what they send is lost, and they are never told."""

    def __init__(self, port):
        self._port = port
        self._ways = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = self._run(asyncio.start_server(self._carry, "127.0.0.1", 0))
        self.port = self._server.sockets[0].getsockname()[1]

    def lose_connections(self):
        """Those of now. New ones work."""
        for way in self._ways:
            way.is_lost = True

    def lose_listeners(self):
        """Those that carry nothing unless something is published, and are the first that a NAT forgets."""
        for way in self._ways:
            way.is_lost |= way.has_subscribed

    def _run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    async def _carry(self, reader, writer):
        there, back = await asyncio.open_connection("127.0.0.1", self._port)
        way = _Way()
        self._ways.append(way)
        try:
            await asyncio.gather(way.carry(reader, back), way.carry(there, writer))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            back.close()
            writer.close()

    def close(self):
        async def end():
            self._server.close()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        self._run(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)


class _Way:
    """One connection through it."""

    def __init__(self):
        self.is_lost = self.has_subscribed = False

    async def carry(self, reader, writer):
        while data := await reader.read(1 << 16):
            self.has_subscribed |= b"SUBSCRIBE" in data
            if not self.is_lost:
                writer.write(data)
                await writer.drain()
        if self.is_lost:
            # Nobody is told that the other side has left.
            await asyncio.Event().wait()
        writer.close()
