"""Whether a picture shows none of the labels, as a probability: a calibration of one model, kept beside its bundle.

It reads what every answer has: the best `match`, and how many labels there are, as the best of many foreign labels matches
better than the best of few.  `training.evaluation.none_of_these` fits it on pictures that the model was not trained on.
The file names its bundle by the digest; it is no part of the model, whose digest stays.
"""

import math
from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveInt

from infra import artefacts, storage
from infra.config import StrictModel
from infra.errors import CorruptArtefactError

NONE_OF_THESE_NAME = "none_of_these.json"
SCHEMA_VERSION = 1
Parameters = Literal["specialized", "neutral"]
_SMALLEST, _LARGEST = 1e-12, 1 - 1e-6
"""Of a `match`: what is nearer to 0 or 1 is not told apart in 32 bits."""


class Coefficients(StrictModel):
    """Logistic regression: the logit of "none of these" is linear in `statistics`."""

    intercept: float
    best_match: float
    num_labels: float


class NoneOfTheseOfMatch(StrictModel):
    """The calibration for one number of labels: logit("none of these") = intercept + slope * logit(best `match`)."""

    intercept: float
    slope: float
    prior: float
    """Share of pictures of none of the labels that the probability is meant for."""

    def probability(self, best_match: float) -> float:
        logit = self.intercept + self.slope * _logit(best_match)
        return 1 / (1 + math.exp(-min(max(logit, -50.0), 50.0)))


class NoneOfTheseFigures(StrictModel):
    """How well it holds on tasks whose names and pictures it was not fitted on."""

    pictures: str
    """Name of the pictures."""
    identity: str
    """SHA-256 of what they are."""
    num_tasks: PositiveInt
    num_predictions: PositiveInt
    """Half of them of pictures that show none of the labels."""
    auroc: float
    """Area under the curve over all tasks together; 0.5 is chance."""
    auroc_of_match: float
    """The same of the best `match` alone, with one threshold for all tasks."""
    ece: float
    """Expected calibration error."""


class NoneOfThese(StrictModel):
    """`none_of_these.json`."""

    schema_version: Literal[1] = 1
    bundle_digest: str
    """The model it belongs to."""
    coefficients: dict[Parameters, Coefficients]
    prior: float = Field(default=0.5, gt=0, lt=1)
    """Share of pictures of none of the labels that the probability is meant for."""
    num_labels: tuple[PositiveInt, PositiveInt]
    """Smallest and largest number of labels it was fitted on; a larger number counts as the largest."""
    fitted_on: str
    """Name of the pictures, for people."""
    fitted_on_identity: str
    """SHA-256 of what they are."""
    num_predictions: PositiveInt
    """That it was fitted on."""
    figures: tuple[NoneOfTheseFigures, ...] = ()

    def probability(self, best_match: float, *, num_labels: int, parameters: Parameters) -> float | None:
        """That a picture shows none of the labels; None where these parameters have no calibration."""
        found = self.of_match(num_labels=num_labels, parameters=parameters)
        return None if found is None else found.probability(best_match)

    def of_match(self, *, num_labels: int, parameters: Parameters) -> NoneOfTheseOfMatch | None:
        """What is left of it once the labels are known; None where these parameters have no calibration."""
        found = self.coefficients.get(parameters)
        if found is None:
            return None
        smallest, largest = self.num_labels
        intercept = found.intercept + found.num_labels * math.log(min(max(num_labels, smallest), largest))
        return NoneOfTheseOfMatch(intercept=intercept, slope=found.best_match, prior=self.prior)


def statistics(best_match: float, num_labels: int) -> tuple[float, float]:
    """Logit of the best `match`, and logarithm of the number of labels."""
    return _logit(best_match), math.log(num_labels)


def _logit(match: float) -> float:
    match = min(max(match, _SMALLEST), _LARGEST)
    return math.log(match / (1 - match))


def read_none_of_these(folder: Path, *, bundle_digest: str) -> NoneOfThese | None:
    """The calibration beside a bundle; None where there is none, as with bundles of before.

    Raises:
        BadInputError: a newer version of this project wrote it.
        CorruptArtefactError: it is damaged, or of another model.
    """
    uri = str(folder / NONE_OF_THESE_NAME)
    if not storage.exists(uri):
        return None
    artefacts.check_schema_version(uri, newest=SCHEMA_VERSION)
    found = artefacts.read_model(uri, NoneOfThese)
    if found.bundle_digest != bundle_digest:
        raise CorruptArtefactError(
            f"{uri} belongs to model {found.bundle_digest[:12]}, and the bundle is {bundle_digest[:12]}; remove it, or make "
            "another with hyperclip calibrate"
        )
    return found
