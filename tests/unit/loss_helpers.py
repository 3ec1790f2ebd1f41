"""A contrastive batch of features with several positives and groups, and what the readable reference makes of it."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from training.loss import PairIds, counted_pairs, positive_pairs, siglip_loss

EMBED_DIM = 16


@dataclass(frozen=True)
class FeatureBatch:
    image_features: Tensor
    """(N, D)."""
    text_features: Tensor
    """(T, D), one a unique text."""
    pairs: PairIds
    """Of the N samples."""
    logit_scale: Tensor
    logit_bias: Tensor


def feature_batch(num_samples: int, num_texts: int, *, groups: int = 1, seed: int = 0) -> FeatureBatch:
    """Captions repeat and concepts join some of them, so that most rows have several positives."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.cat([torch.arange(num_texts), torch.randint(num_texts, (num_samples - num_texts,), generator=generator)])
    text = text[torch.randperm(num_samples, generator=generator)]
    group = torch.randint(groups, (num_samples,), generator=generator) if groups > 1 else None
    return FeatureBatch(
        image_features=F.normalize(torch.randn(num_samples, EMBED_DIM, generator=generator), dim=-1),
        text_features=F.normalize(torch.randn(num_texts, EMBED_DIM, generator=generator), dim=-1),
        pairs=PairIds(text, text // 3, group),
        logit_scale=torch.tensor(12.0),
        logit_bias=torch.tensor(-3.0),  # where slopes are large on both sides, so that a wrong sign shows
    )


def reference(batch: FeatureBatch) -> dict[str, Tensor]:
    """Loss and gradients of `siglip_loss` in double precision: what any correct computation approaches."""
    inputs = [
        value.double().clone().requires_grad_()
        for value in (batch.image_features, batch.text_features, batch.logit_scale, batch.logit_bias)
    ]
    images, texts, logit_scale, logit_bias = inputs
    loss = siglip_loss(
        images,
        texts[batch.pairs.text],
        logit_scale=logit_scale,
        logit_bias=logit_bias,
        positive=positive_pairs(batch.pairs, batch.pairs),
        counted=counted_pairs(batch.pairs, batch.pairs),
    )
    loss.backward()
    gradients = {name: value.grad for name, value in zip(("image", "text", "scale", "bias"), inputs, strict=True)}
    return {"loss": loss.detach()} | {name: value for name, value in gradients.items() if value is not None}


def assert_agrees(found: dict[str, Tensor], expected: dict[str, Tensor], *, relative: float = 1e-6) -> None:
    """Equal to `relative` of the largest value of each tensor: fp32 sums of hundreds of terms round to a few 1e-7."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        difference = (found[name].double() - value).abs().max() / value.abs().max()
        assert difference <= relative, f"{name} is off by {difference:.2e} of its largest value"
