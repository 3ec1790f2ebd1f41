"""What the GPU benchmark compares: one training step of each side, on pictures of one size and the same captions."""

import io
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

TEXT = "a photo of the small red old wooden house near water with two people green dog city street at night"

Step = Callable[[], object]


@dataclass(frozen=True)
class Sizes:
    """What is measured."""

    model: str
    """Of the registry, without its prefix: b0, test."""
    batch: int
    steps: int
    """Timed steps of a side in a round."""
    rounds: int
    num_pictures: int
    """Distinct pictures that the loader reads."""
    loader_workers: int
    precision: str = "bf16"
    compile_peer: bool = True


def make_sides(sizes: Sizes, shards: Path, device: torch.device) -> dict[str, Step]:
    """One training step of each side.  All see pictures of one size and the same captions."""
    from training.data import TrainingBatches
    from training.shard_reader import open_shards

    config = train_config(sizes, "hyperclip")
    batch = synthetic_batch(sizes, device)
    loaded = TrainingBatches(open_shards(str(shards)), config, rank=0, world_size=1).starting_at(0)
    hyperclip = engine_step(config, device)
    sides: dict[str, Step] = {
        "hyperclip": lambda: hyperclip(batch),
        "hyperclip_fed_by_loader": lambda: hyperclip(next(loaded)),
    }
    for name, other in (
        ("siglip", train_config(sizes, "siglip")),
        ("zero_2", train_config(sizes, "hyperclip", zero_stage=2)),
    ):
        sides[name] = bound(engine_step(other, device), batch)
    sides["ddp"] = bound(ddp_step(config, device), batch)
    sides["open_clip"] = open_clip_step(sizes, batch, device, compiled=False)
    if sizes.compile_peer:
        sides["open_clip_compiled"] = open_clip_step(sizes, batch, device, compiled=True)
    return sides


def bound(step: Callable[[Any], object], batch: Any) -> Step:
    return lambda: step(batch)


def train_config(sizes: Sizes, kind: str, *, zero_stage: int = 1) -> Any:
    """As a run would have it."""
    from training.config import TrainConfig

    return TrainConfig.model_validate(
        {
            "model": f"{kind}_{sizes.model}",
            "num_steps": 10**6,
            "contrastive_batch_size": sizes.batch,
            "precision": sizes.precision,
            "zero_stage": zero_stage,
            "loader_workers": sizes.loader_workers,
        }
    )


def engine_step(config: Any, device: torch.device) -> Callable[[Any], object]:
    """Our own step, as the loop does it."""
    from training.engine import Engine

    engine = Engine(make_objective(config), config, device=device)
    steps = 0

    def step(batch: Any) -> object:
        nonlocal steps
        steps += 1
        return engine.train_batch(batch, step=steps, batch_number=steps)

    return step


def ddp_step(config: Any, device: torch.device) -> Callable[[Any], object]:
    """The same objective under torch's DistributedDataParallel with fused AdamW."""
    from training.engine import parameter_groups

    objective = make_objective(config).to(device)
    wrapped = nn.parallel.DistributedDataParallel(objective, device_ids=[device.index] if device.type == "cuda" else None)
    update = optimizer_step(parameter_groups(objective, config.optimizer), list(objective.parameters()))
    steps = 0

    def step(batch: Any) -> None:
        nonlocal steps
        steps += 1
        wrapped(batch.to(device), step=steps, batch_number=steps).loss.backward()
        update()

    return step


