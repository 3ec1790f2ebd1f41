"""Plots of a dataset: the funnel with what was lost, rates, hosts, sizes and captions.  Colours that everyone tells apart."""

import re
from datetime import UTC, datetime
from typing import Any

from data_prep.description import DatasetDescription
from data_prep.tallies import Histogram, NamedCount
from training.evaluation.plots import new_figure, png

GOOD, FAILED, DROPPED, QUIET = "#0072b2", "#d55e00", "#e69f00", "#cbd5e1"  # Okabe and Ito's
MAX_REASONS = 14
MAX_BARS = 12
MAX_LABEL_CHARACTERS = 34
_PIXELS, _ASPECT, _BYTES = "shorter side (pixels)", "longer side / shorter", "file (bytes)"
_CHARACTERS, _WORDS = "caption (characters)", "caption (words)"


def data_plots(described: DatasetDescription) -> dict[str, bytes]:
    """PNG by file name; without requests there are neither rates nor hosts."""
    found = {"funnel.png": funnel_plot(described), "sizes.png": sizes_plot(described), "captions.png": captions_plot(described)}
    if described.rates.first is not None:
        found["rates.png"] = rates_plot(described)
    if described.hosts:
        found["hosts.png"] = names_plot(described.hosts, "URLs by host", good="downloaded", lost=("failed", FAILED))
    if described.sources:
        found["sources.png"] = names_plot(
            described.sources, "Samples by source", good="kept", lost=("dropped by curation", DROPPED)
        )
    return {name: png(figure) for name, figure in found.items()}


def funnel_plot(described: DatasetDescription) -> Any:
    """Left: how many got how far; right: what the others were lost for."""
    losses = [(reason, count, FAILED) for reason, count in described.failed.items()]
    losses += [(reason, count, DROPPED) for reason, count in described.dropped.items()]
    losses.sort(key=lambda loss: -loss[1])
    shown, others = losses[:MAX_REASONS], losses[MAX_REASONS:]
    if others:
        shown.append((f"{len(others)} more reasons", sum(count for _, count, _ in others), QUIET))
    figure, (left, right) = new_figure(columns=2, height=max(2.8, 0.3 * len(shown) + 1.3))
    figure.get_layout_engine().set(wspace=0.08)
    came = "imported" if described.imported else "downloaded"
    stages = [
        ("pictures given" if described.imported else "URLs", described.requested),
        (came, described.downloaded),
        ("kept", described.kept),
        ("in shards", described.samples),
    ]
    _bars(left, [name for name, _ in stages], [count for _, count in stages], [GOOD] * 4, of=described.requested, height=0.45)
    left.set_title("How far they got")
    if shown:
        _bars(
            right,
            [_short(name) for name, _, _ in shown],
            [c for _, c, _ in shown],
            [c for _, _, c in shown],
            of=described.requested,
        )
        kinds = {"failed": FAILED, "dropped by curation": DROPPED}
        right.legend(handles=[_patch(colour, name) for name, colour in kinds.items()], frameon=False, loc="lower right")
    else:
        right.set_axis_off()
    right.set_title("Why the others did not" if shown else "Nothing was lost")
    return figure


def rates_plot(described: DatasetDescription) -> Any:
    rates = described.rates
    assert rates.first is not None
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    figure, (axes,) = new_figure(columns=1, height=3)
    figure.set_figwidth(11)
    times = [datetime.fromtimestamp(rates.first + place * rates.bin_s, UTC) for place in range(len(rates.downloaded) + 1)]
    good = [count / rates.bin_s for count in rates.downloaded]
    both = [(one + other) / rates.bin_s for one, other in zip(rates.downloaded, rates.failed, strict=True)]
    axes.stairs(both, times, fill=True, color=FAILED, label="failed", baseline=[*good])
    axes.stairs(good, times, fill=True, color=GOOD, label="downloaded")
    locator = AutoDateLocator()
    axes.xaxis.set_major_locator(locator)
    formats = ["%Y", "%b", "%d %b", "%H:%M", "%H:%M", "%H:%M:%S"]  # of ticks a year, a month, ..., a second apart
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator, tz=UTC, formats=formats, zero_formats=formats))
    axes.set(title=f"Answers per second (UTC, bins of {rates.bin_s:,} s)", ylim=(0, None), xlim=(times[0], times[-1]))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    figure.legend(loc="outside lower right", frameon=False, ncols=2, reverse=True)
    return figure


