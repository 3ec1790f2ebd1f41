"""Forgetting: no trace of the picture is left in the workspace, the others are as they were, wherever it is cut off."""

import contextlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import data_prep.curate
import data_prep.download
import data_prep.import_pictures
import data_prep.reshard
from data_prep.curate import KEEP_LIST_NAME, CurateConfig, CurateReport, curate
from data_prep.download import download
from data_prep.download_config import DownloadConfig
from data_prep.import_pictures import import_pictures
from data_prep.manifest import read_manifest, verify_shards
from data_prep.partition import download_partition
from data_prep.partition_report import write_table
from data_prep.picture_partition import ImportConfig
from data_prep.raw import OUTCOME_SCHEMA, DownloadReport, iter_outcomes, read_download_report, read_raw_shard
from data_prep.removals import Removal, RemovalRequest, Removals, forgotten_in, matched, read_removals, write_removals
from data_prep.reshard import ReshardConfig, reshard
from data_prep.url_list import UrlListConfig
from infra import storage
from infra.errors import BadInputError
from pipeline.cli import app
from pipeline.config import RunConfig, load_run_config
from pipeline.forget import Forgotten, forget
from pipeline.runner import only_run_in
from pipeline.steps import RECORD_NAME, StepRecord
from tests.unit.data_helpers import (
    body,
    no_progress,
    one_partition,
    picture,
    run_each_here,
    run_here,
    status,
    url_rows,
    web_server,
    write_parquet,
)

DOWNLOAD = "download-train-0123456789ab"
QUICKSTART = Path(__file__).parents[2] / "pipeline" / "configs" / "quickstart.yaml"
SECRET = "a caption nobody should read again"
IMPORT, CURATE, SHARD, TRAIN = (f"{name}-0123456789ab" for name in ("import-train", "curate-train", "shard-train", "train"))


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_prep.curate, "stream", run_here)
    for module in (data_prep.import_pictures, data_prep.reshard):
        monkeypatch.setattr(module, "fan_out", run_here)


def rows() -> list[dict[str, Any]]:
    return [{"uid": f"u{i}", "image": picture(i), "caption": SECRET if i in (2, 5) else f"thing {i}"} for i in range(12)]


class Workspace:
    """Twelve samples through the data steps, as if downloaded; u2 and u5 are on a host of their own."""

    def __init__(self, root: Path) -> None:
        self.root = root / "w"
        self.raw, self.curated, self.shards = f"{self.root}/{IMPORT}/raw", f"{self.root}/{CURATE}", f"{self.root}/{SHARD}"
        self.pictures = write_parquet(root / "pictures.parquet", rows())
        self.import_into(self.raw)
        for table in list(iter_outcomes(self.raw)):
            entries = [row | {"url": url_of(row["uid"])} for row in table.to_pylist()]
            write_table(pa.Table.from_pylist(entries, schema=OUTCOME_SCHEMA), f"{self.raw}/outcomes/00000.parquet")
        self.curate()
        self.reshard(self.shards)
        for name, inputs in (
            (IMPORT, {}),
            (TRAIN, {"shard-train": SHARD}),
            ("describe-train-0123456789ab", {"shard-train": SHARD}),
        ):
            record = StepRecord(step=name, summary="", seconds=1, inputs=inputs)
            storage.write_atomic(f"{self.root}/{name}/{RECORD_NAME}", record.model_dump_json())
        self.config: RunConfig = load_run_config(QUICKSTART, (f"workspace={self.root}",))

    def import_into(self, raw: str) -> None:
        config = ImportConfig(samples_per_shard=4, min_success_rate=0)
        import_pictures(self.pictures, config=config, output_uri=raw, progress=no_progress)

    def curate(self) -> None:
        curate(CurateConfig(), raw_uri=self.raw, output_uri=self.curated, progress=no_progress)

    def reshard(self, output: str) -> None:
        config, keep = ReshardConfig(samples_per_shard=5), f"{self.curated}/{KEEP_LIST_NAME}"
        reshard(config, raw_uri=self.raw, keep_list_uri=keep, output_uri=output, progress=no_progress)

    def forget(self, *, dry_run: bool = False, **named: set[str]) -> Forgotten:
        request = RemovalRequest(**{name: frozenset(values) for name, values in named.items()})
        return forget(self.config, request, dry_run=dry_run)

    def bytes_of_all(self) -> dict[str, bytes]:
        return {
            str(path): path.read_bytes() for path in sorted(self.root.rglob("*")) if path.is_file() and path.name != ".lock"
        }

    def uids_in_shards(self) -> set[str]:
        found = set()
        manifest = read_manifest(self.shards)
        verify_shards(manifest, self.shards)
        for shard in manifest.shards:
            with tarfile.open(fileobj=io.BytesIO(Path(self.shards, shard.path).read_bytes())) as tar:
                found |= {name.rpartition(".")[0] for name in tar.getnames()}
        assert manifest.num_samples == len(found)
        return found


