"""img2dataset's writer of tars, with the samples in order of their keys and no times: the same pictures make the same bytes.

img2dataset writes a picture when it has arrived, so the order within a tar is that of the network.
"""

import tempfile
from pathlib import Path
from typing import IO, Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from img2dataset.writer import WebDatasetSampleWriter

_COPY_BYTES = 1 << 20
_BLOCK, _RECORD = 512, 10240  # of the tar format: its end is two empty blocks, filled up to a record


class SortedSampleWriter(WebDatasetSampleWriter):
    """Writes to local scratch as the pictures come, and in order to where they belong when the shard is closed."""

    def __init__(
        self, shard_id: int, output_folder: str, save_caption: bool, oom_shard_count: int, schema: pa.Schema, encode_format: str
    ) -> None:
        self._folder, self._name = output_folder, f"{shard_id:0{oom_shard_count}d}"
        self._scratch = tempfile.TemporaryDirectory(prefix="hyperclip-shard-")
        super().__init__(shard_id, self._scratch.name, save_caption, oom_shard_count, schema, encode_format)
        self.tarwriter.mtime = 0
        self._spans: list[tuple[str, int, int]] = []

    def write(self, img_str: bytes | None, key: str, caption: str | None, meta: dict[str, Any]) -> None:
        start = self.tarwriter.tarstream.offset
        super().write(img_str, key, caption, meta)
        if img_str is not None:
            self._spans.append((key, start, self.tarwriter.tarstream.offset))

    def close(self) -> None:
        super().close()
        scratch = Path(self._scratch.name)
        with (scratch / f"{self._name}.tar").open("rb") as source, self._target(".tar") as target:
            size = 0
            for _, start, end in sorted(self._spans):
                source.seek(start)
                _copy(source, target, end - start)
                size += end - start
            target.write(bytes(2 * _BLOCK + -(size + 2 * _BLOCK) % _RECORD))
        rows = pq.read_table(scratch / f"{self._name}.parquet").sort_by("key")
        with self._target(".parquet") as target:
            pq.write_table(rows, target)
        self._scratch.cleanup()

    def _target(self, suffix: str) -> IO[bytes]:
        filesystem, folder = fsspec.core.url_to_fs(self._folder)
        return filesystem.open(f"{folder}/{self._name}{suffix}", "wb")


def _copy(source: IO[bytes], target: IO[bytes], length: int) -> None:
    while length:
        block = source.read(min(length, _COPY_BYTES))
        if not block:
            raise OSError("the scratch copy of a shard ends early")
        target.write(block)
        length -= len(block)
