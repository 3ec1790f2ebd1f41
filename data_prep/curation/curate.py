"""Curation: look at every downloaded picture once, and write down which to keep and why the others go.

    OUTPUT/looks/         measurements of each raw shard (`looks.py`), on Ray Data; a killed curation goes on where it was
    OUTPUT/rules/         what each rule says of every sample
    OUTPUT/keep.parquet   their combination: a row for every sample that came in, kept or not, in the order of the URL list
    OUTPUT/curate.json    written last

The keep list also says where the bytes of each picture lie: the pool is never copied, and resharding reads nothing else of it.
A raw shard that is not what its report says is left out as a whole (`damaged_shard`); too many of them fail the step.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, Self

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, NonNegativeInt, model_validator

from data_prep.accounting import require_all_accounted
from data_prep.curation.dedup import DedupConfig
from data_prep.curation.filters import PRESETS, FilterConfig, LanguageConfig, Preset
from data_prep.curation.keep_list import KEEP_LIST_NAME as KEEP_LIST_NAME
from data_prep.curation.keep_list import KEEP_SCHEMA as KEEP_SCHEMA
from data_prep.curation.keep_list import RULES, write_lists
from data_prep.curation.leaks import read_evaluation_pictures
from data_prep.curation.looks import (
    DAMAGED,
    DAMAGED_NAME,
    LOOK_SCHEMA,
    LOOKS,
    LookConfig,
    Looked,
    is_looked_at,
    look_at_shard,
    looks_uri,
)
from data_prep.curation.nothing_kept import require_some_kept, require_some_samples
from data_prep.curation.pool import load_pool
from data_prep.curation.ray_stream import stream
from data_prep.curation.rules import NOT_DROPPED, apply_rules
from data_prep.curation.scores import ScoreConfig
from data_prep.fan_out import TaskConfig, absolute
from data_prep.partition_report import write_table
from data_prep.raw import DownloadReport, iter_outcomes, read_download_report
from infra import images, storage
from infra.config import StrictModel, content_hash
from infra.errors import CorruptArtefactError

REPORT_NAME = "curate.json"
MAX_NAMED_SHARDS = 5
_THREADS = 16


class CurateConfig(StrictModel):
    """Which of the downloaded samples are kept."""

    preset: Preset | None = None
    """Bounds of others: `datacomp_basic`.  What is set beside it goes before it."""
    filters: FilterConfig = FilterConfig()
    language: LanguageConfig | None = None
    """Captions of one language only, `{code: en}`; none asks for no language."""
    clean_captions: bool = False
    """Take HTML, web and mail addresses and file names out of captions; the rules and the shards then see what is left."""
    scores: tuple[ScoreConfig, ...] = ()
    """Score files and the bounds to keep by: image-text scores, or the probability that a picture is not safe for work."""
    exclude_near: tuple[str, ...] = ()
    """Evaluation pictures that must not be trained on: `evaluation` for those of the same run, or parquet files (a keep list,
    or pictures in a column `image`)."""
    exclude_near_distance: int = Field(default=4, ge=0, le=16)
    """Bits (of 64) in which a perceptual hash may differ from an evaluation picture's and still count as a leak."""
    dedup: DedupConfig = DedupConfig()
    max_pixels: int = Field(default=images.MAX_PIXELS, gt=0)
    max_damaged_share: float = Field(default=0.01, ge=0, le=1)
    """Of the samples: more in damaged raw shards than this, and the step fails."""
    tasks: TaskConfig = TaskConfig()
    """One task a raw shard."""

    @model_validator(mode="before")
    @classmethod
    def _filled_from_preset(cls, given: Any) -> Any:
        preset = next((PRESETS[name] for name in PRESETS if isinstance(given, dict) and given.get("preset") == name), None)
        if preset is None:
            return given
        filled = dict(given)
        for section, values in preset.items():
            own = given.get(section, {})
            filled[section] = {**values, **own} if isinstance(own, dict) else own
        return filled

    @model_validator(mode="after")
    def _scores_have_names_of_their_own(self) -> Self:
        if doubled := [name for name, count in Counter(score.name for score in self.scores).items() if count > 1]:
            raise ValueError(f"two scores are called {doubled[0]!r}")
        return self

    @property
    def looks(self) -> LookConfig:
        return LookConfig(
            max_pixels=self.max_pixels,
            clean_captions=self.clean_captions,
            language=self.language.code if self.language else None,
        )

    def identity(self) -> dict[str, Any]:
        """What decides the keep list.  Newer settings count where they are used, so that older runs keep their addresses."""
        found = self.model_dump(mode="json", exclude={"tasks": {"retry_wait_s"}})
        newer = CurateConfig.model_fields.keys() - {"filters", "dedup", "max_pixels", "tasks"}
        default = CurateConfig()
        for name in newer:
            if getattr(self, name) == getattr(default, name):
                del found[name]
        return found


