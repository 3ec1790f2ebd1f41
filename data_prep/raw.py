"""Raw shards: what download and import leave behind, and curation and resharding read.

    RAW/download.json            written last: its presence means that every partition is whole
    RAW/plan/                    the list as it was read, and which list this folder belongs to (`url_plan.py`)
    RAW/partitions/00000.json    a partition's report, written after everything else of it
    RAW/shards/00000/            img2dataset's output for that partition: 00000.tar, 00000.parquet, 00000_stats.json
    RAW/outcomes/00000.parquet   one row for each of its rows: downloaded, or failed and why
    RAW/quarantine/00000.parquet those of them whose picture had another hash than the list says; only where there are any
    RAW/status.json, RAW/begun/  what is under way, for people (`download_status.py`)
    RAW/rounds/2/                the same folders for what was fetched again in a later round; its outcomes replace the earlier

Reports lie outside img2dataset's folders, because it takes every JSON file there for the statistics of a shard.
"""

from collections.abc import Iterator
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field, NonNegativeInt, PositiveInt

from data_prep.raw_tar import RawSample as RawSample  # what a reader of raw shards gets
from data_prep.raw_tar import scan_tar
from infra import artefacts, storage
from infra.config import StrictModel
from infra.errors import BadInputError, CorruptArtefactError

REPORT_NAME = "download.json"
OUTCOMES_FOLDER = "outcomes"
PARTITIONS_FOLDER = "partitions"
QUARANTINE_FOLDER = "quarantine"
ROUNDS_FOLDER = "rounds"
SCHEMA_VERSION = 1
REMOVED = "removed"
"""The reason of what somebody asked to forget (`removal.py`); in the JSON of a raw shard, the mark of its blanked sample."""

OUTCOME_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("uid", pa.string()),
        ("url", pa.string()),
        ("state", pa.string()),  # downloaded | failed
        ("reason", pa.string()),  # null when downloaded
        ("detail", pa.string()),
        ("final_url", pa.string()),
        ("http_status", pa.int32()),
        ("content_type", pa.string()),
        ("shard", pa.string()),
        ("key", pa.string()),
        ("format", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),  # of the bytes as stored
        ("fetched_at", pa.timestamp("ms", tz="UTC")),  # null where nothing was asked for
        ("received_bytes", pa.int64()),
        ("received_sha256", pa.string()),  # as first seen, before any resizing
        ("expected_sha256", pa.string()),  # as the list gives it
        ("attempts", pa.int32()),  # requests made for it, all rounds together; null of an import
        ("round", pa.int32()),  # the last one that fetched it; null of an import
    ]
)


class RawShard(StrictModel):
    path: str
    """Of the tar, relative to the raw folder."""
    samples: NonNegativeInt
    bytes: NonNegativeInt
    sha256: str


class DownloadReport(StrictModel):
    """What a download or an import made; `failed` counts by reason and adds up with `downloaded` to `requested`."""

    schema_version: Literal[1] = 1
    requested: NonNegativeInt
    downloaded: NonNegativeInt
    failed: dict[str, int]
    bytes: NonNegativeInt
    """Of the pictures as stored."""
    seconds: float
    """Spent by this call; partitions done earlier are not downloaded again."""
    skipped_partitions: NonNegativeInt = 0
    """Found done from an earlier run."""
    rounds: PositiveInt = 1
    """Passes over the list that were made."""
    quarantined: NonNegativeInt = 0
    """Pictures with another hash than the list says; they are not stored, and count as failed."""
    shards: list[RawShard]
    lineage: dict[str, Any] = Field(default_factory=dict)

    @property
    def success_rate(self) -> float:
        return self.downloaded / self.requested if self.requested else 0.0


def read_download_report(raw_uri: str) -> DownloadReport:
    """Raises BadInputError when there is none: the download has not finished."""
    uri = storage.join(raw_uri, REPORT_NAME)
    if not storage.exists(uri):
        raise BadInputError(f"{raw_uri} holds no {REPORT_NAME}: the download (or import) has not finished; run it again")
    artefacts.check_schema_version(uri, newest=SCHEMA_VERSION)
    return artefacts.read_model(uri, DownloadReport)


def iter_outcomes(raw_uri: str) -> Iterator[pa.Table]:
    """The outcomes of a download or an import, of `OUTCOME_SCHEMA`, a partition at a time: memory holds one.

    One final outcome for every row: what a later round found replaces what came before it.
    """
    later = [(folder, _names(folder, PARTITIONS_FOLDER)) for folder in later_rounds(raw_uri)]
    for uri in storage.list_files(storage.join(raw_uri, OUTCOMES_FOLDER), suffix=".parquet"):
        table, name = _read(uri), uri.rpartition("/")[2].removesuffix(".parquet")
        for folder, finished in later:
            if name in finished:
                newer = _read(storage.join(folder, OUTCOMES_FOLDER, f"{name}.parquet"))
                replaced = pc.is_in(table["row"], newer["row"].combine_chunks())
                table = pa.concat_tables([table.filter(pc.invert(replaced)), newer]).sort_by("row")
        yield table


def round_folder(raw_uri: str, round_number: int) -> str:
    """Where a round keeps its partitions, shards and outcomes; the first one in the raw folder itself."""
    return raw_uri if round_number == 1 else storage.join(raw_uri, ROUNDS_FOLDER, str(round_number))


def later_rounds(raw_uri: str) -> list[str]:
    """Folders of the rounds after the first, in order."""
    found = storage.list_folders(storage.join(raw_uri, ROUNDS_FOLDER))
    return sorted(found, key=lambda uri: int(uri.rpartition("/")[2]))


def _names(folder: str, kind: str) -> set[str]:
    return {uri.rpartition("/")[2].rpartition(".")[0] for uri in storage.list_files(storage.join(folder, kind))}


def _read(uri: str) -> pa.Table:
    with storage.open_read(uri) as file:
        return pq.read_table(file)


def sized_shard(raw_uri: str, shard: RawShard) -> str:
    """The URI of a raw shard's tar.

    Raises:
        CorruptArtefactError: it is missing, or has another size than its report says.
    """
    uri = storage.join(raw_uri, shard.path)
    if not storage.exists(uri):
        raise CorruptArtefactError(f"{uri} is missing. Remove {raw_uri} and run the download again")
    if (found := storage.size(uri)) != shard.bytes:
        raise CorruptArtefactError(
            f"{uri} has {found:,} bytes, its report says {shard.bytes:,}: it is truncated or was changed. "
            f"Remove {raw_uri} and run the download again"
        )
    return uri


def read_raw_shard(raw_uri: str, shard: RawShard) -> Iterator[RawSample]:
    """The samples of a raw shard, in the order of the tar; without those that were removed on request.

    Raises:
        CorruptArtefactError: the tar is missing, has another size than its report says, or does not hold whole samples.
    """
    uri = sized_shard(raw_uri, shard)
    count = 0
    for sample in scan_tar(uri):
        if sample.record.get(REMOVED):
            continue  # its bytes are zeros; it counts as failed
        count += 1
        yield sample
    if count != shard.samples:
        raise CorruptArtefactError(f"{uri} holds {count:,} samples, its report says {shard.samples:,}")
