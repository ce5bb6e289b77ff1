"""The files that hosts read agree with the settings, the Procfile and each other. No host is contacted."""

import json
import os
import re
import shlex
import subprocess
import sys
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.operations.test_deploy_checks import GOOD
from tests.site.test_settings import ROOT
from tests.tools.forked import manage
from tests.tools.postgres import Server, free_port
from tests.tools.site import running

pytestmark = pytest.mark.once

RENDER = yaml.safe_load((ROOT / "render.yaml").read_text())
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
DOCKERFILE = (ROOT / "Dockerfile").read_text()
PROCFILE = dict(line.split(": ", 1) for line in (ROOT / "Procfile").read_text().splitlines())
EXAMPLE = dict(re.findall(r"^([A-Z_]+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE))
[WEB] = RENDER["services"]
OF_RENDER = {"PYTHON_VERSION"}  # read by the host itself

# As https://render.com/docs/blueprint-spec and the Compose specification name them.
DATABASE_KEYS = {"name", "plan", "region", "postgresMajorVersion", "ipAllowList", "databaseName", "user"}
SERVICE_KEYS = {
    "type",
    "name",
    "runtime",
    "plan",
    "region",
    "buildCommand",
    "preDeployCommand",
    "startCommand",
    "healthCheckPath",
    "envVars",
}
SOURCES = {"value", "fromDatabase", "generateValue", "sync"}
CONTAINER_KEYS = {
    "image",
    "build",
    "command",
    "env_file",
    "environment",
    "volumes",
    "ports",
    "healthcheck",
    "depends_on",
    "restart",
    "stop_grace_period",
    "logging",
}


def run(command: list[str], folder: Path, status: int = 0) -> tuple[int, str]:
    """Run the command with a python and a granian that only print their arguments and exit with `status`."""
    for name in ("python", "granian"):
        (folder / name).write_text(f'#!/bin/sh\necho "{name} $*"\nexit {status}\n')
        (folder / name).chmod(0o755)
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "TMPDIR": str(folder), "PORT": "8765"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def in_shell(line: str) -> list[str]:
    return ["sh", "-c", line]


def of_compose(service: str) -> list[str]:
    return shlex.split(COMPOSE["services"][service]["command"].replace("$$", "$"))


def of_image() -> list[str]:
    [command] = re.findall(r"^CMD (.*)$", DOCKERFILE, re.MULTILINE)
    return json.loads(command)


@pytest.mark.parametrize("command", [in_shell(WEB["startCommand"]), of_image()], ids=["render", "image"])
def test_the_server_is_started_as_the_procfile_says(command: list[str], tmp_path: Path) -> None:
    status, output = run(command, tmp_path)
    assert (status, output) == run(in_shell(PROCFILE["web"]), tmp_path)
    assert status == 0
    assert "quotasite.serving.rsgi" in output
    assert "--port 8765" in output


@pytest.mark.parametrize("command", [in_shell(WEB["startCommand"]), of_image()], ids=["render", "image"])
def test_the_server_takes_the_place_of_the_shell_so_that_a_stop_reaches_it(
    command: list[str], tmp_path: Path
) -> None:
    (tmp_path / "granian").write_text("#!/bin/sh\necho $$\n")
    (tmp_path / "granian").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert int(process.communicate()[0]) == process.pid


@pytest.mark.parametrize(
    "command", [in_shell(WEB["preDeployCommand"]), of_compose("release")], ids=["render", "compose"]
)
@pytest.mark.parametrize("status", [0, 1])
def test_a_release_is_checked_and_migrated_as_the_procfile_says(
    command: list[str], status: int, tmp_path: Path
) -> None:
    done = run(command, tmp_path, status)
    assert done == run(in_shell(PROCFILE["release"]), tmp_path, status)
    assert done[0] == status
    assert ("migrate" in done[1]) is (status == 0)


def test_both_pages_give_the_file_of_secrets_to_its_owner_and_its_group_alone() -> None:
    example, page = ((ROOT / name).read_text() for name in (".env.example", "docs/deploy.md"))
    assert re.findall(r"\(chmod ([0-9]+)", example) == re.findall(r"chmod ([0-9]+) \.env", page) == ["640"]


def test_no_command_runs_the_release_again() -> None:
    texts = [(ROOT / name).read_text() for name in ("docs/deploy.md", "docs/operations.md", "compose.yaml")]
    commands = re.findall(r"docker compose run (.*?) web ", "\n".join(texts))
    assert commands
    assert all("--no-deps" in options for options in commands)


def test_every_variable_that_they_name_is_one_of_ours() -> None:
    named = {variable["key"] for variable in WEB["envVars"]} - OF_RENDER
    named |= set(re.findall(r"\$\{([A-Z_]+)", (ROOT / "compose.yaml").read_text()))
    named |= set(COMPOSE["x-service"]["environment"])
    assert named <= set(EXAMPLE)


def test_on_render_nothing_is_left_out_that_the_checks_demand() -> None:
    given = {
        variable["key"]: variable.get("value") or GOOD.get(variable["key"], "") for variable in WEB["envVars"]
    }
    done = manage("check", "--deploy", "--offline", RENDER="true", **given)
    assert done.returncode == 0, done.stderr


def test_in_containers_nothing_is_left_out_that_the_checks_demand() -> None:
    given = {name: GOOD.get(name, value) for name, value in EXAMPLE.items()}
    url = re.sub(
        r"\$\{POSTGRES_PASSWORD[^}]*\}", "hunter2", COMPOSE["x-service"]["environment"]["DATABASE_URL"]
    )
    done = manage("check", "--deploy", "--offline", **{**given, "DATABASE_URL": url})
    assert done.returncode == 0, done.stderr


def test_no_metrics_are_written_beside_the_code_where_the_variable_is_left_empty_as_in_the_example() -> None:
    assert EXAMPLE["PROMETHEUS_MULTIPROC_DIR"] == ""
    code = "from prometheus_client import values; print(values.ValueClass.__name__)"
    done = manage("shell", "-v0", "-c", code, PROMETHEUS_MULTIPROC_DIR="")
    assert done.stdout.strip() == "MutexValue", done.stderr


def test_no_secret_is_written_down() -> None:
    secret = {
        "SECRET_KEY",
        "DATABASE_URL",
        "CLERK_WEBHOOK_SIGNING_SECRET",
        "CLERK_SECRET_KEY",
        "METRICS_TOKEN",
    }
    values = {variable["key"] for variable in WEB["envVars"] if "value" in variable}
    assert not values & secret


def test_they_run_the_python_and_the_postgresql_that_we_name() -> None:
    [least] = re.findall(r'requires-python = ">=([0-9.]+)"', (ROOT / "pyproject.toml").read_text())
    [image] = re.findall(r"^FROM python:([0-9.]+)-slim-bookworm$", DOCKERFILE, re.MULTILINE)
    [render] = [variable["value"] for variable in WEB["envVars"] if variable["key"] == "PYTHON_VERSION"]
    assert re.fullmatch(rf"{re.escape(least)}\.[0-9]+", image)  # a patch version: each build has the same one
    assert render == image  # Render requires all three numbers, of any release from 3.7.3 on
    [database] = RENDER["databases"]
    major = database["postgresMajorVersion"]
    assert re.fullmatch(rf"postgres:{major}\.[0-9]+-bookworm", COMPOSE["services"]["database"]["image"])


def test_the_blueprint_has_only_what_render_knows() -> None:
    [database] = RENDER["databases"]
    assert set(RENDER) == {"databases", "services"}
    assert set(database) <= DATABASE_KEYS
    assert set(WEB) <= SERVICE_KEYS
    assert WEB["healthCheckPath"] == "/readyz"
    for variable in WEB["envVars"]:
        [source] = set(variable) - {"key"}
        assert source in SOURCES
        assert isinstance(variable.get("value", ""), str), f"{variable['key']}: a number must be quoted"
    [url] = [variable["fromDatabase"] for variable in WEB["envVars"] if variable["key"] == "DATABASE_URL"]
    assert url == {"name": database["name"], "property": "connectionString"}


def test_the_containers_have_only_what_compose_knows_and_wait_for_each_other() -> None:
    services: dict[str, dict[str, Any]] = COMPOSE["services"]
    assert set(COMPOSE) == {"x-logging", "x-service", "services", "volumes"}
    assert all(set(service) <= CONTAINER_KEYS for service in services.values())
    assert services["release"]["depends_on"] == {"database": {"condition": "service_healthy"}}
    assert services["web"]["depends_on"] == {"release": {"condition": "service_completed_successfully"}}
    [volume] = [mount.partition(":")[0] for mount in services["database"]["volumes"]]
    assert volume in COMPOSE["volumes"]
    assert "ports" not in services["database"]
    assert all(port.startswith("127.0.0.1:") for port in services["web"]["ports"])


def test_no_container_fills_the_disk_with_its_log() -> None:
    limits = {"driver": "json-file", "options": {"max-size": "10m", "max-file": "5"}}
    assert [service["logging"] for service in COMPOSE["services"].values()] == [limits] * 3


# The image, without Docker


PAGES = ["/healthz", "/readyz", "/api/docs", "/api/schema", "/static/quotas/admin.css", "/admin/login/"]
PROGRAMS = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder /app of the image: what `COPY . .` finds after .dockerignore."""
    folder = tmp_path_factory.mktemp("app")
    for path in context():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes((ROOT / path).read_bytes())
    return folder


def context() -> list[Path]:
    """Return the files that Docker would send to the build."""
    folders = [folder for folder in ROOT.iterdir() if folder.name not in (".git", ".venv")]
    files = [path for folder in folders for path in (folder, *folder.rglob("*")) if path.is_file()]
    return [path for path in (file.relative_to(ROOT) for file in files) if not is_ignored(path)]


def is_ignored(path: Path) -> bool:
    """Judge by the last pattern that matches the file or a folder above it, as Docker does."""
    ignored = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            pattern = re.escape(line.removeprefix("!")).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*")
            if any(re.fullmatch(pattern, part.as_posix()) for part in (path, *path.parents)):
                ignored = not line.startswith("!")
    return ignored


def test_the_image_holds_what_runs_and_nothing_else(image: Path) -> None:
    folders, files = {"quotas", "quotasite", "templates", "webhooks"}, {"LICENSE", "manage.py", "Procfile"}
    assert {path.name for path in image.iterdir()} - {"plans.toml"} == folders | files | {"requirements.txt"}
    others = [
        ".env",
        ".env.production",
        "quotasite.sqlite3",
        "quotas.dump",
        "tests/conftest.py",
        ".git/config",
    ]
    assert all(is_ignored(Path(name)) for name in others)
    assert is_ignored(Path("quotas/rules/__pycache__/verbs.cpython-311.pyc"))
    assert re.findall(r"^COPY (\S+)", DOCKERFILE, re.MULTILINE) == ["requirements.txt", "."]
    assert re.search(r"^USER nobody$", DOCKERFILE, re.MULTILINE)


def test_the_image_checks_migrates_and_serves_with_its_files_alone(image: Path) -> None:
    with Server(fsync=False, in_memory=True) as server:
        environment = {"PATH": PROGRAMS, **GOOD, "DATABASE_URL": server.url}
        done = subprocess.run(
            in_shell(PROCFILE["release"]), cwd=image, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        line = shlex.join(of_image())
        with running(server.url, workers=1, folder=image, line=line, TRUSTED_PROXY="1") as (port, _):
            assert [status(port, path) for path in PAGES] == [200] * len(PAGES)
            assert [probe(check, port).returncode for check in health_checks()] == [0, 0]


def test_a_server_that_does_not_answer_is_not_healthy() -> None:
    for check in health_checks():
        done = probe(check, free_port())
        assert done.returncode == 1
        assert "Connection refused" in done.stderr


def test_the_image_serves_and_asks_the_usual_port_if_no_other_is_named() -> None:
    [exposed] = re.findall(r"^EXPOSE ([0-9]+)$", DOCKERFILE, re.MULTILINE)
    assert exposed == EXAMPLE["PORT"]
    assert all(exposed in check[-1] for check in health_checks())


def health_checks() -> list[list[str]]:
    """Return the commands by which the image, and compose, ask whether the server is healthy."""
    [of_docker] = re.findall(r"^ +CMD (.*)$", DOCKERFILE, re.MULTILINE)
    return [json.loads(of_docker), in_shell(COMPOSE["services"]["web"]["healthcheck"]["test"])]


def probe(command: list[str], port: int) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, env={"PATH": PROGRAMS, "PORT": str(port)}, capture_output=True, text=True)


def status(port: int, path: str) -> int:
    client = HTTPConnection("127.0.0.1", port, timeout=10)
    client.request("GET", path, headers={"X-Forwarded-Proto": "https"})
    answer = client.getresponse()
    client.close()
    return answer.status
