"""An OpenID Connect provider: people sign in to it with a browser, and it gives a code, and for that a token. As strict as the
standard wants it."""

import base64
import hashlib
import html
import json
import secrets
from urllib.parse import parse_qs, unquote_plus, urlencode, urlsplit

from .issuer import Issuer, encode
from .server import Reply

PAGE = """<!doctype html><html lang="en"><title>Platform</title><h1>Who are you?</h1>
<form method="post" action="/decision"><input type="hidden" name="asked" value="%s">
<label>Name <input name="name"></label><button name="do" value="allow">Allow</button>
<button name="do" value="deny">Deny</button></form></html>"""


class OpenID(Issuer):
    """`secret` is what the client has to know, or None. `more` are claims of the next tokens, over the usual ones."""

    client = "dashboard"

    def __init__(self, host="localhost", secret=None, methods=None):
        super().__init__()
        # Another site than the gateway's, as it is elsewhere.
        self.url = f"http://{host}:{self.address.rsplit(':', 1)[1]}"
        self.secret, self.methods = secret, methods
        self.more, self.codes, self.given, self.seen = {}, {}, [], []
        self.private = None  # signs instead of its own key

    def answer(self, request):
        if self.is_away:
            return Reply(503, b"away", {"content-type": "text/plain"})
        match request.path:
            case "/.well-known/openid-configuration":
                methods = {"token_endpoint_auth_methods_supported": self.methods} if self.methods else {}
                places = {"authorization_endpoint": self.url + "/authorize", "token_endpoint": self.url + "/token"}
                return Reply.json(200, {"issuer": self.url, "jwks_uri": self.url + "/keys", **places, **methods})
            case "/authorize":
                page = PAGE % html.escape(json.dumps(self.checked(request.query)))
                return Reply(200, page.encode(), {"content-type": "text/html"})
            case "/decision":
                form = fields(request.body)
                back = self.decide(json.loads(form["asked"]), form["name"], form["do"] == "allow")
                return Reply(303, b"", {"location": back})
            case "/token":
                return self.redeem(request)
        return super().answer(request)

    def checked(self, asked):
        assert asked["response_type"] == "code" and asked["client_id"] == self.client, asked
        assert "openid" in asked["scope"].split() and asked["code_challenge_method"] == "S256", asked
        assert urlsplit(asked["redirect_uri"]).path == "/sign-in/callback", asked
        assert min(len(asked[name]) for name in ("state", "nonce", "code_challenge")) >= 43, asked
        self.seen.append(asked)
        return asked

    def decide(self, asked, name="alice", allows=True):
        """Where the browser is sent back to."""
        if not allows:
            said = {"error": "access_denied", "error_description": "not <b>you</b>", "state": asked["state"]}
            return asked["redirect_uri"] + "?" + urlencode(said)
        code = secrets.token_urlsafe(16)
        self.codes[code] = (asked, name)
        return asked["redirect_uri"] + "?" + urlencode({"code": code, "state": asked["state"], "iss": self.url})

    def signs_in(self, address, name="alice", allows=True):
        """The same without a browser."""
        parts = urlsplit(address)
        assert f"{parts.scheme}://{parts.netloc}{parts.path}" == self.url + "/authorize"
        return self.decide(self.checked({k: v[0] for k, v in parse_qs(parts.query).items()}), name, allows)

    def redeem(self, request):
        form = fields(request.body)
        if not self.knows(request, form):
            return Reply.json(401, {"error": "invalid_client", "error_description": "secret " + str(form)})
        asked, name = self.codes.pop(form["code"], (None, None))
        challenge = encode(hashlib.sha256(form.get("code_verifier", "").encode()).digest())
        right = {"redirect_uri": form["redirect_uri"], "client_id": form["client_id"], "code_challenge": challenge}
        if asked is None or form["grant_type"] != "authorization_code" or any(asked[k] != v for k, v in right.items()):
            return Reply.json(400, {"error": "invalid_grant"})
        claims = {"aud": self.client, "sub": name, "nonce": asked["nonce"], **self.more}
        token = self.token(private=self.private, **claims)
        self.given.append(token)
        return Reply.json(200, {"access_token": "at-" + name, "token_type": "Bearer", "id_token": token})

    def knows(self, request, form):
        if self.secret is None:
            return True
        if self.methods == ["client_secret_post"]:
            return form.get("client_secret") == self.secret
        kind, _, pair = request.headers.get("authorization", "").partition(" ")
        client, _, secret = base64.b64decode(pair).decode().partition(":")
        return kind == "Basic" and (unquote_plus(client), unquote_plus(secret)) == (self.client, self.secret)


def fields(body):
    return {name: values[0] for name, values in parse_qs(body.decode(), keep_blank_values=True).items()}
