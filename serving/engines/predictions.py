"""The best labels of one picture."""

from collections.abc import Sequence

from serving.schemas import Prediction
from training.score import Scores


def best_labels(labels: Sequence[str], scores: Scores, top_k: int) -> tuple[Prediction, ...]:
    """The `top_k` labels with the highest softmax, best first; all of them when there are fewer.

    Args:
        scores: (C,) each, of one picture.
    """
    best = scores.softmax.topk(min(top_k, len(labels)))
    match = scores.match[best.indices].tolist()
    return tuple(
        Prediction(label=labels[place], score=score, match=matched)
        for place, score, matched in zip(best.indices.tolist(), best.values.tolist(), match, strict=True)
    )
