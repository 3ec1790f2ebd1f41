"""Storage: whole objects or none, the same on a folder and on an object store."""

import os
import secrets
import subprocess
import sys
import textwrap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from infra import storage
from infra.errors import BadInputError


def test_what_is_written_is_read_back(root: str) -> None:
    uri = storage.join(root, "deep", "down", "a.bin")
    assert not storage.exists(uri)
    storage.write_atomic(uri, b"0123456789")
    assert storage.exists(uri)
    assert storage.size(uri) == 10
    assert storage.read_bytes(uri) == b"0123456789"
    assert storage.sha256(uri) == "84d89877f0d4041efb6bf91a16f0248f2fd573e6af05c19f96bedb9f882f7882"
    with storage.open_read(uri) as file:
        file.seek(8)
        assert file.read() == b"89"


def test_text_is_written_as_utf8_and_an_object_is_replaced(root: str) -> None:
    uri = storage.join(root, "a.txt")
    storage.write_atomic(uri, "first, and longer")
    storage.write_atomic(uri, "ü")
    assert storage.read_bytes(uri) == "ü".encode()


@pytest.mark.parametrize(("start", "end", "expected"), [(0, 3, b"012"), (3, 7, b"3456"), (7, 10, b"789"), (4, 4, b"")])
def test_a_range_is_half_open(root: str, start: int, end: int, expected: bytes) -> None:
    uri = storage.join(root, "a.bin")
    storage.write_atomic(uri, b"0123456789")
    assert storage.read_range(uri, start, end) == expected


def test_many_ranges_come_in_the_order_asked_for_and_an_absent_object_spoils_only_its_own(root: str) -> None:
    for name in ("a.bin", "b.bin"):
        storage.write_atomic(storage.join(root, name), name.encode() + b"0123456789")
    a, b, none = (storage.join(root, name) for name in ("a.bin", "b.bin", "none.bin"))
    first, absent, second = storage.read_ranges([(b, 0, 7), (none, 0, 3), (a, 5, 15)])
    assert (first, second) == (b"b.bin01", b"0123456789")
    assert isinstance(absent, FileNotFoundError)
    assert storage.read_ranges([]) == []


def test_listing_gives_the_files_of_one_folder_in_order(root: str) -> None:
    for name in ["b.tar", "a.tar", "a.json", "deeper/c.tar", ".hidden.tar"]:
        storage.write_atomic(storage.join(root, "shards", name), b"x")
    folder = storage.join(root, "shards")
    assert storage.list_files(folder, suffix=".tar") == [storage.join(folder, "a.tar"), storage.join(folder, "b.tar")]
    assert len(storage.list_files(folder)) == 3
    assert [storage.read_bytes(uri) for uri in storage.list_files(folder)] == [b"x"] * 3
    assert storage.list_files(storage.join(root, "nowhere")) == []


def test_removing_takes_all_and_an_absent_one_is_no_error(root: str) -> None:
    uri = storage.join(root, "step", "a.bin")
    storage.write_atomic(uri, b"x")
    storage.remove(storage.join(root, "step"))
    storage.remove(storage.join(root, "step"))
    assert not storage.exists(uri)


def test_reading_what_is_not_there_says_so(root: str) -> None:
    with pytest.raises(BadInputError, match=r"nothing\.json does not exist"):
        storage.read_bytes(storage.join(root, "nothing.json"))


def test_a_local_path_is_given_for_local_uris_only(tmp_path: Path) -> None:
    assert storage.local_path(f"{tmp_path.as_uri()}/a") == tmp_path / "a"
    assert storage.is_local(str(tmp_path))
    assert not storage.is_local("memory://a")
    with pytest.raises(BadInputError, match="needs a local path"):
        storage.local_path("memory://a")


def test_an_unknown_protocol_is_refused() -> None:
    with pytest.raises(BadInputError, match="no storage for 'nonsense://a'"):
        storage.exists("nonsense://a")


DYING_WRITER = """
    import os, sys
    from infra import storage
    os.fsync = lambda descriptor: os._exit(9)  # the machine goes away with the bytes written and the object not yet published
    storage.write_atomic(sys.argv[1], b"new" * 1000)
"""


@pytest.mark.parametrize("before", [None, b"old"])
def test_a_writer_that_dies_leaves_what_was_there_before(before: bytes | None, tmp_path: Path) -> None:
    target = tmp_path / "manifest.json"
    if before is not None:
        target.write_bytes(before)
    died = subprocess.run([sys.executable, "-c", textwrap.dedent(DYING_WRITER), str(target)], check=False)
    assert died.returncode == 9
    assert (target.read_bytes() if target.exists() else None) == before
    assert storage.list_files(str(tmp_path)) == ([str(target)] if before else [])  # the remains are not listed


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        storage.write_atomic(str(tmp_path / "a.bin"), b"x")
    assert list(tmp_path.iterdir()) == []


def test_an_object_that_can_be_made_again_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = str(tmp_path / "folder" / "object")
    storage.write_whole(uri, b"first")
    monkeypatch.setattr(Path, "replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        storage.write_whole(uri, b"second")
    assert storage.read_bytes(uri) == b"first"
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["object"]


@pytest.mark.parametrize("write", [storage.write_atomic, storage.write_whole])
def test_a_folder_may_be_removed_while_it_is_written_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[str, bytes], None]
) -> None:
    """The task is deleted at the moment at which its encoder is stored: the folder is there, and gone before the write."""
    folder, name_of, times = tmp_path / "task", secrets.token_hex, iter(range(3))

    def remove_then_name(count: int) -> str:
        if next(times, None) is not None:
            assert folder.exists()
            storage.remove(str(folder))
        return name_of(count)

    monkeypatch.setattr(secrets, "token_hex", remove_then_name)
    write(str(folder / "encoder" / "file"), b"x")
    assert next(times, None) is None
    assert [path.name for path in (folder / "encoder").iterdir()] == ["file"]


def test_a_folder_may_be_written_into_while_it_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other side of it: what is stored while the folder goes is removed with it."""
    folder, rmdir, times = tmp_path / "task", os.rmdir, iter(range(3))
    storage.write_whole(str(folder / "file"), b"x")

    def write_then_rmdir(path: str, **named: Any) -> None:
        if (number := next(times, None)) is not None:
            (folder / str(number)).write_bytes(b"x")
        rmdir(path, **named)

    monkeypatch.setattr(os, "rmdir", write_then_rmdir)
    storage.remove(str(folder))
    assert next(times, None) is None
    assert not folder.exists()


def test_one_folder_may_be_removed_by_several_at_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        for number in range(20):
            folder = tmp_path / str(number)
            for name in range(20):
                storage.write_whole(str(folder / str(name) / "file"), b"x")
            assert list(threads.map(storage.remove, [str(folder)] * 8)) == [None] * 8
            assert not folder.exists()
