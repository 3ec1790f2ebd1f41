"""Steps from a source of URLs to training shards."""

import contextlib
from typing import Any

from data_prep.accounting import describe
from data_prep.curate import KEEP_LIST_NAME, curate
from data_prep.download import download
from data_prep.partition import DownloadConfig
from data_prep.reshard import reshard
from data_prep.sample.links import write_url_list
from data_prep.sample.pictures import SAMPLE_URI
from data_prep.sample.serve import serving_sample
from data_prep.url_list import UrlListConfig
from infra import storage
from infra.errors import BadInputError
from pipeline.config import DatasetConfig, DatasetName, RunConfig, SampleSource
from pipeline.steps import Step, StepContext, StepRecord, StepResult


def data_steps(config: RunConfig, name: DatasetName) -> list[Step]:
    """Download, curate and reshard one dataset."""
    dataset = config.datasets[name]
    return [
        Step(
            name=f"download-{name}",
            title=f"Download the {name} pictures",
            settings={"source": _source_identity(dataset), "download": dataset.download.model_dump(mode="json")},
            reads=(),
            work=lambda context: _download(context, name),
            clean_start=False,
            on_cluster=True,
            check_done=lambda record: _check_list_unchanged(dataset, record),
        ),
        Step(
            name=f"curate-{name}",
            title=f"Filter and deduplicate the {name} pictures",
            settings=dataset.curate.model_dump(mode="json"),
            reads=(f"download-{name}",),
            work=lambda context: _curate(context, name),
            on_cluster=True,
        ),
        Step(
            name=f"shard-{name}",
            title=f"Write the {name} shards",
            settings=dataset.shards.model_dump(mode="json"),
            reads=(f"download-{name}", f"curate-{name}"),
            work=lambda context: _shard(context, name),
        ),
    ]


def _source_identity(dataset: DatasetConfig) -> Any:
    source = dataset.source
    if isinstance(source, SampleSource):
        return {**source.model_dump(mode="json"), "pictures": storage.fingerprint(SAMPLE_URI)}
    # a remote list is known by its address, so that a plan needs no credentials; `_check_list_unchanged` does the rest
    identity = storage.fingerprint(source.uri) if storage.is_local(source.uri) else source.uri
    return {"columns": source.columns.model_dump(mode="json"), "list": identity}


def _list_version(dataset: DatasetConfig) -> str | None:
    """What the store says of a remote list without reading it; None for a local one, whose content is in the address."""
    source = dataset.source
    return None if isinstance(source, SampleSource) or storage.is_local(source.uri) else storage.version_tag(source.uri)


def _check_list_unchanged(dataset: DatasetConfig, record: StepRecord) -> None:
    """Raises BadInputError when a remote list was changed in place after its download; silent when the store does not tell."""
    before = record.facts.get("list_version")
    now = _list_version(dataset) if before else None
    if now and now != before:
        raise BadInputError(
            f"{dataset.source.uri} changed after it was downloaded ({before} then, {now} now); "  # type: ignore[union-attr]
            "give the new list a name of its own, or remove what was made of the old one: hyperclip clean"
        )


def _download(context: StepContext, name: DatasetName) -> StepResult:
    dataset = context.config.datasets[name]
    list_version = _list_version(dataset)  # before it is read: a change in between is then seen by the next run
    with contextlib.ExitStack() as stack:
        settings: DownloadConfig = dataset.download
        if isinstance(dataset.source, SampleSource):
            base_url = stack.enter_context(serving_sample(dataset.source.port))
            # loopback is refused unless it is named: here it is the one origin there is
            policy = settings.policy.rebuilt(allowed_private_hosts=(base_url.removeprefix("http://"),))
            settings = settings.rebuilt(policy=policy)
            list_uri, columns = storage.join(context.output_uri, "urls.parquet"), UrlListConfig()
            if not storage.exists(list_uri):
                write_url_list(list_uri, split=name, base_url=base_url)
        else:
            list_uri, columns = dataset.source.uri, dataset.source.columns
        report = download(
            settings,
            url_list_uri=list_uri,
            url_columns=columns,
            output_uri=storage.join(context.output_uri, "raw"),
            progress=lambda done, total: context.progress(done, total, "pictures"),
        )
    failed = sum(report.failed.values())
    return StepResult(
        summary=f"{report.downloaded:,} of {report.requested:,} downloaded"
        + (f", {failed:,} failed: {describe(report.failed)}" if failed else ""),
        facts={
            "requested": report.requested,
            "downloaded": report.downloaded,
            "failed": report.failed,
            "bytes": report.bytes,
            "list_version": list_version,
        },
        metrics={"requested": report.requested, "downloaded": report.downloaded, "success_rate": report.success_rate}
        | {f"failed.{reason}": count for reason, count in report.failed.items()},
    )


def _curate(context: StepContext, name: DatasetName) -> StepResult:
    report = curate(
        context.config.datasets[name].curate,
        raw_uri=storage.join(context.inputs[f"download-{name}"], "raw"),
        output_uri=context.output_uri,
        progress=lambda done, total: context.progress(done, total, "pictures"),
    )
    dropped = sum(report.dropped.values())
    return StepResult(
        summary=f"{report.kept:,} of {report.seen:,} kept"
        + (f", {dropped:,} dropped: {describe(report.dropped)}" if dropped else ""),
        facts={"seen": report.seen, "kept": report.kept, "dropped": report.dropped},
        metrics={"seen": report.seen, "kept": report.kept}
        | {f"dropped.{reason}": count for reason, count in report.dropped.items()},
    )


def _shard(context: StepContext, name: DatasetName) -> StepResult:
    manifest = reshard(
        context.config.datasets[name].shards,
        raw_uri=storage.join(context.inputs[f"download-{name}"], "raw"),
        keep_list_uri=storage.join(context.inputs[f"curate-{name}"], KEEP_LIST_NAME),
        output_uri=context.output_uri,
        progress=lambda done, total: context.progress(done, total, "samples"),
    )
    size = sum(shard.bytes for shard in manifest.shards)
    return StepResult(
        summary=f"{manifest.num_samples:,} samples in {len(manifest.shards)} shards, {size / 1e6:.1f} MB",
        facts={"samples": manifest.num_samples, "shards": len(manifest.shards), "bytes": size},
        metrics={"samples": manifest.num_samples, "shards": len(manifest.shards), "bytes": size},
    )
