"""Plots of an evaluation: accuracy against the number of names, and the gain by topic, with 95 % intervals."""

import io
from typing import Any

from training.evaluation.arms import Arm
from training.evaluation.evaluation_set import OBJECT
from training.evaluation.result import Difference, FamilyResult, ZeroShotResult
from training.evaluation.tasks import TaskKind

COLOURS: dict[Arm, str] = {
    "specialized": "#2563eb",
    "neutral": "#64748b",
    "swapped": "#ea580c",
    "twin": "#15803d",
    "neutral_centred": "#a1a1aa",
    "neutral_orthogonal": "#d4a017",
    "twin_centred": "#65a30d",
    "twin_orthogonal": "#0d9488",
}
KIND_TITLES: dict[TaskKind, str] = {
    "random": "random names",
    "same_topic": "names of one topic",
    "all": "all names",
    "held_out_among_known": "one name among known ones",
}
SPREAD = 0.03
"""Arms at one number of names stand beside each other, so that their intervals can be told apart."""


def evaluation_plots(result: ZeroShotResult) -> dict[str, bytes]:
    """PNG by file name; without topics there is no plot by topic."""
    found = {"accuracy.png": png(accuracy_plot(result))}
    if plotted := gain_plot(result):
        found["gain_per_topic.png"] = png(plotted)
    return found


def accuracy_plot(result: ZeroShotResult) -> Any:
    """One panel for each kind of tasks, by what the pictures show; dashed: chance; hollow: with distractors."""
    from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter

    shown = [one for one in result.families if one.family.reading == OBJECT]
    kinds = list(dict.fromkeys(one.family.kind for one in shown))
    figure, panels = new_figure(columns=len(kinds))
    highest = max(value.high for one in shown for value in one.accuracy.values())
    labelled: dict[str, Any] = {}
    for axes, kind in zip(panels, kinds, strict=True):
        plain = [one for one in shown if one.family.kind == kind and not one.family.num_distractors]
        distracted = [one for one in shown if one.family.kind == kind and one.family.num_distractors]
        arms = [arm for arm in COLOURS if any(arm in one.accuracy for one in plain)]
        for place, arm in enumerate(arms):
            shift = (1 + SPREAD) ** (place - (len(arms) - 1) / 2)
            for families, face in ((plain, COLOURS[arm]), (distracted, "white")):
                line = _line(axes, [one for one in families if arm in one.accuracy], arm, shift=shift, face=face)
                labelled.setdefault(arm.replace("_", ", "), line)
        sizes = sorted({one.family.num_names for one in plain})
        labelled["chance"] = axes.plot(sizes, [1 / size for size in sizes], "k--", marker="_", linewidth=1)[0]
        axes.set(title=KIND_TITLES[kind], xlabel="names", xscale="log", ylim=(0, min(1, 1.1 * highest)))
        axes.xaxis.set_major_locator(FixedLocator(sizes))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    panels[0].set_ylabel("zero-shot accuracy")
    figure.legend(
        labelled.values(),
        labelled,
        loc="outside lower center",
        frameon=False,
        ncols=5 if len(labelled) <= 5 else -(-len(labelled) // 2),
    )
    return figure


def _line(axes: Any, families: list[FamilyResult], arm: Arm, *, shift: float, face: str) -> Any:
    found = sorted(families, key=lambda one: one.family.num_names)
    values = [one.accuracy[arm] for one in found]
    return axes.errorbar(
        [one.family.num_names * shift for one in found],
        [value.mean for value in values],
        yerr=[[value.mean - value.low for value in values], [value.high - value.mean for value in values]],
        color=COLOURS[arm],
        marker="o",
        markersize=4,
        markerfacecolor=face,
        linewidth=1.2 if face != "white" else 0.6,
        capsize=2,
    )


def gain_plot(result: ZeroShotResult) -> Any | None:
    """By topic, in the first family that has topics: specialized minus neutral, and minus the twin where there is one."""
    from matplotlib.ticker import PercentFormatter

    family = next((one for one in result.families if one.topics), None)
    if family is None:
        return None
    baselines: tuple[Arm, ...] = ("neutral", "twin") if result.twin_digests else ("neutral",)
    topics = sorted(family.topics, key=lambda one: _over(one.differences, "neutral").difference.mean)
    figure, (axes,) = new_figure(columns=1, height=max(2.4, 0.34 * len(topics) + 1.2))
    for place, baseline in enumerate(baselines):
        gains = [_over(one.differences, baseline).difference for one in topics]
        axes.errorbar(
            [gain.mean for gain in gains],
            [number + 0.15 * (place - (len(baselines) - 1) / 2) for number in range(len(topics))],
            xerr=[[gain.mean - gain.low for gain in gains], [gain.high - gain.mean for gain in gains]],
            color=COLOURS[baseline],
            marker="o",
            linestyle="",
            capsize=2,
            label=f"over {baseline}",
        )
    axes.axvline(0, color="black", linewidth=1)
    axes.set_yticks(range(len(topics)), [f"{one.topic} ({one.num_tasks})" for one in topics])
    axes.set(title=f"Gain of specialization by topic (tasks)\n{family.family.title}", xlabel="points of accuracy")
    axes.set_ylim(-0.6, len(topics) - 0.4)
    axes.xaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=None, symbol=""))
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside lower center", frameon=False, ncols=2)
    return figure


def _over(differences: tuple[Difference, ...], baseline: Arm) -> Difference:
    return next(one for one in differences if one.arm == "specialized" and one.baseline == baseline)


def new_figure(*, columns: int, height: float = 3.6) -> tuple[Any, Any]:
    """A figure and its axes, in the one style of the project."""
    from matplotlib.figure import Figure  # no pyplot: it keeps figures and picks a display

    figure = Figure(figsize=(5.5 * columns, height), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(axis="y", alpha=0.3)
    return figure, axes


def png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
