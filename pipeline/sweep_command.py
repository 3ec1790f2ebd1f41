"""`hyperclip sweep`: arms x seeds, compared."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from pipeline.console import STATES, ConsoleObserver, out

if TYPE_CHECKING:
    from pipeline.steps import Step, StepRecord
    from pipeline.sweep_runs import Sweep, SweepRun

sweep_app = typer.Typer()
UNCUT = 200

HELP = """Train the arms of a sweep with every seed, evaluate all on the same tasks, and compare them with intervals.

A sweep file names a run configuration and what the arms change in it:

\b
    name: names-help
    base: quickstart.yaml           # from the folder of this file
    set: {training.num_steps: 200}  # of every arm
    seeds: [0, 1, 2]
    arms:
      twin: {set: {training.model: siglip_quickstart}}
      hyperclip: {set: {training.conditioning.groups: [2, 4]}}
    compare:
      - [hyperclip, twin]
      - [hyperclip, hyperclip.swapped]

What arms have in common is made once.  A sweep that was killed goes on where it was, and one with a seed more trains that
seed only.  docs/experiments.md has the rest; pipeline/configs/sweep_quickstart.yaml takes minutes.
"""


@sweep_app.command(rich_help_panel="Runs", help=escape(HELP))
def sweep(
    path: Annotated[Path, typer.Argument(help="Sweep file, e.g. pipeline/configs/sweep_quickstart.yaml", metavar="SWEEP")],
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Change a setting of the sweep (seeds=[0,1]) or, for every arm, of the run (training.num_steps=50)",
            metavar="A.B=VALUE",
        ),
    ] = None,
    show_plan: Annotated[
        bool, typer.Option("--plan", help="Show the runs, what is done and where it lies.  Changes nothing")
    ] = False,
) -> None:
    from pipeline.sweep_runs import load_sweep

    loaded = load_sweep(path, tuple(overrides or ()))
    if show_plan:
        _plan(loaded)
    else:
        _run(loaded)


def _plan(sweep: "Sweep") -> None:
    states = [run.state for run in sweep.runs]
    for run, state in zip(sweep.runs, states, strict=True):
        train = next(entry for entry in run.planned if entry.step.name == "train")
        so_far = train.so_far if state == "begun" and train.record is None else None
        out.print(f"{STATES[state]}  {escape(run.title)}{f', goes on {escape(so_far)}' if so_far else ''}")
        out.print(f"       [dim]{escape(train.output_uri)}[/]")
    out.print(f"{states.count('done')} of {len(states)} runs done; the comparison: {escape(sweep.folder_uri)}")
    tracking = sweep.common.resolved_tracking
    out.print(f"MLflow: {escape(tracking.uri)}, experiment {escape(tracking.experiment)}")


def _run(sweep: "Sweep") -> None:
    from pipeline.comparison_report import terminal_tables
    from pipeline.sweep_runner import COMPARISON, run_sweep

    finished = run_sweep(sweep, SweepConsole())
    console = out if out.is_terminal else Console(width=UNCUT)  # a file or a pipe has no edge
    for table in terminal_tables(finished.comparison):
        out.print()
        console.print(table)
    out.print()
    tracking = sweep.common.resolved_tracking
    out.print(f"[bold]Comparison[/]  {escape(finished.folder_uri)}/{COMPARISON}.md, .json and .png")
    out.print(f"[bold]MLflow[/]      {escape(tracking.uri)}, experiment {escape(tracking.experiment)}, run {finished.run_id}")


class SweepConsole(ConsoleObserver):
    """A line for each run, and the steps that it does below it; what another run did before is not told again."""

    def skipped(self, step: "Step", record: "StepRecord") -> None:
        pass

    def run_done_before(self, run: "SweepRun", *, number: int, total: int) -> None:
        out.print(f"[green]✓[/] run {number} of {total}: {escape(run.title)} [dim](done before)[/]")

    def run_begins(self, run: "SweepRun", *, number: int, total: int) -> None:
        out.print(f"[bold]run {number} of {total}: {escape(run.title)}[/]")
