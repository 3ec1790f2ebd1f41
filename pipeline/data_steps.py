"""Steps from a source of URLs, or pictures, to training shards."""

import contextlib
from typing import Any, get_args

from data_prep.accounting import describe
from data_prep.curation.curate import KEEP_LIST_NAME, CurateConfig, curate
from data_prep.curation.looks import num_looked_at
from data_prep.curation.nothing_kept import NothingKeptError
from data_prep.download import download
from data_prep.download_checks import NOT_ASKED, TooFewDownloadedError
from data_prep.download_config import DownloadConfig
from data_prep.import_pictures import import_pictures
from data_prep.list_files import list_files
from data_prep.partition_report import num_finished
from data_prep.raw import DownloadReport
from data_prep.reshard import reshard
from data_prep.sample.links import write_url_list
from data_prep.sample.pictures import SAMPLE_URI
from data_prep.sample.serve import serving_sample
from data_prep.url_list import UrlListConfig, check_columns, parquet_files
from infra import storage
from infra.errors import BadInputError, DataLossError
from pipeline.config import DatasetConfig, DatasetName, PicturesSource, RunConfig, SampleSource, UrlListSource
from pipeline.inputs import check_inputs_unchanged, identities, input_versions
from pipeline.steps import Step, StepContext, StepRecord, StepResult


def data_steps(config: RunConfig, name: DatasetName) -> list[Step]:
    """Download or import, curate and reshard one dataset."""
    dataset = config.datasets[name]
    first = raw_step_name(config, name)
    return [
        _import_step(dataset.source, name) if isinstance(dataset.source, PicturesSource) else _download_step(dataset, name),
        Step(
            name=f"curate-{name}",
            title=f"Filter and deduplicate the {name} pictures",
            settings=_curate_settings(dataset),
            reads=(first, *(f"curate-{other}" for other in _excluded(config, name))),
            work=lambda context: _curate(context, name),
            clean_start=False,
            so_far=_shards_so_far,
            on_cluster=True,
            check_done=check_inputs_unchanged,
        ),
        Step(
            name=f"shard-{name}",
            title=f"Write the {name} shards",
            settings=dataset.shards.identity(),
            reads=(first, f"curate-{name}"),
            work=lambda context: _shard(context, name),
            clean_start=False,
            on_cluster=True,
        ),
    ]


def dataset_order(config: RunConfig) -> list[DatasetName]:
    """Train first, unless its curation reads the evaluation pictures."""
    names: list[DatasetName] = ["train", "evaluation"]
    return names[::-1] if _excluded(config, "train") else names


def _excluded(config: RunConfig, name: DatasetName) -> list[DatasetName]:
    """Datasets of this run whose pictures this one must not hold."""
    return [other for other in config.datasets if other in config.datasets[name].curate.exclude_near]


def raw_step_name(config: RunConfig, name: DatasetName) -> str:
    """The step that makes the raw shards of a dataset."""
    verb = "import" if isinstance(config.datasets[name].source, PicturesSource) else "download"
    return f"{verb}-{name}"


def _download_step(dataset: DatasetConfig, name: DatasetName) -> Step:
    return Step(
        name=f"download-{name}",
        title=f"Download the {name} pictures",
        settings={"source": _source_identity(dataset), "download": dataset.download.identity()},
        reads=(),
        work=lambda context: _download(context, name),
        clean_start=False,
        so_far=_partitions_so_far,
        on_cluster=True,
        check_done=lambda record: _check_download(record, dataset.download, name),
        goes_on=lambda record: _has_more_rounds(record, dataset.download),
    )


def _curate_settings(dataset: DatasetConfig) -> dict[str, Any]:
    """Rounds are part of what comes after a download, not of its own address: more of them go on in the same folder."""
    settings = _curate_identity(dataset.curate)
    if not isinstance(dataset.source, PicturesSource) and dataset.download.rounds > 1:
        settings["rounds"] = dataset.download.rounds
    return settings


def _has_more_rounds(record: StepRecord, config: DownloadConfig) -> bool:
    return bool(config.rounds > record.facts.get("rounds", 1))


