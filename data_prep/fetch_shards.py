"""Rows of a URL list through img2dataset's Reader and Downloader into raw shards, in this process, behind our opener.

The only file that runs img2dataset.  Its own `download()` starts processes that an installed opener does not reach, which is
why its two classes are run here.
"""

import contextlib
import io
import logging
import os
import shutil
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.download_config import DownloadConfig
from data_prep.fetch.opener import HardenedOpener, RequestRecord, installed, sites_of_process
from infra import storage
from infra.errors import DataLossError

logger = logging.getLogger(__name__)

os.environ |= {"NO_ALBUMENTATIONS_UPDATE": "1", "WANDB_MODE": "disabled"}  # what img2dataset imports would phone home

CARRIED_COLUMNS = ["row", "uid", "captions", "concept", "group", "source", "licence"]
SHARD_NAME_DIGITS = 5


def fetch_shards(rows: pa.Table, config: DownloadConfig, *, folder: str, first_shard: int) -> list[RequestRecord]:
    """Fetch the pictures of some rows (`URL_LIST_SCHEMA`) into the shards of a folder; returns the opener's side log.

    Raises:
        DataLossError: img2dataset did not go through the opener.
    """
    opener = HardenedOpener(config.policy, retries=config.retries, sites=sites_of_process(config.policy))
    # img2dataset verifies hashes for a whole file of URLs or not at all
    with_hash, without_hash = rows.filter(pc.is_valid(rows["sha256"])), rows.filter(pc.is_null(rows["sha256"]))
    with installed(opener), contextlib.redirect_stdout(io.StringIO()) as printed:
        _refuse_other_ways_out(opener)
        shard = _run_img2dataset(with_hash, config, folder=folder, first_shard=first_shard, verify=True)
        _run_img2dataset(without_hash, config, folder=folder, first_shard=shard, verify=False)
    logger.debug("img2dataset said: %s", printed.getvalue())
    if len(opener.records) < rows.num_rows:
        raise DataLossError(f"{folder}: {rows.num_rows:,} URLs, but {len(opener.records):,} went through the opener")
    return opener.records


def _run_img2dataset(table: pa.Table, config: DownloadConfig, *, folder: str, first_shard: int, verify: bool) -> int:
    """Download the rows of a table into shards numbered from `first_shard`; returns the number after the last."""
    if not table.num_rows:
        return first_shard
    from img2dataset.downloader import Downloader
    from img2dataset.reader import Reader

    from data_prep.resizer import Resizer, store_as_received
    from data_prep.sorted_shards import SortedSampleWriter

    scratch = Path(tempfile.mkdtemp(prefix="hyperclip-urls-"))
    try:
        source = scratch / "urls.parquet"
        pq.write_table(table, source)
        reader = Reader(
            url_list=str(source),
            input_format="parquet",
            url_col="url",
            caption_col="caption",
            verify_hash_col="sha256" if verify else None,
            verify_hash_type="sha256" if verify else None,
            save_additional_columns=CARRIED_COLUMNS,
            number_sample_per_shard=config.samples_per_shard,
            done_shards=set(),
            tmp_path=str(scratch),
            start_shard_id=first_shard,
        )
        downloader = Downloader(
            sample_writer_class=SortedSampleWriter,
            resizer=Resizer(config.resize) if config.resize else store_as_received,
            thread_count=min(config.threads, table.num_rows),
            save_caption=True,
            extract_exif=False,
            output_folder=str(storage.local_path(folder)) if storage.is_local(folder) else folder,
            column_list=reader.column_list,
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
        for shard, urls in reader:
            downloader.download_shard((shard, urls))  # not `downloader(...)`, which swallows every exception
        return shard + 1
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _refuse_other_ways_out(opener: HardenedOpener) -> None:
    """One request through img2dataset's own function to an address that the opener refuses; it must arrive there.

    Raises:
        DataLossError: it did not: this version of img2dataset fetches by another way, past every rule.
    """
    from img2dataset.downloader import download_image

    before = len(opener.records)
    _, _, message = download_image((0, "http://0.0.0.0:1/"), 1, None, None)
    if len(opener.records) != before + 1 or not str(message).startswith("[forbidden_address]"):
        raise DataLossError(
            f"img2dataset does not fetch through the opener ({message}); install the version that pyproject.toml pins"
        )
    opener.records.clear()
