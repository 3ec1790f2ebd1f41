"""A download in a process of its own, which can be killed: `python -m tests.chaos._download_driver SPEC`."""

import sys
from pathlib import Path

from pydantic import PositiveInt

from data_prep.download import download
from data_prep.download_config import DownloadConfig
from data_prep.fan_out import TaskConfig
from data_prep.fetch.policy import FetchPolicy
from data_prep.url_list import UrlListConfig
from infra.cluster import ClusterConfig, connected
from infra.config import StrictModel

WORKER_TITLE = "ray::_download_partition"
"""As Ray calls a worker while it runs a partition."""


class DriverSpec(StrictModel):
    urls: str
    output: str
    host: str
    """The one private host that may be fetched from."""
    rows_in_partition: PositiveInt
    threads: PositiveInt = 4
    tries: PositiveInt = 1000
    """Of a partition: the kills strike at random, and may strike the same one often."""
    num_cpus: PositiveInt = 2
    rounds: PositiveInt = 1

    def config(self) -> DownloadConfig:
        return DownloadConfig(
            samples_per_partition=self.rows_in_partition,
            samples_per_shard=self.rows_in_partition,
            threads=self.threads,
            retries=0,
            rounds=self.rounds,
            round_wait_s=0,
            policy=FetchPolicy(allowed_private_hosts=(self.host,), retry_wait_s=0),
            tasks=TaskConfig(max_retries=self.tries, retry_wait_s=0.05, max_in_flight=4),
        )


def main(spec: DriverSpec) -> None:
    with connected(ClusterConfig(num_cpus=spec.num_cpus)):
        download(
            spec.config(),
            url_list_uri=spec.urls,
            url_columns=UrlListConfig(),
            output_uri=spec.output,
            progress=lambda done, total, note: print(f"{done} of {total} {note}", flush=True),
        )


if __name__ == "__main__":
    main(DriverSpec.model_validate_json(Path(sys.argv[1]).read_text()))
