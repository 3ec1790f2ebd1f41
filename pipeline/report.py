"""The report of a run: one HTML file with its pictures inside, from the records the steps left."""

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from infra import storage
from infra.tracking import Tracker
from pipeline.config import RunConfig
from pipeline.model_steps import EVALUATION_NAME
from pipeline.showcase_steps import PREDICTIONS_NAME, ServedPredictions
from pipeline.steps import PlannedStep, StepRecord
from training.evaluation.zero_shot import ZeroShotResult
from training.metrics_log import read_metrics
from training.shard_reader import ShardReader

REPORT_NAME = "report.html"
_MIME = {b"\x89PNG": "image/png", b"RIFF": "image/webp"}


def write_report(
    config: RunConfig, planned: list[PlannedStep], records: Mapping[str, StepRecord], tracker: Tracker, run_id: str
) -> str:
    """Write `report.html` into the workspace and into the MLflow run; returns its URI."""
    uris = {entry.step.name: entry.output_uri for entry in planned}
    evaluation = storage.read_model(storage.join(uris["evaluate"], EVALUATION_NAME), ZeroShotResult)
    reader = ShardReader.open(uris["shard-evaluation"])
    metrics = read_metrics(uris["train"])
    served = None
    if "serve" in uris:
        served = storage.read_model(storage.join(uris["serve"], PREDICTIONS_NAME), ServedPredictions)
    page = _template().render(
        config=config,
        steps=[(entry.step, records[entry.step.name]) for entry in planned],
        funnels=[_funnel(name, records) for name in config.datasets],
        curves=_picture(_curves(metrics)),
        ways=_picture(_ways_plot(evaluation)),
        evaluation=evaluation,
        shown=[(_sample(reader, shown.sample), shown) for shown in evaluation.shown],
        served=served,
        served_shown=[(_sample(reader, shown.sample), shown) for shown in served.predictions] if served else [],
        tracking=config.resolved_tracking,
        run_id=run_id,
        config_json=config.model_dump_json(indent=2),
    )
    uri = storage.join(config.workspace_uri, f"{config.name}-{config.run_hash[:12]}-{REPORT_NAME}")
    storage.write_atomic(uri, page)
    tracker.log_text(run_id, page, REPORT_NAME)
    return uri


def _funnel(name: str, records: Mapping[str, StepRecord]) -> dict[str, Any]:
    """From rows of the list to samples in shards, with every loss by reason."""
    download, curate = records[f"download-{name}"].facts, records[f"curate-{name}"].facts
    lost = [("failed", reason, count) for reason, count in _most_first(download["failed"])]
    lost += [("dropped", reason, count) for reason, count in _most_first(curate["dropped"])]
    return {
        "name": name,
        "requested": download["requested"],
        "downloaded": download["downloaded"],
        "kept": curate["kept"],
        "samples": records[f"shard-{name}"].facts["samples"],
        "lost": lost,
    }


def _most_first(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))


def _curves(metrics: list[dict[str, float]]) -> Any:
    figure, (left, right) = _figure(columns=2)
    steps = [record["step"] for record in metrics]
    left.plot(steps, [record["loss"] for record in metrics], color="#2563eb")
    left.set(title="Loss", xlabel="step")
    right.plot(steps, [record["delta_rms"] for record in metrics], color="#2563eb", label="rms of the deltas")
    right.plot(
        steps, [record["delta_variation"] for record in metrics], color="#ea580c", label="share that varies with the names"
    )
    right.set(title="Generated parameters", xlabel="step")
    right.legend(frameon=False)
    return figure


def _ways_plot(evaluation: ZeroShotResult) -> Any:
    figure, (axes,) = _figure(columns=1)
    readings = {"specialized": "#2563eb", "neutral": "#64748b", "swapped": "#ea580c"}
    width = 0.25
    for place, (reading, colour) in enumerate(readings.items()):
        found = [way.accuracy[reading] for way in evaluation.ways]  # type: ignore[index]
        centres = [number + (place - 1) * width for number in range(len(found))]
        errors = [[a.mean - a.low for a in found], [a.high - a.mean for a in found]]
        axes.bar(centres, [a.mean for a in found], width * 0.9, yerr=errors, capsize=3, color=colour, label=reading)
    for number, way in enumerate(evaluation.ways):
        axes.hlines(way.chance, number - 0.45, number + 0.45, color="black", linestyle="--", label=None if number else "chance")
    axes.set_xticks(range(len(evaluation.ways)), [f"{way.num_ways} names" for way in evaluation.ways])
    axes.set(title="Zero-shot accuracy, 95 % intervals", ylim=(0, 1))
    axes.legend(frameon=False, ncols=4, loc="upper center")
    return figure


def _figure(*, columns: int) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # no pyplot: it keeps figures and picks a display

    figure = Figure(figsize=(5 * columns, 3.2), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(axis="y", alpha=0.3)
    return figure, axes


def _picture(figure: Any) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return _data_uri(buffer.getvalue())


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
