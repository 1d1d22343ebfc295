"""Addresses that callers bring: none of them reaches a protected listener, in whatever way it is spelled."""

import gzip
import http.server
import json
import struct
import threading
import time
import zlib

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


@pytest.fixture
def public():
    """Starts listeners on 127.0.0.2, which callers may reach: `public(answer)`."""
    listeners = []

    def public(answer):
        listeners.append(Listener("127.0.0.2", answer))
        return listeners[-1]

    yield public
    for listener in listeners:
        listener.close()


def answering(status, body=b"", **headers):
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler, _: send(handler, status, body, **headers)


def address(listener, path="/a.png"):
    return f"http://127.0.0.2:{listener.port}{path}"


def refused(gateway, openai_api, url):
    """What the caller is told."""
    answer = edit(gateway, url)
    assert answer.status_code == 400, answer.text[:500]
    assert openai_api.calls == []
    return openai_error(answer)["message"]


def test_a_redirect_leads_nowhere_that_is_protected(gateway, protected, public, openai_api):
    # No header can carry the others.
    targets = [url for url in spellings(protected.port) if all(32 < ord(letter) < 127 for letter in url)]
    asked = []
    listener = public(lambda handler, _: send(handler, 302, location=asked[-1]))
    for target in targets:
        asked.append(target)
        # What has no host of its own is below the listener, which redirects again.
        refused(gateway, openai_api, address(listener))
    assert protected.hits == []


def test_a_redirect_to_another_scheme_or_without_an_address_is_refused(gateway, public, openai_api):
    for headers in ({"location": "file:///etc/passwd"}, {"location": "ftp://127.0.0.2/a"}, {"location": "http://"}, {}):
        message = refused(gateway, openai_api, address(public(answering(302, **headers))))
        assert "redirects to where no image can be" in message


def test_a_few_redirects_lead_to_the_image(gateway, public, openai_api):
    last = public(answering(200, picture(512, 512), content_type="image/png"))
    hops = [public(answering(status, location=address(last))) for status in (301, 302, 303, 307, 308)]
    for hop in hops:
        assert edit(gateway, address(hop)).status_code == 200
    relative = public(lambda handler, _: send(handler, 302, location="/b.png") if handler.path == "/a.png" else
                      send(handler, 200, picture(512, 512)))
    assert edit(gateway, address(relative)).status_code == 200
    chain = [last]
    for _ in range(3):
        chain.append(public(answering(302, location=address(chain[-1]))))
    assert edit(gateway, address(chain[-1])).status_code == 200
    calls = len(openai_api.calls)
    one_more = public(answering(302, location=address(chain[-1])))
    answer = edit(gateway, address(one_more))
    assert answer.status_code == 400 and "more than 3 times" in openai_error(answer)["message"]
    assert len(openai_api.calls) == calls


def test_what_is_no_image_is_refused_and_not_shown(gateway, public, openai_api):
    html = b"<html><body>secret of an intranet page</body></html>"
    for body, headers, said in [
        (html, {"content_type": "text/html"}, "content type"),
        (html, {"content_type": "image/png"}, "html, not an image"),
        (html, {}, "html, not an image"),
        (b'{"secret": 1}', {"content_type": "application/json"}, "content type"),
        (b'{"secret": 1}', {"content_type": "application/octet-stream"}, "json, not an image"),
        (b"secret", {"content_type": "image/jpeg"}, "text, not an image"),
        (gzip.compress(bytes(1 << 24)), {"content_type": "image/png"}, "binary data, not an image"),
        (gzip.compress(picture(64, 64)), {"content_type": "image/png", "content_encoding": "gzip"}, "compressed"),
        (picture(64, 64), {"content_encoding": "br"}, "compressed"),
        (b"", {"content_type": "image/png"}, "no bytes"),
    ]:
        message = refused(gateway, openai_api, address(public(answering(200, body, **headers))))
        assert said in message and "secret" not in message and "127.0.0.2" not in message, message


def test_images_come_under_every_honest_content_type(gateway, public, openai_api):
    for content_type in ("image/png", "IMAGE/PNG; charset=binary", "application/octet-stream", "binary/octet-stream"):
        listener = public(answering(200, picture(512, 512), content_type=content_type))
        assert edit(gateway, address(listener)).status_code == 200, content_type


def test_no_compression_is_asked_for(gateway, public, openai_api):
    seen = []

    def answer(handler, _):
        seen.append(handler.headers.get("accept-encoding"))
        send(handler, 200, picture(512, 512))

    assert edit(gateway, address(public(answer))).status_code == 200
    assert seen == ["identity"]


def bomb(width, height):
    """A PNG of a few bytes that declares this size."""
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    pixels = zlib.compress(bytes(1 << 16))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_001, 30_000, 1_000_000])
def test_an_image_that_claims_to_be_huge_is_refused_unread(gateway, public, openai_api, side):
    message = refused(gateway, openai_api, address(public(answering(200, bomb(side, side), content_type="image/png"))))
    assert "megapixels" in message or "broken header" in message


def test_a_mask_that_claims_to_be_huge_is_refused_unread(gateway, stability_api):
    # Transparent parts are to change, which Stability wants to be white: it has to be drawn anew.
    body = {"model": "core", "prompt": "add a boat"}
    files = {"image": ("a.png", picture(512, 512), "image/png"), "mask": ("m.png", bomb(15_000, 15_000), "image/png")}
    answer = gateway.post("/images/edits", data=body, files=files, headers={"x-portkey-config": "pc-stability"})
    assert answer.status_code == 400 and "15000x15000" in openai_error(answer)["message"], answer.text[:500]
    assert stability_api.calls == []


def test_a_body_that_trickles_in_is_given_up(gateway, public, openai_api):
    def trickle(handler, listener):
        handler.send_response(200)
        handler.send_header("content-type", "image/png")
        handler.end_headers()
        try:
            for byte in picture(512, 512):
                handler.wfile.write(bytes([byte]))
                time.sleep(0.5)
        except OSError:
            pass

    started = time.monotonic()
    body = {"model": "gpt-image-1", "prompt": "add a boat", "images": [{"image_url": address(public(trickle))}]}
    answer = gateway.post("/images/edits", body=body, headers={"x-portkey-config": "pc-openai"}, timeout=60)
    assert answer.status_code == 400 and "longer than 30 s" in openai_error(answer)["message"]
    assert 25 < time.monotonic() - started < 45 and openai_api.calls == []


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
