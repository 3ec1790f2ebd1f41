"""A partition through the real img2dataset: what it stores, what it refuses, and what a second run does."""

from pathlib import Path
from typing import Any

import pytest

import data_prep.partition
from data_prep.download_config import DownloadConfig
from data_prep.fetch.policy import FetchPolicy
from data_prep.partition import download_partition
from data_prep.partition_report import outcomes_uri, report_uri
from data_prep.raw import RawSample, read_raw_shard
from data_prep.sorted_shards import SortedShardWriter
from infra.errors import DataLossError
from tests.unit.data_helpers import body, one_partition, picture, read_table, sha256, status, url_rows, web_server

PICTURES = {name: picture(seed) for seed, name in enumerate(["a", "b", "c"])}
ANSWERS = {f"/{name}.webp": body(data) for name, data in PICTURES.items()}


def stored(output: Path, report: Any) -> dict[str, RawSample]:
    return {sample.record["uid"]: sample for shard in report.shards for sample in read_raw_shard(str(output), shard)}


def test_pictures_are_stored_as_received_with_all_that_the_list_says(tmp_path: Path) -> None:
    with web_server(dict(ANSWERS)) as web:
        rows = url_rows(web.url, ["a", "b", "c"])
        extra = {"sha256": sha256(PICTURES["a"]), "captions": ["more"], "group": "g", "source": "s", "licence": "CC0-1.0"}
        config = DownloadConfig(samples_per_shard=2, policy=web.allowed())
        report = download_partition(
            one_partition(tmp_path, [rows[0] | extra, *rows[1:]], config), config, output_uri=str(tmp_path)
        )
    samples = stored(tmp_path, report)
    assert {uid: sample.image for uid, sample in samples.items()} == PICTURES
    assert samples["a"].record.items() >= {"row": 0, "caption": "picture a", "concept": "a", **extra}.items()
    assert (report.requested, report.downloaded, report.failed) == (3, 3, {})
    tar = (tmp_path / next(shard.path for shard in report.shards if shard.samples)).read_bytes()
    assert any(tar[s.image_offset : s.image_offset + len(s.image)] == s.image for s in samples.values())


def test_canary_a_forbidden_address_is_never_connected_to(tmp_path: Path) -> None:
    """Fails when img2dataset stops fetching through the installed opener."""
    with web_server(dict(ANSWERS)) as web:
        config = DownloadConfig(policy=FetchPolicy())  # loopback is not named
        partition = one_partition(tmp_path, url_rows(web.url, ["a", "b"]), config)
        report = download_partition(partition, config, output_uri=str(tmp_path))
        assert web.connections == 0
    assert report.failed == {"forbidden_address": 2}


def test_a_way_round_the_opener_stops_the_partition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import img2dataset.downloader

    monkeypatch.setattr(img2dataset.downloader, "download_image", lambda row, *_: (row[0], None, "went another way"))
    config = DownloadConfig()
    with pytest.raises(DataLossError, match="does not fetch through the opener"):
        download_partition(
            one_partition(tmp_path, url_rows("http://x.invalid", ["a"]), config), config, output_uri=str(tmp_path)
        )


def test_every_row_has_an_outcome_with_its_reason_and_request(tmp_path: Path) -> None:
    answers = ANSWERS | {
        "/page.webp": body(b"<html>", Content_Type="text/html"),
        "/no.webp": body(picture(9), X_Robots_Tag="noai"),
    }
    with web_server(answers) as web:
        rows = url_rows(web.url, ["a", "gone", "page", "no", "b"])
        rows[4]["sha256"] = sha256(b"what it was once")
        rows.append(rows[0] | {"uid": "odd", "url": "ftp://example.org/a.jpg"})
        config = DownloadConfig(policy=web.allowed())
        partition = one_partition(tmp_path, rows, config)
        report = download_partition(partition, config, output_uri=str(tmp_path))
    outcomes = {row["uid"]: row for row in read_table(outcomes_uri(str(tmp_path), partition)).to_pylist()}
    assert {uid: row["reason"] for uid, row in outcomes.items()} == {
        "a": None,
        "gone": "http_404",
        "page": "not_an_image",
        "no": "robots_disallowed",
        "b": "sha256_mismatch",
        "odd": "bad_url",
    }
    assert (outcomes["gone"]["http_status"], outcomes["page"]["content_type"]) == (404, "text/html")
    a = outcomes["a"]
    assert (a["format"], a["width"], a["height"], a["bytes"]) == ("webp", 48, 48, len(PICTURES["a"]))
    assert a["sha256"] == sha256(PICTURES["a"])
    assert sum(report.failed.values()) == 5


