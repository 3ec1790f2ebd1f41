"""One contrastive batch through the whole model, on any number of ranks, to one loss.

Every unique caption is encoded once, on the rank it is dealt to, and every conditioning set goes through the hypernetwork once.
From there the text features take two ways, chosen by who needs them:

- The *loss* needs each text once on every rank and can forget it: the features travel round a ring (training/ring_loss.py).
- A *conditioning set* needs all its names at once, wherever they lie: the captions that say them, and no others, are gathered
  with gradient.  Before `start_step`, and for the SigLIP twin, that is next to nothing.  With `loss: softmax` images are
  compared with these same names (training/name_loss.py).

Loss, gradients and statistics do not depend on the number of ranks.
Shapes: B local batch, N = B x ranks, T unique captions, S of them on a rank, M names in sets, L tokens, G groups, C names in a
set, D embedding, P generated values.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from training.batch_texts import BatchTexts, arrange_texts
from training.conditioning import ConditioningPlan, plan_conditioning
from training.conditioning_config import ConditioningConfig
from training.distillation import Features, Teacher, distillation_loss
from training.exchange import deal, from_first_rank, gather_dealt, gather_values, rank
from training.freezing import is_of_deltas
from training.loss import PairIds
from training.model.hyperclip import HyperClip
from training.model.parameter_delta import GroupDelta
from training.name_loss import name_loss
from training.ring_loss import ring_siglip_loss
from training.tokenizer import cut_to_longest, length_buckets


@dataclass(frozen=True)
class LocalBatch:
    """The samples of one rank."""

    images: Tensor
    """(B, 3, S, S) float32."""
    caption_tokens: Tensor
    """(B, 77) int64, what the loss pairs with the image."""
    name_tokens: Tensor
    """(B, 77) int64, what the sample is called: samples of the same name are one element of a conditioning set."""
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
    delta_penalty: Tensor
    """() what the size of the deltas added to the loss."""
    neutral_loss: Tensor
    """() of this rank's images under the neutral parameters, not yet weighted; 0 where it takes no part."""
    routing_loss: Tensor
    """() cross-entropy of the mixtures against the learned deltas that the sets should be made of, not yet weighted; 0 where it
    takes no part."""
    distillation_loss: Tensor
    """() divergence of this rank's samples from the teacher, not yet weighted; 0 without one."""
    logit_scale: Tensor
    """() under which the loss was taken; ZeRO-3 has the parameter at hand only within the forward pass."""
    logit_bias: Tensor
    """()."""


