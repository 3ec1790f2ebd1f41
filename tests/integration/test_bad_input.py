"""Bad input through the real command: a clear message, an exit status, no traceback, and nothing half-made that counts."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.manifest import read_manifest
from data_prep.raw import iter_outcomes
from data_prep.sample.links import write_url_list
from data_prep.sample.serve import serving_sample
from infra import storage
from infra.cluster import ClusterConfig, connected
from infra.tracking import TrackingConfig
from pipeline import runner
from pipeline.config import load_run_config
from pipeline.console import ConsoleObserver
from tests.command import Command, Ended
from tests.unit.model_helpers import picture_bytes

pytestmark = pytest.mark.integration
QUICKSTART = str(Path(__file__).parents[2] / "pipeline" / "configs" / "quickstart.yaml")


class Run:
    """A run configuration in a workspace of its own."""

    def __init__(self, workspace: Path, hyperclip: Command) -> None:
        self.workspace, self._hyperclip = workspace, hyperclip
        self.settings = [f"workspace={workspace}"]

    def __call__(self, command: str) -> Ended:
        return self._hyperclip(command, QUICKSTART, *(part for setting in self.settings for part in ("--set", setting)))

    def download_from(self, uri: Path, dataset: str = "train", **settings: object) -> None:
        self.settings.append(f"datasets.{dataset}.source={{kind: url_list, uri: '{uri}'}}")
        self.settings += [f"datasets.{dataset}.download.{name}={json.dumps(value)}" for name, value in settings.items()]

    def folder(self, step: str) -> Path:
        (found,) = self.workspace.glob(f"{step}-*")
        return found

    def planned(self) -> dict[str, str]:
        """Address of each step."""
        config = load_run_config(Path(QUICKSTART), tuple(self.settings))
        return {entry.step.name: entry.output_uri for entry in runner.plan(config)}

    def done(self) -> list[str]:
        return sorted(path.parent.name.rpartition("-")[0] for path in self.workspace.glob("*/step.json"))


@pytest.fixture
def run(tmp_path: Path, hyperclip: Command, new_tracking: Callable[[Path], TrackingConfig]) -> Iterator[Run]:
    before = mlflow.get_tracking_uri()
    new_tracking(tmp_path / "workspace")
    yield Run(tmp_path / "workspace", hyperclip)
    mlflow.set_tracking_uri(before)


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    with connected(ClusterConfig(num_cpus=2)):
        yield


def write_rows(path: Path, rows: list[dict[str, object]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


# ---- the command itself, as a process --------------------------------------------------------------------------------


def test_a_missing_list_ends_the_real_command_before_anything_is_made(tmp_path: Path) -> None:
    settings = (f"workspace={tmp_path}/workspace", "datasets.train.source={kind: url_list, uri: nowhere.parquet}")
    command = [Path(sys.executable).with_name("hyperclip"), "run", QUICKSTART, "--set", settings[0], "--set", settings[1]]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == 2
    assert ended.stderr == "error: nowhere.parquet does not exist\n"
    assert ended.stdout == ""
    assert not (tmp_path / "workspace").exists()


# ---- configuration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("training.num_stepz=3", "training.num_stepz: there is no such setting; did you mean num_steps?"),
        ("training.model=nothing", "unknown model 'nothing'; available:"),
        ("evaluation.ways=[0]", "evaluation.ways.0: Input should be greater than 0 (got 0)"),
        ("showcase.labels=[]", "showcase.labels"),
        ("name=Not A Name", "name: String should match pattern"),
        ("nonsense", "is not of the form a.b=value"),
    ],
)
def test_a_wrong_setting_is_named(run: Run, setting: str, says: str) -> None:
    run.settings.append(setting)
    ended = run("run")
    assert ended.status == 2
    assert says in ended.error
    assert run.done() == []


@pytest.mark.parametrize(
    ("text", "says"), [("a: [", "is not valid YAML"), ("- a", "expected a mapping"), ("", "expected a mapping")]
)
def test_a_file_that_is_no_configuration_is_refused(hyperclip: Command, tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "run.yaml").write_text(text)
    ended = hyperclip("plan", str(tmp_path / "run.yaml"))
    assert ended.status == 2
    assert says in ended.error


def test_a_workspace_that_cannot_be_written_is_named(hyperclip: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    ended = hyperclip("run", QUICKSTART, "--set", f"workspace={tmp_path}/file/workspace")
    assert ended.status == 2
    assert "cannot write into the workspace" in ended.error


# ---- lists of URLs ---------------------------------------------------------------------------------------------------

ROW = {"url": "http://pictures.invalid/a.jpg", "caption": "a cat"}
UNUSABLE: list[tuple[str, Callable[[Path], object], str]] = [
    ("text", lambda path: path.write_text("url,caption\nhttp://a/b.jpg,cat\n"), "is not a readable parquet file"),
    ("cut", lambda path: path.write_bytes(write_rows(path, [ROW]).read_bytes()[:-20]), "is not a readable parquet file"),
    ("columns", lambda path: write_rows(path, [{"link": "http://a/b.jpg", "caption": "cat"}]), "has no column 'url'"),
    ("types", lambda path: write_rows(path, [{"url": 1.5, "caption": "cat"}]), "column 'url' is double"),
]


@pytest.mark.parametrize(("write", "says"), [case[1:] for case in UNUSABLE], ids=[case[0] for case in UNUSABLE])
@pytest.mark.parametrize("command", ["plan", "download"])
def test_a_list_that_cannot_be_used_is_refused_before_anything_is_made(
    run: Run, tmp_path: Path, write: Callable[[Path], object], says: str, command: str
) -> None:
    write(tmp_path / "urls.parquet")
    run.download_from(tmp_path / "urls.parquet")
    ended = run(command)
    assert ended.status == 2
    assert says in ended.error
    assert [path.name for path in run.workspace.iterdir()] == ["mlflow"]


def test_a_list_with_rows_that_cannot_be_used_is_refused_and_nothing_counts_as_done(
    run: Run, tmp_path: Path, ray_cluster: None
) -> None:
    run.download_from(write_rows(tmp_path / "urls.parquet", [ROW | {"uid": "a"}, ROW | {"uid": "a"}]))
    ended = run("download")
    assert ended.status == 2
    assert "Remove the repetitions" in ended.error
    assert run.done() == []
    assert "begun  Download the train pictures" in run("status").output


def test_a_list_where_everything_fails_says_why_and_is_tried_again(run: Run, tmp_path: Path, ray_cluster: None) -> None:
    rows = [{"url": f"http://127.0.0.1:9/{i}.jpg", "caption": f"thing {i}"} for i in range(20)]  # loopback is not allowed
    run.download_from(write_rows(tmp_path / "urls.parquet", [*rows, {"url": "mailto:a@b.c", "caption": "no link"}]))
    for _ in range(2):
        ended = run("download")
        assert ended.status == 1
        assert "only 0 of 21 pictures were downloaded: 0.0%" in ended.error
        assert "forbidden_address 20, bad_url 1" in ended.error
        assert "the list names 127.0.0.1:9. The setting: datasets.train.download.policy.allowed_private_hosts" in ended.error
        outcomes = run.folder("download-train") / "raw" / "outcomes"
        assert f"What became of each row: {outcomes}" in ended.error
        assert pq.read_table(outcomes).num_rows == 21
        assert run.done() == []


def test_more_rounds_of_a_finished_download_go_on_in_its_folder(run: Run, tmp_path: Path, ray_cluster: None) -> None:
    with serving_sample() as base:
        write_url_list(str(tmp_path / "all.parquet"), split="evaluation", base_url=base)
        rows = pq.read_table(tmp_path / "all.parquet").slice(0, 10).to_pylist()
        rows[0]["url"], rows[1]["url"] = f"{base}/status/503", f"{base}/status/404"
        policy = {"allowed_private_hosts": [base.removeprefix("http://")], "retry_wait_s": 0}
        for dataset in ("train", "evaluation"):
            run.download_from(write_rows(tmp_path / "urls.parquet", rows), dataset, policy=policy)
        assert "8 of 10 downloaded, 2 failed: http_404 1, http_503 1" in run("download").output
        before = run.planned()
        run.settings.append("datasets.train.download.rounds=2")
        after = run.planned()
        assert [name for name in before if before[name] == after[name]][:2] == ["download-train", "download-evaluation"]
        assert before["curate-train"] != after["curate-train"]
        assert "begun  Download the train pictures" in run("status").output
        assert "8 of 10 downloaded in 2 rounds, 2 failed" in run("download").output
        raw = storage.join(after["download-train"], "raw")
        rounds = {row["uid"]: row["round"] for table in iter_outcomes(raw) for row in table.to_pylist()}
        assert [rounds[str(row["uid"])] for row in rows[:3]] == [2, 1, 1]
        run.settings.pop()
        assert "has been through 2 rounds" in run("download").error


# ---- pictures inside parquet files -----------------------------------------------------------------------------------


def test_pictures_of_ones_own_become_shards_and_bad_ones_are_counted(run: Run, tmp_path: Path, ray_cluster: None) -> None:
    rows: list[dict[str, object]] = [
        {"picture": picture_bytes(40, 40, seed=i), "text": f"thing {i}", "split": "train"} for i in range(8)
    ]
    rows += [{"picture": b"<html>", "text": "a page", "split": "train"}, rows[0] | {"split": "test", "text": "not taken"}]
    uri = write_rows(tmp_path / "pictures.parquet", rows)
    source = {"kind": "pictures", "uris": [str(uri)], "columns": {"image": "picture", "caption": "text"}}
    run.settings += [f"datasets.train.source={json.dumps(source | {'only': {'split': ['train']}})}"]
    assert "remove the section download" in run("import").error
    run.settings += ["datasets.train.download={}"]
    ended = run("import")
    assert ended.status == 0, ended.error
    assert "Import the train pictures" in ended.output and "8 of 9 imported, 1 failed: not_an_image 1" in ended.output
    assert "Download" not in ended.output
    again = run("import")
    assert "Import the train pictures (done before)" in again.output
    run.settings.append("datasets.train.curate.filters.min_side=500")
    none_kept = run("curate")
    assert none_kept.status == 2
    assert "none of 8 samples is kept. The rule 'size' dropped most, 8: too_small 8" in none_kept.error
    assert "To go on, change datasets.train.curate.filters.min_side" in none_kept.error
    run.settings.pop()
    runner.run(load_run_config(Path(QUICKSTART), tuple(run.settings)), ConsoleObserver(), until="shard-train")
    assert run.done() == ["curate-train", "import-train", "shard-train"]
    assert read_manifest(str(run.folder("shard-train"))).num_samples == 8


def test_no_picture_that_can_be_used_fails_the_import(run: Run, tmp_path: Path, ray_cluster: None) -> None:
    uri = write_rows(tmp_path / "pictures.parquet", [{"image": b"<html>", "caption": "a page"}])
    run.settings += ["datasets.train.download={}", f"datasets.train.source={{kind: pictures, uris: ['{uri}']}}"]
    ended = run("import")
    assert ended.status == 1
    assert "only 0 of 1 pictures could be used" in ended.error
    assert run.done() == []


# ---- damage between two steps ----------------------------------------------------------------------------------------


def test_damaged_shards_are_named_and_not_built_upon(run: Run, tmp_path: Path, ray_cluster: None) -> None:
    """A raw shard is cut short before curation; then, mended, a training shard before training."""
    with serving_sample() as base:
        write_url_list(str(tmp_path / "all.parquet"), split="evaluation", base_url=base)
        pq.write_table(pq.read_table(tmp_path / "all.parquet").slice(0, 40), tmp_path / "urls.parquet")
        for dataset in ("train", "evaluation"):
            run.download_from(
                tmp_path / "urls.parquet", dataset, policy={"allowed_private_hosts": [base.removeprefix("http://")]}
            )
        run.settings += ["training.model=hyperclip_test", "training.contrastive_batch_size=8"]
        assert run("download").status == 0
    raw = next((run.folder("download-train") / "raw").rglob("*.tar"))
    whole = raw.read_bytes()
    raw.write_bytes(whole[: len(whole) // 2])
    ended = run("curate")
    assert ended.status == 1
    assert raw.name in ended.error
    assert run.done() == ["download-evaluation", "download-train"]

    raw.write_bytes(whole)
    runner.run(load_run_config(Path(QUICKSTART), tuple(run.settings)), ConsoleObserver(), until="shard")
    assert "shard-train" in run.done()
    shard = next(run.folder("shard-train").glob("*.tar"))
    shard.write_bytes(shard.read_bytes()[:-1024])
    ended = run("train")
    assert ended.status == 1
    assert f"{shard.name}: " in ended.error
    assert "are damaged" in ended.error
    assert "train" not in run.done()
    assert not (run.folder("train") / "bundle").exists()