class RuleCounts(StrictModel):
    """What one rule did."""

    rule: str
    dropped: dict[str, int]
    """By reason: samples that no rule before it had dropped."""
    alone: NonNegativeInt
    """Samples that its own list drops."""


class CurateReport(StrictModel):
    """`seen` = `kept` + all of `dropped`, by reason."""

    schema_version: Literal[1] = 1
    seen: NonNegativeInt
    kept: NonNegativeInt
    dropped: dict[str, int]
    rules: list[RuleCounts] = Field(default_factory=list)
    """In their order."""
    damaged_shards: dict[str, str] = Field(default_factory=dict)
    """Raw shards of which nothing was used, and why."""
    seconds: float
    """Spent by this call; shards looked at before are not looked at again."""
    lineage: dict[str, Any] = Field(default_factory=dict)


def curate(
    config: CurateConfig,
    *,
    raw_uri: str,
    output_uri: str,
    progress: Callable[[int, int], None],
    datasets: Mapping[str, str] | None = None,
) -> CurateReport:
    """Write the keep list of a finished download or import; shards that an earlier call looked at are not looked at again.

    Ray must be connected.  `progress` is called with (samples looked at, samples in all).

    Args:
        datasets: keep lists by the names that `exclude_near` may use.

    Raises:
        BadInputError: the download has not finished or brought nothing, or a file that the configuration names cannot be used.
        NothingKeptError: every sample was dropped; the lists are there to be looked at, the report is not.
        CorruptArtefactError: too many raw shards are damaged.
        DataLossError: the counts do not add up.
    """
    started = time.monotonic()
    raw_uri, output_uri = absolute(raw_uri), absolute(output_uri)
    report_uri = storage.join(output_uri, REPORT_NAME)
    for uri in (report_uri, storage.join(output_uri, LOOKS, DAMAGED_NAME)):
        storage.remove(uri)
    raw = read_download_report(raw_uri)
    require_some_samples(raw, raw_uri)
    excluded = [(datasets or {}).get(name, name) for name in config.exclude_near]
    evaluation = read_evaluation_pictures(excluded, max_pixels=config.max_pixels) if excluded else None  # it may be absent
    damaged = _look(config, raw, raw_uri, output_uri, progress)
    _require_few_damaged(config, raw, damaged)
    uris = [looks_uri(output_uri, number) for number in _used(raw) if number not in damaged]
    if damaged:
        uris.append(_write_damaged(raw, damaged, raw_uri, output_uri))
    pool = load_pool(uris)
    require_all_accounted("looking at the pictures", seen=raw.downloaded, out=len(pool), lost={})
    results, dropped_by = apply_rules(
        pool,
        filters=config.filters,
        language=config.language,
        scores=config.scores,
        evaluation=evaluation,
        leak_distance=config.exclude_near_distance,
        dedup=config.dedup,
    )
    write_lists(pool, results, dropped_by, output_uri)
    rules = []
    for number, result in enumerate(results):
        codes = Counter(result.codes[dropped_by == number].tolist())
        dropped = {result.reasons[code - 1]: count for code, count in sorted(codes.items())}
        rules.append(RuleCounts(rule=result.name, dropped=dropped, alone=int((~result.keep).sum())))
    lost: Counter[str] = Counter()
    for rule in rules:
        lost.update(rule.dropped)
    kept = int((dropped_by == NOT_DROPPED).sum())
    require_all_accounted("curation", seen=raw.downloaded, out=kept, lost=lost)
    require_some_kept(kept, {rule.rule: rule.dropped for rule in rules}, rules_uri=storage.join(output_uri, RULES))
    report = CurateReport(
        seen=raw.downloaded,
        kept=kept,
        dropped=dict(sorted(lost.items())),
        rules=rules,
        damaged_shards={raw.shards[number].path: why for number, why in sorted(damaged.items())},
        seconds=time.monotonic() - started,
        lineage={"config": config.model_dump(mode="json"), "config_hash": content_hash(config)},
    )
    storage.write_atomic(report_uri, report.model_dump_json(indent=1))
    return report


