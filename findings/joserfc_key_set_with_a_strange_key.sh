#!/usr/bin/env bash
# The good guess: a key set (JWKS) with one key that the library does not understand still gives the others.
#   RFC 7517, section 5: implementations SHOULD ignore JWKs that they do not understand or that are out of range.
# What happens: KeySet.import_key_set ignores a key of an unknown kty, and nothing else. One key with another use than
#   sig or enc, another key operation than those of the RFC, or an unknown curve, and the whole set is refused. For the
#   curve the error is a bare KeyError, which `except JoseError` does not catch.
# Versions: joserfc==1.8.0 cryptography==50.0.2 on Python 3.11. PyJWT==2.15.1 ignores the unknown curve, and takes
#   the other two.
# Why it matters: a service verifies the session tokens of its users by a set that its identity provider publishes. A
#   provider that adds one key for another purpose would make every token of every user unverifiable at the next fetch.
#   Read the keys one by one, and leave out what cannot be read.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  joserfc==1.8.0 cryptography==50.0.2 pyjwt==2.15.1 2>&1 | grep -v '^WARNING' || true
cat > "$folder/show.py" <<'PYTHON'
import sys
from importlib.metadata import version

import jwt
from joserfc.jwk import KeySet, RSAKey

good = {**RSAKey.generate_key(2048).as_dict(private=False), "kid": "good", "use": "sig"}
other = {**RSAKey.generate_key(2048).as_dict(private=False), "kid": "other"}
strange = {
    "an unknown kty": {"kty": "NEW", "kid": "other"},
    "another use": {**other, "use": "tls"},
    "another key operation": {**other, "key_ops": ["attest"]},
    "an unknown curve": {"kty": "EC", "crv": "BP-256", "x": "AQ", "y": "AQ", "kid": "other"},
}


def by_joserfc(key):
    try:
        return f"{len(KeySet.import_key_set({'keys': [good, key]}).keys)} key(s)"
    except Exception as error:
        return type(error).__name__


def by_pyjwt(key):
    try:
        return f"{len(jwt.PyJWKSet.from_dict({'keys': [good, key]}).keys)} key(s)"
    except Exception as error:
        return type(error).__name__


print(", ".join(f"{name} {version(name)}" for name in ("joserfc", "pyjwt", "cryptography")))
found = {name: (by_joserfc(key), by_pyjwt(key)) for name, key in strange.items()}
for name, (first, second) in found.items():
    print(f"a good key and one with {name}: joserfc {first}; pyjwt {second}")
expected = {
    "an unknown kty": ("1 key(s)", "1 key(s)"),
    "another use": ("KeyParameterError", "2 key(s)"),
    "another key operation": ("KeyParameterError", "2 key(s)"),
    "an unknown curve": ("KeyError", "1 key(s)"),
}
sys.exit(0 if found == expected else f"This is no longer what happens: {expected} was.")
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
