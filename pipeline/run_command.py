"""Running a configuration from a command, up to some step."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from pipeline.console import ConsoleObserver, out
from pipeline.pasteable import pasteable

ConfigPath = Annotated[Path, typer.Argument(help="Run configuration, e.g. pipeline/configs/quickstart.yaml", metavar="CONFIG")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Change one setting: training.num_steps=500; may be repeated. `hyperclip settings` lists them",
        metavar="A.B=VALUE",
    ),
]
MLFLOW_ADDRESS = "http://127.0.0.1:5000"
"""Where `mlflow server` listens unless it is told otherwise."""


def run_until(config: Path, overrides: list[str] | None, *, until: str | None) -> None:
    """Run a configuration up to a step, or to its end; then say where everything is."""
    from pipeline.config import load_run_config
    from pipeline.runner import run as run_steps
    from pipeline.shipped_step import why_no_contest
    from pipeline.showcase import showcase_table

    settings = load_run_config(config, tuple(overrides or ()))
    finished = run_steps(settings, ConsoleObserver(), until=until)
    out.print()
    if finished.showcase is not None:
        out.print(showcase_table(finished.showcase))
        if finished.showcase.shipped is not None:
            out.print(f"[dim]{escape(why_no_contest(settings))}[/]")
        out.print()
    tracking = settings.resolved_tracking.uri
    if "register" in finished.records:
        facts = finished.records["register"].facts
        out.print(f"[bold]Model[/]   models:/{facts['name']}/{facts['version']} ({facts['role']})")
    out.print(f"[bold]MLflow[/]  {escape(tracking)}, run {finished.run_id}")
    if tracking.startswith("sqlite:"):
        look = pasteable("mlflow", "server", "--backend-store-uri", tracking)
        out.print(f"        look at it: {escape(look)}, then {MLFLOW_ADDRESS}")
    for name, record in finished.records.items():
        if name.startswith("describe-"):
            out.print(f"[bold]Data[/]    {escape(name.removeprefix('describe-'))}: {escape(record.facts['report'])}")
    if finished.report_uri:
        out.print(f"[bold]Report[/]  {escape(finished.report_uri)}")
        page = f"http://{settings.serving.host}:{settings.serving.port}/"
        out.print(f"[bold]Page[/]    {escape(command_line('serve', config, overrides))}, then {page}")


def command_line(name: str, config: Path, overrides: list[str] | None) -> str:
    """A command on the same run, to be pasted."""
    return pasteable("hyperclip", name, str(config), *(part for setting in overrides or () for part in ("--set", setting)))
