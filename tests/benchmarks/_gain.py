"""What a gain has to be above, from the comparison of a sweep, in points of accuracy with 95 % intervals.

A goal of accuracy is met only when the whole interval is on the right side.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from pipeline.comparison import Comparison, SeedEstimate, TaskComparison
from tests.result import Op, measure, rounded

HYPERCLIP, TWIN, MATCHED, CHOICE, TOKENS = "hyperclip", "twin", "siglip-more", "siglip-choice", "tokens"
SPECIALIZED, NEUTRAL, SWAPPED = (f"{HYPERCLIP}.{reading}" for reading in ("specialized", "neutral", "swapped"))
PLAIN = f"{MATCHED}.neutral"
TRICKS = (f"{MATCHED}.neutral_centred", f"{MATCHED}.neutral_orthogonal", f"{CHOICE}.neutral_centred")
TARGET = 5.0
"""Points."""
NEUTRAL_LOSS = -0.5
"""Points that the neutral parameters may be below the twin."""
GAIN_OVER = {
    "matched_siglip": (PLAIN,),
    "siglip_by_choice": (f"{CHOICE}.neutral",),
    "best_free_trick": TRICKS,
    "tokens": (f"{TOKENS}.specialized",),
    "swapped": (SWAPPED,),
}
"""What HyperCLIP has to be above: its twin with as many further steps, the same on sets of one topic by the loss that HyperCLIP
is trained with, and so on.  Of several the best is taken, chosen on the same tasks, which favours it."""


def chosen_tasks(comparison: Comparison, *sets: str) -> list[TaskComparison]:
    return [tasks for tasks in comparison.tasks if tasks.evaluation_set in sets]


def accuracy(tasks: TaskComparison, contender: str) -> float | None:
    """Mean, as a share; None where there is no such arm."""
    found = [one.accuracy.mean for one in tasks.arms if f"{one.arm}.{one.reading}" == contender]
    return found[0] if found else None


def difference(tasks: TaskComparison, contender: str, baseline: str) -> SeedEstimate | None:
    """Contender minus baseline; None where the sweep does not compare them."""
    pair = (contender, baseline)
    return next((one.difference for one in tasks.differences if (one.contender, one.baseline) == pair), None)


def over_the_best(tasks: TaskComparison, baselines: tuple[str, ...]) -> SeedEstimate | None:
    """HyperCLIP minus the baseline with the highest accuracy."""
    there = [baseline for baseline in baselines if difference(tasks, SPECIALIZED, baseline) is not None]
    best = max(there, key=lambda baseline: accuracy(tasks, baseline) or 0.0, default=None)
    return None if best is None else difference(tasks, SPECIALIZED, best)


def in_points(
    found: SeedEstimate | None, *, judged: Literal["mean", "low", "high"] = "mean", goal: tuple[Op, float] | None = None
) -> dict[str, Any]:
    """A measure with its interval.

    Args:
        judged: which of its three figures the goal is for.
        goal: in points; None is for information, as everything of a smoke run.
    """
    if found is None:
        return {"value": None, "unit": "points", "ok": goal is None, "note": "the sweep lacks this arm or this pair"}
    mean, low, high = (round(100 * value, 3) for value in (found.mean, found.low, found.high))  # 1e-16 says nothing
    verdict = measure({"mean": mean, "low": low, "high": high}[judged], goal=goal)
    return {
        **verdict,
        "value": rounded(mean),
        "unit": "points",
        "low": rounded(low),
        "high": rounded(high),
        "seeds": [rounded(100 * seed) for seed in found.seeds],
        **({"judged": judged} if goal else {}),
    }


def gain_measures(comparison: Comparison, sets: Mapping[str, Sequence[str]], *, judged: bool) -> dict[str, dict[str, Any]]:
    """Every comparison on every kind of tasks.

    Args:
        sets: evaluation set -> the kinds of its tasks (slugs) that have the target beside the interval above 0.
        judged: False in a smoke run.
    """
    found: dict[str, dict[str, Any]] = {}
    for tasks in chosen_tasks(comparison, *sets):
        for name, baselines in GAIN_OVER.items():
            over = over_the_best(tasks, baselines)
            found[f"{tasks.kind}.over_{name}"] = in_points(over, judged="low", goal=_goal(judged, ">", 0.0))
        if tasks.kind in sets[tasks.evaluation_set]:
            over = over_the_best(tasks, GAIN_OVER["matched_siglip"])
            found[f"{tasks.kind}.target"] = in_points(over, goal=_goal(judged, ">=", TARGET))
        swapped, neutral = difference(tasks, SWAPPED, NEUTRAL), difference(tasks, NEUTRAL, f"{TWIN}.neutral")
        found[f"{tasks.kind}.swapped_minus_neutral"] = in_points(swapped, judged="high", goal=_goal(judged, "<", 0.0))
        found[f"{tasks.kind}.neutral_minus_twin"] = in_points(neutral, goal=_goal(judged, ">=", NEUTRAL_LOSS))
        found[f"{tasks.kind}.neutral_minus_matched_siglip"] = in_points(difference(tasks, NEUTRAL, PLAIN))
    return found


def gain_by_size(comparison: Comparison, *sets: str, judged: bool) -> dict[str, dict[str, Any]]:
    """Gain over the matched SigLIP by the number of random names: never significantly negative."""
    sizes: dict[int, SeedEstimate] = {}
    for tasks in chosen_tasks(comparison, *sets):
        found = difference(tasks, SPECIALIZED, PLAIN)
        if found is not None and tasks.kind.endswith("_way"):  # of random names
            sizes[int(tasks.kind.removesuffix("_way"))] = found
    goal = _goal(judged, ">=", 0.0)
    return {f"gain_at_{size}_names": in_points(sizes[size], judged="high", goal=goal) for size in sorted(sizes)}


def _goal(judged: bool, op: Op, bound: float) -> tuple[Op, float] | None:
    return (op, bound) if judged else None


def ratio(comparison: Comparison, *sets: str) -> float:
    """Accuracy of HyperCLIP over that of the matched SigLIP, the mean over the kinds of tasks."""
    pairs = [(accuracy(tasks, SPECIALIZED), accuracy(tasks, PLAIN)) for tasks in chosen_tasks(comparison, *sets)]
    ratios = [ours / theirs for ours, theirs in pairs if ours and theirs]
    return sum(ratios) / len(ratios)


def table(measures: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Lines for people."""
    for name, one in measures.items():
        if one["value"] is None:
            yield f"  {name:<56} not measured: {one.get('note', '')}{'' if one['ok'] else '   MISSED'}"
            continue
        interval = f" ({one['low']:+.2f} to {one['high']:+.2f})" if "low" in one else ""
        goal = "" if "goal" not in one else "   met" if one["ok"] else "   MISSED"
        yield f"  {name:<56} {one['value']:+.4g}{interval} {one['unit']}{goal}"