def open_clip_step(sizes: Sizes, batch: Any, device: torch.device, *, compiled: bool) -> Step:
    """open_clip's SigLIP with the towers of ours."""
    from training.model.registry import model_config

    config = model_config(f"siglip_{sizes.model}")
    from open_clip.loss import SigLipLoss
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP

    model = CustomTextCLIP(
        embed_dim=config.image.embed_dim,
        vision_cfg=CLIPVisionCfg(timm_model_name=config.image.trunk, timm_pool="", image_size=config.image.image_size),
        text_cfg=CLIPTextCfg(
            context_length=config.text.context_length,
            vocab_size=config.text.vocab_size,
            width=config.text.width,
            heads=config.text.heads,
            layers=config.text.layers,
        ),
        init_logit_scale=float(np.log(10)),
        init_logit_bias=-10.0,
    )
    model = model.to(device, memory_format=torch.channels_last).train()
    parameters = list(model.parameters())
    plain = [parameter for parameter in parameters if parameter.ndim < 2]
    decayed = [parameter for parameter in parameters if parameter.ndim >= 2]
    update = optimizer_step([{"params": decayed, "weight_decay": 0.2}, {"params": plain, "weight_decay": 0.0}], parameters)
    forward = torch.compile(model) if compiled else model
    loss = SigLipLoss()
    images, tokens = batch.images.contiguous(memory_format=torch.channels_last), batch.caption_tokens

    def step() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=sizes.precision == "bf16"):
            image_features, text_features, scale, bias = forward(images, tokens)
            value = loss(image_features, text_features, scale, bias)
        value.backward()
        update()

    return step


def optimizer_step(groups: list[dict[str, Any]], parameters: list[nn.Parameter]) -> Callable[[], None]:
    """Clip, AdamW, forget the gradients."""
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98), eps=1e-6, fused=True)

    def update() -> None:
        nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return update


def make_objective(config: Any) -> nn.Module:
    from training.model.hyperclip import HyperClip
    from training.objective import ContrastiveObjective

    torch.manual_seed(0)
    model = HyperClip(config.architecture()).train()
    return ContrastiveObjective(model, config.conditioning, seed=0, autocast=config.precision == "bf16")


def synthetic_batch(sizes: Sizes, device: torch.device) -> Any:
    """Random pictures with captions of 4 to 20 words, on the device."""
    from training.model.registry import model_config
    from training.objective import LocalBatch
    from training.tokenizer import Tokenizer

    side = model_config(f"siglip_{sizes.model}").image.image_size
    tokens = Tokenizer().padded(list(captions(sizes.batch)))
    number = torch.arange(sizes.batch)
    images = torch.randn(sizes.batch, 3, side, side, generator=torch.Generator().manual_seed(0))
    return LocalBatch(
        images=images,
        caption_tokens=tokens,
        name_tokens=tokens,
        concept_ids=number,
        topic_ids=number,
        sample_index=number,
        replaced=torch.zeros(sizes.batch, dtype=torch.bool),
    ).to(device)


def captions(count: int) -> Iterator[str]:
    random = np.random.default_rng(0)
    for number in range(count):
        yield " ".join([*random.choice(TEXT.split(), random.integers(4, 20)), str(number)])


def write_pictures(folder: Path, *, num_pictures: int, side: int = 256) -> None:
    """Shards of JPEGs of photograph-like size and detail."""
    from PIL import Image

    from data_prep.manifest import SampleRecord, ShardEntry, ShardManifest, write_manifest

    random = np.random.default_rng(0)
    offsets = []
    with tarfile.open(folder / "0.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, caption in enumerate(captions(num_pictures)):
            coarse = Image.fromarray(random.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8))
            picture = io.BytesIO()
            coarse.resize((side, side), Image.Resampling.BICUBIC).save(picture, "JPEG", quality=90)
            data = picture.getvalue()
            record = SampleRecord(uid=str(number), captions=[caption], sha256=sha256(data).hexdigest(), width=side, height=side)
            offsets.append(tar.offset)
            for suffix, content in (("jpg", data), ("json", record.model_dump_json().encode())):
                member = tarfile.TarInfo(f"{number}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    data = (folder / "0.tar").read_bytes()
    entry = ShardEntry(path="0.tar", samples=len(offsets), bytes=len(data), sha256=sha256(data).hexdigest(), offsets=offsets)
    write_manifest(ShardManifest(shards=[entry], num_samples=len(offsets)), str(folder))
