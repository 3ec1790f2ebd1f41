"""Artefacts: typed JSON with a schema version, the same on a folder and on an object store."""

import pytest

from infra import artefacts, storage
from infra.config import StrictModel
from infra.errors import BadInputError, CorruptArtefactError


class Note(StrictModel):
    schema_version: int = 1
    text: str


def test_a_model_is_read_back_and_damage_is_named(root: str) -> None:
    uri = storage.join(root, "note.json")
    storage.write_atomic(uri, Note(text="a").model_dump_json())
    assert artefacts.read_model(uri, Note) == Note(text="a")
    storage.write_atomic(uri, b'{"schema_version": 1, "te')
    with pytest.raises(CorruptArtefactError, match=r"note\.json is not a valid Note"):
        artefacts.read_model(uri, Note)


def test_a_newer_artefact_is_refused_by_name(root: str) -> None:
    uri = storage.join(root, "note.json")
    storage.write_atomic(uri, b'{"schema_version": 3, "unknown": []}')
    artefacts.check_schema_version(uri, newest=3)
    with pytest.raises(BadInputError, match=r"note\.json has schema_version 3; .* reads up to 2"):
        artefacts.check_schema_version(uri, newest=2)


@pytest.mark.parametrize("content", [b"not json", b"[]", b"{}", b"\xff\xfe\x00"])
def test_an_artefact_without_a_version_is_corrupt(root: str, content: bytes) -> None:
    uri = storage.join(root, "note.json")
    storage.write_atomic(uri, content)
    with pytest.raises(CorruptArtefactError, match="schema_version"):
        artefacts.check_schema_version(uri, newest=1)
