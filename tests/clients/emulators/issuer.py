"""An OpenID Connect issuer: it publishes keys and signs tokens with them, good ones and others."""

import base64
import hashlib
import hmac
import json
import time

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from .server import Emulator, Reply


def encode(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def number(value, length):
    return encode(value.to_bytes(length, "big"))


class Issuer(Emulator):
    """`audience` is whom its tokens are for."""

    audience = "imagegate"

    def __init__(self):
        super().__init__()
        self.is_away = False
        self.published = {}  # by id
        self.key = self.publish("first")

    def publish(self, kid, kind="RSA"):
        """Adds a key."""
        private = (
            rsa.generate_private_key(public_exponent=65537, key_size=2048)
            if kind == "RSA"
            else ec.generate_private_key(ec.SECP256R1())
        )
        self.published[kid] = private
        return private

    def answer(self, request):
        if self.is_away:
            return Reply(503, b"away", {"content-type": "text/plain"})
        if request.path == "/.well-known/openid-configuration":
            return Reply.json(200, {"issuer": self.url, "jwks_uri": self.url + "/keys"})
        if request.path == "/keys":
            return Reply.json(200, self.key_set())
        return Reply(404, b"not found", {"content-type": "text/plain"})

    def key_set(self):
        return {"keys": [jwk(kid, private.public_key()) for kid, private in self.published.items()]}

    def asked_for_keys(self):
        return sum(request.path == "/keys" for request in self.requests)

    def token(self, kid="first", private=None, alg=None, **claims):
        """A token with some other claims; None leaves one out."""
        private = private or self.published[kid]
        alg = alg or ("RS256" if isinstance(private, rsa.RSAPrivateKey) else "ES256")
        now = int(time.time())
        claims = {"iss": self.url, "aud": self.audience, "sub": "batch-7", "iat": now, "exp": now + 300, **claims}
        claims = {name: value for name, value in claims.items() if value is not None}
        parts = [{"alg": alg, "kid": kid, "typ": "JWT"}, claims]
        signed = ".".join(encode(json.dumps(part).encode()) for part in parts)
        return f"{signed}.{encode(sign(private, alg, signed.encode()))}"


def jwk(kid, public):
    if isinstance(public, rsa.RSAPublicKey):
        numbers = public.public_numbers()
        return {"kty": "RSA", "kid": kid, "use": "sig", "n": number(numbers.n, 256), "e": number(numbers.e, 3)}
    numbers = public.public_numbers()
    return {"kty": "EC", "crv": "P-256", "kid": kid, "x": number(numbers.x, 32), "y": number(numbers.y, 32)}


def sign(private, alg, signed):
    if alg == "none":
        return b""
    if alg == "HS256":
        # The attack on verifiers that let the token choose: the public key, which is no secret, as the secret.
        pem = private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return hmac.digest(pem, signed, hashlib.sha256)
    if alg == "RS256":
        return private.sign(signed, padding.PKCS1v15(), hashes.SHA256())
    r, s = decode_dss_signature(private.sign(signed, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")
