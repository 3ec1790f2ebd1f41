"""Picture files that are to be classified, and what is found of each."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape

from infra.errors import BadInputError
from pipeline.console import err

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
"""What is taken from a folder; a file that is named itself may be called anything."""


@dataclass(frozen=True)
class Prediction:
    label: str
    score: float
    match: float


@dataclass(frozen=True)
class Classified:
    path: Path
    predictions: tuple[Prediction, ...]
    """The best first."""
    none_of_these: float | None
    """Probability that it shows none of the labels; None where the model has no calibration."""

    def as_json(self) -> dict[str, Any]:
        predictions = [asdict(prediction) for prediction in self.predictions]
        return {"picture": str(self.path), "predictions": predictions, "none_of_these": self.none_of_these}


@dataclass(frozen=True)
class Unreadable:
    path: Path
    problem: str

    def as_json(self) -> dict[str, Any]:
        return {"picture": str(self.path), "problem": self.problem}


def picture_files(paths: Iterable[Path]) -> list[Path]:
    """Files as they are given, and in place of a folder the pictures in it and below it, by name.

    Raises:
        BadInputError: a folder without a picture, or a model in place of one.
    """
    from training.bundle import BUNDLE_NAME  # with torch

    files: list[Path] = []
    for path in paths:
        if str(path).startswith("models:") or (path / BUNDLE_NAME).is_file():
            raise BadInputError(f"{path} is a model, and pictures are classified; name the model with --model")
        if not path.is_dir():
            files.append(path)
            continue
        everything = sorted(file for file in path.rglob("*") if file.is_file())
        inside = [file for file in everything if file.suffix.lower() in SUFFIXES]
        if not inside:
            raise BadInputError(f"folder {path} holds no file that ends in {', '.join(SUFFIXES)}")
        if left_out := len(everything) - len(inside):
            counted = "1 file, which does" if left_out == 1 else f"{left_out:,} files, which do"
            err.print(f"[dim]{escape(str(path))}: without {counted} not end in {', '.join(SUFFIXES)}[/]")
        files += inside
    return files


def read_bytes(path: Path) -> bytes | Unreadable:
    """A file, or why it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        return Unreadable(path, f"cannot be read: {error.strerror}")
