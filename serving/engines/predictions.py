"""The best labels of one picture."""

from collections.abc import Sequence

import numpy as np

from serving.schemas import Prediction


def best_labels(labels: Sequence[str], logits: np.ndarray, *, logit_bias: float, top_k: int) -> tuple[Prediction, ...]:
    """The `top_k` labels with the highest score, best first; all of them when there are fewer.

    What `training.score.class_scores` computes, for one picture and for the labels that are wanted: batches hold pictures of
    many tasks, and for a few labels each of its tensor operations costs more than all of this.

    Args:
        logits: (C,) float32, without the bias.
    """
    best = np.arange(len(logits))
    if top_k < len(logits):
        best = np.argpartition(logits, -top_k)[-top_k:]
    best = best[np.argsort(-logits[best], kind="stable")]
    top = logits[best].astype(np.float64)
    scores = np.exp(top - top[0]) / np.exp(logits - logits[best[0]]).sum(dtype=np.float64)
    match = 0.5 + 0.5 * np.tanh(0.5 * (top + logit_bias))  # the sigmoid, in a form that never overflows
    return tuple(
        Prediction(label=labels[place], score=score, match=matched)
        for place, score, matched in zip(best.tolist(), scores.tolist(), match.tolist(), strict=True)
    )
