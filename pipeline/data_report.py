"""The report of a dataset: one HTML file with its pictures inside, its plots as PNG, its numbers as JSON; and the step that
makes it."""

import base64
import tempfile
from itertools import groupby
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, Template

from data_prep.curation.curate import KEEP_LIST_NAME
from data_prep.description import DatasetDescription, describe_dataset
from data_prep.shown_samples import KEPT, NEVER_SHOWN, ShownSample
from infra import artefacts, storage
from pipeline.config import DatasetName, RunConfig
from pipeline.data_plots import data_plots
from pipeline.data_steps import raw_step_name, raw_uri
from pipeline.steps import Step, StepContext, StepResult

REPORT_NAME = "data-report.html"
DESCRIPTION_NAME = "description.json"
_TITLES = {
    "funnel.png": "From source to shards",
    "rates.png": "Rates over time",
    "hosts.png": "Hosts",
    "sources.png": "Sources",
    "sizes.png": "Sizes",
    "captions.png": "Captions",
}


def describe_step(config: RunConfig, name: DatasetName) -> Step:
    """Nothing reads it, so no address depends on it."""
    return Step(
        name=f"describe-{name}",
        title=f"Describe the {name} pictures",
        settings={},
        reads=(raw_step_name(config, name), f"curate-{name}", f"shard-{name}"),
        work=lambda context: _describe(context, name),
    )


def data_report_uri(describe_uri: str) -> str:
    return storage.join(describe_uri, REPORT_NAME)


def _describe(context: StepContext, name: DatasetName) -> StepResult:
    first = raw_step_name(context.config, name)
    described, shown = describe_dataset(
        raw_uri=raw_uri(context.inputs[first]),
        keep_list_uri=storage.join(context.inputs[f"curate-{name}"], KEEP_LIST_NAME),
        shards_uri=context.inputs[f"shard-{name}"],
        imported=first.startswith("import"),
        progress=context.progress,
    )
    with tempfile.TemporaryDirectory(prefix="hyperclip-report-") as folder:
        write_report_files(described, shown, title=f"{context.config.name}: {name}", folder=Path(folder))
        artefacts.publish_folder(Path(folder), context.output_uri, last=DESCRIPTION_NAME)
        context.tracker.log_artifact(context.run_id, Path(folder), folder="data")
    return StepResult(
        summary=f"{described.samples:,} samples of {described.requested:,}: {data_report_uri(context.output_uri)}",
        facts={"report": data_report_uri(context.output_uri)},
        metrics=described.metrics,
    )


def write_report_files(described: DatasetDescription, shown: list[ShownSample], *, title: str, folder: Path) -> None:
    """The page, the plots, and the numbers."""
    plots = data_plots(described)
    for file_name, data in plots.items():
        (folder / file_name).write_bytes(data)
    (folder / REPORT_NAME).write_text(data_page(described, shown, plots, title=title))
    (folder / DESCRIPTION_NAME).write_text(described.model_dump_json(indent=1))


def data_page(described: DatasetDescription, shown: list[ShownSample], plots: dict[str, bytes], *, title: str) -> str:
    """HTML that loads nothing; whatever came from the web is escaped."""
    groups = [(reason, list(samples)) for reason, samples in groupby(shown, key=lambda sample: sample.reason)]
    return _template().render(
        title=title,
        described=described,
        plots=[(heading, _data_uri(plots[name], "png")) for name, heading in _TITLES.items() if name in plots],
        groups=groups,
        kept_word=KEPT,
        not_shown=[reason for reason in described.dropped if any(word in reason for word in NEVER_SHOWN)],
    )


def _data_uri(data: bytes, image_format: str) -> str:
    return f"data:image/{image_format};base64,{base64.b64encode(data).decode()}"


def _template() -> Template:
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    environment.filters["percent"] = lambda value: f"{value:.1%}"
    environment.filters["count"] = lambda value: f"{value:,}"
    environment.filters["picture"] = lambda data: _data_uri(data, "webp")
    return environment.get_template("data_report.html.j2")
