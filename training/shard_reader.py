"""Samples of a folder of shards by number, read at their offset, checked, never unpickled.

Local shards are read in place through a few open files.  Of remote ones, whole blocks of neighbouring samples are fetched by
range and kept in a bounded cache on disk; the order of samples uses up a block within a short time.
"""

import hashlib
import io
import os
import tarfile
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import numpy as np
import torch
from pydantic import ValidationError

from data_prep.manifest import SampleRecord, ShardManifest, read_manifest, verify_shards
from infra import images, storage
from infra.block_cache import Block, BlockCache, default_folder
from infra.errors import BadInputError, CorruptArtefactError
from training.order import block_bounds

TAR_BLOCK_BYTES = 512
MAX_OPEN_FILES = 64
"""Shards that a process keeps open: as many as a window of the order touches."""
FETCH_THREADS = 8
"""Blocks of a remote store fetched at once by a process."""
DEFAULT_CACHE_BYTES = 16 << 30


class ShardReader:
    """Samples by number, 0 to N - 1 in manifest order.  Sent to another process, it leaves manifest and open files behind."""

    def __init__(self, folder_uri: str, manifest: ShardManifest, *, cache_bytes: int = DEFAULT_CACHE_BYTES) -> None:
        self.folder_uri = folder_uri
        self.manifest = manifest
        self._cache_bytes = cache_bytes
        self._paths = [shard.path for shard in manifest.shards]
        self._versions = [shard.sha256 for shard in manifest.shards]
        self.shard_sizes = np.array([shard.samples for shard in manifest.shards], dtype=np.int64)
        self._first_sample = np.concatenate([[0], np.cumsum(self.shard_sizes)])
        # sample i of shard s lies between entries i + s and i + s + 1; a tensor, because loader workers share those, and every
        # worker with a copy of its own would hold 8 bytes for every sample there is
        bounds = [np.array([*shard.offsets, shard.bytes], dtype=np.int64) for shard in manifest.shards]
        self._bounds = torch.from_numpy(np.concatenate(bounds) if bounds else np.zeros(0, dtype=np.int64))

    @staticmethod
    def open(folder_uri: str) -> "ShardReader":
        """Without looking at the shards; `open_shards` verifies them first."""
        return ShardReader(folder_uri, read_manifest(folder_uri))

    def __len__(self) -> int:
        return int(self._first_sample[-1])

    def __getstate__(self) -> dict[str, object]:
        cached = ("manifest", "_files", "_cache", "_block_bounds", "_local_paths")
        return {name: value for name, value in vars(self).items() if name not in cached}

    def __getitem__(self, index: int) -> tuple[bytes, SampleRecord]:
        """The picture as stored, and its record.

        Raises:
            CorruptArtefactError: the bytes at the offset are not that sample; shard and place are named.
        """
        shard, place = self._locate(index)
        try:
            return self._sample(shard, place)
        except (tarfile.TarError, ValidationError, ValueError, OSError) as first:
            if self._cache is None:
                raise self._corrupt(shard, place, first) from first
            self._cache.forget(self._block(shard, place))  # the damage may be on this machine's disk only
        try:
            return self._sample(shard, place)
        except (tarfile.TarError, ValidationError, ValueError, OSError) as error:
            raise self._corrupt(shard, place, error) from error

    def prefetch(self, samples: np.ndarray) -> None:
        """Fetch the blocks of samples that are read next, several at once; does nothing for local shards.

        What fails here is left to the read, which names the sample.
        """
        if (cache := self._cache) is None:
            return
        blocks = {self._block(*self._locate(index)) for index in samples.tolist()}
        with ThreadPoolExecutor(FETCH_THREADS) as threads:
            for fetched in [threads.submit(cache.fetch, block) for block in blocks]:
                fetched.exception()

    def _locate(self, index: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._first_sample, index, side="right")) - 1
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return shard, index - int(self._first_sample[shard])

    def _sample(self, shard: int, place: int) -> tuple[bytes, SampleRecord]:
        start, end = self._byte_range(shard, place, place + 1)
        if self._cache is None:
            data = self._files.read(self._local_paths[shard], start, end)
        else:
            data = self._cache.read(self._block(shard, place), start, end)
        if len(data) < end - start:
            raise ValueError(f"the shard ends {end - start - len(data):,} bytes early")
        return parse_sample(data)

    def _byte_range(self, shard: int, first: int, last: int) -> tuple[int, int]:
        """Bytes of samples [first, last) of a shard."""
        base = int(self._first_sample[shard]) + shard
        return int(self._bounds[base + first]), int(self._bounds[base + last])

    def _block(self, shard: int, place: int) -> Block:
        first_sample = int(self._first_sample[shard])
        number = int(np.searchsorted(self._block_bounds, first_sample + place, side="right")) - 1
        first, last = (int(bound) - first_sample for bound in self._block_bounds[number : number + 2])
        uri = storage.join(self.folder_uri, self._paths[shard])
        return Block(uri, *self._byte_range(shard, first, last), self._versions[shard])

    @cached_property
    def _block_bounds(self) -> np.ndarray:
        return block_bounds(self.shard_sizes)

    @cached_property
    def _cache(self) -> BlockCache | None:
        return None if storage.is_local(self.folder_uri) else BlockCache(default_folder(), max_bytes=self._cache_bytes)

    @cached_property
    def _files(self) -> "OpenFiles":
        return OpenFiles(MAX_OPEN_FILES)

    @cached_property
    def _local_paths(self) -> list[str]:
        folder = storage.local_path(self.folder_uri)
        return [str(folder / path) for path in self._paths]

    def _corrupt(self, shard: int, place: int, error: Exception) -> CorruptArtefactError:
        return CorruptArtefactError(
            f"sample {place} of shard {self._paths[shard]} in {self.folder_uri} is damaged: {error}. "
            "Run the shard step again, or restore the shard"
        )


