"""Loading training shards: samples by position, read at their offset, decoded and varied in worker processes.

Only JSON and pictures are decoded; nothing in a shard is unpickled.
"""

import hashlib
import io
import tarfile
from collections.abc import Iterator
from functools import cached_property

import numpy as np
import torch
from pydantic import ValidationError
from torch.utils.data import DataLoader, Dataset

from data_prep.manifest import SampleRecord, ShardManifest, read_manifest, verify_shards
from infra import images, storage
from infra.errors import BadInputError, CorruptArtefactError
from training.augment import augment
from training.config import TrainConfig
from training.objective import LocalBatch
from training.order import rank_positions, sample_at
from training.preprocess import normalize
from training.tokenizer import Tokenizer


class ShardReader:
    """Samples of a folder of shards by number, 0 to N - 1 in manifest order."""

    def __init__(self, folder_uri: str, manifest: ShardManifest) -> None:
        self.folder_uri = folder_uri
        self.manifest = manifest
        self._first_sample = np.cumsum([0, *(shard.samples for shard in manifest.shards)])

    @staticmethod
    def open(folder_uri: str) -> "ShardReader":
        """Without looking at the shards; `open_shards` verifies them first."""
        return ShardReader(folder_uri, read_manifest(folder_uri))

    def __len__(self) -> int:
        return self.manifest.num_samples

    def __getitem__(self, index: int) -> tuple[bytes, SampleRecord]:
        """The picture as stored, and its record.

        Raises:
            CorruptArtefactError: the bytes at the offset are not that sample; shard and place are named.
        """
        shard_number = int(np.searchsorted(self._first_sample, index, side="right")) - 1
        shard = self.manifest.shards[shard_number]
        place = index - int(self._first_sample[shard_number])
        end = shard.offsets[place + 1] if place + 1 < shard.samples else shard.bytes
        data = storage.read_range(storage.join(self.folder_uri, shard.path), shard.offsets[place], end)
        try:
            return _parse_sample(data)
        except (tarfile.TarError, ValidationError, ValueError) as error:
            raise CorruptArtefactError(
                f"sample {place} of shard {shard.path} in {self.folder_uri} is damaged: {error}"
            ) from error


def open_shards(folder_uri: str) -> ShardReader:
    """Open shards after checking every one against the manifest.

    Raises:
        BadInputError, CorruptArtefactError: as `read_manifest` and `verify_shards`.
    """
    reader = ShardReader.open(folder_uri)
    verify_shards(reader.manifest, folder_uri)
    return reader


class TrainingSamples(Dataset[dict[str, torch.Tensor]]):
    """Positions of the endless stream -> tensors.  Everything random is drawn from (seed, position)."""

    def __init__(self, reader: ShardReader, config: TrainConfig) -> None:
        self._reader = reader
        self._config = config

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return Tokenizer()  # made in the worker process, on first use

    def __getitem__(self, position: int) -> dict[str, torch.Tensor]:
        config = self._config
        index = sample_at(position, len(self._reader), seed=config.seed)
        picture, record = self._reader[index]
        rng = np.random.default_rng((config.seed, 3, position))
        pixels = augment(images.decode(picture), config.augment, side=config.preprocess.image_size, rng=rng)
        caption = record.captions[int(rng.integers(len(record.captions)))]
        template = config.templates[int(rng.integers(len(config.templates)))]
        tokens = self._tokenizer.padded([template.replace("{}", caption), record.captions[0]])
        return {
            "images": torch.from_numpy(normalize(pixels, config.preprocess)),
            "caption_tokens": tokens[0],
            "name_tokens": tokens[1],
            "concept_ids": torch.tensor(_stable_id(record.concept or f"uid:{record.uid}")),
            "topic_ids": torch.tensor(_stable_id(record.group or "")),
            "sample_index": torch.tensor(index),
        }


class TrainingBatches:
    """The local share of contrastive batch after contrastive batch, from any batch on."""

    def __init__(self, reader: ShardReader, config: TrainConfig, *, rank: int, world_size: int) -> None:
        if len(reader) < config.contrastive_batch_size:
            raise BadInputError(
                f"{reader.folder_uri} holds {len(reader):,} samples, fewer than "
                f"contrastive_batch_size={config.contrastive_batch_size:,}; lower it or give more samples"
            )
        self._samples = TrainingSamples(reader, config)
        self._config, self._rank, self._world_size = config, rank, world_size

    def starting_at(self, batch_number: int) -> Iterator[LocalBatch]:
        """Endless; costs the same wherever it starts."""
        workers = self._config.loader_workers
        loader = DataLoader(
            self._samples,
            batch_sampler=_PositionSampler(batch_number, self._config.contrastive_batch_size, self._rank, self._world_size),
            num_workers=workers,
            # a fork of a process that runs collective threads can hang
            multiprocessing_context="spawn" if workers else None,
            prefetch_factor=4 if workers else None,
            pin_memory=self._config.workers.use_gpu,
        )
        for tensors in loader:
            yield LocalBatch(**tensors)


class _PositionSampler:
    """Batch after batch, the positions of one rank."""

    def __init__(self, first_batch: int, contrastive_batch_size: int, rank: int, world_size: int) -> None:
        self._first, self._size, self._rank, self._world_size = first_batch, contrastive_batch_size, rank, world_size

    def __iter__(self) -> Iterator[list[int]]:
        batch_number = self._first
        while True:
            yield list(rank_positions(batch_number, self._size, rank=self._rank, world_size=self._world_size))
            batch_number += 1


def _parse_sample(data: bytes) -> tuple[bytes, SampleRecord]:
    picture, record = None, None
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file is None:
                continue
            suffix = member.name.rpartition(".")[2]
            if suffix == "json":
                record = SampleRecord.model_validate_json(file.read())
            elif suffix in images.SUFFIXES.values():
                picture = file.read()
    if picture is None or record is None:
        raise ValueError("it holds no picture with a record")
    if hashlib.sha256(picture).hexdigest() != record.sha256:
        raise ValueError(f"the picture of {record.uid!r} is not the one that was stored")
    return picture, record


def _stable_id(text: str) -> int:
    """The same int64 in every process and run, unlike hash()."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big", signed=True)
