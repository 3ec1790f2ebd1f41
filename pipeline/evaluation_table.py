"""An evaluation in a terminal: one table for each family of tasks, retrieval, and what was not possible."""

from collections.abc import Iterator

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Column, Table

from training.evaluation.measures import Estimate
from training.evaluation.result import FamilyResult, ZeroShotResult


def evaluation_tables(result: ZeroShotResult) -> Iterator[RenderableType]:
    """Everything there is to show, in order."""
    for one in result.families:
        yield _family_table(one)
    if result.retrieval:
        yield _retrieval_table(result)
    for skipped in result.skipped:
        yield f"[dim]not possible: {escape(skipped.family.title)} ({escape(skipped.reason)})[/]"


def _family_table(result: FamilyResult) -> Table:
    """Differences are on the same tasks, in points; a gain whose interval is above zero is green, a loss red."""
    over = {one.baseline: one.difference for one in result.differences if one.arm == "specialized"}
    title = (
        f"[bold]{escape(result.family.title)}[/]: {_count(result.num_tasks, 'task')}, {result.num_pictures:,} pictures, "
        f"chance {result.chance:.1%}"
    )
    right = [Column(header, justify="right") for header in ("macro recall", "match ECE", "none of these")]
    table = Table("", "accuracy (95 %)", "specialized minus it", *right, box=None, title=title, title_justify="left")
    for arm, accuracy in result.accuracy.items():
        table.add_row(
            arm.replace("_", ", "),
            f"{accuracy.mean:.1%} ({accuracy.low:.1%} to {accuracy.high:.1%})",
            _difference(over[arm]) if arm in over else "",
            f"{result.macro_recall[arm].mean:.1%}" if arm in result.macro_recall else "",
            f"{result.calibration[arm].ece:.3f}" if arm in result.calibration else "",
            f"{result.none_of_these[arm].mean:.3f}" if arm in result.none_of_these else "",
        )
    return table


def _retrieval_table(result: ZeroShotResult) -> Table:
    first = next(iter(result.retrieval.values()))
    title = f"[bold]retrieval[/]: {first.num_pictures:,} pictures, {first.num_captions:,} captions, features without names"
    headers = [f"{way} recall@{k}" for way in ("image to text", "text to image") for k in first.image_to_text]
    columns = [Column(header, justify="right") for header in headers]
    table = Table("", *columns, box=None, title=title, title_justify="left")
    for arm, found in result.retrieval.items():
        values = [*found.image_to_text.values(), *found.text_to_image.values()]
        table.add_row(arm, *(f"{value.mean:.1%}" for value in values))
    return table


def _difference(found: Estimate) -> str:
    text = f"{100 * found.mean:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f})"
    colour = "green" if found.low > 0 else "red" if found.high < 0 else ""
    return f"[{colour}]{text}[/]" if colour else text


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
