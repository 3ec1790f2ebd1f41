"""Where artefacts live: a folder, or any object store that fsspec knows, behind one small set of calls.

A URI is `s3://bucket/key`, `file:///folder`, or a plain path.  Artefacts are immutable and their manifest is written last,
so readers need no locks: `write_atomic` either leaves the whole object or nothing.
"""

import errno
import hashlib
import os
import posixpath
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import fsspec
from fsspec.implementations.local import LocalFileSystem
from tenacity import retry, retry_if_exception_type, stop_after_attempt

from infra.config import content_hash
from infra.errors import BadInputError

REMOVE_ATTEMPTS = 100
"""Each that fails means that others have removed, or added, a part meanwhile."""
WRITE_ATTEMPTS = 100
"""Each that fails means that others have removed the folder."""
READ_BLOCK_BYTES = 1 << 20
RANGES_AT_ONCE = 32
"""Of an object store, by one process."""


def join(uri: str, *parts: str) -> str:
    """Join a URI or path with relative parts."""
    return posixpath.join(uri, *parts)


def is_local(uri: str) -> bool:
    return fsspec.utils.get_protocol(uri) in ("file", "local")  # without opening a store that may need credentials


def local_path(uri: str) -> Path:
    """The folder or file behind a local URI.

    Raises:
        BadInputError: the URI names an object store.
    """
    filesystem, path = _resolve(uri)
    if not isinstance(filesystem, LocalFileSystem):
        raise BadInputError(f"{uri} is not on this machine's file system; this operation needs a local path")
    return Path(path)


def exists(uri: str) -> bool:
    filesystem, path = _resolve(uri)
    return bool(filesystem.exists(path))


def is_folder(uri: str) -> bool:
    """Whether it is a folder, or a prefix that objects lie under."""
    filesystem, path = _resolve(uri)
    return bool(filesystem.isdir(path))


def size(uri: str) -> int:
    filesystem, path = _resolve(uri)
    return int(filesystem.size(path))


def open_read(uri: str) -> IO[bytes]:
    """A seekable binary file; remote ones are fetched by ranges.

    Raises:
        BadInputError: nothing is there.
    """
    filesystem, path = _resolve(uri)
    try:
        return filesystem.open(path, "rb")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise BadInputError(f"{uri} does not exist or is not a file") from error


def read_bytes(uri: str) -> bytes:
    with open_read(uri) as file:
        return file.read()


def read_range(uri: str, start: int, end: int) -> bytes:
    """Bytes [start, end) of an object."""
    filesystem, path = _resolve(uri)
    return bytes(filesystem.cat_file(path, start=start, end=end))


def read_ranges(ranges: Sequence[tuple[str, int, int]]) -> list[bytes | Exception]:
    """Bytes [start, end) of each (uri, start, end), or what went wrong with it: of an object store many at once.

    All must be of one store.
    """
    if not ranges:
        return []
    filesystem, _ = _resolve(ranges[0][0])
    paths = [_resolve(uri)[1] for uri, _, _ in ranges]
    starts, ends = [start for _, start, _ in ranges], [end for _, _, end in ranges]
    # an object store's driver asks for up to batch_size of them at a time; a folder is read one after the other
    at_once = {"batch_size": RANGES_AT_ONCE} if filesystem.async_impl else {}
    return list(filesystem.cat_ranges(paths, starts, ends, on_error="return", **at_once))


def write_atomic(uri: str, data: bytes | str) -> None:
    """Write one object whole or not at all; durable when the call returns."""
    payload = data.encode() if isinstance(data, str) else data
    if is_local(uri):
        _write_local(uri, payload, durable=True)
        return
    filesystem, path = _resolve(uri)
    filesystem.pipe_file(path, payload)  # object stores publish an object only when its upload is complete


def write_whole(uri: str, data: bytes) -> None:
    """Like `write_atomic` without waiting for the disk, for what is checked when it is read and can be made again.

    After a power cut it may be there and damaged; a process that is killed leaves the whole object or nothing.
    """
    if not is_local(uri):
        write_atomic(uri, data)
        return
    _write_local(uri, data, durable=False)


# `mkdir` calls a folder that goes while it looks at it one that exists
@retry(
    retry=retry_if_exception_type((FileNotFoundError, FileExistsError)),
    stop=stop_after_attempt(WRITE_ATTEMPTS),
    reraise=True,
)
def _write_local(uri: str, data: bytes, *, durable: bool) -> None:
    """Again where others have removed the folder meanwhile, as a deletion may that meets a write."""
    with staged_file(uri, durable=durable) as temporary:
        temporary.write_bytes(data)


