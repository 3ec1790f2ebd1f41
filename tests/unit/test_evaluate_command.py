"""`hyperclip evaluate MODEL --dataset ...`, as a user calls it."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from infra.errors import BadInputError
from infra.tracking import Tracker, TrackingConfig
from pipeline.cli import app
from tests.unit.model_helpers import make_bundle, picture_bytes
from training.evaluation.result import ZeroShotResult
from training.evaluation.result_files import read_result
from training.model.registry import hyperclip_test, siglip_twin

SMALL = ("--set", "evaluation.ways=[3,6]", "--set", "evaluation.num_tasks=3")
NAMES = [f"thing {number}" for number in range(8)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    for seed in (0, 1):
        make_bundle(root / f"model {seed}", seed=seed)
        make_bundle(root / f"twin {seed}", siglip_twin(hyperclip_test()), seed=seed)
    return {path.name: str(path) for path in root.iterdir()}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("pictures") / "drawings.parquet"
    columns = {
        "image": [picture_bytes(20, 20, seed=number) for number in range(16)],
        "caption": NAMES * 2,
        "concept": NAMES * 2,
        "group": ["toys/small"] * 4 + ["tools"] * 4 + ["toys/large"] * 4 + ["tools"] * 4,
        "artist": ["ink"] * 8 + ["oil"] * 8,
    }
    pq.write_table(pa.table(columns), path)
    return str(path)


def called(*arguments: str) -> Result:
    result = CliRunner().invoke(app, ["evaluate", *arguments])
    assert result.exit_code == 0, result.output
    return result


def refused(*arguments: str) -> str:
    error = CliRunner().invoke(app, ["evaluate", *arguments]).exception
    assert isinstance(error, BadInputError)
    return str(error)


def test_a_model_and_its_twin_on_pictures_with_topics_and_styles(models: dict[str, str], pictures: str, tmp_path: Path) -> None:
    tracking = TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db", artifact_uri=str(tmp_path / "artifacts"))
    tracker = Tracker(tracking)
    folder = tmp_path / "out"
    said = called(
        *(models["model 0"], models["model 1"], "--twin", models["twin 0"], "--twin", models["twin 1"]),
        *("--dataset", pictures, *SMALL, "--set", "evaluation.distractor_share=0.4"),
        *("--set", "evaluation.readings={style: {column: artist}}", "--output", str(folder), "--tracking-uri", tracking.uri),
    ).output
    assert "3 names, same topic: 3 tasks" in said
    assert "3 names, random, 1 distractors" in said
    assert "2 names, random, by style" in said
    assert "not possible: 6 names, same topic" in said
    assert "recall@1" in said
    result = read_result(str(folder))
    assert (len(result.bundle_digests), len(result.twin_digests)) == (2, 2)
    assert [one.topic for one in next(one for one in result.families if one.topics).topics] == ["tools", "toys"]
    for name in ("accuracy.png", "gain_per_topic.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    run_id = said.split("run ")[-1].strip()
    assert (
        tracker.metric_history(run_id, "accuracy_3_way.twin_orthogonal")[0][1]
        == result.headline.accuracy["twin_orthogonal"].mean
    )
    logged = tracker.artifact_names(run_id, "evaluation")
    assert logged == {f"evaluation/{name}" for name in ("accuracy.png", "gain_per_topic.png", "evaluation.json")}


def test_the_same_command_gives_the_same_file(models: dict[str, str], pictures: str, tmp_path: Path) -> None:
    for name in "ab":
        called(models["model 0"], "--dataset", pictures, *SMALL, "--output", str(tmp_path / name))
    first, second = ((tmp_path / name / "evaluation.json").read_bytes() for name in "ab")
    assert first == second
    assert ZeroShotResult.model_validate(json.loads(first)).dataset == "drawings"


def test_templates_of_a_file_are_used(models: dict[str, str], pictures: str, tmp_path: Path) -> None:
    (tmp_path / "templates.txt").write_text("an icon of a {}\n")
    output = tmp_path / "out"
    called(
        *(models["model 0"], "--dataset", pictures, *SMALL, "--templates", str(tmp_path / "templates.txt")),
        *("--where", "artist=oil", "--output", str(output)),
    )
    result = read_result(str(output))
    assert result.templates == ("an icon of a {}",)
    assert result.num_pictures == 8


def test_one_name_among_those_of_other_files(models: dict[str, str], pictures: str, tmp_path: Path) -> None:
    names = tmp_path / "names.parquet"
    pq.write_table(pa.table({"caption": ["saw", "hammer", "drill"], "group": ["tools"] * 3}), names)
    kind = ("--set", "evaluation.kinds=[held_out_among_known]", "--set", "evaluation.ways=[3]")
    called(models["model 0"], "--dataset", pictures, "--names-from", str(names), *kind, "--output", str(tmp_path / "out"))
    (family,) = read_result(str(tmp_path / "out")).families
    assert family.family.slug == "3_way_held_out_among_known"
    assert [topic.topic for topic in family.topics] == ["tools"]
    assert (tmp_path / "out" / "accuracy.png").exists()
    assert "none were given (names_from)" in refused(models["model 0"], "--dataset", pictures, *kind)


def test_what_does_not_fit_together_is_refused(models: dict[str, str], pictures: str, tmp_path: Path) -> None:
    model = models["model 0"]
    assert "--dataset PATH" in refused(model, "--output", str(tmp_path / "new"))
    assert "--dataset PATH" in refused(model, model)
    assert "1 models and 2 twins" in refused(model, "--dataset", pictures, "--twin", model, "--twin", model)
    assert "not an empty folder" in refused(model, "--dataset", pictures, "--output", str(Path(pictures).parent))
    assert "evaluation.way: " in refused(model, "--dataset", pictures, "--set", "evaluation.way=[3]")
    assert "COLUMN=VALUE" in refused(model, "--dataset", pictures, "--where", "artist")
    assert "30-way tasks need 30" in refused(model, "--dataset", pictures, "--set", "evaluation.ways=[30]")
    assert "there is no bundle folder" in refused("absent/model", "--dataset", pictures)


def test_a_bad_dataset_is_one_line_and_exit_status_2(models: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "bad.parquet"
    pq.write_table(pa.table({"image": [b"<html>"] * 3, "caption": NAMES[:3]}), path)
    command = [sys.executable, "-m", "pipeline.cli", "evaluate", models["model 0"], "--dataset", str(path), *SMALL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "3 of 3 pictures of bad cannot be read" in done.stderr
    assert "Traceback" not in done.stderr
