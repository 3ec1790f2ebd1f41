"""Pictures, labels and models that cannot be used, through the real command: a clear message and an exit status."""

import struct
import zlib
from pathlib import Path

import pytest

from tests.command import Command
from tests.unit.model_helpers import make_bundle, picture_bytes

pytestmark = pytest.mark.integration
QUICKSTART = str(Path(__file__).parents[2] / "pipeline" / "configs" / "quickstart.yaml")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model") / "bundle"
    make_bundle(folder)
    return str(folder)


def huge_png() -> bytes:
    """30,000 x 30,000 pixels, by its header."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (huge_png(), "more than the 64,000,000 pixels allowed"),
        (b"this is no picture, it is a text\n" * 10, "no JPEG, PNG or WebP"),
        (b"", "no JPEG, PNG or WebP"),
        (picture_bytes(40, 40)[:-30], "ends early"),
    ],
    ids=["huge", "text", "empty", "cut"],
)
def test_a_picture_that_cannot_be_used_is_named(
    hyperclip: Command, bundle: str, tmp_path: Path, content: bytes, says: str
) -> None:
    (tmp_path / "photo.jpg").write_bytes(content)
    ended = hyperclip("classify", "--model", bundle, str(tmp_path / "photo.jpg"), "--labels", "cat,dog")
    assert ended.status == 2
    assert f"{tmp_path}/photo.jpg: " in ended.error
    assert says in ended.error
    assert "cat" not in ended.output


@pytest.mark.parametrize("labels", ["", ",", " , ,", "@FILE"])
@pytest.mark.parametrize("command", ["specialize", "export", "classify"])
def test_an_empty_list_of_labels_is_refused(hyperclip: Command, bundle: str, tmp_path: Path, command: str, labels: str) -> None:
    (tmp_path / "labels.txt").write_text("\n \n")
    (tmp_path / "photo.png").write_bytes(picture_bytes(40, 40))
    rest = [str(tmp_path / "photo.png")] if command == "classify" else ["--output", str(tmp_path / "made")]
    ended = hyperclip(command, "--model", bundle, *rest, "--labels", labels.replace("FILE", str(tmp_path / "labels.txt")))
    assert ended.status == 2
    assert "label" in ended.error
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["classify", "--model", "nowhere", "PICTURE", "--labels", "a,b"],
            "no bundle folder 'nowhere'; if it is the name of a registered",
        ),
        (["classify", "--model", "no/where", "PICTURE", "--labels", "a,b"], "no bundle folder 'no/where'\n"),
        (["classify", "--model", "BUNDLE", "missing.jpg", "--labels", "a,b"], "missing.jpg: cannot be read: No such file"),
        (["classify", "--model", "BUNDLE", "PICTURE", "--labels", "@missing.txt"], "cannot read missing.txt"),
        (["classify", "--model", "nowhere", "PICTURE", "--labels", "a,,b"], "label 2 is empty"),
        (["export", "--model", "nowhere", "--output", "made", "--labels", "a,b,a"], "label 'a' is there twice"),
        (["classify", "--model", "models:/m@champion", "PICTURE", "--labels", "a,b"], "which MLflow?"),
        (["classify", "--model", "models:/m", "PICTURE", "--labels", "a,b"], "models:/NAME@ALIAS"),
        (["classify", "PICTURE", "--labels", "a,b", "--tracking-uri", "sqlite:////nowhere/x.db"], "which model of sqlite:"),
        (["promote", "m", "1", "--tracking-uri", "sqlite:////nowhere/x.db"], "no MLflow database"),
        (["promote", "m", "1", "--tracking-uri", "sqlite:////nowhere/x.db", "--config", QUICKSTART], "give one of them"),
    ],
)
def test_a_model_that_is_not_there_is_said_so(
    hyperclip: Command, bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "photo.png").write_bytes(picture_bytes(40, 40))
    known = {"BUNDLE": bundle, "PICTURE": str(tmp_path / "photo.png")}
    ended = hyperclip(*(known.get(argument, argument) for argument in arguments))
    assert ended.status == 2
    assert says in ended.error