def open_shards(folder_uri: str, *, cache_bytes: int = DEFAULT_CACHE_BYTES) -> ShardReader:
    """Open shards after checking every one against the manifest.

    Raises:
        BadInputError, CorruptArtefactError: as `read_manifest` and `verify_shards`.
    """
    manifest = read_manifest(folder_uri)
    verify_shards(manifest, folder_uri)
    return ShardReader(folder_uri, manifest, cache_bytes=cache_bytes)


def samples_by_source(manifest: ShardManifest) -> dict[str, np.ndarray]:
    """Samples of each source, increasing, without opening a shard.

    Raises:
        BadInputError: the manifest was written without sources.
    """
    if any(shard.source_ids is None for shard in manifest.shards):
        raise BadInputError(
            "the manifest of these shards does not say which source each sample comes from; give `source` in the URL list and "
            "run the shard step again, or train without source_weights"
        )
    ids = np.concatenate([np.array(shard.source_ids, dtype=np.int64) for shard in manifest.shards])
    return {name: np.flatnonzero(ids == number) for number, name in enumerate(manifest.sources)}


class OpenFiles:
    """Reads ranges of local files; the least recently used file is closed when too many are open."""

    def __init__(self, max_open: int) -> None:
        self._max_open = max_open
        self._descriptors: OrderedDict[str, int] = OrderedDict()

    def read(self, path: str, start: int, end: int) -> bytes:
        """Bytes [start, end); fewer where the file ends early."""
        if path in self._descriptors:
            self._descriptors.move_to_end(path)
        else:
            self._descriptors[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            if len(self._descriptors) > self._max_open:
                os.close(self._descriptors.popitem(last=False)[1])
        return os.pread(self._descriptors[path], end - start, start)

    def __del__(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)


def parse_sample(data: bytes) -> tuple[bytes, SampleRecord]:
    """Picture and record from the tar members of one sample.

    Raises:
        tarfile.TarError, ValidationError, ValueError: it is not whole, or the picture is not the one that was stored.
    """
    picture, record = None, None
    for name, content in _members(data):
        suffix = name.rpartition(".")[2]
        if suffix == "json":
            record = SampleRecord.model_validate_json(content)
        elif suffix in images.SUFFIXES.values():
            picture = content
    if picture is None or record is None:
        raise ValueError("it holds no picture with a record")
    if hashlib.sha256(picture).hexdigest() != record.sha256:
        raise ValueError(f"the picture of {record.uid!r} is not the one that was stored")
    return picture, record


def _members(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the files in a piece of a tar.

    Plain headers are read here, which takes 2 microseconds instead of the 100 of `tarfile`; anything else is left to it.
    """
    start = 0
    while start + TAR_BLOCK_BYTES <= len(data) and data[start]:  # the archive ends with empty blocks
        header = data[start : start + TAR_BLOCK_BYTES]
        if header[156] not in b"0\0" or header[124] & 0x80 or header[345]:  # long names, huge sizes, links
            yield from _members_of_any_tar(data[start:])
            return
        size = int(header[124:136].rstrip(b"\0 ") or b"0", 8)
        start += TAR_BLOCK_BYTES
        if start + size > len(data):
            raise ValueError("a file in it goes beyond its end")
        yield header[:100].rstrip(b"\0").decode(), data[start : start + size]
        start += -(-size // TAR_BLOCK_BYTES) * TAR_BLOCK_BYTES


def _members_of_any_tar(data: bytes) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        for member in tar:
            if (file := tar.extractfile(member)) is not None:
                yield member.name, file.read()
