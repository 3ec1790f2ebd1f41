"""Samples per second of a training step: our SigLIP twin over open_clip's SigLIP, same towers, captions, batch, fp32 and AdamW.

open_clip is `CustomTextCLIP` with a timm tower and `SigLipLoss`.  It pads every text to its context length, 77 by default; what
it offers is `--force-context-length`.  So it also runs with a short context: that of the longest caption, at most 32, although
32 cuts some of the web-like captions, which ours reads whole.  The ratio is over the faster of the two.  `--torchcompile` is
off, as on our side.

Two kinds of captions: web-like lengths, and the short names of the bundled sample.
"""

import math
import statistics
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from tests.benchmarks._train_step import (
    THREADS,
    Captions,
    adamw,
    b0_in_proportion,
    make_batches,
    names_in_templates,
    our_step,
    samples_per_second,
    web_like,
)
from tests.result import benchmark_arguments, benchmark_result, environment, interleaved, measure, spread
from training.conditioning_config import ConditioningConfig
from training.model.hyperclip import HyperClipConfig
from training.model.registry import siglip_twin
from training.objective import LocalBatch
from training.tokenizer import CONTEXT_LENGTH, END_OF_TEXT, cut_to_longest

NAME = "train_step_vs_open_clip"
GOAL = 1.2
SHORT_CONTEXT = 32
BATCH = {False: 64, True: 16}
CAPTIONS: dict[str, Captions] = {"web_like": web_like, "short_names": names_in_templates}


def open_clip_step(config: HyperClipConfig, *, context_length: int) -> Callable[[LocalBatch], Tensor]:
    """The step of `open_clip_train.train.train_one_epoch`, without its loader and logging."""
    from open_clip.loss import SigLipLoss  # after timm, for which the image encoder repairs torchvision
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP

    torch.manual_seed(0)
    model = CustomTextCLIP(
        config.image.embed_dim,
        CLIPVisionCfg(
            timm_model_name=config.image.trunk,
            timm_model_pretrained=False,
            timm_pool="avg",
            timm_proj="linear",
            image_size=config.image.image_size,
        ),
        CLIPTextCfg(context_length=context_length, width=config.text.width, heads=config.text.heads, layers=config.text.layers),
        init_logit_scale=math.log(10),
        init_logit_bias=-10,
        output_dict=True,
    ).train()
    loss_of, optimizer = SigLipLoss(), adamw(model)

    def step(batch: LocalBatch) -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = loss_of(**model(batch.images, cut_as_open_clip(batch.caption_tokens, context_length)))
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        return loss.detach()

    return step


def cut_as_open_clip(tokens: Tensor, context_length: int) -> Tensor:
    """Its tokenizer ends a text that is too long with the end-of-text token; its model pools at the largest id."""
    cut = tokens[:, :context_length].clone()
    too_long = (cut != END_OF_TEXT).all(dim=1)
    cut[too_long, -1] = END_OF_TEXT
    return cut


def rates(captions: Captions, *, batch_size: int, rounds: int, num_batches: int) -> tuple[dict[str, list[float]], int]:
    """Samples per second of each side, round by round, and the longest caption in tokens."""
    config = siglip_twin(b0_in_proportion())
    batches = make_batches(num_batches, batch_size=batch_size, image_size=config.image.image_size, captions=captions)
    longest = max(cut_to_longest(batch.caption_tokens).shape[1] for batch in batches)
    steps = {
        "ours": our_step(config, ConditioningConfig()),
        "open_clip_77": open_clip_step(config, context_length=CONTEXT_LENGTH),
        "open_clip_short": open_clip_step(config, context_length=min(longest, SHORT_CONTEXT)),
    }
    for step in steps.values():
        step(batches[0])  # first kernels, the optimizer's moments
    sides = {name: lambda step=step: samples_per_second(step, batches) for name, step in steps.items()}
    return interleaved(sides, rounds=rounds), longest


def main() -> int:
    quick = benchmark_arguments(__doc__ or NAME).quick
    torch.set_num_threads(THREADS)
    found = {
        name: rates(captions, batch_size=BATCH[quick], rounds=1 if quick else 6, num_batches=1 if quick else 2)
        for name, captions in CAPTIONS.items()
    }
    ratios = {
        f"{name}_over_{peer}": statistics.median(ours / theirs for ours, theirs in zip(sides["ours"], sides[peer], strict=True))
        for name, (sides, _) in found.items()
        for peer in ("open_clip_77", "open_clip_short")
    }
    return benchmark_result(
        NAME,
        ratio=min(ratios.values()),
        goal=(">=", GOAL),
        measures={name: measure(ratio, goal=(">=", GOAL)) for name, ratio in ratios.items()},
        samples_per_second={f"{name}_{side}": spread(v) for name, (sides, _) in found.items() for side, v in sides.items()},
        sizes={
            "batch": BATCH[quick],
            "image": "efficientnet_b0 at 96 pixels, 512 values",
            "text": "384 wide, 6 heads, 8 layers, 49,408 tokens",
            "short_context": SHORT_CONTEXT,
            "longest_caption_tokens": {name: longest for name, (_, longest) in found.items()},
            "precision": "fp32",
            "optimizer": "AdamW, fused",
            "threads": THREADS,
        },
        **environment("torch", "timm", "open_clip_torch"),
    )


if __name__ == "__main__":
    sys.exit(main())
