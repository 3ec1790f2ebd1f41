"""What was asked to be forgotten, and downloads: taken out of every round, and not asked for again."""

from pathlib import Path

import pytest

import data_prep.download
from data_prep.download import download
from data_prep.download_config import DownloadConfig
from data_prep.partition import download_partition
from data_prep.raw import DownloadReport, read_download_report, read_raw_shard
from data_prep.removal.requests import Removal, RemovalRequest, Removals, matched, write_removals
from data_prep.url_list import UrlListConfig
from pipeline.config import load_run_config
from pipeline.forget import forget
from tests.unit.data_helpers import (
    body,
    no_progress,
    one_partition,
    picture,
    run_each_here,
    status,
    url_rows,
    web_server,
    write_parquet,
)
from tests.unit.removal_helpers import QUICKSTART

DOWNLOAD = "download-train-0123456789ab"


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
