"""Leaks: samples that look like a picture of an evaluation set.  A model trained on them would be examined on what it knows.

A set is a keep list or files of measurements (with `sha256` and `phash`), or parquet files with the pictures inside (column
`image`).  Concepts count for nothing here: a picture that looks the same leaks whatever it is called.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.curation.dedup import digests_of, first_places, perceptual_hash
from data_prep.curation.near import UNKNOWN, Hashes, nearest
from data_prep.curation.pool import Pool
from data_prep.curation.rule_result import RuleResult
from data_prep.picture_partition import picture_type_problem
from data_prep.url_list import parquet_files
from infra import images, storage
from infra.errors import BadInputError

LEAK = "evaluation_leak"
_PICTURES_AT_ONCE = 64


class EvaluationPictures(NamedTuple):
    """M pictures that must not be trained on."""

    uid: pa.Array
    digest: np.ndarray
    """(M, 32) uint8."""
    phash: np.ndarray
    """(M,) uint64."""
    has_phash: np.ndarray


def leak_result(pool: Pool, asked: np.ndarray, pictures: EvaluationPictures, *, max_distance: int) -> RuleResult:
    """Drop what is within `max_distance` bits of an evaluation picture, or is its very bytes; the score is the distance.

    Args:
        asked: (N,) bool: samples that are still there.
    """
    match, distance = np.full(len(pool), -1, np.int64), np.full(len(pool), np.nan, np.float32)
    places = np.flatnonzero(asked & pool.has_phash)
    among = np.flatnonzero(pictures.has_phash)
    found = nearest(_hashes(pool.phash[places]), _hashes(pictures.phash[among]), max_distance=max_distance)
    hit = found.place >= 0
    match[places[hit]], distance[places[hit]] = among[found.place[hit]], found.distance[hit]
    places = np.flatnonzero(asked)
    same = first_places(pool.digest[places], among=pictures.digest)
    hit = same >= 0
    match[places[hit]], distance[places[hit]] = same[hit], 0
    return RuleResult.of("leak", [(LEAK, match >= 0)], score=distance, match=match, foreign=pictures.uid)


def read_evaluation_pictures(uris: Sequence[str], *, max_pixels: int) -> EvaluationPictures:
    """Hashes of the pictures of all sets; pictures that cannot be decoded leak by their bytes only.

    Raises:
        BadInputError: a file is none of what is named above.
    """
    parts = [part for uri in uris for file in parquet_files(uri) for part in _read(file, max_pixels)]
    if not sum(len(part.uid) for part in parts):
        raise BadInputError(f"exclude_near: there are no pictures in {', '.join(uris)}")
    return EvaluationPictures(
        pa.concat_arrays([part.uid for part in parts]),
        *(np.concatenate([part[column] for part in parts]) for column in (1, 2, 3)),
    )


def _read(file: str, max_pixels: int) -> Iterator[EvaluationPictures]:
    with storage.open_read(file) as opened:
        try:
            parquet = pq.ParquetFile(opened)
            names = parquet.schema_arrow.names
            if {"uid", "sha256", "phash"} <= set(names):
                columns = ["uid", "sha256", "phash", *(["keep"] if "keep" in names else [])]
                yield _measured(parquet.read(columns=columns), file)
            elif "image" in names and not picture_type_problem(parquet.schema_arrow.field("image").type):
                columns = ["image", *(["uid"] if "uid" in names else [])]
                row = 0
                for batch in parquet.iter_batches(batch_size=_PICTURES_AT_ONCE, columns=columns):
                    yield _looked_at(pa.Table.from_batches([batch]), file, row, max_pixels)
                    row += batch.num_rows
            else:
                raise BadInputError(
                    f"exclude_near: {file} has neither uid, sha256 and phash (a keep list, or looks) nor a column image with "
                    f"the bytes of pictures; it has {', '.join(names)}"
                )
        except (pa.ArrowException, OSError) as error:
            raise BadInputError(f"exclude_near: {file} is no readable parquet file: {error}") from error


def _measured(table: pa.Table, file: str) -> EvaluationPictures:
    if "keep" in table.column_names:
        table = table.filter(table["keep"])
    table = table.filter(pc.is_valid(table["sha256"]))
    if table.num_rows and not table["phash"].is_valid().to_numpy().any():
        raise BadInputError(f"exclude_near: {file} holds no perceptual hashes; curate that set again with this version")
    phash = table["phash"]
    values = [0 if value is None else int(value, 16) if isinstance(value, str) else value for value in phash.to_pylist()]
    return EvaluationPictures(
        table["uid"].cast(pa.string()).combine_chunks(),
        digests_of(table["sha256"].to_pylist()),
        np.array(values, np.uint64),
        phash.is_valid().to_numpy(),
    )


def _looked_at(table: pa.Table, file: str, first_row: int, max_pixels: int) -> EvaluationPictures:
    column = table["image"]
    if pa.types.is_struct(column.type):
        column = pc.struct_field(column, "bytes")
    pictures = [data or b"" for data in column.to_pylist()]
    uids = table["uid"].to_pylist() if "uid" in table.column_names else range(first_row, first_row + len(pictures))
    hashes = [_hash(data, max_pixels) for data in pictures]
    return EvaluationPictures(
        pa.array([str(uid) if "uid" in table.column_names else f"{file}:{uid}" for uid in uids], pa.string()),
        digests_of([hashlib.sha256(data).hexdigest() for data in pictures]),
        np.array([value or 0 for value in hashes], np.uint64),
        np.array([value is not None for value in hashes], bool),
    )


def _hash(data: bytes, max_pixels: int) -> int | None:
    try:
        return perceptual_hash(images.decode(data, max_pixels=max_pixels))
    except images.ImageError:
        return None


def _hashes(values: Any) -> Hashes:
    return Hashes(values, np.full(len(values), UNKNOWN, np.int64))
