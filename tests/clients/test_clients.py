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
from tests.clients.npm import APPS, CLIENT, app, install, npm, run
from tests.tools import keys
from tests.tools.ledger import assert_sound
from tests.tools.site import served, url_of_the_test_database

LOCKS = [
    CLIENT / "package-lock.json",
    ROOT / "examples/vite/package-lock.json",
    *sorted(APPS.glob("*/package-lock.json")),
]
CONSUMER = {  # the strictest settings that an app may have
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


@pytest.fixture(scope="module")
def readme_app(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An app of the README's blocks, with the packed client and Clerk's own types."""
    folder = app("types", packed, tmp_path_factory.mktemp("types"))
    blocks = re.findall(r"```(tsx?)\n(.*?)```", (ROOT / "clients/README.md").read_text(), re.DOTALL)
    for (extension, block), name in zip(blocks, ("component", "browser", "server"), strict=True):
        (folder / f"{name}.{extension}").write_text(block)
    return folder


@pytest.mark.full
@pytest.mark.parametrize("react", ["react", "react-18"])
@pytest.mark.parametrize("typescript", ["typescript", "typescript-5"])
def test_what_the_readme_shows_compiles_in_an_app(readme_app: Path, typescript: str, react: str) -> None:
    types = f"./node_modules/@types/{react}"
    paths = {"react": [types], "react/jsx-runtime": [f"{types}/jsx-runtime"]}
    settings = {"compilerOptions": CONSUMER | {"paths": paths}, "include": ["*.ts", "*.tsx"]}
    (readme_app / "tsconfig.json").write_text(json.dumps(settings))
    done = run(readme_app / "node_modules" / typescript / "bin/tsc", cwd=readme_app)
    errors = [line for line in done.stdout.splitlines() if "error TS" in line]
    # Clerk's own types do not compile under the strictest settings.
    assert not [error for error in errors if not error.startswith("node_modules/@clerk/")]


@pytest.mark.full
@pytest.mark.postgres
@pytest.mark.django_db(transaction=True, serialized_rollback=True)
def test_the_server_of_the_readme_does_no_work_for_a_replay(readme_app: Path) -> None:
    compiler = readme_app / "node_modules/typescript/bin/tsc"
    emitted = ("server.ts", "--ignoreConfig", "--module", "nodenext", "--target", "es2022", "--types", "node")
    made = run(compiler, *emitted, cwd=readme_app)
    assert made.returncode == 0, made.stdout
    _, key = ServiceKey.make("the README's server", ["read", "consume", "refund"])
    with served(url_of_the_test_database(), workers=1) as port:
        site = {
            "SITE": f"http://127.0.0.1:{port}",
            "SERVICE_KEY": key,
            "QUOTASITE_KEY": key,
            "USER_ID": "user_r",
        }
        done = run("node", "attempts.mjs", cwd=readme_app, **site)
    assert done.returncode == 0, done.stderr
    saw, works, left = json.loads(done.stdout)
    repeated = "This attempt was made before: its work is not done twice."
    refunded = "This attempt failed and was refunded: start a new one."
    assert saw == ["work 1", repeated, "no model", refunded, "work 2"]
    assert (works, left) == (2, 16)


@pytest.mark.full
def test_a_team_installs_the_packed_client_from_its_repository(packed: Path, tmp_path: Path) -> None:
    app, clone = tmp_path / "app", tmp_path / "clone"
    (app / "vendor").mkdir(parents=True)
    shutil.copy(packed, app / "vendor")
    (app / "package.json").write_text('{"private": true, "type": "module"}')
    archive = f"vendor/{packed.name}"
    reported = npm("install", f"./{archive}", "--offline", "--no-audit", "--no-fund", cwd=app)
    assert not reported  # such as a warning about scripts
    assert json.loads((app / "package.json").read_text())["dependencies"] == {
        "quotasite-client": f"file:{archive}"
    }
    assert json.loads((app / "package-lock.json").read_text())["packages"]["node_modules/quotasite-client"][
        "integrity"
    ]

    shutil.copytree(app, clone, ignore=shutil.ignore_patterns("node_modules"))
    npm("ci", "--offline", "--no-audit", "--no-fund", cwd=clone)
    code = 'import { createQuotaClient } from "quotasite-client"; console.log(typeof createQuotaClient);'
    assert run("node", "--input-type=module", "--eval", code, cwd=clone).stdout == "function\n"


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