class ContrastiveObjective(nn.Module):
    """The model with its loss: what DeepSpeed wraps."""

    def __init__(
        self,
        model: HyperClip,
        conditioning: ConditioningConfig,
        *,
        seed: int,
        autocast: bool = False,
        teacher: Teacher | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.conditioning = conditioning
        self.seed = seed
        self.autocast = autocast
        self.teacher = teacher
        self._shared = [parameter for name, parameter in model.named_parameters() if not is_of_deltas(name)]

    def forward(self, batch: LocalBatch, *, step: int, batch_number: int) -> ObjectiveOutput:
        with torch.autocast(batch.images.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            return self._forward(batch, step=step, batch_number=batch_number)

    def _forward(self, batch: LocalBatch, *, step: int, batch_number: int) -> ObjectiveOutput:
        samples = _gather_samples(batch)
        # groups by features are known after the texts are encoded, so any name may turn out to be in a set
        plan = None if self.conditioning.plans_by_features(step) else self._plan(samples, step, batch_number)
        texts = arrange_texts(
            samples.captions,
            caption_index=samples.caption_index,
            name_index=samples.name_index,
            used=samples.name_index if plan is None else plan.sets,
        )
        tokens = deal(texts.tokens)
        text_features = _encode_texts(self.model, tokens)  # (S, D)
        names = None
        if plan is None or self.model.hypernetwork is not None or self.conditioning.loss == "softmax":
            names = texts.mean_by_name(gather_dealt(text_features, texts.num_conditioning))  # (M, D)
        if plan is None:
            plan = self._plan(samples, step, batch_number, names)
        delta, routing = self._generate(plan, texts, names)
        mine = slice(rank() * len(batch.images), (rank() + 1) * len(batch.images))
        group_index = plan.group_index.to(batch.images.device)
        pairs = PairIds(texts.caption_index, samples.concept_ids, group_index if plan.num_groups > 1 else None)
        weight = self.conditioning.neutral_weight if bool(plan.conditioned.any()) and self._trains_neutral() else 0.0
        if weight and delta is not None:
            image_features, neutral_features = self._encode_twice(batch.images, delta, group_index[mine])
        else:
            image_features = self.model.encode_image(batch.images, _group_delta(delta, group_index[mine]))
            neutral_features = image_features  # of the twin they are
        if names is not None and self.conditioning.loss == "softmax" and bool(plan.conditioned.any()):
            scale, concept_ids = self.model.logit_scale, samples.concept_ids
            loss = name_loss(image_features, names, logit_scale=scale, plan=plan, texts=texts, concept_ids=concept_ids)
            if bool(plan.conditioned.all()):
                loss = loss + 0 * self.model.logit_bias  # every parameter takes part in every step
            else:
                images, others = _without(plan.conditioned, pairs)
                loss = loss + self._sigmoid_loss(image_features, text_features, images[mine], others)
        else:
            loss = self._sigmoid_loss(image_features, text_features, pairs[mine], pairs)
        neutral_loss = torch.zeros_like(loss)
        if weight:
            everything = replace(pairs, group=None)
            neutral_loss = self._sigmoid_loss(neutral_features, text_features, everything[mine], everything)
            loss = loss + weight * neutral_loss
        distillation = torch.zeros_like(loss)
        if self.teacher is not None:
            found = Features(image_features, text_features, self.model.logit_scale)
            wanted = _features_of(self.teacher, batch.images, tokens)
            distillation = distillation_loss(found, wanted, pairs=pairs, num_texts=len(texts.tokens))
            loss = loss + self.teacher.weight * distillation
        penalty = self.conditioning.delta_penalty * _squared_norm(delta, plan.conditioned)
        return ObjectiveOutput(
            loss + penalty + self.conditioning.routing_weight * routing,
            *_delta_statistics(delta, plan.conditioned),
            penalty.detach(),
            neutral_loss.detach(),
            routing.detach(),
            distillation.detach(),
            self.model.logit_scale.detach(),
            self.model.logit_bias.detach(),
        )

    def _plan(self, samples: "_Samples", step: int, batch_number: int, names: Tensor | None = None) -> ConditioningPlan:
        return plan_conditioning(
            self.conditioning,
            step=step,
            batch_number=batch_number,
            seed=self.seed,
            name_index=samples.name_index,
            topic_ids=samples.topic_ids,
            name_features=None if names is None else from_first_rank(names),
        )

    def _trains_neutral(self) -> bool:
        """Whether features under the neutral parameters have a gradient: not while all that the twin has is frozen."""
        return any(parameter.requires_grad for parameter in self._shared)

    def _encode_twice(self, images: Tensor, delta: Tensor, group_index: Tensor) -> tuple[Tensor, Tensor]:
        """(B, D) features of the images under the deltas of their groups, and (B, D) under the neutral parameters.

        One pass, the neutral images being one more group: the statistics of the batch are those of both halves, in the pass and
        in what runs on of them, which then fit both ways of using the model.  Each batch moves them once.
        """
        deltas = torch.cat([delta, torch.zeros_like(delta[:1])])
        groups = torch.cat([group_index, torch.full_like(group_index, len(delta))])
        both = self.model.encode_image(torch.cat([images, images]), GroupDelta(deltas, groups))
        return both[: len(images)], both[len(images) :]

    def _sigmoid_loss(self, image_features: Tensor, text_features: Tensor, images: PairIds, texts: PairIds) -> Tensor:
        return ring_siglip_loss(
            image_features,
            text_features,
            logit_scale=self.model.logit_scale,
            logit_bias=self.model.logit_bias,
            images=images,
            texts=texts,
        )

    def _generate(self, plan: ConditioningPlan, texts: BatchTexts, names: Tensor | None) -> tuple[Tensor | None, Tensor]:
        """(M, D) -> (G, P), zero rows where the condition is dropped; None for the twin.  And () the routing loss."""
        if self.model.hypernetwork is None or names is None:
            return None, torch.zeros(())
        mask = None if bool(plan.mask.all()) else deal(plan.mask).to(names.device)
        sets = texts.number[plan.sets.to(names.device)]
        hypernetwork, conditioned = self.model.hypernetwork, plan.conditioned.to(names.device)
        # codes are gathered, which are far smaller than the deltas that every rank makes of them
        code = gather_dealt(hypernetwork.code(names[deal(sets)], mask), plan.num_groups)
        delta = hypernetwork.decode(code)
        if self.training:
            hypernetwork.follow(code[conditioned])
        # multiplied, not skipped: every parameter takes part in every step, which data-parallel reduction relies on
        routing = _routing_loss(code, plan) if self.conditioning.routing_weight else torch.zeros((), device=code.device)
        return delta * conditioned[:, None], routing


@dataclass(frozen=True)
class _Samples:
    """What every rank knows of the samples of all; the images stay where they are."""

    captions: Tensor
    """(T, L) unique captions."""
    caption_index: Tensor
    """(N,) rows of `captions`."""
    name_index: Tensor
    """(N,) equal for samples of the same name."""
    concept_ids: Tensor
    topic_ids: Tensor


def _gather_samples(batch: LocalBatch) -> _Samples:
    width = batch.caption_tokens.shape[1]
    packed = torch.cat(
        [batch.caption_tokens, batch.name_tokens, batch.concept_ids[:, None], batch.topic_ids[:, None]], dim=1
    )  # one exchange instead of four
    packed = gather_values(packed)
    captions, caption_index = torch.unique(cut_to_longest(packed[:, :width]), dim=0, return_inverse=True)
    _, name_index = torch.unique(cut_to_longest(packed[:, width : 2 * width]), dim=0, return_inverse=True)
    return _Samples(captions, caption_index, name_index, concept_ids=packed[:, -2], topic_ids=packed[:, -1])


def _encode_texts(model: HyperClip, tokens: Tensor) -> Tensor:
    """(S, L) -> (S, D), texts of similar length at a time."""
    buckets = length_buckets(tokens)
    features = torch.cat([model.encode_text(cut_to_longest(tokens[rows])) for rows in buckets])
    return features[torch.argsort(torch.cat(buckets))]


@torch.no_grad()
def _features_of(teacher: Teacher, images: Tensor, tokens: Tensor) -> Features:
    """What the teacher makes of the same pictures, varied as they are, and of the texts dealt to this rank."""
    return Features(teacher.model.encode_image(images), _encode_texts(teacher.model, tokens), teacher.model.logit_scale)


def _without(conditioned: Tensor, pairs: PairIds) -> tuple[PairIds, PairIds]:
    """Images and texts whose pairs count only in groups that are not conditioned: (G,) bool says which are."""
    assert pairs.group is not None
    left_out = conditioned.to(pairs.group.device)[pairs.group]
    # a group of the images that no text is in, and the other way round
    return (
        replace(pairs, group=pairs.group.masked_fill(left_out, -1)),
        replace(pairs, group=pairs.group.masked_fill(left_out, -2)),
    )


def _group_delta(delta: Tensor | None, group_index: Tensor) -> GroupDelta | None:
    if delta is None:
        return None
    return GroupDelta(delta, group_index if len(delta) > 1 else None)


def _squared_norm(delta: Tensor | None, conditioned: Tensor) -> Tensor:
    """() of a delta, the mean over the conditioned groups; the same on every rank, so that the mean over ranks is it too."""
    if delta is None or not bool(conditioned.any()):
        return torch.zeros((), device=None if delta is None else delta.device)
    return delta.float().square().sum() / conditioned.sum().to(delta.device)  # rows of the others are zero


def _routing_loss(code: Tensor, plan: ConditioningPlan) -> Tensor:
    """() mean over the conditioned sets, the same on every rank; (G, K) mixtures."""
    conditioned = plan.conditioned.to(code.device)
    shares = torch.cat([1 - code[:, :1], code[:, 1:]], dim=1).float()  # of no delta, and of each learned one
    share = shares.gather(1, plan.learned_delta.to(code.device)[:, None])[:, 0].clamp_min(1e-9)  # (G,)
    return -(share.log() * conditioned).sum() / conditioned.sum().clamp_min(1)


def _delta_statistics(delta: Tensor | None, conditioned: Tensor) -> tuple[Tensor, Tensor]:
    zero = torch.zeros(())
    if delta is None or not bool(conditioned.any()):
        return zero, zero
    used = delta.detach().float()[conditioned.to(delta.device)]
    rms = used.square().mean().sqrt()
    variation = (used - used.mean(dim=0)).square().mean().sqrt() / rms.clamp_min(1e-12) if len(used) > 1 else zero
    return rms, variation
