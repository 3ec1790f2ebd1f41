"""What a gain has to be above, from the comparison of a sweep, in points of accuracy with 95 % intervals.

A goal of accuracy is met only when the whole interval is on the right side.
"""

from collections.abc import Iterator
from typing import Any

from pipeline.comparison import Comparison, SeedEstimate, TaskComparison
from tests.benchmarks._sweep_of_results import Results
from tests.result import Op, measure, rounded

HYPERCLIP, TWIN, MATCHED, TOKENS = "hyperclip", "twin", "siglip-more", "tokens"
SPECIALIZED, NEUTRAL, SWAPPED = (f"{HYPERCLIP}.{reading}" for reading in ("specialized", "neutral", "swapped"))
PLAIN = f"{MATCHED}.neutral"
TRICKS = (f"{MATCHED}.neutral_centred", f"{MATCHED}.neutral_orthogonal")
TARGET = 5.0
"""Points."""
NEUTRAL_LOSS = -0.5
"""Points that the neutral parameters may be below the twin."""
GAIN_OVER = {
    "matched_siglip": (PLAIN,),
    "best_free_trick": TRICKS,
    "tokens": (f"{TOKENS}.specialized",),
    "swapped": (SWAPPED,),
}
"""What HyperCLIP has to be above.  Of several the best is taken, chosen on the same tasks, which favours it."""


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
    there = [baseline for baseline in baselines if accuracy(tasks, baseline) is not None]
    best = max(there, key=lambda baseline: accuracy(tasks, baseline) or 0.0, default=None)
    return None if best is None else difference(tasks, SPECIALIZED, best)


def in_points(found: SeedEstimate | None, *, goals: dict[str, tuple[Op, float]], judged: bool) -> dict[str, Any]:
    """A measure with its interval.

    Args:
        goals: by what is judged (`mean`, `low`, `high`); every one of them must hold.
        judged: False in a smoke run; what was not measured is then told, and misses nothing.
    """
    if found is None:
        return {"value": None, "unit": "points", "ok": not judged, "note": "not compared: the sweep lacks this arm or pair"}
    values = {name: 100 * getattr(found, name) for name in ("mean", "low", "high")}
    ok = all(measure(values[what], goal=goal)["ok"] for what, goal in goals.items()) or not judged
    shown = {f"{what} {op} {bound:g}": rounded(values[what]) for what, (op, bound) in goals.items()} if judged else {}
    return {
        **measure(values["mean"], unit="points"),
        "low": rounded(values["low"]),
        "high": rounded(values["high"]),
        "seeds": [rounded(100 * seed) for seed in found.seeds],
        **({"goal": shown} if shown else {}),
        "ok": ok,
    }


def gain_measures(results: Results, sets: dict[str, tuple[str, ...]]) -> dict[str, dict[str, Any]]:
    """Every comparison on every kind of tasks.

    Args:
        sets: evaluation set -> the kinds of its tasks (slugs) that have the target beside the interval above 0.
    """
    found: dict[str, dict[str, Any]] = {}
    judged = not results.smoke
    for tasks in chosen_tasks(results.comparison, *sets):
        for name, baselines in GAIN_OVER.items():
            goals: dict[str, tuple[Op, float]] = {"low": (">", 0.0)}
            if name == "matched_siglip" and tasks.kind in sets[tasks.evaluation_set]:
                goals["mean"] = (">=", TARGET)
            found[f"{tasks.kind}.over_{name}"] = in_points(over_the_best(tasks, baselines), goals=goals, judged=judged)
        compared: dict[str, tuple[str, str, dict[str, tuple[Op, float]]]] = {
            "swapped_minus_neutral": (SWAPPED, NEUTRAL, {"high": ("<", 0.0)}),
            "neutral_minus_twin": (NEUTRAL, f"{TWIN}.neutral", {"mean": (">=", NEUTRAL_LOSS)}),
            "neutral_minus_matched_siglip": (NEUTRAL, PLAIN, {}),
        }
        for name, (contender, baseline, goals) in compared.items():
            found[f"{tasks.kind}.{name}"] = in_points(difference(tasks, contender, baseline), goals=goals, judged=judged)
    return found


def gain_by_size(results: Results, *sets: str) -> dict[str, dict[str, Any]]:
    """Gain over the matched SigLIP by the number of random names: never significantly negative."""
    sizes: dict[int, SeedEstimate] = {}
    for tasks in chosen_tasks(results.comparison, *sets):
        found = difference(tasks, SPECIALIZED, PLAIN)
        if found is not None and tasks.kind.endswith("_way"):  # of random names
            sizes[int(tasks.kind.removesuffix("_way"))] = found
    return {
        f"gain_at_{size}_names": in_points(sizes[size], goals={"high": (">=", 0.0)}, judged=not results.smoke)
        for size in sorted(sizes)
    }


def ratio(results: Results, *sets: str) -> float:
    """Accuracy of HyperCLIP over that of the matched SigLIP, the mean over the kinds of tasks."""
    pairs = [(accuracy(tasks, SPECIALIZED), accuracy(tasks, PLAIN)) for tasks in chosen_tasks(results.comparison, *sets)]
    ratios = [ours / theirs for ours, theirs in pairs if ours and theirs]
    return sum(ratios) / len(ratios)


def table(measures: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Lines for people."""
    for name, one in measures.items():
        if one["value"] is None:
            yield f"  {name:<56} not measured: {one.get('note', '')}"
            continue
        interval = f" ({one['low']:+.2f} to {one['high']:+.2f})" if "low" in one else ""
        goal = "" if "goal" not in one else "   met" if one["ok"] else "   MISSED"
        yield f"  {name:<56} {one['value']:+.4g}{interval} {one['unit']}{goal}"
