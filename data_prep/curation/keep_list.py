"""The keep list and the lists of the single rules, written some samples at a time from measurements and results.

OUTPUT/rules/NAME.parquet    what one rule says of every sample: uid, keep, reason, score, and which picture it means
OUTPUT/keep.parquet          their combination, with all that resharding needs; written last
"""

from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.curation.pool import Pool, read_rows
from data_prep.curation.rule_result import RuleResult
from data_prep.curation.rules import NOT_DROPPED
from infra import storage

KEEP_LIST_NAME = "keep.parquet"
RULES = "rules"
_SAMPLES_AT_ONCE = 50_000

KEEP_SCHEMA = pa.schema(
    [
        ("uid", pa.string()),
        ("keep", pa.bool_()),
        ("reason", pa.string()),  # null when kept
        ("duplicate_of", pa.string()),  # uid of the one that was kept
        ("row", pa.int64()),  # place in the URL list
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("format", pa.string()),
        ("sha256", pa.string()),
        ("phash", pa.string()),
        ("caption", pa.string()),
        ("captions", pa.list_(pa.string())),
        ("concept", pa.string()),
        ("group", pa.string()),
        ("source", pa.string()),
        ("licence", pa.string()),
        ("shard", pa.string()),
        ("image_offset", pa.int64()),
        ("image_bytes", pa.int64()),
    ],
    metadata={"schema_version": "1"},
)
"""What every keep list has, older ones too."""
_MORE = [
    ("rule", pa.string()),  # which list it fell by; null when kept
    ("score", pa.float32()),  # that this rule went by
    ("leak_of", pa.string()),  # uid of the evaluation picture that it looks like
    ("caption_original", pa.string()),  # as it came, where cleaning changed it
]
WRITTEN_SCHEMA = pa.schema([*KEEP_SCHEMA, *(pa.field(name, kind) for name, kind in _MORE)], metadata=KEEP_SCHEMA.metadata)

RULE_SCHEMA = pa.schema(
    [
        ("uid", pa.string()),
        ("keep", pa.bool_()),
        ("reason", pa.string()),
        ("score", pa.float32()),
        ("match", pa.string()),  # uid of the picture that it is a duplicate or a leak of
    ],
    metadata={"schema_version": "1"},
)


def write_lists(pool: Pool, results: Sequence[RuleResult], dropped_by: np.ndarray, output_uri: str) -> None:
    """Write a list for every rule, and last the keep list; whole or not at all."""
    with ExitStack() as stack:

        def writer(uri: str, schema: pa.Schema) -> pq.ParquetWriter:
            path = stack.enter_context(storage.staged_file(uri))
            return stack.enter_context(pq.ParquetWriter(path, schema))

        combined = writer(storage.join(output_uri, KEEP_LIST_NAME), WRITTEN_SCHEMA)  # entered first, it is published last
        single = [writer(storage.join(output_uri, RULES, f"{result.name}.parquet"), RULE_SCHEMA) for result in results]
        for places, looks in read_rows(pool, size=_SAMPLES_AT_ONCE):
            lists = [_rule_rows(pool, result, places, looks["uid"]) for result in results]
            for table, one in zip(lists, single, strict=True):
                one.write_table(table)
            combined.write_table(_keep_rows(looks, results, lists, dropped_by[places]))


def _rule_rows(pool: Pool, result: RuleResult, places: slice, uid: pa.ChunkedArray) -> pa.Table:
    reasons = pa.array([None, *result.reasons], pa.string())
    match = pa.nulls(len(uid), pa.string())
    if result.match is not None:
        others = result.match[places]
        source = pool.uid if result.foreign is None else result.foreign
        match = source.take(pa.array(np.maximum(others, 0), mask=others < 0)).cast(pa.string())
    score = pa.nulls(len(uid), pa.float32())
    if result.score is not None:
        values = result.score[places]
        score = pa.array(values, mask=np.isnan(values))
    columns = [uid, pa.array(result.keep[places]), reasons.take(pa.array(result.codes[places])), score, match]
    return pa.table(columns, schema=RULE_SCHEMA)


def _keep_rows(looks: pa.Table, results: Sequence[RuleResult], lists: Sequence[pa.Table], dropped_by: np.ndarray) -> pa.Table:
    def of_rule(column: str, names: Sequence[str] | None = None) -> pa.Array:
        """The value in the list of the rule that drops each sample; of the rules named only."""
        found = pa.nulls(len(looks), RULE_SCHEMA.field(column).type)
        for number, (result, rows) in enumerate(zip(results, lists, strict=True)):
            if names is None or result.name in names:
                found = pc.if_else(pa.array(dropped_by == number), rows[column].combine_chunks(), found)
        return found

    phash = [None if value is None else f"{value:016x}" for value in looks["phash"].to_pylist()]
    names = pa.array([*(result.name for result in results), None], pa.string())
    made = {
        "keep": pa.array(dropped_by == NOT_DROPPED),
        "reason": of_rule("reason"),
        "duplicate_of": of_rule("match", ("exact", "perceptual")),
        "phash": pa.array(phash, pa.string()),
        "rule": names.take(pa.array(np.where(dropped_by == NOT_DROPPED, len(results), dropped_by))),
        "score": of_rule("score"),
        "leak_of": of_rule("match", ("leak",)),
    }
    return pa.table(
        [made.get(name, looks[name] if name in looks.column_names else None) for name in WRITTEN_SCHEMA.names],
        schema=WRITTEN_SCHEMA,
    )
