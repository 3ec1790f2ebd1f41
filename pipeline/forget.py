"""Forgetting samples in a whole workspace: in what the data steps of any configuration left, and whatever else shows them.

It also finds out which models saw them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from data_prep.curation.curate import KEEP_LIST_NAME
from data_prep.curation.curate import REPORT_NAME as CURATE_REPORT_NAME
from data_prep.manifest import MANIFEST_NAME
from data_prep.raw import OUTCOMES_FOLDER, PARTITIONS_FOLDER, later_rounds
from data_prep.removal.keep_lists import count_in_keep_list, forget_in_keep_list, recount_curation
from data_prep.removal.raw_shards import Targets, forget_in_raw, matching_rows
from data_prep.removal.requests import Removal, RemovalRequest, matched, read_removals, write_removals
from data_prep.removal.training_shards import count_in_shards, forget_in_shards
from infra import artefacts, storage
from infra.errors import BadInputError, HyperClipError
from infra.model_registry import ModelRegistry
from infra.tracking import Tracker
from pipeline.cleaning import reports_in
from pipeline.config import RunConfig
from pipeline.data_steps import raw_uri
from pipeline.runner import only_run_in, plan
from pipeline.steps import RECORD_NAME, StepRecord
from training.bundle import BUNDLE_NAME, BundleManifest

SHOWS_SAMPLES = ("describe", "evaluate", "shipped", "serve")
"""Steps whose output shows samples of the shards they read, or names their places: removed, and made anew by the next run."""

FORGOTTEN_SINCE = "; some samples forgotten since"
"""Added to the summary of a finished step that a request reached."""

Inputs = dict[str, dict[str, str] | None]
"""By the name of a step folder: the folders it read, by step; None where nobody can tell."""


@dataclass
class SeenBy:
    """A training that read a shard with one of the samples."""

    folder: str
    digest: str | None
    """Of its bundle; none where the training has not ended."""
    versions: list[str]
    """Registered ones, `name/version`."""


@dataclass
class Forgotten:
    """What a request reached."""

    reached: dict[str, int]
    """Samples by folder in the workspace."""
    removed: list[str]
    """Files and folders that are gone as a whole: unfinished work, reports and results that show the samples."""
    models: list[SeenBy]
    unknown: list[str]
    """What of the request names no sample here."""
    unsure: list[str] = field(default_factory=list)
    """Trainings of an older version, which did not note what they read."""
    registry_problem: str | None = None


@dataclass
class _Found:
    rows_of: dict[str, list[dict[str, Any]]]
    """Outcomes by the folder of a download or an import."""
    targets_of: dict[str, Targets]
    """By the folder of a curation or of shards."""
    reached: dict[str, int]
    unknown: list[str]


def forget(config: RunConfig, request: RemovalRequest, *, dry_run: bool) -> Forgotten:
    """Remove what a request names from the workspace of a configuration; with `dry_run`, only say what that would reach.

    Safe to run again after it was cut off: the record of the request is written first.

    Raises:
        BadInputError: a run uses the workspace, or nothing of the request is there.
    """
    workspace = config.workspace_uri
    if not storage.exists(workspace):
        raise BadInputError(f"there is nothing in {workspace}")
    with only_run_in(workspace):
        inputs = _inputs(config)
        found = _find(workspace, request, inputs)
        removals = read_removals(workspace)
        identifiers = sorted(request.identifiers)
        before = next((one for one in removals.removals if one.identifiers == identifiers), None)
        reached = {**(before.reached if before else {}), **found.reached}
        if not reached:
            raise BadInputError(
                f"nothing in {workspace} is named by {', '.join(sorted(found.unknown)[:10])}: check the spelling; uids are in "
                "keep.parquet and outcomes, hosts are written without port"
            )
        torn = sorted(_unfinished_raw(workspace))
        gone_first = sorted(_unfinished(workspace)) + _showing(workspace, inputs, touched=set(reached))
        if not dry_run:
            at = before.at if before else datetime.now(UTC).isoformat(timespec="seconds")
            begun = Removal(identifiers=identifiers, at=at, state="begun", reached=reached)
            write_removals(removals.with_removal(begun), workspace)
            for step in _steps(workspace, "shard", "curate", "download", "import"):
                storage.remove_staged(step)
            for uri in gone_first:  # as what shows the samples is worth less than what is left
                storage.remove(uri)
            _remove(workspace, found, torn)
            write_removals(removals.with_removal(begun.rebuilt(state="done")), workspace)
    models, unsure, problem = _models(config, inputs, touched=set(reached))
    return Forgotten(reached, gone_first + torn, models, found.unknown, unsure, problem)


def _find(workspace: str, request: RemovalRequest, inputs: Inputs) -> _Found:
    rows_of: dict[str, list[dict[str, Any]]] = {}
    reached: dict[str, int] = {}
    known: set[str] = set()
    for step in _steps(workspace, "download", "import"):
        rows = matching_rows(raw_uri(step), lambda row: bool(matched(request, uid=row["uid"], url=row["url"])))
        if not rows:
            continue
        rows_of[step] = rows
        reached[_name(step)] = len(rows)
        for row in rows:
            known |= matched(request, uid=row["uid"], url=row["url"])
    targets_of = {step: _targets(request, rows_of, inputs[_name(step)]) for step in _steps(workspace, "curate", "shard")}
    for step in _steps(workspace, "curate"):
        uri = storage.join(step, KEEP_LIST_NAME)
        if storage.exists(uri) and (count := count_in_keep_list(uri, targets_of[step])):
            reached[_name(step)] = count
    for step in _steps(workspace, "shard"):
        if storage.exists(storage.join(step, MANIFEST_NAME)) and (count := count_in_shards(step, targets_of[step])):
            reached[_name(step)] = count
    asked = {*request.uids, *request.urls, *request.hosts}
    return _Found(rows_of, targets_of, reached, [] if reached and not rows_of else sorted(asked - known))


def _targets(request: RemovalRequest, rows_of: dict[str, list[dict[str, Any]]], read: dict[str, str] | None) -> Targets:
    """What a request means in a folder that was made of these: a URL or a host names what came from there.

    Where nobody can tell what a folder was made of, the pictures tell.
    """
    targets: Targets = {}
    for step, rows in rows_of.items():
        if read is None:
            for row in rows:
                if row["sha256"]:
                    hashes = targets.setdefault(row["uid"], set())
                    assert hashes is not None
                    hashes.add(row["sha256"])
        elif _name(step) in read.values():
            targets |= dict.fromkeys(row["uid"] for row in rows)
    return targets | dict.fromkeys(request.uids)


def _remove(workspace: str, found: _Found, torn: list[str]) -> None:
    """Shards first, as training reads those; the raw pictures last, as they tell which samples are meant."""
    for step in _steps(workspace, "shard"):
        if storage.exists(storage.join(step, MANIFEST_NAME)):
            forget_in_shards(step, found.targets_of[step])
    for step in _steps(workspace, "curate"):
        keep_list = storage.join(step, KEEP_LIST_NAME)
        if storage.exists(keep_list) and forget_in_keep_list(keep_list, found.targets_of[step]):
            for uri in storage.list_files(storage.join(step, "rules"), suffix=".parquet"):
                forget_in_keep_list(uri, _by_uid(found.targets_of[step]))
            storage.remove(storage.join(step, "looks"))  # measurements with captions; made again where they are needed
            recount_curation(storage.join(step, CURATE_REPORT_NAME), keep_list)
    for uri in torn:
        storage.remove(uri)
    for step, rows in found.rows_of.items():
        forget_in_raw(raw_uri(step), rows)
    for name in found.reached:
        _note(storage.join(workspace, name, RECORD_NAME))


def _note(record_uri: str) -> None:
    """What a step said of itself when it ended is no longer all there is to say."""
    if storage.exists(record_uri):
        record = artefacts.read_model(record_uri, StepRecord)
        if not record.summary.endswith(FORGOTTEN_SINCE):
            storage.write_atomic(record_uri, record.rebuilt(summary=record.summary + FORGOTTEN_SINCE).model_dump_json(indent=1))


def _by_uid(targets: Targets) -> Targets:
    """For lists that do not tell one picture from another: they are of the keep list that did."""
    return dict.fromkeys(targets)


def _unfinished(workspace: str) -> Iterator[str]:
    """What killed attempts left half-done: nobody can tell what is in it, and it is done again from scratch."""
    for step in _steps(workspace, "shard"):
        if not storage.exists(storage.join(step, MANIFEST_NAME)):
            yield step
    for step in _steps(workspace, "curate"):
        if not storage.exists(storage.join(step, KEEP_LIST_NAME)):
            yield step


def _unfinished_raw(workspace: str) -> Iterator[str]:
    """The same of partitions; their outcomes still tell which samples are meant."""
    for step in _steps(workspace, "download", "import"):
        raw = raw_uri(step)
        for folder in [raw, *later_rounds(raw)]:
            finished = {_name(uri).removesuffix(".json") for uri in storage.list_files(storage.join(folder, PARTITIONS_FOLDER))}
            for uri in storage.list_folders(storage.join(folder, "shards")):
                if _name(uri) not in finished:
                    yield uri
            for uri in storage.list_files(storage.join(folder, OUTCOMES_FOLDER)):
                if _name(uri).removesuffix(".parquet") not in finished:
                    yield uri


def _showing(workspace: str, inputs: Inputs, *, touched: set[str]) -> list[str]:
    """Also those of which nobody can tell what they show: they are made anew where they are needed."""
    read = {uri: inputs[_name(uri)] for uri in _steps(workspace, *SHOWS_SAMPLES)}
    return [uri for uri, names in read.items() if names is None or touched & set(names.values())] + reports_in(workspace)


def _inputs(config: RunConfig) -> Inputs:
    """Of each step folder what it read: as its record says, or as the configuration does; None where neither tells."""
    planned = {entry.step.name: entry.output_uri for entry in plan(config)}
    of_config = {
        _name(entry.output_uri): {name: _name(planned[name]) for name in (*entry.step.reads, *entry.step.watches)}
        for entry in plan(config)
    }
    found: Inputs = {}
    for uri in storage.list_folders(config.workspace_uri):
        record = storage.join(uri, RECORD_NAME)
        noted = artefacts.read_model(record, StepRecord).inputs if storage.exists(record) else {}
        found[_name(uri)] = noted or of_config.get(_name(uri))
    return found


def _models(config: RunConfig, inputs: Inputs, *, touched: set[str]) -> tuple[list[SeenBy], list[str], str | None]:
    """Trainings that read a shard folder with one of the samples, their bundles, and the registered versions of these."""
    models, unsure = [], []
    for uri in _steps(config.workspace_uri, "train"):
        name = _name(uri)
        if (read := inputs[name]) is None:
            unsure.append(name)
        elif touched & set(read.values()):
            bundle = storage.join(uri, "bundle", BUNDLE_NAME)
            digest = artefacts.read_model(bundle, BundleManifest).digest if storage.exists(bundle) else None
            models.append(SeenBy(name, digest, []))
    problem = None
    try:
        if any(model.digest for model in models) and _has_records(config):
            registry = ModelRegistry(Tracker(config.resolved_tracking))
            for model in models:
                found = registry.versions_with({"bundle_digest": model.digest}) if model.digest else []
                model.versions = [f"{version.name}/{version.version}" for version in found]
    except HyperClipError as error:
        problem = str(error)
    return models, unsure, problem


def _has_records(config: RunConfig) -> bool:
    uri = config.resolved_tracking.uri
    return not uri.startswith("sqlite:///") or Path(uri.removeprefix("sqlite:///")).exists()


def _steps(workspace: str, *stages: str) -> list[str]:
    return [uri for uri in storage.list_folders(workspace) if _name(uri).partition("-")[0] in stages]


def _name(uri: str) -> str:
    return uri.rstrip("/").rpartition("/")[2]
