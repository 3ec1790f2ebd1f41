"""Forgetting: no trace of the picture is left in the workspace, the others are as they were, wherever it is cut off."""

import contextlib
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from data_prep.curation.curate import KEEP_LIST_NAME
from data_prep.manifest import read_manifest
from data_prep.partition_report import write_table
from data_prep.raw import iter_outcomes, read_download_report, read_raw_shard
from data_prep.removal.requests import forgotten_in, read_removals
from infra import artefacts, storage
from infra.errors import BadInputError
from pipeline.cli import app
from pipeline.forget import FORGOTTEN_SINCE
from pipeline.runner import only_run_in
from pipeline.steps import RECORD_NAME, StepRecord
from tests.unit.data_helpers import picture
from tests.unit.removal_helpers import (
    CURATE,
    IMPORT,
    QUICKSTART,
    SECRET,
    SHARD,
    TRAIN,
    Workspace,
    run_without_ray,
    url_of,
)


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    run_without_ray(monkeypatch)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def require_forgotten(workspace: Workspace, *uids: str) -> None:
    """No byte of them is left, counts add up, and the others are all there."""
    gone = set(uids)
    everything = workspace.bytes_of_all()
    for uid in gone:
        image = picture(int(uid[1:]))
        assert not [path for path, data in everything.items() if image[40:] in data]
    if gone == {"u2", "u5"}:
        assert not [path for path, data in everything.items() if SECRET.encode() in data]
    report = read_download_report(workspace.raw)
    assert (report.downloaded, report.failed) == (12 - len(gone), {"removed": len(gone)})
    (outcomes,) = [table.to_pylist() for table in iter_outcomes(workspace.raw)]
    assert {row["uid"] for row in outcomes if (row["state"], row["reason"]) == ("failed", "removed")} == gone
    assert report.bytes == sum(row["bytes"] for row in outcomes if row["state"] == "downloaded")
    samples = [sample for shard in report.shards for sample in read_raw_shard(workspace.raw, shard)]
    others = {f"u{i}" for i in range(12)} - gone
    assert {sample.record["uid"]: sample.image for sample in samples} == {uid: picture(int(uid[1:])) for uid in others}
    assert [storage.sha256(f"{workspace.raw}/{shard.path}") for shard in report.shards] == [s.sha256 for s in report.shards]
    keep = pq.read_table(f"{workspace.curated}/{KEEP_LIST_NAME}").to_pylist()
    assert {row["uid"] for row in keep if row["reason"] == "removed" and not row["keep"] and not row["caption"]} == gone
    told = json.loads(Path(workspace.curated, "curate.json").read_text())
    assert (told["seen"], told["kept"], told["dropped"]) == (12, 12 - len(gone), {"removed": len(gone)})
    assert workspace.uids_in_shards() == others
    assert read_removals(str(workspace.root)).removals[-1].state == "done"


@pytest.mark.parametrize(
    "named",
    [
        {"uids": {"u2", "u5"}},
        {"urls": {url_of("u2"), url_of("u5")}},
        {"hosts": {"pics.private.example"}},
        {"hosts": {"private.example"}},
        {"uids": {"u2"}, "hosts": {"pics.private.example"}},
    ],
)
def test_a_request_reaches_raw_shards_keep_list_and_training_shards(workspace: Workspace, named: dict[str, set[str]]) -> None:
    found = workspace.forget(**named)
    assert found.reached == {IMPORT: 2, CURATE: 2, SHARD: 2}
    assert found.unknown == []
    require_forgotten(workspace, "u2", "u5")


def test_a_finished_step_says_that_some_of_its_samples_are_gone(workspace: Workspace) -> None:
    for _ in range(2):
        workspace.forget(uids={"u2"})
    summaries = {
        name: artefacts.read_model(f"{workspace.root}/{name}/{RECORD_NAME}", StepRecord).summary for name in (IMPORT, TRAIN)
    }
    assert summaries == {IMPORT: FORGOTTEN_SINCE, TRAIN: ""}


def test_forgetting_again_changes_nothing(workspace: Workspace) -> None:
    workspace.forget(uids={"u2"})
    before = workspace.bytes_of_all()
    assert workspace.forget(uids={"u2"}).models[0].folder == TRAIN  # still known, though no shard holds it any more
    assert workspace.bytes_of_all() == before


def test_a_dry_run_says_the_same_and_changes_nothing(workspace: Workspace) -> None:
    before = workspace.bytes_of_all()
    told = workspace.forget(uids={"u2"}, dry_run=True)
    assert workspace.bytes_of_all() == before
    assert told == workspace.forget(uids={"u2"})


class KilledError(BaseException):
    pass


