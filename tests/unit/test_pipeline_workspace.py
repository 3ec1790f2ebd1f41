"""What a workspace holds: `plan` and `status` tell it, `clean` removes it."""

import shlex
import shutil
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from infra import storage
from infra.errors import BadInputError
from pipeline.cleaning import made_by_any
from pipeline.cli import app
from pipeline.config import load_run_config
from pipeline.data_steps import data_steps
from pipeline.report import report_uri
from pipeline.runner import only_run_in, plan, state_uri
from pipeline.steps import RECORD_NAME, StepRecord

CONFIGS = Path(__file__).parents[2] / "pipeline" / "configs"
QUICKSTART = CONFIGS / "quickstart.yaml"


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
    (last,) = (line for line in told.splitlines() if line.startswith("1 of 14 steps done; continue: "))
    program, *arguments = shlex.split(last.partition("continue: ")[2])
    assert arguments == ["run", *begun]
    assert Path(shutil.which(program) or "").samefile(Path(sys.executable).with_name("hyperclip"))  # so it can be pasted


def test_status_tells_where_a_step_that_was_cut_off_goes_on(begun: tuple[str, ...]) -> None:
    planned = {entry.step.name: entry.output_uri for entry in plan(load_run_config(QUICKSTART, begun[2:]))}
    storage.write_atomic(f"{planned['download-evaluation']}/raw/partitions/00000.json", b"{}")
    for step, files in ((100, ("checkpoint.json",)), (200, ("checkpoint.json",)), (300, ("parameters.safetensors",))):
        for name in files:
            storage.write_atomic(f"{planned['train']}/checkpoints/step-{step:08d}/{name}", b"{}")
    lines = CliRunner().invoke(app, ["status", *begun]).output.splitlines()
    assert lines[lines.index("begun  Train the model") + 1] == "       goes on at step 200 of 300"
    assert lines[lines.index("begun  Download the evaluation pictures") + 1] == "       goes on after 1 finished partition"


def test_status_counts_a_finished_run_as_whole(begun: tuple[str, ...]) -> None:
    for entry in plan(load_run_config(QUICKSTART, begun[2:])):
        record = StepRecord(step=entry.step.name, summary="done", seconds=1)
        storage.write_atomic(f"{entry.output_uri}/{RECORD_NAME}", record.model_dump_json())
    assert CliRunner().invoke(app, ["status", *begun]).output.splitlines()[-1] == "14 of 14 steps done"


def test_a_finished_download_is_refused_that_brought_less_than_is_asked_for_by_now() -> None:
    config = load_run_config(QUICKSTART, ("datasets.train.download.min_success_rate=0.9",))
    download = data_steps(config, "train")[0]
    facts = {"requested": 110, "downloaded": 85, "failed": {"http_404": 15, "repeated": 6, "removed": 4}}
    record = StepRecord(step=download.name, summary="done", seconds=1, facts=facts)
    assert download.check_done and download.goes_on
    assert not download.goes_on(record)
    with pytest.raises(
        BadInputError, match=r"brought 85 of 100 pictures, 85.0%, and min_success_rate is 90.0% by now: .*rounds=2"
    ):
        download.check_done(record)


OTHER = "download-train-0123456789ab"
"""The folder of a configuration that nobody has any more."""


@pytest.fixture
def workspace(begun: tuple[str, ...], tmp_path: Path) -> Path:
    """With what one configuration made, and things that are not its own."""
    folder = tmp_path / "w"
    config = load_run_config(QUICKSTART, begun[2:])
    for uri in (report_uri(config), state_uri(config), str(folder / "my-notes-report.html")):
        storage.write_atomic(uri, b"x")
    for name in (OTHER, "mlflow", "tasks", "my-own-train-data"):
        (folder / name).mkdir()
    return folder


def names_in(workspace: Path) -> set[str]:
    return {path.name for path in workspace.iterdir()} - {".lock"}


def test_clean_asks_first_and_removes_what_this_configuration_made_only(begun: tuple[str, ...], workspace: Path) -> None:
    before = names_in(workspace)
    assert CliRunner().invoke(app, ["clean", *begun], input="n\n").exit_code == 1
    assert names_in(workspace) == before
    done = CliRunner().invoke(app, ["clean", *begun, "--yes"]).output
    assert "Removed 4 files and folders" in done  # two steps, the report, and the record of its MLflow runs
    assert names_in(workspace) == {OTHER, "mlflow", "tasks", "my-own-train-data", "my-notes-report.html", "runs"}
    assert not list((workspace / "runs").iterdir())
    assert f"MLflow's runs and models stay: sqlite:///{workspace}/mlflow/mlflow.db" in done
    assert "1 step folder stays, of other configurations" in done
    assert OTHER in done
    assert "Nothing to remove" in CliRunner().invoke(app, ["clean", *begun, "--yes"]).output
    storage.write_atomic(report_uri(load_run_config(QUICKSTART, begun[2:])), b"x")
    assert "Removed 1 file or folder." in CliRunner().invoke(app, ["clean", *begun, "--yes"]).output


def test_clean_all_removes_what_any_configuration_made_and_never_mlflow(begun: tuple[str, ...], workspace: Path) -> None:
    done = CliRunner().invoke(app, ["clean", *begun, "--all", "--yes"])
    assert done.exit_code == 0, done.output
    assert names_in(workspace) == {"mlflow", "my-own-train-data", "my-notes-report.html"}


def test_clean_all_needs_no_list_that_is_gone(begun: tuple[str, ...], workspace: Path) -> None:
    gone = (*begun, "--set", "datasets.train.source={kind: url_list, uri: nowhere.parquet}", "--yes")
    assert isinstance(CliRunner().invoke(app, ["clean", *gone]).exception, BadInputError)
    assert OTHER in names_in(workspace)
    assert CliRunner().invoke(app, ["clean", *gone, "--all"]).exit_code == 0
    assert OTHER not in names_in(workspace)


@pytest.mark.parametrize("option", [[], ["--all"]])
def test_clean_does_not_touch_a_run_in_progress(begun: tuple[str, ...], workspace: Path, option: list[str]) -> None:
    before = names_in(workspace)
    with only_run_in(str(workspace)):
        refused = CliRunner().invoke(app, ["clean", *begun, *option, "--yes"])
    assert isinstance(refused.exception, BadInputError)
    assert f"another run uses {workspace}; wait for it" in str(refused.exception)
    assert names_in(workspace) == before


def test_every_step_folder_is_known_by_its_name(begun: tuple[str, ...], workspace: Path) -> None:
    planned = [entry.output_uri for entry in plan(load_run_config(QUICKSTART, begun[2:]))]
    for uri in planned:
        storage.make_folder(uri)
    folders = [uri for uri in made_by_any(str(workspace)) if OTHER not in uri][: len(planned)]
    assert set(folders) == set(planned)
    # removed in an order that leaves no done step without its input, wherever it is cut off
    stages = [Path(uri).name.partition("-")[0] for uri in folders]
    assert list(dict.fromkeys(stages)) == [
        "serve",
        "shipped",
        "export",
        "register",
        "evaluate",
        "train",
        "describe",
        "shard",
        "curate",
        "download",
    ]


def test_a_plan_is_made_without_reaching_the_workspace() -> None:
    result = CliRunner().invoke(app, ["plan", str(CONFIGS / "datacomp_medium.yaml")])
    assert result.exit_code == 0, result.output
    assert "?      Train the model" in result.output
    assert "cannot be reached from here" in result.output
