"""`hyperclip classify`: pictures here or with a running service."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from infra.errors import BadInputError, HyperClipError
from pipeline.classify_output import Format, written_as
from pipeline.console import err
from pipeline.help_text import flowing
from pipeline.model_commands import (
    EncoderFolder,
    LabelsOrNone,
    Model,
    RunConfigPath,
    Templates,
    TrackingUri,
    encoder_maker,
    labels_of,
    opened,
)
from pipeline.picture_files import SUFFIXES, Unreadable, picture_files

if TYPE_CHECKING:
    from pipeline.classify_output import Result
    from training.bundle import Bundle
    from training.specialize import SpecializedEncoder

API_KEY = "HYPERCLIP_API_KEY"
RETRIES = 8
"""Of a call that the service is too busy for, each as late as it says."""
CLASSIFY_HELP = flowing(
    f"""\
Classify pictures, here or with a running service.

[bold]hyperclip classify photo.jpg --labels "pizza,castle,guitar"[/]

[bold]hyperclip classify photos/ --labels @names.txt --template "a photo of a {{}}" --format csv > found.csv[/]

[bold]hyperclip classify photos/ --labels @names.txt --service http://127.0.0.1:8000 --format ndjson | head[/]

Per picture the best labels: score says how the labels share it and adds up to one over all of them, match is each label by
itself. None of these, where the model is calibrated (see hyperclip calibrate), is the probability that no label is right.

A picture that cannot be read is reported in its place and the others go on; the exit status is then 1, or 2 when none could be
read or the labels cannot be used. A service that wants a key gets the one in the environment variable {API_KEY}.
"""
)


def classify(
    images: Annotated[
        list[Path],
        typer.Argument(
            help=f"JPEG, PNG or WebP files, or folders, with all below them that end in {', '.join(SUFFIXES)}",
            metavar="IMAGE...",
        ),
    ],
    labels: LabelsOrNone = None,
    model: Model = None,
    encoder_folder: EncoderFolder = None,
    templates: Templates = None,
    top_k: Annotated[int, typer.Option(min=1, help="Labels shown for each picture")] = 3,
    service: Annotated[
        str | None, typer.Option(help="Ask this service in place of a model here, http://127.0.0.1:8000", metavar="URL")
    ] = None,
    form: Annotated[
        Format,
        typer.Option(
            "--format", help="table for people; ndjson and csv come as pictures are done, json as one list at the end"
        ),
    ] = "table",
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format ndjson")] = False,
    config: RunConfigPath = None,
    tracking_uri: TrackingUri = None,
) -> None:
    if as_json and form not in ("table", "ndjson"):
        raise BadInputError(f"--json is --format ndjson, and --format {form} is asked for")
    form = "ndjson" if as_json else form
    paths = picture_files(images)
    if service is not None:
        if any(value is not None for value in (model, encoder_folder, config, tracking_uri)):
            raise BadInputError(
                "a service has its own model; leave out --model, --encoder, --config and --tracking-uri, or --service"
            )
        results = _with_service(service, paths, labels=labels, templates=templates, top_k=top_k)
    else:
        encoder_of = encoder_maker(labels, templates, encoder_folder)
        results = _here(opened(model, tracking_uri=tracking_uri, config=config), encoder_of, paths, top_k=top_k)
    unreadable: list[Unreadable] = []
    with (
        results as found_one_by_one,
        written_as(form) as write,
        _shown(len(paths), over_lines=form in ("ndjson", "csv")) as progress,
    ):
        for found in found_one_by_one:
            if isinstance(found, Unreadable):
                unreadable.append(found)
                if len(paths) == 1:
                    raise BadInputError(f"{found.path}: {found.problem}")
            write(found)
            progress()
    if unreadable:
        message = f"{len(unreadable):,} of {len(paths):,} pictures could not be read"
        raise BadInputError(message) if len(unreadable) == len(paths) else HyperClipError(message)


@contextmanager
def _here(
    opening: "AbstractContextManager[Bundle]",
    encoder_of: "Callable[[Bundle], SpecializedEncoder]",
    paths: list[Path],
    *,
    top_k: int,
) -> "Iterator[Iterator[Result]]":
    from pipeline.classify import classify_files

    with opening as bundle:
        yield classify_files(bundle, encoder_of(bundle), paths, top_k=top_k)


@contextmanager
def _with_service(
    service: str, paths: list[Path], *, labels: str | None, templates: list[str] | None, top_k: int
) -> "Iterator[Iterator[Result]]":
    from pipeline.classify_service import classify_with_service
    from serving.client import ServingClient

    if labels is None:
        raise BadInputError("which classes? Give --labels")
    if not service.startswith(("http://", "https://")):
        raise BadInputError(f"--service {service!r} is no address such as http://127.0.0.1:8000")
    with ServingClient(service, api_key=os.environ.get(API_KEY), retries=RETRIES) as client:
        yield classify_with_service(client, labels_of(labels), templates, paths, top_k=top_k)


@contextmanager
def _shown(total: int, *, over_lines: bool) -> Iterator[Callable[[], None]]:
    """A bar on standard error, where that is a terminal and no lines run through it."""
    columns = (TextColumn("Classify"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    hidden = not err.is_terminal or total == 1 or (over_lines and sys.stdout.isatty())
    with Progress(*columns, console=err, transient=True, disable=hidden) as bar:
        task = bar.add_task("", total=total)
        yield lambda: bar.advance(task)
