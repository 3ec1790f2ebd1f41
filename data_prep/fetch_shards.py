"""Rows of a URL list through img2dataset's Downloader into raw shards, in this process, behind our opener.

The only file that runs img2dataset.  Its own `download()` starts processes that an installed opener does not reach, which is
why its class is run here, with a resizer and a writer of ours.
"""

import contextlib
import importlib.util
import io
import logging
import os
import sys
import tempfile
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from data_prep.download_config import DownloadConfig
from data_prep.fetch.opener import HardenedOpener, RequestRecord, installed, sites_of_process
from data_prep.sorted_shards import SortedShardWriter, WrittenShard
from infra import storage
from infra.errors import DataLossError

logger = logging.getLogger(__name__)

os.environ["WANDB_MODE"] = "disabled"  # img2dataset imports it

CARRIED_COLUMNS = ["row", "uid", "captions", "concept", "group", "source", "licence"]
SHARD_NAME_DIGITS = 5


class Fetched(NamedTuple):
    shards: list[WrittenShard]
    records: list[RequestRecord]
    """The opener's side log."""


def fetch_shards(rows: pa.Table, config: DownloadConfig, *, folder: str, first_shard: int) -> Fetched:
    """Fetch the pictures of some rows (`URL_LIST_SCHEMA`) into the shards of a folder.

    Raises:
        DataLossError: img2dataset did not go through the opener.
    """
    opener = HardenedOpener(config.policy, retries=config.retries, sites=sites_of_process(config.policy))
    # img2dataset verifies hashes for a whole file of URLs or not at all
    with_hash, without_hash = rows.filter(pc.is_valid(rows["sha256"])), rows.filter(pc.is_null(rows["sha256"]))
    written: list[WrittenShard] = []
    with installed(opener), contextlib.redirect_stdout(io.StringIO()) as printed:
        _refuse_other_ways_out(opener)
        shard = _run_img2dataset(with_hash, config, written, folder=folder, first_shard=first_shard, verify=True)
        _run_img2dataset(without_hash, config, written, folder=folder, first_shard=shard, verify=False)
    logger.debug("img2dataset said: %s", printed.getvalue())
    if len(opener.records) < rows.num_rows:
        raise DataLossError(f"{folder}: {rows.num_rows:,} URLs, but {len(opener.records):,} went through the opener")
    return Fetched(written, opener.records)


def _run_img2dataset(
    table: pa.Table, config: DownloadConfig, written: list[WrittenShard], *, folder: str, first_shard: int, verify: bool
) -> int:
    """Download the rows of a table into shards numbered from `first_shard`; returns the number after the last.

    Args:
        written: gets the shards.
    """
    if not table.num_rows:
        return first_shard
    from data_prep.resizer import Resizer, store_as_received  # here, as configurations are read where OpenCV is not

    columns = [*CARRIED_COLUMNS, "caption", *(["sha256"] if verify else []), "url"]
    downloader = _img2dataset().Downloader(
        sample_writer_class=partial(SortedShardWriter, max_pixels=config.policy.max_pixels, written=written),
        resizer=Resizer(config.resize) if config.resize else store_as_received,
        thread_count=min(config.threads, table.num_rows),
        save_caption=True,
        extract_exif=False,
        output_folder=str(storage.local_path(folder)) if storage.is_local(folder) else folder,
        column_list=columns,
        timeout=config.policy.timeout_s,
        number_sample_per_shard=config.samples_per_shard,
        oom_shard_count=SHARD_NAME_DIGITS,
        compute_hash="sha256" if verify else None,  # the opener has hashed what it received
        verify_hash_type="sha256" if verify else None,
        encode_format="jpg",
        retries=0,  # the opener retries, and only what may pass
        user_agent_token=None,
        disallowed_header_directives=None,  # the opener has looked, before it read the body
    )
    shard = first_shard
    with tempfile.TemporaryDirectory(prefix="hyperclip-urls-") as scratch:
        for start in range(0, table.num_rows, config.samples_per_shard):
            urls, part = str(Path(scratch) / f"{shard}.arrow"), table.select(columns).slice(start, config.samples_per_shard)
            with pa.ipc.new_file(urls, part.schema) as file:  # the rows of a shard are handed over as a file, which it removes
                file.write_table(part)
            downloader.download_shard((shard, urls))  # not `downloader(...)`, which swallows every exception
            shard += 1
    return shard


def _img2dataset() -> ModuleType:
    """Its Downloader, without what its `__init__` imports: torch, pandas and albumentations cost a worker 1.5 s."""
    if "img2dataset" not in sys.modules:
        package = importlib.util.find_spec("img2dataset")
        assert package is not None
        sys.modules["img2dataset"] = importlib.util.module_from_spec(package)
    return importlib.import_module("img2dataset.downloader")


def _refuse_other_ways_out(opener: HardenedOpener) -> None:
    """One request through img2dataset's own function to an address that the opener refuses; it must arrive there.

    Raises:
        DataLossError: it did not: this version of img2dataset fetches by another way, past every rule.
    """
    before = len(opener.records)
    _, _, message = _img2dataset().download_image((0, "http://0.0.0.0:1/"), 1, None, None)
    if len(opener.records) != before + 1 or not str(message).startswith("[forbidden_address]"):
        raise DataLossError(
            f"img2dataset does not fetch through the opener ({message}); install the version that pyproject.toml pins"
        )
    opener.records.clear()
