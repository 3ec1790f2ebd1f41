"""A comparison for people: a table in Markdown, one for the terminal, and a picture with a dot and an interval for each row."""

import io
from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from pipeline.comparison import ArmResult, Comparison, Difference, SeedEstimate, TaskComparison

COLOURS = {"specialized": "#2563eb", "neutral": "#64748b", "swapped": "#ea580c"}
OTHER_COLOUR = "#16a34a"
VERDICT_STYLES = {"above": "green", "below": "red", "not told apart": "dim"}


def markdown(comparison: Comparison) -> str:
    """Every table of a comparison."""
    lines = [f"# {comparison.sweep}", "", _setting(comparison), ""]
    for tasks in comparison.tasks:
        lines += [
            f"## {heading(tasks)}",
            "",
            "| arm | reading | accuracy | 95 % interval | each seed |",
            "|---|---|---|---|---|",
        ]
        lines += [f"| {one.arm} | {one.reading} | {_percents(one.accuracy)} |" for one in tasks.arms]
        if tasks.differences:
            lines += ["", "| contender | minus | points | 95 % interval | each seed | |", "|---|---|---|---|---|---|"]
            lines += [
                f"| {one.contender} | {one.baseline} | {_points(one.difference)} | {one.verdict} |" for one in tasks.differences
            ]
        lines.append("")
    if comparison.generated:
        lines += ["## Generated parameters", "", "| arm | rms of the deltas | variation between label sets |", "|---|---|---|"]
        lines += [f"| {arm} | {one.rms:.4g} | {one.variation:.4g} |" for arm, one in comparison.generated.items()]
        lines.append("")
    return "\n".join(lines)


def terminal_tables(comparison: Comparison) -> list[Table]:
    """The same for a terminal, without the single seeds."""
    tables = []
    for tasks in comparison.tasks:
        table = Table(
            "arm", "reading", "accuracy", "95 % interval", title=escape(heading(tasks)), title_justify="left", box=None
        )
        for one in tasks.arms:
            table.add_row(escape(one.arm), one.reading, f"{one.accuracy.mean:.1%}", _interval(one.accuracy, "{:.1%}"))
        for difference in tasks.differences:
            found = difference.difference
            table.add_row(
                f"{escape(difference.contender)} - {escape(difference.baseline)}",
                f"[{VERDICT_STYLES[difference.verdict]}]{difference.verdict}[/]",
                f"{100 * found.mean:+.1f}",
                _interval(found, "{:+.1f}", scale=100),
            )
        tables.append(table)
    if comparison.generated:
        table = Table("arm", "rms", "variation", title="Generated parameters", title_justify="left", box=None)
        for arm, generated in comparison.generated.items():
            table.add_row(escape(arm), f"{generated.rms:.4g}", f"{generated.variation:.4g}")
        tables.append(table)
    return tables


def picture(comparison: Comparison) -> bytes:
    """PNG: for each kind of tasks the accuracies on the left, the differences on the right."""
    from matplotlib.figure import Figure  # no pyplot: it keeps figures and picks a display

    rows = [max(len(tasks.arms), len(tasks.differences)) for tasks in comparison.tasks]
    figure = Figure(figsize=(11, sum(1.1 + 0.3 * count for count in rows)), layout="constrained")
    grid = figure.subplots(len(rows), 2, squeeze=False, gridspec_kw={"height_ratios": [2 + count for count in rows]})
    for tasks, (left, right) in zip(comparison.tasks, grid, strict=True):
        _dots(left, tasks.arms)
        left.axvline(100 * tasks.chance, color="black", linestyle="--", linewidth=1)
        left.set(title=heading(tasks), xlabel="accuracy, % (dashed: chance)")
        _dots(right, tasks.differences)
        right.axvline(0, color="black", linewidth=1)
        right.set(title="Differences, same tasks and seeds", xlabel="points")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _dots(axes: Any, found: Sequence[ArmResult | Difference]) -> None:
    """One row for each, the first on top; small dots are the single seeds."""
    names = []
    for place, one in enumerate(found):
        if isinstance(one, ArmResult):
            name, value, colour = f"{one.arm} {one.reading}", one.accuracy, COLOURS.get(one.reading, OTHER_COLOUR)
        else:
            name, value, colour = f"{one.contender} - {one.baseline}", one.difference, COLOURS["specialized"]
        names.append(name)
        axes.hlines(place, 100 * value.low, 100 * value.high, color=colour, linewidth=2)
        axes.plot([100 * seed for seed in value.seeds], [place] * len(value.seeds), ".", color=colour, alpha=0.4)
        axes.plot(100 * value.mean, place, "o", color=colour)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.3)


def heading(tasks: TaskComparison) -> str:
    return f"{tasks.evaluation_set}: {tasks.title} ({tasks.num_tasks} tasks, chance {tasks.chance:.1%})"


def _setting(comparison: Comparison) -> str:
    seeds = ", ".join(map(str, comparison.seeds))
    return f"Seeds {seeds}. Intervals: 95 %, bootstrap over seeds and tasks; differences are of the same tasks and seeds." + (
        " One seed: the intervals know nothing of what another seed would give." if len(comparison.seeds) == 1 else ""
    )


def _percents(value: SeedEstimate) -> str:
    return f"{value.mean:.1%} | {_interval(value, '{:.1%}')} | {', '.join(f'{seed:.1%}' for seed in value.seeds)}"


def _points(value: SeedEstimate) -> str:
    seeds = ", ".join(f"{100 * seed:+.1f}" for seed in value.seeds)
    return f"{100 * value.mean:+.1f} | {_interval(value, '{:+.1f}', scale=100)} | {seeds}"


def _interval(value: SeedEstimate, form: str, *, scale: float = 1) -> str:
    return f"{form.format(scale * value.low)} to {form.format(scale * value.high)}"
