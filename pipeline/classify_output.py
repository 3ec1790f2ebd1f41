"""What `hyperclip classify` found, for people and for programs."""

import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from pipeline.console import out
from pipeline.picture_files import Classified, Unreadable

Format = Literal["table", "json", "ndjson", "csv"]
Result = Classified | Unreadable
Write = Callable[[Result], None]
UNCUT = 1000
CSV_COLUMNS = ("picture", "rank", "label", "score", "match", "none_of_these", "problem")


@contextmanager
def written_as(form: Format) -> Iterator[Write]:
    """Takes results one by one; lines appear at once, a table or a JSON list when all are there."""
    with {"table": _table, "json": _json_list, "ndjson": _lines, "csv": _csv}[form]() as write:
        yield write


@contextmanager
def _table() -> Iterator[Write]:
    results: list[Result] = []
    try:
        yield results.append
    finally:  # a service may fail in the middle
        if results:
            _print_table(results)


def _print_table(results: Sequence[Result]) -> None:
    calibrated = any(isinstance(found, Classified) and found.none_of_these is not None for found in results)
    table = Table(Column("picture", overflow="fold"), Column("label", overflow="fold"), "score", "match", box=None)
    if calibrated:
        table.add_column("none of these")
    for found in results:
        for row in _rows(found):
            table.add_row(*row[: 5 if calibrated else 4])
    (out if out.is_terminal else Console(width=UNCUT)).print(table)  # a file or a pipe has no edge


def _rows(found: Result) -> Iterator[tuple[str, ...]]:
    if isinstance(found, Unreadable):
        yield escape(str(found.path)), f"[red]{escape(found.problem)}[/]", "", "", ""
        return
    for number, one in enumerate(found.predictions):
        name = "" if number else escape(str(found.path))
        none = "" if number or found.none_of_these is None else f"{found.none_of_these:.3f}"
        yield name, escape(one.label), f"{one.score:.3f}", f"{one.match:.3f}", none


@contextmanager
def _json_list() -> Iterator[Write]:
    results: list[Result] = []
    yield results.append
    sys.stdout.write(json.dumps([found.as_json() for found in results], indent=1) + "\n")


@contextmanager
def _lines() -> Iterator[Write]:
    def write(found: Result) -> None:
        sys.stdout.write(json.dumps(found.as_json()) + "\n")
        sys.stdout.flush()  # whoever reads the lines need not wait

    yield write


@contextmanager
def _csv() -> Iterator[Write]:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)

    def write(found: Result) -> None:
        writer.writerows(_cells(found))

    yield write


def _cells(found: Result) -> Iterable[tuple[object, ...]]:
    if isinstance(found, Unreadable):
        return [(found.path, "", "", "", "", "", found.problem)]
    none = "" if found.none_of_these is None else f"{found.none_of_these:.6g}"
    return [
        (found.path, rank, one.label, f"{one.score:.6g}", f"{one.match:.6g}", none, "")
        for rank, one in enumerate(found.predictions, 1)
    ]
