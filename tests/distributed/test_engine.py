"""ZeRO stages and world sizes give the same training, and any of them reads what any other wrote."""

import dataclasses
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

import training.engine
from tests.distributed.test_objective import BATCH, global_batch
from tests.forked import run_ranks
from training.config import TrainConfig
from training.engine import Engine, FullState, parameter_groups
from training.freezing import frozen_names, is_of_deltas
from training.model.hyperclip import HyperClip
from training.objective import ContrastiveObjective, LocalBatch
from training.schedule import learning_rate_at

STEPS, ACCUMULATION = 2, 2
STAGES = (0, 1, 2, 3)
PARTS = ("parameters", "moments", "buffers")
ORIGIN = "fp32-0-1"
"""The run on one process without ZeRO: the reference, and the checkpoint that all others load."""
VARIANTS: dict[str, dict[str, Any]] = {"fp32": {}, "bf16": {"precision": "bf16"}, "recomputed": {"recompute_activations": True}}
VARIANTS["two-stages"] = {
    "generation": {"generates": ["norm", "convolution", "pointwise", "projection"], "basis": 4, "zero_mean": True},
    "freeze": ["image_trunk", "text_encoder", "logit"],
    "freeze_steps": 1,
    "unfrozen_lr_scale": 0.5,
}
RUNS = [*itertools.product(["fp32"], STAGES), *itertools.product(["bf16", "recomputed"], (0, 3))]
TWO_STAGES = [(0, 1), *itertools.product(STAGES, [2])]
"""(ZeRO stage, world size) of the runs in two stages; test_training_resume.py has more on one rank."""


def make_config(variant: str, zero_stage: int, *, world_size: int = 1) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "model": "hyperclip_test",
            "num_steps": STEPS,
            "contrastive_batch_size": BATCH,
            "accumulation_steps": ACCUMULATION,
            "zero_stage": zero_stage,
            # an eps far above the noise of fp32 sums: Adam would turn noise around a zero gradient into whole steps
            "optimizer": {"warmup_steps": 1, "eps": 1e-3, "max_grad_norm": 0.5},
            "conditioning": {"groups": [1, 3], "drop_share": 0.3},
            "workers": {"num_workers": world_size},
            **VARIANTS[variant],
        }
    )


def make_objective(config: TrainConfig) -> ContrastiveObjective:
    torch.manual_seed(0)
    model = HyperClip(config.architecture()).train()
    assert model.hypernetwork is not None
    torch.nn.init.normal_(model.hypernetwork.output.weight, std=0.05)  # so that gradients reach the whole hypernetwork
    return ContrastiveObjective(model, config.conditioning, seed=0, autocast=config.precision == "bf16")


def batches(rank: int, world_size: int, *, steps: range = range(STEPS)) -> Iterator[tuple[int, LocalBatch]]:
    """This rank's share of the batches of a run, with their numbers."""
    share = BATCH // world_size
    local = LocalBatch(**{name: value[rank * share :][:share] for name, value in vars(global_batch()).items()})
    for number in range(steps.start * ACCUMULATION, steps.stop * ACCUMULATION):
        yield number, dataclasses.replace(local, images=local.images * (1 + 0.1 * number))


def train(engine: Engine, *, steps: range = range(STEPS)) -> list[float]:
    """The losses of the contrastive batches, and the last gradient norm."""
    found = []
    for number, batch in batches(dist.get_rank(), dist.get_world_size(), steps=steps):
        output = engine.train_batch(batch, step=number // ACCUMULATION, batch_number=number)
        loss = output.loss.detach().clone()
        dist.all_reduce(loss)
        found.append(loss.item() / dist.get_world_size())
    return [*found, engine.grad_norm.item()]


def _run(rank: int, world_size: int, folder: str) -> None:
    """Every stage and precision in one process group: starting DeepSpeed is what takes the time."""
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)  # DeepSpeed asks for it
    dist.init_process_group("gloo", init_method=f"file://{folder}/store-{world_size}", rank=rank, world_size=world_size)
    real = training.engine.deepspeed_config

    def partition_everything(config: TrainConfig, size: int) -> dict[str, object]:
        found = real(config, size)
        found["zero_optimization"]["stage3_param_persistence_threshold"] = 0  # or small tensors would stay whole
        return found

    training.engine.deepspeed_config = partition_everything
    for variant, zero_stage in [*RUNS, *(("two-stages", stage) for stage, size in TWO_STAGES if size == world_size)]:
        config = make_config(variant, zero_stage, world_size=world_size)
        engine = Engine(make_objective(config), config, device=torch.device("cpu"))
        place, leads = f"{zero_stage}-{world_size}", rank == 0
        if variant == "two-stages":
            write(Path(folder) / f"start-{place}", engine.full_state(), [], leads=leads)
            numbers = train(engine, steps=range(1))
            write(Path(folder) / f"frozen-{place}", engine.full_state(), numbers, leads=leads)
            numbers = train(engine, steps=range(1, STEPS))
        else:
            numbers = train(engine)
        write(Path(folder) / f"{variant}-{place}", engine.full_state(), numbers, leads=leads)
        if variant == "fp32":
            engine.load_full_state(read_state(Path(folder) / ORIGIN), optimizer_step=STEPS)
            write(Path(folder) / f"loaded-{place}", engine.full_state(), [], leads=leads)
            numbers = train(engine)
            write(Path(folder) / f"continued-{place}", engine.full_state(), numbers, leads=leads)
    dist.destroy_process_group()


