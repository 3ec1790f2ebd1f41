"""Run configurations and the addresses of steps."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from infra.errors import BadInputError
from pipeline.cli import app
from pipeline.config import load_run_config
from pipeline.runner import plan

CONFIGS = Path(__file__).parents[2] / "pipeline" / "configs"
QUICKSTART = CONFIGS / "quickstart.yaml"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configurations_are_valid(path: Path) -> None:
    assert len(plan(load_run_config(path))) >= 9


def test_an_unknown_key_is_named_with_its_place() -> None:
    with pytest.raises(BadInputError, match=r"training\.num_stepz"):
        load_run_config(QUICKSTART, ("training.num_stepz=3",))


def test_a_missing_file_is_an_error_for_people() -> None:
    with pytest.raises(BadInputError, match="does not exist"):
        load_run_config(Path("nowhere.yaml"))


def addresses(*overrides: str) -> dict[str, str]:
    return {entry.step.name: entry.hash for entry in plan(load_run_config(QUICKSTART, overrides))}


def test_a_setting_changes_its_step_and_those_that_read_it_only() -> None:
    before, after = addresses(), addresses("training.seed=1")
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"train", "evaluate", "register", "export", "serve"}


def test_how_it_is_computed_changes_nothing() -> None:
    assert addresses() == addresses("training.workers.num_workers=2", "cluster.num_cpus=2", "training.loader_workers=0")


def test_plan_changes_nothing(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["plan", str(QUICKSTART), "--set", f"workspace={tmp_path}/w"])
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "w").exists()
