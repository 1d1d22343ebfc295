"""A TCP connection to somewhere, whose answers are as late as somebody says: `link.delay` seconds, from now on."""

import queue
import socket
import threading
import time


class Link:
    def __init__(self, port):
        self.delay = 0
        self._to = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._to)
            except OSError:
                return
            due = queue.Queue()
            for work in (self._forward, self._receive, self._deliver):
                threading.Thread(target=work, args=(client, server, due), daemon=True).start()

    def _forward(self, client, server, _):
        copy(client, server.sendall)
        end(server)

    def _receive(self, _, server, due):
        copy(server, lambda data: due.put((time.monotonic() + self.delay, data)))
        due.put((0, b""))

    def _deliver(self, client, _, due):
        while True:
            at, data = due.get()
            time.sleep(max(0, at - time.monotonic()))
            if not data:
                return end(client)
            try:
                client.sendall(data)
            except OSError:
                return

    def close(self):
        self._listener.close()


def copy(connection, give):
    try:
        while data := connection.recv(65536):
            give(data)
    except OSError:
        pass


def end(connection):
    try:
        connection.shutdown(socket.SHUT_WR)
    except OSError:
        pass