def names_plot(names: list[NamedCount], title: str, *, good: str, lost: tuple[str, str]) -> Any:
    """A bar for each name; beside it how many there were, and the share that was good."""
    shown = names[:MAX_BARS]
    figure, (axes,) = new_figure(columns=1, height=max(1.8, 0.3 * len(shown) + 1.2))
    figure.set_figwidth(11)
    labels = [_short(one.name) for one in shown]
    places = range(len(shown))
    axes.barh(places, [one.good for one in shown], color=GOOD, label=good, height=0.7)
    axes.barh(
        places,
        [one.seen - one.good for one in shown],
        left=[one.good for one in shown],
        color=lost[1],
        label=lost[0],
        height=0.7,
    )
    for place, one in zip(places, shown, strict=True):
        axes.annotate(
            f"{one.seen:,}, {one.good / one.seen:.0%} {good}",
            (one.seen, place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
        )
    _horizontal(axes, labels, highest=max(one.seen for one in shown), room=1.3)
    axes.set_title(title)
    figure.legend(loc="outside lower right", frameon=False, ncols=2)
    return figure


def sizes_plot(described: DatasetDescription) -> Any:
    return _histograms(described, (_PIXELS, _ASPECT, _BYTES))


def captions_plot(described: DatasetDescription) -> Any:
    return _histograms(described, (_CHARACTERS, _WORDS))


def _histograms(described: DatasetDescription, names: tuple[str, ...]) -> Any:
    figure, panels = new_figure(columns=len(names), height=3.2)
    figure.set_figwidth(11)
    for axes, name in zip(panels, names, strict=True):
        _histogram(axes, described.histograms[name], name)
    panels[0].set_ylabel("samples")
    handles = [_patch(GOOD, "kept"), _patch(DROPPED, "dropped by curation")]
    figure.legend(handles=handles, loc="outside lower right", frameon=False, ncols=2)
    return figure


def _histogram(axes: Any, histogram: Histogram, title: str) -> None:
    """Bins of equal width on the page, with their lower edges below: edges grow by ratios."""
    both = [kept + dropped for kept, dropped in zip(histogram.kept, histogram.dropped, strict=True)]
    used = [place for place, count in enumerate(both) if count] or [0]
    first, last = max(0, used[0] - 1), min(len(both), used[-1] + 2)
    places = range(first, last)
    axes.bar(places, histogram.kept[first:last], width=0.94, align="edge", color=GOOD)
    axes.bar(places, histogram.dropped[first:last], bottom=histogram.kept[first:last], width=0.94, align="edge", color=DROPPED)
    step = max(2, -(-(last - first) // 10) * 2)  # every second edge at most: those are round numbers
    ticks = list(range(first + first % 2, last + 1, step))
    axes.set_xticks(ticks, [_edge(histogram.edges[place]) for place in ticks])
    axes.set_title(title)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def _bars(axes: Any, labels: list[str], counts: list[int], colours: list[str], *, of: int, height: float = 0.7) -> None:
    places = range(len(labels))
    axes.barh(places, counts, color=colours, height=height)
    for place, count in zip(places, counts, strict=True):
        share = f"  {count / of:.1%}" if of else ""
        axes.annotate(f"{count:,}{share}", (count, place), xytext=(5, 0), textcoords="offset points", va="center")
    _horizontal(axes, labels, highest=max(counts, default=1), room=1.5)


def _horizontal(axes: Any, labels: list[str], *, highest: int, room: float) -> None:
    """From top to bottom, with room for the numbers beside the longest bar."""
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set_xlim(0, max(1, highest) * room)
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(bottom=False, labelbottom=False, left=False)


def _patch(colour: str, label: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=colour, label=label)


def _edge(value: float) -> str:
    for size, unit in ((1 << 20, " M"), (1 << 10, " k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def _short(name: str) -> str:
    """A name from the web as a label: one line, printable, cut in its middle, and no formula to matplotlib."""
    text = re.sub(r"\s+", " ", "".join(letter if letter.isprintable() else " " for letter in name)).replace("$", r"\$")
    half = MAX_LABEL_CHARACTERS // 2 - 1
    return text if len(text) <= MAX_LABEL_CHARACTERS else f"{text[:half]}…{text[-half:]}"
