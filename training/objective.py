"""One contrastive batch through the whole model, on any number of ranks, to one loss.

Texts are encoded once each, wherever in the batch they occur and on whichever rank; their features are gathered with gradient,
so that loss, gradients and statistics do not depend on the number of ranks.
Shapes: B local batch, N = B x ranks, T unique texts, L tokens, G groups, C names in a set, D embedding, P generated values.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from training.conditioning import ConditioningPlan, plan_conditioning
from training.config import ConditioningConfig
from training.loss import gather_values, gather_with_gradient, siglip_loss
from training.model.hyperclip import HyperClip
from training.model.parameter_delta import GroupDelta
from training.tokenizer import cut_to_longest


@dataclass(frozen=True)
class LocalBatch:
    """The samples of one rank."""

    images: Tensor
    """(B, 3, S, S) float32."""
    caption_tokens: Tensor
    """(B, 77) int64, what the loss pairs with the image."""
    name_tokens: Tensor
    """(B, 77) int64, what a conditioning set says about the sample."""
    concept_ids: Tensor
    """(B,) int64; samples of the same concept are positives of each other."""
    topic_ids: Tensor
    """(B,) int64."""
    sample_index: Tensor
    """(B,) int64, number of each sample in the shards, so that a bad step can name its samples."""

    def to(self, device: torch.device) -> "LocalBatch":
        return LocalBatch(**{name: value.to(device, non_blocking=True) for name, value in vars(self).items()})


@dataclass(frozen=True)
class ObjectiveOutput:
    loss: Tensor
    """() this rank's share; the mean over ranks is the loss of the contrastive batch."""
    delta_rms: Tensor
    """() root mean square of the generated deltas."""
    delta_variation: Tensor
    """() how much of that rms differs between the groups of the batch; 0 where there is one group."""


class ContrastiveObjective(nn.Module):
    """The model with its loss: what DeepSpeed wraps."""

    def __init__(self, model: HyperClip, conditioning: ConditioningConfig, *, seed: int, autocast: bool = False) -> None:
        super().__init__()
        self.model = model
        self.conditioning = conditioning
        self.seed = seed
        self.autocast = autocast

    def forward(self, batch: LocalBatch, *, step: int, batch_number: int) -> ObjectiveOutput:
        with torch.autocast(batch.images.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            return self._forward(batch, step=step, batch_number=batch_number)

    def _forward(self, batch: LocalBatch, *, step: int, batch_number: int) -> ObjectiveOutput:
        everyone = _gather_ids(batch)
        num_samples, local = len(everyone.concept_ids), len(batch.images)
        both = torch.cat([everyone.caption_tokens, everyone.name_tokens])
        texts, places = torch.unique(both, dim=0, return_inverse=True)  # (T, 77), (2N,)
        caption_index, name_index = places[:num_samples], places[num_samples:]
        plan = plan_conditioning(
            self.conditioning,
            step=step,
            batch_number=batch_number,
            seed=self.seed,
            name_index=name_index,
            topic_ids=everyone.topic_ids,
        )
        text_features = self._encode_texts(texts)  # (T, D)
        mine = slice(_rank() * local, (_rank() + 1) * local)
        group_index = plan.group_index.to(batch.images.device)
        delta = self._generate(plan, text_features)
        image_features = self.model.encode_image(batch.images, _group_delta(delta, group_index[mine]))
        loss = siglip_loss(
            image_features,
            text_features[caption_index],
            logit_scale=self.model.logit_scale,
            logit_bias=self.model.logit_bias,
            positive=(caption_index[mine, None] == caption_index) | (everyone.concept_ids[mine, None] == everyone.concept_ids),
            counted=group_index[mine, None] == group_index if plan.num_groups > 1 else None,
        )
        return ObjectiveOutput(loss, *_delta_statistics(delta, plan.conditioned))

    def _encode_texts(self, texts: Tensor) -> Tensor:
        """(T, 77) on every rank -> (T, D): each rank encodes its share, cut to the longest text of all."""
        texts = cut_to_longest(texts)
        share = -(-len(texts) // _world_size())
        padding = texts[:1].expand(share * _world_size() - len(texts), -1)
        own = torch.cat([texts, padding])[_rank() * share :][:share]
        return gather_with_gradient(self.model.encode_text(own))[: len(texts)]

    def _generate(self, plan: ConditioningPlan, text_features: Tensor) -> Tensor | None:
        """(G, P), zero rows where the condition is dropped; None when nothing is conditioned."""
        if self.model.hypernetwork is None:
            return None
        device = text_features.device
        padded = not bool(plan.mask.all())
        mask = plan.mask.to(device) if padded else None
        delta = self.model.generate(text_features[plan.sets.to(device)], mask)
        # multiplied, not skipped: every parameter takes part in every step, which data-parallel reduction relies on
        return delta * plan.conditioned.to(device)[:, None]


def _group_delta(delta: Tensor | None, group_index: Tensor) -> GroupDelta | None:
    if delta is None:
        return None
    return GroupDelta(delta, group_index if len(delta) > 1 else None)


def _delta_statistics(delta: Tensor | None, conditioned: Tensor) -> tuple[Tensor, Tensor]:
    zero = torch.zeros(())
    if delta is None or not bool(conditioned.any()):
        return zero, zero
    used = delta.detach().float()[conditioned.to(delta.device)]
    rms = used.square().mean().sqrt()
    variation = (used - used.mean(dim=0)).square().mean().sqrt() / rms.clamp_min(1e-12) if len(used) > 1 else zero
    return rms, variation


def _gather_ids(batch: LocalBatch) -> LocalBatch:
    """The tokens and ids of all ranks; the images stay where they are."""
    width = batch.caption_tokens.shape[1]
    packed = torch.cat(
        [batch.caption_tokens, batch.name_tokens, batch.concept_ids[:, None], batch.topic_ids[:, None]], dim=1
    )  # one exchange instead of four
    packed = gather_values(packed)
    return LocalBatch(
        images=batch.images,
        caption_tokens=packed[:, :width],
        name_tokens=packed[:, width : 2 * width],
        concept_ids=packed[:, -2],
        topic_ids=packed[:, -1],
        sample_index=batch.sample_index,
    )


def _rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
