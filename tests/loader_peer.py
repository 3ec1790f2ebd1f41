"""webdataset pipelines over our shards: the peers of the loader benchmarks.

`same_work` does exactly what a worker of ours does with a sample; `usual` is the pipeline of the documentation and of
open_clip.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from PIL import Image

from training.augment import augmented
from training.config import TrainConfig
from training.data import normalized
from training.model.image_encoder import _repair_torchvision_import
from training.tokenizer import Tokenizer

SHUFFLE_BUFFER = 1000  # open_clip's is 5,000, which costs it more at the start and nothing later


def shard_urls(folder: Path) -> list[str]:
    return [str(path) for path in sorted(folder.glob("*.tar"))]


def same_work(folder: Path, config: TrainConfig, *, workers: int) -> Iterator[dict[str, Any]]:
    """Endless batches with our decoder, augmentation, tokenizer and normalization."""
    dataset = endless(folder).shuffle(SHUFFLE_BUFFER).map(same_worker_step(config)).batched(config.contrastive_batch_size)
    for batch in _loader(dataset, workers):
        yield {**batch, "images": normalized(batch["images"], config.preprocess)}


def usual(folder: Path, config: TrainConfig, *, workers: int) -> Iterator[dict[str, Any]]:
    """Endless batches through Pillow and torchvision's transforms; no colour jitter, one text a sample."""
    _repair_torchvision_import()  # beside a CPU build of torch it does not load by itself
    from torchvision import transforms

    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(config.preprocess.image_size, scale=(config.augment.min_scale, 1.0)),
            transforms.ToTensor(),
            transforms.Normalize(config.preprocess.mean, config.preprocess.std),
        ]
    )
    dataset = endless(folder).shuffle(SHUFFLE_BUFFER).decode("pil").map(_UsualStep(transform))
    return iter(_loader(dataset.batched(config.contrastive_batch_size), workers))


def endless(folder: Path) -> Any:
    return webdataset.WebDataset(shard_urls(folder), shardshuffle=100, empty_check=False, seed=0).repeat()


class _UsualStep:
    def __init__(self, transform: Callable[[Image.Image], torch.Tensor]) -> None:
        self._transform = transform

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        return {
            "images": self._transform(sample["jpg"]),
            "caption_tokens": Tokenizer().padded(sample["json"]["captions"][:1])[0],
        }


def same_worker_step(config: TrainConfig) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What one of our loader workers makes of a sample, without the check of its hash."""
    rng = np.random.default_rng(0)
    side = config.preprocess.image_size

    def step(sample: dict[str, Any]) -> dict[str, Any]:
        captions = json.loads(sample["json"])["captions"]
        caption = captions[int(rng.integers(len(captions)))]
        template = config.templates[int(rng.integers(len(config.templates)))]
        pixels = np.empty((side, side, 3), dtype=np.uint8)
        augmented(sample["jpg"], config.augment, out=pixels, rng=rng)
        tokens = Tokenizer().padded([template.replace("{}", caption), captions[0]])
        return {"images": torch.from_numpy(pixels), "caption_tokens": tokens[0], "name_tokens": tokens[1]}

    return step


def _loader(dataset: Any, workers: int) -> Any:
    of_workers = {"prefetch_factor": 4, "multiprocessing_context": "fork"} if workers else {}
    return webdataset.WebLoader(dataset, batch_size=None, num_workers=workers, **of_workers)


def first_batch_after(folder: Path, config: TrainConfig, *, skipped: int) -> dict[str, Any]:
    """webdataset's way to the middle of an epoch: go through the samples before it, undecoded and unshuffled.

    It cannot drop whole shards, because nothing tells it how many samples they hold.
    """
    dataset = webdataset.WebDataset(shard_urls(folder), shardshuffle=False, empty_check=False)
    pipeline = dataset.slice(skipped, None).map(same_worker_step(config)).batched(config.contrastive_batch_size)
    batch = next(iter(pipeline))
    return {**batch, "images": normalized(batch["images"], config.preprocess)}
