"""The condition does not give the answer away.

An encoder that looks at its condition and never at the picture can at most know the picture's group.  Chance within the group
is then the best it can do, if pairs count within groups only; with negatives across groups it does far better, and a prototype
collapsed to exactly this.  So the real objective is given the perfect cheat, and the cheat must gain nothing.
"""

from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import training.objective
from training.conditioning_config import ConditioningConfig
from training.loss import PairIds
from training.model.hyperclip import HyperClip
from training.model.parameter_delta import GroupDelta
from training.model.registry import model_config
from training.objective import ContrastiveObjective, LocalBatch
from training.tokenizer import Tokenizer

BATCH, GROUPS = 32, 8
NAMES = [f"{colour} {thing}" for colour in ("red", "blue", "old", "tiny") for thing in ("cat", "dog", "boat", "tree") * 2]
NAMES = [name if i % 8 < 4 else f"{name} house" for i, name in enumerate(NAMES)]  # 32 different ones
TOKENS = Tokenizer().padded(NAMES)


def chance(group_sizes: Tensor) -> float:
    """Mean loss at the best constant logit of each group of n: n times the entropy of one in n."""
    n = group_sizes.double()
    loss = torch.log(n) - (n - 1) * torch.log1p(-1 / n)
    return float((loss * n).sum() / n.sum())


class CheatingModel(HyperClip):
    """Texts are as far apart as they can be; a picture is the sum of its group's texts, whatever it shows."""

    group_index: Tensor

    def _row(self, tokens: Tensor) -> Tensor:
        return (tokens[:, None] == TOKENS[None, :, : tokens.shape[1]]).all(-1).int().argmax(1)

    def encode_text(self, tokens: Tensor) -> Tensor:
        return torch.eye(BATCH)[self._row(tokens)]

    def encode_image(self, _images: Tensor, delta: GroupDelta | None = None) -> Tensor:
        assert delta is not None and delta.group_index is not None
        self.group_index = delta.group_index
        return F.normalize((delta.group_index[:, None] == delta.group_index).float(), dim=-1)  # sample i has text i


def best_cheat(loss_by: Literal["sigmoid", "softmax"] = "sigmoid") -> tuple[float, Tensor]:
    """Loss of the cheat under the best logit scale and bias, and the sizes of the groups."""
    torch.manual_seed(0)
    model = CheatingModel(model_config("hyperclip_test"))
    objective = ContrastiveObjective(model, ConditioningConfig(groups=(GROUPS,), drop_share=0, loss=loss_by), seed=0)
    batch = LocalBatch(
        images=torch.zeros(BATCH, 3, 32, 32),
        caption_tokens=TOKENS,
        name_tokens=TOKENS,
        concept_ids=torch.arange(BATCH),
        topic_ids=torch.zeros(BATCH, dtype=torch.int64),
        sample_index=torch.arange(BATCH),
        replaced=torch.zeros(BATCH, dtype=torch.bool),
    )
    optimizer = torch.optim.Adam([model.log_scale, model.bias], lr=0.3)
    loss = torch.zeros(())
    for _ in range(40):
        optimizer.zero_grad()
        loss = objective(batch, step=0, batch_number=0).loss
        loss.backward()
        optimizer.step()
    return loss.item(), torch.bincount(model.group_index)


def test_the_names_are_different() -> None:
    assert len(set(NAMES)) == BATCH


def test_a_cheat_that_knows_the_group_gains_nothing() -> None:
    loss, sizes = best_cheat()
    assert loss >= chance(sizes) * (1 - 1e-4)  # the bound is exact; 1e-4 for fp32 in the loss


def test_nor_does_it_where_names_are_chosen() -> None:
    loss, sizes = best_cheat("softmax")
    assert loss >= float(sizes.log().mean()) * (1 - 1e-5)  # the entropy of one in n, for each group


def test_with_negatives_across_groups_it_would(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above sees what it is for: the same cheat, in an objective that counts all pairs."""
    monkeypatch.setattr(training.objective, "PairIds", lambda text, concept, _group: PairIds(text, concept, None))
    loss, _ = best_cheat()
    assert loss < 0.8 * chance(torch.tensor([BATCH]))
