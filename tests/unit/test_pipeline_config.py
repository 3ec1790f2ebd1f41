"""Run configurations and the addresses of steps."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from infra import storage
from infra.errors import BadInputError
from pipeline.cli import app
from pipeline.config import load_run_config
from pipeline.runner import plan
from pipeline.steps import RECORD_NAME, StepRecord

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


def test_how_it_is_watched_changes_nothing_but_what_must_be_there_first() -> None:
    watched = load_run_config(QUICKSTART, ("training.evaluation.every_steps=200",))
    assert {entry.step.name: entry.hash for entry in plan(watched)} == addresses()
    steps = [entry.step for entry in plan(watched)]
    assert next(step for step in steps if step.name == "train").watches == ("shard-evaluation",)
    assert [step.name for step in steps].index("shard-evaluation") < [step.name for step in steps].index("train")


def test_evaluations_follow_checkpoints() -> None:
    with pytest.raises(BadInputError, match=r"evaluation\.every_steps=150 is not a multiple of checkpoint\.every_steps=100"):
        load_run_config(QUICKSTART, ("training.evaluation.every_steps=150",))


def test_plan_changes_nothing(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["plan", str(QUICKSTART), "--set", f"workspace={tmp_path}/w"])
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "w").exists()


# ---- plan, status, clean ---------------------------------------------------------------------------------------------


@pytest.fixture
def begun(tmp_path: Path) -> tuple[str, ...]:
    """Arguments of a run with one step done and one begun."""
    settings = (f"workspace={tmp_path}/w",)
    planned = plan(load_run_config(QUICKSTART, settings))
    record = StepRecord(step="download-train", summary="7 of 8 downloaded", seconds=3)
    storage.write_atomic(f"{planned[0].output_uri}/{RECORD_NAME}", record.model_dump_json())
    storage.write_atomic(f"{planned[1].output_uri}/keep.parquet", b"half")
    return (str(QUICKSTART), "--set", *settings)


def test_plan_and_status_tell_what_is_done_begun_and_to_do(begun: tuple[str, ...]) -> None:
    lines = CliRunner().invoke(app, ["plan", *begun]).output.splitlines()
    assert lines[0] == "done   Download the train pictures"
    assert lines[2] == "begun  Filter and deduplicate the train pictures"
    assert lines[4] == "to do  Write the train shards"
    told = CliRunner().invoke(app, ["status", *begun]).output
    assert "       7 of 8 downloaded (3 s)" in told
    assert f"1 of 11 steps done; continue: hyperclip run {QUICKSTART}" in told


def test_status_counts_a_finished_run_as_whole(begun: tuple[str, ...]) -> None:
    for entry in plan(load_run_config(QUICKSTART, begun[2:])):
        record = StepRecord(step=entry.step.name, summary="done", seconds=1)
        storage.write_atomic(f"{entry.output_uri}/{RECORD_NAME}", record.model_dump_json())
    assert CliRunner().invoke(app, ["status", *begun]).output.splitlines()[-1] == "11 of 11 steps done"


def test_clean_asks_first_and_removes_the_steps_of_this_configuration_only(begun: tuple[str, ...], tmp_path: Path) -> None:
    other = tmp_path / "w" / "download-train-of-another-configuration"
    other.mkdir()
    (tmp_path / "w" / "mlflow").mkdir()
    refused = CliRunner().invoke(app, ["clean", *begun], input="n\n")
    assert refused.exit_code == 1
    assert len(list((tmp_path / "w").iterdir())) == 4
    done = CliRunner().invoke(app, ["clean", *begun, "--yes"])
    assert "Removed 2 folders" in done.output
    assert sorted(path.name for path in (tmp_path / "w").iterdir()) == [other.name, "mlflow"]
    assert "Nothing to remove" in CliRunner().invoke(app, ["clean", *begun, "--yes"]).output


def test_a_plan_is_made_without_reaching_the_workspace() -> None:
    result = CliRunner().invoke(app, ["plan", str(CONFIGS / "datacomp_medium.yaml")])
    assert result.exit_code == 0, result.output
    assert "?      Train the model" in result.output
    assert "cannot be reached from here" in result.output


# ---- a list in an object store ---------------------------------------------------------------------------------------


def test_a_remote_list_that_changed_after_its_download_stops_the_run() -> None:
    uri = "memory://lists/urls.parquet"
    storage.write_atomic(uri, b"the first list")
    config = load_run_config(QUICKSTART, (f"datasets.train.source={{kind: url_list, uri: '{uri}'}}",))
    step = plan(config)[0].step
    assert step.check_done is not None
    record = StepRecord(step=step.name, summary="", facts={"list_version": storage.version_tag(uri)}, seconds=1)
    step.check_done(record)
    storage.write_atomic(uri, b"another list")
    with pytest.raises(BadInputError, match=r"changed after it was downloaded.*hyperclip clean"):
        step.check_done(record)
    storage.remove(uri)  # a store that does not answer says nothing, and what was downloaded is still there
    step.check_done(record)
    step.check_done(record.rebuilt(facts={"list_version": None}))
