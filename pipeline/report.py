"""The report of a run: one HTML file with its pictures inside, from the records the steps left."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from infra import storage
from infra.tracking import Tracker
from pipeline.config import DatasetName, RunConfig
from pipeline.data_report import data_report_uri
from pipeline.data_steps import raw_step_name
from pipeline.shipped_step import why_no_contest
from pipeline.showcase import Showcase, read_showcase
from pipeline.steps import PlannedStep, StepRecord
from training.evaluation.plots import accuracy_plot, new_figure, png
from training.evaluation.result import FamilyResult, ZeroShotResult
from training.evaluation.result_files import read_result
from training.metrics_log import read_metrics
from training.shard_reader import ShardReader

REPORT_NAME = "report.html"
_MIME = {b"\x89PNG": "image/png", b"RIFF": "image/webp"}


def write_report(
    config: RunConfig, planned: list[PlannedStep], records: Mapping[str, StepRecord], tracker: Tracker, run_id: str
) -> str:
    """Write `report.html` into the workspace and into the MLflow run; returns its URI."""
    uris = {entry.step.name: entry.output_uri for entry in planned}
    evaluation = read_result(uris["evaluate"])
    reader = ShardReader.open(uris["shard-evaluation"])
    metrics = read_metrics(uris["train"])
    showcase = read_showcase(uris)
    page = _template().render(
        config=config,
        steps=[(entry.step, records[entry.step.name]) for entry in planned],
        funnels=[_funnel(config, name, records, describe_uri=uris[f"describe-{name}"]) for name in config.datasets],
        verdicts=[verdict(result) for result in evaluation.families],
        arms=list(dict.fromkeys(arm for result in evaluation.families for arm in result.accuracy)),
        curves=_picture(_curves(metrics)),
        accuracies=_picture(accuracy_plot(evaluation)),
        evaluation=evaluation,
        shown=[(_sample(reader, shown.sample), shown) for shown in evaluation.shown],
        showcase=showcase,
        asked=[(_sample(reader, trained.sample), trained, shipped) for trained, shipped in showcase.pairs()]
        if showcase
        else [],
        beside=_beside(evaluation, showcase),
        why_no_contest=why_no_contest(config),
        tracking=config.resolved_tracking,
        run_id=run_id,
        config_json=config.model_dump_json(indent=2),
    )
    uri = report_uri(config)
    storage.write_atomic(uri, page)
    tracker.log_text(run_id, page, REPORT_NAME)
    return uri


def report_uri(config: RunConfig) -> str:
    return storage.join(config.workspace_uri, f"{config.name}-{config.run_hash[:12]}-{REPORT_NAME}")


def verdict(result: FamilyResult) -> str:
    """Whether specialization helped in tasks of one family, by the 95 % intervals of the differences on the same tasks."""
    over = {one.baseline: one.difference for one in result.differences if one.arm == "specialized"}
    numbers = ", ".join(
        f"{result.accuracy[arm].mean:.1%} {arm}" for arm in ("specialized", "neutral", "swapped") if arm in result.accuracy
    )
    if over["neutral"].high < 0:
        says = "specialization does harm: it is below the neutral parameters"
    elif over["neutral"].low <= 0:
        says = "no gain from specialization can be told: its difference from the neutral parameters may as well be none"
    elif "swapped" not in over:
        says = "specialization is above the neutral parameters; there are no other names to swap, so the control is missing"
    elif over["swapped"].low <= 0:
        says = "specialization is above the neutral parameters, but another task's names do as well: not a gain of the names"
    else:
        says = (
            "specialization helps: it is above the neutral parameters and above another task's names, each beyond the intervals"
        )
    return f"With {result.family.title}, {says} ({numbers})."


def _beside(ours: ZeroShotResult, showcase: Showcase | None) -> list[tuple[FamilyResult, FamilyResult]]:
    """Families of tasks that both models were given: of the trained one, and of the shipped one."""
    theirs = showcase.shipped_evaluation if showcase else None
    return [(one, other) for one in ours.families for other in theirs.families if one.family == other.family] if theirs else []


def _funnel(config: RunConfig, name: DatasetName, records: Mapping[str, StepRecord], *, describe_uri: str) -> dict[str, Any]:
    """From rows of the source to samples in shards, with every loss by reason."""
    first = raw_step_name(config, name)
    raw, curate = records[first].facts, records[f"curate-{name}"].facts
    lost = [("failed", reason, count) for reason, count in _most_first(raw["failed"])]
    lost += [("dropped", reason, count) for reason, count in _most_first(curate["dropped"])]
    imported = first.startswith("import")
    return {
        "name": name,
        "requested": f"{raw['requested']:,} {'pictures' if imported else 'URLs'}",
        "downloaded": f"{raw['downloaded']:,} {'imported' if imported else 'downloaded'}",
        "kept": curate["kept"],
        "samples": records[f"shard-{name}"].facts["samples"],
        "lost": lost,
        "report": data_report_uri(describe_uri.rpartition("/")[2]),  # relative: both lie in the workspace
    }


def _most_first(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))


def _curves(metrics: list[dict[str, float]]) -> Any:
    figure, (left, right) = new_figure(columns=2)
    steps = [record["step"] for record in metrics]
    left.plot(steps, [record["loss"] for record in metrics], color="#2563eb")
    left.set(title="Loss", xlabel="step")
    right.plot(steps, [record["delta_rms"] for record in metrics], color="#2563eb", label="rms of the deltas")
    right.plot(
        steps, [record["delta_variation"] for record in metrics], color="#ea580c", label="share that varies with the names"
    )
    right.set(title="Generated parameters", xlabel="step", ylim=(0, None))
    figure.legend(loc="outside lower right", frameon=False, ncols=2)
    return figure


def _picture(figure: Any) -> str:
    return _data_uri(png(figure))


def _sample(reader: ShardReader, number: int) -> str:
    return _data_uri(reader[number][0])


def _data_uri(data: bytes) -> str:
    mime = _MIME.get(data[:4], "image/jpeg")
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def _template() -> Any:
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    environment.filters["percent"] = lambda value: f"{value:.1%}"
    environment.filters["count"] = lambda value: f"{value:,}"
    return environment.get_template("report.html.j2")
