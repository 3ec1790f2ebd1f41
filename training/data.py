"""Batches for training: planned here, read and decoded in worker processes, counted and handed over here.

Shapes: B local batch, S side of the picture.
"""

from collections.abc import Iterator
from functools import partial
from itertools import count

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from infra.errors import BadInputError, DataLossError
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
        loader = DataLoader(
            TrainingSamples(self._reader, config),
            sampler=_Plans(
                self._order,
                first_batch=batch_number,
                contrastive_batch_size=config.contrastive_batch_size,
                rank=self._rank,
                world_size=self._world_size,
            ),
            batch_size=None,  # a plan is a whole batch
            num_workers=config.loader_workers,
            multiprocessing_context=loader_context() if config.loader_workers else None,
            prefetch_factor=BATCHES_AHEAD if config.loader_workers else None,
            pin_memory=config.workers.use_gpu,
            generator=torch.Generator(),  # making an iterator must not move the training's own
        )
        seen = replaced = 0
        for tensors in loaded(loader):
            seen += len(tensors["replaced"])
            replaced += int(tensors["replaced"].sum())
            if replaced > config.max_replaced_share * max(seen, JUDGED_SAMPLES):
                raise DataLossError(
                    f"{replaced:,} of {seen:,} samples since batch {batch_number:,} did not decode and were replaced, more "
                    f"than max_replaced_share={config.max_replaced_share:g} allows; the log names them. "
                    "Curate the data again, or raise max_replaced_share"
                )
            yield LocalBatch(**_on_device(tensors, config))


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


class _Plans(Sampler[BatchPlan]):
    """Batch after batch, what one rank loads."""

    def __init__(
        self, order: SampleOrder, *, first_batch: int, contrastive_batch_size: int, rank: int, world_size: int
    ) -> None:
        self._first = first_batch
        self._share = partial(
            rank_share, order, contrastive_batch_size=contrastive_batch_size, rank=rank, world_size=world_size
        )

    def __iter__(self) -> Iterator[BatchPlan]:
        return map(self._share, count(self._first))


def _on_device(tensors: dict[str, Tensor], config: TrainConfig) -> dict[str, Tensor]:
    """Pictures travel as bytes, a quarter of their floats, and are normalized where the step wants them."""
    pictures = tensors["images"]
    if config.workers.use_gpu:
        pictures = pictures.to("cuda", non_blocking=True)
    return {**tensors, "images": normalized(pictures, config.preprocess)}


def normalized(pictures: Tensor, config: PreprocessConfig) -> Tensor:
    """(B, S, S, 3) uint8 -> (B, 3, S, S) float32, channels last in memory; bit-equal to `preprocess.normalize`."""
    batch, height, width, channels = pictures.shape
    # whole rows at once: arithmetic along an axis of 3 does not vectorize
    mean, std = (torch.tensor(values, device=pictures.device).repeat(width) for values in (config.mean, config.std))
    rows = pictures.reshape(batch, height, width * channels).float().div_(255).sub_(mean).div_(std)
    return rows.view(batch, height, width, channels).permute(0, 3, 1, 2)