@pytest.mark.parametrize("nth", range(1, 16))
def test_wherever_it_is_killed_running_it_again_ends_the_same(
    workspace: Workspace, nth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = 0
    write: Callable[..., None] = storage.write_atomic

    def write_or_die(uri: str, data: bytes | str) -> None:
        nonlocal writes
        writes += 1
        if writes == nth:
            raise KilledError
        write(uri, data)

    with monkeypatch.context() as patched:
        patched.setattr(storage, "write_atomic", write_or_die)
        with contextlib.suppress(KilledError):
            workspace.forget(uids={"u2"})
    found = workspace.forget(uids={"u2"})
    assert [model.folder for model in found.models] == [TRAIN]
    require_forgotten(workspace, "u2")


def test_what_was_forgotten_stays_forgotten_in_later_steps(workspace: Workspace) -> None:
    workspace.forget(uids={"u2", "u5"})
    workspace.reshard(f"{workspace.root}/shard-train-again")  # the keep list of before
    workspace.curate()
    workspace.reshard(f"{workspace.root}/shard-train-once-more")
    first, second = (read_manifest(f"{workspace.root}/shard-train-{name}") for name in ("again", "once-more"))
    assert [shard.sha256 for shard in first.shards] == [shard.sha256 for shard in second.shards]
    assert first.num_samples == 10
    again = f"{workspace.root}/import-train-ffffffffffff/raw"
    workspace.import_into(again)
    assert read_download_report(again).failed == {"removed": 2}
    tars = b"".join(path.read_bytes() for path in Path(again).rglob("*.tar"))
    assert picture(2)[40:] not in tars
    assert SECRET.encode() not in b"".join(path.read_bytes() for path in Path(again).rglob("*") if path.is_file())


def test_a_uid_of_another_picture_in_another_list_is_not_touched(workspace: Workspace) -> None:
    """By host only the picture that came from there is meant."""
    keep = f"{workspace.root}/curate-evaluation-0123456789ab/{KEEP_LIST_NAME}"
    table = pq.read_table(f"{workspace.curated}/{KEEP_LIST_NAME}")
    others = pa.array(["f" * 64] * table.num_rows)
    write_table(table.set_column(table.schema.get_field_index("sha256"), "sha256", others), keep)
    workspace.forget(hosts={"private.example"})
    assert all(pq.read_table(keep)["keep"].to_pylist())


def test_the_record_holds_hashes_only(workspace: Workspace) -> None:
    workspace.forget(uids={"u2"}, urls={url_of("u5")})
    text = Path(workspace.root, "removals.json").read_text()
    assert "u2" not in text
    assert "private" not in text
    forgotten = forgotten_in(workspace.raw)
    assert forgotten.covers(uid="u2", url=None)
    assert forgotten.covers(uid="other", url=url_of("u5"))
    assert not forgotten.covers(uid="u5", url=None)


def test_what_shows_the_samples_and_what_was_left_half_done_is_removed(workspace: Workspace) -> None:
    torn = Path(workspace.raw, "shards/00007/00030.tar")
    half = Path(workspace.root, "shard-train-ffffffffffff/00000.tar")
    report = Path(workspace.root, f"quickstart-{'0' * 12}-report.html")
    for path in (torn, half, report):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(picture(2))
    removed = workspace.forget(uids={"u2"}).removed
    assert not any(path.exists() for path in (torn, half, report))
    assert {Path(uri).name for uri in removed} == {
        "00007",
        "shard-train-ffffffffffff",
        "describe-train-0123456789ab",
        report.name,
    }


def test_a_shard_whose_every_sample_goes_is_gone(workspace: Workspace) -> None:
    manifest = read_manifest(workspace.shards)
    with tarfile.open(Path(workspace.shards, manifest.shards[-1].path)) as tar:
        uids = {name.rpartition(".")[0] for name in tar.getnames()}
    workspace.forget(uids=uids)
    assert len(read_manifest(workspace.shards).shards) == len(manifest.shards) - 1
    assert workspace.uids_in_shards().isdisjoint(uids)
    assert len(list(Path(workspace.shards).glob("*.tar"))) == len(manifest.shards) - 1


def test_an_unknown_uid_is_refused_and_one_beside_known_ones_is_named(workspace: Workspace) -> None:
    before = workspace.bytes_of_all()
    with pytest.raises(BadInputError, match=r"nothing in .* is named by nobody"):
        workspace.forget(uids={"nobody"})
    assert workspace.bytes_of_all() == before
    assert workspace.forget(uids={"u2", "nobody"}).unknown == ["nobody"]
    require_forgotten(workspace, "u2")


def test_a_run_in_progress_is_not_disturbed(workspace: Workspace) -> None:
    before = workspace.bytes_of_all()
    with only_run_in(str(workspace.root)), pytest.raises(BadInputError, match="another run uses"):
        workspace.forget(uids={"u2"})
    assert workspace.bytes_of_all() == before


def test_the_command_prints_what_it_reached_and_reads_lists(workspace: Workspace, tmp_path: Path) -> None:
    listed = tmp_path / "requests.txt"
    listed.write_text(f"# requests\n{url_of('u2')}\n\nhost:nowhere.example\nu7\n")
    arguments = ["forget", str(QUICKSTART), "--set", f"workspace={workspace.root}", "--list", str(listed)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert [line.split() for line in done.output.splitlines() if "0123456789ab" in line][:3] == [
        [IMPORT, "2"],
        [CURATE, "2"],
        [SHARD, "2"],
    ]
    assert "Names no sample here: nowhere.example" in done.output
    assert TRAIN in done.output
    require_forgotten(workspace, "u2", "u7")
    refused = CliRunner().invoke(app, [*arguments[:-2], "--uid", "nobody"])
    assert isinstance(refused.exception, BadInputError)
    assert isinstance(CliRunner().invoke(app, arguments[:-2]).exception, BadInputError)  # nothing named
