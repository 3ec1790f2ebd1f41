"""`hyperclip calibrate`: teach a bundle on your own pictures how to say "none of these"."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from infra import storage
from infra.errors import BadInputError
from pipeline.console import ConsoleStep, out
from pipeline.help_text import flowing

CALIBRATE_HELP = flowing(
    """\
Fit how a model says "none of these", on pictures with names, and keep it beside its bundle.

[bold]hyperclip calibrate my-bundle --dataset held-out.parquet[/]

It goes over the tasks twice, which is why the progress starts again: half of the names are fitted on, then the other half
measured on. The answers of hyperclip classify and of a service then carry
none_of_these, a probability. It holds for pictures like those it was fitted on, so fit it on pictures like yours, which the
model was not trained on. The model itself is not changed. A run does this by itself for the model it trains.
"""
)


def calibrate(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder; none_of_these.json in it is written anew", metavar="BUNDLE")],
    datasets: Annotated[
        list[str],
        typer.Option(
            "--dataset",
            help="Pictures with names, as for hyperclip evaluate; may be repeated for parquet files",
            metavar="PATH",
        ),
    ],
    where: Annotated[list[str] | None, typer.Option(help="Rows of parquet files to take", metavar="COLUMN=VALUE")] = None,
    others: Annotated[
        list[str] | None,
        typer.Option("--also-measure", help="Other pictures to measure it on; may be repeated", metavar="PATH"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Decides which tasks are drawn")] = 0,
) -> None:
    from pipeline.evaluate_model import parse_where
    from training.bundle import BUNDLE_NAME, load_bundle
    from training.evaluation.none_of_these import calibrate as fit
    from training.evaluation.open_set import open_evaluation_set
    from training.none_of_these import NONE_OF_THESE_NAME

    if not (bundle / BUNDLE_NAME).is_file():
        raise BadInputError(f"{bundle} holds no {BUNDLE_NAME}; what is fitted is kept beside a bundle, so name its folder")
    only = parse_where(where or ())
    pictures = open_evaluation_set(datasets, readings={}, only=only)
    measured_on = [open_evaluation_set([other], readings={}, only={}) for other in others or ()]
    target = bundle / NONE_OF_THESE_NAME
    target.unlink(missing_ok=True)  # one of another model would be refused
    model = load_bundle(bundle)
    with ConsoleStep(f"Calibrate on {len(pictures):,} pictures of {pictures.name}", so_far=None) as progress:
        found = fit(
            model,
            pictures,
            also_measured_on=measured_on,
            seed=seed,
            progress=lambda done, total: progress(done, total, "tasks"),
        )
    storage.write_atomic(str(target), found.model_dump_json(indent=1))
    for one in found.figures:
        out.print(
            f"{escape(one.pictures)}: area under the curve {one.auroc:.3f} (best match alone {one.auroc_of_match:.3f}), "
            f"expected calibration error {one.ece:.3f}, {one.num_predictions:,} predictions in {one.num_tasks} tasks"
        )
    out.print(f"{found.num_labels[0]} to {found.num_labels[1]} labels; in {escape(str(target))}")
