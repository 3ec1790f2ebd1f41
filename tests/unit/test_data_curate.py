"""Import, curate and reshard, step by step without Ray: counts add up, bytes repeat, damage is named."""

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

import data_prep.curation.curate
import data_prep.import_pictures
import data_prep.reshard
from data_prep.curation.curate import KEEP_LIST_NAME, CurateConfig, CurateReport, curate
from data_prep.curation.dedup import DedupConfig
from data_prep.curation.filters import FilterConfig
from data_prep.curation.nothing_kept import NothingKeptError
from data_prep.import_pictures import import_pictures
from data_prep.manifest import VERIFIED_NAME, SampleRecord, read_manifest, verify_shards
from data_prep.picture_partition import ImportConfig
from data_prep.raw import read_download_report
from data_prep.reshard import ReshardConfig, reshard
from infra.errors import BadInputError, CorruptArtefactError, DataLossError
from tests.unit.data_helpers import no_progress, picture, read_table, run_here, sha256, write_parquet


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_prep.curation.curate, "stream", run_here)
    monkeypatch.setattr(data_prep.import_pictures, "fan_out", run_here)
    monkeypatch.setattr(data_prep.reshard, "fan_out", run_here)


def rows() -> list[dict[str, Any]]:
    """Ten good pictures and one for each way to be dropped."""
    good = [
        {"uid": f"good/{i}", "image": picture(i, image_format=["WEBP", "PNG", "JPEG"][i % 3]), "caption": f"thing {i}"}
        for i in range(10)
    ]
    return [
        *good,
        good[0] | {"uid": "same-bytes"},
        good[1] | {"uid": "same-look", "image": picture(1, width=64, height=64, image_format="JPEG")},
        {"uid": "tiny", "image": picture(20, width=16, height=16), "caption": "a thing"},
        {"uid": "banner", "image": picture(21, width=600, height=60), "caption": "a thing"},
        {"uid": "mute", "image": picture(22), "caption": " "},
        {"uid": "cut", "image": picture(23, width=256, height=256, image_format="PNG")[:-400], "caption": "a thing"},
        {"uid": "page", "image": b"<html>", "caption": "a thing"},
    ]


DROPPED = {
    "caption_too_short": 1,
    "duplicate_exact": 1,
    "duplicate_perceptual": 1,
    "too_elongated": 1,
    "too_small": 1,
    "truncated": 1,
}


@pytest.fixture
def raw(tmp_path: Path) -> str:
    uri = write_parquet(tmp_path / "pictures.parquet", rows())
    import_pictures(uri, config=ImportConfig(samples_per_shard=6), output_uri=str(tmp_path / "raw"), progress=no_progress)
    return str(tmp_path / "raw")


def curated(raw: str, folder: str = "curated", **config: Any) -> tuple[str, CurateReport]:
    output = str(Path(raw).parent / folder)
    report = curate(CurateConfig(**config), raw_uri=raw, output_uri=output, progress=no_progress)
    return f"{output}/{KEEP_LIST_NAME}", report


def resharded(raw: str, keep: str, folder: str, **config: Any) -> Path:
    output = Path(raw).parent / folder
    settings = ReshardConfig(**({"samples_per_shard": 4} | config))
    reshard(settings, raw_uri=raw, keep_list_uri=keep, output_uri=str(output), progress=no_progress)
    return output


def contents(folder: Path) -> dict[str, str]:
    """Files of a folder, without the note on when they were last changed."""
    paths = sorted(path for path in folder.iterdir() if path.name != VERIFIED_NAME)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_every_sample_is_kept_or_dropped_for_a_reason(raw: str) -> None:
    assert read_download_report(raw).failed == {"not_an_image": 1}
    keep, report = curated(raw)
    assert (report.seen, report.kept, report.dropped) == (16, 10, DROPPED)
    table = read_table(keep).to_pylist()
    assert [row["uid"] for row in table] == [row["uid"] for row in rows() if row["uid"] != "page"]
    assert {row["uid"]: row["duplicate_of"] for row in table if row["duplicate_of"]} == {
        "same-bytes": "good/0",
        "same-look": "good/1",
    }


def test_curation_is_deterministic(raw: str) -> None:
    first, _ = curated(raw, "one")
    second, _ = curated(raw, "two")
    assert Path(first).read_bytes() == Path(second).read_bytes()


def test_perceptual_duplicates_can_be_kept(raw: str) -> None:
    _, report = curated(raw, dedup=DedupConfig(max_hamming_distance=None))
    assert "duplicate_perceptual" not in report.dropped
    assert report.dropped["duplicate_exact"] == 1


def test_an_unfinished_download_is_not_curated(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="has not finished"):
        curate(CurateConfig(), raw_uri=str(tmp_path), output_uri=str(tmp_path / "out"), progress=no_progress)


@pytest.mark.parametrize("left", [700, -10240, -1])
def test_a_truncated_raw_shard_is_named(raw: str, left: int) -> None:
    tar = Path(raw) / "shards/00000/00001.tar"
    tar.write_bytes(tar.read_bytes()[:left])
    with pytest.raises(CorruptArtefactError, match=r"00001\.tar .*truncated"):
        curated(raw)
    assert not (Path(raw).parent / "curated" / KEEP_LIST_NAME).exists()


