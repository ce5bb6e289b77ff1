"""Why a caller is refused with a 401: every code, and its sentences."""

from enum import Enum, unique


@unique
class Fault(Enum):
    """What is wrong: a code, and a sentence that is safe in a header: ASCII, with nothing of the caller's.

    The first member with a code has its usual sentence, which docs/openapi.yaml shows.
    """

    TOKEN_MISSING = "token_missing", "Send the session token: Authorization: Bearer <await getToken()>."
    AUTHORIZATION_MALFORMED = "token_malformed", "The Authorization header must be: Bearer <token>."
    TOKEN_TOO_LONG = "token_malformed", "The token is longer than 8 KB."
    TOKEN_NOT_THREE_PARTS = (
        "token_malformed",
        "The token must be three base64url parts separated by dots, as Clerk issues it.",
    )
    PART_NOT_BASE64URL = "token_malformed", "A part of the token is not valid base64url."
    HEADER_NOT_AN_OBJECT = (
        "token_malformed",
        "The first part of the token must be a JSON object in base64url.",
    )
    ALG_NOT_RS256 = "token_malformed", "The alg header must be RS256."
    CRIT_OR_B64 = "token_malformed", "The headers crit and b64 are not supported."
    KID_NOT_A_STRING = "token_malformed", "The kid header must be a string."
    PAYLOAD_NOT_AN_OBJECT = "token_malformed", "The payload of the token must be a JSON object."
    SUB_NOT_AN_ID = "token_malformed", "The sub claim must be a user id of Clerk."
    SID_NOT_AN_ID = "token_malformed", "The sid claim must be a session id of Clerk."
    EXP_NOT_A_NUMBER = "token_malformed", "The exp claim must be a number of seconds."
    EXP_TOO_FAR_AHEAD = "token_malformed", "The exp claim is more than a day ahead."
    NBF_NOT_A_NUMBER = "token_malformed", "The nbf claim must be a number of seconds."
    IAT_NOT_A_NUMBER = "token_malformed", "The iat claim must be a number of seconds."
    TOKEN_EXPIRED = "token_expired", "The token has expired: get a new one from Clerk before each request."
    TOKEN_NOT_YET_VALID = (
        "token_not_yet_valid",
        "The token is not valid yet: check the clock of this server.",
    )
    SIGNATURE_OF_ANOTHER_KEY = (
        "token_signature",
        "The signature does not match the key: another Clerk instance issued the token, or it is forged.",
    )
    KID_UNKNOWN = "token_signature", "The kid header names no key of the configured Clerk instance."
    ANOTHER_ISSUER = (
        "token_issuer",
        "The iss claim is not the issuer that CLERK_ISSUER or CLERK_PUBLISHABLE_KEY configures.",
    )
    NO_ISSUER_CONFIGURED = (
        "token_issuer",
        "No issuer is configured, so every token is refused: set CLERK_PUBLISHABLE_KEY or CLERK_ISSUER.",
    )
    ANOTHER_PARTY = (
        "token_azp",
        "The azp claim is not one of the origins in CLERK_AUTHORIZED_PARTIES.",
    )
    NO_PARTY = (
        "token_azp",
        "The token has no azp claim, as those of native apps: CLERK_ALLOW_MISSING_AZP=1 accepts them.",
    )
    ANOTHER_TYP = "token_kind", "The typ header must be JWT: send a session token of Clerk."
    ANOTHER_CAT = (
        "token_kind",
        "The cat header names another kind of token: send a session token, made without a template.",
    )
    SUB_NOT_A_USER = (
        "token_kind",
        "The sub claim does not start with user_: send a user's session token, not a machine token.",
    )
    SESSION_PENDING = (
        "session_pending",
        "The session is pending: the user has sign-in tasks to finish.",
    )
    KEY_UNKNOWN = "key_unknown", "This service key is not known: see Service keys in the admin."
    KEY_EXPIRED = "key_expired", "This service key has expired: make a new one."
    KEY_REVOKED = "key_revoked", "This service key was revoked: make a new one."

    def __init__(self, code: str, detail: str) -> None:
        self.code = code
        self.detail = detail


class Refused(Exception):
    """The caller's token or key is refused."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault)
        self.fault = fault

    def __str__(self) -> str:
        return self.detail

    @property
    def code(self) -> str:
        return self.fault.code

    @property
    def detail(self) -> str:
        return self.fault.detail
