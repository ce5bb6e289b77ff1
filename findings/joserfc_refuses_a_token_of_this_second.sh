#!/usr/bin/env bash
# The good guess: a token whose iat and nbf are the present time is valid at once, on the machine that made it.
#   RFC 7519, section 2: a NumericDate may have a fraction of a second.
# What happens: JWTClaimsRegistry compares with its own clock cut to whole seconds. Until the second is over, it refuses
#   the iat and the nbf of a fresh token with such a fraction as in the future. Its default leeway is 0. An exp with a
#   fraction is accepted for up to a second longer, for the same reason.
# Versions: joserfc==1.8.0 on Python 3.11. PyJWT==2.15.1 compares with the full time, and accepts the token.
# Why it matters: a quota service that verifies session tokens answers some first requests after a sign-in with 401, by
#   the part of the second in which they arrive, and a test of it fails now and then. Give a leeway, as for two clocks.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  joserfc==1.8.0 pyjwt==2.15.1 2>&1 | grep -v '^WARNING' || true
cat > "$folder/show.py" <<'PYTHON'
import sys
import time
from importlib.metadata import version

import jwt
from joserfc import errors
from joserfc import jwt as joserfc_jwt
from joserfc.jwk import OctKey

SECRET = "a secret of the example, long enough for HS256"
key = OctKey.import_key(SECRET)


def accepted_by_joserfc(claim):
    token = joserfc_jwt.encode({"alg": "HS256"}, {claim: time.time()}, key)
    try:
        joserfc_jwt.JWTClaimsRegistry().validate(joserfc_jwt.decode(token, key).claims)
    except errors.InvalidTokenError:
        return False
    return True


def accepted_by_pyjwt(claim):
    token = jwt.encode({claim: time.time()}, SECRET, "HS256")
    try:
        jwt.decode(token, SECRET, ["HS256"])
    except jwt.ImmatureSignatureError:
        return False
    return True


print(f"joserfc {version('joserfc')}, pyjwt {version('pyjwt')}")
as_said = True
for claim in ("iat", "nbf"):
    counts = [0, 0]
    for number in range(40):
        time.sleep(0.013)
        counts[0] += accepted_by_joserfc(claim)
        counts[1] += accepted_by_pyjwt(claim)
    print(f"{claim} = time.time(), validated at once, 40 times: joserfc accepts {counts[0]}, pyjwt {counts[1]}")
    as_said &= counts == [0, 40]
sys.exit(0 if as_said else "This is no longer what happens.")
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