def _check_download(record: StepRecord, config: DownloadConfig, name: DatasetName) -> None:
    """Raises BadInputError where a finished download is not what is asked for by now."""
    check_inputs_unchanged(record)
    facts = record.facts
    rounds = facts.get("rounds", 1)
    if config.rounds < rounds:
        raise BadInputError(
            f"the download of {name} has been through {rounds} rounds, and the pictures of the later ones are "
            f"among the others: --set datasets.{name}.download.rounds={rounds}, or hyperclip clean"
        )
    asked = facts.get("requested", 0) - sum(facts.get("failed", {}).get(reason, 0) for reason in NOT_ASKED)
    arrived = facts.get("downloaded", 0)
    if arrived < config.min_success_rate * asked:
        raise BadInputError(
            f"the finished download of {name} brought {arrived:,} of {asked:,} pictures, {arrived / asked:.1%}, and "
            f"min_success_rate is {config.min_success_rate:.1%} by now: lower it, fetch again what may have passed with --set "
            f"datasets.{name}.download.rounds={rounds + 1}, or begin anew after hyperclip clean"
        )


def _import_step(source: PicturesSource, name: DatasetName) -> Step:
    return Step(
        name=f"import-{name}",
        title=f"Import the {name} pictures",
        settings={
            "files": [identity for uri in source.uris for identity in identities(uri, parquet_files)],
            "import": source.fingerprint(),
        },
        reads=(),
        work=lambda context: _import(context, source),
        clean_start=False,
        so_far=_partitions_so_far,
        on_cluster=True,
        check_done=check_inputs_unchanged,
    )


def _source_identity(dataset: DatasetConfig) -> Any:
    source = dataset.source
    if isinstance(source, SampleSource):
        return {**source.model_dump(mode="json"), "pictures": storage.fingerprint(SAMPLE_URI)}
    assert isinstance(source, UrlListSource)
    if storage.is_local(source.uri):
        check_columns(source.uri, source.columns)  # before Ray is started for a list that is of no use
    found = identities(source.uri, list_files)
    return {"columns": source.columns.model_dump(mode="json"), "list": found[0] if len(found) == 1 else found}


def _curate_identity(config: CurateConfig) -> dict[str, Any]:
    """The settings, and the content of the files that they name."""
    files = {uri: identities(uri, parquet_files) for uri in _files_of(config)}
    return config.identity() | ({"files": files} if files else {})


def _files_of(config: CurateConfig) -> list[str]:
    """Score files and evaluation pictures; datasets of the run go by their name."""
    named = [uri for uri in config.exclude_near if uri not in get_args(DatasetName)]
    return [*(score.uri for score in config.scores), *named]


def _download(context: StepContext, name: DatasetName) -> StepResult:
    dataset = context.config.datasets[name]
    # before it is read: a change in between is then seen by the next run
    versions = input_versions([dataset.source.uri]) if isinstance(dataset.source, UrlListSource) else {}
    with contextlib.ExitStack() as stack:
        settings: DownloadConfig = dataset.download
        if isinstance(dataset.source, SampleSource):
            try:
                base_url = stack.enter_context(serving_sample(dataset.source.port))
            except BadInputError as error:
                raise BadInputError(f"{error}: --set datasets.{name}.source.port={dataset.source.port + 1}") from error
            # loopback is refused unless it is named: here it is the one origin there is
            policy = settings.policy.rebuilt(allowed_private_hosts=(base_url.removeprefix("http://"),))
            settings = settings.rebuilt(policy=policy)
            list_uri, columns = storage.join(context.output_uri, "urls.parquet"), UrlListConfig()
            if not storage.exists(list_uri):
                write_url_list(list_uri, split=name, base_url=base_url)
        else:
            assert isinstance(dataset.source, UrlListSource)
            list_uri, columns = dataset.source.uri, dataset.source.columns
        try:
            report = download(
                settings,
                url_list_uri=list_uri,
                url_columns=columns,
                output_uri=raw_uri(context.output_uri),
                progress=context.progress,
            )
        except TooFewDownloadedError as error:
            raise DataLossError(f"{error}. The setting: datasets.{name}.download.{error.setting}") from error
    return _raw_result(report, "downloaded", versions)


