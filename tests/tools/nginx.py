"""nginx with deploy/nginx.conf, on ports of its own, in front of a served site."""

import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

from tests import ROOT
from tests.tools.postgres import free_port
from tests.tools.waiting import wait_until

CONF = (ROOT / "deploy/nginx.conf").read_text()
HOST = "quota.example.com"
CERTIFICATES = f"/etc/letsencrypt/live/{HOST}/"
TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


class Ports(NamedTuple):
    http: int  # redirects
    https: int


@contextmanager
def nginx(site: int, *, tls: bool = True) -> Iterator[Ports]:
    """Run nginx with the file as it stands, except for its ports and paths.

    The certificate is a new one, signed by itself. Without `tls`, the port `https` speaks plain HTTP.
    """
    ports = Ports(free_port(), free_port())
    with tempfile.TemporaryDirectory(prefix="quotasite-nginx-") as scratch:
        folder = Path(scratch)
        _make_certificate(folder)
        file = folder / "nginx.conf"
        file.write_text(_configuration(folder, site, ports, tls=tls))
        process = subprocess.Popen(["nginx", "-p", scratch, "-c", file], stderr=subprocess.PIPE, text=True)
        try:
            wait_until(lambda: process.poll() is not None or all(map(_is_open, ports)))
            assert process.poll() is None, process.stderr and process.stderr.read()
            yield ports
        finally:
            process.terminate()
            process.communicate(timeout=30)


def _configuration(folder: Path, site: int, ports: Ports, *, tls: bool) -> str:
    text = CONF
    for old, new in {
        "127.0.0.1:8000;": f"127.0.0.1:{site};",
        "listen 80;": f"listen 127.0.0.1:{ports.http};",
        "listen [::]:80;": f"listen [::1]:{ports.http};" if _has_ipv6() else "",
        "listen 443 ssl http2;": f"listen 127.0.0.1:{ports.https}{' ssl http2' if tls else ''};",
        "listen [::]:443 ssl http2;": "",
        "/var/www/html": str(folder),
        CERTIFICATES: f"{folder}/",
    }.items():
        assert old in text, f"deploy/nginx.conf lacks {old}"
        text = text.replace(old, new)
    paths = "".join(f"{name}_temp_path {folder}/{name};\n" for name in TEMPORARY)
    user = "user root;" if os.geteuid() == 0 else ""
    return (
        f"daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/errors; {user}\n"
        f"events {{ worker_connections 2048; }}\nhttp {{ access_log off;\n{paths}{text}}}\n"
    )


def _has_ipv6() -> bool:
    with suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return True
    return False


def _make_certificate(folder: Path) -> None:
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, HOST)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
        .sign(key, SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    (folder / "fullchain.pem").write_bytes(certificate.public_bytes(pem))
    (folder / "privkey.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))


def _is_open(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
