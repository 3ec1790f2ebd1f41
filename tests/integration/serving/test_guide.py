"""What docs/serving.md and docs/edge.md tell people to type, typed: blocks marked `sh` and `python`, in their order."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.serving_helpers import picture

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed"),
]
ROOT = Path(__file__).parents[3]
WRITTEN_URL = "http://127.0.0.1:8000"
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def as_one_script(guide: Path, url: str) -> str:
    """A shell script of all blocks, so that a variable set in one is known in the next."""
    blocks = BLOCK.findall(guide.read_text())
    assert {kind for kind, _ in blocks} == {"sh", "python"}
    parts = [text if kind == "sh" else f"python - <<'PYTHON'\n{text}PYTHON\n" for kind, text in blocks]
    return "\n".join(parts).replace(WRITTEN_URL, url)


@pytest.mark.parametrize(
    ("guide", "said", "made"),
    [
        (
            "serving.md",
            ["pizza  score 0.", "404 there is no such task", "is there twice, at 1 and 2"],
            {"task.json", "picture-features.json", "text-features.json", "package.zip", "edge.zip"},
        ),
        ("edge.md", ["3 labels", "score 0.", "model_sha256"], {"edge", "package", "package.zip", "unpacked"}),
    ],
)
def test_a_guide_does_what_it_says(
    guide: str, said: list[str], made: set[str], base_url: str, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "photo.jpg").write_bytes(picture(0, kind="JPEG", side=80))
    (tmp_path / "bundle").symlink_to(folder / "bundle")
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "NO_PROXY": "*",
    }
    script = f"set -euo pipefail\n{as_one_script(ROOT / 'docs' / guide, base_url)}"
    run = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert run.returncode == 0, f"{run.stdout[-1500:]}\n{run.stderr[-1500:]}"
    for text in said:
        assert text in run.stdout
    assert made <= {path.name for path in tmp_path.iterdir()}
