"""The `hyperclip` command."""

import importlib.metadata
import logging
import os
import sys
from typing import Annotated

import typer
from rich.logging import RichHandler
from rich.markup import escape

from infra.errors import BadInputError, HyperClipError
from pipeline.calibrate_command import CALIBRATE_HELP, calibrate
from pipeline.classify_command import CLASSIFY_HELP, classify
from pipeline.console import STATES, err, out, took
from pipeline.evaluate_command import EVALUATE_HELP, evaluate
from pipeline.forget_command import FORGET_HELP, forget
from pipeline.model_commands import USE, model_app
from pipeline.run_command import ConfigPath, Overrides, command_line, run_until
from pipeline.score_command import score
from pipeline.serve_command import serve, serve_key
from pipeline.sweep_command import sweep_app

app = typer.Typer(
    name="hyperclip",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

RUNS, DATA = "Runs", "Single steps"
INTERRUPTED = 130
"""Exit status after Ctrl-C; Typer makes it of a KeyboardInterrupt, and says nothing."""


def _show_version(wanted: bool) -> None:
    if wanted:
        out.print(f"hyperclip {importlib.metadata.version('hyperclip')}")
        raise typer.Exit


@app.callback()
def hyperclip(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and end", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Turn web image-text pairs into zero-shot image classifiers made to order."""


# ---- runs ------------------------------------------------------------------------------------------------------------


@app.command(rich_help_panel=RUNS)
def run(config: ConfigPath, overrides: Overrides = None) -> None:
    """Run everything that is not done yet: download or import, curate, shard, train, evaluate, register, export, serve.

    A second run skips what is done, and a killed run goes on where it was.
    """
    run_until(config, overrides, until=None)


@app.command(rich_help_panel=RUNS)
def plan(config: ConfigPath, overrides: Overrides = None) -> None:
    """Show what a run would do, where it would write, and what is done already.  Changes nothing."""
    from pipeline.config import load_run_config
    from pipeline.runner import plan as plan_run

    settings = load_run_config(config, tuple(overrides or ()))
    planned = plan_run(settings)
    states = [entry.state for entry in planned]
    for entry, state in zip(planned, states, strict=True):
        out.print(f"{STATES[state]}  {escape(entry.step.title)}\n       [dim]{escape(entry.output_uri)}[/]")
    out.print(f"MLflow: {escape(settings.resolved_tracking.uri)}")
    if "unknown" in states:
        out.print(f"What is done already is not known: {escape(settings.workspace_uri)} cannot be reached from here.")


@app.command(rich_help_panel=RUNS)
def status(config: ConfigPath, overrides: Overrides = None) -> None:
    """Show what each finished step made, and where a step that was cut off would go on."""
    from pipeline.config import load_run_config
    from pipeline.runner import plan as plan_run

    planned = plan_run(load_run_config(config, tuple(overrides or ())))
    for entry in planned:
        record = entry.record
        out.print(f"{STATES[entry.state]}  {escape(entry.step.title)}")
        if record:
            out.print(f"       {escape(record.summary)} [dim]({took(record)})[/]")
        elif so_far := entry.so_far:
            out.print(f"       goes on {escape(so_far)}")
    done = sum(entry.record is not None for entry in planned)
    out.print(
        f"{done} of {len(planned)} steps done"
        + ("" if done == len(planned) else f"; continue: {escape(command_line('run', config, overrides))}")
    )


@app.command(rich_help_panel=RUNS)
def clean(
    config: ConfigPath,
    overrides: Overrides = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All that any configuration made in this workspace, and the tasks of the service")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask")] = False,
) -> None:
    """Remove what the steps of this configuration made, and its report.  MLflow runs and registered models stay."""
    from infra import storage
    from pipeline.cleaning import made_by, made_by_any, of_other_configurations
    from pipeline.config import load_run_config
    from pipeline.runner import only_run_in

    settings = load_run_config(config, tuple(overrides or ()))
    found = made_by_any(settings.workspace_uri) if everything else made_by(settings)
    counted = f"{len(found)} {'file or folder' if len(found) == 1 else 'files and folders'}"
    if found:
        with only_run_in(settings.workspace_uri):
            for uri in found:
                out.print(f"  {escape(uri)}")
            if not yes and not typer.confirm(f"Remove {counted}?"):
                raise typer.Exit(1)
            for uri in found:
                storage.remove(uri)
    out.print(f"Removed {counted}." if found else "Nothing to remove.")
    out.print(f"MLflow's runs and models stay: {escape(settings.resolved_tracking.uri)}")
    if not everything and (others := of_other_configurations(settings)):
        stay = "step folder stays" if len(others) == 1 else "step folders stay"
        out.print(f"{len(others)} {stay}, of other configurations; --all removes these too:")
        for uri in others:
            out.print(f"  [dim]{escape(uri)}[/]")


