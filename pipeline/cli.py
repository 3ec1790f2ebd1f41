"""The `hyperclip` command."""

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.logging import RichHandler
from rich.markup import escape

from infra.errors import CorruptArtefactError, HyperClipError
from pipeline.console import ConsoleObserver, err, out
from pipeline.model_commands import model_app

if TYPE_CHECKING:
    from pipeline.steps import PlannedStep

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
RUNS, DATA = "Runs", "Single steps"
State = Literal["done", "begun", "to do", "unknown"]
STATES: dict[State, str] = {
    "done": "[green]done [/]",
    "begun": "[yellow]begun[/]",
    "to do": "to do",
    "unknown": "[dim]?    [/]",
}


# ---- runs ------------------------------------------------------------------------------------------------------------


@app.command(rich_help_panel=RUNS)
def run(config: ConfigPath, overrides: Overrides = None) -> None:
    """Run everything that is not done yet: download or import, curate, shard, train, evaluate, register, export, serve.

    A second run skips what is done, and a killed run goes on where it was.
    """
    _run(config, overrides, until=None)


@app.command(rich_help_panel=RUNS)
def plan(config: ConfigPath, overrides: Overrides = None) -> None:
    """Show what a run would do, where it would write, and what is done already.  Changes nothing."""
    from pipeline.config import load_run_config
    from pipeline.runner import plan as plan_run

    settings = load_run_config(config, tuple(overrides or ()))
    planned = plan_run(settings)
    states = [_state_of(entry) for entry in planned]
    for entry, state in zip(planned, states, strict=True):
        out.print(f"{STATES[state]}  {escape(entry.step.title)}\n       [dim]{escape(entry.output_uri)}[/]")
    out.print(f"MLflow: {escape(settings.resolved_tracking.uri)}")
    if "unknown" in states:
        out.print(f"What is done already is not known: {escape(settings.workspace_uri)} cannot be reached from here.")


@app.command(rich_help_panel=RUNS)
def status(config: ConfigPath, overrides: Overrides = None) -> None:
    """Show what each finished step made."""
    from pipeline.config import load_run_config
    from pipeline.runner import plan as plan_run

    planned = plan_run(load_run_config(config, tuple(overrides or ())))
    for entry in planned:
        record = entry.record
        out.print(f"{STATES[_state_of(entry)]}  {escape(entry.step.title)}")
        if record:
            out.print(f"       {escape(record.summary)} [dim]({record.seconds:.0f} s)[/]")
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


@app.command(rich_help_panel=RUNS)
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
        out.print(f"Serving on {base_url}  (page: {base_url}/, interface: {base_url}/openapi.json).  Ctrl-C ends it.")
        stop.wait()
    out.print("Stopped.")


# ---- single steps ----------------------------------------------------------------------------------------------------


@app.command(rich_help_panel=DATA)
def download(config: ConfigPath, overrides: Overrides = None) -> None:
    """Download the pictures of every dataset of a run whose source is URLs."""
    _run(config, overrides, until="download")


@app.command("import", rich_help_panel=DATA)
def import_(config: ConfigPath, overrides: Overrides = None) -> None:
    """Import the pictures of every dataset that has them already: source {kind: pictures, uris: [pictures.parquet]}."""
    _run(config, overrides, until="import")


@app.command(rich_help_panel=DATA)
def curate(config: ConfigPath, overrides: Overrides = None) -> None:
    """Filter and deduplicate, and download or import first where that is not done."""
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


app.add_typer(model_app)


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


def _state_of(entry: "PlannedStep") -> State:
    try:
        if entry.record is not None:
            return "done"
        return "begun" if entry.begun else "to do"
    except CorruptArtefactError:
        raise
    except Exception:  # the store cannot be reached from here, and each has errors of its own: a plan can be made all the same
        return "unknown"


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
