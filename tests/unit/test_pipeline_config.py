"""Run configurations and the addresses of steps."""

import contextlib
import json
import re
import signal
import socket
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from infra import storage
from infra.errors import BadInputError
from pipeline.cli import app
from pipeline.config import DatasetConfig, RunConfig, load_run_config
from pipeline.runner import plan
from pipeline.serve_command import _ended_by_signals
from pipeline.settings import list_settings
from pipeline.steps import StepRecord

CONFIGS = Path(__file__).parents[2] / "pipeline" / "configs"
QUICKSTART = CONFIGS / "quickstart.yaml"
RUNS = sorted(set(CONFIGS.glob("*.yaml")) - set(CONFIGS.glob("sweep_*.yaml")))


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_shipped_configurations_are_valid(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in re.findall(r"(?<![\w:/.-])\w[\w./-]*\.parquet", path.read_text()):  # the pictures of whoever runs it
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
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


# ---- a list in a folder ----------------------------------------------------------------------------------------------


def test_a_local_folder_of_lists_is_known_by_the_content_of_its_files(tmp_path: Path) -> None:
    def address() -> str:
        source = f"datasets.train.source={{kind: url_list, uri: '{tmp_path}'}}"
        return plan(load_run_config(QUICKSTART, (source,)))[0].output_uri

    def write(name: str, url: str) -> None:
        pq.write_table(pa.table({"url": [url], "caption": ["a cat"]}), tmp_path / name)

    write("a.parquet", "http://a.test/1.jpg")
    first = address()
    write("b.parquet", "http://a.test/2.jpg")
    second = address()
    assert first != second == address()
    write("b.parquet", "http://a.test/3.jpg")
    assert address() not in (first, second)
    pq.write_table(pa.table({"link": ["x"], "caption": ["a cat"]}), tmp_path / "b.parquet")
    with pytest.raises(BadInputError, match=r"b\.parquet has no column 'url'; its columns are: link, caption"):
        address()


# ---- the list of settings --------------------------------------------------------------------------------------------


def test_every_setting_of_the_shipped_configurations_is_listed() -> None:
    listed = {setting.path.replace(".NAME.", ".") for setting in list_settings(RunConfig)}

    def paths(value: object, prefix: str = "") -> set[str]:
        if not isinstance(value, dict) or prefix.endswith((".source_weights", ".max_reason_share")):
            return {prefix}
        return {path for key, inner in value.items() for path in paths(inner, f"{prefix}.{key}" if prefix else key)}

    for path in RUNS:
        used = paths(load_run_config(path).model_dump(exclude_none=True))
        assert {
            name.replace("datasets.train.", "datasets.").replace("datasets.evaluation.", "datasets.") for name in used
        } <= listed


def test_settings_shows_defaults_choices_and_meaning() -> None:
    told = CliRunner().invoke(app, ["settings", "training.precision"]).output.splitlines()
    assert told[0] == "training.precision  fp32 (default) | bf16"
    assert told[1].startswith("    bf16 computes under autocast")
    assert isinstance(CliRunner().invoke(app, ["settings", "no.such"]).exception, BadInputError)


def test_serve_says_at_once_that_its_port_is_taken_and_how_to_choose_another() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = CliRunner().invoke(app, ["serve", str(QUICKSTART), "--set", f"serving.port={port}"])
    assert isinstance(refused.exception, BadInputError)
    says = f"cannot listen on 127.0.0.1 port {port}: Address already in use; choose another: --set serving.port={port + 1}"
    assert says in str(refused.exception)


def test_serve_without_a_run_makes_nothing_and_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused = CliRunner().invoke(app, ["serve", str(QUICKSTART), "--set", "serving.port=0"])
    assert isinstance(refused.exception, BadInputError)
    assert "run " in str(refused.exception) and "the folder in which that was done" in str(refused.exception)
    assert not list(tmp_path.iterdir())


def test_ctrl_c_breaks_off_a_start_and_ends_what_runs_and_is_heard_once(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), _ended_by_signals():
        signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), _ended_by_signals() as stop:
        with contextlib.suppress(KeyboardInterrupt):  # as a callback of some library may
            signal.raise_signal(signal.SIGTERM)
        stop.started()
    with _ended_by_signals() as stop:
        stop.started()
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert stop.asked.is_set()
    assert capsys.readouterr().out == "Stopping …\n" * 3
    assert signal.getsignal(signal.SIGINT) is before


def test_the_version_is_shown() -> None:
    assert CliRunner().invoke(app, ["--version"]).output.startswith("hyperclip 0.")


@pytest.mark.parametrize("setting", ["init_from", "distillation.teacher"])
def test_a_model_to_start_or_learn_from_is_known_by_its_content(setting: str, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"bundle\.json does not exist"):
        addresses(f"training.{setting}={tmp_path / 'twin'}")
    found = []
    for place, content in (("twin", "one"), ("moved", "one"), ("other", "two")):
        (tmp_path / place).mkdir()
        (tmp_path / place / "bundle.json").write_text(content)
        found.append(addresses(f"training.{setting}={tmp_path / place}")["train"])
    assert found[0] == found[1] != found[2]
    assert found[0] != addresses()["train"]


def test_leaving_out_evaluation_pictures_takes_one_line_and_their_curation_comes_first(tmp_path: Path) -> None:
    line = "datasets.train.curate.exclude_near=[evaluation]"
    planned = plan(load_run_config(QUICKSTART, (line,)))
    names = [entry.step.name for entry in planned]
    assert names.index("curate-evaluation") < names.index("curate-train")
    assert "curate-evaluation" in next(entry.step.reads for entry in planned if entry.step.name == "curate-train")
    plain = {entry.step.name: entry.hash for entry in plan(load_run_config(QUICKSTART))}
    changed = {entry.step.name for entry in planned if entry.hash != plain[entry.step.name]}
    assert "curate-train" in changed
    assert not {"download-train", "curate-evaluation", "shard-evaluation"} & changed
    with pytest.raises(BadInputError, match="only train can leave out evaluation"):
        load_run_config(QUICKSTART, ("datasets.evaluation.curate.exclude_near=[train]",))


def test_a_changed_score_file_gives_a_new_address(tmp_path: Path) -> None:
    scores = tmp_path / "scores.parquet"
    line = f"datasets.train.curate.scores=[{{name: clip, uri: {scores}, min: 0.2}}]"
    with pytest.raises(BadInputError, match="does not exist"):
        plan(load_run_config(QUICKSTART, (line,)))
    hashes = []
    for content in (b"one", b"other"):
        scores.write_bytes(content)
        hashes.append({entry.step.name: entry.hash for entry in plan(load_run_config(QUICKSTART, (line,)))}["curate-train"])
    assert hashes[0] != hashes[1]
