""" "None of these": fitted on one half of the names, measured on the other, kept beside the bundle, in the answers."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from infra.errors import BadInputError, CorruptArtefactError
from pipeline.cli import app
from serving.config import ServingConfig
from tests.unit.model_helpers import picture_bytes
from tests.unit.serving_helpers import LocalService, make_bundle, picture, play
from training.bundle import load_bundle, read_bundle_manifest
from training.evaluation.measures import calibration
from training.evaluation.none_of_these import Predictions, _jobs, fit, half_of, predictions, probabilities
from training.evaluation.open_set import open_evaluation_set
from training.none_of_these import NONE_OF_THESE_NAME, Coefficients, NoneOfThese
from training.shipped import shipped_model_folder

STEEP = Coefficients(intercept=-2.0, best_match=-1.0, num_labels=0.5)
FLAT = Coefficients(intercept=0.0, best_match=0.0, num_labels=0.0)


def calibrated(digest: str, **coefficients: Coefficients) -> NoneOfThese:
    return NoneOfThese(
        bundle_digest=digest,
        coefficients=coefficients,  # type: ignore[arg-type]
        num_labels=(2, 50),
        fitted_on="a test",
        fitted_on_identity="0",
        num_predictions=100,
    )


def drawn(rng: np.random.Generator, number: int = 20_000) -> Predictions:
    """Predictions that `STEEP` is right about."""
    match = 1 / (1 + np.exp(-rng.normal(0, 3, number)))
    num_labels = rng.choice([2, 5, 20, 50], number)
    chance = probabilities(calibrated("", specialized=STEEP), _predictions(match, num_labels, np.zeros(number)))
    return _predictions(match, num_labels, (rng.random(number) < chance).astype(float))


def _predictions(match: np.ndarray, num_labels: np.ndarray, foreign: np.ndarray) -> Predictions:
    kind = np.full(len(match), "random")
    return Predictions("specialized", match, match, num_labels, foreign, kind, num_tasks=1)


def test_the_fit_says_how_often_it_is_right() -> None:
    rng = np.random.default_rng(0)
    found, other = drawn(rng), drawn(rng)
    # half of the pictures are foreign there by their weight, so compare where they are in number
    half = found.foreign.mean()
    assert 0.3 < half < 0.7
    said = probabilities(calibrated("", specialized=fit(found)), other)
    shifted = 1 / (1 + (1 / said - 1) * (1 - half) / half)
    assert calibration(shifted, other.foreign).ece < 0.03


def test_a_weaker_match_and_more_labels_make_none_of_these_likelier() -> None:
    found = calibrated("", specialized=STEEP)

    def said(match: float, num_labels: int) -> float:
        probability = found.probability(match, num_labels=num_labels, parameters="specialized")
        assert probability is not None and 0 <= probability <= 1
        return probability

    assert said(0.01, 10) > said(0.5, 10) > said(0.99, 10)
    assert said(0.5, 2) < said(0.5, 50) == said(0.5, 9000)  # beyond what was fitted nothing is made up
    assert said(0.0, 1) == said(0.0, 2) and said(1.0, 10_000) < 0.01  # the ends are numbers too
    assert found.probability(0.5, num_labels=2, parameters="neutral") is None


@pytest.fixture(scope="module")
def bundle_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("model") / "bundle")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("pictures") / "pictures.parquet"
    topics = ["animals/a", "tools/b"]
    rows = [
        {"image": picture_bytes(8, 8, seed=number), "caption": f"thing {number % 60}", "group": topics[number % 60 < 30]}
        for number in range(120)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def test_no_name_is_on_both_sides_and_foreign_pictures_are_foreign(pictures: str) -> None:
    found = open_evaluation_set([pictures], readings={}, only={})
    classes = found.objects.class_of_picture
    development, final = (half_of(found.objects, half).class_of_picture for half in ("development", "final"))  # type: ignore[arg-type]
    assert not set(development) & set(final) - {-1}
    assert ((development >= 0) ^ (final >= 0)).all()
    tasks = list(_jobs(half_of(found.objects, "final"), seed=0, num_tasks=3))
    assert {task.kind for task in tasks} == {"random", "same_topic"}
    for task in tasks:
        shown = classes[list(task.pictures)]
        assert (np.isin(shown, task.classes) == (task.foreign == 0)).all()
        assert task.foreign.mean() == 0.5
        if task.kind == "same_topic":  # near things first, others only when there are no more
            topic = found.objects.topic_of_class[task.classes[0]]
            near = np.array([number >= 0 and found.objects.topic_of_class[number] == topic for number in final])
            available = int((near & ~np.isin(classes, task.classes)).sum())
            foreign = [found.objects.topic_of_class[number] for number in shown[task.foreign > 0]]
            assert foreign.count(topic) == min(available, len(foreign))


def test_calibrating_changes_the_answers_and_not_the_model(bundle_folder: Path, pictures: str, tmp_path: Path) -> None:
    digest = read_bundle_manifest(bundle_folder).digest
    assert load_bundle(bundle_folder).none_of_these is None
    photo = tmp_path / "photo.png"
    photo.write_bytes(picture(1))
    asked = ["classify", str(photo), "--model", str(bundle_folder), "--labels", "cat,dog", "--format"]
    assert json.loads(CliRunner().invoke(app, [*asked, "json"]).stdout)[0]["none_of_these"] is None
    run = CliRunner().invoke(app, ["calibrate", str(bundle_folder), "--dataset", pictures, "--also-measure", pictures])
    assert run.exit_code == 0, run.output
    assert "other half of pictures: area under the curve 0." in run.output
    bundle = load_bundle(bundle_folder)
    assert bundle.digest == digest and bundle.none_of_these is not None
    assert [one.pictures for one in bundle.none_of_these.figures] == ["other half of pictures", "pictures"]
    (answer,) = json.loads(CliRunner().invoke(app, [*asked, "json"]).stdout)
    match = answer["predictions"][0]["match"]
    assert answer["none_of_these"] == bundle.none_of_these.probability(match, num_labels=2, parameters="specialized")
    assert "none of these" in CliRunner().invoke(app, [*asked, "table"]).stdout
    (bundle_folder / NONE_OF_THESE_NAME).unlink()


def test_too_few_names_are_refused(bundle_folder: Path, tmp_path: Path) -> None:
    rows = [{"image": picture_bytes(8, 8, seed=number), "caption": f"thing {number}"} for number in range(20)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "few.parquet")
    run = CliRunner().invoke(app, ["calibrate", str(bundle_folder), "--dataset", str(tmp_path / "few.parquet")])
    assert isinstance(run.exception, BadInputError) and "takes 16 and more" in str(run.exception)
    run = CliRunner().invoke(app, ["calibrate", str(tmp_path), "--dataset", str(tmp_path / "few.parquet")])
    assert isinstance(run.exception, BadInputError) and "name its folder" in str(run.exception)


def test_one_of_another_model_or_time_is_refused(bundle_folder: Path) -> None:
    path = bundle_folder / NONE_OF_THESE_NAME
    path.write_text(calibrated("f" * 64, specialized=STEEP).model_dump_json())
    with pytest.raises(CorruptArtefactError, match="belongs to model ffffffffffff"):
        load_bundle(bundle_folder)
    path.write_text('{"schema_version": 2}')
    with pytest.raises(BadInputError, match="reads up to 1"):
        load_bundle(bundle_folder)
    path.unlink()


def test_the_service_answers_with_it(bundle_folder: Path, tmp_path: Path) -> None:
    digest = read_bundle_manifest(bundle_folder).digest
    path = bundle_folder / NONE_OF_THESE_NAME

    async def scenario(local: LocalService) -> None:
        task = (await local.http.post("/v1/tasks", json={"labels": ["cat", "dog", "horse"]})).json()["task_id"]
        models = (await local.http.get("/v1/models")).json()["models"]
        for parameters, coefficients in (("specialized", STEEP), ("neutral", FLAT)):
            query = f"/v1/tasks/{task}/classify?parameters={parameters}"
            (answer,) = (await local.http.post(query, content=picture(1))).json()["results"]
            expected = None
            if path.exists():
                assert models[0]["none_of_these"]["coefficients"][parameters] == coefficients.model_dump()
                match = answer["predictions"][0]["match"]
                found = calibrated(digest, specialized=STEEP, neutral=FLAT)
                expected = found.probability(match, num_labels=3, parameters=parameters)  # type: ignore[arg-type]
            assert answer["none_of_these"] == expected

    config = ServingConfig(bundle_uri=str(bundle_folder), task_store_uri=str(tmp_path / "tasks"))
    play(config, scenario)
    path.write_text(calibrated(digest, specialized=STEEP, neutral=FLAT).model_dump_json())
    play(config, scenario)
    path.unlink()


def test_the_shipped_model_has_one_that_held_on_other_names() -> None:
    found = load_bundle(shipped_model_folder()).none_of_these
    assert found is not None and {"specialized", "neutral"} == set(found.coefficients)
    other_names = found.figures[0]
    assert other_names.auroc > other_names.auroc_of_match and other_names.ece < 0.05


def test_predictions_are_the_same_for_the_same_seed(bundle_folder: Path, pictures: str) -> None:
    from training.evaluation.model_on_set import ModelOnSet

    bundle, found = load_bundle(bundle_folder), open_evaluation_set([pictures], readings={}, only={})
    model = ModelOnSet.of(bundle, found, bundle.templates, {})
    first, second = (predictions(model, found.objects, seed=3, num_tasks=2)["specialized"] for _ in range(2))
    np.testing.assert_allclose(first.match, second.match, atol=1e-6)
    assert len(first.foreign) == len(first.match) == len(first.kind) == len(first.num_labels)
