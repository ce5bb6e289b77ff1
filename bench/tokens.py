"""What checking a session token costs, with and without the memory of proofs: `python -m bench.tokens`.

Both ways are timed in turns in one process, so that the ratio holds on a noisy machine.
"""

import os
import statistics
import time

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "quotasite.settings")

import django
from django.conf import settings

django.setup()

from quotas.access import session_tokens  # noqa: E402
from quotasite.demo.pretend_clerk import ISSUER, ORIGIN, PretendClerk  # noqa: E402

ROUNDS, CALLS = 30, 300


def microseconds(token: str, *, remembered: bool) -> float:
    """CPU time of one check, on average over CALLS."""
    began = time.process_time()
    for _ in range(CALLS):
        if not remembered:
            session_tokens._verified.clear()
        session_tokens.verify(token)
    return (time.process_time() - began) / CALLS * 1e6


def main() -> None:
    clerk = PretendClerk()
    settings.CLERK_JWT_KEY, settings.CLERK_ISSUER = clerk.public_key, ISSUER
    settings.CLERK_AUTHORIZED_PARTIES = [ORIGIN]
    token = clerk.token("user_1", life=600)
    rounds = [
        (microseconds(token, remembered=False), microseconds(token, remembered=True)) for _ in range(ROUNDS)
    ]
    full, remembered = (statistics.median(column) for column in zip(*rounds, strict=True))
    print(f"full check {full:.1f} µs, remembered {remembered:.1f} µs: {full / remembered:.0f} times")


if __name__ == "__main__":
    main()