def _import(context: StepContext, source: PicturesSource) -> StepResult:
    versions = input_versions(source.uris)
    report = import_pictures(
        source.uris,
        config=source,
        output_uri=raw_uri(context.output_uri),
        progress=context.progress,
    )
    return _raw_result(report, "imported", versions)


def _partitions_so_far(output_uri: str) -> str | None:
    partitions = num_finished(raw_uri(output_uri))
    return f"after {partitions:,} finished partition{'s' if partitions > 1 else ''}" if partitions else None


def raw_uri(output_uri: str) -> str:
    """The raw folder in the output of a download or an import."""
    return storage.join(output_uri, "raw")


def _raw_result(report: DownloadReport, done: str, versions: dict[str, str | None]) -> StepResult:
    failed = sum(report.failed.values())
    return StepResult(
        summary=f"{report.downloaded:,} of {report.requested:,} {done}"
        + (f" in {report.rounds} rounds" if report.rounds > 1 else "")
        + (f", {failed:,} failed: {describe(report.failed)}" if failed else "")
        + (f"; {report.quarantined:,} in quarantine: not what the list gives the hash of" if report.quarantined else ""),
        facts={
            "requested": report.requested,
            "downloaded": report.downloaded,
            "failed": report.failed,
            "bytes": report.bytes,
            "rounds": report.rounds,
            "quarantined": report.quarantined,
            "input_versions": versions,
        },
        metrics={"requested": report.requested, "downloaded": report.downloaded, "success_rate": report.success_rate}
        | {f"failed.{reason}": count for reason, count in report.failed.items()},
    )


def _shards_so_far(output_uri: str) -> str | None:
    shards = num_looked_at(output_uri)
    return f"after {shards:,} shard{'s' if shards > 1 else ''}" if shards else None


def _curate(context: StepContext, name: DatasetName) -> StepResult:
    config = context.config.datasets[name].curate
    versions = input_versions(_files_of(config))
    others: dict[str, str] = {
        other: storage.join(context.inputs[f"curate-{other}"], KEEP_LIST_NAME) for other in _excluded(context.config, name)
    }
    try:
        report = curate(
            config,
            raw_uri=raw_uri(context.inputs[raw_step_name(context.config, name)]),
            output_uri=context.output_uri,
            progress=lambda done, total: context.progress(done, total, "pictures"),
            datasets=others,
        )
    except NothingKeptError as error:
        change = f"change datasets.{name}.curate.{error.change}" if error.change else "look at the source of the pictures"
        raise BadInputError(f"{error}. To go on, {change}") from error
    dropped = sum(report.dropped.values())
    return StepResult(
        summary=f"{report.kept:,} of {report.seen:,} kept"
        + (f", {dropped:,} dropped: {describe(report.dropped)}" if dropped else ""),
        facts={"seen": report.seen, "kept": report.kept, "dropped": report.dropped, "input_versions": versions},
        metrics={"seen": report.seen, "kept": report.kept}
        | {f"dropped.{reason}": count for reason, count in report.dropped.items()},
    )


def _shard(context: StepContext, name: DatasetName) -> StepResult:
    manifest = reshard(
        context.config.datasets[name].shards,
        raw_uri=raw_uri(context.inputs[raw_step_name(context.config, name)]),
        keep_list_uri=storage.join(context.inputs[f"curate-{name}"], KEEP_LIST_NAME),
        output_uri=context.output_uri,
        progress=lambda done, total: context.progress(done, total, "samples"),
    )
    size = sum(shard.bytes for shard in manifest.shards)
    shards = "1 shard" if len(manifest.shards) == 1 else f"{len(manifest.shards):,} shards"
    return StepResult(
        summary=f"{manifest.num_samples:,} samples in {shards}, {size / 1e6:.1f} MB",
        facts={"samples": manifest.num_samples, "shards": len(manifest.shards), "bytes": size},
        metrics={"samples": manifest.num_samples, "shards": len(manifest.shards), "bytes": size},
    )
