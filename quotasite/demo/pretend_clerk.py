"""A local stand-in for Clerk: session tokens, signed deliveries, the list of users."""

import json
import secrets
import time
from base64 import b64encode
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from joserfc import jwt
from joserfc.jwk import RSAKey

ISSUER = "https://clerk.demo.example"
ORIGIN = "http://localhost:3000"
USER_COUNT = 1_200  # in three pages


def session_token(
    key: rsa.RSAPrivateKey | str, user_id: str, *, issuer: str = ISSUER, origin: str = ORIGIN, life: int = 60
) -> str:
    """Return a session token like Clerk's, signed with a private key (or its PEM); `life` is in seconds."""
    now = int(time.time())
    times = {"iat": now, "nbf": now, "exp": now + life}
    claims = {"iss": issuer, "azp": origin, "sub": user_id, "sid": "sess_demo", **times}
    return jwt.encode({"alg": "RS256", "kid": "ins_demo"}, claims, RSAKey.import_key(key))


class PretendClerk:
    """A Clerk instance with its own key pair, signing secret and users."""

    def __init__(self) -> None:
        self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.secret = "whsec_" + b64encode(secrets.token_bytes(24)).decode()
        self.users = [
            {"id": f"user_listed_{n:04}", "created_at": n, "updated_at": 1_700_000_000_000 + n}
            for n in range(USER_COUNT)
        ]

    @property
    def public_key(self) -> str:
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        return self.key.public_key().public_bytes(serialization.Encoding.PEM, form).decode()

    @property
    def private_key(self) -> str:
        form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        return self.key.private_bytes(serialization.Encoding.PEM, form, plain).decode()

    def token(self, user_id: str, life: int = 60) -> str:
        return session_token(self.key, user_id, life=life)

    def delivery(self, event_type: str, data: dict[str, Any]) -> tuple[bytes, dict[str, str]]:
        """Return the body and headers of a delivery, signed by the Svix library."""
        from svix.webhooks import Webhook

        body = json.dumps({"object": "event", "type": event_type, "data": data})
        message_id, now = f"msg_{secrets.token_hex(8)}", datetime.now(UTC)
        signature = Webhook(self.secret).sign(message_id, now, body)
        headers = {"svix-id": message_id, "svix-timestamp": str(int(now.timestamp()))}
        return body.encode(), {**headers, "svix-signature": signature, "Content-Type": "application/json"}

    def page(self, path: str) -> object:
        """Return what the Backend API returns to a GET of `path`."""
        url = urlsplit(path)
        query = parse_qs(url.query)
        if url.path.endswith("/count"):
            return {"total_count": len(self.users)}
        after = query.get("starting_after", [""])[0]
        start = next((n + 1 for n, user in enumerate(self.users) if user["id"] == after), 0)
        return self.users[start : start + int(query["limit"][0])]

    def handler(self) -> type[BaseHTTPRequestHandler]:
        """Return a request handler that answers like the Backend API, for a server on loopback."""
        clerk = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(json.dumps(clerk.page(self.path)).encode())

            def log_message(self, *args: object) -> None:
                """Log nothing: the tour does not show requests to Clerk."""

        return Handler
