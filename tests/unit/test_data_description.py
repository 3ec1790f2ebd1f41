"""What is told of a dataset: counts that add up, in bounded memory, and nothing hostile on the page."""

import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import data_prep.curation.curate
import data_prep.import_pictures
import data_prep.reshard
from data_prep import shown_samples, tallies
from data_prep.curation.curate import KEEP_LIST_NAME, CurateConfig, curate
from data_prep.description import DatasetDescription, describe_dataset, host_of
from data_prep.import_pictures import import_pictures
from data_prep.partition_report import write_table
from data_prep.picture_partition import ImportConfig
from data_prep.raw import OUTCOME_SCHEMA, iter_outcomes
from data_prep.reshard import ReshardConfig, reshard
from data_prep.shown_samples import KEPT, SHOWN_KEPT, Showing, ShownSample
from data_prep.tallies import HistogramTally, NameTally, TimeTally
from infra import storage
from pipeline.data_report import DESCRIPTION_NAME, REPORT_NAME, write_report_files
from tests.html_page import Page
from tests.unit.data_helpers import no_progress, picture, run_here, write_parquet

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)> {{ 7 * 7 }} $\\frac{1}{0}$ & <b>'


class Described:
    """A dataset of 30 good pictures and some that were lost, with outcomes as a download leaves them, described."""

    def __init__(self, root: Path) -> None:
        self.raw, keep, shards = f"{root}/raw", f"{root}/curated/{KEEP_LIST_NAME}", f"{root}/shards"
        rows: list[dict[str, Any]] = [
            {"uid": f"u{i}", "image": picture(i), "caption": HOSTILE if i == 1 else f"thing {i}", "source": HOSTILE}
            for i in range(30)
        ]
        rows += [rows[0] | {"uid": "again"}, rows[2] | {"uid": "mute", "image": picture(50), "caption": ""}]
        rows += [{"uid": "cut", "image": picture(51, width=256, height=256, image_format="PNG")[:-400], "caption": "cut"}]
        rows += [{"uid": "page", "image": b"<html>", "caption": "a page"}]
        uri = write_parquet(root / "pictures.parquet", rows)
        import_pictures(uri, config=ImportConfig(), output_uri=self.raw, progress=no_progress)
        for table in list(iter_outcomes(self.raw)):
            entries = [
                row
                | {"url": f"http://{HOSTILE[2:10] if row['uid'] == 'u1' else 'HOST.example'}/{row['uid']}.webp"}
                | {"fetched_at": datetime.fromtimestamp(1_700_000_000 + 40 * place, UTC)}
                for place, row in enumerate(table.to_pylist())
            ]
            write_table(pa.Table.from_pylist(entries, schema=OUTCOME_SCHEMA), f"{self.raw}/outcomes/00000.parquet")
        curate(CurateConfig(), raw_uri=self.raw, output_uri=f"{root}/curated", progress=no_progress)
        reshard(ReshardConfig(), raw_uri=self.raw, keep_list_uri=keep, output_uri=shards, progress=no_progress)
        self.told: list[tuple[int, int, str]] = []
        self.description, self.shown = describe_dataset(
            raw_uri=self.raw,
            keep_list_uri=keep,
            shards_uri=shards,
            imported=False,
            progress=lambda *told: self.told.append(told),
        )
        self.folder = root / "report"
        self.folder.mkdir()
        write_report_files(self.description, self.shown, title=HOSTILE, folder=self.folder)


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Described:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(data_prep.curation.curate, "stream", run_here)
        for module in (data_prep.import_pictures, data_prep.reshard):
            patched.setattr(module, "fan_out", run_here)
        return Described(tmp_path_factory.mktemp("described"))


def test_the_funnel_adds_up_from_source_to_shards(described: Described) -> None:
    found = described.description
    assert (found.requested, found.downloaded, found.kept, found.samples) == (34, 33, 30, 30)
    assert found.failed == {"not_an_image": 1}
    assert found.dropped == {"caption_too_short": 1, "duplicate_exact": 1, "truncated": 1}
    for histogram in found.histograms.values():
        assert (sum(histogram.kept), sum(histogram.dropped)) == (30, 3)
    assert found.formats == {"png": 1, "webp": 32}
    assert (found.hosts[0].name, found.hosts[0].seen, found.hosts[0].good) == ("host.example", 33, 32)
    assert found.sources[0].good == 30
    assert sum(found.rates.downloaded) + sum(found.rates.failed) == 34
    assert found.metrics["funnel.samples"] == 30


def test_progress_counts_urls_and_then_samples(described: Described) -> None:
    assert described.told == [(0, 34, "URLs"), (34, 34, "URLs"), (0, 33, "samples"), (33, 33, "samples")]


def test_pictures_are_shown_of_what_was_kept_and_for_each_reason(described: Described) -> None:
    assert Counter(sample.reason for sample in described.shown) == {
        KEPT: SHOWN_KEPT,
        "caption_too_short": 1,
        "duplicate_exact": 1,
        "truncated": 1,
    }
    assert {sample.uid for sample in described.shown if sample.picture is None} == {"cut"}
    (again,) = [sample for sample in described.shown if sample.reason == "duplicate_exact"]
    assert (again.duplicate_of, again.original) == ("u0", again.picture)  # the same bytes
    html = (described.folder / REPORT_NAME).read_text()
    assert html.count('class="pair"') == 1
    assert "right: its original, u0" in html


