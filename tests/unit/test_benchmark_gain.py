"""The arithmetic of the benchmarks of the method's claim: what is compared with what, and when a goal is missed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from data_prep.sample.pictures import read_sample
from infra.errors import BadInputError
from pipeline.comparison import Comparison, compare
from pipeline.sweep import Contender
from pipeline.sweep_runs import load_sweep
from pipeline.sweep_steps import SetAccuracies, TaskAccuracies
from tests.benchmarks._ceiling_shares import ceiling_measures, share
from tests.benchmarks._gain import GAIN_OVER, NEUTRAL, PLAIN, SPECIALIZED, SWAPPED, gain_by_size, gain_measures, ratio
from tests.benchmarks._sweep_of_results import NUM_HELD_OUT, QUICK, SWEEP, on_folder, shortened, write_sample_folder
from tests.result import measure
from training.evaluation.parquet_set import parquet_set

PAIRS = [
    *((SPECIALIZED, other) for others in GAIN_OVER.values() for other in others),
    (SWAPPED, NEUTRAL),
    (NEUTRAL, "twin.neutral"),
]
MEANS = {
    SPECIALIZED: 0.60,
    NEUTRAL: 0.53,
    SWAPPED: 0.50,
    PLAIN: 0.52,
    "siglip-more.neutral_centred": 0.53,
    "siglip-more.neutral_orthogonal": 0.55,
    "siglip-choice.neutral": 0.53,
    "twin.neutral": 0.53,
    "tokens.specialized": 0.54,
}


def comparison(kind: str = "10_way", *, without: str = "none", **changed: float) -> Comparison:
    """Three seeds and 60 tasks around given means; differences are exact to 0.001."""
    means = {name: mean for name, mean in {**MEANS, **changed}.items() if not name.startswith(without)}
    rng = np.random.default_rng(0)
    difficulty = rng.uniform(-0.2, 0.2, 60)
    results: dict[str, dict[int, dict[str, SetAccuracies]]] = {}
    for seed in range(3):
        for arm in dict.fromkeys(name.partition(".")[0] for name in means):
            readings = {
                name.partition(".")[2]: tuple((mean + difficulty + rng.normal(0, 0.001, 60)).tolist())
                for name, mean in means.items()
                if name.startswith(f"{arm}.")
            }
            tasks = TaskAccuracies(title=kind, chance=0.1, readings=readings)
            found = SetAccuracies(bundle_digest="0", tasks_identity="t", kinds={kind: tasks})
            results.setdefault(arm, {})[seed] = {"drawings": found}
    pairs = [(Contender(*one.split(".")), Contender(*other.split("."))) for one, other in PAIRS]
    return compare("s", results, pairs=pairs, generated={})


def missed(measures: dict[str, dict[str, Any]]) -> list[str]:
    return [name for name, one in measures.items() if not one["ok"]]


def test_a_gain_is_judged_against_the_better_trick_and_by_its_whole_interval() -> None:
    measures = gain_measures(comparison(), {"drawings": ["10_way"]}, judged=True)
    assert missed(measures) == []
    points = {name.partition(".")[2]: one["value"] for name, one in measures.items() if one["value"] is not None}
    assert points == pytest.approx(
        {
            "over_matched_siglip": 8,
            "over_siglip_by_choice": 7,
            "over_best_free_trick": 5,  # the orthogonal prototypes, not the centred ones
            "over_tokens": 6,
            "over_swapped": 10,
            "target": 8,
            "swapped_minus_neutral": -3,
            "neutral_minus_twin": 0,
        },
        abs=0.1,
    )
    assert all(one["low"] < one["value"] < one["high"] for one in measures.values() if one["value"] is not None)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({PLAIN: 0.60}, ["over_matched_siglip", "target"]),
        ({PLAIN: 0.57}, ["target"]),  # above 0, and below five points
        ({"siglip-choice.neutral": 0.60}, ["over_siglip_by_choice"]),
        ({"tokens.specialized": 0.60}, ["over_tokens"]),
        ({"siglip-more.neutral_centred": 0.61}, ["over_best_free_trick"]),
        ({SWAPPED: 0.60}, ["over_swapped", "swapped_minus_neutral"]),
        ({"twin.neutral": 0.54}, ["neutral_minus_twin"]),
    ],
)
def test_each_control_can_miss(changed: dict[str, float], expected: list[str]) -> None:
    found = comparison(**changed)
    assert missed(gain_measures(found, {"drawings": ["10_way"]}, judged=True)) == [f"10_way.{name}" for name in expected]
    assert missed(gain_measures(found, {"drawings": ["10_way"]}, judged=False)) == []


def test_a_control_that_the_sweep_lacks_is_no_control_passed() -> None:
    measures = gain_measures(comparison(without="tokens"), {"drawings": []}, judged=True)
    assert missed(measures) == ["10_way.over_tokens"]


def test_a_number_of_names_that_makes_it_surely_worse_is_missed() -> None:
    worse, same = comparison("1000_way", **{PLAIN: 0.61}), comparison("1000_way", **{PLAIN: 0.60})
    assert missed(gain_by_size(worse, "drawings", judged=True)) == ["gain_at_1000_names"]
    assert missed(gain_by_size(same, "drawings", judged=True)) == []
    assert gain_by_size(comparison("10_way_same_topic"), "drawings", judged=True) == {}


def test_the_ratio_is_of_accuracies() -> None:
    assert ratio(comparison(), "drawings") == pytest.approx(0.60 / 0.52, rel=0.01)


def test_nothing_is_above_itself() -> None:
    assert not measure(0.0, goal=(">", 0.0))["ok"] and measure(0.0, goal=(">=", 0.0))["ok"]


# ---- shares of the ceiling -------------------------------------------------------------------------------------------


def test_a_share_of_a_gain_has_an_interval() -> None:
    possible = np.random.default_rng(0).normal(0.10, 0.05, (3, 50))
    found = share(0.5 * possible, possible)
    assert found is not None
    assert (found.low, found.mean, found.high) == pytest.approx((0.5, 0.5, 0.5))
    noisy = share(0.5 * possible + np.random.default_rng(1).normal(0, 0.05, (3, 50)), possible)
    assert noisy is not None and noisy.low < noisy.mean < noisy.high
    assert noisy.low > 0.3 and noisy.high < 0.7


def test_of_a_gain_that_is_not_sure_there_is_no_share() -> None:
    assert share(np.full((2, 40), 0.1), np.random.default_rng(0).normal(0, 0.1, (2, 40))) is None


def test_names_that_reach_half_of_what_they_generate_meet_the_goal() -> None:
    rng = np.random.default_rng(0)

    def seed(reached: float) -> dict[str, dict[str, list[float]]]:
        twin = rng.uniform(0.2, 0.6, 50)
        means = {"twin": 0, "as_generated.topic": 0.1, "as_generated.constant": 0.04, "as_generated.swapped": -0.02}
        means |= {"hyperclip": reached, "hyperclip.swapped": 0.01}
        return {"10_way": {name: (twin + mean + rng.normal(0, 0.01, 50)).tolist() for name, mean in means.items()}}

    measures, headline = ceiling_measures([seed(0.07) for _ in range(3)], judged=True)
    assert headline == pytest.approx(0.7, abs=0.05)
    assert measures["10_way.share_of_as_generated_over_constant"]["value"] == pytest.approx(0.5, abs=0.1)
    assert missed(measures) == []
    measures, headline = ceiling_measures([seed(0.03) for _ in range(3)], judged=True)
    assert missed(measures) == ["10_way.share_of_as_generated"]


# ---- the sweep -------------------------------------------------------------------------------------------------------


def test_the_sample_as_a_folder_keeps_concepts_and_an_artist_from_training(tmp_path: Path) -> None:
    folder = write_sample_folder(tmp_path / "sample")
    train, family, concept = (
        parquet_set([str(folder / name)]) for name in ("train-00.parquet", "eval-family.parquet", "eval-concept.parquet")
    )
    assert len(train) + len(family) + len(concept) == len(read_sample())
    assert len(concept.objects.names) == NUM_HELD_OUT and len(concept) == 5 * NUM_HELD_OUT
    assert not set(concept.objects.names) & {*train.objects.names, *family.objects.names}


def test_the_sweep_takes_all_pictures_from_the_folder_and_its_short_form_is_valid(tmp_path: Path) -> None:
    folder = write_sample_folder(tmp_path / "sample")
    tree = yaml.safe_load(SWEEP.read_text())
    moved = on_folder({**tree, "base": str(SWEEP.parent / tree["base"])}, folder, workspace=tmp_path / "work")
    assert "pictures/" not in yaml.safe_dump(moved).replace(str(folder), "")
    moved["set"]["training.source_weights"] = {}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(shortened(moved, **QUICK)))
    sweep = load_sweep(tmp_path / "sweep.yaml")
    assert {run.config.training.num_steps for run in sweep.runs} == {QUICK["twin"], QUICK["after"]}
    assert all(run.config.training.freeze_steps in (0, QUICK["after"]) for run in sweep.runs)
    assert {str(one) for pair in sweep.pairs for one in pair} >= {PLAIN, SPECIALIZED, SWAPPED, NEUTRAL}
    with pytest.raises(BadInputError, match=r"has no eval-family.parquet and no eval-concept.parquet and no train-\*.parquet"):
        on_folder(tree, tmp_path, workspace=tmp_path)
