"""Forgetting where something is damaged, left over by what was killed, or like something else: no picture stays hidden."""

import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.curation.curate import CurateConfig, CurateReport, curate
from data_prep.import_pictures import import_pictures
from data_prep.manifest import read_manifest
from data_prep.partition_report import write_table
from data_prep.picture_partition import ImportConfig
from data_prep.raw import OUTCOME_SCHEMA, iter_outcomes, read_download_report
from data_prep.removal.requests import RemovalRequest
from infra import storage
from pipeline.config import load_run_config
from pipeline.forget import forget
from pipeline.steps import RECORD_NAME, StepRecord
from tests.unit.data_helpers import (
    no_progress,
    picture,
    write_parquet,
)
from tests.unit.removal_helpers import CURATE, IMPORT, QUICKSTART, SECRET, SHARD, Workspace, rows, run_without_ray


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    run_without_ray(monkeypatch)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def raw_tar(workspace: Workspace, number: int) -> Path:
    return Path(workspace.raw, read_download_report(workspace.raw).shards[number].path)


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def curated_anew(workspace: Workspace) -> CurateReport:
    config = CurateConfig(max_damaged_share=0.5)
    output = f"{workspace.root}/curate-train-again"
    curate(config, raw_uri=workspace.raw, output_uri=output, progress=no_progress)
    return CurateReport.model_validate_json(Path(output, "curate.json").read_text())


@pytest.mark.parametrize("uid", ["u2", "u9"])
def test_a_damaged_raw_shard_stays_damaged(workspace: Workspace, uid: str) -> None:
    """Whether it is touched (u9 lies in it) or only of the same partition."""
    tar = raw_tar(workspace, 2)
    before = read_download_report(workspace.raw).shards[2].sha256
    flip(tar, tar.read_bytes().index(picture(10)) + 50)
    workspace.forget(uids={uid})
    report = read_download_report(workspace.raw)
    assert (report.shards[2].sha256, report.downloaded) == (before, 11)
    assert picture(int(uid[1:]))[40:] not in b"".join(workspace.bytes_of_all().values())
    assert storage.sha256(f"{workspace.raw}/{report.shards[0].path}") == report.shards[0].sha256
    told = curated_anew(workspace)
    assert (told.seen, told.dropped) == (11, {"damaged_shard": 3 if uid == "u9" else 4})


def member(tar: Path, name: str) -> tarfile.TarInfo:
    with tarfile.open(tar) as opened:
        return next(found for found in opened if found.name.endswith(name))


def damaged_header(tar: Path) -> None:
    flip(tar, member(tar, "1.json").offset + 100)  # tarfile takes it for the end of the file


def truncated(tar: Path) -> None:
    tar.write_bytes(tar.read_bytes()[: member(tar, "3.webp").offset_data + 20])


def damaged_json(tar: Path) -> None:
    flip(tar, member(tar, "3.json").offset_data)


def changed_uid(tar: Path) -> None:
    tar.write_bytes(tar.read_bytes().replace(b'"uid": "u2"', b'"uid": "x2"'))


def missing(tar: Path) -> None:
    tar.unlink()


@pytest.mark.parametrize("damage", [damaged_header, truncated, damaged_json, changed_uid, missing])
@pytest.mark.parametrize("uid", ["u2", "u5"])
def test_a_raw_shard_that_cannot_be_read_hides_no_picture(
    workspace: Workspace, damage: Callable[[Path], None], uid: str
) -> None:
    """u2 lies in it; u5 in another shard of the partition."""
    damage(raw_tar(workspace, 0))
    for _ in range(2):
        workspace.forget(uids={uid})
        assert picture(int(uid[1:]))[40:] not in b"".join(workspace.bytes_of_all().values())
        assert read_download_report(workspace.raw).failed == {"removed": 1}
    told = curated_anew(workspace)
    assert (told.seen, told.dropped) == (11, {"damaged_shard": 3 if uid == "u2" else 4})


def test_a_host_reaches_what_curation_dropped_with_a_damaged_shard(workspace: Workspace) -> None:
    """The keep list has no hash of those, and later steps count them all the same."""
    flip(raw_tar(workspace, 0), 600)
    workspace.curated = f"{workspace.root}/curate-train-ffffffffffff"
    config = CurateConfig(max_damaged_share=0.5)
    curate(config, raw_uri=workspace.raw, output_uri=workspace.curated, progress=no_progress)
    workspace.forget(hosts={"private.example"})
    workspace.reshard(f"{workspace.root}/shard-train-ffffffffffff")
    assert read_manifest(f"{workspace.root}/shard-train-ffffffffffff").num_samples == 7


