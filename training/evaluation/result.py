"""`evaluation.json`: what was measured, on what, with intervals."""

from typing import Literal

from pydantic import Field

from infra.config import StrictModel
from training.evaluation.arms import Arm
from training.evaluation.measures import Calibration, Estimate
from training.evaluation.tasks import TaskFamily


class Difference(StrictModel):
    """`arm` minus `baseline` on the same tasks: the resamples are paired, so the interval is narrower than the two alone."""

    arm: Arm
    baseline: Arm
    difference: Estimate


class TopicResult(StrictModel):
    """The tasks of one topic."""

    topic: str
    num_tasks: int
    accuracy: dict[Arm, Estimate]
    differences: tuple[Difference, ...]


class FamilyResult(StrictModel):
    """All that was measured on the tasks of one family."""

    family: TaskFamily
    chance: float
    num_tasks: int
    num_predictions: int
    num_pictures: int
    """Distinct pictures among the predictions."""
    resampled: Literal["tasks", "pictures"]
    """What the intervals come from: tasks; the pictures where there is one task only."""
    accuracy: dict[Arm, Estimate]
    unit_accuracies: dict[Arm, tuple[tuple[float, ...], ...]]
    """Of each model, what is resampled: share right in each task, or whether each picture of the only task is right."""
    macro_recall: dict[Arm, Estimate]
    """Mean over the names of the share of their pictures that was found."""
    differences: tuple[Difference, ...]
    calibration: dict[Arm, Calibration]
    none_of_these: dict[Arm, Estimate]
    """Area under the curve when the best `match` has to tell pictures of the names from pictures of other names; 0.5 is chance.
    Empty where every picture is of one of the names."""
    topics: tuple[TopicResult, ...]


class RetrievalResult(StrictModel):
    """Recall at k among all pictures and all distinct captions, by features without any names."""

    num_pictures: int
    num_captions: int
    image_to_text: dict[int, Estimate]
    text_to_image: dict[int, Estimate]


class SkippedFamily(StrictModel):
    """Tasks that the pictures do not allow."""

    family: TaskFamily
    reason: str


class ShownPrediction(StrictModel):
    """One picture of the first tasks, for people to look at."""

    sample: int
    """Number in the evaluation set."""
    truth: str
    predicted: str
    score: float = Field(ge=0, le=1)


class ZeroShotResult(StrictModel):
    schema_version: Literal[2] = 2
    bundle_digests: tuple[str, ...]
    """The models; several are seeds of one recipe."""
    twin_digests: tuple[str, ...] = ()
    dataset: str
    dataset_identity: str
    """SHA-256 of what the set holds."""
    headline_tasks: str
    """SHA-256 of the pictures and the draw of the first family: two models are compared where it is the same only."""
    templates: tuple[str, ...]
    num_pictures: int
    num_concepts: int
    families: tuple[FamilyResult, ...]
    """The first one decides promotion."""
    skipped: tuple[SkippedFamily, ...]
    retrieval: dict[Arm, RetrievalResult]
    shown: tuple[ShownPrediction, ...]

    @property
    def headline(self) -> FamilyResult:
        return self.families[0]

    @property
    def metrics(self) -> dict[str, float]:
        """Everything that has one value, by name, for MLflow."""
        found: dict[str, float] = {}
        for result in self.families:
            slug = result.family.slug
            found |= {f"accuracy_{slug}.{arm}": value.mean for arm, value in result.accuracy.items()}
            found |= {f"macro_recall_{slug}.{arm}": value.mean for arm, value in result.macro_recall.items()}
            found |= {f"gain_{slug}.{one.arm}_over_{one.baseline}": one.difference.mean for one in result.differences}
            found |= {f"match_ece_{slug}.{arm}": value.ece for arm, value in result.calibration.items()}
            found |= {f"none_of_these_{slug}.{arm}": value.mean for arm, value in result.none_of_these.items()}
        for arm, retrieval in self.retrieval.items():
            found |= {f"recall_at_{k}_image_to_text.{arm}": value.mean for k, value in retrieval.image_to_text.items()}
            found |= {f"recall_at_{k}_text_to_image.{arm}": value.mean for k, value in retrieval.text_to_image.items()}
        return found
