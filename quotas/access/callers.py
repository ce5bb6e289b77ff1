"""Authentication by the Authorization header: a signed-in user, or one of the product's own servers."""

from dataclasses import dataclass
from typing import Literal

from rest_framework.authentication import BaseAuthentication
from rest_framework.request import Request

from quotas.access import session_tokens
from quotas.access.jwks import WouldWait
from quotas.access.refusals import Fault, Refused
from quotas.access.service_keys import Service, service_of
from quotas.rules.values import Actor


@dataclass(frozen=True, slots=True)
class User:
    """The Clerk user whose session token came with the request."""

    user_id: str
    act: str = ""  # the impersonator, if any
    is_authenticated: Literal[True] = True

    @property
    def actor(self) -> Actor:
        return Actor("user", self.user_id, self.act)


Caller = User | Service


class BearerAuthentication(BaseAuthentication):
    """`Authorization: Bearer` with a session token from Clerk, or a service key (`qs_…`)."""

    def authenticate(self, request: Request) -> tuple[Caller, None]:
        return caller_from(request.headers.get("Authorization", "")), None

    def authenticate_header(self, request: Request) -> str:
        return "Bearer"


def caller_from(header: str, *, may_wait: bool = True) -> Caller:
    """Return the caller that an Authorization header proves.

    Raises Refused (a 401), or KeysUnavailable (a 503). If `may_wait` is false, raises WouldWait for a service
    key, and for a session token whose key must be fetched.
    """
    header = header.strip()
    if not header:
        raise Refused(Fault.TOKEN_MISSING)
    scheme, _, token = header.partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token:
        raise Refused(Fault.AUTHORIZATION_MALFORMED)
    if token.startswith("qs_"):
        if not may_wait:
            raise WouldWait
        return service_of(token)
    session = session_tokens.verify(token, may_wait=may_wait)
    return User(session.user_id, session.act or "")
