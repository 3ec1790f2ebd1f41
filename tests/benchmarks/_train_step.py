"""What the two benchmarks of the training step share: a model in proportion, batches of captions, one plain step."""

import time
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch
from torch import nn

from data_prep.sample.pictures import read_sample
from training.conditioning_config import ConditioningConfig
from training.config import OptimizerConfig
from training.engine import parameter_groups
from training.model.hyperclip import HyperClip, HyperClipConfig
from training.model.hypernetwork import HypernetworkConfig
from training.model.image_encoder import ImageEncoderConfig
from training.model.text_encoder import TextEncoderConfig
from training.objective import ContrastiveObjective, LocalBatch
from training.tokenizer import Tokenizer

THREADS = 2
TEMPLATES = ("{}", "a drawing of a {}", "an icon of a {}")


def b0_in_proportion() -> HyperClipConfig:
    """EfficientNet-B0 at 96 pixels; text tower and hypernetwork cut down as much as the picture is.

    At full size (224 pixels, texts of 16 tokens) text tower, hypernetwork and image encoder stand as 3.5 : 0.03 : 1 in
    multiplications; here as 3.2 : 0.04 : 1.
    """
    return HyperClipConfig(
        name="hyperclip_b0_in_proportion",
        image=ImageEncoderConfig(trunk="efficientnet_b0", image_size=96, embed_dim=512),
        text=TextEncoderConfig(width=384, heads=6, layers=8, embed_dim=512),
        hypernetwork=HypernetworkConfig(width=256, heads=4, layers=4, bottleneck=128),
    )


def names_in_templates(count: int, rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """Captions and names of `count` pictures of the bundled sample, as the quickstart draws them."""
    names = [_sample_names()[i] for i in rng.integers(len(_sample_names()), size=count)]
    return [TEMPLATES[rng.integers(len(TEMPLATES))].replace("{}", name) for name in names], names


def web_like(count: int, rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """Captions of names in a row with the lengths of web captions: log-normal, median 10 words, one in 30 above 30 words."""
    captions = []
    for words in np.rint(np.exp(rng.normal(np.log(10), 0.6, count))).clip(2, 60).astype(int):
        text = " ".join(_sample_names()[i] for i in rng.integers(len(_sample_names()), size=words))
        captions.append(" ".join(text.split()[:words]))
    return captions, captions


Captions = Callable[[int, np.random.Generator], tuple[list[str], list[str]]]


def make_batches(count: int, *, batch_size: int, image_size: int, captions: Captions) -> list[LocalBatch]:
    """Random pictures with captions; every batch another one."""
    rng, tokenizer, batches = np.random.default_rng(0), Tokenizer(), []
    torch.manual_seed(0)
    for _ in range(count):
        texts, names = captions(batch_size, rng)
        batches.append(
            LocalBatch(
                images=torch.randn(batch_size, 3, image_size, image_size),
                caption_tokens=tokenizer.padded(texts),
                name_tokens=tokenizer.padded(names),
                concept_ids=torch.from_numpy(np.unique(names, return_inverse=True)[1]),
                topic_ids=torch.zeros(batch_size, dtype=torch.int64),
                sample_index=torch.arange(batch_size),
                replaced=torch.zeros(batch_size, dtype=torch.bool),
            )
        )
    return batches


def adamw(module: nn.Module) -> torch.optim.AdamW:
    """The optimizer of training."""
    return torch.optim.AdamW(parameter_groups(module, OptimizerConfig()), lr=1e-4, betas=(0.9, 0.98), eps=1e-6, fused=True)


def our_step(config: HyperClipConfig, conditioning: ConditioningConfig) -> Callable[[LocalBatch], torch.Tensor]:
    """Forward, loss, backward and optimizer of the real objective, without an engine around it."""
    torch.manual_seed(0)
    objective = ContrastiveObjective(HyperClip(config).train(), conditioning, seed=0)
    optimizer, number = adamw(objective), 0

    def step(batch: LocalBatch) -> torch.Tensor:
        nonlocal number
        optimizer.zero_grad()
        output = objective(batch, step=number, batch_number=number)
        output.loss.backward()
        optimizer.step()
        number += 1
        return output.loss.detach()

    return step


def samples_per_second(step: Callable[[LocalBatch], torch.Tensor], batches: Sequence[LocalBatch]) -> float:
    """Over all batches, one step each."""
    started = time.perf_counter()
    for batch in batches:
        if not torch.isfinite(step(batch)):
            raise RuntimeError("the loss is not finite: this measures nothing")
    return sum(len(batch.images) for batch in batches) / (time.perf_counter() - started)


@cache
def _sample_names() -> list[str]:
    return sorted(set(read_sample()["caption"].to_pylist()))