def write(folder: Path, state: FullState, numbers: list[float], *, leads: bool) -> None:
    if leads:
        folder.mkdir()
        for part in PARTS:
            save_file(getattr(state, part), folder / f"{part}.safetensors")
        (folder / "numbers.json").write_text(json.dumps(numbers))


def read_state(folder: Path) -> FullState:
    return FullState(**{part: load_file(folder / f"{part}.safetensors") for part in PARTS})


def read(folder: Path) -> dict[str, Tensor]:
    numbers = {"numbers": torch.tensor(json.loads((folder / "numbers.json").read_text()))}
    return numbers | {name: value for part in PARTS for name, value in load_file(folder / f"{part}.safetensors").items()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What every stage made of the same batches on one rank and on two."""
    folder = tmp_path_factory.mktemp("trained")
    for world_size in (1, 2):
        run_ranks(_run, world_size, str(folder), world_size=world_size)
    return folder


@pytest.mark.distributed
def test_the_engine_trains_like_a_loop_in_plain_torch(trained: Path) -> None:
    config = make_config("fp32", 0)
    objective = make_objective(config)
    optimizer = torch.optim.AdamW(
        parameter_groups(objective, config.optimizer),
        betas=config.optimizer.betas,
        eps=config.optimizer.eps,
    )
    numbers = []
    for number, batch in batches(0, 1):
        step = number // ACCUMULATION
        loss = objective(batch, step=step, batch_number=number).loss
        (loss / ACCUMULATION).backward()
        numbers.append(loss.item())
        if number % ACCUMULATION == ACCUMULATION - 1:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(step, config.optimizer, num_steps=STEPS)
            norm = torch.nn.utils.clip_grad_norm_(objective.parameters(), config.optimizer.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
    found = read(trained / ORIGIN)
    # the same sums in the same order, but for the kernels of one optimizer step
    torch.testing.assert_close(found["numbers"], torch.tensor([*numbers, norm.item()]), rtol=1e-5, atol=0.0)
    for name, value in objective.model.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("run", "zero_stage", "world_size"),
    [
        *itertools.product(["fp32", "continued"], STAGES, [1, 2]),
        *itertools.product(["recomputed"], (0, 3), [1, 2]),
        *((run, *place) for run in ("frozen", "two-stages") for place in TWO_STAGES),
    ],
)
def test_every_stage_and_world_size_trains_alike(trained: Path, run: str, zero_stage: int, world_size: int) -> None:
    reference = "fp32" if run == "recomputed" else run
    expected, found = read(trained / f"{reference}-0-1"), read(trained / f"{run}-{zero_stage}-{world_size}")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        # fp32 sums in another order, through steps of normalizations by batch statistics
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=2e-5 * max(1.0, value.abs().max().item()), msg=name)


@pytest.mark.distributed
@pytest.mark.parametrize(("zero_stage", "world_size"), TWO_STAGES)
def test_what_is_frozen_stands_still_to_the_bit_and_then_moves(trained: Path, zero_stage: int, world_size: int) -> None:
    start, frozen, end = (read_state(trained / f"{run}-{zero_stage}-{world_size}") for run in ("start", "frozen", "two-stages"))
    config = make_config("two-stages", zero_stage)
    names = frozen_names(make_objective(config).model, config.freeze)
    for name, value in start.parameters.items():
        stands = name in names
        assert torch.equal(frozen.parameters[name], value) == stands, name
        assert torch.count_nonzero(frozen.moments[f"exp_avg_sq.{name}"]) == 0 or not stands, name
        assert not torch.equal(end.parameters[name], value), name
    for name, value in start.buffers.items():  # running statistics
        stands = not is_of_deltas(name)
        assert torch.equal(frozen.buffers[name], value) == stands and not torch.equal(end.buffers[name], value), name


@pytest.mark.distributed
@pytest.mark.parametrize("zero_stage", STAGES)
@pytest.mark.parametrize("world_size", [1, 2])
def test_every_stage_and_world_size_reads_a_checkpoint_to_the_bit(trained: Path, zero_stage: int, world_size: int) -> None:
    expected, found = read_state(trained / ORIGIN), read_state(trained / f"loaded-{zero_stage}-{world_size}")
    for part in PARTS:
        assert getattr(found, part).keys() == getattr(expected, part).keys()
        for name, value in getattr(expected, part).items():
            assert torch.equal(getattr(found, part)[name], value), f"{part} {name}"


@pytest.mark.distributed
@pytest.mark.parametrize("zero_stage", [0, 3])
@pytest.mark.parametrize("world_size", [1, 2])
def test_bf16_computes_near_fp32_and_keeps_its_state_in_fp32(trained: Path, zero_stage: int, world_size: int) -> None:
    found = read(trained / f"bf16-{zero_stage}-{world_size}")
    assert {value.dtype for value in found.values()} == {torch.float32}
    expected = read(trained / ORIGIN)
    # bf16 keeps 8 bits: 0.4 % a rounding, through some thirty layers, then through steps that go apart
    torch.testing.assert_close(found["numbers"][0], expected["numbers"][0], rtol=0.01, atol=0.0)
    torch.testing.assert_close(found["numbers"][:-1], expected["numbers"][:-1], rtol=0.1, atol=0.0)
