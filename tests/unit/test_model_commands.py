"""`hyperclip specialize`, `classify` and `export` on a bundle folder, as a user calls them."""

import json
import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from infra.errors import BadInputError, CorruptArtefactError, HyperClipError
from pipeline.cli import app
from pipeline.picture_files import picture_files
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
    assert "2 labels" in called("specialize", "--model", model, "--labels", f"@{names}", "--output", folder).output
    by_folder = called("classify", "--model", model, photo, "--encoder", folder, "--json").stdout
    by_labels = called("classify", "--model", model, photo, "--labels", f"@{names}", "--json").stdout
    assert by_folder == by_labels
    assert {found["label"] for found in json.loads(by_folder)["predictions"]} == {"cat", "dog, big"}
    package = tmp_path / "package"
    assert "2 labels" in called("export", "--model", model, "--encoder", folder, "--output", str(package)).output
    assert json.loads((package / "labels.json").read_text())["labels"] == ["cat", "dog, big"]


def test_pictures_that_cannot_be_read_do_not_stop_the_others(model: str, photo: str, tmp_path: Path) -> None:
    text, missing = tmp_path / "text.png", tmp_path / "missing.png"
    text.write_text("text")
    asked = [str(text), photo, str(missing)]
    run = CliRunner().invoke(app, ["classify", "--model", model, *asked, "--labels", "cat,dog", "--json"])
    assert isinstance(run.exception, HyperClipError) and run.exception.exit_code == 1
    assert str(run.exception) == "2 of 3 pictures could not be read"
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    assert [line["picture"] for line in lines] == asked
    assert [sorted(line) for line in lines] == [
        ["picture", "problem"],
        ["none_of_these", "picture", "predictions"],
        ["picture", "problem"],
    ]
    assert "no JPEG" in lines[0]["problem"] and "No such file" in lines[2]["problem"]
    table = CliRunner().invoke(app, ["classify", "--model", model, *asked, "--labels", "cat,dog"]).stdout
    assert [row.split()[0] for row in table.splitlines() if not row.startswith(" " * 4)] == ["picture", *asked]
    assert "No such file" in table
    run = CliRunner().invoke(app, ["classify", "--model", model, str(text), str(missing), "--labels", "cat,dog"])
    assert isinstance(run.exception, BadInputError) and run.exception.exit_code == 2
    assert str(run.exception) == "2 of 2 pictures could not be read"


def test_a_folder_stands_for_its_pictures_however_many(model: str, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(70):  # more than two batches
        (folder / f"{number:02d}.PNG").write_bytes(picture(number % 3))
    (folder / "05.PNG").write_bytes(b"damaged")
    (folder / "notes.txt").write_text("no picture, and not meant as one")
    run = CliRunner().invoke(app, ["classify", "--model", model, str(folder), "--labels", "cat,dog", "--json"])
    assert str(run.exception) == "1 of 70 pictures could not be read"
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    assert [Path(line["picture"]).name for line in lines] == [f"{number:02d}.PNG" for number in range(70)]
    for number in (0, 1, 2):  # each picture has the scores it has alone, whatever its batch
        (alone,) = json.loads(
            called("classify", "--model", model, str(folder / f"{number:02d}.PNG"), "--labels", "cat,dog", "--json").stdout
        )["predictions"][:1]
        for line in lines[number::3]:
            if "predictions" in line:
                assert line["predictions"][0]["label"] == alone["label"]
                assert line["predictions"][0]["score"] == pytest.approx(alone["score"], abs=1e-5)  # batches round otherwise


def test_what_a_folder_holds_beside_pictures_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("photo.png", "moving.gif", "old.bmp"):
        (tmp_path / name).write_bytes(b"")
    assert picture_files([tmp_path]) == [tmp_path / "photo.png"]
    assert "without 2 files, which do not end in .jpg, .jpeg, .png, .webp" in capsys.readouterr().err


def test_a_service_that_is_not_there_and_a_name_of_no_tenant(photo: str) -> None:
    with socket.socket() as nobody_listens:
        nobody_listens.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody_listens.getsockname()[1]}"
        error = refused("classify", photo, "--labels", "cat,dog", "--service", url)
    assert isinstance(error, HyperClipError) and str(error).startswith(f"no service answers at {url}; is it running")
    assert "a-z, 0-9, - and _" in str(refused("serve-key", "Acme Corp"))


def test_what_is_wrong_is_named(model: str, photo: str, tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    called("specialize", "--model", model, "--labels", "cat,dog", "--output", str(folder))
    text = tmp_path / "text.png"
    text.write_text("text")
    refusals: list[tuple[str, list[str]]] = [
        ("which classes", ["classify", "--model", model, photo]),
        ("give it alone", ["classify", "--model", model, photo, "--labels", "cat", "--encoder", str(folder)]),
        ("is there twice", ["classify", "--model", model, photo, "--labels", "cat, cat"]),
        ("holds no task.json", ["classify", "--model", model, photo, "--encoder", str(tmp_path)]),
        (f"{text}: 4 bytes are no JPEG", ["classify", "--model", model, str(text), "--labels", "cat"]),
        ("No such file", ["classify", "--model", model, str(tmp_path / "none.png"), "--labels", "cat"]),
        ("No such file", ["classify", "--model", model, photo, "--labels", f"@{tmp_path / 'none.txt'}"]),
        ("holds no bundle.json", ["classify", "--model", str(tmp_path), photo, "--labels", "cat"]),
        ("holds no file that ends in .jpg", ["classify", "--model", model, str(folder), "--labels", "cat"]),
        ("say models:/my-model@champion", ["classify", "--model", "my-model", photo, "--labels", "cat"]),
        ("models:/NAME@ALIAS", ["classify", "--model", "models:/name", photo, "--labels", "cat"]),
        ("is a model, and pictures are classified", ["classify", model, photo, "--labels", "cat"]),
        ("is a model, and pictures are classified", ["classify", "models:/m@champion", photo, "--labels", "cat"]),
        ("not an empty folder", ["specialize", "--model", model, "--labels", "cat", "--output", str(folder)]),
        ("not an empty folder", ["export", "--model", model, "--labels", "cat", "--output", str(folder)]),
    ]
    for reason, arguments in refusals:
        error = refused(*arguments)
        assert isinstance(error, BadInputError), arguments
        assert reason in str(error)
    (folder / "encoder.safetensors").write_bytes(b"damaged")
    error = refused("classify", "--model", model, photo, "--encoder", str(folder))
    assert isinstance(error, CorruptArtefactError) and "specialize again" in str(error)
