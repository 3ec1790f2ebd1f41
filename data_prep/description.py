"""What a dataset is made of: the funnel from its source to samples, rates, hosts, sizes and captions.

Outcomes are read a partition at a time and the keep list a row group at a time, so memory does not grow with them.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import NonNegativeInt

from data_prep.manifest import read_manifest
from data_prep.raw import iter_outcomes, read_download_report
from data_prep.shown_samples import Showing, ShownSample, never_shown
from data_prep.tallies import Histogram, HistogramTally, NamedCount, NameTally, Rates, TimeTally
from infra import storage
from infra.config import StrictModel

ROWS_AT_ONCE = 1 << 16
NUM_NAMED = 20
"""Hosts and sources that are named."""
_READ = [
    "uid",
    "keep",
    "reason",
    "duplicate_of",
    "width",
    "height",
    "caption",
    "source",
    "shard",
    "image_offset",
    "image_bytes",
]
_READ_OF_ORIGINALS = ["uid", "reason", "shard", "image_offset", "image_bytes"]
_EDGES: dict[str, Any] = {
    "shorter side (pixels)": 2.0 ** np.arange(3, 14.5, 0.5),
    "longer side / shorter": [1, 1.05, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.8, 2, 2.5, 3, 4, 5, 7, 10],
    "file (bytes)": 2.0 ** np.arange(8, 25.5, 0.5),
    "caption (characters)": 2.0 ** np.arange(0, 12.5, 0.5),
    "caption (words)": [0, 1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 20, 25, 32, 40, 50, 64, 128],
}


class DatasetDescription(StrictModel):
    """`description.json`."""

    schema_version: Literal[1] = 1
    imported: bool
    """Whether the pictures were here already; nothing was asked of the web then."""
    requested: NonNegativeInt
    downloaded: NonNegativeInt
    """Or imported."""
    kept: NonNegativeInt
    samples: NonNegativeInt
    """In training shards."""
    failed: dict[str, int]
    dropped: dict[str, int]
    shards: NonNegativeInt
    bytes: NonNegativeInt
    """Of the shards."""
    formats: dict[str, int]
    rates: Rates
    num_hosts: NonNegativeInt
    hosts: list[NamedCount]
    """Those asked for the most, with how many pictures came."""
    hosts_uncounted: NonNegativeInt
    """Rows of hosts too rare to be remembered."""
    sources: list[NamedCount]
    """Where the samples say they are from, with how many were kept."""
    histograms: dict[str, Histogram]

    @property
    def metrics(self) -> dict[str, float]:
        """For MLflow."""
        stages = {"requested": self.requested, "downloaded": self.downloaded, "kept": self.kept, "samples": self.samples}
        found: dict[str, float] = {f"funnel.{name}": count for name, count in stages.items()}
        found |= {"shards": self.shards, "bytes": self.bytes, "hosts": self.num_hosts}
        found |= {f"failed.{reason}": count for reason, count in self.failed.items()}
        return found | {f"dropped.{reason}": count for reason, count in self.dropped.items()}


def describe_dataset(
    *, raw_uri: str, keep_list_uri: str, shards_uri: str, imported: bool, progress: Callable[[int, int, str], None]
) -> tuple[DatasetDescription, list[ShownSample]]:
    """Look through what the data steps left; with a few samples of those kept and of those dropped for each reason.

    `progress` is called with (done, in all, what): first what was asked for, then the samples that curation saw.

    Raises:
        BadInputError: a step has not finished.
    """
    raw, manifest = read_download_report(raw_uri), read_manifest(shards_uri)
    what = "pictures given" if imported else "URLs"
    rates, hosts, formats = TimeTally(), NameTally(), Counter[str]()
    done = 0
    progress(done, raw.requested, what)
    for table in iter_outcomes(raw_uri):
        succeeded = pc.equal(table["state"], "downloaded")
        _add_times(rates, table, succeeded)
        hosts.add(_hosts(table), _hosts(table.filter(succeeded)))
        formats.update(name for name in table["format"].to_pylist() if name)
        done += table.num_rows
        progress(min(done, raw.requested), raw.requested, what)
    histograms = {name: HistogramTally(edges) for name, edges in _EDGES.items()}
    sources, showing, dropped = NameTally(), Showing(), Counter[str]()
    kept = done = 0
    progress(done, raw.downloaded, "samples")
    with storage.open_read(keep_list_uri) as file:
        for batch in pq.ParquetFile(file).iter_batches(batch_size=ROWS_AT_ONCE, columns=_READ):
            table = pa.Table.from_batches([batch])
            keep = table["keep"].to_numpy()
            kept += int(keep.sum())
            dropped.update(table.filter(pc.invert(table["keep"]))["reason"].to_pylist())
            for name, values in _measures(table).items():
                histograms[name].add(values, keep)
            sources.add(_names(table["source"]), _names(table.filter(table["keep"])["source"]))
            showing.add(table)
            done += table.num_rows
            progress(min(done, raw.downloaded), raw.downloaded, "samples")
    described = DatasetDescription(
        imported=imported,
        requested=raw.requested,
        downloaded=raw.downloaded,
        kept=kept,
        samples=manifest.num_samples,
        failed=_most_first(raw.failed),
        dropped=_most_first(dropped),
        shards=len(manifest.shards),
        bytes=sum(shard.bytes for shard in manifest.shards),
        formats=_most_first(formats),
        rates=rates.rates(),
        num_hosts=hosts.num_names,
        hosts=hosts.top(NUM_NAMED),
        hosts_uncounted=hosts.num_forgotten,
        sources=sources.top(NUM_NAMED),
        histograms={name: tally.histogram() for name, tally in histograms.items()},
    )
    return described, showing.samples(raw_uri, _rows_of(showing.originals(), keep_list_uri))


def _rows_of(uids: set[str], keep_list_uri: str) -> dict[str, dict[str, Any]]:
    """Where the pictures with these uids lie; the list is read once more, as far as the last of them."""
    found: dict[str, dict[str, Any]] = {}
    if not uids:
        return found
    wanted = pa.array(sorted(uids))
    with storage.open_read(keep_list_uri) as file:
        for batch in pq.ParquetFile(file).iter_batches(batch_size=ROWS_AT_ONCE, columns=_READ_OF_ORIGINALS):
            rows = batch.filter(pc.is_in(batch["uid"], value_set=wanted)).to_pylist()
            found |= {row["uid"]: row for row in rows if not never_shown(row["reason"])}
            uids = uids - {row["uid"] for row in rows}
            if not uids:
                break
    return found


def _add_times(rates: TimeTally, table: pa.Table, succeeded: pa.ChunkedArray) -> None:
    if "fetched_at" not in table.column_names:  # written by a version that did not note it
        return
    fetched = pc.is_valid(table["fetched_at"])
    for kind, chosen in ((True, succeeded), (False, pc.invert(succeeded))):
        times = table["fetched_at"].filter(pc.and_(fetched, chosen))
        if len(times):
            rates.add(times.cast(pa.int64()).to_numpy() // 1000, succeeded=kind)


def _hosts(table: pa.Table) -> Counter[str]:
    return Counter(host for url in table["url"].to_pylist() if url and (host := host_of(url)))


def host_of(url: str) -> str:
    """Host and port of a URL, in lower case; empty where it has none."""
    try:
        return urlsplit(url).netloc.rpartition("@")[2].lower()
    except ValueError:
        return ""


def _names(column: pa.ChunkedArray) -> Counter[str]:
    counts = pc.value_counts(column.drop_null())
    return Counter({entry["values"].as_py(): entry["counts"].as_py() for entry in counts})


def _measures(table: pa.Table) -> dict[str, np.ndarray]:
    width, height = (_numbers(table[name]) for name in ("width", "height"))
    shorter, longer = np.minimum(width, height), np.maximum(width, height)
    caption = pc.fill_null(table["caption"], "")
    words = pc.list_value_length(pc.utf8_split_whitespace(pc.utf8_trim_whitespace(caption)))
    empty = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(caption)), 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        aspect = longer / shorter
    return {
        "shorter side (pixels)": shorter,
        "longer side / shorter": aspect,
        "file (bytes)": _numbers(table["image_bytes"]),
        "caption (characters)": _numbers(pc.utf8_length(caption)),
        "caption (words)": _numbers(pc.if_else(empty, 0, words)),
    }


def _numbers(column: Any) -> np.ndarray:
    return column.cast(pa.float64()).to_numpy()


def _most_first(counts: Any) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda entry: (-entry[1], entry[0])))
