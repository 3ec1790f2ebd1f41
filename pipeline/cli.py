"""The `hyperclip` command."""

import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.logging import RichHandler
from rich.markup import escape
from rich.table import Table

from infra.errors import BadInputError, HyperClipError
from pipeline.console import ConsoleObserver, err, out

app = typer.Typer(
    name="hyperclip",
    help="Turn web image-text pairs into zero-shot image classifiers made to order.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

ConfigPath = Annotated[Path, typer.Argument(help="Run configuration, e.g. pipeline/configs/quickstart.yaml", metavar="CONFIG")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change one setting: training.num_steps=500; may be repeated", metavar="A.B=VALUE"),
]
Model = Annotated[str, typer.Argument(help="A bundle folder, models:/NAME@champion, or models:/NAME/VERSION", metavar="MODEL")]
TrackingUri = Annotated[str | None, typer.Option(help="MLflow to look the model up in; default MLFLOW_TRACKING_URI")]
Labels = Annotated[str, typer.Option(help="Class names with commas between, or @FILE with one a line")]
Templates = Annotated[
    list[str] | None, typer.Option("--template", help='A text with {} for the name, "a photo of a {}"; may be repeated')
]

RUNS, DATA, MODELS, USE = "Runs", "Single steps", "Models", "Classifiers"


# ---- runs ------------------------------------------------------------------------------------------------------------


@app.command(rich_help_panel=RUNS)
def run(config: ConfigPath, overrides: Overrides = None) -> None:
    """Run everything that is not done yet: download, curate, shard, train, evaluate, register, export, serve.

    A second run skips what is done, and a killed run goes on where it was.
    """
    _run(config, overrides, until=None)


@app.command(rich_help_panel=RUNS)
def plan(config: ConfigPath, overrides: Overrides = None) -> None:
    """Show what a run would do, where it would write, and what is done already.  Changes nothing."""
    from pipeline.config import load_run_config
    from pipeline.runner import plan as plan_run

    settings = load_run_config(config, tuple(overrides or ()))
    for entry in plan_run(settings):
        out.print(f"{_state_of(entry)}  {escape(entry.step.title)}\n       [dim]{escape(entry.output_uri)}[/]")
    out.print(f"MLflow: {escape(settings.resolved_tracking.uri)}")


@app.command(rich_help_panel=RUNS)
def status(config: ConfigPath, overrides: Overrides = None) -> None:
    """Show what each finished step made."""
    from pipeline.config import load_run_config
    from pipeline.runner import plan as plan_run

    planned = plan_run(load_run_config(config, tuple(overrides or ())))
    for entry in planned:
        record = entry.record
        out.print(f"{_state_of(entry)}  {escape(entry.step.title)}" + (f"\n      {escape(record.summary)}" if record else ""))
    done = sum(entry.record is not None for entry in planned)
    out.print(f"{done} of {len(planned)} steps done" + ("" if done == len(planned) else f"; continue: hyperclip run {config}"))


@app.command(rich_help_panel=RUNS)
def clean(
    config: ConfigPath,
    overrides: Overrides = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask")] = False,
) -> None:
    """Remove what the steps of this configuration made.  MLflow runs and registered models stay."""
    from infra import storage
    from pipeline.config import load_run_config
    from pipeline.runner import plan as plan_run

    begun = [entry.output_uri for entry in plan_run(load_run_config(config, tuple(overrides or ()))) if entry.begun]
    if not begun:
        out.print("Nothing to remove.")
        return
    for uri in begun:
        out.print(f"  {escape(uri)}")
    if not yes and not typer.confirm(f"Remove these {len(begun)} folders?"):
        raise typer.Exit(1)
    for uri in reversed(begun):  # what reads comes before what is read, so that no done step has lost its input
        storage.remove(uri)
    out.print(f"Removed {len(begun)} folders.")


# ---- single steps ----------------------------------------------------------------------------------------------------


@app.command(rich_help_panel=DATA)
def download(config: ConfigPath, overrides: Overrides = None) -> None:
    """Download the pictures of every dataset of a run."""
    _run(config, overrides, until="download")


@app.command("import", rich_help_panel=DATA)
def import_(
    parquet: Annotated[list[str], typer.Argument(help="Files with the pictures inside: columns image and caption")],
    output: Annotated[str, typer.Option(help="Folder for the raw shards", metavar="FOLDER")],
) -> None:
    """Make raw shards from pictures that are embedded in parquet files."""
    from data_prep.accounting import describe
    from data_prep.import_pictures import ImportConfig, import_pictures

    with ConsoleObserver().working("Import pictures") as progress:
        report = import_pictures(
            parquet, config=ImportConfig(), output_uri=output, progress=lambda done, total: progress(done, total, "pictures")
        )
    failed = f", {sum(report.failed.values()):,} failed: {describe(report.failed)}" if report.failed else ""
    out.print(f"{report.downloaded:,} of {report.requested:,} pictures imported{failed} into {escape(output)}")


@app.command(rich_help_panel=DATA)
def curate(config: ConfigPath, overrides: Overrides = None) -> None:
    """Filter and deduplicate, downloading first where needed."""
    _run(config, overrides, until="curate")


@app.command(rich_help_panel=DATA)
def train(config: ConfigPath, overrides: Overrides = None) -> None:
    """Train, and everything before it that is not done."""
    _run(config, overrides, until="train")


@app.command(rich_help_panel=DATA)
def evaluate(config: ConfigPath, overrides: Overrides = None) -> None:
    """Evaluate zero-shot classification on the held-out pictures, and everything before it that is not done."""
    _run(config, overrides, until="evaluate")


@app.command(rich_help_panel=DATA)
def register(config: ConfigPath, overrides: Overrides = None) -> None:
    """Register the trained model, and everything before it that is not done."""
    _run(config, overrides, until="register")


# ---- models ----------------------------------------------------------------------------------------------------------


@app.command(rich_help_panel=MODELS)
def promote(
    name: Annotated[str, typer.Argument(help="Registered model")],
    version: Annotated[str, typer.Argument(help="Version number, or an alias such as candidate")],
    tracking_uri: TrackingUri = None,
) -> None:
    """Make a version the champion, which services serve."""
    from pipeline.model_source import tracker_at

    chosen = tracker_at(tracking_uri).promote(name, version)
    out.print(f"{chosen.name} version {chosen.version} is the champion.")


@app.command(rich_help_panel=MODELS)
def rollback(name: Annotated[str, typer.Argument(help="Registered model")], tracking_uri: TrackingUri = None) -> None:
    """Make the champion before the present one the champion again."""
    from pipeline.model_source import tracker_at

    chosen = tracker_at(tracking_uri).rollback(name)
    out.print(f"{chosen.name} version {chosen.version} is the champion again.")


# ---- classifiers -----------------------------------------------------------------------------------------------------


@app.command(rich_help_panel=USE)
def serve(config: ConfigPath, overrides: Overrides = None) -> None:
    """Serve the champion of a run over HTTP, with a page to try it on, until Ctrl-C."""
    import signal
    import threading

    from infra.cluster import connected
    from infra.tracking import CHAMPION
    from pipeline.config import load_run_config
    from pipeline.showcase_steps import serving_config
    from serving.launch import running

    settings = load_run_config(config, tuple(overrides or ()))
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    out.print(f"Starting the champion of {escape(settings.name)} …")
    with connected(settings.cluster), running(serving_config(settings, alias=CHAMPION)) as base_url:
        out.print(f"Serving on {base_url}  (page: {base_url}/, interface: {base_url}/docs or /openapi.json).  Ctrl-C ends it.")
        stop.wait()
    out.print("Stopped.")


@app.command(rich_help_panel=USE)
def specialize(
    model: Model,
    labels: Labels,
    output: Annotated[Path, typer.Option(help="New folder for the specialized encoder", metavar="FOLDER")],
    templates: Templates = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Turn class names into a specialized encoder: a parameter delta of some tens of kilobytes."""
    from pipeline.model_source import opened_bundle
    from training.specialize import save_specialized
    from training.specialize import specialize as make

    with opened_bundle(model, tracking_uri=tracking_uri) as bundle:
        encoder = make(bundle, _labels(labels), templates)
        save_specialized(encoder, output, bundle)
    size = sum(path.stat().st_size for path in output.iterdir())
    out.print(f"{len(encoder.task.labels)} labels, {encoder.delta.numel():,} generated values, {size / 1e3:.0f} kB in {output}")


@app.command(rich_help_panel=USE)
def classify(
    model: Model,
    images: Annotated[list[Path], typer.Argument(help="JPEG, PNG or WebP files", metavar="IMAGE...")],
    labels: Labels,
    templates: Templates = None,
    top_k: Annotated[int, typer.Option(min=1, help="Labels shown for each picture")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, for programs")] = False,
    tracking_uri: TrackingUri = None,
) -> None:
    """Classify pictures here, without a service."""
    import torch

    from pipeline.model_source import opened_bundle
    from training.preprocess import preprocess
    from training.specialize import specialize as make

    table = Table("picture", "label", "score", "match", box=None, header_style="bold")
    with opened_bundle(model, tracking_uri=tracking_uri) as bundle:
        encoder = make(bundle, _labels(labels), templates)
        for path in images:
            try:
                picture = torch.from_numpy(preprocess(_read(path), bundle.preprocess))
            except BadInputError as error:
                raise BadInputError(f"{path}: {error}") from error
            scores = encoder.scores(bundle, picture[None])
            best = scores.softmax[0].topk(min(top_k, len(encoder.task.labels)))
            found = [
                {
                    "label": encoder.task.labels[place],
                    "score": scores.softmax[0, place].item(),
                    "match": scores.match[0, place].item(),
                }
                for place in best.indices.tolist()
            ]
            if as_json:
                sys.stdout.write(json.dumps({"picture": str(path), "predictions": found}) + "\n")
            for number, one in enumerate(found):
                table.add_row(
                    "" if number else escape(str(path)), escape(str(one["label"])), f"{one['score']:.3f}", f"{one['match']:.3f}"
                )
    if not as_json:
        out.print(table)


@app.command(rich_help_panel=USE)
def export(
    model: Model,
    labels: Labels,
    output: Annotated[Path, typer.Option(help="New folder for the package", metavar="FOLDER")],
    templates: Templates = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Write a specialized encoder as an ONNX package for a device; refused unless it computes what the model does."""
    from pipeline.model_source import opened_bundle
    from training.export import export_package
    from training.specialize import specialize as make

    with opened_bundle(model, tracking_uri=tracking_uri) as bundle:
        report = export_package(bundle, make(bundle, _labels(labels), templates), output)
    out.print(
        f"{report.num_labels} labels, {report.model_bytes / 1e6:.1f} MB in {output}; how to use it: {output / 'README.md'}"
    )


# ---- common ----------------------------------------------------------------------------------------------------------


def _run(config: Path, overrides: list[str] | None, *, until: str | None) -> None:
    from pipeline.config import load_run_config
    from pipeline.runner import run as run_steps

    settings = load_run_config(config, tuple(overrides or ()))
    finished = run_steps(settings, ConsoleObserver(), until=until)
    out.print()
    tracking = settings.resolved_tracking.uri
    if "register" in finished.records:
        facts = finished.records["register"].facts
        out.print(f"[bold]Model[/]   models:/{facts['name']}/{facts['version']} ({facts['role']})")
    out.print(f"[bold]MLflow[/]  {escape(tracking)}, run {finished.run_id}")
    if tracking.startswith("sqlite:"):
        out.print(f"        look at it: mlflow server --backend-store-uri {escape(tracking)}")
    if finished.report_uri:
        out.print(f"[bold]Report[/]  {escape(finished.report_uri)}")
        out.print(f"[bold]Page[/]    hyperclip serve {config}, then http://{settings.serving.host}:{settings.serving.port}/")


def _state_of(entry: object) -> str:
    from pipeline.steps import PlannedStep

    assert isinstance(entry, PlannedStep)
    try:
        record = entry.record
    except BadInputError:  # the store cannot be reached from here: a plan can be made all the same
        return "[dim]not known from here[/]"
    if record is not None:
        return "[green]done [/]"
    return "[yellow]begun[/]" if entry.begun else "to do"


def _labels(text: str) -> list[str]:
    if text.startswith("@"):
        return [line for line in _read(Path(text[1:])).decode().splitlines() if line.strip()]
    return [label for label in text.split(",") if label.strip()]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadInputError(f"cannot read {path}: {error.strerror}") from error


def main() -> None:
    """Entry point: errors for people are a line on standard error and an exit code; others keep their traceback."""
    logging.basicConfig(
        level=logging.WARNING, format="%(message)s", handlers=[RichHandler(console=err, show_path=False, show_time=False)]
    )
    os.environ.setdefault("TQDM_DISABLE", "1")  # our own bars are enough
    try:
        app()
    except HyperClipError as error:
        err.print(f"[bold red]error:[/] {escape(str(error))}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        err.print("interrupted; run the same command again to continue")
        sys.exit(130)


if __name__ == "__main__":
    main()
