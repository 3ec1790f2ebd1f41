"""Run configurations and the addresses of steps."""

import json
import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from infra import storage
from infra.errors import BadInputError
from pipeline.cli import app
from pipeline.config import DatasetConfig, RunConfig, load_run_config
from pipeline.runner import plan
from pipeline.steps import RECORD_NAME, StepRecord

CONFIGS = Path(__file__).parents[2] / "pipeline" / "configs"
QUICKSTART = CONFIGS / "quickstart.yaml"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configurations_are_valid(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("train.parquet", "evaluation.parquet"):  # what own.yaml names: the pictures of whoever copies it
        (tmp_path / name).write_bytes(b"pictures")
    monkeypatch.chdir(tmp_path)
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


# ---- pictures of one's own --------------------------------------------------------------------------------------------


def with_pictures(*uris: Path, **more: object) -> RunConfig:
    source = {"kind": "pictures", "uris": [str(uri) for uri in uris], **more}
    return load_run_config(QUICKSTART, ("datasets.train.download={}", f"datasets.train.source={json.dumps(source)}"))


def test_pictures_are_a_source_known_by_its_content(tmp_path: Path) -> None:
    a, b = tmp_path / "a.parquet", tmp_path / "b.parquet"
    a.write_bytes(b"some pictures")
    b.write_bytes(b"other pictures")
    first = plan(with_pictures(a))
    assert [entry.step.name for entry in first][:3] == ["import-train", "curate-train", "shard-train"]
    assert first[0].step.title == "Import the train pictures"
    assert first[1].step.reads == ("import-train",)
    assert plan(with_pictures(b))[0].hash != first[0].hash
    assert plan(with_pictures(a, columns={"caption": "text"}))[0].hash != first[0].hash
    assert plan(with_pictures(a, tasks={"num_cpus": 2}))[0].hash == first[0].hash  # how, not what
    b.write_bytes(a.read_bytes())
    assert plan(with_pictures(b))[0].hash == first[0].hash
    assert plan(with_pictures(a, b))[0].hash != first[0].hash
    folder = tmp_path / "folder"
    folder.mkdir()
    a.rename(folder / "a.parquet")
    b.rename(folder / "b.parquet")
    assert plan(with_pictures(folder))[0].hash == plan(with_pictures(folder / "a.parquet", folder / "b.parquet"))[0].hash


def test_pictures_need_no_download_section_and_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"none\.parquet does not exist"):
        plan(with_pictures(tmp_path / "none.parquet"))
    source = f"datasets.train.source={{kind: pictures, uris: ['{tmp_path}/a.parquet']}}"
    with pytest.raises(BadInputError, match=r"datasets\.train: .*nothing is downloaded.*remove the section download"):
        load_run_config(QUICKSTART, (source,))


@pytest.mark.parametrize("guide", ["README.md", "docs/data.md"])
def test_the_datasets_of_a_guide_are_valid(guide: str) -> None:
    blocks = re.findall(r"^```yaml\n(.*?)^```$", (CONFIGS.parents[1] / guide).read_text(), re.MULTILINE | re.DOTALL)
    datasets = [dataset for block in blocks for dataset in yaml.safe_load(block)["datasets"].values()]
    assert {DatasetConfig.model_validate(dataset).source.kind for dataset in datasets} >= {"pictures"}


def test_a_parquet_in_place_of_a_configuration_is_told_where_it_belongs(tmp_path: Path) -> None:
    path = tmp_path / "pictures.parquet"
    path.write_bytes(b"PAR1\xff\xfe")
    with pytest.raises(BadInputError, match=r"no run configuration; name it in one as `source: \{kind: pictures, uris: \["):
        load_run_config(path)


# ---- a list in an object store ---------------------------------------------------------------------------------------


def test_a_remote_list_that_changed_after_its_download_stops_the_run() -> None:
    uri = "memory://lists/urls.parquet"
    storage.write_atomic(uri, b"the first list")
    config = load_run_config(QUICKSTART, (f"datasets.train.source={{kind: url_list, uri: '{uri}'}}",))
    step = plan(config)[0].step
    assert step.check_done is not None
    record = StepRecord(step=step.name, summary="", facts={"input_versions": {uri: storage.version_tag(uri)}}, seconds=1)
    step.check_done(record)
    storage.write_atomic(uri, b"another list")
    with pytest.raises(BadInputError, match=r"changed after it was read.*hyperclip clean"):
        step.check_done(record)
    storage.remove(uri)  # a store that does not answer says nothing, and what was downloaded is still there
    step.check_done(record)
    step.check_done(record.rebuilt(facts={"input_versions": {uri: None}}))