def url_of(uid: str) -> str:
    return f"http://{'pics.private.example' if uid in ('u2', 'u5') else 'cdn.example'}/{uid}.webp"


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


def test_a_download_does_not_ask_for_what_was_to_be_forgotten(tmp_path: Path) -> None:
    raw = tmp_path / "w/download-train-0123456789ab/raw"
    request = RemovalRequest(uids=frozenset({"b"}), hosts=frozenset({"nowhere.example"}))
    asked = Removal(identifiers=sorted(request.identifiers), at="2026-01-01T00:00:00+00:00", state="done")
    write_removals(Removals(removals=[asked]), str(tmp_path / "w"))
    with web_server({f"/{name}.webp": body(picture(seed)) for seed, name in enumerate("abc")}) as web:
        config = DownloadConfig(policy=web.allowed())
        rows = [*url_rows(web.url, "abc"), {"uid": "d", "url": "http://pics.nowhere.example/d.webp", "caption": "d"}]
        report = download_partition(one_partition(tmp_path, rows, config), config, output_uri=str(raw))
        assert (report.downloaded, report.failed) == (2, {"removed": 2})
        assert (web.requests["/a.webp"], web.requests["/b.webp"]) == (1, 0)


def test_rounds_of_a_download_are_reached_and_later_ones_ask_for_nothing_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_prep.download, "fan_out_each", run_each_here)
    raw = str(tmp_path / f"w/{DOWNLOAD}/raw")
    with web_server({f"/{name}.webp": body(picture(seed)) for seed, name in enumerate("abcd")}) as web:
        urls = write_parquet(tmp_path / "urls.parquet", url_rows(web.url, "abcde"))

        def run(rounds: int) -> DownloadReport:
            config = DownloadConfig(
                samples_per_partition=3,
                samples_per_shard=2,
                rounds=rounds,
                min_success_rate=0,
                round_wait_s=0,
                policy=web.allowed(),
                retries=0,
            )
            return download(config, url_list_uri=urls, url_columns=UrlListConfig(), output_uri=raw, progress=no_progress)

        found = {name: web.answers.pop(f"/{name}.webp") for name in "bc"}
        web.answers |= {f"/{name}.webp": status(503) for name in "bc"}
        run(1)
        web.answers["/b.webp"] = found["b"]
        assert (run(2).downloaded, run(2).failed) == (3, {"http_404": 1, "http_503": 1})
        config = load_run_config(QUICKSTART, (f"workspace={tmp_path}/w",))
        forget(config, RemovalRequest(uids=frozenset("abc")), dry_run=False)  # of rounds 1 and 2, and one that never came
        report = read_download_report(raw)
        assert (report.downloaded, report.failed) == (1, {"http_404": 1, "http_503": 1, "removed": 2})
        before = dict(web.requests)
        again = run(3)
        assert dict(web.requests) == before
        assert (again.downloaded, again.failed) == (1, {"http_404": 1, "removed": 3})
        assert [s.record["uid"] for shard in again.shards for s in read_raw_shard(raw, shard)] == ["d"]
    tars = b"".join(path.read_bytes() for path in Path(raw).rglob("*") if path.is_file() and "plan" not in path.parts)
    assert picture(0)[40:] not in tars
    assert picture(1)[40:] not in tars
    assert not any(f"picture {name}".encode() in tars for name in "abc")


def test_a_uid_of_another_picture_in_another_list_is_not_touched(workspace: Workspace) -> None:
    """By host only the picture that came from there is meant."""
    keep = f"{workspace.root}/curate-evaluation-0123456789ab/{KEEP_LIST_NAME}"
    table = pq.read_table(f"{workspace.curated}/{KEEP_LIST_NAME}")
    others = pa.array(["f" * 64] * table.num_rows)
    write_table(table.set_column(table.schema.get_field_index("sha256"), "sha256", others), keep)
    workspace.forget(hosts={"private.example"})
    assert all(pq.read_table(keep)["keep"].to_pylist())


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


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("http://a.b.example:80/x", {"a.b.example", "b.example"}),
        ("http://B.Example./x", {"b.example"}),
        ("http://notb.example/x", set()),
        ("no url", set()),
    ],
)
def test_a_host_stands_for_its_subdomains(url: str, hosts: set[str]) -> None:
    request = RemovalRequest(hosts=frozenset({"b.example", "a.b.example"}))
    assert matched(request, uid="u", url=url) == hosts
