"""From positions of the stream to tensors: what a loader worker does.

A picture whose bytes are those that were stored but that does not decode is replaced by another sample, drawn from
(seed, position), so that it is the same whatever the ranks and workers.  Bytes that are not those that were stored stop the
run.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset

from data_prep.manifest import NO_SOURCE, SampleRecord
from infra.errors import CorruptArtefactError
from infra.images import ImageError
from training.augment import augmented
from training.batch_slots import BatchSlots
from training.config import TrainConfig
from training.order import BatchPlan
from training.shard_reader import ShardReader
from training.tokenizer import Tokenizer
from training.topics import stable_id, topic_id

logger = logging.getLogger(__name__)

MAX_REPLACEMENTS = 1000
"""Samples tried in place of one that does not decode; when all fail, it is not the picture that is wrong."""

SAMPLES_TOGETHER = 64
"""Whose stored pictures a worker holds at a time."""

# what a random generator is for, beside the seed: no two uses share numbers
_VARIATION, _REPLACEMENT = 3, 5


@dataclass(frozen=True)
class TrainingSamples(Dataset[int]):
    """Fills a slot with the batch of a plan, and gives the slot's number back."""

    reader: ShardReader
    config: TrainConfig
    slots: BatchSlots

    def __getitem__(self, request: tuple[int, BatchPlan]) -> int:
        slot, plan = request
        self.reader.prefetch(plan.samples)
        batch = {name: tensor.numpy() for name, tensor in self.slots[slot].items()}
        for first in range(0, len(plan.samples), SAMPLES_TOGETHER):
            rows = slice(first, first + SAMPLES_TOGETHER)
            part = BatchPlan(plan.positions[rows], plan.samples[rows])
            self._fill({name: array[rows] for name, array in batch.items()}, part)
        return slot

    def _fill(self, batch: dict[str, np.ndarray], plan: BatchPlan) -> None:
        """Work of one kind for all samples, then of the next: code that the processor has at hand takes half the time."""
        positions, wanted = plan.positions.tolist(), plan.samples.tolist()
        stored = [self.reader[sample] for sample in wanted]
        generators = [self._generator(position) for position in positions]
        first_tries = map(_Candidate, wanted, stored, generators)
        used = [
            self._first_that_decodes(candidate, position, out=out)
            for candidate, position, out in zip(first_tries, positions, batch["images"], strict=True)
        ]
        records = [candidate.stored[1] for candidate in used]
        captions = [self._caption(candidate) for candidate in used]
        tokens = Tokenizer().padded([*captions, *(record.captions[0] for record in records)]).numpy()
        batch["caption_tokens"][:], batch["name_tokens"][:] = np.split(tokens, 2)
        batch["concept_ids"][:] = [stable_id(record.concept or f"uid:{record.uid}") for record in records]
        batch["topic_ids"][:] = [topic_id(record.group) for record in records]
        batch["sample_index"][:] = [candidate.sample for candidate in used]
        batch["replaced"][:] = batch["sample_index"] != plan.samples

    def _first_that_decodes(self, first: "_Candidate", position: int, *, out: np.ndarray) -> "_Candidate":
        """The sample of a position, or the one in its place; its varied picture is in `out`."""
        for candidate in self._candidates(first, position):
            picture, record = candidate.stored
            try:
                augmented(picture, self.config.augment, out=out, rng=candidate.rng)
                return candidate
            except ImageError as error:
                logger.warning("sample %d (uid %s) is replaced: %s", candidate.sample, record.uid, error)
        raise CorruptArtefactError(
            f"sample {first.sample} in {self.reader.folder_uri} and the next {MAX_REPLACEMENTS} in its place do not decode"
        )

    def _candidates(self, first: "_Candidate", position: int) -> Iterator["_Candidate"]:
        """The sample itself, then those that would take its place, a pure function of (seed, position)."""
        yield first
        rng = np.random.default_rng((self.config.seed, _REPLACEMENT, position))
        for index in rng.integers(len(self.reader), size=MAX_REPLACEMENTS).tolist():
            stored = self.reader[index]
            if self._has_weight(stored[1]):
                yield _Candidate(index, stored, self._generator(position))

    def _generator(self, position: int) -> np.random.Generator:
        return np.random.default_rng((self.config.seed, _VARIATION, position))

    def _caption(self, candidate: "_Candidate") -> str:
        """One of the sample's, in one of the templates."""
        captions, templates, rng = candidate.stored[1].captions, self.config.templates, candidate.rng
        caption = captions[int(rng.integers(len(captions)))]
        return templates[int(rng.integers(len(templates)))].replace("{}", caption)

    def _has_weight(self, record: SampleRecord) -> bool:
        weights = self.config.source_weights
        return not weights or (record.source or NO_SOURCE) in weights


class _Candidate(NamedTuple):
    sample: int
    stored: tuple[bytes, SampleRecord]
    rng: np.random.Generator
    """For everything that is random about it: the picture first, then the caption."""
