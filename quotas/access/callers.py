"""Authentication by the Authorization header: a signed-in user, or one of the product's own servers."""

from dataclasses import dataclass
from functools import partial

from quotas.access import session_tokens
from quotas.access.jwks import WouldWait
from quotas.access.refusals import Fault, Refused
from quotas.access.service_keys import Service, remembered, service_of
from quotas.rules.values import Actor
from quotas.store.steps import InThread, Steps


@dataclass(frozen=True, slots=True)
class User:
    """The Clerk user whose session token came with the request."""

    user_id: str
    act: str = ""  # the impersonator, if any

    @property
    def actor(self) -> Actor:
        return Actor("user", self.user_id, self.act)


Caller = User | Service


def identify(header: str) -> Steps[Caller]:
    """Return the caller that an Authorization header proves: a session token, or a service key (`qs_…`).

    A thread asks the database for a service key that is not remembered, and Clerk for the key of a token.
    Raises Refused (a 401), or KeysUnavailable (a 503).
    """
    token = _bearer_token(header)
    if token.startswith("qs_"):
        return remembered(token) or (yield InThread(partial(service_of, token)))
    try:
        session = session_tokens.verify(token, may_wait=False)
    except WouldWait:
        session = yield InThread(partial(session_tokens.verify, token))
    return User(session.user_id, session.act or "")


def _bearer_token(header: str) -> str:
    header = header.strip()
    if not header:
        raise Refused(Fault.TOKEN_MISSING)
    scheme, _, token = header.partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token:
        raise Refused(Fault.AUTHORIZATION_MALFORMED)
    return token
