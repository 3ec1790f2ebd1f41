"""One in a hundred of the rows with a hash has other bytes at its origin by now: each is excluded and reported, and no other.

A changed row gets a picture that is whole and valid, only another one: nothing but the hash tells.  Two thirds of the rows have
no hash, and some are gone or busy.
"""

import hashlib
import logging
import random
import sys
import tempfile
from pathlib import Path

import pyarrow.parquet as pq

from data_prep.download_config import DownloadConfig
from data_prep.fetch.policy import FetchPolicy
from data_prep.partition import download_partition
from data_prep.raw import QUARANTINE_FOLDER, iter_outcomes, read_raw_shard
from data_prep.url_list import UrlListConfig
from data_prep.url_plan import plan_url_list
from tests.chaos._download_origin import HASHED_EVERY, origin, picture_of, write_list
from tests.result import chaos_arguments, chaos_result, environment, measure

POISONED_SHARE = 0.01
ROWS_IN_PARTITION = 2000


def strike(folder: Path, *, poisoned: int, seed: int) -> dict[str, int]:
    """Download a list of which so many rows are poisoned; returns what was excluded, reported and kept."""
    rows = round(poisoned / POISONED_SHARE) * HASHED_EVERY
    hashed = [row for row in range(rows) if row % HASHED_EVERY == 0]
    wanted = [row for row in hashed if row % 20 != 1 and row % 50 != 2]  # of these nothing arrives at all
    changed = set(random.Random(seed).sample(wanted, poisoned))
    config = DownloadConfig(samples_per_partition=ROWS_IN_PARTITION, retries=0)
    with origin(latency_s=0, changed=changed.__contains__) as web:
        config = config.rebuilt(policy=FetchPolicy(allowed_private_hosts=(web.host,), retry_wait_s=0))
        write_list(folder / "urls.parquet", rows=rows, host=web.host)
        plan = plan_url_list(
            str(folder / "urls.parquet"),
            UrlListConfig(),
            samples_per_partition=config.samples_per_partition,
            samples_per_shard=config.samples_per_shard,
            output_uri=str(folder),
        )
        reports = [download_partition(part, config, output_uri=str(folder)) for part in plan.partitions(str(folder))]
    poisoned_uids = {f"row-{row}" for row in changed}
    outcomes = [row for table in iter_outcomes(str(folder)) for row in table.to_pylist()]
    excluded = {row["uid"] for row in outcomes if row["reason"] == "sha256_mismatch"}
    quarantined = [row for path in sorted((folder / QUARANTINE_FOLDER).iterdir()) for row in pq.read_table(path).to_pylist()]
    truly = {
        row["uid"]
        for row in quarantined
        if row["expected_sha256"] == _hash(int(row["uid"][4:])) and row["received_sha256"] == _hash(int(row["uid"][4:]) + 1)
    }
    stored = {
        sample.record["uid"] for report in reports for shard in report.shards for sample in read_raw_shard(str(folder), shard)
    }
    arriving = {row["uid"] for row in outcomes if row["state"] == "downloaded" or row["reason"] == "sha256_mismatch"}
    return {
        "rows": rows,
        "hashed": len(hashed),
        "poisoned": len(changed),
        "excluded": len(excluded & poisoned_uids),
        "reported": len(truly & poisoned_uids),
        "counted": sum(report.quarantined for report in reports),
        "stored_although_poisoned": len(stored & poisoned_uids),
        "others_excluded": len(excluded - poisoned_uids) + len(arriving - poisoned_uids - stored),
        "without_first_seen_hash": sum(row["state"] == "downloaded" and not row["received_sha256"] for row in outcomes),
    }


def _hash(row: int) -> str:
    return hashlib.sha256(picture_of(row)).hexdigest()


def main() -> int:
    arguments = chaos_arguments(__doc__ or "", count=200, quick_count=10)
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="poisoned-rows-") as folder:
        found = strike(Path(folder), poisoned=arguments.count, seed=arguments.seed)
    poisoned = found["poisoned"]
    failed = 2 * poisoned - found["excluded"] - found["reported"] + found["stored_although_poisoned"]
    return chaos_result(
        "poisoned_rows",
        injected=poisoned,
        lost=found["others_excluded"],
        failed=failed,
        measures={
            "excluded": measure(found["excluded"], goal=(">=", poisoned), unit="rows"),
            "reported": measure(found["reported"], goal=(">=", poisoned), unit="rows"),
            "counted": measure(found["counted"], goal=(">=", poisoned), unit="rows"),
            "stored_although_poisoned": measure(found["stored_although_poisoned"], goal=("<=", 0), unit="rows"),
            "others_excluded": measure(found["others_excluded"], goal=("<=", 0), unit="rows"),
            "without_first_seen_hash": measure(found["without_first_seen_hash"], goal=("<=", 0), unit="rows"),
            "poisoned_share_of_hashed": measure(poisoned / found["hashed"]),
        },
        rows=found["rows"],
        hashed=found["hashed"],
        seed=arguments.seed,
        **environment("img2dataset"),
    )


if __name__ == "__main__":
    sys.exit(main())
