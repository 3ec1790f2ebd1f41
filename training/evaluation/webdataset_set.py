"""Evaluation pictures in a folder as CLIP_benchmark writes and reads it.

    classnames.txt                          one name a line, in the order of the class numbers
    zeroshot_classification_templates.txt   one a line, {c} for the name; may be absent
    test/nshards.txt                        how many shards there are: 0.tar, 1.tar, ...
    test/0.tar ...                          KEY.{webp,png,jpg,jpeg} and KEY.cls with the number of the class

https://github.com/LAION-AI/CLIP_benchmark, `clip_benchmark/datasets/builder.py`, `build_wds_dataset`.
"""

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np

from infra import storage
from infra.config import content_hash
from infra.errors import BadInputError
from training.evaluation.evaluation_set import OBJECT, EvaluationSet, Reading

CLASS_NAMES = "classnames.txt"
TEMPLATES = "zeroshot_classification_templates.txt"
DATASET_TYPE = "dataset_type.txt"
NUM_SHARDS = "nshards.txt"
PICTURES = ("webp", "png", "jpg", "jpeg")
LABEL = "cls"
NAME_PLACES = ("{c}", "{}")


def webdataset_set(folder_uri: str, *, split: str = "test") -> EvaluationSet:
    """The pictures of a split.

    Raises:
        BadInputError: a file is missing, the shards are not those of `nshards.txt`, a class number has no name, no pictures.
    """
    kind = _read(storage.join(folder_uri, DATASET_TYPE)).strip().lower() if _is(folder_uri, DATASET_TYPE) else "classification"
    if kind != "classification":
        raise BadInputError(f"{folder_uri} is a {kind!r} set by its {DATASET_TYPE}; only classification sets can be evaluated")
    names = [line.strip() for line in _read(storage.join(folder_uri, CLASS_NAMES)).splitlines()]
    _check_names(names, storage.join(folder_uri, CLASS_NAMES))
    shards = _shards(folder_uri, split)
    indexed = [list(_index(uri, num_names=len(names))) for uri in shards]
    labels = [member.label for shard in indexed for member in shard]
    if not labels:
        raise BadInputError(f"{folder_uri}: the shards of {split!r} hold no pictures")

    def stored() -> Iterator[tuple[str, bytes]]:
        for uri, members in zip(shards, indexed, strict=True):
            with storage.open_read(uri) as file:
                for member in members:
                    file.seek(member.offset)
                    yield f"{uri}, sample {member.key}", file.read(member.size)

    return EvaluationSet(
        name=PurePosixPath(folder_uri.rstrip("/")).name,
        identity=content_hash({"shards": [storage.sha256(uri) for uri in shards], "names": names}),
        objects=Reading(
            name=OBJECT,
            names=tuple(names),
            class_of_picture=np.array(labels, dtype=np.int64),
            topic_of_class=(None,) * len(names),
        ),
        further=(),
        captions=None,
        templates=read_templates(storage.join(folder_uri, TEMPLATES)) if _is(folder_uri, TEMPLATES) else None,
        stored=stored,
    )


def read_templates(uri: str) -> tuple[str, ...]:
    """Templates of a file, one a line, with `{}` or `{c}` for the name; given back with `{}`.

    Raises:
        BadInputError: no such file, no lines, or a line without a place for the name.
    """
    templates = []
    for number, line in enumerate(_read(uri).splitlines(), 1):
        if not line.strip():
            continue
        if sum(line.count(place) for place in NAME_PLACES) != 1:
            raise BadInputError(f"{uri}, line {number}: {line.strip()[:80]!r} must hold {{}} or {{c}} once, for the name")
        templates.append(line.strip().replace("{c}", "{}"))
    if not templates:
        raise BadInputError(f"{uri} holds no template; write one a line, such as: a photo of a {{}}.")
    return tuple(templates)


def _shards(folder_uri: str, split: str) -> list[str]:
    uri = storage.join(folder_uri, split, NUM_SHARDS)
    text = _read(uri).strip()
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise BadInputError(f"{uri} holds {text[:40]!r}, expected the number of shards, at least 1")
    wanted = [storage.join(folder_uri, split, f"{number}.tar") for number in range(int(text))]
    found = storage.list_files(storage.join(folder_uri, split), suffix=".tar")
    if set(wanted) != set(found):
        missing = [PurePosixPath(shard).name for shard in wanted if shard not in found]
        extra = [PurePosixPath(shard).name for shard in found if shard not in wanted]
        raise BadInputError(
            f"{uri} says {len(wanted)} shards, and {len(found)} are there"
            + (f"; missing: {', '.join(missing[:5])}" if missing else "")
            + (f"; not expected: {', '.join(extra[:5])}" if extra else "")
        )
    return wanted


class _Member(NamedTuple):
    """A picture in a shard."""

    key: str
    label: int
    offset: int
    size: int


def _index(uri: str, *, num_names: int) -> Iterator[_Member]:
    """Where the pictures of a shard lie, and their labels."""
    with _opened(uri) as tar:
        by_key: dict[str, dict[str, tarfile.TarInfo]] = {}
        labels: dict[str, int] = {}
        for member in tar:
            folder, _, name = member.name.rpartition("/")
            stem, _, suffix = name.partition(".")
            key, suffix = f"{folder}/{stem}" if folder else stem, suffix.lower()
            if not member.isfile() or (suffix != LABEL and suffix not in PICTURES):
                continue
            by_key.setdefault(key, {})[suffix] = member
            if suffix == LABEL and (file := tar.extractfile(member)) is not None:
                labels[key] = _label(file.read(), f"{uri}, sample {key}", num_names=num_names)
    for key, files in by_key.items():
        picture = next((files[suffix] for suffix in PICTURES if suffix in files), None)
        if picture is None:
            raise BadInputError(f"{uri}, sample {key} has no picture ({', '.join(PICTURES)})")
        if key not in labels:
            raise BadInputError(f"{uri}, sample {key} has no .{LABEL} with the number of its class")
        yield _Member(key, labels[key], picture.offset_data, picture.size)


def _label(data: bytes, place: str, *, num_names: int) -> int:
    text = data.decode("ascii", errors="replace").strip()
    if not text.isascii() or not text.isdigit():
        raise BadInputError(f"{place}: its .{LABEL} holds {text[:40]!r}, expected the number of a class")
    if int(text) >= num_names:
        raise BadInputError(f"{place} is of class {text}, and {CLASS_NAMES} names {num_names} classes, 0 to {num_names - 1}")
    return int(text)


def _check_names(names: list[str], uri: str) -> None:
    """Names may be there twice, as in ImageNet ("missile"): such classes count each for itself, as in CLIP_benchmark."""
    if not names:
        raise BadInputError(f"{uri} is empty; write the name of each class on a line of its own")
    if "" in names:
        raise BadInputError(f"{uri}, line {names.index('') + 1} is empty: every class needs a name")


@contextmanager
def _opened(uri: str) -> Iterator[tarfile.TarFile]:
    with storage.open_read(uri) as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                yield tar
        except tarfile.TarError as error:
            raise BadInputError(f"{uri} is not a whole tar: {error}") from error


def _read(uri: str) -> str:
    try:
        return storage.read_bytes(uri).decode()
    except UnicodeDecodeError as error:
        raise BadInputError(f"{uri} is not text in UTF-8: {error}") from error


def _is(folder_uri: str, name: str) -> bool:
    return storage.exists(storage.join(folder_uri, name))
