"""Scores against the formula, written out."""

import math

import torch
from torch.testing import assert_close

from training.score import class_scores

SCALE, BIAS = torch.tensor(12.0), torch.tensor(-4.0)


def unit(*shape: int, seed: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_scores_follow_the_formula() -> None:
    images, texts = unit(3, 8, seed=0), unit(5, 8, seed=1)
    scores = class_scores(images, texts, logit_scale=SCALE, logit_bias=BIAS)
    for b in range(3):
        logits = [12.0 * sum(float(x) * float(y) for x, y in zip(images[b], texts[c], strict=True)) for c in range(5)]
        total = sum(math.exp(logit) for logit in logits)
        for c, logit in enumerate(logits):
            assert math.isclose(scores.softmax[b, c], math.exp(logit) / total, abs_tol=1e-5)
            assert math.isclose(scores.match[b, c], 1 / (1 + math.exp(-(logit - 4.0))), abs_tol=1e-5)


def test_labels_of_each_picture_equal_shared_labels() -> None:
    images, texts = unit(3, 8, seed=0), unit(5, 8, seed=1)
    shared = class_scores(images, texts, logit_scale=SCALE, logit_bias=BIAS)
    own = class_scores(images, texts.expand(3, 5, 8), logit_scale=SCALE, logit_bias=BIAS)
    assert_close(own.softmax, shared.softmax, atol=1e-6, rtol=0)
    assert_close(own.match, shared.match, atol=1e-6, rtol=0)


def test_a_row_sums_to_one_and_one_label_takes_all() -> None:
    scores = class_scores(unit(4, 8, seed=0), unit(6, 8, seed=1), logit_scale=SCALE, logit_bias=BIAS)
    assert_close(scores.softmax.sum(dim=1), torch.ones(4))
    alone = class_scores(unit(4, 8, seed=0), unit(1, 8, seed=1), logit_scale=SCALE, logit_bias=BIAS)
    assert torch.equal(alone.softmax, torch.ones(4, 1))
    assert alone.match.max() < 1  # which says nothing about a match
