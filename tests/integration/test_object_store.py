"""Everything the data steps do, on an object store: real S3 protocol over loopback, real img2dataset, real Ray."""

import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import fsspec
import pytest

from data_prep.curation.curate import KEEP_LIST_NAME, CurateConfig, curate
from data_prep.description import DatasetDescription, describe_dataset
from data_prep.download import download
from data_prep.download_config import DownloadConfig
from data_prep.manifest import ShardManifest, read_manifest, verify_shards
from data_prep.raw import DownloadReport, iter_outcomes, read_download_report
from data_prep.removal.requests import RemovalRequest
from data_prep.reshard import ReshardConfig, reshard
from data_prep.sample.links import write_url_list
from data_prep.sample.serve import serving_sample
from data_prep.url_list import UrlListConfig
from infra import storage
from infra.cluster import ClusterConfig, connected
from infra.errors import CorruptArtefactError
from pipeline.config import load_run_config
from pipeline.forget import forget
from tests.command import Command
from tests.object_store import object_store
from tests.unit.data_helpers import body as answer
from tests.unit.data_helpers import no_progress, picture, url_rows, web_server, write_parquet

pytestmark = pytest.mark.integration
QUICKSTART = Path(__file__).parents[2] / "pipeline" / "configs" / "quickstart.yaml"
OWN = QUICKSTART.with_name("own.yaml")
DOWNLOAD, CURATE, SHARD = (f"{step}-evaluation-0123456789ab" for step in ("download", "curate", "shard"))


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with object_store() as uri, connected(ClusterConfig(num_cpus=2)):  # workers take the store's address with them
        yield uri


def run(urls: str, raw_uri: str, config: DownloadConfig) -> DownloadReport:
    return download(config, url_list_uri=urls, url_columns=UrlListConfig(), output_uri=raw_uri, progress=no_progress)


def prepare(urls: str, root: str, config: DownloadConfig) -> ShardManifest:
    """From a list to shards, all below `root`."""
    raw, curated, shards = (f"{root}/{name}" for name in (f"{DOWNLOAD}/raw", CURATE, SHARD))
    run(urls, raw, config)
    curate(CurateConfig(), raw_uri=raw, output_uri=curated, progress=no_progress)
    keep_list = f"{curated}/{KEEP_LIST_NAME}"
    return reshard(
        ReshardConfig(samples_per_shard=100),
        raw_uri=raw,
        keep_list_uri=keep_list,
        output_uri=shards,
        progress=no_progress,
    )


def test_an_object_store_ends_with_the_same_shards_as_a_folder(bucket: str, tmp_path: Path) -> None:
    with serving_sample() as base:
        urls = f"{bucket}/sample/urls.parquet"
        total = write_url_list(urls, split="evaluation", base_url=base)
        policy = DownloadConfig().policy.rebuilt(allowed_private_hosts=(base.removeprefix("http://"),), retry_wait_s=0)
        config = DownloadConfig(samples_per_partition=200, samples_per_shard=150, policy=policy)
        remote = prepare(urls, f"{bucket}/sample", config)
        local = prepare(urls, str(tmp_path), config)
    report = read_download_report(f"{bucket}/sample/{DOWNLOAD}/raw")
    assert (report.requested, report.downloaded) == (total, total)  # the bad links are in the other split
    assert sum(table.num_rows for table in iter_outcomes(f"{bucket}/sample/{DOWNLOAD}/raw")) == total
    assert [shard.sha256 for shard in remote.shards] == [shard.sha256 for shard in local.shards]
    verify_shards(read_manifest(f"{bucket}/sample/{SHARD}"), f"{bucket}/sample/{SHARD}")


def test_what_another_process_wrote_is_seen_after_a_listing(bucket: str) -> None:
    storage.write_atomic(f"{bucket}/seen/a", b"a")
    assert storage.list_files(f"{bucket}/seen") == [f"{bucket}/seen/a"]
    fsspec.filesystem("s3", skip_instance_cache=True).pipe_file(f"{bucket}/seen/b", b"b")
    assert storage.exists(f"{bucket}/seen/b")
    assert len(storage.list_files(f"{bucket}/seen")) == 2


def test_a_shard_that_was_changed_on_the_store_is_found(bucket: str) -> None:
    shards = f"{bucket}/sample/{SHARD}"
    manifest = read_manifest(shards)
    uri = storage.join(shards, manifest.shards[0].path)
    data = storage.read_bytes(uri)
    storage.write_atomic(uri, data[:1000] + b"x" + data[1001:])
    with pytest.raises(CorruptArtefactError, match="contents changed"):
        verify_shards(manifest, shards)
    storage.write_atomic(uri, data)
    verify_shards(manifest, shards)


