"""OAuth 2.0 token endpoints, with what a provider believes of the tokens that they gave."""

import base64
import json
import time
from urllib.parse import parse_qsl

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from .server import Emulator, Refused, Reply

JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"
CLOUD_PLATFORM = "https://www.googleapis.com/auth/cloud-platform"


def refuse(error, description, status=400):
    raise Refused(Reply.json(status, {"error": error, "error_description": description}))


class TokenEndpoint(Emulator):
    """Gives tokens to whoever proves who it is; `grant` looks at the proof."""

    path = "/token"
    lifetime_s = 3599

    def __init__(self):
        super().__init__()
        self.ends = {}  # of tokens

    @property
    def address_of_tokens(self):
        return self.url + self.path

    def answer(self, request):
        if request.path != self.path:
            return Reply(404, b"not found", {"content-type": "text/plain"})
        if request.method != "POST" or request.content_type != "application/x-www-form-urlencoded":
            refuse("invalid_request", "The request must be a form.")
        pairs = parse_qsl(request.body.decode(), keep_blank_values=True, strict_parsing=True)
        if len(dict(pairs)) != len(pairs):
            refuse("invalid_request", "A parameter is repeated.")
        self.grant(dict(pairs))
        token = f"token-{len(self.requests)}-of-{self.address}"
        self.ends[token] = time.monotonic() + self.lifetime_s
        return Reply.json(200, {"access_token": token, "expires_in": self.lifetime_s, "token_type": "Bearer"})

    def grant(self, form):
        raise NotImplementedError

    def error(self, status, headers=None):
        body = {"error": "temporarily_unavailable", "error_description": "Try again later."}
        return Reply.json(status, body, headers)

    def admits(self, authorization):
        """Whether a request with this header comes with a token that is good."""
        scheme, _, token = authorization.partition(" ")
        return scheme == "Bearer" and time.monotonic() < self.ends.get(token, 0)

    def revoke(self):
        """No token is good any more."""
        self.ends.clear()


class GoogleTokens(TokenEndpoint):
    """Google's, with one service account."""

    email = "painter@art-1.iam.gserviceaccount.com"

    def __init__(self):
        super().__init__()
        self.private_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)

    @property
    def account(self):
        """The account's key file."""
        pem = self.private_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return {
            "type": "service_account",
            "project_id": "art-1",
            "private_key_id": "key-1",
            "private_key": pem.decode(),
            "client_email": self.email,
            "client_id": "1",
            "auth_uri": self.url + "/auth",
            "token_uri": self.address_of_tokens,
        }

    def grant(self, form):
        if set(form) != {"grant_type", "assertion"} or form["grant_type"] != JWT_BEARER:
            refuse("unsupported_grant_type", "Invalid grant_type.")
        signed, _, signature = form["assertion"].rpartition(".")
        try:
            header, claims = (json.loads(decoded(part)) for part in signed.split("."))
            signature = decoded(signature)
        except ValueError:
            refuse("invalid_grant", "Bad JWT.")
        if header != {"alg": "RS256", "typ": "JWT", "kid": "key-1"}:
            refuse("invalid_grant", "Bad header of the JWT.")
        try:
            self.private_key.public_key().verify(signature, signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        except InvalidSignature:
            refuse("invalid_grant", "Invalid JWT Signature.")
        if set(claims) != {"iss", "scope", "aud", "iat", "exp"} or claims["iss"] != self.email:
            refuse("invalid_grant", "Invalid grant: account not found")
        if claims["aud"] != self.address_of_tokens:
            refuse("invalid_grant", "Invalid JWT: Failed audience check.")
        now = time.time()
        if not (claims["iat"] <= now + 60 and now < claims["exp"] <= claims["iat"] + 3600):
            refuse("invalid_grant", "Invalid JWT: Token must be a short-lived token (60 minutes).")
        if claims["scope"] != CLOUD_PLATFORM:
            refuse("invalid_scope", "Invalid OAuth scope or ID token audience provided.")


class EntraTokens(TokenEndpoint):
    """Entra ID's, with one tenant and one application."""

    tenant = "11111111-2222-3333-4444-555555555555"
    path = f"/{tenant}/oauth2/v2.0/token"
    client_id = "app-1"
    client_secret = "s3cret~of+the&app"

    @property
    def options(self):
        """The virtual key's fields for this application."""
        return {
            "azure_auth_mode": "entra",
            "azure_entra_tenant_id": self.tenant,
            "azure_entra_client_id": self.client_id,
            "azure_entra_client_secret": self.client_secret,
            "azure_entra_authority": self.url,
        }

    def grant(self, form):
        if set(form) != {"grant_type", "client_id", "client_secret", "scope"}:
            refuse("invalid_request", "AADSTS900144: The request body must contain other parameters.")
        if form["grant_type"] != "client_credentials":
            refuse("unsupported_grant_type", "AADSTS70003: The app requested an unsupported grant type.")
        if form["client_id"] != self.client_id:
            refuse("unauthorized_client", f"AADSTS700016: Application with identifier '{form['client_id']}' was not found.")
        if form["client_secret"] != self.client_secret:
            # Entra does not repeat the secret; the worst of proxies might.
            refuse("invalid_client", f"AADSTS7000215: Invalid client secret provided: {form['client_secret']}", 401)
        if form["scope"] != "https://cognitiveservices.azure.com/.default":
            refuse("invalid_scope", "AADSTS1002012: The provided value for scope is not valid.")


def decoded(part):
    if "=" in part:
        raise ValueError("padding")
    return base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=True)
