"""Batches for training: planned here, read and decoded in worker processes, counted and handed over here.

Shapes: B local batch, S side of the picture.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from itertools import count, cycle

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from infra.errors import BadInputError, DataLossError
from training.batch_slots import BatchSlots
from training.config import TrainConfig
from training.loader_workers import loaded, loader_context
from training.objective import LocalBatch
from training.order import BatchPlan, EpochOrder, SampleOrder, WeightedOrder, rank_share
from training.preprocess import PreprocessConfig
from training.samples import TrainingSamples
from training.shard_reader import ShardReader, samples_by_source

BATCHES_AHEAD = 4
"""Per worker."""
JUDGED_SAMPLES = 1000
"""A share of replaced samples is taken of at least so many: early on, a few say nothing."""


class TrainingBatches:
    """The local share of contrastive batch after contrastive batch, from any batch on."""

    def __init__(self, reader: ShardReader, config: TrainConfig, *, rank: int, world_size: int) -> None:
        """Raises:
        BadInputError: fewer samples than a batch, or source_weights that do not fit the shards.
        """
        if len(reader) < config.contrastive_batch_size:
            raise BadInputError(
                f"{reader.folder_uri} holds {len(reader):,} samples, fewer than "
                f"contrastive_batch_size={config.contrastive_batch_size:,}; lower it or give more samples"
            )
        self._reader, self._config, self._rank, self._world_size = reader, config, rank, world_size
        self._order = sample_order(reader, config)

    def starting_at(self, batch_number: int) -> Iterator[LocalBatch]:
        """Endless; costs the same wherever it starts.

        Raises:
            CorruptArtefactError: while iterating: a sample is not the one that was stored; shard and place are named.
            StoppedError: while iterating: a loader worker was killed.
            DataLossError: while iterating: more samples were replaced than `max_replaced_share` allows.
        """
        config = self._config
        slots = self._slots()
        loader = DataLoader(
            TrainingSamples(self._reader, config, slots),
            sampler=_Requests(
                self._order,
                first_batch=batch_number,
                contrastive_batch_size=config.contrastive_batch_size,
                rank=self._rank,
                world_size=self._world_size,
                num_slots=len(slots),
            ),
            batch_size=None,  # a request is a whole batch
            num_workers=config.loader_workers,
            multiprocessing_context=loader_context() if config.loader_workers else None,
            prefetch_factor=BATCHES_AHEAD if config.loader_workers else None,
            generator=torch.Generator(),  # making an iterator must not move the training's own
        )
        seen = replaced = 0
        with slots.page_locked() if config.workers.use_gpu else nullcontext():
            for slot in loaded(loader):
                batch = slots[slot]
                seen += len(batch["replaced"])
                replaced += int(batch["replaced"].sum())
                if replaced > config.max_replaced_share * max(seen, JUDGED_SAMPLES):
                    raise DataLossError(
                        f"{replaced:,} of {seen:,} samples since batch {batch_number:,} did not decode and were replaced, more "
                        f"than max_replaced_share={config.max_replaced_share:g} allows; the log names them. "
                        "Curate the data again, or raise max_replaced_share"
                    )
                yield LocalBatch(**_taken(batch, config))

    def _slots(self) -> BatchSlots:
        """As many as can be in use at once: the batch that is taken here, and those that workers were asked for.

        The loader sends the request for batch k + workers x BATCHES_AHEAD before it hands over batch k, and no later one before
        it is asked for batch k + 1; by then batch k has been copied.  With one slot more than requests under way, none is
        written while it is read.
        """
        config = self._config
        slots = BatchSlots(
            config.loader_workers * BATCHES_AHEAD + 1,
            batch_size=config.contrastive_batch_size // self._world_size,
            side=config.preprocess.image_size,
        )
        if config.loader_workers:
            slots.share()
        return slots


def sample_order(reader: ShardReader, config: TrainConfig) -> SampleOrder:
    """Every sample once an epoch, or by `source_weights` where those are given.

    Raises:
        BadInputError: a source that the shards do not hold, or shards that know no sources.
    """
    if not config.source_weights:
        return EpochOrder(reader.shard_sizes, seed=config.seed)
    known = samples_by_source(reader.manifest)
    if unknown := sorted(set(config.source_weights) - set(known)):
        raise BadInputError(
            f"source_weights name {', '.join(map(repr, unknown))}, which {reader.folder_uri} does not hold; "
            f"its sources are {', '.join(map(repr, sorted(known)))}"
        )
    names = sorted(config.source_weights)
    weights = [config.source_weights[name] for name in names]
    return WeightedOrder([known[name] for name in names], reader.shard_sizes, weights=weights, seed=config.seed)


class _Requests(Sampler[tuple[int, BatchPlan]]):
    """Batch after batch, what one rank loads and the slot to put it in; the slots take turns."""

    def __init__(
        self,
        order: SampleOrder,
        *,
        first_batch: int,
        contrastive_batch_size: int,
        rank: int,
        world_size: int,
        num_slots: int,
    ) -> None:
        self._first, self._num_slots = first_batch, num_slots
        self._share = partial(
            rank_share, order, contrastive_batch_size=contrastive_batch_size, rank=rank, world_size=world_size
        )

    def __iter__(self) -> Iterator[tuple[int, BatchPlan]]:
        return zip(cycle(range(self._num_slots)), map(self._share, count(self._first)), strict=False)


def _taken(batch: dict[str, Tensor], config: TrainConfig) -> dict[str, Tensor]:
    """A batch out of its slot, which is free when this returns.

    Pictures travel as bytes, a quarter of their floats, and are normalized where the step wants them.
    """
    if config.workers.use_gpu:
        batch = _copied_to_gpu(batch)
    else:
        batch = {name: tensor if name == "images" else tensor.clone() for name, tensor in batch.items()}
    return {**batch, "images": normalized(batch["images"], config.preprocess)}  # makes new ones


def _copied_to_gpu(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """On a stream of its own: only the copy is waited for, not the training step that the GPU is at."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        copies = {name: tensor.to("cuda", non_blocking=True) for name, tensor in batch.items()}
    stream.synchronize()
    for copy in copies.values():
        copy.record_stream(torch.cuda.current_stream())  # its memory is not given to the next copy while the step reads it
    return copies


def normalized(pictures: Tensor, config: PreprocessConfig) -> Tensor:
    """(B, S, S, 3) uint8 -> (B, 3, S, S) float32, channels last in memory; bit-equal to `preprocess.normalize`."""
    batch, height, width, channels = pictures.shape
    # whole rows at once: arithmetic along an axis of 3 does not vectorize
    mean, std = (torch.tensor(values, device=pictures.device).repeat(width) for values in (config.mean, config.std))
    rows = pictures.reshape(batch, height, width * channels).float().div_(255).sub_(mean).div_(std)
    return rows.view(batch, height, width, channels).permute(0, 3, 1, 2)
