"""Rules on scores that something else gave: files with a uid and a number, from `hyperclip score`, open_clip, an NSFW detector.

A score file is parquet, or a folder of parquet files, with a column `uid` and a column of numbers.
"""

from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, model_validator

from data_prep.curation.pool import Pool, hash_uids
from data_prep.curation.rule_result import RuleResult
from data_prep.url_list import parquet_files
from infra import storage
from infra.config import StrictModel
from infra.errors import BadInputError

MISSING = "score_missing"


class ScoreConfig(StrictModel):
    """Keep samples by a score: within bounds, or the best share of them."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,40}$")
    """Samples are dropped for the reason `score_NAME`."""
    uri: str
    """Parquet, or a folder of parquet files, with the columns `uid` and `column`; a sample that is not in it is dropped for
    the reason `score_missing`."""
    column: str = "score"
    min: float | None = None
    max: float | None = None
    """For scores that are better when lower, such as the probability of nudity."""
    keep_share: float | None = Field(default=None, gt=0, le=1)
    """The best of all samples that have a score, in place of bounds; equal scores at the edge are all kept."""

    @model_validator(mode="after")
    def _bounds_or_share(self) -> Self:
        if (self.keep_share is None) == (self.min is None and self.max is None):
            raise ValueError(f"score {self.name!r} takes min or max or both, or keep_share in place of them")
        return self


def score_result(pool: Pool, config: ScoreConfig) -> RuleResult:
    """Raises BadInputError when the file cannot be used, or has a uid twice."""
    scores = join_scores(pool.uid_hash, config)
    missing = np.isnan(scores)
    low = -np.inf if config.min is None else config.min
    if config.keep_share is not None and not missing.all():
        known = np.sort(scores[~missing])[::-1]
        low = known[max(int(np.ceil(config.keep_share * len(known))), 1) - 1]
    # in the numbers that the file holds: 0.3 as float32 is more than 0.3
    outside = (scores < np.float32(low)) | (scores > np.float32(np.inf if config.max is None else config.max))
    return RuleResult.of(f"score_{config.name}", [(MISSING, missing), (f"score_{config.name}", outside)], score=scores)


def join_scores(uid_hash: np.ndarray, config: ScoreConfig) -> np.ndarray:
    """(N,) float32, the nearest to the file's number, for (N,) uint64 of `hash_uids`; NaN where the file has none."""
    hashes, values = [np.zeros(0, np.uint64)], [np.zeros(0, np.float32)]
    for file in parquet_files(config.uri):
        table = _read(file, config.column)
        hashes.append(hash_uids(table["uid"].combine_chunks()))
        values.append(table["score"].to_numpy())  # null becomes NaN
    known, scores = np.concatenate(hashes), np.concatenate(values)
    order = np.argsort(known)
    known, scores = known[order], scores[order]
    if (known[1:] == known[:-1]).any():
        raise BadInputError(
            f"{config.uri}: {int((known[1:] == known[:-1]).sum()):,} uid(s) are there twice; keep one score each"
        )
    if not len(known):
        return np.full(len(uid_hash), np.nan, np.float32)
    place = np.minimum(np.searchsorted(known, uid_hash), len(known) - 1)
    return np.where(known[place] == uid_hash, scores[place], np.float32(np.nan))


def _read(file: str, column: str) -> pa.Table:
    """`uid` as text and `score` as float32."""
    with storage.open_read(file) as opened:
        try:
            parquet = pq.ParquetFile(opened)
            if absent := [name for name in ("uid", column) if name not in parquet.schema_arrow.names]:
                raise BadInputError(
                    f"{file} is no score file: it lacks the column(s) {', '.join(absent)}; "
                    f"it has {', '.join(parquet.schema_arrow.names)}"
                )
            field = parquet.schema_arrow.field(column).type
            if not (pa.types.is_floating(field) or pa.types.is_integer(field)):
                raise BadInputError(f"{file}: column {column!r} holds {field}, not numbers")
            table = parquet.read(columns=["uid", column])
            # whole numbers above 2^24 are rounded, as other numbers are
            return pa.table(
                {"uid": table["uid"].cast(pa.large_string()), "score": table[column].cast(pa.float32(), safe=False)}
            )
        except (pa.ArrowException, OSError) as error:
            raise BadInputError(f"{file} is no readable parquet file: {error}") from error
