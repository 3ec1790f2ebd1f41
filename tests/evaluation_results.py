"""Evaluation results made up from means, for tests of what is done with them."""

from collections.abc import Mapping

from training.evaluation.arms import COMPARED, Arm
from training.evaluation.measures import Estimate
from training.evaluation.result import Difference, FamilyResult, ShownPrediction, ZeroShotResult
from training.evaluation.tasks import TaskFamily


def around(mean: float, half: float) -> Estimate:
    return Estimate(mean=mean, low=mean - half, high=mean + half)


def family_result(means: Mapping[Arm, float], *, num_names: int = 10, half: float = 0.02) -> FamilyResult:
    """Accuracies and differences with intervals of `half` to each side."""
    return FamilyResult(
        family=TaskFamily(num_names=num_names),
        chance=1 / num_names,
        num_tasks=7,
        num_predictions=1234,
        num_pictures=1201,
        resampled="tasks",
        accuracy={arm: around(mean, half) for arm, mean in means.items()},
        unit_accuracies={arm: ((mean,) * 7,) for arm, mean in means.items()},
        macro_recall={},
        differences=tuple(
            Difference(arm=arm, baseline=baseline, difference=around(means[arm] - means[baseline], half))
            for arm, baseline in COMPARED
            if arm in means and baseline in means
        ),
        calibration={},
        none_of_these={},
        topics=(),
    )


def zero_shot_result(
    families: tuple[FamilyResult, ...],
    *,
    digest: str = "d",
    tasks: str = "t",
    num_pictures: int = 1201,
    shown: tuple[ShownPrediction, ...] = (),
) -> ZeroShotResult:
    return ZeroShotResult(
        bundle_digests=(digest,),
        dataset="pictures",
        dataset_identity="p",
        headline_tasks=tasks,
        templates=("{}",),
        num_pictures=num_pictures,
        num_concepts=374,
        families=families,
        skipped=(),
        retrieval={},
        shown=shown,
    )
