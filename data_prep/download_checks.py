"""When a download fails although every row has an outcome: too few pictures, or too many failures of our own side's making."""

from collections import Counter
from collections.abc import Mapping
from urllib.parse import urlsplit

import pyarrow.compute as pc

from data_prep.accounting import describe
from data_prep.download_config import DownloadConfig
from data_prep.partition_report import remove_later_rounds, report_uri
from data_prep.raw import OUTCOMES_FOLDER, REMOVED, iter_outcomes
from data_prep.url_plan import REPEATED, Plan
from infra import storage
from infra.errors import DataLossError

MAX_NAMED_HOSTS = 5
ALARM_FROM_ROWS = 100
"""Fewer failures for one reason say nothing about its share."""
NOT_ASKED = (REPEATED, REMOVED)
"""Reasons of rows that nobody was asked for, which say nothing about the network."""
_ROWS_LOOKED_AT = 10_000
_LOOK_AT = {
    "dns": "the resolver of the workers: is it there, and does it answer that many questions? Fewer threads or a cache help",
    "connection": "the network of the workers: firewall, NAT table, open connections, proxies (none is used)",
    "tls": "the certificates and the clock of the workers",
    "timeout": "bandwidth and load of the workers: fewer threads, or a longer policy.timeout_s",
    "forbidden_address": "the resolver of the workers and policy.allowed_private_hosts: the names lead into private networks",
}


class TooFewDownloadedError(DataLossError):
    """Fewer pictures came back than the configuration asks for, or too many failed for one reason."""

    def __init__(self, message: str, *, setting: str) -> None:
        super().__init__(message)
        self.setting = setting
        """Of `DownloadConfig`: the one to look at first."""


def require_plausible(
    config: DownloadConfig,
    plan: Plan,
    *,
    requested: Mapping[int, int],
    downloaded: Counter[int],
    failed: Mapping[int, Counter[str]],
    output_uri: str,
    finished_rounds: int,
) -> None:
    """Hold a download against `min_success_rate` and `max_reason_share`; each count is by the number of the partition.

    Partitions on the wrong side of what is missed count as not done, so that the next run tries them again; but never those of
    the `finished_rounds` that a download before ended with, since curation has read them.

    Raises:
        TooFewDownloadedError: it does not hold; the message says what to look at.
    """
    in_all: Counter[str] = sum(failed.values(), Counter())
    asked = {number: count - _not_asked(failed[number]) for number, count in requested.items()}
    rows = plan.num_rows - _not_asked(in_all)
    arrived = downloaded.total()
    where = f"What became of each row: {storage.join(output_uri, OUTCOMES_FOLDER)}. "
    if not arrived or arrived < config.min_success_rate * rows:
        below = {number for number, count in asked.items() if downloaded[number] < max(1, config.min_success_rate * count)}
        _try_again(plan, below, output_uri, finished_rounds)
        told = (
            f"only {arrived:,} of {rows:,} pictures were downloaded: {arrived / max(1, rows):.1%}, and the floor "
            f"(min_success_rate) is {config.min_success_rate:.1%}. Failed: {describe(in_all)}. {where}"
        )
        if 2 * in_all["forbidden_address"] > in_all.total():
            raise TooFewDownloadedError(
                f"{told}Most of the addresses lie in a private network, from which only hosts are fetched that are named in "
                f"policy.allowed_private_hosts; the list names {_forbidden_hosts(output_uri)}",
                setting="policy.allowed_private_hosts",
            )
        raise TooFewDownloadedError(f"{told}Check the network and the list, or lower the floor", setting="min_success_rate")
    for reason, share in config.max_reason_share.items():
        if in_all[reason] >= ALARM_FROM_ROWS and in_all[reason] > share * rows:
            above = {number for number, count in asked.items() if failed[number][reason] > share * count}
            _try_again(plan, above, output_uri, finished_rounds)
            raise TooFewDownloadedError(
                f"{in_all[reason]:,} of {rows:,} pictures failed with {reason}: {in_all[reason] / rows:.1%}, and at most "
                f"{share:.1%} may (max_reason_share). All that failed: {describe(in_all)}. {where}"
                f"Look at {_LOOK_AT.get(reason, 'a few of these URLs')}; or raise the share",
                setting=f"max_reason_share.{reason}",
            )


def _not_asked(failed: Mapping[str, int]) -> int:
    return sum(failed.get(reason, 0) for reason in NOT_ASKED)


def _try_again(plan: Plan, numbers: set[int], output_uri: str, finished_rounds: int) -> None:
    for partition in plan.partitions(output_uri, round_number=finished_rounds + 1):
        if partition.number in numbers:
            remove_later_rounds(partition, output_uri=output_uri)
            storage.remove(report_uri(output_uri, partition))


def _forbidden_hosts(output_uri: str) -> str:
    """Where the first forbidden rows point to, the commonest first."""
    counts: Counter[str] = Counter()
    for outcomes in iter_outcomes(output_uri):
        forbidden = outcomes.filter(pc.equal(outcomes["reason"], "forbidden_address"))
        counts.update(urlsplit(url).netloc for url in forbidden["url"].to_pylist())
        if counts.total() >= _ROWS_LOOKED_AT:
            break
    named = [host for host, _ in counts.most_common(MAX_NAMED_HOSTS)]
    return ", ".join(named) + (f" and {len(counts) - len(named):,} more" if len(counts) > len(named) else "")
