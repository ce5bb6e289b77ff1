"""From the Authorization header to the user who asks."""

from dataclasses import dataclass
from typing import Literal

from rest_framework.authentication import BaseAuthentication
from rest_framework.request import Request

from quotas import tokens
from quotas.policy import Actor
from quotas.problems import unauthorized


@dataclass(frozen=True, slots=True)
class Principal:
    """The Clerk user whose session token came with the request."""

    user_id: str
    act: str = ""  # who stands behind an impersonated user
    is_authenticated: Literal[True] = True

    @property
    def actor(self) -> Actor:
        return Actor("user", self.user_id, self.act)


class SessionTokenAuthentication(BaseAuthentication):
    """`Authorization: Bearer <session token>`; a request without one is a 401 of its own kind."""

    def authenticate(self, request: Request) -> tuple[Principal, None]:
        header = request.headers.get("Authorization", "").strip()
        if not header:
            raise unauthorized(
                "token_missing", "Send the session token: Authorization: Bearer <await getToken()>."
            )
        scheme, _, token = header.partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise unauthorized("token_malformed", "The Authorization header must be: Bearer <token>.")
        session = tokens.verify(token.strip())
        return Principal(session.user_id, session.act or ""), None

    def authenticate_header(self, request: Request) -> str:
        return "Bearer"
