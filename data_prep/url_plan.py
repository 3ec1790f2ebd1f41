"""The plan of a download: the URL list read once, checked, and cut into partitions, each a file of its own.

    RAW/plan/00000.parquet            the rows of a partition, of `URL_LIST_SCHEMA`
    RAW/plan/repeated/00000.parquet   those of them that repeat URL and caption of an earlier row; only where there are any
    RAW/plan/plan.json                written last

Memory holds some batches of rows and one of 256 parts of the digests of all uids, whatever the length of the list.  The same
list gives the same partitions and shard numbers, and a plan that is there is used again without reading the list.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, NonNegativeInt, PositiveInt

from data_prep.list_files import SUFFIXES
from data_prep.partition_report import read_table
from data_prep.plan_writer import PartitionWriter, write_repetitions
from data_prep.uid_digests import Repetition, UidDigests, digests_of, doubled
from data_prep.url_list import MAX_NAMED_ROWS, MAX_UID_CHARACTERS, SAFE_UID, UrlListConfig, check_uid, read_rows
from infra import artefacts, storage
from infra.config import StrictModel, content_hash
from infra.errors import BadInputError

PLAN_FOLDER, PLAN_NAME, REPEATED_FOLDER = "plan", "plan.json", "repeated"
REPEATED = "repeated"
"""Reason of a row that repeats URL and caption of an earlier one, where uids are derived of these."""
PROGRESS_EVERY_ROWS = 1_000_000

RowsRead = Callable[[int], None]


class Partition(NamedTuple):
    """Rows of the list that one task downloads, in one of the rounds."""

    number: int
    first_shard: int
    """Number of its first shard: shard numbers are unique over the whole download, all rounds."""
    num_rows: int
    plan_uri: str
    list_hash: str
    has_repetitions: bool = False
    round: int = 1

    @property
    def name(self) -> str:
        return f"{self.number:05d}"

    def fingerprint(self) -> str:
        """The same for the same rows of the same list."""
        return content_hash([self.list_hash, self.number, self.round])


class Plan(StrictModel):
    """`plan.json`."""

    schema_version: Literal[1] = 1
    inputs: dict[str, tuple[int, str | None]]
    """Name of each file of the list -> its size, and what the store says of its version."""
    columns: dict[str, Any]
    samples_per_partition: PositiveInt
    samples_per_shard: PositiveInt
    num_rows: NonNegativeInt
    rows_hashes: list[str]
    """Of each partition."""
    repeated: dict[str, PositiveInt] = Field(default_factory=dict)
    """Partitions with rows that repeat an earlier one, and how many."""

    def partitions(self, output_uri: str, *, round_number: int = 1) -> Iterator[Partition]:
        stride, list_hash = shards_of(self.samples_per_partition, self.samples_per_shard), content_hash(self.rows_hashes)
        before = (round_number - 1) * len(self.rows_hashes) * stride
        for number in range(len(self.rows_hashes)):
            rows = min(self.samples_per_partition, self.num_rows - number * self.samples_per_partition)
            yield Partition(
                number,
                before + number * stride,
                rows,
                storage.join(output_uri, PLAN_FOLDER),
                list_hash,
                has_repetitions=f"{number:05d}" in self.repeated,
                round=round_number,
            )


def shards_of(num_rows: int, samples_per_shard: int) -> int:
    """Shard numbers a partition may use: rows with and without a hash are cut separately, so one more than the quotient."""
    return -(-num_rows // samples_per_shard) + 1


def plan_url_list(
    uri: str,
    columns: UrlListConfig,
    *,
    samples_per_partition: int,
    samples_per_shard: int,
    output_uri: str,
    on_rows: RowsRead = lambda _: None,
) -> Plan:
    """Read, check and cut a URL list; nothing is read where that was done before and the files are what they were.

    Args:
        output_uri: the raw folder, bound to this list from then on.
        on_rows: called with the rows read so far, now and then.

    Raises:
        BadInputError: the list cannot be used (`read_rows`; no rows, an empty URL, a uid that is there twice or cannot name a
            file, a malformed hash; rows are named, counted from 0), or the folder holds the download of another one.
    """
    folder = storage.join(output_uri, PLAN_FOLDER)
    plan_uri = storage.join(folder, PLAN_NAME)
    cut = {"samples_per_partition": samples_per_partition, "samples_per_shard": samples_per_shard}
    identity = {"inputs": _inputs(uri), "columns": columns.model_dump(mode="json")}
    before: Plan | None = None
    if storage.exists(plan_uri):
        artefacts.check_schema_version(plan_uri, newest=1)
        before = artefacts.read_model(plan_uri, Plan)
        if {name: getattr(before, name) for name in cut} != cut:
            raise BadInputError(other_list(output_uri))
        if before.inputs == identity["inputs"] and before.columns == identity["columns"]:
            return before
    else:
        storage.remove(folder)  # of a plan that was not finished
    expected = before.rows_hashes if before else None
    with UidDigests() as digests:
        checks, derived = _Checks(uri), False
        with PartitionWriter(folder, rows=samples_per_partition, expected=expected, refusal=other_list(output_uri)) as writer:
            for batch in read_rows(uri, columns):
                derived = "uid" not in batch.column_names
                table, found = checks.checked(batch, first_row=writer.num_rows)
                digests.add(found, np.arange(writer.num_rows, writer.num_rows + table.num_rows))
                writer.add(table, keep=not checks.refused)
                if writer.num_rows // PROGRESS_EVERY_ROWS != (writer.num_rows - table.num_rows) // PROGRESS_EVERY_ROWS:
                    on_rows(writer.num_rows)
            checks.raise_refusal()
            if not writer.num_rows:
                raise BadInputError(f"{uri} has no rows")
            hashes = writer.finish()
        repeated: dict[str, int] = {}
        if derived:
            repeated = write_repetitions(
                digests.repetitions(), storage.join(folder, REPEATED_FOLDER), rows=samples_per_partition, total=writer.num_rows
            )
        else:
            _refuse_doubled(uri, digests.repetitions(), folder, rows=samples_per_partition)
    plan = Plan(**identity, **cut, num_rows=writer.num_rows, rows_hashes=hashes, repeated=repeated)
    storage.write_atomic(plan_uri, plan.model_dump_json())
    return plan


def read_partition(partition: Partition) -> pa.Table:
    """The rows of a partition, of `URL_LIST_SCHEMA`, and `first`: the row that each repeats, null where it repeats none.

    A repetition has the uid of the first with its own row added, so that no uid is there twice.
    """
    table = read_table(storage.join(partition.plan_uri, f"{partition.name}.parquet"))
    first: list[int | None] = [None] * table.num_rows
    if partition.has_repetitions:
        start, uids = table["row"][0].as_py(), table["uid"].to_pylist()
        for entry in read_table(storage.join(partition.plan_uri, REPEATED_FOLDER, f"{partition.name}.parquet")).to_pylist():
            place = entry["row"] - start
            first[place] = entry["first"]
            uids[place] = f"{uids[place]}-row{entry['row']}"
        table = table.set_column(table.schema.get_field_index("uid"), "uid", pa.array(uids, pa.string()))
    return table.append_column("first", pa.array(first, pa.int64()))


def other_list(output_uri: str) -> str:
    """Why a folder is refused."""
    return (
        f"{output_uri} holds the download of another URL list or another partition size; "
        "choose another output folder or remove this one"
    )


class _Checks:
    """Whether rows can be used; those that cannot are counted to the end of the list, the first of them named."""

    _URL, _UID, _HASH = "an empty URL", "uid", "a malformed sha256 (64 hex digits)"

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._counts: Counter[str] = Counter()
        self._named: dict[str, list[str]] = defaultdict(list)

    @property
    def refused(self) -> bool:
        return bool(self._counts)

    def checked(self, batch: pa.Table, *, first_row: int) -> tuple[pa.Table, bytes]:
        """The batch in the columns of `URL_LIST_SCHEMA`, and the digests of its uids."""
        columns = {name: batch[name].combine_chunks() for name in batch.column_names}
        url = columns["url"]
        caption = columns["caption"] = pc.fill_null(columns["caption"], "")
        self._refuse(self._URL, pc.equal(pc.utf8_trim_whitespace(pc.fill_null(url, "")), ""), first_row)
        if "uid" in columns:
            uid = pc.fill_null(columns["uid"], "")
            usable = pc.and_(
                pc.match_substring_regex(uid, f"^(?:{SAFE_UID})$"), pc.less_equal(pc.binary_length(uid), MAX_UID_CHARACTERS)
            )
            self._refuse(self._UID, pc.invert(usable), first_row, of=columns["uid"])
            digests = digests_of(uid.cast(pa.binary()).to_pylist())
        else:
            pairs = pc.binary_join_element_wise(pc.fill_null(url, ""), caption, "\n")
            digests = digests_of(pairs.cast(pa.binary()).to_pylist())
            columns["uid"] = _hex(digests)
        if "sha256" in columns:
            value = pc.utf8_lower(pc.utf8_trim_whitespace(columns["sha256"]))
            value = pc.if_else(pc.equal(value, ""), None, value)
            self._refuse(
                self._HASH, pc.invert(pc.fill_null(pc.match_substring_regex(value, "^[0-9a-f]{64}$"), True)), first_row
            )
            columns["sha256"] = value
        return pa.table(columns), digests

    def raise_refusal(self) -> None:
        """Raises BadInputError when a row cannot be used."""
        for what in (self._URL, self._UID, self._HASH):
            if count := self._counts[what]:
                more = _more(count)
                if what == self._UID:
                    named = "; ".join(self._named[what])
                    raise BadInputError(f"{self._uri}: {count:,} uid(s) cannot be used: {named}{more}")
                named = ", ".join(self._named[what])
                raise BadInputError(f"{self._uri}: {count:,} row(s) have {what}: row {named}{more} (counted from 0)")

    def _refuse(self, what: str, bad: pa.Array, first_row: int, *, of: pa.Array | None = None) -> None:
        places = pc.indices_nonzero(bad)
        self._counts.update({what: len(places)} if len(places) else {})
        for place in places[: MAX_NAMED_ROWS - len(self._named[what])].to_pylist():
            row = str(first_row + place)
            value = of[place].as_py() if of is not None else None
            self._named[what].append(row if of is None else f"row {row}: {value!r} {check_uid(value)}")


def _hex(digests: bytes) -> pa.Array:
    """Digests as hex text: what `derive_uid` makes of each row."""
    characters = digests.hex().encode()
    count = len(characters) // 32
    offsets = pa.array(range(0, len(characters) + 1, 32), pa.int32()).buffers()[1]
    return pa.StringArray.from_buffers(count, offsets, pa.py_buffer(characters))


def _refuse_doubled(uri: str, repetitions: Iterator[list[Repetition]], folder: str, *, rows: int) -> None:
    """Raises BadInputError when a uid is there twice; the first of them are named with their rows."""
    count, places = doubled(repetitions, named=MAX_NAMED_ROWS)
    if not count:
        return
    named = []
    for first, same in places.items():
        uid = read_table(storage.join(folder, f"{first // rows:05d}.parquet"))["uid"][first % rows].as_py()
        named.append(f"{uid!r} in rows {', '.join(map(str, same[:5]))}")
    raise BadInputError(f"{uri}: {count:,} uid(s) are there twice: {'; '.join(named)}{_more(count)}. Remove the repetitions")


def _inputs(uri: str) -> dict[str, tuple[int, str | None]]:
    """The files of a list as their store lists them, without reading them."""
    if not storage.exists(uri):
        raise BadInputError(f"{uri} does not exist")
    if files := {name: found for name, found in storage.list_details(uri).items() if name.endswith(SUFFIXES)}:
        return {name: (found.size, found.version) for name, found in sorted(files.items())}
    try:
        size = storage.size(uri)
    except (OSError, TypeError):  # a folder without a file that can be a list: reading it says so
        size = 0
    return {uri.rstrip("/").rpartition("/")[2]: (size, storage.version_tag(uri))}


def _more(count: int) -> str:
    return f", and {count - MAX_NAMED_ROWS:,} more" if count > MAX_NAMED_ROWS else ""
