"""The SigLIP loss under the neutral parameters, beside that of the groups."""

import pytest
import torch
from pydantic import ValidationError

from tests.distributed.test_objective import global_batch
from tests.training_runs import small_config
from tests.unit.model_helpers import trained_like
from training.conditioning_config import ConditioningConfig
from training.freezing import Freezer, Part
from training.loss import siglip_loss
from training.model.hyperclip import HyperClip
from training.model.registry import hyperclip_test, siglip_twin
from training.objective import ContrastiveObjective, ObjectiveOutput

WEIGHT = 0.5
ALL: tuple[Part, ...] = ("image_trunk", "projection", "text_encoder", "logit")


def model_like(*, twin: bool = False) -> HyperClip:
    return trained_like(siglip_twin(hyperclip_test()) if twin else hyperclip_test()).requires_grad_(True)


def objective_output(model: HyperClip, *, weight: float, start_step: int = 0, drop_share: float = 0.0) -> ObjectiveOutput:
    config = ConditioningConfig(groups=(3,), neutral_weight=weight, start_step=start_step, drop_share=drop_share)
    found: ObjectiveOutput = ContrastiveObjective(model, config, seed=0)(global_batch(), step=0, batch_number=0)
    return found


def running_mean(model: HyperClip, norm: str) -> torch.Tensor:
    return dict(model.named_buffers())[f"image_encoder.trunk.{norm}.running_mean"]


def siglip_of_the_batch(model: HyperClip) -> torch.Tensor:
    concepts = global_batch().concept_ids  # the same name is the same concept here
    return siglip_loss(
        model.encode_image(global_batch().images),
        model.encode_text(global_batch().caption_tokens),
        logit_scale=model.logit_scale,
        logit_bias=model.logit_bias,
        positive=concepts[:, None] == concepts,
    )


@pytest.mark.parametrize("twin", [False, True])
def test_it_adds_the_siglip_loss_of_the_whole_batch(*, twin: bool) -> None:
    model = model_like(twin=twin)
    expected = objective_output(model, weight=0).loss + WEIGHT * siglip_of_the_batch(model)
    wanted = torch.autograd.grad(expected, list(model.parameters()), materialize_grads=True)
    output = objective_output(model, weight=WEIGHT)
    output.loss.backward()
    torch.testing.assert_close(output.loss, expected, rtol=1e-5, atol=0)  # fp32 sums in another order
    torch.testing.assert_close(output.neutral_loss, siglip_of_the_batch(model), rtol=1e-5, atol=0)
    for (name, parameter), gradient in zip(model.named_parameters(), wanted, strict=True):
        assert parameter.grad is not None, f"{name} takes no part"
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-5 * max(1.0, gradient.abs().max().item()))


def test_running_statistics_see_each_batch_once_and_both_ways_of_encoding_it() -> None:
    alone, both = model_like().train(), model_like().train()
    objective_output(alone, weight=0)
    objective_output(both, weight=WEIGHT)
    first, *_, last = alone.image_encoder.norms
    means = {name: [running_mean(model, name) for model in (model_like(), alone, both)] for name in (first, last)}
    # no delta comes before the first norm, so both halves look alike to it; twice as many values sum in another order
    start, once, twice = means[first]
    assert (once - start).abs().max() > 1e-3
    torch.testing.assert_close(twice, once, rtol=0, atol=1e-5)
    _, once, twice = means[last]
    assert (twice - once).abs().max() > 1e-3


def test_it_is_left_out_where_it_has_no_gradient_or_is_the_loss_anyway() -> None:
    model = model_like()
    for start_step, drop_share in ((1, 0.0), (0, 1.0)):
        with_it, without = (
            objective_output(model, weight=weight, start_step=start_step, drop_share=drop_share) for weight in (WEIGHT, 0)
        )
        assert with_it.loss == without.loss and with_it.neutral_loss == 0
    freezer = Freezer(model, ALL)
    freezer.set(frozen=True)
    assert objective_output(model, weight=WEIGHT).neutral_loss == 0
    freezer.set(frozen=False)
    assert objective_output(model, weight=WEIGHT).neutral_loss > 0


def test_a_run_that_would_never_use_it_is_refused() -> None:
    changes = {"conditioning": {"neutral_weight": WEIGHT}, "freeze": ALL}
    with pytest.raises(ValidationError, match=r"neutral_weight=0\.5 has nothing to train"):
        small_config({**changes, "freeze_steps": 10})
    assert small_config({**changes, "freeze_steps": 5}).conditioning.neutral_weight == WEIGHT
