"""One contrastive batch through the whole model, on any number of ranks, to one loss.

Every unique text that the step needs is encoded once, on the rank it is dealt to, and so is every conditioning set.  From there
the features take two ways, chosen by who needs them:

- The *loss* needs each text once on every rank and can forget it: the features travel round a ring (training/ring_loss.py), so
  that no rank holds those of the whole batch.
- A *conditioning set* needs all its names at once, wherever they lie: the features of names, and of nothing else, are gathered
  with gradient.

Loss, gradients and statistics do not depend on the number of ranks.
Shapes: B local batch, N = B x ranks, T unique texts, M names in sets, S texts of a rank, L tokens, G groups, C names in a set,
D embedding, P generated values.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.conditioning import ConditioningPlan, plan_conditioning
from training.config import ConditioningConfig
from training.exchange import deal, gather_dealt, gather_values, rank
from training.loss import PairIds
from training.model.hyperclip import HyperClip
from training.model.parameter_delta import GroupDelta
from training.ring_loss import ring_siglip_loss
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
    replaced: Tensor
    """(B,) bool, True where the sample that stood there did not decode and another took its place."""

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
    logit_scale: Tensor
    """() under which the loss was taken; ZeRO-3 has the parameter at hand only within the forward pass."""
    logit_bias: Tensor
    """()."""


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
        samples = _gather_samples(batch)
        plan = plan_conditioning(
            self.conditioning,
            step=step,
            batch_number=batch_number,
            seed=self.seed,
            name_index=samples.name_index,
            topic_ids=samples.topic_ids,
        )
        texts = _needed_texts(samples, plan if self.model.hypernetwork else None)
        text_features = self.model.encode_text(cut_to_longest(deal(texts.tokens)))  # (S, D)
        delta = self._generate(plan, texts, text_features)
        mine = slice(rank() * len(batch.images), (rank() + 1) * len(batch.images))
        group_index = plan.group_index.to(batch.images.device)
        image_features = self.model.encode_image(batch.images, _group_delta(delta, group_index[mine]))
        pairs = PairIds(texts.caption_index, samples.concept_ids, group_index if plan.num_groups > 1 else None)
        loss = ring_siglip_loss(
            image_features,
            text_features,
            logit_scale=self.model.logit_scale,
            logit_bias=self.model.logit_bias,
            images=pairs[mine],
            texts=pairs,
        )
        return ObjectiveOutput(
            loss, *_delta_statistics(delta, plan.conditioned), self.model.logit_scale.detach(), self.model.logit_bias.detach()
        )

    def _generate(self, plan: ConditioningPlan, texts: "_Texts", text_features: Tensor) -> Tensor | None:
        """(G, P), zero rows where the condition is dropped; None for the twin."""
        if self.model.hypernetwork is None:
            return None
        names = gather_dealt(text_features, texts.num_names)  # (M, D)
        mask = None if bool(plan.mask.all()) else deal(plan.mask).to(names.device)
        delta = self.model.generate(names[deal(texts.sets)], mask)
        # multiplied, not skipped: every parameter takes part in every step, which data-parallel reduction relies on
        return gather_dealt(delta, plan.num_groups) * plan.conditioned.to(delta.device)[:, None]


@dataclass(frozen=True)
class _Samples:
    """What every rank knows of the samples of all; the images stay where they are."""

    tokens: Tensor
    """(T', L) unique captions and names."""
    caption_index: Tensor
    """(N,) rows of `tokens`."""
    name_index: Tensor
    """(N,) rows of `tokens`."""
    concept_ids: Tensor
    topic_ids: Tensor


def _gather_samples(batch: LocalBatch) -> _Samples:
    width = batch.caption_tokens.shape[1]
    packed = torch.cat(
        [batch.caption_tokens, batch.name_tokens, batch.concept_ids[:, None], batch.topic_ids[:, None]], dim=1
    )  # one exchange instead of four
    packed = gather_values(packed)
    both = torch.cat([packed[:, :width], packed[:, width : 2 * width]])
    tokens, places = torch.unique(cut_to_longest(both), dim=0, return_inverse=True)
    caption_index, name_index = places.chunk(2)
    return _Samples(tokens, caption_index, name_index, concept_ids=packed[:, -2], topic_ids=packed[:, -1])


@dataclass(frozen=True)
class _Texts:
    """The unique texts that a step encodes, names in sets first: see `deal`."""

    tokens: Tensor
    """(T, L)."""
    caption_index: Tensor
    """(N,) rows of `tokens`."""
    sets: Tensor
    """(G, C) rows of `tokens`, all below `num_names`."""
    num_names: int


def _needed_texts(samples: _Samples, plan: ConditioningPlan | None) -> _Texts:
    """Captions and the names in sets; a name in no set is nobody's text.  Without a plan (the twin) there are no sets."""
    device = samples.tokens.device
    sets = torch.empty(0, 0, dtype=torch.int64, device=device) if plan is None else plan.sets.to(device)
    in_set, is_caption = torch.zeros(2, len(samples.tokens), dtype=torch.bool, device=device)
    in_set[sets.flatten()] = True
    is_caption[samples.caption_index] = True
    names = in_set.nonzero()[:, 0]
    rows = torch.cat([names, (is_caption & ~in_set).nonzero()[:, 0]])  # (T,)
    place = torch.empty(len(samples.tokens), dtype=torch.int64, device=device)
    place[rows] = torch.arange(len(rows), device=device)
    return _Texts(samples.tokens[rows], place[samples.caption_index], place[sets], len(names))


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
