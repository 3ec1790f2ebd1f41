"""`hyperclip specialize`, `classify` and `export` on a bundle folder, as a user calls them."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from infra.errors import BadInputError, CorruptArtefactError
from pipeline.cli import app
from tests.unit.serving_helpers import make_bundle, picture


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_bundle(tmp_path_factory.mktemp("model") / "bundle"))


@pytest.fixture
def photo(tmp_path: Path) -> str:
    path = tmp_path / "photo.png"
    path.write_bytes(picture(1))
    return str(path)


def called(*arguments: str) -> Result:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return result


def refused(*arguments: str) -> BaseException:
    """The error that `hyperclip` turns into one line and exit status 2."""
    error = CliRunner().invoke(app, arguments).exception
    assert error is not None
    return error


def test_a_stored_encoder_stands_for_its_labels(model: str, photo: str, tmp_path: Path) -> None:
    folder = str(tmp_path / "encoder")
    names = tmp_path / "names.txt"
    names.write_text("cat\n\ndog, big\n")  # one a line: a comma belongs to the name
    assert "2 labels" in called("specialize", model, "--labels", f"@{names}", "--output", folder).output
    by_folder = called("classify", model, photo, "--encoder", folder, "--json").stdout
    by_labels = called("classify", model, photo, "--labels", f"@{names}", "--json").stdout
    assert by_folder == by_labels
    assert {found["label"] for found in json.loads(by_folder)["predictions"]} == {"cat", "dog, big"}
    package = tmp_path / "package"
    assert "2 labels" in called("export", model, "--encoder", folder, "--output", str(package)).output
    assert json.loads((package / "labels.json").read_text())["labels"] == ["cat", "dog, big"]


def test_what_is_wrong_is_named(model: str, photo: str, tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    called("specialize", model, "--labels", "cat,dog", "--output", str(folder))
    text = tmp_path / "text.png"
    text.write_text("text")
    refusals: list[tuple[str, list[str]]] = [
        ("which classes", ["classify", model, photo]),
        ("give it alone", ["classify", model, photo, "--labels", "cat", "--encoder", str(folder)]),
        ("is there twice", ["classify", model, photo, "--labels", "cat, cat"]),
        ("holds no task.json", ["classify", model, photo, "--encoder", str(tmp_path)]),
        (f"{text}: 4 bytes are no JPEG", ["classify", model, str(text), "--labels", "cat"]),
        ("No such file", ["classify", model, str(tmp_path / "none.png"), "--labels", "cat"]),
        ("No such file", ["classify", model, photo, "--labels", f"@{tmp_path / 'none.txt'}"]),
        ("holds no bundle.json", ["classify", str(tmp_path), photo, "--labels", "cat"]),
        ("models:/NAME@ALIAS", ["classify", "models:/name", photo, "--labels", "cat"]),
        ("not an empty folder", ["specialize", model, "--labels", "cat", "--output", str(folder)]),
        ("not an empty folder", ["export", model, "--labels", "cat", "--output", str(folder)]),
    ]
    for reason, arguments in refusals:
        error = refused(*arguments)
        assert isinstance(error, BadInputError), arguments
        assert reason in str(error)
    (folder / "encoder.safetensors").write_bytes(b"damaged")
    error = refused("classify", model, photo, "--encoder", str(folder))
    assert isinstance(error, CorruptArtefactError) and "specialize again" in str(error)
