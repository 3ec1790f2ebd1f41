"""Compiled blocks compute what plain ones do, at every length of text."""

import pytest
import torch
from torch import Tensor, nn

from tests.distributed.test_objective import global_batch
from tests.unit.model_helpers import config_with
from training.conditioning_config import ConditioningConfig
from training.config import TrainConfig
from training.model.hyperclip import HyperClip
from training.objective import ContrastiveObjective


def losses_and_gradients(*, compiled: bool) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = HyperClip(config_with()).train()
    assert model.hypernetwork is not None
    nn.init.normal_(model.hypernetwork.output.weight, std=0.05)
    model.recompute_activations()
    if compiled:
        model.compile_blocks()
    found = {}
    for step, groups in enumerate((1, 3)):
        objective = ContrastiveObjective(model, ConditioningConfig(groups=(groups,)), seed=0)
        loss = objective(global_batch(), step=0, batch_number=0).loss
        loss.backward()
        found[f"loss {step}"] = loss.detach()
    return found | {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.slow
def test_compiled_blocks_change_rounding_only() -> None:
    """Slow: the compiler takes a minute.  With recomputation, which runs the compiled blocks again."""
    expected, found = losses_and_gradients(compiled=False), losses_and_gradients(compiled=True)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        # other fusions, so fp32 rounding elsewhere
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5 * max(1.0, value.abs().max().item()), msg=name)


def test_compiled_blocks_are_refused_where_parameters_are_shared_out() -> None:
    with pytest.raises(ValueError, match="compile_blocks does not go with zero_stage=3"):
        TrainConfig(model="hyperclip_test", num_steps=1, contrastive_batch_size=8, zero_stage=3, compile_blocks=True)
