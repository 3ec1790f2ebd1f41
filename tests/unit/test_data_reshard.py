"""Training shards: order and cut depend on the samples alone, and what is whole is kept."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import data_prep.curation.curate
import data_prep.import_pictures
import data_prep.reshard
import data_prep.training_shard
from data_prep.curation.curate import KEEP_LIST_NAME, CurateConfig, curate
from data_prep.fan_out import TaskConfig
from data_prep.import_pictures import import_pictures
from data_prep.kept_samples import cut, kept_samples
from data_prep.manifest import ShardManifest, read_manifest, verify_shards
from data_prep.picture_partition import ImportConfig
from data_prep.reshard import ReshardConfig, reshard
from infra import storage
from infra.errors import BadInputError
from tests.unit.data_helpers import no_progress, picture, run_here, sha256, write_parquet


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_prep.curation.curate, "stream", run_here)
    for module in (data_prep.import_pictures, data_prep.reshard):
        monkeypatch.setattr(module, "fan_out", run_here)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Raw shards and keep list of 20 samples of two sources."""
    root = tmp_path_factory.mktemp("prepared")
    rows = [
        {"uid": f"s/{i}", "image": picture(i), "caption": f"thing {i}", "captions": [f"a {i}", ""], "source": "ab"[i % 2]}
        for i in range(20)
    ]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(data_prep.curation.curate, "stream", run_here)
        patched.setattr(data_prep.import_pictures, "fan_out", run_here)
        uri = write_parquet(root / "pictures.parquet", rows)
        import_pictures(uri, config=ImportConfig(samples_per_shard=6), output_uri=f"{root}/raw", progress=no_progress)
        curate(CurateConfig(), raw_uri=f"{root}/raw", output_uri=f"{root}/curated", progress=no_progress)
    return f"{root}/raw", f"{root}/curated/{KEEP_LIST_NAME}"


def resharded(prepared: tuple[str, str], output: Path, **config: Any) -> ShardManifest:
    raw, keep = prepared
    settings = ReshardConfig(**({"samples_per_shard": 6} | config))
    return reshard(settings, raw_uri=raw, keep_list_uri=keep, output_uri=str(output), progress=no_progress)


def test_the_order_is_that_of_the_hash_of_seed_and_uid(prepared: tuple[str, str]) -> None:
    with kept_samples(prepared[1]) as kept:
        uids = kept.take(np.arange(len(kept)))["uid"].to_pylist()
        expected = sorted(uids, key=lambda uid: hashlib.sha256(f"5:{uid}".encode()).digest())
        assert kept.take(kept.shuffled(5))["uid"].to_pylist() == expected


