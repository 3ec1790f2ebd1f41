"""img2dataset's layout of a shard (tar, parquet), with the samples in order of their keys and no times.

The same pictures make the same bytes.  img2dataset hands over a picture when it has arrived, so the order of writing is that of
the network.  What is written is measured on the way, so that nobody has to read it back.
"""

import hashlib
import json
import tarfile
import tempfile
import zlib
from typing import IO, Any, NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from infra import images


class StoredPicture(NamedTuple):
    """A picture as it lies in a tar."""

    key: str
    format: images.ImageFormat
    width: int
    """Upright."""
    height: int
    bytes: int
    sha256: str


class TriedRow(NamedTuple):
    """What img2dataset says of a row."""

    row: int
    uid: str
    url: str
    status: str
    error_message: str | None
    picture: StoredPicture | None


class WrittenShard(NamedTuple):
    """A shard that was written to its end."""

    name: str
    """Of the tar in its folder."""
    bytes: int
    sha256: str
    """Of the tar."""
    rows: list[TriedRow]


class SortedShardWriter:
    """What img2dataset's Downloader writes with: to local scratch as pictures come, and in order to their place at the end.

    Args:
        max_pixels: more in the header of a picture is an error.
        written: gets the shard when it is whole.
    """

    def __init__(
        self,
        shard_id: int,
        output_folder: str,
        _save_caption: bool,
        num_digits: int,
        schema: pa.Schema,
        _encode_format: str,
        *,
        max_pixels: int,
        written: list[WrittenShard],
    ) -> None:
        self._folder, self._name, self._schema = output_folder, f"{shard_id:0{num_digits}d}", schema
        self._max_pixels, self._written = max_pixels, written
        self._scratch = tempfile.TemporaryFile(prefix="hyperclip-shard-")  # noqa: SIM115
        self._metas: list[dict[str, Any]] = []
        self._rows: list[TriedRow] = []
        self._spans: list[tuple[str, int, int, int]] = []

    def write(self, image: bytes | None, key: str, caption: str | None, meta: dict[str, Any]) -> None:
        """One row.  img2dataset prints what is raised here and goes on, and the row is missed later: all or nothing is noted.

        Raises:
            ImageError: what would be stored is no picture of ours.
        """
        picture = None
        if image is not None:
            info = images.probe(image, max_pixels=self._max_pixels)  # what is stored, not what a header claimed
            picture = StoredPicture(key, *info, len(image), hashlib.sha256(image).hexdigest())
            files = {"jpg": image, "json": json.dumps(meta).encode(), "txt": (caption or "").encode()}
            sample = b"".join(_member(f"{key}.{suffix}", data) for suffix, data in files.items())
            start = self._scratch.tell()
            self._scratch.write(sample)
            self._spans.append((key, start, len(sample), zlib.crc32(sample)))
        self._metas.append(meta)
        self._rows.append(TriedRow(meta["row"], meta["uid"], meta["url"], meta["status"], meta["error_message"], picture))

    def close(self) -> None:
        digest, size = hashlib.sha256(), 0
        with self._scratch as source, self._target(".tar") as target:
            for key, start, length, checksum in sorted(self._spans):
                source.seek(start)
                sample = source.read(length)
                if zlib.crc32(sample) != checksum:
                    raise OSError(f"the scratch copy of sample {key} is damaged")
                digest.update(sample)
                target.write(sample)
                size += length
            end = bytes(2 * tarfile.BLOCKSIZE + -(size + 2 * tarfile.BLOCKSIZE) % tarfile.RECORDSIZE)
            digest.update(end)
            target.write(end)
        with self._target(".parquet") as target:
            self._metas.sort(key=lambda meta: str(meta["key"]))
            pq.write_table(pa.Table.from_pylist(self._metas, schema=self._schema), target)
        self._written.append(WrittenShard(f"{self._name}.tar", size + len(end), digest.hexdigest(), self._rows))

    def _target(self, suffix: str) -> IO[bytes]:
        filesystem, folder = fsspec.core.url_to_fs(self._folder)
        return filesystem.open(f"{folder}/{self._name}{suffix}", "wb")


def _member(name: str, data: bytes) -> bytes:
    """A plain file without owner and time in a tar: header, content, filling."""
    header = tarfile.TarInfo(name)
    header.size, header.mode = len(data), 0o444
    return header.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % tarfile.BLOCKSIZE)
