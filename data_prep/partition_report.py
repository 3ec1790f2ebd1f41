"""What a finished partition leaves behind, downloaded or imported: its report, written last, and its outcomes."""

from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, NonNegativeInt, PositiveInt

from data_prep.raw import OUTCOME_SCHEMA, OUTCOMES_FOLDER, PARTITIONS_FOLDER, RawShard, later_rounds, round_folder
from infra import artefacts, storage
from infra.config import StrictModel
from infra.errors import CorruptArtefactError


class Identified(Protocol):
    """Settings of which two are the same when their fingerprints are."""

    def fingerprint(self) -> str: ...


class AnyPartition(Identified, Protocol):
    """Rows of a URL list, or of files with pictures inside."""

    @property
    def name(self) -> str: ...

    @property
    def round(self) -> int: ...


class PartitionReport(StrictModel):
    """Written last: its presence means that the partition is whole."""

    partition: NonNegativeInt
    round: PositiveInt = 1
    requested: NonNegativeInt
    """Rows; of a later round those that were fetched again."""
    downloaded: NonNegativeInt
    """Or imported."""
    failed: dict[str, int]
    formats: dict[str, int] = Field(default_factory=dict)
    """Downloaded pictures by true format, read from their bytes."""
    bytes: NonNegativeInt
    quarantined: NonNegativeInt = 0
    seconds: float
    shards: list[RawShard]
    config_hash: str
    rows_hash: str


def report_uri(output_uri: str, partition: AnyPartition) -> str:
    return storage.join(round_folder(output_uri, partition.round), PARTITIONS_FOLDER, f"{partition.name}.json")


def outcomes_uri(output_uri: str, partition: AnyPartition) -> str:
    return storage.join(round_folder(output_uri, partition.round), OUTCOMES_FOLDER, f"{partition.name}.parquet")


def finished_report(partition: AnyPartition, config: Identified, *, output_uri: str) -> PartitionReport | None:
    """The report of an earlier run, when it belongs to these very rows and settings; else None."""
    uri = report_uri(output_uri, partition)
    if not storage.exists(uri):
        return None
    try:
        report = artefacts.read_model(uri, PartitionReport)
    except CorruptArtefactError:
        return None
    same = report.config_hash == config.fingerprint() and report.rows_hash == partition.fingerprint()
    whole = all(
        storage.exists(tar := storage.join(output_uri, shard.path)) and storage.size(tar) == shard.bytes
        for shard in report.shards
    )
    return report if same and whole and storage.exists(outcomes_uri(output_uri, partition)) else None


def remove_later_rounds(partition: AnyPartition, *, output_uri: str) -> None:
    """Make the later rounds of a partition undone: they fetched again what failed in one that is now done anew."""
    for folder in later_rounds(output_uri):
        if int(folder.rpartition("/")[2]) > partition.round:
            storage.remove(storage.join(folder, PARTITIONS_FOLDER, f"{partition.name}.json"))


def num_finished(output_uri: str) -> int:
    """Partitions that attempts before have finished, by the names of their reports alone."""
    return len(storage.list_files(storage.join(output_uri, PARTITIONS_FOLDER), suffix=".json"))


def write_finished(
    partition: AnyPartition, report: PartitionReport, outcomes: list[dict[str, Any]], *, output_uri: str
) -> None:
    """Write the outcomes (`raw.OUTCOME_SCHEMA`) of a partition, and last its report."""
    write_table(pa.Table.from_pylist(outcomes, schema=OUTCOME_SCHEMA), outcomes_uri(output_uri, partition))
    storage.write_atomic(report_uri(output_uri, partition), report.model_dump_json(indent=1))


def write_table(table: pa.Table, uri: str) -> None:
    """Write a parquet file whole or not at all."""
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer)
    storage.write_atomic(uri, buffer.getvalue().to_pybytes())


def read_table(uri: str) -> pa.Table:
    with storage.open_read(uri) as file:
        return pq.read_table(file)
