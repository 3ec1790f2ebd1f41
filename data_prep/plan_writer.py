"""Writing the files of a plan: partitions from a stream of batches, and which of their rows are repetitions."""

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_prep.partition_report import write_table
from data_prep.uid_digests import Repetition
from data_prep.url_list import URL_LIST_SCHEMA
from infra import storage
from infra.errors import BadInputError

_THREADS, _WAITING = 4, 6
_GROUPS = 256


class PartitionWriter:
    """Cuts a stream of rows into files of the same number of rows, and writes some of them at once.

    Args:
        expected: hashes that the partitions must have, where the folder already holds those of a list.
        refusal: what is said when they do not.
    """

    def __init__(self, folder_uri: str, *, rows: int, expected: list[str] | None, refusal: str) -> None:
        self._folder, self._rows, self._expected, self._refusal = folder_uri, rows, expected, refusal
        self._waiting: list[pa.Table] = []
        self._num_waiting = self.num_rows = self._number = 0
        self._writing: deque[Future[str]] = deque()
        self._hashes: list[str] = []

    def __enter__(self) -> Self:
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="plan")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._threads.shutdown(cancel_futures=True)

    def add(self, table: pa.Table, *, keep: bool) -> None:
        """The next rows; they are counted, and not written where the list is going to be refused."""
        rows = pa.array(np.arange(self.num_rows, self.num_rows + table.num_rows))
        self.num_rows += table.num_rows
        if not keep:
            return
        table = table.append_column("row", rows)
        columns = [
            table[field.name].combine_chunks() if field.name in table.column_names else pa.nulls(table.num_rows, field.type)
            for field in URL_LIST_SCHEMA
        ]
        self._waiting.append(pa.table(columns, schema=URL_LIST_SCHEMA))
        self._num_waiting += table.num_rows
        if self._num_waiting >= self._rows:
            self._cut(last=False)

    def finish(self) -> list[str]:
        """Write what is left; returns the hash of the rows of each partition.

        Raises:
            BadInputError: there are fewer or other rows than expected.
        """
        self._cut(last=True)
        while self._writing:
            self._hashes.append(self._writing.popleft().result())
        if self._expected is not None and len(self._hashes) != len(self._expected):
            raise BadInputError(self._refusal)
        return self._hashes

    def _cut(self, *, last: bool) -> None:
        table = pa.concat_tables(self._waiting) if self._waiting else URL_LIST_SCHEMA.empty_table()
        end = table.num_rows if last else table.num_rows - table.num_rows % self._rows
        for start in range(0, end, self._rows):
            if len(self._writing) >= _WAITING:
                self._hashes.append(self._writing.popleft().result())
            part = table.slice(start, self._rows).combine_chunks()
            self._writing.append(self._threads.submit(self._write, self._number, part))
            self._number += 1
        rest = table.slice(end)
        self._waiting, self._num_waiting = ([rest] if rest.num_rows else []), rest.num_rows

    def _write(self, number: int, table: pa.Table) -> str:
        digest = _hash(table)
        if self._expected is not None and self._expected[number : number + 1] != [digest]:
            raise BadInputError(self._refusal)  # before a file of the other list is touched
        write_table(table, storage.join(self._folder, f"{number:05d}.parquet"))
        return digest


def write_repetitions(found: Iterable[list[Repetition]], folder_uri: str, *, rows: int, total: int) -> dict[str, int]:
    """Write which rows of each partition are repetitions; returns how many, by the name of the partition.

    They come in no order and may be many, so they are spread over files of neighbouring partitions first.
    """
    storage.remove(folder_uri)
    partitions_in_group = max(1, -(-total // (rows * _GROUPS)))
    counts: dict[str, int] = {}
    with TemporaryDirectory(prefix="hyperclip-repeated-") as scratch:
        for repetitions in found:
            pairs = np.array(repetitions, dtype=np.int64)
            group = pairs[:, 0] // (rows * partitions_in_group)
            for number in np.unique(group).tolist():
                with (Path(scratch) / f"{number:05d}").open("ab") as file:
                    file.write(pairs[group == number].tobytes())
        for path in sorted(Path(scratch).iterdir()):
            for name, table in _by_partition(np.fromfile(path, np.int64).reshape(-1, 2), rows=rows):
                write_table(table, storage.join(folder_uri, f"{name}.parquet"))
                counts[name] = table.num_rows
    return counts


def _by_partition(pairs: "np.ndarray[tuple[int, int], np.dtype[np.int64]]", *, rows: int) -> Iterator[tuple[str, pa.Table]]:
    pairs = pairs[np.argsort(pairs[:, 0])]
    number = pairs[:, 0] // rows
    for one in np.unique(number).tolist():
        row, first = pairs[number == one].T
        yield f"{one:05d}", pa.table({"row": row, "first": first})


def _hash(table: pa.Table) -> str:
    """Of the values alone: the bytes of a file would also tell how the rows came in, and the version of what wrote them."""
    digest = hashlib.sha256()
    for field in table.schema:
        column = table[field.name].combine_chunks()
        digest.update(f"{field.name}:{column.null_count}:".encode())
        if column.null_count == len(column):
            continue
        if pa.types.is_list(field.type):
            digest.update(pc.fill_null(pc.list_value_length(column), -1).to_numpy().tobytes())
            column = pc.list_flatten(column)
        if pa.types.is_string(column.type):
            digest.update(pc.fill_null(pc.binary_length(column), -1).to_numpy().tobytes())
            everything = pa.ListArray.from_arrays([0, len(column)], pc.fill_null(column, ""))
            digest.update(pc.binary_join(everything, "")[0].as_buffer())
        else:
            digest.update(column.to_numpy().tobytes())
    return digest.hexdigest()[:32]
