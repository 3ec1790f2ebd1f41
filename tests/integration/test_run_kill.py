"""A run that is killed ends as an undisturbed one; `python -m tests.chaos.run_kill` does it in every step."""

import json
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]


def test_a_killed_run_ends_in_the_same_result() -> None:
    command = [sys.executable, "-m", "tests.chaos.run_kill", "--count", "1"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout.splitlines()[-1])
    assert (result["injected"], result["lost"], result["failed"]) == (1, 0, 0)
