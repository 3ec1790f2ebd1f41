"""The `hyperclip` command in a process of its own, with the network off."""

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
HYPERCLIP = str(Path(sys.executable).with_name("hyperclip"))


class Offline(NamedTuple):
    status: int
    output: str
    error: str
    tried: str
    """Other machines that it tried to reach, a line each."""


def offline_environment(folder: Path) -> dict[str, str]:
    """Args: folder: home of the process, and where `tried.log` appears if it tries to reach another machine."""
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    kept.pop("MLFLOW_TRACKING_URI", None)
    return kept | {
        "PYTHONPATH": str(ROOT / "tests" / "offline"),
        "OFFLINE_LOG": str(folder / "tried.log"),
        "HOME": str(folder),
        "OMP_NUM_THREADS": "1",
    }


def hyperclip_offline(*arguments: str, folder: Path) -> Offline:
    """Run a command to its end, in `folder`."""
    ended = subprocess.run(
        [HYPERCLIP, *arguments], env=offline_environment(folder), cwd=folder, capture_output=True, text=True, check=False
    )
    log = folder / "tried.log"
    return Offline(ended.returncode, ended.stdout, ended.stderr, log.read_text() if log.exists() else "")