def _used(raw: DownloadReport) -> list[int]:
    return [number for number, shard in enumerate(raw.shards) if shard.samples]


def _look(
    config: CurateConfig, raw: DownloadReport, raw_uri: str, output_uri: str, progress: Callable[[int, int], None]
) -> dict[int, str]:
    """Measure the shards that have no measurements yet; returns what is wrong with which."""
    with ThreadPoolExecutor(_THREADS) as threads:  # a request each, where the store is remote
        done = threads.map(lambda number: is_looked_at(number, raw.shards[number], config.looks, output_uri), _used(raw))
        missing = [number for number, is_done in zip(_used(raw), done, strict=True) if not is_done]
    looked = sum(raw.shards[number].samples for number in set(_used(raw)) - set(missing))
    progress(looked, raw.downloaded)
    damaged: dict[int, str] = {}
    arguments = [(raw_uri, number, raw.shards[number], config.looks, output_uri) for number in missing]
    for values in stream(look_at_shard, arguments, config.tasks):
        found = Looked(*values)
        looked += found.samples
        if found.damage is not None:
            damaged[found.number] = found.damage
        progress(looked, raw.downloaded)
    return damaged


def _require_few_damaged(config: CurateConfig, raw: DownloadReport, damaged: dict[int, str]) -> None:
    lost = sum(raw.shards[number].samples for number in damaged)
    if lost <= config.max_damaged_share * raw.downloaded:
        return
    named = "; ".join(damaged[number] for number in sorted(damaged)[:MAX_NAMED_SHARDS])
    more = f"; and {len(damaged) - MAX_NAMED_SHARDS:,} more" if len(damaged) > MAX_NAMED_SHARDS else ""
    raise CorruptArtefactError(
        f"{len(damaged):,} of {len(raw.shards):,} raw shards are damaged, with {lost:,} of {raw.downloaded:,} samples: more "
        f"than max_damaged_share ({config.max_damaged_share:.1%}): {named}{more}"
    )


def _write_damaged(raw: DownloadReport, damaged: dict[int, str], raw_uri: str, output_uri: str) -> str:
    """A row for every sample of the damaged shards, from what the download wrote down of it."""
    paths = pa.array([raw.shards[number].path for number in damaged])
    parts = []
    for outcomes in iter_outcomes(raw_uri):
        # what was removed on request has a shard too, and counts as failed
        chosen = pc.and_(pc.is_in(outcomes["shard"], value_set=paths), pc.equal(outcomes["state"], "downloaded"))
        parts.append(outcomes.filter(chosen).select(["row", "uid", "shard"]))
    known = pa.concat_tables(parts).sort_by("row")
    blank = {name: pa.nulls(len(known), LOOK_SCHEMA.field(name).type) for name in LOOK_SCHEMA.names}
    columns = blank | {name: known[name] for name in known.column_names} | {"error": pa.array([DAMAGED] * len(known))}
    uri = storage.join(output_uri, LOOKS, DAMAGED_NAME)
    write_table(pa.table(columns, schema=LOOK_SCHEMA), uri)
    return uri
