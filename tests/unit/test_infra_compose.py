"""The MLflow server of the compose file: a login, loopback only, and secrets that nobody ships."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.deploy_helpers import COMPOSE, LOCK, PINNED, ROOT


def compose() -> dict[str, Any]:
    loaded = yaml.safe_load(COMPOSE.read_text())
    assert isinstance(loaded, dict)
    return loaded


def test_mlflow_asks_for_a_login_and_listens_on_loopback_only() -> None:
    services = compose()["services"]
    assert "--app-name=basic-auth" in services["mlflow"]["command"]
    assert services["mlflow"]["ports"] == ["127.0.0.1:${MLFLOW_PORT:-5000}:5000"]
    assert "ports" not in services["postgres"]
    assert compose()["networks"]["back"] == {"internal": True}
    assert f"mlflow[auth]=={LOCK['mlflow']}" in (ROOT / "infra/mlflow/Dockerfile").read_text()
    for service in services.values():
        assert service["healthcheck"]["test"]
        assert PINNED.match(service["image"])


def test_mlflow_does_not_start_without_its_secrets() -> None:
    secrets = {
        name: value
        for service in compose()["services"].values()
        for name, value in service["environment"].items()
        if re.search("PASSWORD|SECRET", name) and value is not None  # null passes on what the user has set, if anything
    }
    assert secrets.keys() == {"MLFLOW_FLASK_SERVER_SECRET_KEY", "MLFLOW_AUTH_ADMIN_PASSWORD", "PGPASSWORD", "POSTGRES_PASSWORD"}
    for value in secrets.values():
        assert re.fullmatch(r"\$\{\w+:\?[^}]+\}", value)  # `:?` refuses an unset and an empty variable


def test_the_example_environment_works_for_nobody() -> None:
    required = set(re.findall(r"\$\{(\w+):\?", COMPOSE.read_text()))
    lines = (ROOT / "infra/mlflow/.env.example").read_text().splitlines()
    given = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    assert given.keys() == required
    assert set(given.values()) == {""}
    assert ".env" in (ROOT / "infra/mlflow/.gitignore").read_text().split()


def test_no_password_stands_in_mlflows_own_settings() -> None:
    text = (ROOT / "infra/mlflow/basic_auth.ini").read_text() + COMPOSE.read_text()
    assert "admin_password =" not in text
    for user_info in re.findall(r"://([^/@\s]+)@", text):
        assert ":" not in user_info


def compose_config(environment: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    empty = folder / "empty.env"  # a developer's own .env must not decide
    empty.touch()
    command = ["docker", "compose", "--env-file", str(empty), "--file", str(COMPOSE), "config", "--quiet"]
    path = {"PATH": str(Path(shutil.which("docker") or "").parent), "HOME": str(folder)}
    return subprocess.run(command, env=path | environment, capture_output=True, text=True, check=False)


def has_compose() -> bool:
    docker = shutil.which("docker")
    return (
        docker is not None and subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode == 0
    )


@pytest.mark.skipif(not has_compose(), reason="docker compose is not installed")
def test_compose_itself_refuses_and_accepts(tmp_path: Path) -> None:
    secrets = {"POSTGRES_PASSWORD": "a", "MLFLOW_AUTH_ADMIN_PASSWORD": "b", "MLFLOW_FLASK_SERVER_SECRET_KEY": "c"}
    assert compose_config(secrets, tmp_path).returncode == 0
    for name in secrets:
        refused = compose_config({**secrets, name: ""}, tmp_path)
        assert refused.returncode != 0
        assert name in refused.stderr