def test_shards_hold_each_kept_sample_at_its_offset(raw: str) -> None:
    keep, _ = curated(raw)
    folder = resharded(raw, keep, "shards")
    manifest = read_manifest(str(folder))
    verify_shards(manifest, str(folder))
    assert ([shard.samples for shard in manifest.shards], manifest.num_samples) == ([4, 4, 2], 10)
    pictures = {row["uid"]: row["image"] for row in rows()}
    found = {}
    for shard in manifest.shards:
        data = (folder / shard.path).read_bytes()
        for start, end in zip(shard.offsets, [*shard.offsets[1:], shard.bytes], strict=True):
            with tarfile.open(fileobj=io.BytesIO(data[start:end])) as tar:
                files = {m.name.rpartition(".")[2]: (tar.extractfile(m) or io.BytesIO()).read() for m in tar}
            record = SampleRecord.model_validate_json(files.pop("json"))
            ((suffix, image),) = files.items()
            assert suffix == {0: "webp", 1: "png", 2: "jpg"}[int(record.uid.rpartition("/")[2]) % 3]
            assert record.sha256 == sha256(image)
            found[record.uid] = image
    assert found == {uid: image for uid, image in pictures.items() if uid.startswith("good/")}
    assert manifest.lineage["dropped"] == DROPPED
    assert manifest.lineage["failed"] == {"not_an_image": 1}


def test_the_same_seed_gives_the_same_bytes_and_another_another_order(raw: str) -> None:
    keep, _ = curated(raw)
    one, two, other = (resharded(raw, keep, name, seed=seed) for name, seed in (("one", 3), ("two", 3), ("other", 4)))
    assert contents(one) == contents(two)
    assert contents(one) != contents(other)


def test_a_second_run_with_fewer_shards_leaves_no_old_ones(raw: str) -> None:
    keep, _ = curated(raw)
    resharded(raw, keep, "shards", samples_per_shard=2)
    assert sorted(contents(resharded(raw, keep, "shards", samples_per_shard=8))) == ["00000.tar", "00001.tar", "manifest.json"]


def test_resharding_a_truncated_raw_shard_names_it_and_leaves_no_manifest(raw: str) -> None:
    keep, _ = curated(raw)
    tar = Path(raw) / "shards/00000/00001.tar"
    tar.write_bytes(tar.read_bytes()[:2000])
    with pytest.raises(CorruptArtefactError, match=r"00001\.tar does not hold picture"):
        resharded(raw, keep, "shards")
    with pytest.raises(BadInputError, match="absent or unfinished"):
        read_manifest(str(Path(raw).parent / "shards"))


def test_nothing_kept_is_refused_with_the_reasons(raw: str) -> None:
    says = r"none of 16 samples is kept\. The rule 'size' dropped most, 15: too_small 15\. .*/curated/rules"
    with pytest.raises(NothingKeptError, match=says) as refused:
        curated(raw, filters=FilterConfig(min_side=1000))
    assert refused.value.change == "filters.min_side"
    folder = Path(raw).parent / "curated"
    assert not (folder / "curate.json").exists()
    with pytest.raises(BadInputError, match=r"keeps none of 16 samples .*too_small"):
        resharded(raw, str(folder / KEEP_LIST_NAME), "shards")


def test_a_download_without_pictures_is_not_curated(raw: str) -> None:
    uri = Path(raw) / "download.json"
    empty = json.loads(uri.read_text()) | {"downloaded": 0, "shards": [], "requested": 3, "failed": {"removed": 3}}
    uri.write_text(json.dumps(empty))
    with pytest.raises(BadInputError, match=r"nothing to curate: .*/raw holds no picture of 3: removed 3\. Look at the source"):
        curated(raw)


def test_a_keep_list_of_another_download_does_not_add_up(raw: str, tmp_path: Path) -> None:
    keep, _ = curated(raw)
    uri = write_parquet(tmp_path / "fewer.parquet", rows()[:3])
    import_pictures(uri, config=ImportConfig(), output_uri=str(tmp_path / "fewer"), progress=no_progress)
    with pytest.raises(DataLossError, match="unaccounted for"):
        resharded(str(tmp_path / "fewer"), keep, "shards")


def test_the_same_steps_work_on_an_object_store(tmp_path: Path) -> None:
    """fsspec's memory store stands for S3: no local path is assumed anywhere."""
    raw, curated_uri, shards = (f"memory://{tmp_path.name}/{name}" for name in ("raw", "curated", "shards"))
    uri = write_parquet(tmp_path / "pictures.parquet", rows())
    import_pictures(uri, config=ImportConfig(samples_per_shard=6), output_uri=raw, progress=no_progress)
    curate(CurateConfig(), raw_uri=raw, output_uri=curated_uri, progress=no_progress)
    keep = f"{curated_uri}/{KEEP_LIST_NAME}"
    reshard(ReshardConfig(samples_per_shard=4), raw_uri=raw, keep_list_uri=keep, output_uri=shards, progress=no_progress)
    verify_shards(read_manifest(shards), shards)


def test_report_is_json_beside_the_keep_list(raw: str) -> None:
    keep, report = curated(raw)
    assert json.loads((Path(keep).parent / "curate.json").read_text())["dropped"] == report.dropped
