"""What the service should answer, worked out without it."""

import pytest
import torch

from serving.schemas import Prediction
from training.bundle import Bundle
from training.preprocess import preprocess
from training.specialize import specialize


def expected_scores(bundle: Bundle, labels: list[str], image: bytes) -> dict[str, tuple[float, float]]:
    """What the functional path gives, without the service."""
    tensor = torch.from_numpy(preprocess(image, bundle.preprocess))[None]
    scores = specialize(bundle, labels).scores(bundle, tensor)
    return {
        label: (score, match)
        for label, score, match in zip(labels, scores.softmax[0].tolist(), scores.match[0].tolist(), strict=True)
    }


def check_predictions(found: tuple[Prediction, ...] | None, expected: dict[str, tuple[float, float]]) -> None:
    assert found is not None
    assert {p.label for p in found} == set(expected)
    for prediction in found:
        score, match = expected[prediction.label]
        assert prediction.score == pytest.approx(score, abs=1e-5)  # fused and per-image norms round differently
        assert prediction.match == pytest.approx(match, abs=1e-5)
    assert [p.score for p in found] == sorted((p.score for p in found), reverse=True)
