"""The bundled sample from URLs to training shards: real HTTP, real img2dataset, real Ray."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_prep.curation.curate import KEEP_LIST_NAME, CurateConfig, curate
from data_prep.download import download
from data_prep.download_config import DownloadConfig
from data_prep.fan_out import MAX_FAILED, Done, Failed, TaskConfig, WorkerDiedError, fan_out, fan_out_each
from data_prep.fetch.policy import FetchPolicy
from data_prep.manifest import read_manifest, verify_shards
from data_prep.raw import DownloadReport
from data_prep.reshard import ReshardConfig, reshard
from data_prep.sample.links import BAD_LINKS, write_url_list
from data_prep.sample.serve import serving_sample
from data_prep.url_list import UrlListConfig
from infra.cluster import ClusterConfig, connected
from infra.errors import BadInputError, DataLossError
from tests.unit.data_helpers import body as answer
from tests.unit.data_helpers import no_progress, picture, url_rows, web_server, write_parquet

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module", autouse=True)
def ray_cluster() -> Iterator[None]:
    with connected(ClusterConfig(num_cpus=2)):
        yield


def run(urls: str, output: Path, config: DownloadConfig) -> DownloadReport:
    return download(config, url_list_uri=urls, url_columns=UrlListConfig(), output_uri=str(output), progress=no_progress)


def test_the_sample_arrives_whole_and_every_bad_link_is_accounted_for(tmp_path: Path) -> None:
    raw, curated, shards = (str(tmp_path / name) for name in ("raw", "curated", "shards"))
    urls = str(tmp_path / "urls.parquet")
    with serving_sample() as base:
        total = write_url_list(urls, split="train", base_url=base)
        policy = FetchPolicy(allowed_private_hosts=(base.removeprefix("http://"),), retry_wait_s=0)
        config = DownloadConfig(samples_per_partition=600, samples_per_shard=250, policy=policy)
        report = run(urls, Path(raw), config)
    expected = Counter(link.outcome for link in BAD_LINKS if link.outcome != "duplicate")
    assert report.failed == dict(sorted(expected.items()))
    assert report.downloaded == total - expected.total()
    kept = curate(CurateConfig(), raw_uri=raw, output_uri=curated, progress=no_progress)
    assert kept.dropped["duplicate_exact"] == sum(link.outcome == "duplicate" for link in BAD_LINKS)
    manifest = reshard(
        ReshardConfig(), raw_uri=raw, keep_list_uri=f"{curated}/{KEEP_LIST_NAME}", output_uri=shards, progress=no_progress
    )
    verify_shards(read_manifest(shards), shards)
    assert manifest.num_samples == kept.kept == total - expected.total() - sum(kept.dropped.values())


def test_a_stopped_download_goes_on_with_the_partitions_that_are_missing(tmp_path: Path) -> None:
    names = [f"p{i}" for i in range(8)]
    with web_server({f"/{name}.webp": answer(picture(i)) for i, name in enumerate(names)}) as web:
        urls = write_parquet(tmp_path / "urls.parquet", url_rows(web.url, names))
        config = DownloadConfig(samples_per_partition=2, policy=web.allowed(), tasks=TaskConfig(max_in_flight=1))

        def stop_half_way(done: int, _total: int, _note: str) -> None:
            if done >= 4:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            download(
                config, url_list_uri=urls, url_columns=UrlListConfig(), output_uri=str(tmp_path / "raw"), progress=stop_half_way
            )
        assert not (tmp_path / "raw/download.json").exists()
        report = run(urls, tmp_path / "raw", config)
        assert (report.downloaded, report.skipped_partitions) == (8, 2)
        assert set(web.requests.values()) == {1}
        other = write_parquet(tmp_path / "other.parquet", url_rows(web.url, names[:4]))
        with pytest.raises(BadInputError, match="another URL list"):
            run(other, tmp_path / "raw", config)


def test_too_low_a_success_rate_fails_with_the_reasons_and_marks_nothing_done(tmp_path: Path) -> None:
    names = ["a", "b", "c", "d"]
    with web_server({"/a.webp": answer(picture(0)), "/b.webp": answer(picture(1))}) as web:
        urls = write_parquet(tmp_path / "urls.parquet", url_rows(web.url, names))
        config = DownloadConfig(samples_per_partition=2, min_success_rate=0.75, policy=web.allowed())
        with pytest.raises(DataLossError, match=r"only 2 of 4 pictures .* 50\.0%.* 75\.0%\. Failed: http_404 2"):
            run(urls, tmp_path / "raw", config)
        assert not (tmp_path / "raw/download.json").exists()
        web.answers |= {"/c.webp": answer(picture(2)), "/d.webp": answer(picture(3))}
        report = run(urls, tmp_path / "raw", config)  # tries the bad partition again, and only that
        assert (report.downloaded, report.skipped_partitions, web.requests["/a.webp"]) == (4, 1, 1)


def test_a_download_of_nothing_fails_even_without_a_floor(tmp_path: Path) -> None:
    with web_server({}) as web:
        urls = write_parquet(tmp_path / "urls.parquet", url_rows(web.url, ["a"]))
        with pytest.raises(DataLossError, match="only 0 of 1"):
            run(urls, tmp_path / "raw", DownloadConfig(min_success_rate=0, policy=web.allowed()))


def _die_once(marker: str) -> str:
    import os

    if not Path(marker).exists():
        Path(marker).touch()
        os._exit(1)
    return "alive"


def _die() -> None:
    import os

    os._exit(1)


def _refuse() -> None:
    raise BadInputError("no good")


def test_a_task_whose_worker_dies_is_started_again(tmp_path: Path) -> None:
    assert list(fan_out(_die_once, [(str(tmp_path / "marker"),)], TaskConfig())) == ["alive"]


def test_a_task_that_always_dies_and_one_that_raises_end_with_their_own_errors() -> None:
    with pytest.raises(WorkerDiedError, match="lost 1 times"):
        list(fan_out(_die, [()], TaskConfig(max_retries=0)))
    with pytest.raises(BadInputError, match="no good"):
        list(fan_out(_refuse, [()], TaskConfig()))


def _fail_if_odd(number: int) -> int:
    if number % 2:
        raise OSError(f"{number} is odd")
    return number


def _count_and_fail(folder: str) -> None:
    from uuid import uuid4

    (Path(folder) / str(uuid4())).touch()
    raise RuntimeError("not yet")


def test_a_task_that_fails_for_good_leaves_the_others_alone(tmp_path: Path) -> None:
    config = TaskConfig(max_retries=1, retry_wait_s=0.01, max_in_flight=2)
    ended = list(fan_out_each(_fail_if_odd, ((number,) for number in range(6)), config))
    assert sorted(one.result for one in ended if isinstance(one, Done)) == [0, 2, 4]
    assert sorted((one.place, one.tries, str(one.error)) for one in ended if isinstance(one, Failed)) == [
        (number, 2, f"{number} is odd") for number in (1, 3, 5)
    ]
    assert len(list(fan_out_each(_count_and_fail, [(str(tmp_path),)], config))) == 1
    assert len(list(tmp_path.iterdir())) == 2


def test_arguments_are_taken_as_there_is_room_and_no_more_after_many_failures() -> None:
    taken = []

    def arguments() -> Iterator[tuple[int]]:
        for number in range(1000):
            taken.append(number)
            yield (2 * number + 1,)

    ended = list(fan_out_each(_fail_if_odd, arguments(), TaskConfig(max_retries=0, max_in_flight=3)))
    assert all(isinstance(one, Failed) for one in ended)
    assert MAX_FAILED <= len(ended) == len(taken) <= MAX_FAILED + 3
