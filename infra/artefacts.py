"""What artefacts share: JSON of a typed form with a schema version, and folders whose last file says that all are there."""

import json
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from infra import storage
from infra.errors import BadInputError, CorruptArtefactError

Model = TypeVar("Model", bound=BaseModel)


def read_model(uri: str, model: type[Model]) -> Model:
    """Read a JSON artefact into its typed form.

    Raises:
        BadInputError: nothing is there.
        CorruptArtefactError: not JSON of that form.
    """
    data = storage.read_bytes(uri)
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        raise CorruptArtefactError(f"{uri} is not a valid {model.__name__}: {error}") from error


def check_schema_version(uri: str, *, newest: int) -> None:
    """Refuse a JSON artefact that a newer version of this project wrote.

    Raises:
        BadInputError: its `schema_version` is newer than `newest`.
        CorruptArtefactError: not a JSON object with a `schema_version`.
    """
    try:
        version = json.loads(storage.read_bytes(uri))["schema_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptArtefactError(f"{uri} is no JSON object with a schema_version") from error
    if not isinstance(version, int) or version > newest:
        raise BadInputError(
            f"{uri} has schema_version {version!r}; this version of hyperclip reads up to {newest}. Update hyperclip"
        )


def publish_folder(folder: Path, uri: str, *, last: str) -> None:
    """Copy the files of a local folder to a URI, the file named `last` at the end: its presence means that all are there."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    for name in [*(name for name in names if name != last), last]:
        storage.write_atomic(storage.join(uri, name), (folder / name).read_bytes())
