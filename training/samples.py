"""From positions of the stream to tensors: what a loader worker does.

A picture whose bytes are those that were stored but that does not decode is replaced by another sample, drawn from
(seed, position), so that it is the same whatever the ranks and workers.  Bytes that are not those that were stored stop the
run.
Shapes: B local batch, S side of the picture.
"""

import hashlib
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from data_prep.manifest import NO_SOURCE, SampleRecord
from infra.errors import CorruptArtefactError
from infra.images import ImageError
from training.augment import augmented
from training.config import TrainConfig
from training.order import BatchPlan
from training.shard_reader import ShardReader
from training.tokenizer import CONTEXT_LENGTH, Tokenizer

logger = logging.getLogger(__name__)

MAX_REPLACEMENTS = 1000
"""Samples tried in place of one that does not decode; when all fail, it is not the picture that is wrong."""

# what a random generator is for, beside the seed: no two uses share numbers
_VARIATION, _REPLACEMENT = 3, 5


@dataclass(frozen=True)
class TrainingSamples(Dataset[dict[str, Tensor]]):
    """A plan of a batch -> the tensors of `LocalBatch`, pictures still as (B, S, S, 3) uint8."""

    reader: ShardReader
    config: TrainConfig

    @cached_property
    def _side(self) -> int:
        return self.config.preprocess.image_size

    def __getitem__(self, plan: BatchPlan) -> dict[str, Tensor]:
        size = len(plan.samples)
        self.reader.prefetch(plan.samples)
        pictures = _shared_with_training((size, self._side, self._side, 3), torch.uint8)
        tokens = _shared_with_training((size, 2, CONTEXT_LENGTH), torch.int64)
        concepts, topics, found, replaced = [], [], [], []
        for row, (position, sample) in enumerate(zip(plan.positions.tolist(), plan.samples.tolist(), strict=True)):
            index, pixels, record, rng = self._first_that_decodes(position, sample)
            pictures.numpy()[row] = pixels
            caption = record.captions[int(rng.integers(len(record.captions)))]
            template = self.config.templates[int(rng.integers(len(self.config.templates)))]
            tokens.numpy()[row] = _tokens(template.replace("{}", caption)), _tokens(record.captions[0])
            concepts.append(_stable_id(record.concept or f"uid:{record.uid}"))
            topics.append(_stable_id(record.group or ""))
            found.append(index)
            replaced.append(index != sample)
        return {
            "images": pictures,
            "caption_tokens": tokens[:, 0],
            "name_tokens": tokens[:, 1],
            "concept_ids": torch.tensor(concepts),
            "topic_ids": torch.tensor(topics),
            "sample_index": torch.tensor(found),
            "replaced": torch.tensor(replaced),
        }

    def _first_that_decodes(self, position: int, sample: int) -> tuple[int, np.ndarray, SampleRecord, np.random.Generator]:
        """The sample of a position, or the one in its place: number, varied picture, record, generator for the rest."""
        for index in self._candidates(position, sample):
            picture, record = self.reader[index]
            if index != sample and not self._has_weight(record):
                continue
            rng = np.random.default_rng((self.config.seed, _VARIATION, position))
            try:
                return index, augmented(picture, self.config.augment, side=self._side, rng=rng), record, rng
            except ImageError as error:
                logger.warning("sample %d (uid %s) is replaced: %s", index, record.uid, error)
        raise CorruptArtefactError(
            f"sample {sample} in {self.reader.folder_uri} and the next {MAX_REPLACEMENTS} in its place do not decode"
        )

    def _candidates(self, position: int, sample: int) -> Iterator[int]:
        """The sample itself, then those that would take its place, a pure function of (seed, position)."""
        yield sample
        rng = np.random.default_rng((self.config.seed, _REPLACEMENT, position))
        yield from rng.integers(len(self.reader), size=MAX_REPLACEMENTS).tolist()

    def _has_weight(self, record: SampleRecord) -> bool:
        weights = self.config.source_weights
        return not weights or (record.source or NO_SOURCE) in weights


def _shared_with_training(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An empty tensor; in a worker it lies in shared memory from the start, as those of torch's collation do: a copy less."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=dtype)
    storage = torch.UntypedStorage._new_shared(math.prod(shape) * dtype.itemsize, device="cpu")
    return torch.empty(0, dtype=dtype).set_(storage).view(shape)


@lru_cache(maxsize=1 << 15)  # 20 MB of the names and captions that come often
def _tokens(text: str) -> np.ndarray:
    """(77,) int64."""
    return Tokenizer().padded([text])[0].numpy()


@lru_cache(maxsize=1 << 15)
def _stable_id(text: str) -> int:
    """The same int64 in every process and run, unlike hash()."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big", signed=True)
