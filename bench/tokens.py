"""The CPU time of verifying a session token, in full and from the cache: `python -m bench.tokens`.

Both alternate in one process, so that the ratio holds on a busy machine.
"""

import argparse
import os
import statistics
import time

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "quotasite.settings")

import django
from django.conf import settings

from bench.internals import verified_tokens, verify_session_token
from tests.tools import keys

ROUNDS, CALLS = 30, 300


def microseconds(token: str, *, cached: bool) -> float:
    """Return the CPU time of one verification, the mean of CALLS."""
    began = time.process_time()
    for _ in range(CALLS):
        if not cached:
            verified_tokens.clear()
        verify_session_token(token)
    return (time.process_time() - began) / CALLS * 1e6


def main() -> None:
    argparse.ArgumentParser(
        prog="python -m bench.tokens", allow_abbrev=False, description=__doc__
    ).parse_args()
    django.setup()
    settings.CLERK_JWT_KEY, settings.CLERK_ISSUER = keys.public_pem, keys.ISSUER
    settings.CLERK_AUTHORIZED_PARTIES = [keys.PARTY]
    token = keys.mint(sub="user_1", exp=int(time.time()) + 600)
    rounds = [(microseconds(token, cached=False), microseconds(token, cached=True)) for _ in range(ROUNDS)]
    full, cached = (statistics.median(column) for column in zip(*rounds, strict=True))
    print(f"full verification {full:.1f} µs, cached {cached:.1f} µs: {full / cached:.0f} times")


if __name__ == "__main__":
    main()
