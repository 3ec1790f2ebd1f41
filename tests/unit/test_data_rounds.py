"""A whole download without Ray: rounds over what may have passed, hashes, floors, and partitions that fail for good."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

import data_prep.download
import data_prep.download_checks
import data_prep.download_status
from data_prep.download import PartitionsFailedError, download
from data_prep.download_checks import TooFewDownloadedError
from data_prep.download_config import DownloadConfig
from data_prep.download_status import DownloadStatus, marked_as_begun
from data_prep.fetch.policy import REASONS
from data_prep.partition_report import PartitionReport
from data_prep.raw import DownloadReport, iter_outcomes, read_download_report, read_raw_shard
from data_prep.url_list import UrlListConfig
from data_prep.url_plan import REPEATED, Partition
from infra.errors import BadInputError
from tests.unit.data_helpers import (
    WebServer,
    body,
    no_progress,
    picture,
    run_each_here,
    sha256,
    status,
    url_rows,
    web_server,
    write_parquet,
)


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_prep.download, "fan_out_each", run_each_here)


def run(tmp_path: Path, rows: list[dict[str, Any]], web: WebServer, **config: Any) -> DownloadReport:
    defaults = {"samples_per_partition": 3, "samples_per_shard": 2, "retries": 0, "round_wait_s": 0, "min_success_rate": 0.1}
    uri = write_parquet(tmp_path / "urls.parquet", rows)
    settings = DownloadConfig.model_validate(defaults | {"policy": web.allowed()} | config)
    return download(
        settings, url_list_uri=uri, url_columns=UrlListConfig(), output_uri=str(tmp_path / "raw"), progress=no_progress
    )


def outcomes(tmp_path: Path) -> list[dict[str, Any]]:
    return [row for table in iter_outcomes(str(tmp_path / "raw")) for row in table.to_pylist()]


def names(tmp_path: Path, report: DownloadReport) -> list[str]:
    return [sample.record["uid"] for shard in report.shards for sample in read_raw_shard(str(tmp_path / "raw"), shard)]


PICTURES = {name: picture(seed) for seed, name in enumerate("abcdefg")}


def test_a_later_round_fetches_only_what_may_have_passed_and_merges_it(tmp_path: Path) -> None:
    answers = {f"/{name}.webp": body(data) for name, data in PICTURES.items()}
    with web_server(answers | {"/b.webp": status(503), "/e.webp": status(429), "/g.webp": status(500)}) as web:
        rows = url_rows(web.url, [*"abcdefg", "gone"])
        first = run(tmp_path, rows, web)
        assert (first.downloaded, first.failed) == (4, {"http_404": 1, "http_429": 1, "http_500": 1, "http_503": 1})
        web.answers |= {"/b.webp": body(PICTURES["b"]), "/e.webp": status(404)}
        before = Counter(web.requests)
        second = run(tmp_path, rows, web, rounds=2)
        assert web.requests - before == Counter({"/b.webp": 1, "/e.webp": 1, "/g.webp": 1})
        assert (second.downloaded, second.failed, second.rounds) == (5, {"http_404": 2, "http_500": 1}, 2)
        found = outcomes(tmp_path)
        assert [row["row"] for row in found] == list(range(8))
        assert {row["uid"]: (row["round"], row["attempts"]) for row in found if row["round"] == 2} == dict.fromkeys(
            "beg", (2, 2)
        )
        assert [row["reason"] for row in found] == [None, None, None, None, "http_404", None, "http_500", "http_404"]
        assert sorted(names(tmp_path, second)) == ["a", "b", "c", "d", "f"]
        assert len({shard.path.rpartition("/")[2] for shard in second.shards}) == len(second.shards)
        before = Counter(web.requests)
        third = run(tmp_path, rows, web, rounds=3)  # of the second round only one failure may have passed
        assert (web.requests - before, third.rounds) == (Counter({"/g.webp": 1}), 3)
        again = run(tmp_path, rows, web, rounds=3)
        assert (again.shards, again.failed) == (third.shards, third.failed)
        with pytest.raises(BadInputError, match="has been through 3 rounds"):
            run(tmp_path, rows, web, rounds=2)


def test_rounds_at_once_give_what_rounds_one_after_the_other_give(tmp_path: Path) -> None:
    answers = {f"/{name}.webp": body(data) for name, data in PICTURES.items()} | {"/b.webp": status(503)}
    with web_server(answers) as web:
        rows = url_rows(web.url, [*"abcdefg"])
        for folder, all_rounds in (("at-once", (2,)), ("one-by-one", (1, 2))):
            for rounds in all_rounds:
                run(tmp_path / folder, rows, web, rounds=rounds)
        tars = [
            {path.relative_to(tmp_path / folder): sha256(path.read_bytes()) for path in (tmp_path / folder).rglob("*.tar")}
            for folder in ("at-once", "one-by-one")
        ]
    assert tars[0] == tars[1]


def test_a_round_that_was_cut_off_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with web_server({"/a.webp": body(PICTURES["a"]), "/b.webp": status(503), "/e.webp": status(503)}) as web:
        rows = url_rows(web.url, [*"abcdef"])
        run(tmp_path, rows, web)
        with monkeypatch.context() as patch:
            patch.setattr(data_prep.download, "fan_out_each", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                run(tmp_path, rows, web, rounds=2)
        assert not (tmp_path / "raw/download.json").exists()
        assert run(tmp_path, rows, web, rounds=2).failed == {"http_404": 3, "http_503": 2}
        assert (web.requests["/b.webp"], web.requests["/c.webp"]) == (2, 1)


def test_a_partition_done_again_makes_its_later_rounds_undone(tmp_path: Path) -> None:
    with web_server({"/a.webp": body(PICTURES["a"]), "/b.webp": status(503)}) as web:
        rows = url_rows(web.url, [*"ab"])
        run(tmp_path, rows, web, rounds=2)
        (tmp_path / "raw/partitions/00000.json").unlink()
        web.answers["/b.webp"] = body(PICTURES["b"])
        report = run(tmp_path, rows, web, rounds=2)
    assert (report.downloaded, [row["round"] for row in outcomes(tmp_path)]) == (2, [1, 1])


def test_other_bytes_than_the_list_gives_the_hash_of_are_put_on_record(tmp_path: Path) -> None:
    answers = {f"/{name}.webp": body(data) for name, data in PICTURES.items()}
    with web_server(answers | {"/b.webp": body(PICTURES["g"])}) as web:
        rows = [row | {"sha256": sha256(PICTURES[row["uid"]])} for row in url_rows(web.url, [*"abcd"])]
        rows.append(rows[1] | {"uid": "same", "sha256": sha256(PICTURES["g"])})  # the same URL, and right
        report = run(tmp_path, rows, web)
    assert (report.failed, report.quarantined) == ({"sha256_mismatch": 1}, 1)
    (row,) = pq.read_table(tmp_path / "raw/quarantine/00000.parquet").to_pylist()
    assert (row["uid"], row["expected_sha256"], row["received_sha256"]) == ("b", sha256(PICTURES["b"]), sha256(PICTURES["g"]))
    assert (row["received_bytes"], row["final_url"]) == (len(PICTURES["g"]), f"{web.url}/b.webp")
    assert sorted(names(tmp_path, report)) == ["a", "c", "d", "same"]
    assert {row["uid"]: row["received_sha256"] for row in outcomes(tmp_path)}["a"] == sha256(PICTURES["a"])
    assert [path.name for path in (tmp_path / "raw/quarantine").iterdir()] == ["00000.parquet"]


def test_repetitions_and_bad_urls_are_counted_and_nothing_is_asked_for_them(tmp_path: Path) -> None:
    with web_server({"/a.webp": body(PICTURES["a"])}) as web:
        url = f"{web.url}/a.webp"
        rows = [{"url": url, "caption": "x"}] * 4 + [{"url": "ftp://a.org/a.jpg", "caption": "x"}]
        report = run(tmp_path, rows, web, min_success_rate=0.5)
        assert (report.downloaded, report.failed, web.requests.total()) == (1, {"bad_url": 1, "repeated": 3}, 1)
    found = outcomes(tmp_path)
    assert [row["detail"] for row in found[1:4]] == ["row 0 has the same URL and caption"] * 3
    assert len({row["uid"] for row in found}) == 5


def test_too_many_failures_that_point_at_our_own_side_fail_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_prep.download_checks, "ALARM_FROM_ROWS", 2)
    with web_server({f"/{name}.webp": body(data) for name, data in PICTURES.items()}) as web:
        rows = url_rows(web.url, [*"abcdefg"]) + url_rows("http://127.0.0.2:9", ["x", "y", "z"])
        says = r"3 of 10 pictures failed with forbidden_address: 30.0%, and at most 20.0% may .*Look at the resolver"
        with pytest.raises(TooFewDownloadedError, match=says) as caught:
            run(tmp_path, rows, web, max_reason_share={"forbidden_address": 0.2})
        assert caught.value.setting == "max_reason_share.forbidden_address"
        assert not (tmp_path / "raw/download.json").exists()
        assert run(tmp_path, rows, web, max_reason_share={"forbidden_address": 0.3}).downloaded == 7
        assert web.requests["/a.webp"] == 1  # only where it went wrong is done again


def test_what_a_finished_download_left_is_not_fetched_again_for_a_floor_that_was_raised(tmp_path: Path) -> None:
    """Curation has read it: another outcome in the same folder would leave offsets of bytes that are gone."""
    with web_server({"/a.webp": body(PICTURES["a"]), "/b.webp": status(503)}) as web:
        rows = url_rows(web.url, [*"abc"])
        first = run(tmp_path, rows, web)
        with pytest.raises(TooFewDownloadedError, match=r"only 1 of 3 pictures"):
            run(tmp_path, rows, web, rounds=2, min_success_rate=0.6)
        web.answers["/b.webp"] = body(PICTURES["b"])
        assert run(tmp_path, rows, web, rounds=2, min_success_rate=0.6).downloaded == 2  # the second round, done again
        assert (web.requests["/a.webp"], web.requests["/b.webp"], web.requests["/c.webp"]) == (1, 3, 1)
        assert [row["round"] for row in outcomes(tmp_path)] == [1, 2, 1]
        assert all(shard in run(tmp_path, rows, web, rounds=2).shards for shard in first.shards)


def test_a_floor_missed_by_a_download_that_never_finished_makes_it_fetch_again(tmp_path: Path) -> None:
    with web_server({"/a.webp": body(PICTURES["a"])}) as web:
        rows = url_rows(web.url, [*"abc"])
        with pytest.raises(TooFewDownloadedError):
            run(tmp_path, rows, web, rounds=2, min_success_rate=0.6)
        web.answers |= {"/b.webp": body(PICTURES["b"])}  # a 404 that was the network's doing
        assert run(tmp_path, rows, web, rounds=2, min_success_rate=0.6).downloaded == 2


def test_rows_that_repeat_count_for_no_floor_and_no_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_prep.download_checks, "ALARM_FROM_ROWS", 1)
    with web_server({"/a.webp": body(PICTURES["a"])}) as web:
        private = {"url": "http://127.0.0.2:9/x.webp", "caption": "x"}
        rows = [{"url": f"{web.url}/a.webp", "caption": "a"}] * 4 + [private]
        for _ in range(2):  # one of two: above the share, and tried again each time
            with pytest.raises(TooFewDownloadedError, match="1 of 2 pictures failed with forbidden_address"):
                run(tmp_path, rows, web, samples_per_partition=5, max_reason_share={"forbidden_address": 0.4})
    assert web.requests["/a.webp"] == 2


def test_a_share_that_is_set_stands_beside_the_others() -> None:
    shares = DownloadConfig(max_reason_share={"dns": 1.0, "http_403": 0.1}).max_reason_share
    assert shares == DownloadConfig().max_reason_share | {"dns": 1.0, "http_403": 0.1}
    assert DownloadConfig().max_reason_share["tls"] == 0.3
    with pytest.raises(ValidationError, match="no download fails with the reason 'forbiden_address'"):
        DownloadConfig(max_reason_share={"forbiden_address": 0.1})


def test_the_guide_tells_of_every_reason() -> None:
    table = (Path(__file__).parents[2] / "docs" / "data.md").read_text().partition("| `reason` | |")[2].partition("\n\n")[0]
    first_cells = " ".join(line.split("|")[1] for line in table.splitlines() if line.startswith("| `"))
    told = set(re.findall(r"`(\w+)`", first_cells))
    assert {reason for reason in told if not reason.startswith("http_")} == {*REASONS, REPEATED}


def test_a_partition_that_fails_for_good_is_named_and_the_others_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = data_prep.download.download_partition

    def fail_one(partition: Any, *arguments: Any, **more: Any) -> Any:
        if partition.number == 1:
            raise OSError("the disk is full")
        return real(partition, *arguments, **more)

    with web_server({f"/{name}.webp": body(data) for name, data in PICTURES.items()}) as web:
        rows = url_rows(web.url, [*"abcdefg"])
        with monkeypatch.context() as patch:
            patch.setattr(data_prep.download, "download_partition", fail_one)
            says = r"1 of 3 partitions failed, the others are done: partition 00001, 1 times: OSError: the disk is full"
            with pytest.raises(PartitionsFailedError, match=says):
                run(tmp_path, rows, web)
        assert "the disk is full" in (tmp_path / "raw/status.json").read_text()
        assert not (tmp_path / "raw/begun").exists()
        report = run(tmp_path, rows, web)
        assert (report.downloaded, report.skipped_partitions, set(web.requests.values())) == (7, 2, {1})
    assert read_download_report(str(tmp_path / "raw")) == report


def test_the_status_tells_what_runs_from_what_waits_for_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_prep.download_status, "WRITTEN_EVERY_S", 0)
    partitions = [Partition(number, number, 3, "", "") for number in range(3)]
    uri = str(tmp_path / "raw")
    report = PartitionReport(
        partition=0, requested=3, downloaded=3, failed={}, bytes=1, seconds=1, shards=[], config_hash="", rows_hash=""
    )

    def told() -> tuple[list[str], list[str], int]:
        found = json.loads((tmp_path / "raw/status.json").read_text())
        return list(found["running"]), found["queued"], found["done"]

    shown = DownloadStatus(DownloadConfig(), partitions, [], output_uri=uri, progress=no_progress)
    for partition in partitions:
        shown.hand_out(partition)
    assert told() == ([], ["00000", "00001", "00002"], 0)
    with marked_as_begun(partitions[1], uri):
        shown.done(partitions[0], report)
        assert told() == (["00001"], ["00002"], 1)
    shown.failed(partitions[1], OSError("no"))
    assert told() == ([], ["00002"], 1)
    shown.end()
    assert not (tmp_path / "raw/begun").exists()


def test_the_same_pictures_make_the_same_bytes_whatever_comes_first(tmp_path: Path) -> None:
    answers = {f"/{name}.webp": body(data) for name, data in PICTURES.items()}
    hashes = []
    with web_server(answers) as web:
        for folder, threads in (("one", 1), ("many", 8)):
            report = run(
                tmp_path / folder,
                url_rows(web.url, [*"abcdefg"]),
                web,
                samples_per_partition=7,
                samples_per_shard=7,
                threads=threads,
            )
            hashes.append([shard.sha256 for shard in report.shards])
            assert names(tmp_path / folder, report) == [*"abcdefg"]
    assert hashes[0] == hashes[1]
