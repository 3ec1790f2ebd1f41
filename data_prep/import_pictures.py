"""Pictures that are already here, embedded in parquet files, as raw shards: what a download would have left.

Partitions are fanned out as Ray tasks, as those of a download are; curation and resharding then work unchanged.  A picture that
is damaged or no picture counts as failed, with its reason.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.accounting import describe, require_all_accounted
from data_prep.fan_out import absolute, fan_out
from data_prep.partition_report import PartitionReport, finished_report, outcomes_uri
from data_prep.picture_partition import ImportConfig, PicturePartition, column_names, import_partition, picture_type_problem
from data_prep.raw import OUTCOMES_FOLDER, REMOVED, REPORT_NAME, DownloadReport, iter_outcomes
from data_prep.uid_digests import UidDigests, digests_of, doubled
from data_prep.url_list import MAX_NAMED_ROWS, parquet_files
from infra import storage
from infra.config import content_hash
from infra.errors import BadInputError, DataLossError

Progress = Callable[[int, int, str], None]


def import_pictures(
    parquet_uris: str | Sequence[str], *, config: ImportConfig, output_uri: str, progress: Progress
) -> DownloadReport:
    """Write raw shards from the pictures in parquet files (or folders of them); partitions done earlier are skipped.

    Ray must be connected.  `progress` is called with (rows of the files done, rows in all, what they are): which of them `only`
    takes is not known before they are read.

    Raises:
        BadInputError: nothing there, no parquet, a missing column, no rows, a uid twice.
        DataLossError: too few pictures could be used, or the counts do not add up.  Nothing is marked done then.
    """
    started = time.monotonic()
    output_uri = absolute(output_uri)
    uris = [parquet_uris] if isinstance(parquet_uris, str) else parquet_uris
    partitions = plan_partitions([absolute(file) for uri in uris for file in parquet_files(uri)], config)
    storage.remove(storage.join(output_uri, REPORT_NAME))  # not done until it is done again
    _remove_outcomes_of_others(partitions, output_uri)
    total = sum(partition.num_rows for partition in partitions)
    reports: dict[int, PartitionReport] = {}
    for partition in partitions:
        if report := finished_report(partition, config, output_uri=output_uri):
            reports[partition.number] = report
    skipped = len(reports)
    progress(_rows_done(partitions, reports), total, _note(config, reports))
    arguments = [(partition, config, output_uri) for partition in partitions if partition.number not in reports]
    try:
        for report in fan_out(import_partition, arguments, config.tasks):
            reports[report.partition] = report
            progress(_rows_done(partitions, reports), total, _note(config, reports))
    except OSError as error:
        raise BadInputError(f"cannot be read: {error}") from error
    requested = sum(report.requested for report in reports.values())
    if not requested:
        raise BadInputError(f"no rows to import from {', '.join(uris)}" + (f" where {_chosen(config)}" if config.only else ""))
    _refuse_doubled(output_uri)
    downloaded = sum(report.downloaded for report in reports.values())
    failed: Counter[str] = Counter()
    formats: Counter[str] = Counter()
    for report in reports.values():
        failed.update(report.failed)
        formats.update(report.formats)
    require_all_accounted("import", seen=requested, out=downloaded, lost=failed)
    if not downloaded or downloaded < config.min_success_rate * (requested - failed[REMOVED]):
        raise DataLossError(
            f"only {downloaded:,} of {requested:,} pictures could be used: {downloaded / requested:.1%}, and "
            f"the floor (min_success_rate) is {config.min_success_rate:.1%}. Failed: {describe(failed)}. "
            "Check the files, or lower the floor"
        )
    result = DownloadReport(
        requested=requested,
        downloaded=downloaded,
        failed=dict(sorted(failed.items())),
        bytes=sum(report.bytes for report in reports.values()),
        seconds=time.monotonic() - started,
        skipped_partitions=skipped,
        shards=[shard for number in sorted(reports) for shard in reports[number].shards],
        lineage={
            "config": config.model_dump(mode="json"),
            "config_hash": content_hash(config),
            "formats": dict(formats),
        },
    )
    storage.write_atomic(storage.join(output_uri, REPORT_NAME), result.model_dump_json(indent=1))
    return result


def plan_partitions(files: Sequence[str], config: ImportConfig) -> list[PicturePartition]:
    """Cut the files into partitions of whole row groups; each has its own range of shard numbers.

    Raises:
        BadInputError: a file is no parquet, lacks a column, or has no pictures in it.
    """
    partitions: list[PicturePartition] = []
    first_row = first_shard = 0
    for file in files:
        sizes = _row_group_sizes(file, config)
        version = f"{storage.size(file)} {storage.version_tag(file)}"
        for row_groups in _cut(sizes, config.samples_per_partition):
            num_rows = sum(sizes[group] for group in row_groups)
            partitions.append(
                PicturePartition(len(partitions), first_shard, file, version, tuple(row_groups), first_row, num_rows)
            )
            first_row += num_rows
            first_shard += -(-num_rows // config.samples_per_shard)
    return partitions


def _row_group_sizes(file: str, config: ImportConfig) -> list[int]:
    """Rows of each row group, once it is clear that the pictures and captions are there."""
    with storage.open_read(file) as opened:
        try:
            parquet = pq.ParquetFile(opened)
            schema, metadata = parquet.schema_arrow, parquet.metadata
        except (pa.ArrowException, OSError) as error:
            raise BadInputError(f"{file} is not a readable parquet file: {error}") from error
    image = column_names(config, schema.names, file=file)["image"]
    if problem := picture_type_problem(schema.field(image).type):
        raise BadInputError(f"{file}: column {image!r} {problem}")
    return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]


def _cut(sizes: Sequence[int], rows: int) -> Iterator[list[int]]:
    """Runs of row groups with at most this many rows; a larger row group is one of its own."""
    part: list[int] = []
    for group, size in enumerate(sizes):
        if part and sum(sizes[other] for other in part) + size > rows:
            yield part
            part = []
        part.append(group)
    if part:
        yield part


def _remove_outcomes_of_others(partitions: Sequence[PicturePartition], output_uri: str) -> None:
    """What an import of more files left here is no part of this one."""
    ours = {outcomes_uri(output_uri, partition) for partition in partitions}
    for uri in storage.list_files(storage.join(output_uri, OUTCOMES_FOLDER), suffix=".parquet"):
        if uri not in ours:
            storage.remove(uri)


def _rows_done(partitions: Sequence[PicturePartition], reports: dict[int, PartitionReport]) -> int:
    return sum(partition.num_rows for partition in partitions if partition.number in reports)


def _note(config: ImportConfig, reports: dict[int, PartitionReport]) -> str:
    """`pictures`, or `rows, 1,234 pictures chosen` where not every row is taken."""
    if not config.only:
        return "pictures"
    return f"rows, {sum(report.requested for report in reports.values()):,} pictures chosen"


def _chosen(config: ImportConfig) -> str:
    return " and ".join(f"{column} is {' or '.join(values)}" for column, values in config.only.items())


def _refuse_doubled(output_uri: str) -> None:
    """Raises BadInputError when two rows have the same uid; the first of them are named with their rows."""
    with UidDigests() as digests:
        for outcomes in iter_outcomes(output_uri):
            uids = outcomes["uid"].cast(pa.binary()).to_pylist()
            digests.add(digests_of(uids), outcomes["row"].to_numpy())
        count, places = doubled(digests.repetitions(), named=MAX_NAMED_ROWS)
    if not count:
        return
    uid_of: dict[int, str] = {}
    for outcomes in iter_outcomes(output_uri):
        wanted = outcomes.filter(pc.is_in(outcomes["row"], pa.array(list(places), pa.int64())))
        uid_of |= dict(zip(wanted["row"].to_pylist(), wanted["uid"].to_pylist(), strict=True))
    told = "; ".join(f"{uid_of[first]!r} in rows {', '.join(map(str, rows[:5]))}" for first, rows in places.items())
    more = f", and {count - MAX_NAMED_ROWS:,} more" if count > MAX_NAMED_ROWS else ""
    raise BadInputError(
        f"{count:,} uid(s) are there twice: {told}{more} (counted from 0 over all files; without a column uid, "
        "rows with the same picture and caption have the same). Remove the repetitions"
    )
