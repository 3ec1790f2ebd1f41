"""The model that comes with the project: a bundle among the package data, used where no other model is named.

`python -m pipeline.ship` puts it there; docs/model.md says what it is.
"""

from pathlib import Path

from infra import artefacts, storage
from infra.errors import BadInputError
from training.bundle import BUNDLE_NAME, BundleConfig, read_bundle_manifest

MODEL_PAGE = "docs/model.md"
EVALUATION_NAME, NOTICE_NAME = "evaluation.json", "NOTICE"
"""Beside the bundle: what `hyperclip evaluate` said of it, where that is there; the licences of what it was trained on."""
NOTE = "It knows drawings (emoji, icons), not photographs: on a photograph its answer is a guess, however high the score."
"""What its model card says first of its limits."""
MAX_BYTES = 25_000_000
"""Of the whole folder: it travels with every clone, wheel and image."""


def shipped_model_folder() -> Path:
    """Where the bundle lies in this installation."""
    return Path(__file__).parent / "shipped_model"


def shipped_model_name() -> str:
    """Of its architecture.

    Raises:
        BadInputError: this installation lacks the model.
    """
    uri = str(shipped_model_folder() / "config.json")
    if not storage.exists(uri):
        raise BadInputError(f"{uri} is missing: this installation came without the shipped model; name a model of yours")
    return str(artefacts.read_model(uri, BundleConfig).model["name"])


def note_of(digest: str) -> str | None:
    """What to know before believing the model with this digest; None where it is not the shipped one."""
    folder = shipped_model_folder()
    is_shipped = (folder / BUNDLE_NAME).is_file() and read_bundle_manifest(folder).digest == digest
    return NOTE if is_shipped else None
