"""From a bundle to a registered model: logged as an MLflow model, registered as `candidate`, promoted when it is better."""

import io
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from PIL import Image

from infra.config import StrictModel
from infra.errors import BadInputError
from infra.model_registry import CANDIDATE, CHAMPION, ModelRegistry, ModelVersion
from infra.tracking import Tracker
from training.bundle import load_bundle
from training.evaluation.result import ZeroShotResult
from training.evaluation.tasks import TaskFamily

TASKS_TAG = "evaluation_tasks"
"""Which pictures and tasks the accuracy of a version was measured on."""


class PromotionDecision(StrictModel):
    """Why a candidate did or did not become the champion."""

    outcome: Literal["first", "better", "not_better", "other_tasks", "already"]
    reason: str
    promoted: bool
    """Whether it is the champion now."""


def publish(
    tracker: Tracker, *, run_id: str, bundle_folder: Path, name: str, result: ZeroShotResult
) -> tuple[ModelVersion, PromotionDecision]:
    """Log, register as `candidate`, and promote to `champion` when it beats the present one on the same tasks.

    May be killed anywhere and called again: a bundle is logged once per run and registered once, by its digest.

    Raises:
        BadInputError: the evaluation is not of this bundle.
    """
    bundle = load_bundle(bundle_folder)  # refuses a damaged one before it is published
    if result.bundle_digests != (bundle.digest,):
        digests = ", ".join(digest[:12] for digest in result.bundle_digests)
        raise BadInputError(
            f"{bundle_folder} holds model {bundle.digest[:12]}, and the evaluation is of {digests}; evaluate this one first"
        )
    identity = {"bundle_digest": bundle.digest}
    registry = ModelRegistry(tracker)
    version = registry.find_version(name, tags=identity)
    if version is None:
        model_uri = tracker.log_model(
            run_id,
            code=Path(__file__).with_name("mlflow_model.py"),
            artifacts={"bundle": bundle_folder},
            # a table, not a dictionary: MLflow decodes the bytes of its JSON form in tables only
            input_example=pd.DataFrame({"image": [_white_picture(bundle.preprocess.image_size)]}),
            identity=identity,
        )
        version = registry.register(name, model_uri=model_uri, run_id=run_id, tags=identity)
    headline = result.headline
    registry.tag_version(
        version,
        {
            TASKS_TAG: result.headline_tasks,
            **{accuracy_tag(headline.family, arm): f"{found.mean:.4f}" for arm, found in headline.accuracy.items()},
        },
    )
    registry.make_candidate(version)
    decision = decide(version, result, champion=registry.version_of(name, CHAMPION))
    if decision.promoted:  # also when it is the champion already: a killed call may have left the rest of it undone
        registry.promote(name, version.version)
    return version, decision


def decide(candidate: ModelVersion, result: ZeroShotResult, *, champion: ModelVersion | None) -> PromotionDecision:
    """Compare a candidate with the champion by the specialized accuracy of the headline tasks."""
    if champion is None:
        return PromotionDecision(outcome="first", reason="there was no champion", promoted=True)
    if champion.version == candidate.version:
        return PromotionDecision(outcome="already", reason="it was the champion already", promoted=True)
    theirs = champion.tags.get(accuracy_tag(result.headline.family, "specialized"))
    if theirs is None or champion.tags.get(TASKS_TAG) != result.headline_tasks:
        reason = (
            f"version {champion.version}, the champion, was evaluated on other pictures or tasks; "
            f"compare them yourself, then: hyperclip promote {candidate.name} {candidate.version}"
        )
        return PromotionDecision(outcome="other_tasks", reason=reason, promoted=False)
    ours = result.headline.accuracy["specialized"].mean
    comparison = f"{ours:.1%} against {float(theirs):.1%} of the champion, version {champion.version}"
    if float(f"{ours:.4f}") > float(theirs):  # as precise as the tag: the same model is no better than itself
        return PromotionDecision(outcome="better", reason=comparison, promoted=True)
    return PromotionDecision(outcome="not_better", reason=f"{comparison}; it stays {CANDIDATE}", promoted=False)


def accuracy_tag(family: TaskFamily, arm: str) -> str:
    return f"accuracy_{family.slug}.{arm}"


def _white_picture(side: int) -> bytes:
    """A PNG, the input example of the logged model."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), 255, dtype=np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()