@contextmanager
def staged_file(uri: str, *, durable: bool = True) -> Iterator[Path]:
    """A local file to write, of any size; on leaving it becomes the object, whole, or nothing on an error.

    Args:
        durable: whether to wait for the disk, so that a power cut leaves it whole too.
    """
    filesystem, path = _resolve(uri)
    if not isinstance(filesystem, LocalFileSystem):
        with tempfile.TemporaryDirectory(prefix="hyperclip-") as folder:
            temporary = Path(folder) / posixpath.basename(path)
            yield temporary
            filesystem.put_file(str(temporary), path)
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        if durable:
            sync_file(temporary)
        temporary.replace(target)
        if durable:
            sync_file(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def remove_staged(uri: str) -> None:
    """Remove what killed writers of staged files left anywhere in a folder; an object store holds nothing of the kind."""
    if is_local(uri):
        for path in list(local_path(uri).rglob(f".*.{'?' * 8}.tmp")):
            path.unlink(missing_ok=True)


def sync_file(path: Path) -> None:
    """Make a file's contents, or a rename in a folder, survive a power cut: a name is the folder's data, not the file's."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def list_files(uri: str, *, suffix: str = "") -> list[str]:
    """URIs of the files directly in a folder, sorted; an absent folder is empty."""
    filesystem, path = _resolve(uri)
    if not filesystem.isdir(path):
        return []
    names = [posixpath.basename(entry["name"]) for entry in filesystem.ls(path, detail=True) if entry["type"] == "file"]
    return [join(uri, name) for name in sorted(names) if name.endswith(suffix) and not name.startswith(".")]


class Listed(NamedTuple):
    """What a store says of an object without opening it."""

    size: int
    version: str | None
    """Changes when the object is written again (ETag, generation or time of change); none where the store has no such thing."""


def list_details(uri: str) -> dict[str, Listed]:
    """The files directly in a folder by name, from one listing; an absent folder is empty."""
    filesystem, path = _resolve(uri)
    if not filesystem.isdir(path):
        return {}
    return {
        posixpath.basename(entry["name"]): Listed(int(entry["size"]), _version(entry))
        for entry in filesystem.ls(path, detail=True)
        if entry["type"] == "file"
    }


def _version(entry: dict[str, Any]) -> str | None:
    found = [entry[name] for name in ("ETag", "etag", "generation", "mtime", "LastModified", "created") if entry.get(name)]
    return str(found[0]) if found else None


def make_folder(uri: str) -> None:
    filesystem, path = _resolve(uri)
    filesystem.makedirs(path, exist_ok=True)


def remove(uri: str) -> None:
    """Remove a file or a folder with all it holds; an absent one is no error, nor one that others remove or fill meanwhile."""
    filesystem, path = _resolve(uri)
    for attempt in range(REMOVE_ATTEMPTS):
        if not filesystem.exists(path):
            return
        try:
            filesystem.rm(path, recursive=True)
            return
        except OSError as error:  # somebody else was faster with a part of it, or has put something into a folder
            if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EISDIR) or attempt + 1 == REMOVE_ATTEMPTS:
                raise


def sha256(uri: str) -> str:
    """Hex SHA-256 of an object, read in blocks."""
    digest = hashlib.sha256()
    with open_read(uri) as file:
        while block := file.read(READ_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _resolve(uri: str) -> tuple[Any, str]:
    try:
        # without a cache of listings: what another process wrote since would not be seen, not even by `exists`
        filesystem, path = fsspec.core.url_to_fs(uri, use_listings_cache=False)
    except (ValueError, ImportError) as error:
        raise BadInputError(f"no storage for {uri!r}: {error}") from error
    return filesystem, path


def list_folders(uri: str) -> list[str]:
    """URIs of the folders directly in a folder, sorted; an absent folder is empty."""
    filesystem, path = _resolve(uri)
    if not filesystem.isdir(path):
        return []
    names = [posixpath.basename(e["name"].rstrip("/")) for e in filesystem.ls(path, detail=True) if e["type"] == "directory"]
    return [join(uri, name) for name in sorted(names)]


@contextmanager
def localized(uri: str) -> Iterator[Path]:
    """The files of a folder as a local one: itself where it is local, else a copy that is gone afterwards."""
    if is_local(uri):
        yield local_path(uri)
        return
    with tempfile.TemporaryDirectory(prefix="hyperclip-") as temporary:
        filesystem, _ = _resolve(uri)
        for file_uri in list_files(uri):
            filesystem.get_file(_resolve(file_uri)[1], str(Path(temporary) / posixpath.basename(file_uri)))
        yield Path(temporary)


def fingerprint(uri: str) -> str:
    """SHA-256 of an input file, which tells one version of it from another.

    Raises:
        BadInputError: nothing is there.
    """
    if not exists(uri):
        raise BadInputError(f"{uri} does not exist")
    return sha256(uri)


def version_tag(uri: str) -> str | None:
    """What a store says of an object, or of the files of a folder, without their content, that changes when they do.

    None when the store cannot be asked from here, or says nothing of the kind.
    """
    try:
        if files := list_details(uri):
            return content_hash({name: list(found) for name, found in files.items()})
        filesystem, path = _resolve(uri)
        return _version(filesystem.info(path))
    except Exception:  # no driver, no network, no credentials: each store has errors of its own
        return None
