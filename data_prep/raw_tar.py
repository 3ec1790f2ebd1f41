"""Reading a raw tar that nobody vouches for: front to back, one sample at a time, nothing extracted, nothing believed.

Only regular members are read, with the name headers that writers put before them; links, devices, folders and sparse members,
whose size is whatever they claim, are refused.  No read is larger than what is left of the file.
"""

import json
import tarfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import IO, Any, NamedTuple

from infra import storage
from infra.errors import CorruptArtefactError

IMAGE_SUFFIXES = ("jpg", "png", "webp")
"""Of the picture in a raw tar.  img2dataset names one suffix for all, so it says nothing about the format."""
MAX_RECORD_BYTES = 16 << 20
MAX_HEADER_BYTES = 1 << 20
"""Of a header that only carries a name or a time."""
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE)
_HEADERS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME)


class RawSample(NamedTuple):
    key: str
    image: bytes
    image_offset: int
    """Byte of the picture in the tar."""
    record: dict[str, Any]
    """The sample's JSON: uid, row, caption, captions, concept, group, source, licence, ..."""


def scan_tar(uri: str) -> Iterator[RawSample]:
    """Read a raw tar front to back, one sample at a time.

    Raises:
        CorruptArtefactError: not a tar, it ends early, it holds what a raw tar does not, or a sample lacks picture or JSON.
    """
    key: str | None = None
    image: tuple[bytes, int] | None = None
    record: dict[str, Any] | None = None
    seen: set[str] = set()

    def whole() -> RawSample:
        if key is None or image is None or record is None:
            raise CorruptArtefactError(f"{uri}: sample {key!r} lacks its picture or its JSON")
        return RawSample(key, image[0], image[1], record)

    try:
        with storage.open_read(uri) as file:
            bounded = _Bounded(file, storage.size(uri))
            with tarfile.open(fileobj=bounded, mode="r:", tarinfo=_PlainMember) as tar:  # type: ignore[call-overload]
                for member in tar:
                    stem, suffix = _split_name(member.name)
                    if stem != key:
                        if key is not None:
                            yield whole()
                        if stem in seen:
                            raise CorruptArtefactError(f"{uri} holds sample {stem!r} twice")
                        key, image, record = stem, None, None
                        seen.add(stem)
                    if suffix in IMAGE_SUFFIXES:
                        if image is not None:
                            raise CorruptArtefactError(f"{uri}: sample {stem!r} has two pictures")
                        image = (_read(tar, member, bounded.size), member.offset_data)
                    elif suffix == "json":
                        if record is not None or member.size > MAX_RECORD_BYTES:
                            raise CorruptArtefactError(f"{uri}: the JSON of sample {stem!r} is there twice or too large")
                        record = json.loads(_read(tar, member, bounded.size))
                        if not isinstance(record, dict):
                            raise CorruptArtefactError(f"{uri}: the JSON of sample {stem!r} is no object")
    except (tarfile.TarError, EOFError, ValueError, IndexError, OverflowError) as error:
        raise CorruptArtefactError(f"{uri} is not a whole tar of samples: {error}") from error
    except RecursionError as error:
        raise CorruptArtefactError(f"{uri} nests headers or JSON too deeply") from error
    if key is not None:
        yield whole()


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo, size: int) -> bytes:
    if member.issparse() or member.offset_data + member.size > size:
        raise tarfile.ReadError(f"it ends within {member.name!r}")
    content = tar.extractfile(member)
    return content.read() if content else b""


def _split_name(name: str) -> tuple[str, str]:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or not name.isprintable():
        raise tarfile.ReadError(f"a member is called {name!r}")
    stem, _, suffix = name.rpartition(".")
    return stem, suffix


class _PlainMember(tarfile.TarInfo):
    """A member that is a plain file, with a size that can be; `tarfile` itself would follow any."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_PlainMember":
        member = super().frombuf(buf, encoding, errors)
        if member.type not in (*_FILES, *_HEADERS):
            raise tarfile.ReadError(f"member {member.name!r} is no plain file but of type {member.type!r}")
        if member.type in _HEADERS and member.size > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {member.size:,} bytes")
        member._require_size()
        return member

    def _apply_pax_info(self, pax_headers: Any, encoding: str, errors: str) -> None:
        super()._apply_pax_info(pax_headers, encoding, errors)  # type: ignore[misc]  # may set another size
        self._require_size()

    def _require_size(self) -> None:
        if self.size < 0:  # tarfile would go back and read the same member for ever
            raise tarfile.ReadError(f"member {self.name!r} has a size of {self.size}")


class _Bounded:
    """A file of which no more is asked for at once than there is: a header may claim any size."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self.size = file, size

    def read(self, count: int = -1) -> bytes:
        left = max(self.size - self._file.tell(), 0)
        return self._file.read(left if count < 0 else min(count, left))

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()
