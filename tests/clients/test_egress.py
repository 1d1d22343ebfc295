"""Addresses that callers bring: none of them reaches a protected listener, in whatever way it is spelled."""

import http.server
import json
import threading

import pytest

from emulators.pictures import picture
from gateway import founding_config, openai_error

MAX_FETCH = 64 << 20


class Listener:
    """An HTTP server that notes who connects."""

    def __init__(self, address, answer):
        self.hits, self.sent = [], 0
        listener = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                listener.hits.append(self.path)
                answer(self, listener)

            do_POST = do_GET

            def log_message(self, *_):
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def get_request(self):
                connection = super().get_request()
                listener.hits.append("connected")
                return connection

        self.server = Server((address, 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def send(handler, status, body=b"", **headers):
    handler.send_response(status)
    for name, value in {"content-length": str(len(body)), **headers}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


@pytest.fixture
def protected():
    """On 127.0.0.1, which nobody may reach."""
    listener = Listener("127.0.0.1", lambda handler, _: send(handler, 200, picture(64, 64)))
    yield listener
    listener.close()


@pytest.fixture
def gateway(serve, stability_api, openai_api):
    """Callers may reach 127.0.0.2, which stands for the public network here, and nothing else on this machine."""
    return serve(founding_config(stability_api, openai_api, egress={"allow": ["127.0.0.2/32"]}))


def spellings(port):
    """The same few addresses of this machine, as attackers spell them."""
    hosts = [
        "127.0.0.1", "127.1", "127.0.1", "2130706433", "0x7f000001", "0x7f.0.0.1", "0x7f.1", "0177.0.0.1", "0177.1",
        "017700000001", "127.0.0.1.", "127.000.000.001", "0x7F.0x0.0x0.0x1", "127.0x0.0.1", "127.0.0.0x1",
        "127.00.00.01", "127.0.0.3", "127.255.255.254", "0", "0.0.0.0", "0x0", "00", "0.0", "0.0.0.0.",
        "[::1]", "[0:0:0:0:0:0:0:1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::ffff:0:127.0.0.1]",
        "[0:0:0:0:0:ffff:7f00:0001]", "[::127.0.0.1]", "[::7f00:1]", "[2002:7f00:1::]", "[64:ff9b::7f00:1]",
        "[64:ff9b::127.0.0.1]", "[2001:0:7f00:1::]", "[::FFFF:127.0.0.1]", "[fe80::1]", "[fd00::1]",
        "localhost", "LOCALHOST", "localhost.", "LocalHost.", "a.localhost", "localhost.localdomain", "x.local",
        "router", "x.internal", "metadata.google.internal", "metadata", "instance-data",
        "%31%32%37.0.0.1", "127%2e0%2e0%2e1", "%6cocalhost", "１２７.0.0.1", "①②⑦.⓪.⓪.①", "127。0。0。1", "ⓛⓞⓒⓐⓛⓗⓞⓢⓣ",
        "user@127.0.0.1", "user:secret@127.0.0.1", "127.0.0.2@127.0.0.1", "127.0.0.2:80@127.0.0.1",
    ]
    urls = [f"http://{host}:{port}/a.png" for host in hosts]
    return urls + [
        f"HTTP://127.0.0.1:{port}/a.png", f"http:127.0.0.1:{port}/a.png", f"http:/127.0.0.1:{port}/a.png",
        f"http:///127.0.0.1:{port}/a.png", f"http:\\\\127.0.0.1:{port}\\a.png", f"http://127.0.0.1:{port}\\@127.0.0.2/",
        f"http://127.0.0.1\t:{port}/a.png", f"http://127.0.0.1:{port}\n/a.png", f" http://127.0.0.1:{port}/a.png",
        f"http://127.0.0.1:{port}#@127.0.0.2/", f"http://127.0.0.1:{port}?@127.0.0.2/", f"//127.0.0.1:{port}/a.png",
        f"ftp://127.0.0.1:{port}/a.png", f"gopher://127.0.0.1:{port}/_GET", f"file://127.0.0.1:{port}/etc/passwd",
        "file:///etc/passwd", f"ws://127.0.0.1:{port}/", f"jar:http://127.0.0.1:{port}!/", f"dict://127.0.0.1:{port}/",
    ]


def edit(gateway, url):
    body = {"model": "gpt-image-1", "prompt": "add a boat", "images": [{"image_url": url}]}
    return gateway.post("/images/edits", body=body, headers={"x-portkey-config": "pc-openai"})


def test_no_spelling_of_an_image_address_reaches_this_machine(gateway, protected, openai_api):
    urls = spellings(protected.port)
    assert len(urls) >= 60
    for url in urls:
        answer = edit(gateway, url)
        assert 400 <= answer.status_code < 500, f"{url!r}: {answer.status_code} {answer.text[:200]}"
        openai_error(answer)
    assert protected.hits == [] and openai_api.calls == []


def test_no_spelling_of_a_custom_host_reaches_this_machine(gateway, protected):
    for url in spellings(protected.port):
        if any(not 32 < ord(letter) < 127 for letter in url):
            continue  # no header can carry it
        headers = {"x-portkey-provider": "openai", "x-portkey-custom-host": url, "authorization": "Bearer sk-callers-own"}
        answer = gateway.post(body={"prompt": "x"}, key=None, headers={**headers, "x-portkey-api-key": "none"})
        assert answer.status_code >= 400, f"{url!r}: {answer.status_code}"
        config = json.dumps({"provider": "openai", "api_key": "sk-callers-own", "custom_host": url})
        assert gateway.post(body={"prompt": "x"}, headers={"x-portkey-config": config}).status_code >= 400
    assert protected.hits == []


def test_a_redirect_leads_nowhere(gateway, protected, openai_api):
    def redirect(handler, listener):
        send(handler, 302, location=f"http://127.0.0.1:{protected.port}/a.png")

    public = Listener("127.0.0.2", redirect)
    try:
        answer = edit(gateway, f"http://127.0.0.2:{public.port}/a.png")
        assert 400 <= answer.status_code < 500
        assert public.hits and protected.hits == [] and openai_api.calls == []
    finally:
        public.close()


def test_an_endless_image_is_given_up(gateway, openai_api):
    def endless(handler, listener):
        handler.send_response(200)
        handler.send_header("content-type", "image/png")
        handler.end_headers()
        chunk = picture(64, 64)[:8] + bytes(1 << 20)
        try:
            while listener.sent < 4 * MAX_FETCH:
                handler.wfile.write(chunk)
                listener.sent += len(chunk)
        except OSError:
            pass

    public = Listener("127.0.0.2", endless)
    try:
        answer = edit(gateway, f"http://127.0.0.2:{public.port}/a.png")
        assert 400 <= answer.status_code < 500, answer.text[:300]
        # What the sockets' buffers hold comes on top.
        assert public.sent < MAX_FETCH + (16 << 20)
        assert openai_api.calls == []
    finally:
        public.close()


def test_what_may_be_reached_is_fetched_and_sent_on_as_bytes(gateway, openai_api):
    public = Listener("127.0.0.2", lambda handler, _: send(handler, 200, picture(512, 512)))
    try:
        answer = edit(gateway, f"http://127.0.0.2:{public.port}/a.png")
        assert answer.status_code == 200, answer.text[:500]
        assert openai_api.calls[0].files[0].data == picture(512, 512)
    finally:
        public.close()
