"""From a bundle to a registered model: logged as an MLflow model, registered as `candidate`, promoted when it is better."""

import io
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from infra.config import StrictModel
from infra.tracking import CANDIDATE, CHAMPION, ModelVersion, Tracker
from training.bundle import load_bundle
from training.evaluation.zero_shot import ZeroShotResult


class PromotionDecision(StrictModel):
    """Why a candidate did or did not become the champion."""

    outcome: Literal["first", "better", "not_better", "other_pictures"]
    reason: str
    promoted: bool


def publish(
    tracker: Tracker, *, run_id: str, bundle_folder: Path, name: str, result: ZeroShotResult, pictures_digest: str
) -> tuple[ModelVersion, PromotionDecision]:
    """Log, register as `candidate`, and promote to `champion` when it beats the present one on the same pictures."""
    bundle = load_bundle(bundle_folder)  # refuses a damaged one before it is published
    version = tracker.version_of(name, CANDIDATE)
    if version is None or version.tags.get("bundle_digest") != bundle.digest:  # else a killed run has done it already
        white = np.full((bundle.preprocess.image_size,) * 2 + (3,), 255, dtype=np.uint8)
        picture = io.BytesIO()
        Image.fromarray(white).save(picture, format="PNG")
        model_uri = tracker.log_model(
            run_id,
            code=Path(__file__).with_name("mlflow_model.py"),
            artifacts={"bundle": bundle_folder},
            input_example={"image": [picture.getvalue()]},
        )
        version = tracker.register(name, model_uri=model_uri, run_id=run_id)
    headline = result.headline
    tracker.tag_version(
        version,
        {
            "bundle_digest": bundle.digest,
            "evaluation_pictures": pictures_digest,
            **{f"accuracy_{headline.num_ways}_way.{reading}": f"{acc.mean:.4f}" for reading, acc in headline.accuracy.items()},
        },
    )
    decision = decide(tracker, version, result, pictures_digest)
    if decision.promoted:
        tracker.promote(name, version.version)
    return version, decision


def decide(tracker: Tracker, candidate: ModelVersion, result: ZeroShotResult, pictures_digest: str) -> PromotionDecision:
    """Compare a candidate with the champion by the specialized accuracy of the first task size."""
    champion = tracker.version_of(candidate.name, CHAMPION)
    if champion is None or champion.version == candidate.version:
        return PromotionDecision(outcome="first", reason="there was no champion", promoted=True)
    key = f"accuracy_{result.headline.num_ways}_way.specialized"
    tags = champion.tags
    if tags.get("evaluation_pictures") != pictures_digest or key not in tags:
        reason = (
            f"version {champion.version}, the champion, was evaluated on other pictures or tasks; "
            f"compare them yourself, then: hyperclip promote {candidate.name} {candidate.version}"
        )
        return PromotionDecision(outcome="other_pictures", reason=reason, promoted=False)
    ours, theirs = result.headline.accuracy["specialized"].mean, float(tags[key])
    comparison = f"{ours:.1%} against {theirs:.1%} of the champion, version {champion.version}"
    if ours > theirs:
        return PromotionDecision(outcome="better", reason=comparison, promoted=True)
    return PromotionDecision(outcome="not_better", reason=f"{comparison}; it stays {CANDIDATE}", promoted=False)
