"""The report of a run: one HTML file with its pictures inside, from the records the steps left."""

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from infra import storage
from infra.tracking import Tracker
from pipeline.config import DatasetName, RunConfig
from pipeline.data_steps import raw_step_name
from pipeline.model_steps import EVALUATION_NAME
from pipeline.showcase_steps import PREDICTIONS_NAME, ServedPredictions
from pipeline.steps import PlannedStep, StepRecord
from training.evaluation.zero_shot import READINGS, Reading, WayResult, ZeroShotResult
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
        funnels=[_funnel(config, name, records) for name in config.datasets],
        verdicts=[verdict(way) for way in evaluation.ways],
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
    uri = report_uri(config)
    storage.write_atomic(uri, page)
    tracker.log_text(run_id, page, REPORT_NAME)
    return uri


def report_uri(config: RunConfig) -> str:
    return storage.join(config.workspace_uri, f"{config.name}-{config.run_hash[:12]}-{REPORT_NAME}")


def verdict(way: WayResult) -> str:
    """Whether specialization helped in tasks of one size, by the 95 % intervals: apart, or not to be told apart."""
    specialized, neutral, swapped = (way.accuracy[reading] for reading in READINGS)
    numbers = f"{specialized.mean:.1%} specialized, {neutral.mean:.1%} neutral, {swapped.mean:.1%} swapped"
    if specialized.high < neutral.low:
        says = "specialization does harm: it is below the neutral parameters"
    elif specialized.low <= neutral.high:
        says = "no gain from specialization can be told: its interval overlaps that of the neutral parameters"
    elif specialized.low <= swapped.high:
        says = "specialization is above the neutral parameters, but another task's names do as well: not a gain of the names"
    else:
        says = (
            "specialization helps: it is above the neutral parameters and above another task's names, each beyond the intervals"
        )
    return f"With {way.num_ways} names {says} ({numbers})."


def _funnel(config: RunConfig, name: DatasetName, records: Mapping[str, StepRecord]) -> dict[str, Any]:
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
    right.set(title="Generated parameters", xlabel="step", ylim=(0, None))
    figure.legend(loc="outside lower right", frameon=False, ncols=2)
    return figure


def _ways_plot(evaluation: ZeroShotResult) -> Any:
    from matplotlib.ticker import PercentFormatter

    figure, (axes,) = _figure(columns=1)
    colours: dict[Reading, str] = {"specialized": "#2563eb", "neutral": "#64748b", "swapped": "#ea580c"}
    width = 0.25
    for place, (reading, colour) in enumerate(colours.items()):
        found = [way.accuracy[reading] for way in evaluation.ways]
        centres = [number + (place - 1) * width for number in range(len(found))]
        errors = [[a.mean - a.low for a in found], [a.high - a.mean for a in found]]
        axes.bar(centres, [a.mean for a in found], width * 0.9, yerr=errors, capsize=3, color=colour, label=reading)
    for number, way in enumerate(evaluation.ways):
        axes.hlines(way.chance, number - 0.45, number + 0.45, color="black", linestyle="--", label=None if number else "chance")
    axes.set_xticks(range(len(evaluation.ways)), [f"{way.num_ways} names" for way in evaluation.ways])
    highest = max(accuracy.high for way in evaluation.ways for accuracy in way.accuracy.values())
    axes.set(title="Zero-shot accuracy, 95 % intervals", ylim=(0, min(1, 1.1 * highest)))
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    figure.legend(loc="outside lower center", frameon=False, ncols=4)
    return figure


def _figure(*, columns: int) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # no pyplot: it keeps figures and picks a display

    figure = Figure(figsize=(5.5 * columns, 3.6), layout="constrained")
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