def test_an_object_store_takes_the_shards(tmp_path: Path) -> None:
    output = f"memory://{tmp_path.name}/raw"
    with web_server(dict(ANSWERS)) as web:
        config = DownloadConfig(policy=web.allowed())
        report = download_partition(one_partition(tmp_path, url_rows(web.url, ["a", "b"]), config), config, output_uri=output)
    found = [sample.image for shard in report.shards for sample in read_raw_shard(output, shard)]
    assert sorted(found) == sorted([PICTURES["a"], PICTURES["b"]])


def test_photographs_are_resized_when_asked(tmp_path: Path) -> None:
    with web_server({"/a.webp": body(picture(width=300, height=200, image_format="JPEG"))}) as web:
        config = DownloadConfig(resize=64, policy=web.allowed())
        partition = one_partition(tmp_path, url_rows(web.url, ["a"]), config)
        download_partition(partition, config, output_uri=str(tmp_path))
    (row,) = read_table(outcomes_uri(str(tmp_path), partition)).to_pylist()
    assert (row["format"], row["width"], row["height"]) == ("jpeg", 96, 64)


def test_a_finished_partition_is_not_downloaded_again(tmp_path: Path) -> None:
    with web_server(dict(ANSWERS)) as web:
        config = DownloadConfig(policy=web.allowed())
        partition = one_partition(tmp_path, url_rows(web.url, ["a", "b"]), config)
        first = download_partition(partition, config, output_uri=str(tmp_path))
        again = download_partition(partition, config.rebuilt(threads=1), output_uri=str(tmp_path))
        assert again == first
        assert web.requests.total() == 2


@pytest.mark.parametrize("damage", ["report is gone", "report is torn", "tar is cut", "outcomes are gone", "rows differ"])
def test_a_torn_partition_is_done_again_from_scratch(tmp_path: Path, damage: str) -> None:
    with web_server(dict(ANSWERS)) as web:
        config = DownloadConfig(policy=web.allowed())
        partition = one_partition(tmp_path, url_rows(web.url, ["a", "b"]), config)
        report = download_partition(partition, config, output_uri=str(tmp_path))
        match damage:
            case "report is gone":
                Path(report_uri(str(tmp_path), partition)).unlink()
            case "report is torn":
                Path(report_uri(str(tmp_path), partition)).write_text('{"partition": 0, ')
            case "tar is cut":
                tar = tmp_path / report.shards[0].path
                tar.write_bytes(tar.read_bytes()[:700])
            case "outcomes are gone":
                Path(outcomes_uri(str(tmp_path), partition)).unlink()
            case "rows differ":
                partition = one_partition(tmp_path, url_rows(web.url, ["a", "c"]), config)
        report = download_partition(partition, config, output_uri=str(tmp_path))
        assert web.requests.total() == 4
    assert sorted(stored(tmp_path, report)) == (["a", "c"] if damage == "rows differ" else ["a", "b"])


def test_a_partition_that_dies_half_way_leaves_no_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with web_server(dict(ANSWERS)) as web:
        config = DownloadConfig(policy=web.allowed())
        partition = one_partition(tmp_path, url_rows(web.url, ["a", "b"]), config)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(data_prep.partition, "collect_outcomes", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
            download_partition(partition, config, output_uri=str(tmp_path))
        assert not Path(report_uri(str(tmp_path), partition)).exists()
        assert download_partition(partition, config, output_uri=str(tmp_path)).downloaded == 2


def test_a_sample_that_img2dataset_loses_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = SortedShardWriter.write

    def write_all_but_b(self: Any, image: Any, key: str, caption: Any, meta: dict[str, Any]) -> None:
        if meta["uid"] == "b":
            raise RuntimeError("disk on fire")  # img2dataset prints this and goes on
        write(self, image, key, caption, meta)

    monkeypatch.setattr(SortedShardWriter, "write", write_all_but_b)
    with web_server(dict(ANSWERS)) as web:
        config = DownloadConfig(policy=web.allowed())
        with pytest.raises(DataLossError, match="1 missing: b"):
            rows = url_rows(web.url, ["a", "b", "c"])
            download_partition(one_partition(tmp_path, rows, config), config, output_uri=str(tmp_path))


def test_a_busy_server_is_asked_again(tmp_path: Path) -> None:
    with web_server({"/a.webp": status(503)}) as web:
        config = DownloadConfig(retries=2, policy=web.allowed())
        report = download_partition(one_partition(tmp_path, url_rows(web.url, ["a"]), config), config, output_uri=str(tmp_path))
        assert web.requests["/a.webp"] == 3
    assert report.failed == {"http_503": 1}
