"""`hyperclip score`: image-text scores of downloaded samples, for curation to keep by."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from infra.errors import BadInputError
from pipeline.console import ConsoleStep, err, out
from pipeline.model_commands import TrackingUri
from pipeline.run_command import Overrides

Source = Annotated[
    str, typer.Argument(help="A run configuration, or the raw folder of a finished download or import", metavar="CONFIG|RAW")
]
Output = Annotated[str, typer.Option(help="New parquet file: uid, score", metavar="FILE")]
Dataset = Annotated[str, typer.Option(help="Which dataset of the run", metavar="train|evaluation")]
BundleName = Annotated[
    str | None,
    typer.Option(
        "--bundle",
        help="Bundle folder, models:/NAME@champion or models:/NAME/VERSION; default: the shipped model",
        metavar="MODEL",
    ),
]


def score(
    source: Source,
    output: Output,
    dataset: Dataset = "train",
    bundle: BundleName = None,
    tracking_uri: TrackingUri = None,
    overrides: Overrides = None,
) -> None:
    """Score how well picture and caption of every downloaded sample agree (cosine of the neutral image and text features).

    The file goes into a configuration as datasets.train.curate.scores. A command that was cut off goes on where it was.
    """
    from data_prep.fan_out import TaskConfig
    from data_prep.raw import read_download_report
    from infra.cluster import ClusterConfig, connected
    from pipeline.config import load_run_config
    from pipeline.model_source import bundle_folder
    from pipeline.runner import raw_folder
    from pipeline.score_samples import score_samples

    raw_uri, tasks, cluster, clean_captions = source, TaskConfig(), ClusterConfig(), False
    if Path(source).is_file():
        config = load_run_config(Path(source), tuple(overrides or ()))
        name = next((name for name in config.datasets if name == dataset), None)
        if name is None:
            raise BadInputError(f"--dataset {dataset}: the run has {' and '.join(config.datasets)}")
        curate = config.datasets[name].curate
        raw_uri, clean_captions = raw_folder(config, name), curate.clean_captions
        tasks, cluster = curate.tasks, config.cluster
    elif overrides:
        raise BadInputError("--set changes a run configuration; a raw folder has none")
    read_download_report(raw_uri)  # before Ray is started for a download that has not finished
    with (
        bundle_folder(bundle, tracking_uri=tracking_uri, config=None, named_by="--bundle") as folder,
        ConsoleStep("Score the pictures with their captions", so_far=None) as progress,
        connected(cluster),
    ):
        found = score_samples(
            raw_uri,
            output,
            bundle_folder=folder,
            clean_captions=clean_captions,
            tasks=tasks,
            progress=lambda done, total: progress(done, total, "pictures"),
        )
    for damage in found.damaged:
        err.print(f"[yellow]left out:[/] {escape(damage)}")
    out.print(f"{found.samples:,} samples" + (f", {found.without:,} without a score" if found.without else ""))
    out.print(f"[bold]Scores[/]  {escape(output)}")
