"""Activation checkpointing changes memory and time, and no number."""

import pytest
import torch
from torch import Tensor, nn

from tests.distributed.test_objective import global_batch
from tests.unit.model_helpers import config_with
from training.conditioning_config import ConditioningConfig
from training.model.hyperclip import HyperClip
from training.objective import ContrastiveObjective

TRUNKS = ["test_efficientnet", "test_resnet", "mobilenetv3_small_050", "convnext_atto"]


def step(trunk: str, groups: int, *, recompute: bool) -> tuple[dict[str, Tensor], int]:
    """Loss, gradients and buffers after one forward and backward pass, and how often norms and blocks were run."""
    torch.manual_seed(0)
    model = HyperClip(config_with(trunk)).train()
    assert model.hypernetwork is not None
    nn.init.normal_(model.hypernetwork.output.weight, std=0.05)
    if recompute:
        model.recompute_activations()
    runs = 0

    def count(*_: object) -> None:
        nonlocal runs
        runs += 1

    for module in (*model.image_encoder.norms.values(), *model.text_encoder.blocks, *model.hypernetwork.blocks):
        module.register_forward_pre_hook(count)
    objective = ContrastiveObjective(model, ConditioningConfig(groups=(groups,), drop_share=0.3), seed=0)
    loss = objective(global_batch(), step=0, batch_number=0).loss
    loss.backward()
    gradients = {f"grad.{name}": parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {"loss": loss.detach(), **gradients, **dict(model.named_buffers())}, runs


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("trunk", TRUNKS)
def test_recomputation_gives_the_same_loss_gradients_and_statistics(trunk: str, groups: int) -> None:
    expected, runs_once = step(trunk, groups, recompute=False)
    found, runs = step(trunk, groups, recompute=True)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    assert runs > 1.5 * runs_once  # most of it was indeed computed again


def test_statistics_move_again_in_the_next_pass() -> None:
    model = HyperClip(config_with()).train()
    model.recompute_activations()
    images = torch.randn(8, 3, 32, 32)
    norm = next(iter(model.image_encoder.norms.values()))
    seen = [norm.running_mean.clone()]
    for _ in range(2):
        model.encode_image(images).sum().backward()
        seen.append(norm.running_mean.clone())
    assert not torch.equal(seen[1], seen[0]) and not torch.equal(seen[2], seen[1])


def test_recomputation_leaves_evaluation_as_it_is() -> None:
    model = HyperClip(config_with()).eval()
    images = torch.randn(4, 3, 32, 32)
    expected = model.encode_image(images)
    model.recompute_activations()
    assert torch.equal(model.encode_image(images), expected)
