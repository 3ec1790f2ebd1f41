"""The Dockerfiles, as far as they can be held to account without a Docker engine."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.unit.deploy_helpers import DOCKERFILES, LOCK, ROOT


def instructions(path: Path) -> list[tuple[str, str]]:
    """(INSTRUCTION, arguments) of a Dockerfile, continued lines joined."""
    text = re.sub(r"\\\n", " ", "\n".join(line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")))
    pairs = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    return [(name, arguments) for name, arguments in pairs]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_an_image_is_pinned_unprivileged_and_without_secrets(path: Path) -> None:
    found = instructions(path)
    assert {name for name, _ in found} <= {
        "FROM",
        "RUN",
        "ENV",
        "WORKDIR",
        "ARG",
        "COPY",
        "USER",
        "EXPOSE",
        "HEALTHCHECK",
        "CMD",
    }
    (base,) = [arguments for name, arguments in found if name == "FROM"]
    assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+", base)
    users = [arguments for name, arguments in found if name == "USER"]
    assert users == ["1000:1000"]
    assert all(name != "RUN" for name, _ in found[[name for name, _ in found].index("USER") :])
    text = path.read_text()
    assert not re.search(r"(PASSWORD|SECRET|TOKEN|ACCESS_KEY)\w*\s*=", text)
    assert "latest" not in text
    for name, version in re.findall(r"([\w-]+)(?:\[\w+\])?==([\d.]+)", text):
        # what the lock does not hold is pinned all the same, by being written with its version
        assert LOCK.get(name, version) == version, f"{path.name} has {name} {version}, the lock {LOCK[name]}"


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is not installed")
@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_a_linter_of_dockerfiles_finds_nothing(path: Path) -> None:
    run = subprocess.run(["hadolint", str(path)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout


@pytest.mark.parametrize(("room", "extras"), [("data", "data"), ("train", "data,train"), ("serve", "serve")])
def test_an_image_installs_its_rooms_extra_under_the_lock(room: str, extras: str) -> None:
    (install,) = [
        arguments for name, arguments in instructions(ROOT / f"infra/docker/{room}.Dockerfile") if "--editable" in arguments
    ]
    assert f"--editable '.[{extras}]'" in install
    assert "--constraint requirements.lock" in install
    assert "--compile" in install


def test_the_object_store_driver_fits_the_locked_fsspec() -> None:
    for path in DOCKERFILES[:-1]:
        (version,) = re.findall(r"s3fs==([\d.]+)", path.read_text())
        assert version == LOCK["fsspec"]  # each s3fs requires the fsspec of the same number


def test_what_kuberay_needs_of_an_image_is_there() -> None:
    for room in ("data", "train", "serve"):
        text = (ROOT / f"infra/docker/{room}.Dockerfile").read_text()
        assert "wget" in text  # its probes
        assert "RAY_AUTH_MODE=token" in text
        assert "venv" not in text  # it starts Ray from a login shell, where only /usr/local/bin is sure to be on PATH
    assert "HEALTHCHECK" in (ROOT / "infra/docker/serve.Dockerfile").read_text()


def test_the_builder_is_sent_no_more_than_it_needs() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = [line for line in lines if line and not line.startswith("#")]
    assert allowed[0] == "*"  # all is out, then some is let in: a new folder is never sent by accident
    assert "**/.env" in allowed
    copied = {
        source
        for path in DOCKERFILES
        for name, arguments in instructions(path)
        if name == "COPY"
        for source in arguments.split()[:-1]
    }
    assert all((ROOT / source).exists() for source in copied)
    assert all(f"!{source}" in allowed for source in copied), copied
