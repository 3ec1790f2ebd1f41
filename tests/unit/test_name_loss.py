"""Softmax over names in the real objective, against the same written out image by image."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.distributed.test_objective import BATCH, NAMES, global_batch
from tests.unit.model_helpers import trained_like
from training.conditioning import ConditioningPlan, plan_conditioning
from training.conditioning_config import ConditioningConfig
from training.loss import siglip_loss
from training.model.hyperclip import HyperClip
from training.model.parameter_delta import GroupDelta
from training.model.registry import hyperclip_test, siglip_twin
from training.objective import ContrastiveObjective, LocalBatch
from training.tokenizer import cut_to_longest

NAME_OF = [NAMES[i % len(NAMES)] for i in range(BATCH)]
CONCEPT = {"cat": 0, "red apple": 1, "castle on a hill": 2, "dog": 0, "small boat": 4}
"""Cat and dog mean the same, so each is right for the other's pictures."""


def batch() -> LocalBatch:
    found = vars(global_batch()) | {"concept_ids": torch.tensor([CONCEPT[name] for name in NAME_OF])}
    return LocalBatch(**found)


def plan_of(config: ConditioningConfig) -> tuple[ConditioningPlan, list[str]]:
    """The plan that the objective makes, and what its numbers of names stand for."""
    tokens = cut_to_longest(batch().name_tokens)
    rows, name_index = torch.unique(tokens, dim=0, return_inverse=True)
    plan = plan_conditioning(config, step=0, batch_number=0, seed=0, name_index=name_index, topic_ids=batch().topic_ids)
    return plan, [NAME_OF[int((name_index == row).nonzero()[0, 0])] for row in range(len(rows))]


def feature_of_name(model: HyperClip, name: str) -> Tensor:
    captions = [row for row, own in zip(batch().caption_tokens, NAME_OF, strict=True) if own == name]
    return F.normalize(torch.stack([model.encode_text(row[None])[0] for row in captions]).mean(0), dim=-1)


def written_out(model: HyperClip, plan: ConditioningPlan, names: list[str]) -> Tensor:
    """Softmax of images of conditioned groups, mean over the groups; sigmoid of the others, as a share of the batch."""
    feature = {name: feature_of_name(model, name) for name in names}
    images, captions = batch().images, model.encode_text(batch().caption_tokens)
    choices, pairs = [], torch.zeros(())
    for group in range(plan.num_groups):
        members = (plan.group_index == group).nonzero()[:, 0].tolist()
        offered = [names[row] for row in plan.sets[group][plan.mask[group]].tolist()]
        condition = torch.stack([feature[name] for name in offered])
        delta = GroupDelta(model.generate(condition[None]) * plan.conditioned[group])
        encoded = {i: model.encode_image(images[i : i + 1], delta)[0] for i in members}
        if not plan.conditioned[group]:
            own = torch.tensor([CONCEPT[NAME_OF[i]] for i in members])
            pairs = pairs + len(members) / BATCH * siglip_loss(
                torch.stack(list(encoded.values())),
                captions[members],
                logit_scale=model.logit_scale,
                logit_bias=model.logit_bias,
                positive=own[:, None] == own,
            )
            continue
        losses = []
        for i in members:
            chances = (model.logit_scale * condition @ encoded[i]).softmax(0)
            right = torch.tensor([CONCEPT[name] == CONCEPT[NAME_OF[i]] for name in offered])
            losses.append(-chances[right].sum().log())
        choices.append(torch.stack(losses).mean())
    return torch.stack(choices).mean() + pairs


@pytest.mark.parametrize(("twin", "drop_share"), [(False, 0.0), (False, 0.5), (True, 0.5)])
def test_loss_and_gradient_are_those_of_the_formula(*, twin: bool, drop_share: float) -> None:
    config = ConditioningConfig(groups=(3,), loss="softmax", drop_share=drop_share, distractor_share=0.5)
    plan, names = plan_of(config)
    assert plan.conditioned.any() and bool(plan.conditioned.all()) == (drop_share == 0)
    model = trained_like(siglip_twin(hyperclip_test()) if twin else hyperclip_test()).requires_grad_(True)
    expected = written_out(model, plan, names)
    wanted = torch.autograd.grad(expected, list(model.parameters()), materialize_grads=True)
    loss = ContrastiveObjective(model, config, seed=0)(batch(), step=0, batch_number=0).loss
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)  # fp32 sums in another order
    for (name, parameter), gradient in zip(model.named_parameters(), wanted, strict=True):
        assert parameter.grad is not None, f"{name} takes no part"
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-5 * max(1.0, gradient.abs().max().item()))


def test_nothing_is_chosen_before_start_step() -> None:
    model = trained_like(hyperclip_test())
    losses = [
        ContrastiveObjective(model, ConditioningConfig(groups=(3,), loss=loss, start_step=5), seed=0)(
            batch(), step=4, batch_number=0
        ).loss
        for loss in ("sigmoid", "softmax")
    ]
    assert losses[0] == losses[1]
