"""Fixtures of the integration tests."""

import sys

import pytest

from pipeline import cli
from tests.command import Command, Ended


@pytest.fixture
def hyperclip(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The entry point of the `hyperclip` command, in this process so that Ray is started once for a file."""

    def run(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["hyperclip", *arguments])
        capsys.readouterr()
        try:
            cli.main()
            status = 0
        except SystemExit as ended:
            status = int(ended.code or 0)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return Ended(status, captured.out, captured.err)

    return run