def test_an_original_that_was_removed_since_is_not_shown(described: Described, tmp_path: Path) -> None:
    keep = pa.parquet.read_table(storage.join(described.raw, "..", "curated", KEEP_LIST_NAME)).to_pylist()
    changed = [row | ({"keep": False, "reason": "removed"} if row["uid"] == "u0" else {}) for row in keep]
    uri = write_parquet(tmp_path / "keep.parquet", changed)
    shards = f"{described.raw}/../shards"
    _, shown = describe_dataset(
        raw_uri=described.raw, keep_list_uri=uri, shards_uri=shards, imported=True, progress=no_progress
    )
    (again,) = [sample for sample in shown if sample.reason == "duplicate_exact"]
    assert (again.duplicate_of, again.original) == ("u0", None)


def test_what_strangers_wrote_stays_text_and_the_page_loads_nothing(described: Described) -> None:
    html = (described.folder / REPORT_NAME).read_text()
    page = Page(html)
    assert "script" not in {tag for tag, _ in page.tags}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    sources = {str(value)[:11] for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")}
    assert sources == {"data:image/"}
    assert HOSTILE in page.text
    assert "default-src 'none'" in html


def test_plots_and_numbers_lie_beside_the_page(described: Described) -> None:
    names = {path.name for path in described.folder.iterdir()}
    plots = {"funnel.png", "rates.png", "hosts.png", "sources.png", "sizes.png", "captions.png"}
    assert names == {REPORT_NAME, DESCRIPTION_NAME, *plots}
    assert all((described.folder / name).read_bytes().startswith(b"\x89PNG") for name in plots)
    written = DatasetDescription.model_validate_json((described.folder / DESCRIPTION_NAME).read_text())
    assert written == described.description


def test_pictures_that_nobody_asked_to_see_are_not_shown() -> None:
    reasons = ["score_nsfw", "removed", "damaged_shard"]
    table = pa.table({"uid": ["a", "b", "c"], "keep": [False] * 3, "reason": reasons})
    showing = Showing()
    showing.add(table)
    assert showing.samples("/nowhere") == []


def test_a_bounded_number_of_bytes_is_read_at_once(described: Described, monkeypatch: pytest.MonkeyPatch) -> None:
    showing, read_at_once = Showing(), list[int]()
    showing.add(pa.parquet.read_table(storage.join(described.raw, "..", "curated", KEEP_LIST_NAME)))
    read_ranges = storage.read_ranges

    def counted(ranges: list[tuple[str, int, int]]) -> list[bytes | Exception]:
        read_at_once.append(sum(end - start for _, start, end in ranges))
        return read_ranges(ranges)

    monkeypatch.setattr(storage, "read_ranges", counted)
    drawn = [sample._replace(original=None) for sample in described.shown]
    assert showing.samples(described.raw) == drawn
    (whole,) = read_at_once  # they are small
    read_at_once.clear()
    monkeypatch.setattr(shown_samples, "_BYTES_AT_ONCE", whole - 1)
    assert showing.samples(described.raw) == drawn
    assert sum(read_at_once) == whole
    assert len(read_at_once) == 2
    read_at_once.clear()
    monkeypatch.setattr(shown_samples, "_BYTES_AT_ONCE", 1)
    assert showing.samples(described.raw) == drawn
    assert len(read_at_once) == len(described.shown)  # a picture above the bound is read by itself


def test_bins_of_time_grow_instead_of_their_number() -> None:
    tally = TimeTally()
    times = np.arange(1_700_000_000, 1_700_000_000 + 100_000, 7)
    for part in np.array_split(times, 9):
        tally.add(part, succeeded=True)
    rates = tally.rates()
    assert sum(rates.downloaded) == len(times)
    assert len(rates.downloaded) <= tallies.MAX_TIME_BINS
    assert rates.first is not None
    assert rates.first <= times[0] < rates.first + rates.bin_s


def test_too_many_names_forget_the_rare_ones_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tallies, "MAX_NAMES", 10)
    tally = NameTally()
    tally.add(Counter({"big": 100}), Counter({"big": 60}))
    for number in range(30):
        tally.add(Counter({f"n{number}": 1}), Counter())
    assert [(one.name, one.seen, one.good) for one in tally.top(1)] == [("big", 100, 60)]
    assert tally.num_names <= 10
    assert tally.num_forgotten + sum(one.seen for one in tally.top(99)) == 130


def test_values_beyond_the_edges_are_counted_at_them() -> None:
    tally = HistogramTally([1, 2, 4])
    tally.add(np.array([0, 1, 2, 3, 4, 99, np.nan]), np.array([True] * 6 + [False]))
    assert tally.histogram().kept == [2, 4]
    assert tally.histogram().dropped == [0, 0]


@pytest.mark.parametrize(
    ("url", "host"), [("http://u:p@A.example:80/x", "a.example:80"), ("no url", ""), ("http://[::1", ""), ("ftp://b/x", "b")]
)
def test_hosts_are_read_from_any_url(url: str, host: str) -> None:
    assert host_of(url) == host


def test_the_same_list_shows_the_same_samples(described: Described) -> None:
    keep = storage.join(described.raw, "..", "curated", KEEP_LIST_NAME)
    table = pa.parquet.read_table(keep)
    drawn = []
    for order in (range(table.num_rows), reversed(range(table.num_rows))):
        showing = Showing()
        for place in order:
            showing.add(table.slice(place, 1))
        drawn.append([sample.uid for sample in showing.samples(described.raw)])
    assert drawn[0] == drawn[1] == [sample.uid for sample in described.shown]


def test_json_is_of_plain_numbers(described: Described) -> None:
    assert json.loads((described.folder / DESCRIPTION_NAME).read_text())["schema_version"] == 1
    assert isinstance(described.shown[0], ShownSample)
