"""Loss, gradients and running statistics do not depend on the number of ranks."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.forked import run_ranks
from tests.unit.model_helpers import KINDS, config_with, trained_like
from training.conditioning_config import ConditioningConfig
from training.distillation import Teacher
from training.model.hyperclip import HyperClip
from training.model.registry import siglip_twin
from training.objective import ContrastiveObjective, LocalBatch
from training.tokenizer import Tokenizer
from training.topics import topic_id

BATCH = 12
NAMES = ["cat", "red apple", "castle on a hill", "dog", "small boat"]


def global_batch() -> LocalBatch:
    generator = torch.Generator().manual_seed(1)
    names = [NAMES[i % len(NAMES)] for i in range(BATCH)]
    captions = [f"a drawing of a {name}" if i % 3 == 0 else name for i, name in enumerate(names)]  # several for a name
    return LocalBatch(
        images=torch.randn(BATCH, 3, 32, 32, generator=generator),
        caption_tokens=Tokenizer().padded(captions),
        name_tokens=Tokenizer().padded(names),
        concept_ids=torch.arange(BATCH) % len(NAMES),
        topic_ids=torch.tensor([topic_id("abc"[i % 3]) for i in range(BATCH)]),
        sample_index=torch.arange(BATCH),
        replaced=torch.zeros(BATCH, dtype=torch.bool),
    )


CASES: dict[str, dict[str, Any]] = {
    "one group": {"groups": (1,)},
    "four groups": {"groups": (4,), "delta_penalty": 0.01},
    "teacher, one group": {"groups": (1,)},
    "teacher, four groups": {"groups": (4,)},
    "topics": {"topics": ("a", "b"), "coherent_share": 1, "loss": "softmax", "routing_weight": 0.5},
    "everything else": {
        "groups": (4,),
        "loss": "softmax",
        "distractor_share": 0.5,
        "neutral_weight": 0.5,
        "coherent_share": 1.0,
        "coherence": "neighbours",
    },
}


def loss_and_gradients(rank: int, world_size: int, case: str) -> dict[str, torch.Tensor]:
    """Averaged over ranks, as data-parallel training does; several groups with every option of the hypernetwork."""
    torch.manual_seed(0)
    conditioning = ConditioningConfig(drop_share=0.3, **CASES[case])
    config = config_with(generates=KINDS[-1], basis=6, zero_mean=True) if conditioning.groups != (1,) else config_with()
    teacher = Teacher(trained_like(siglip_twin(config_with("test_resnet"))), weight=2.0, digest="")
    torch.manual_seed(0)
    model = HyperClip(config).train()
    assert model.hypernetwork is not None
    torch.nn.init.normal_(model.hypernetwork.output.weight, std=0.05)
    taught_by = teacher if case.startswith("teacher") else None
    objective = ContrastiveObjective(model, conditioning, seed=0, teacher=taught_by)
    share = BATCH // world_size
    local = LocalBatch(**{name: value[rank * share :][:share] for name, value in vars(global_batch()).items()})
    output = objective(local, step=0, batch_number=2)
    output.loss.backward()
    parts = {"penalty": output.delta_penalty, "neutral": output.neutral_loss, "distillation": output.distillation_loss}
    found = {"loss": output.loss.detach(), **parts} | {
        f"grad.{name}": parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    if world_size > 1:
        for value in found.values():
            dist.all_reduce(value)
            value /= world_size
    return found | {f"buffer.{name}": buffer for name, buffer in model.named_buffers()}


def _worker(rank: int, world_size: int, case: str, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    found = loss_and_gradients(rank, world_size, case)
    if rank == 0:
        torch.save(found, f"{folder}/found.pt")
    dist.destroy_process_group()


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("case", "world_size"),
    [
        ("one group", 2),
        ("one group", 3),
        ("four groups", 2),
        ("four groups", 3),
        ("teacher, one group", 3),
        ("teacher, four groups", 2),
        ("everything else", 2),
    ],
)
def test_ranks_agree_with_one_process(case: str, world_size: int, tmp_path: Path) -> None:
    expected = loss_and_gradients(0, 1, case)
    run_ranks(_worker, world_size, case, str(tmp_path), world_size=world_size)
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    assert found.keys() == expected.keys()
    if case == "four groups":  # the one group of this batch number has its condition dropped
        assert expected["penalty"] > 1e-3
        assert torch.count_nonzero(expected["buffer.hypernetwork.code_mean"]) == 6
    if case.startswith("teacher"):
        assert expected["distillation"] > 0.1
    if case == "everything else":
        assert expected["neutral"] > 0.1
    for name, value in expected.items():
        # fp32 sums in another order, through some ten normalizations by batch statistics
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5 * max(1.0, value.abs().max().item()), msg=name)
