"""Who is signed in: the session token of Clerk, verified without a request to Clerk."""

import os
from typing import Annotated

import jwt
from fastapi import Header, HTTPException

PARTIES = os.environ["CLERK_AUTHORIZED_PARTIES"].split(",")
REQUIRED = ["exp", "nbf", "sub", "azp"]


def current_user(authorization: Annotated[str, Header()] = "") -> str:
    token, key = authorization.removeprefix("Bearer "), os.environ["CLERK_JWT_KEY"]
    try:
        claims = jwt.decode(token, key, algorithms=["RS256"], leeway=5, options={"require": REQUIRED})
    except jwt.InvalidTokenError:
        raise HTTPException(401, "Sign in.") from None
    if claims["azp"] not in PARTIES or claims.get("sts") == "pending":
        raise HTTPException(401, "Sign in.")
    return str(claims["sub"])
