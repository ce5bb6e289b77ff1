"""The TypeScript client and its hook: they match the schema, compile, and work with a running server."""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from time import time
from urllib.parse import parse_qsl, urlsplit

import pytest

from quotas.models import ChallengeQuota, ServiceKey
from tests import ROOT
from tests.clients.npm import APPS, CLIENT, install, npm, run
from tests.tools import keys
from tests.tools.ledger import assert_sound
from tests.tools.site import served, url_of_the_test_database

LOCKS = [CLIENT / "package-lock.json", *sorted(APPS.glob("*/package-lock.json"))]
CONSUMER = {  # the strictest settings that an app may have
    "compilerOptions": {
        "target": "ES2022",
        "module": "ESNext",
        "moduleResolution": "bundler",
        "jsx": "react-jsx",
        "lib": ["ES2022", "DOM"],
        "types": ["node"],
        "strict": True,
        "noUncheckedIndexedAccess": True,
        "exactOptionalPropertyTypes": True,
        "skipLibCheck": False,
        "noEmit": True,
    }
}
CLERK = """declare module "@clerk/react" {
  // Clerk's types of the two members that the README uses.
  export function useAuth(): {
    getToken: (options?: {
      template?: string; organizationId?: string; leewayInSeconds?: number; skipCache?: boolean;
    }) => Promise<string | null>;
    userId: string | null | undefined;
  };
}
"""


@pytest.mark.once
@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.parent.name)
def test_the_lock_names_packages_and_no_registry(lock: Path) -> None:
    packages = json.loads(lock.read_text())["packages"]
    assert not [name for name, package in packages.items() if "resolved" in package]
    assert all("integrity" in package for name, package in packages.items() if name)


@pytest.mark.full
def test_the_types_are_those_of_the_schema(package: Path) -> None:
    assert not npm("run", "schema", cwd=package)
    made, committed = (folder / "src/schema.d.ts" for folder in (package, CLIENT))
    assert made.read_text() == committed.read_text(), "make clients"


@pytest.mark.full
def test_the_client_keeps_to_its_types(package: Path) -> None:
    npm("run", "check", cwd=package)


@pytest.mark.full
def test_what_the_readme_shows_compiles_in_an_app(built: Path, tmp_path: Path) -> None:
    npm("pack", "--ignore-scripts", "--pack-destination", tmp_path, cwd=built)
    packed = next(tmp_path.glob("*.tgz"))
    shutil.unpack_archive(packed, tmp_path / "node_modules")
    (tmp_path / "node_modules/package").rename(tmp_path / "node_modules/quotasite-client")
    for name in ("@types", "csstype", "undici-types", "react"):
        (tmp_path / "node_modules" / name).symlink_to(built / "node_modules" / name)
    blocks = re.findall(r"```(tsx?)\n(.*?)```", (ROOT / "clients/README.md").read_text(), re.DOTALL)
    assert len(blocks) >= 3
    for number, (extension, block) in enumerate(blocks):
        (tmp_path / f"block{number}.{extension}").write_text(f"{block}\nexport {{}};\n")
    (tmp_path / "clerk.d.ts").write_text(CLERK)
    (tmp_path / "tsconfig.json").write_text(json.dumps(CONSUMER))
    done = run(built / "node_modules/.bin/tsc", "-p", tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stdout


@pytest.mark.full
@pytest.mark.postgres
@pytest.mark.django_db(transaction=True, serialized_rollback=True)
@pytest.mark.parametrize("react", ["locked", "18.3.1"])
def test_the_client_and_the_hook_work_with_a_running_server(built: Path, react: str, tmp_path: Path) -> None:
    if react != "locked":
        built = shutil.copytree(built, tmp_path / "client", symlinks=True)
        install("install", "--no-save", f"react@{react}", f"react-dom@{react}", cwd=built)
    _, key = ServiceKey.make("the client's tests", ["read", "consume", "refund", "adjust", "admin"])
    with served(url_of_the_test_database(), workers=2) as port, tokens() as tokens_url:
        done = run(
            "npm",
            "test",
            cwd=built,
            QUOTASITE_URL=f"http://127.0.0.1:{port}",
            TOKENS_URL=tokens_url,
            SERVICE_KEY=key,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    for user_id in ChallengeQuota.objects.values_list("user_id", flat=True):
        assert_sound(user_id)


@contextmanager
def tokens() -> Iterator[str]:
    """Serve session tokens: the query gives claims, and times as seconds from now."""

    class Mint(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            claims = dict(parse_qsl(urlsplit(self.path).query))
            times = {name: int(time()) + int(claims.pop(name)) for name in ("exp",) if name in claims}
            self.send_response(200)
            self.end_headers()
            self.wfile.write(keys.mint(**claims, **times).encode())

        def log_message(self, *_: object) -> None:
            """Log nothing, to keep the output of the tests clean."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Mint) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
