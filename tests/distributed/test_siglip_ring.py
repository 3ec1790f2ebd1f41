"""The loss over ranks, its texts travelling round the ring, is the reference of one process: value and every gradient."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests.forked import run_ranks
from tests.unit.loss_helpers import FeatureBatch, assert_agrees, feature_batch, reference
from training.exchange import deal
from training.ring_loss import ring_siglip_loss

NUM_SAMPLES, NUM_TEXTS = 24, 17  # 17 texts: the last rank of 2 and of 3 holds a padded share
ACCUMULATED = [0, 1]
"""Seeds of the contrastive batches of one optimizer step."""
GROUPS = [1, 3]


def batches(groups: int) -> list[FeatureBatch]:
    return [feature_batch(NUM_SAMPLES, NUM_TEXTS, groups=groups, seed=seed) for seed in ACCUMULATED]


def on_this_rank(rank: int, world_size: int, groups: int) -> dict[str, Tensor]:
    """Loss and gradients of this rank; features get theirs as leaves, as the encoders would."""
    share = NUM_SAMPLES // world_size
    mine = slice(rank * share, (rank + 1) * share)
    logit_scale, logit_bias = (value.clone().requires_grad_() for value in (torch.tensor(12.0), torch.tensor(-3.0)))
    found: dict[str, Tensor] = {}
    for number, batch in enumerate(batches(groups)):
        images = batch.image_features[mine].clone().requires_grad_()
        texts = deal(batch.text_features).clone().requires_grad_()
        loss = ring_siglip_loss(
            images,
            texts,
            logit_scale=logit_scale,
            logit_bias=logit_bias,
            images=batch.pairs[mine],
            texts=batch.pairs,
            block=5,  # neither divides the shares
        )
        (loss / len(ACCUMULATED)).backward()
        assert images.grad is not None and texts.grad is not None
        found |= {f"loss.{number}": loss.detach(), f"image.{number}": images.grad, f"text.{number}": texts.grad}
    assert logit_scale.grad is not None and logit_bias.grad is not None
    return found | {"scale": logit_scale.grad, "bias": logit_bias.grad}


def _worker(rank: int, world_size: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    for groups in GROUPS:
        torch.save(on_this_rank(rank, world_size, groups), f"{folder}/{groups}-{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.distributed
@pytest.mark.parametrize("world_size", [1, 2, 3])  # with 3 a block has a way of two hops
def test_the_ring_gives_the_loss_and_gradients_of_one_process(world_size: int, tmp_path: Path) -> None:
    run_ranks(_worker, world_size, str(tmp_path), world_size=world_size)
    for groups in GROUPS:
        ranks = [torch.load(tmp_path / f"{groups}-{rank}.pt", weights_only=True) for rank in range(world_size)]
        expected = [reference(batch) for batch in batches(groups)]
        factor = len(ACCUMULATED) / world_size  # undo the accumulation, take the mean over the ranks
        for number, one in enumerate(expected):
            dealt = torch.stack([rank[f"text.{number}"] for rank in ranks], dim=1)  # (share, ranks, D)
            found = {
                "loss": torch.stack([rank[f"loss.{number}"] for rank in ranks]).mean(),
                "image": torch.cat([rank[f"image.{number}"] for rank in ranks]) * factor,
                "text": dealt.flatten(0, 1)[:NUM_TEXTS] * factor,
            }
            assert_agrees(found, {name: one[name] for name in found})
        scalars = {name: sum(rank[name] for rank in ranks) / world_size for name in ("scale", "bias")}
        assert_agrees(scalars, {name: sum(one[name] for one in expected) / len(expected) for name in scalars})
