"""Commands that use a trained model, registered or in a folder: promote, roll back, specialize, export."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from infra.errors import BadInputError
from pipeline.console import out

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from training.bundle import Bundle
    from training.specialize import SpecializedEncoder

model_app = typer.Typer()

Model = Annotated[
    str | None,
    typer.Option(
        help="A bundle folder, models:/NAME@champion, or models:/NAME/VERSION; default: the champion of --config, else the "
        "shipped model",
        metavar="MODEL",
    ),
]
ModelName = Annotated[str, typer.Argument(help="Registered model", metavar="NAME")]
TrackingUri = Annotated[
    str | None, typer.Option(help="MLflow to look the model up in; default: MLFLOW_TRACKING_URI", metavar="URI")
]
RunConfigPath = Annotated[
    Path | None, typer.Option("--config", help="In place of --tracking-uri: the MLflow of this run", metavar="CONFIG")
]
Labels = Annotated[str, typer.Option(help="Class names with commas between, or @FILE with one a line")]
LabelsOrNone = Annotated[str | None, typer.Option("--labels", help="Class names with commas between, or @FILE with one a line")]
EncoderFolder = Annotated[
    Path | None, typer.Option("--encoder", help="In place of --labels: what `hyperclip specialize` wrote", metavar="FOLDER")
]
Templates = Annotated[
    list[str] | None, typer.Option("--template", help='A text with {} for the name, "a photo of a {}"; may be repeated')
]

UNCUT = 1000
MODELS, USE = "Models", "Classifiers"
ON_SERVICES = "Running services check it first and then take it; /v1/models of each says how far it is, or why it is refused."


# ---- models ----------------------------------------------------------------------------------------------------------


@model_app.command(rich_help_panel=MODELS)
def promote(
    name: ModelName,
    version: Annotated[str, typer.Argument(help="Version number, or an alias such as candidate", metavar="VERSION")],
    config: RunConfigPath = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Make a version the champion, which services serve."""
    from infra.model_registry import ModelRegistry
    from pipeline.model_source import tracker_of

    chosen = ModelRegistry(tracker_of(tracking_uri=tracking_uri, config=config)).promote(name, version)
    out.print(f"{chosen.name} version {chosen.version} is the champion.  {ON_SERVICES}")


@model_app.command(rich_help_panel=MODELS)
def rollback(name: ModelName, config: RunConfigPath = None, tracking_uri: TrackingUri = None) -> None:
    """Make the champion before the present one the champion again."""
    from infra.model_registry import ModelRegistry
    from pipeline.model_source import tracker_of

    chosen = ModelRegistry(tracker_of(tracking_uri=tracking_uri, config=config)).rollback(name)
    out.print(f"{chosen.name} version {chosen.version} is the champion again.  {ON_SERVICES}")


# ---- classifiers -----------------------------------------------------------------------------------------------------


@model_app.command(rich_help_panel=USE)
def specialize(
    labels: Labels,
    output: Annotated[Path, typer.Option(help="New folder for the specialized encoder", metavar="FOLDER")],
    model: Model = None,
    templates: Templates = None,
    config: RunConfigPath = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Turn class names into a specialized encoder: a parameter delta of some tens of kilobytes."""
    from training.specialize import save_specialized
    from training.specialize import specialize as make

    names = labels_of(labels)
    with opened(model, tracking_uri=tracking_uri, config=config) as bundle:
        encoder = make(bundle, names, templates)
        save_specialized(encoder, output, bundle)
    size = sum(path.stat().st_size for path in output.iterdir())
    out.print(f"{len(encoder.task.labels)} labels, {encoder.delta.numel():,} generated values, {size / 1e3:.0f} kB in {output}")


@model_app.command(rich_help_panel=USE)
def export(
    output: Annotated[Path, typer.Option(help="New folder for the package", metavar="FOLDER")],
    labels: LabelsOrNone = None,
    model: Model = None,
    encoder_folder: EncoderFolder = None,
    templates: Templates = None,
    config: RunConfigPath = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Write a specialized encoder as an ONNX package for a device; refused unless it computes what the model does."""
    from training.export import export_package

    encoder_of = encoder_maker(labels, templates, encoder_folder)
    with opened(model, tracking_uri=tracking_uri, config=config) as bundle:
        report = export_package(bundle, encoder_of(bundle), output)
    out.print(
        f"{report.num_labels} labels, {report.model_bytes / 1e6:.1f} MB in {output}; how to use it: {output / 'README.md'}"
    )


# ---- common ----------------------------------------------------------------------------------------------------


def opened(model: str | None, *, tracking_uri: str | None, config: Path | None) -> "AbstractContextManager[Bundle]":
    from pipeline.model_source import opened_bundle

    if model is None and tracking_uri is not None:
        raise BadInputError(
            f"which model of {tracking_uri}? Say --model models:/NAME@champion; without --tracking-uri it is the shipped model"
        )
    return opened_bundle(model, tracking_uri=tracking_uri, config=config)


def encoder_maker(
    labels: str | None, templates: list[str] | None, folder: Path | None
) -> "Callable[[Bundle], SpecializedEncoder]":
    """How the encoder comes about once the model is there: made for the labels, or read from a folder.

    Raises:
        BadInputError: both are given, or neither is, or the labels cannot be used; before a model is loaded for them.
    """
    from training.specialize import load_specialized, specialize

    if folder is not None and (labels is not None or templates):
        raise BadInputError("--encoder has its labels and templates already; give it alone, or --labels in its place")
    if folder is not None:
        return lambda bundle: load_specialized(folder, bundle)
    if labels is None:
        raise BadInputError("which classes? Give --labels, or --encoder with a folder that `hyperclip specialize` wrote")
    names = labels_of(labels)
    return lambda bundle: specialize(bundle, names, templates)


def labels_of(text: str) -> tuple[str, ...]:
    """Raises BadInputError for an empty or doubled one; empty lines of a file are none."""
    from training.specialize import check_labels

    if text.startswith("@"):
        return check_labels([line for line in _read(Path(text[1:])).decode().splitlines() if line.strip()])
    return check_labels(text.split(",") if text.strip() else [])


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadInputError(f"cannot read {path}: {error.strerror}") from error
