"""The loss in blocks is the readable one, and never holds more than a block of logits."""

import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.unit.loss_helpers import EMBED_DIM, FeatureBatch, assert_agrees, feature_batch, reference
from training.loss import PairIds, positive_pairs, siglip_loss
from training.ring_loss import ring_siglip_loss


def in_blocks(batch: FeatureBatch, *, block: int, dtype: torch.dtype = torch.float32, factor: float = 1) -> dict[str, Tensor]:
    images, texts = (value.to(dtype, copy=True).requires_grad_() for value in (batch.image_features, batch.text_features))
    logit_scale, logit_bias = (value.clone().requires_grad_() for value in (batch.logit_scale, batch.logit_bias))
    loss = ring_siglip_loss(
        images, texts, logit_scale=logit_scale, logit_bias=logit_bias, images=batch.pairs, texts=batch.pairs, block=block
    )
    (loss * factor).backward()
    assert loss.dtype == torch.float32
    found = {"image": images.grad, "text": texts.grad, "scale": logit_scale.grad, "bias": logit_bias.grad}
    return {"loss": loss.detach()} | {name: value for name, value in found.items() if value is not None}


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("block", [1, 7, 64])
def test_blocks_give_the_loss_and_gradients_of_the_reference(block: int, groups: int) -> None:
    batch = feature_batch(40, 27, groups=groups)
    assert_agrees(in_blocks(batch, block=block), reference(batch))


def test_a_weighted_loss_has_weighted_gradients() -> None:
    batch = feature_batch(20, 12)
    whole, half = in_blocks(batch, block=8), in_blocks(batch, block=8, factor=0.5)
    assert all(torch.equal(half[name], whole[name] * 0.5) for name in ("image", "text", "scale", "bias"))


def test_bf16_features_under_autocast_give_fp32_logits() -> None:
    batch = feature_batch(40, 27, groups=2)
    rounded = FeatureBatch(
        batch.image_features.bfloat16().float(),
        batch.text_features.bfloat16().float(),
        batch.pairs,
        batch.logit_scale,
        batch.logit_bias,
    )
    expected = reference(rounded)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = in_blocks(batch, block=16, dtype=torch.bfloat16)
    for name in ("loss", "scale", "bias"):  # bf16 logits would be off by 1e-3
        assert_agrees({name: found[name]}, {name: expected[name]})
    for name in ("image", "text"):  # returned as they came: rounded once, to 8 bits
        assert found[name].dtype == torch.bfloat16
        assert_agrees({name: found[name]}, {name: expected[name]}, relative=2**-8)


def test_without_gradients_it_is_the_same_loss() -> None:
    batch = feature_batch(20, 12)
    with torch.no_grad():
        loss = ring_siglip_loss(
            batch.image_features,
            batch.text_features,
            logit_scale=batch.logit_scale,
            logit_bias=batch.logit_bias,
            images=batch.pairs,
            texts=batch.pairs,
        )
    assert_agrees({"loss": loss}, {"loss": reference(batch)["loss"]})


def test_saturated_logits_stay_finite_and_exact() -> None:
    batch = feature_batch(12, 8)
    batch = FeatureBatch(
        batch.image_features, batch.text_features, batch.pairs, torch.tensor(1000.0), torch.tensor(-10.0)
    )  # far beyond the range of exp
    assert_agrees(in_blocks(batch, block=5), reference(batch), relative=1e-5)  # one logit in 1e3 rounds at 1e-4


class _LargestTensor(TorchDispatchMode):
    """Most elements of any tensor that an operation made."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, Tensor):
                self.largest = max(self.largest, value.numel())
        return result


def test_no_tensor_is_larger_than_the_features_or_a_block() -> None:
    batch, block = feature_batch(400, 300, groups=2), 32
    with _LargestTensor() as ours:
        in_blocks(batch, block=block)
    assert ours.largest <= max(400 * EMBED_DIM, block * block)
    with _LargestTensor() as plain:  # the measure sees what it should
        reference(batch)
    assert plain.largest >= 400 * 400


def test_the_start_of_training_costs_what_the_bias_says() -> None:
    # one positive of 4 at logit -10 and scale 0: softplus(10) + 3 softplus(-10)
    texts = PairIds(torch.arange(4), torch.arange(4), None)
    loss = siglip_loss(
        torch.eye(4),
        torch.eye(4),
        logit_scale=torch.tensor(0.0),
        logit_bias=torch.tensor(-10.0),
        positive=positive_pairs(texts, texts),
    )
    expected = math.log1p(math.exp(10)) + 3 * math.log1p(math.exp(-10))
    torch.testing.assert_close(loss.item(), expected, rtol=1e-6, atol=0)  # fp32
