"""`hyperclip evaluate`: the step of a run, or trained models on any pictures."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from infra.errors import BadInputError
from pipeline.console import out
from pipeline.help_text import flowing
from pipeline.model_commands import UNCUT, RunConfigPath, TrackingUri
from pipeline.run_command import Overrides, run_until

EVALUATE_HELP = flowing(
    """\
Evaluate zero-shot classification: of a run on its held-out pictures, or of any model on any pictures.

[bold]hyperclip evaluate CONFIG[/] is the step of a run, with everything before it that is not done.

[bold]hyperclip evaluate MODEL --dataset PATH[/] needs no run, and without MODEL takes the shipped one. PATH is one of:

- a .parquet file or a folder of them, with the columns image and caption, and where they are there concept (what shows the same
thing) and group (its part before "/" is the topic)

- a folder of CLIP_benchmark: classnames.txt, test/nshards.txt, test/0.tar and so on

- a folder of training shards

Several models are seeds of one recipe: the intervals then cover the seeds too. Tasks are set as in a run, for example

--set evaluation.ways=\\[2,10,50] --set evaluation.kinds=\\[random,same_topic,all] --set evaluation.distractor_share=0.5

The result goes to the terminal; with --output into files; and to MLflow where --tracking-uri, --config or MLFLOW_TRACKING_URI
name one. docs/evaluation.md explains the figures.
"""
)

Subjects = Annotated[
    list[str] | None,
    typer.Argument(
        help="A run configuration; with --dataset a bundle folder, models:/NAME@champion or models:/NAME/VERSION; "
        "default: the champion of --config, else the shipped model",
        metavar="CONFIG|MODEL...",
    ),
]
Datasets = Annotated[
    list[str] | None,
    typer.Option("--dataset", help="Pictures to evaluate a model on; may be repeated for parquet files", metavar="PATH"),
]
Twins = Annotated[
    list[str] | None,
    typer.Option("--twin", help="SigLIP twin of the model; of several models one each, in order", metavar="MODEL"),
]
TemplatesFile = Annotated[
    Path | None,
    typer.Option(help="Texts with {} for the name, one a line; default: the dataset's, else the model's", metavar="FILE"),
]
Where = Annotated[list[str] | None, typer.Option(help="Rows of parquet files to take; may be repeated", metavar="COLUMN=VALUE")]
NamesFrom = Annotated[
    list[str] | None,
    typer.Option(help="Parquet files with names for tasks of kind held_out_among_known; may be repeated", metavar="PATH"),
]
Output = Annotated[Path | None, typer.Option(help="New folder for evaluation.json and the plots", metavar="FOLDER")]


def evaluate(
    subjects: Subjects = None,
    datasets: Datasets = None,
    twins: Twins = None,
    templates: TemplatesFile = None,
    where: Where = None,
    names_from: NamesFrom = None,
    output: Output = None,
    overrides: Overrides = None,
    config: RunConfigPath = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Two commands of one name: which one is meant is said by --dataset."""
    if datasets is None:
        others = twins or templates or where or names_from or output or config or tracking_uri
        if subjects is None or len(subjects) != 1 or others:
            raise BadInputError(
                "without --dataset, `hyperclip evaluate` takes one run configuration and --set; "
                "to evaluate a model, say on which pictures: --dataset PATH"
            )
        run_until(Path(subjects[0]), overrides, until="evaluate")
        return
    from pipeline.evaluate_model import evaluate_models
    from pipeline.evaluation_table import evaluation_tables

    finished = evaluate_models(
        subjects or (),
        datasets,
        twins=twins or (),
        templates_file=templates,
        where=where or (),
        names_from=names_from or (),
        settings=overrides or (),
        output=output,
        tracking_uri=tracking_uri,
        config=config,
    )
    screen = out if out.is_terminal else Console(width=UNCUT, highlight=False)  # a file or a pipe has no edge
    for part in evaluation_tables(finished.result):
        screen.print(part)
    if output is not None:
        out.print(f"[bold]Files[/]   {escape(str(output))}")
    if finished.run_id is not None:
        out.print(f"[bold]MLflow[/]  run {finished.run_id}")
