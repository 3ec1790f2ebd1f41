"""Gains of direct tuning, and the share of them that names alone reach, with 95 % intervals from the product's bootstrap.

Shapes: S seeds, T tasks.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tests.benchmarks._direct_tuning import AS_GENERATED
from tests.result import measure, rounded
from training.evaluation.measures import Estimate, bootstrap_means, estimates

HALF = 0.5
Values = Mapping[str, Sequence[float]]
"""Accuracy on each task, by contender."""


def ceiling_measures(of_seeds: Sequence[Mapping[str, Values]], *, judged: bool) -> tuple[dict[str, dict[str, Any]], float]:
    """All measures, and the headline: the share of the gain over the twin that names reach, the mean over the families.

    Args:
        of_seeds: for each seed, by family of tasks.
        judged: whether half of the gain must be reached.
    """
    measures: dict[str, dict[str, Any]] = {}
    headlines = []
    for slug in of_seeds[0]:
        values = {name: np.array([found[slug][name] for found in of_seeds]) for name in of_seeds[0][slug]}  # (S, T)
        ways = [name.removesuffix(".topic") for name in values if name.endswith(".topic")]
        gains: dict[str, np.ndarray] = {"hyperclip.over_twin": values["hyperclip"] - values["twin"]}
        gains["hyperclip.over_swapped_names"] = values["hyperclip"] - values["hyperclip.swapped"]
        for way in ways:
            gains[f"{way}.over_twin"] = values[f"{way}.topic"] - values["twin"]
            gains[f"{way}.over_constant"] = values[f"{way}.topic"] - values[f"{way}.constant"]
            gains[f"{way}.constant_over_twin"] = values[f"{way}.constant"] - values["twin"]
            gains[f"{way}.swapped_over_twin"] = values[f"{way}.swapped"] - values["twin"]
            gains[f"hyperclip.over_constant_{way}"] = values["hyperclip"] - values[f"{way}.constant"]
        measures[f"{slug}.twin"] = measure(100 * float(values["twin"].mean()), unit="%")
        measures |= {f"{slug}.{name}": _in_points(found) for name, found in estimates(gains, seed=0).items()}
        for way in ways:
            over_twin = share(values["hyperclip"] - values["twin"], gains[f"{way}.over_twin"])
            over_constant = share(gains[f"hyperclip.over_constant_{way}"], gains[f"{way}.over_constant"])
            is_headline = way == AS_GENERATED
            measures[f"{slug}.share_of_{way}"] = _share_measure(over_twin, goal=is_headline, judged=judged)
            measures[f"{slug}.share_of_{way}_over_constant"] = _share_measure(over_constant, goal=False, judged=judged)
            if is_headline:
                headlines.append(over_twin.mean if over_twin else 0.0)
    return measures, float(np.mean(headlines))


def share(reached: np.ndarray, possible: np.ndarray) -> Estimate | None:
    """Mean of one over the mean of the other with its interval; None where direct tuning gains nothing that is sure.

    Args:
        reached, possible: (S, T) gains on the same tasks.
    """
    (gain,) = estimates({"possible": possible}, seed=0).values()
    if gain.low <= 0:
        return None
    ours, most = bootstrap_means(np.stack([reached, possible]), seed=0)  # resampled alike
    low, high = np.quantile(ours / most, [0.025, 0.975])
    mean = float(reached.mean() / possible.mean())
    return Estimate(mean=mean, low=min(mean, float(low)), high=max(mean, float(high)))


def _in_points(found: Estimate) -> dict[str, Any]:
    mean, low, high = (round(100 * value, 3) for value in (found.mean, found.low, found.high))  # 1e-16 says nothing
    return {**measure(mean, unit="points"), "low": rounded(low), "high": rounded(high)}


def _share_measure(found: Estimate | None, *, goal: bool, judged: bool) -> dict[str, Any]:
    if found is None:
        note = "direct tuning gains nothing that is sure, so there is nothing to share"
        return {"value": None, "unit": "", "ok": not (goal and judged), "note": note}
    value = measure(found.mean, goal=(">=", HALF) if goal and judged else None)
    return {**value, "low": rounded(found.low), "high": rounded(found.high)}
