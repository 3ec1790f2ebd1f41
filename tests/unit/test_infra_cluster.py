"""What is around Ray's start, without Ray."""

import stat
from pathlib import Path

import pytest

from infra.cluster import _close_token_file


def test_the_token_of_ray_is_for_its_owner_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    _close_token_file()  # there is none yet
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("secret")
    token.chmod(0o644)
    _close_token_file()
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