def test_rows_come_in_the_order_asked_for_whatever_batches_they_lie_in(
    prepared: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_prep.kept_samples.ROWS_AT_ONCE", 3)
    places = np.array([19, 0, 7, 8, 1])
    with kept_samples(prepared[1]) as kept:
        assert kept.take(places)["uid"].to_pylist() == [f"s/{place}" for place in places]
        assert len(kept) == 20
        assert kept.sources == ["a", "b"]


@pytest.mark.parametrize(
    ("sizes", "samples", "size", "runs"),
    [
        ([1, 1, 1, 1, 1], 2, 100, [(0, 2), (2, 4), (4, 5)]),
        ([5, 5, 5, 5], 100, 10, [(0, 2), (2, 4)]),
        ([5, 6, 5, 5], 100, 10, [(0, 1), (1, 2), (2, 4)]),
        ([50, 1, 50], 100, 10, [(0, 1), (1, 2), (2, 3)]),  # larger than a shard may be: alone
        ([], 1, 1, []),
    ],
)
def test_shards_are_as_long_as_both_bounds_allow(
    sizes: list[int], samples: int, size: int, runs: list[tuple[int, int]]
) -> None:
    assert cut(np.array(sizes, dtype=np.int64), max_samples=samples, max_bytes=size) == runs


def test_no_shard_holds_more_picture_bytes_than_allowed(prepared: tuple[str, str], tmp_path: Path) -> None:
    limit = 3 * len(picture(0))
    manifest = resharded(prepared, tmp_path / "shards", samples_per_shard=100, max_shard_bytes=limit)
    assert len(manifest.shards) > 6
    assert all(shard.bytes <= limit + 3000 * shard.samples + 10240 for shard in manifest.shards)
    verify_shards(read_manifest(str(tmp_path / "shards")), str(tmp_path / "shards"))


def test_the_order_of_the_tasks_and_a_bound_not_reached_change_no_byte(
    prepared: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backwards = resharded(prepared, tmp_path / "backwards")
    monkeypatch.setattr(data_prep.reshard, "fan_out", lambda function, arguments, _: (function(*each) for each in arguments))
    forwards = resharded(prepared, tmp_path / "forwards", max_shard_bytes=10**8)
    assert forwards.shards == backwards.shards
    assert [shard.source_ids for shard in forwards.shards] != [None] * 4


def test_the_address_of_shards_without_a_bound_of_their_own_is_that_of_before() -> None:
    assert ReshardConfig(samples_per_shard=7, seed=1).identity() == {"samples_per_shard": 7, "seed": 1}
    assert ReshardConfig(tasks=TaskConfig(max_in_flight=1)).identity() == ReshardConfig().identity()
    assert ReshardConfig(max_shard_bytes=5).identity()["max_shard_bytes"] == 5


class StoppedError(Exception):
    pass


def test_a_run_that_goes_on_writes_only_what_is_missing_or_damaged(
    prepared: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = resharded(prepared, tmp_path / "calm").shards
    output = tmp_path / "shards"

    def stop_after_three(function: Any, arguments: Iterable[tuple[Any, ...]], config: TaskConfig) -> Iterator[Any]:
        for number, each in enumerate(arguments):
            if number == 3:
                raise StoppedError
            yield function(*each)

    with monkeypatch.context() as patched:
        patched.setattr(data_prep.reshard, "fan_out", stop_after_three)
        with pytest.raises(StoppedError):
            resharded(prepared, output)
    with pytest.raises(BadInputError, match="absent or unfinished"):
        read_manifest(str(output))
    damaged = output / "00001.tar"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    written: list[str] = []
    write = data_prep.training_shard._tar_of
    monkeypatch.setattr(
        data_prep.training_shard, "_tar_of", lambda samples, raw: (written.append(samples[0]["uid"]), write(samples, raw))[1]
    )
    assert resharded(prepared, output).shards == expected
    assert len(written) == 2  # the damaged one and the one never begun
    assert sorted(path.name for path in output.iterdir()) == [
        *(f"0000{number}.tar" for number in range(4)),
        "manifest.json",
        "verified.json",
    ]


def test_shards_of_other_settings_in_the_folder_are_not_taken_for_these(prepared: tuple[str, str], tmp_path: Path) -> None:
    output = tmp_path / "shards"
    resharded(prepared, output, seed=1)
    assert resharded(prepared, output).shards == resharded(prepared, tmp_path / "calm").shards


def test_the_manifest_tells_inputs_rules_and_versions(prepared: tuple[str, str], tmp_path: Path) -> None:
    raw, keep = prepared
    lineage = resharded(prepared, tmp_path / "shards").lineage
    assert lineage["inputs"]["keep_list"]["sha256"] == storage.sha256(keep)
    assert lineage["inputs"]["raw"]["sha256"] == storage.sha256(f"{raw}/download.json")
    assert lineage["curation"]["config"] == json.loads(CurateConfig().model_dump_json())
    assert set(lineage["versions"]) == {"hyperclip", "img2dataset", "pillow", "pyarrow", "webdataset"}


def test_captions_of_a_sample_come_along_once_each_and_without_empty_ones(prepared: tuple[str, str], tmp_path: Path) -> None:
    manifest = resharded(prepared, tmp_path / "shards")
    texts = b"".join((tmp_path / "shards" / shard.path).read_bytes() for shard in manifest.shards)
    assert texts.count(b'"captions":["thing 7","a 7"]') == 1


def test_a_file_that_is_no_keep_list_is_refused(prepared: tuple[str, str], tmp_path: Path) -> None:
    other = write_parquet(tmp_path / "other.parquet", [{"uid": "a", "keep": True}])
    with pytest.raises(BadInputError, match="lacks the columns"):
        resharded((prepared[0], other), tmp_path / "shards")


def test_counts_by_reason_survive_many_batches(
    prepared: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pa.parquet.read_table(prepared[1])
    keep = [number % 3 == 0 for number in range(20)]
    reasons = [None if kept else "ab"[number % 2] for number, kept in enumerate(keep)]
    changed = table.set_column(1, "keep", pa.array(keep)).set_column(2, "reason", pa.array(reasons, pa.string()))
    pa.parquet.write_table(changed, tmp_path / "keep.parquet")
    monkeypatch.setattr("data_prep.kept_samples.ROWS_AT_ONCE", 4)
    with kept_samples(str(tmp_path / "keep.parquet")) as kept:
        assert kept.dropped == Counter(reason for reason in reasons if reason)
        assert len(kept) == 7
        assert sha256(b"") != kept.samples_hash