def test_a_dataset_on_the_store_is_described_and_samples_are_forgotten(bucket: str, tmp_path: Path) -> None:
    root = f"{bucket}/sample"
    raw, keep_list, shards = f"{root}/{DOWNLOAD}/raw", f"{root}/{CURATE}/{KEEP_LIST_NAME}", f"{root}/{SHARD}"

    def described() -> DatasetDescription:
        found, shown = describe_dataset(
            raw_uri=raw, keep_list_uri=keep_list, shards_uri=shards, imported=False, progress=no_progress
        )
        assert all(sample.picture for sample in shown)
        return found

    before = described()
    assert sum(before.rates.downloaded) == before.downloaded
    uids = [row["uid"] for row in next(iter_outcomes(raw)).slice(0, 2).to_pylist()]
    tracking = f"tracking={{uri: 'sqlite:///{tmp_path}/mlflow.db'}}"
    config = load_run_config(QUICKSTART, (f"workspace={root}", tracking))
    found = forget(config, RemovalRequest(uids=frozenset(uids)), dry_run=False)
    assert found.reached[DOWNLOAD] == found.reached[CURATE] == 2
    after = described()
    assert (after.downloaded, after.failed) == (before.downloaded - 2, before.failed | {"removed": 2})
    assert after.samples == before.samples - found.reached[SHARD]
    verify_shards(read_manifest(shards), shards)
    resharded = f"{root}/shard-evaluation-ffffffffffff"
    reshard(ReshardConfig(), raw_uri=raw, keep_list_uri=keep_list, output_uri=resharded, progress=no_progress)
    assert read_manifest(resharded).num_samples == after.samples


def test_the_commands_work_on_an_object_store(bucket: str, tmp_path: Path, hyperclip: Command) -> None:
    settings = [f"workspace={bucket}/commands", f"tracking={{uri: 'sqlite:///{tmp_path}/mlflow.db'}}"]
    for number, name in enumerate(("train", "evaluation")):
        rows = [
            {"uid": f"{name}-{i}", "image": picture(10 * number + i, width=64, height=64), "caption": f"a {i}"}
            for i in range(6)
        ]
        storage.write_atomic(f"{bucket}/{name}.parquet", Path(write_parquet(tmp_path / "pictures.parquet", rows)).read_bytes())
        settings.append(f"datasets.{name}.source.uris=['{bucket}/{name}.parquet']")
    arguments = [str(OWN), *(part for setting in settings for part in ("--set", setting))]
    made = hyperclip("describe", *arguments)
    assert made.status == 0, made.error
    (report,) = storage.list_files(f"{bucket}/commands/{_only(bucket, 'describe-train')}", suffix=".html")
    assert report in made.output.replace("\n", "")
    forgotten = hyperclip("forget", *arguments, "--uid", "train-3")
    assert forgotten.status == 0, forgotten.error
    assert not storage.exists(report)  # it may show the picture
    assert hyperclip("describe", *arguments).status == 0
    assert storage.exists(report)
    assert read_manifest(f"{bucket}/commands/{_only(bucket, 'shard-train')}").num_samples == 5
    assert hyperclip("forget", *arguments, "--uid", "nobody").status == 2


def _only(bucket: str, step: str) -> str:
    (found,) = [uri for uri in storage.list_folders(f"{bucket}/commands") if f"/{step}-" in uri]
    return found.rpartition("/")[2]


DOWNLOAD_THE_SECOND_PARTITION = """
import sys
from data_prep.download_config import DownloadConfig
from data_prep.partition import download_partition
from data_prep.url_list import UrlListConfig
from data_prep.url_plan import plan_url_list

urls, raw, config = sys.argv[1], sys.argv[2], DownloadConfig.model_validate_json(sys.argv[3])
plan = plan_url_list(urls, UrlListConfig(), samples_per_partition=2, samples_per_shard=1, output_uri=raw)
download_partition(list(plan.partitions(raw))[1], config, output_uri=raw)
"""


def test_a_partition_that_was_killed_is_done_again_whole(bucket: str, tmp_path: Path) -> None:
    asked, killed = threading.Event(), threading.Event()

    def hang_once(request: BaseHTTPRequestHandler) -> None:
        if not killed.is_set():
            asked.set()
            killed.wait(60)
        answer(picture(3))(request)

    names = [f"p{i}" for i in range(4)]
    answers = {f"/{name}.webp": answer(picture(i)) for i, name in enumerate(names)} | {"/p3.webp": hang_once}
    with web_server(answers) as web:
        urls, raw = write_parquet(tmp_path / "urls.parquet", url_rows(web.url, names)), f"{bucket}/killed/raw"
        config = DownloadConfig(samples_per_partition=2, samples_per_shard=1, threads=1, policy=web.allowed())
        command = [sys.executable, "-c", DOWNLOAD_THE_SECOND_PARTITION, urls, raw, config.model_dump_json()]
        with subprocess.Popen(command) as process:
            assert asked.wait(60)  # the first of its two shards is written, the second begun
            process.kill()
        killed.set()
        assert not storage.list_files(f"{raw}/partitions")
        report = run(urls, raw, config)
    assert (report.downloaded, report.skipped_partitions) == (4, 0)
    assert web.requests == Counter({"/p0.webp": 1, "/p1.webp": 1, "/p2.webp": 2, "/p3.webp": 2})
    again = run(urls, raw, config)  # the server is gone: everything is found done
    assert (again.downloaded, again.skipped_partitions) == (4, 2)