def test_captions_of_what_failed_are_forgotten_too(tmp_path: Path) -> None:
    raw = tmp_path / "w" / IMPORT / "raw"
    rows_in = [*rows()[:3], {"uid": "bad", "image": b"no picture", "caption": SECRET + "!"}]
    config = ImportConfig(min_success_rate=0)
    import_pictures(write_parquet(tmp_path / "in.parquet", rows_in), config=config, output_uri=str(raw), progress=no_progress)
    run = load_run_config(QUICKSTART, (f"workspace={tmp_path}/w",))
    forget(run, RemovalRequest(uids=frozenset({"bad"})), dry_run=False)
    assert not any(SECRET + "!" in str(pq.read_table(path).to_pylist()) for path in raw.rglob("*.parquet"))
    assert read_download_report(str(raw)).downloaded == 3


def test_reports_of_configurations_that_nobody_has_any_more_are_removed(workspace: Workspace) -> None:
    """Killed ones have no record of what they read."""
    reports = [Path(workspace.root, f"{name}-ffffffffffff/page.html") for name in ("describe-train", "evaluate", "serve")]
    foreign = Path(workspace.root, "describe-train-eeeeeeeeeeee", RECORD_NAME)
    for path in reports:
        storage.write_atomic(str(path), picture(2))
    record = StepRecord(step="describe-train", summary="", seconds=1, inputs={"shard-train": "shard-train-eeeeeeeeeeee"})
    storage.write_atomic(str(foreign), record.model_dump_json())
    workspace.forget(uids={"u2"})
    assert not any(path.parent.exists() for path in reports)
    assert foreign.exists()


def test_what_killed_writers_left_is_removed(workspace: Workspace) -> None:
    folders = [workspace.shards, workspace.curated, f"{workspace.curated}/rules", f"{workspace.curated}/looks"]
    left = [Path(folder, ".00003.tar.0123abcd.tmp") for folder in [*folders, f"{workspace.raw}/shards/00000"]]
    for path in left:
        path.write_bytes(picture(2))
    workspace.forget(uids={"u2"}, dry_run=True)
    assert all(path.exists() for path in left)
    workspace.forget(uids={"u2"})
    assert not any(path.exists() for path in left)
    left[0].write_bytes(picture(2))
    workspace.reshard(workspace.shards)
    assert not left[0].exists()


def test_a_partition_that_is_to_be_done_again_is_removed_and_not_fetched(workspace: Workspace) -> None:
    """As after too many failures: the report is gone, outcomes and shards are there, and what was made of them."""
    report = Path(workspace.raw, "partitions/00000.json")
    report.unlink()
    Path(workspace.raw, "download.json").unlink()
    assert workspace.forget(hosts={"private.example"}).reached == {IMPORT: 2, CURATE: 2, SHARD: 2}
    assert picture(2)[40:] not in b"".join(workspace.bytes_of_all().values())
    assert workspace.forget(uids={"u5"}).unknown == []
    workspace.import_into(workspace.raw)
    assert read_download_report(workspace.raw).failed == {"removed": 1}  # an import has no hosts


def test_a_host_reaches_the_lists_with_its_pictures_only(workspace: Workspace) -> None:
    """Another list has the same uids and pictures from elsewhere, and stays as it was from its raw shards on."""
    other = {step: step.replace("0123456789ab", "ffffffffffff") for step in (IMPORT, CURATE, SHARD)}
    for step in (IMPORT, CURATE, SHARD):
        shutil.copytree(workspace.root / step, workspace.root / other[step])
    for table in list(iter_outcomes(workspace.raw)):
        elsewhere = [row | {"url": "http://cdn.example/x"} for row in table.to_pylist()]
        uri = f"{workspace.root}/{other[IMPORT]}/raw/outcomes/00000.parquet"
        write_table(pa.Table.from_pylist(elsewhere, schema=OUTCOME_SCHEMA), uri)
    for raw, curated, shards in ((IMPORT, CURATE, SHARD), tuple(other.values())):
        for step, inputs in ((curated, {"import-train": raw}), (shards, {"import-train": raw, "curate-train": curated})):
            record = StepRecord(step=step, summary="", seconds=1, inputs=inputs)
            storage.write_atomic(f"{workspace.root}/{step}/{RECORD_NAME}", record.model_dump_json())
    before = {path: data for path, data in workspace.bytes_of_all().items() if "ffffffffffff" in path}
    assert workspace.forget(hosts={"private.example"}).reached == {IMPORT: 2, CURATE: 2, SHARD: 2}
    assert {path: data for path, data in workspace.bytes_of_all().items() if "ffffffffffff" in path} == before
    everywhere = [IMPORT, CURATE, SHARD, *other.values()]
    assert workspace.forget(uids={"u3"}).reached == dict.fromkeys(everywhere, 1)
