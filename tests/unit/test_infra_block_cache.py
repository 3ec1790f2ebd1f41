"""Remote shards through the cache on disk: few requests, bounded bytes, several processes."""

import http.server
import multiprocessing
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import pytest

from infra.block_cache import Block, BlockCache
from infra.errors import CorruptArtefactError
from tests.unit.data_helpers import picture
from tests.unit.shard_helpers import sample, write_shards
from training.config import TrainConfig
from training.data import TrainingBatches
from training.order import block_bounds
from training.shard_reader import ShardReader


class RangeServer:
    """A web server that answers ranges, and counts the requests for each."""

    def __init__(self, folder: Path) -> None:
        self.requests: Counter[tuple[str, str]] = Counter()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                path = folder / self.path.lstrip("/")
                if not path.is_file():
                    self.send_error(404)
                    return
                data = path.read_bytes()
                wanted = self.headers.get("Range", "")
                outer.requests[self.path, wanted] += 1
                if wanted:
                    start, end = (int(part) for part in wanted.removeprefix("bytes=").split("-"))
                    data = data[start : end + 1]
                self.send_response(206 if wanted else 200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    @contextmanager
    def running(self) -> Iterator["RangeServer"]:
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()


@pytest.fixture
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("training.shard_reader.default_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache"


def written(folder: Path, count: int) -> None:
    data = [picture(number, image_format="JPEG") for number in range(5)]
    write_shards(folder, (sample(data[n % 5], n, width=48, height=48) for n in range(count)), samples_per_shard=150)


def test_an_epoch_of_a_remote_shard_is_one_request_a_block_and_a_second_reader_needs_none(
    tmp_path: Path, cache_folder: Path
) -> None:
    written(tmp_path / "shards", 300)
    local = ShardReader.open(str(tmp_path / "shards"))
    with RangeServer(tmp_path / "shards").running() as server:
        for _ in range(2):
            reader = ShardReader(server.url, local.manifest)
            config = TrainConfig(model="hyperclip_test", num_steps=1, contrastive_batch_size=20, loader_workers=0)
            found = list(islice(TrainingBatches(reader, config, rank=0, world_size=1).starting_at(0), 15))
            assert sorted(index for batch in found for index in batch.sample_index.tolist()) == list(range(300))
            assert all(count == 1 for count in server.requests.values())
            assert len(server.requests) == len(block_bounds([150, 150])) - 1
    assert [reader[n] for n in (0, 149, 150, 299)] == [local[n] for n in (0, 149, 150, 299)]  # the server is gone


def test_a_block_damaged_on_this_machine_is_fetched_again(tmp_path: Path, cache_folder: Path) -> None:
    written(tmp_path / "shards", 30)
    local = ShardReader.open(str(tmp_path / "shards"))
    with RangeServer(tmp_path / "shards").running() as server:
        reader = ShardReader(server.url, local.manifest)
        assert reader[7] == local[7]
        (cached,) = cache_folder.glob("??/*")
        cached.write_bytes(bytes(cached.stat().st_size))
        assert reader[7] == local[7]
        assert list(server.requests.values()) == [2]


@pytest.mark.parametrize("damage", ["truncated", "missing", "changed"])
def test_damage_of_a_remote_shard_is_named(tmp_path: Path, cache_folder: Path, damage: str) -> None:
    written(tmp_path / "shards", 30)
    manifest = ShardReader.open(str(tmp_path / "shards")).manifest
    shard = tmp_path / "shards" / "00000.tar"
    data = shard.read_bytes()
    {
        "truncated": lambda: shard.write_bytes(data[: len(data) // 2]),
        "missing": shard.unlink,
        "changed": lambda: shard.write_bytes(data[:600] + b"damage" + data[606:]),
    }[damage]()
    with RangeServer(tmp_path / "shards").running() as server:
        reader = ShardReader(server.url, manifest)
        place = 29 if damage == "truncated" else 0
        with pytest.raises(CorruptArtefactError, match=rf"sample {place} of shard 00000\.tar"):
            reader[place]


def test_the_cache_never_holds_more_than_it_may(tmp_path: Path) -> None:
    (tmp_path / "object").write_bytes(bytes(range(250)) * 400)
    cache = BlockCache(tmp_path / "cache", max_bytes=10_000)
    for start in range(0, 100_000, 1000):
        block = Block(f"file://{tmp_path}/object", start, start + 1000, "v")
        assert cache.read(block, start + 10, start + 20) == bytes(range(10, 20))
        held = [path.stat().st_size for path in (tmp_path / "cache").glob("??/*")]
        assert 0 < sum(held) <= 10_000
    newest = Block(f"file://{tmp_path}/object", 99_000, 100_000, "v")
    (tmp_path / "object").unlink()
    assert cache.read(newest, 99_000, 99_003) == bytes(range(3))
    with pytest.raises(FileNotFoundError):
        cache.read(newest._replace(version="w"), 99_000, 99_003)  # another version is another object


def _read_all(url: str, folder: Path, failures: "multiprocessing.SimpleQueue[str]") -> None:
    cache = BlockCache(folder, max_bytes=40_000)
    for start in range(0, 100_000, 1000):
        if cache.read(Block(url, start, start + 1000, "v"), start, start + 1000) != bytes(range(250)) * 4:
            failures.put(f"wrong bytes at {start}")
    failures.put("")


def test_several_processes_share_a_cache(tmp_path: Path) -> None:
    (tmp_path / "object").write_bytes(bytes(range(250)) * 400)
    context = multiprocessing.get_context("forkserver")
    failures = context.SimpleQueue()
    with RangeServer(tmp_path).running() as server:
        readers = [
            context.Process(target=_read_all, args=(f"{server.url}/object", tmp_path / "cache", failures)) for _ in range(3)
        ]
        for reader in readers:
            reader.start()
        assert [failures.get() for _ in readers] == [""] * 3
        for reader in readers:
            reader.join()
    held = [path.stat().st_size for path in (tmp_path / "cache").glob("??/*")]
    # each process may be writing one block while another counts
    assert sum(held) <= 40_000 + 3 * 1000
