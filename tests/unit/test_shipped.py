"""The shipped model is whole, small and described; and what makes one refuses what must not be shipped."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from data_prep.sample.pictures import read_sample
from infra import artefacts
from infra.errors import BadInputError, ParityError
from pipeline import ship as ship_module
from pipeline.cli import app
from pipeline.model_page import PAGE_PATH, figures, write_model_page
from pipeline.ship import ship
from pipeline.trained_on import TrainedOn, read_trained_on
from serving.config import ServingConfig
from serving.engines.image_encoder import model_info
from tests.evaluation_results import family_result, zero_shot_result
from tests.unit.model_helpers import make_bundle, picture_bytes, trained_like
from tests.unit.serving_helpers import LocalService, picture, play
from training.bundle import load_bundle, read_bundle_manifest, save_bundle
from training.evaluation.result import ZeroShotResult
from training.model.registry import hyperclip_test
from training.preprocess import PreprocessConfig
from training.shipped import EVALUATION_NAME, MAX_BYTES, NOTICE_NAME, note_of, shipped_model_folder, shipped_model_name

# ---- the one that is there -------------------------------------------------------------------------------------------


def test_it_is_whole_small_and_a_hyperclip() -> None:
    folder = shipped_model_folder()
    bundle = load_bundle(folder)
    assert sum(path.stat().st_size for path in folder.iterdir()) <= MAX_BYTES
    assert bundle.model.config.name == shipped_model_name()
    assert bundle.model.hypernetwork is not None
    assert "drawings, not photographs" in (folder / "README.md").read_text()
    note = model_info(bundle, name="shipped-model", version="1").note
    assert note is not None and "not photographs" in note and note_of("0" * 64) is None
    assert "licensed under the Apache License 2.0" in (folder / NOTICE_NAME).read_text()


@pytest.mark.parametrize("kind", ["sdist", "wheel"])
def test_it_is_in_a_distribution(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("setuptools", minversion="80")  # as pyproject.toml asks for
    root = tmp_path / "checkout"
    shutil.copytree(shipped_model_folder().parent, root / "training", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(PAGE_PATH.parents[1] / name, root)
    code = f"from setuptools import build_meta; build_meta.build_{kind}('dist')"
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, capture_output=True)
    (archive,) = (root / "dist").iterdir()
    names = zipfile.ZipFile(archive).namelist() if kind == "wheel" else tarfile.open(archive).getnames()  # noqa: SIM115
    inside = {name.partition("training/shipped_model/")[2] for name in names} - {""}
    assert inside == {path.name for path in shipped_model_folder().iterdir()}


def test_its_page_has_the_figures_of_its_files(tmp_path: Path) -> None:
    page = tmp_path / "model.md"
    page.write_text(PAGE_PATH.read_text())
    write_model_page(page)
    assert page.read_text() == PAGE_PATH.read_text(), "run python -m pipeline.model_page"


def test_its_evaluation_is_of_it() -> None:
    path = shipped_model_folder() / EVALUATION_NAME
    if path.exists():
        found = artefacts.read_model(str(path), ZeroShotResult).bundle_digests
        assert found == (read_bundle_manifest(shipped_model_folder()).digest,)


def test_the_service_serves_it(tmp_path: Path) -> None:
    async def scenario(local: LocalService) -> None:
        answer = await local.http.post(
            "/v1/classify", data={"labels": ["pizza", "castle"]}, files={"images": ("a.png", picture(1))}
        )
        assert answer.status_code == 200, answer.text
        assert answer.json()["model_version"].startswith("bundle-")

    play(ServingConfig(bundle_uri=str(shipped_model_folder()), task_store_uri=str(tmp_path / "tasks")), scenario)


def test_evaluate_without_a_model_evaluates_it(tmp_path: Path) -> None:
    rows = [{"image": picture_bytes(20, 20, seed=number), "caption": f"thing {number % 4}"} for number in range(8)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pictures.parquet")
    asked = ["--dataset", str(tmp_path / "pictures.parquet"), "--set", "evaluation.ways=[2]", "--output", str(tmp_path / "out")]
    run = CliRunner().invoke(app, ["evaluate", *asked, "--set", "evaluation.num_tasks=3"])
    assert run.exit_code == 0, run.output
    assert "name another with hyperclip evaluate MODEL" in run.stderr
    found = artefacts.read_model(str(tmp_path / "out" / EVALUATION_NAME), ZeroShotResult)
    assert found.bundle_digests == (read_bundle_manifest(shipped_model_folder()).digest,)
    run = CliRunner().invoke(app, ["evaluate"])
    assert isinstance(run.exception, BadInputError) and "--dataset PATH" in str(run.exception)


# ---- making one ------------------------------------------------------------------------------------------------------


def pictures_file(folder: Path, rows: list[dict[str, object]]) -> str:
    path = folder / "trained-on.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


@pytest.fixture
def trained_on(tmp_path: Path) -> TrainedOn:
    rows: list[dict[str, object]] = [
        {"image": bytes([number]), "source": source, "licence": licence, "split": "train" if number else "evaluation"}
        for number, (source, licence) in enumerate([("b", "MIT"), ("b", "MIT"), ("a", "CC0-1.0"), ("b", "MIT")])
    ]
    return read_trained_on([pictures_file(tmp_path, rows)], where={"split": "train"})


@pytest.fixture
def bundle(tmp_path: Path) -> str:
    make_bundle(tmp_path / "bundle")
    return str(tmp_path / "bundle")


def test_a_bundle_becomes_the_shipped_model(tmp_path: Path, bundle: str, trained_on: TrainedOn) -> None:
    folder = tmp_path / "shipped"
    folder.mkdir()
    (folder / EVALUATION_NAME).write_text("of the model before")
    shipped = ship(bundle, trained_on, folder=folder)
    assert load_bundle(folder).digest == shipped.digest
    assert shipped.rounding.same_answer > 0.9
    assert sum(path.stat().st_size for path in folder.iterdir()) == shipped.num_bytes
    assert (folder / NOTICE_NAME).read_text().endswith("\n       2  b  MIT\n       1  a  CC0-1.0\n")
    card = (folder / "README.md").read_text()
    assert (
        card.startswith("# a test model\n") and f"the same answer among 50 names for {shipped.rounding.same_answer:.1%}" in card
    )
    assert not (folder / EVALUATION_NAME).exists()
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {(folder / "README.md").stat().st_mode & 0o777}


def refused_by_ship(bundle: str, trained_on: TrainedOn, folder: Path) -> str:
    """The message; what was there before must be there still."""
    folder.mkdir()
    (folder / "before").touch()
    with pytest.raises((BadInputError, ParityError)) as refused:
        ship(bundle, trained_on, folder=folder)
    assert [path.name for path in folder.iterdir()] == ["before"]
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == []
    return str(refused.value)


def test_a_model_that_is_too_large_is_not_shipped(
    tmp_path: Path, bundle: str, trained_on: TrainedOn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ship_module, "MAX_BYTES", 3_000_000)
    assert "MB in half precision, and the shipped model may have 3" in refused_by_ship(bundle, trained_on, tmp_path / "shipped")


def test_a_model_that_saw_the_pictures_of_the_demo_is_not_shipped(tmp_path: Path, bundle: str) -> None:
    seen = read_sample("evaluation").slice(0, 3).select(["image", "source", "licence"]).to_pylist()
    known = read_trained_on([pictures_file(tmp_path, seen)], where={})
    says = refused_by_ship(bundle, known, tmp_path / "shipped")
    assert says.startswith("3 of the 374 pictures that the demo evaluates on were trained on")


def test_a_model_that_rounding_breaks_is_not_shipped(tmp_path: Path, trained_on: TrainedOn) -> None:
    model = trained_like(hyperclip_test())
    with torch.no_grad():  # features are normalized, so in float32 the factor changes nothing; in float16 little is left
        model.image_encoder.projection.weight *= 1e-6
    save_bundle(
        tmp_path / "tiny", model, preprocess=PreprocessConfig(image_size=32), templates=["{}"], model_card="", metrics={}
    )
    assert "it is another model" in refused_by_ship(str(tmp_path / "tiny"), trained_on, tmp_path / "shipped")


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"image": b"1", "source": "a"}, "has no column licence"),
        ({"image": b"1", "source": "a", "licence": ""}, "has a picture without source or licence: a"),
    ],
)
def test_pictures_without_a_licence_are_refused(tmp_path: Path, row: dict[str, object], says: str) -> None:
    with pytest.raises(BadInputError, match=says):
        read_trained_on([pictures_file(tmp_path, [row])], where={})


def test_the_page_shows_the_evaluation_of_this_model_and_no_other(tmp_path: Path, bundle: str) -> None:
    folder = Path(bundle)
    assert "It has not been evaluated yet." in figures(folder)
    digest = read_bundle_manifest(folder).digest
    result = zero_shot_result((family_result({"specialized": 0.5, "neutral": 0.45, "swapped": 0.44}),), digest=digest)
    (folder / EVALUATION_NAME).write_text(result.model_dump_json())
    page = tmp_path / "page.md"
    page.write_text(PAGE_PATH.read_text())
    write_model_page(page, folder=folder)
    assert "| 10 names, random | 10.0% | 50.0% (48.0% to 52.0%) | 45.0% (43.0% to 47.0%) | 44.0%" in page.read_text()
    assert "| +5.0 (+3.0 to +7.0) |" in page.read_text()
    (folder / EVALUATION_NAME).write_text(result.rebuilt(bundle_digests=("e" * 64,)).model_dump_json())
    with pytest.raises(BadInputError, match="evaluate that"):
        figures(folder)
    page.write_text("a page without marks")
    with pytest.raises(BadInputError, match="where the figures go"):
        write_model_page(page)
