"""A key pair like Clerk's, generated in each process, and session tokens signed with it."""

import base64
import json
import time
from typing import Any

from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from jwt.algorithms import RSAAlgorithm

ISSUER = "https://clerk.example.com"
PARTY = "https://app.example.com"
KID = "ins_2abc"
REMOVE: Any = object()  # as the value of a claim or header member: leave it out

private_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def pem_of(key: Any) -> str:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


public_pem = pem_of(private_key)
private_pem = private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def jwk(kid: str = KID, key: Any = private_key, **members: Any) -> dict[str, Any]:
    return RSAAlgorithm.to_jwk(key.public_key(), as_dict=True) | {"kid": kid, "use": "sig"} | members


def key_set_of(*kids: str) -> dict[str, Any]:
    """Return the public key as Clerk publishes it, under each of `kids`."""
    return {"keys": [jwk(kid) for kid in kids or (KID,)]}


def mint(
    *,
    header: dict[str, Any] | None = None,
    payload: bytes | None = None,
    key: Any = private_key,
    v2: bool = False,
    **claims: Any,
) -> str:
    """Return a genuine token except for what the arguments change; `payload` replaces all claims."""
    now = int(time.time())
    genuine = {
        "azp": PARTY,
        "exp": now + 60,
        "fva": [0, -1],
        "iat": now,
        "iss": ISSUER,
        "nbf": now - 10,
        "sid": "sess_2abc",
        "sub": "user_2abc",
    }
    new_in_v2 = {"v": 2, "sts": "active", "pla": "u:free"} if v2 else {}
    head = _without_removed({"alg": "RS256", "kid": KID, "typ": "JWT"} | (header or {}))
    body = _without_removed(genuine | new_in_v2 | claims)
    return sign(json.dumps(head).encode(), json.dumps(body).encode() if payload is None else payload, key)


def sign(header: bytes, payload: bytes, key: Any = private_key) -> str:
    """Sign with RS256, whatever the header states and whether or not the parts are JSON."""
    signed = f"{b64(header)}.{b64(payload)}"
    return f"{signed}.{b64(key.sign(signed.encode(), padding.PKCS1v15(), SHA256()))}"


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _without_removed(members: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value is not REMOVE}