@app.command(rich_help_panel=RUNS)
def settings(
    part: Annotated[
        str, typer.Argument(help="Only those with this in their path, e.g. training.optimizer", metavar="PART")
    ] = "",
) -> None:
    """List the settings of a run configuration: path, value when absent, and what it means."""
    from pipeline.config import RunConfig
    from pipeline.settings import list_settings

    found = [setting for setting in list_settings(RunConfig) if part in setting.path]
    if not found:
        raise BadInputError(f"no setting has {part!r} in its path; `hyperclip settings` lists them all")
    for setting in found:
        out.print(f"[bold]{escape(setting.path)}[/]  [dim]{escape(setting.value)}[/]")
        if setting.meaning:
            out.print(f"    {escape(setting.meaning)}")


app.command(rich_help_panel=RUNS, help=FORGET_HELP)(forget)
app.command(rich_help_panel=RUNS)(serve)
app.command(rich_help_panel=RUNS)(serve_key)


# ---- single steps ----------------------------------------------------------------------------------------------------


@app.command(rich_help_panel=DATA)
def download(config: ConfigPath, overrides: Overrides = None) -> None:
    """Download the pictures of every dataset of a run whose source is URLs."""
    run_until(config, overrides, until="download")


@app.command("import", rich_help_panel=DATA)
def import_(config: ConfigPath, overrides: Overrides = None) -> None:
    """Import the pictures of every dataset that has them already: source {kind: pictures, uris: ...}."""
    run_until(config, overrides, until="import")


@app.command(rich_help_panel=DATA)
def curate(config: ConfigPath, overrides: Overrides = None) -> None:
    """Filter and deduplicate, and download or import first where that is not done."""
    run_until(config, overrides, until="curate")


app.command(rich_help_panel=DATA)(score)


@app.command(rich_help_panel=DATA)
def describe(config: ConfigPath, overrides: Overrides = None) -> None:
    """Report on the data of a run (funnel, rates, hosts, sizes, captions, pictures), and do what is not done before it."""
    run_until(config, overrides, until="describe")


@app.command(rich_help_panel=DATA)
def train(config: ConfigPath, overrides: Overrides = None) -> None:
    """Train, and everything before it that is not done."""
    run_until(config, overrides, until="train")


app.command(rich_help_panel=DATA, help=EVALUATE_HELP)(evaluate)


@app.command(rich_help_panel=DATA)
def register(config: ConfigPath, overrides: Overrides = None) -> None:
    """Register the trained model, and everything before it that is not done."""
    run_until(config, overrides, until="register")


app.add_typer(sweep_app)
app.add_typer(model_app)
app.command(rich_help_panel=USE, help=CLASSIFY_HELP)(classify)
app.command(rich_help_panel=USE, help=CALIBRATE_HELP)(calibrate)


# ---- common ----------------------------------------------------------------------------------------------------------


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
    except (KeyboardInterrupt, SystemExit) as ended:
        if isinstance(ended, SystemExit) and ended.code != INTERRUPTED:
            raise
        err.print("interrupted; run the same command again to continue")
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
