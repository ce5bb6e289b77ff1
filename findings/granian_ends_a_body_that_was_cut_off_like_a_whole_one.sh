#!/usr/bin/env bash
# The good guess: `async for part in protocol` of an RSGI application raises if the client goes away before its body is
#   complete, as `await protocol()` does: both read the same body.
# What happens: the loop ends without an error, as after a whole body. Only one more empty part tells the difference,
#   and a whole body in chunks that ends with trailers yields that part too. `await protocol()` raises.
# Versions: granian==2.8.7 on Python 3.11, HTTP/1.1, one worker.
# Why it matters: a body of unknown length must be read part by part, to bound its memory. A service that charges for
#   what such a body asks would charge for half a request, after its client has gone and will send it again.
set -euo pipefail
folder="$(mktemp -d)"
server=""
trap '[ -z "$server" ] || kill "$server" 2>/dev/null || true; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check granian==2.8.7 2>&1 | grep -v '^WARNING' || true
cat > "$folder/site_of_the_example.py" <<'PYTHON'
async def app(scope, protocol):
    headers = dict(scope.headers.items())
    parts, error = [], None
    try:
        if headers["x-read"] == "parts":
            async for part in protocol:
                parts.append(part)
        else:
            parts.append(await protocol())
    except Exception as raised:
        error = type(raised).__name__
    print("seen", headers["x-name"], headers["x-read"], parts, error, flush=True)
    protocol.response_empty(204, [])
PYTHON
cat > "$folder/show.py" <<'PYTHON'
import socket
import sys
import time
from importlib.metadata import version
from pathlib import Path

PORT, LOG = int(sys.argv[1]), Path(sys.argv[2])
CHUNK = b"5\r\nhello\r\n"
SENT = {
    "whole": (b"Transfer-Encoding: chunked", CHUNK + b"0\r\n\r\n"),
    "with-trailers": (b"Transfer-Encoding: chunked", CHUNK + b"0\r\nA: b\r\n\r\n"),
    "cut-off": (b"Transfer-Encoding: chunked", CHUNK),
    "cut-off-by-length": (b"Content-Length: 9", b"hello"),
}
EXPECTED = {
    "whole": ("[b'hello', b''] None", "[b'hello'] None"),
    "with-trailers": ("[b'hello', b'', b''] None", "[b'hello'] None"),
    "cut-off": ("[b'hello', b'', b''] None", "[] RSGIProtocolClosed"),
    "cut-off-by-length": ("[b'hello', b'', b''] None", "[] RSGIProtocolClosed"),
}


def seen(name, read):
    for _ in range(100):
        for line in LOG.read_text().splitlines():
            if line.startswith(f"seen {name} {read} "):
                return line.removeprefix(f"seen {name} {read} ")
        time.sleep(0.05)
    return "nothing"


for _ in range(100):
    try:
        socket.create_connection(("127.0.0.1", PORT)).close()
        break
    except OSError:
        time.sleep(0.1)
print(f"granian {version('granian')}")
as_said = True
for name, (framing, body) in SENT.items():
    for read, expected in zip(("parts", "whole"), EXPECTED[name], strict=True):
        lines = [b"POST / HTTP/1.1", b"Host: a.example", b"X-Name: " + name.encode(), b"X-Read: " + read.encode()]
        with socket.create_connection(("127.0.0.1", PORT), timeout=5) as client:
            client.sendall(b"\r\n".join([*lines, framing, b"", b""]) + body)
            client.shutdown(socket.SHUT_WR)
            found = seen(name, read)
        print(f"{name:18} {'async for' if read == 'parts' else 'await':9}  {found}")
        as_said &= found == expected
sys.exit(0 if as_said else "This is no longer what happens.")
PYTHON
port=$((20000 + RANDOM % 20000))
cd "$folder"
"$folder/venv/bin/granian" --interface rsgi site_of_the_example:app --host 127.0.0.1 --port "$port" --http 1 --no-ws \
  > "$folder/log" 2>&1 &
server=$!
"$folder/venv/bin/python" "$folder/show.py" "$port" "$folder/log"
