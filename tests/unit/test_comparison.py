"""Comparisons: means, paired differences, and intervals that hold what they promise."""

import numpy as np
import pytest

from infra.errors import BadInputError
from pipeline.comparison import Comparison, Generated, compare
from pipeline.comparison_report import markdown, picture
from pipeline.sweep import Contender
from pipeline.sweep_steps import SetAccuracies, TaskAccuracies

SEEDS = (0, 1, 2)


def accuracies(values: dict[str, np.ndarray], *, identity: str = "tasks") -> SetAccuracies:
    """Args: values (T,) by reading."""
    readings = {reading: tuple(found.tolist()) for reading, found in values.items()}
    tasks = TaskAccuracies(title="10 names", chance=0.1, readings=readings)
    return SetAccuracies(bundle_digest="0", tasks_identity=identity, kinds={"10_way": tasks})


def compared(gain: float, *, num_tasks: int = 40, gain_noise: float = 0.01) -> Comparison:
    """Two arms whose tasks are of very different difficulty, the same for both."""
    rng = np.random.default_rng(0)
    difficulty = rng.uniform(0.2, 0.8, num_tasks)
    results: dict[str, dict[int, dict[str, SetAccuracies]]] = {"hyperclip": {}, "twin": {}}
    for seed in SEEDS:
        twin = difficulty + rng.normal(0, 0.01, num_tasks)
        better = twin + gain + rng.normal(0, gain_noise, num_tasks)
        results["twin"][seed] = {"held-out": accuracies({"neutral": twin})}
        results["hyperclip"][seed] = {"held-out": accuracies({"specialized": better, "swapped": twin})}
    pairs = [
        (Contender("hyperclip", "specialized"), Contender("twin", "neutral")),
        (Contender("hyperclip", "swapped"), Contender("twin", "neutral")),
    ]
    return compare("names", results, pairs=pairs, generated={"hyperclip": Generated(rms=0.1, variation=0.02)})


def test_an_accuracy_tells_what_each_seed_gave() -> None:
    (tasks,) = compared(gain=0.03).tasks
    for one in tasks.arms:
        assert len(one.accuracy.seeds) == len(set(one.accuracy.seeds)) > 1
        assert one.accuracy.mean == pytest.approx(np.mean(one.accuracy.seeds))


def test_a_difference_is_paired_task_by_task() -> None:
    (tasks,) = compared(gain=0.03).tasks
    gain, nothing = tasks.differences
    assert (gain.contender, gain.baseline) == ("hyperclip.specialized", "twin.neutral")
    assert gain.difference.mean == pytest.approx(0.03, abs=0.005)
    assert gain.verdict == "above"
    arms = {(one.arm, one.reading): one.accuracy for one in tasks.arms}
    # the tasks differ by far more than the arms do: intervals of the arms overlap, that of the difference is narrow
    assert arms["twin", "neutral"].high > arms["hyperclip", "specialized"].low
    width = gain.difference.high - gain.difference.low
    assert width < 0.2 * (arms["twin", "neutral"].high - arms["twin", "neutral"].low)
    assert (nothing.difference.low, nothing.difference.high) == (0, 0)
    assert nothing.verdict == "not told apart"


def test_a_loss_is_told_as_one() -> None:
    assert compared(gain=-0.03).tasks[0].differences[0].verdict == "below"


def test_other_tasks_are_never_paired() -> None:
    values = {"neutral": np.array([0.1, 0.2])}
    results = {
        "a": {0: {"held-out": accuracies(values)}},
        "b": {0: {"held-out": accuracies(values, identity="others")}},
    }
    with pytest.raises(BadInputError, match="not all evaluated on the same tasks of held-out"):
        compare("names", results, pairs=[], generated={})


def test_the_table_says_what_was_measured() -> None:
    comparison = compared(gain=0.03)
    (tasks,) = comparison.tasks
    gain = tasks.differences[0].difference
    text = markdown(comparison)
    assert "## held-out: 10 names (40 tasks, chance 10.0%)" in text
    assert f"| hyperclip.specialized | twin.neutral | {100 * gain.mean:+.1f} | {100 * gain.low:+.1f} to " in text
    assert "| hyperclip | 0.1 | 0.02 |" in text
    assert picture(comparison).startswith(b"\x89PNG")
    assert Comparison.model_validate_json(comparison.model_dump_json()) == comparison
    assert comparison.metrics["difference.held-out.10_way.hyperclip.specialized-twin.neutral.low"] == gain.low


def test_a_reading_that_some_tasks_do_not_have_is_left_out_there() -> None:
    results = {"a": {0: {"held-out": accuracies({"specialized": np.array([0.5, 0.7]), "neutral": np.array([0.5, 0.6])})}}}
    pairs = [(Contender("a", "specialized"), Contender("a", other)) for other in ("swapped", "neutral")]
    (tasks,) = compare("names", results, pairs=pairs, generated={}).tasks
    assert [one.baseline for one in tasks.differences] == ["a.neutral"]
