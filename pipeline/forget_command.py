"""`hyperclip forget`: the options, and the table of what was reached."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from infra.errors import BadInputError
from pipeline.console import out
from pipeline.run_command import ConfigPath, Overrides

FORGET_HELP = (
    "Remove samples from all that the data steps made in this workspace, by uid, URL or host, and say which trained models saw "
    "them.  The workspace remembers the request: what was forgotten is not downloaded again."
)
MAX_NAMED = 10


def forget(
    config: ConfigPath,
    uid: Annotated[list[str] | None, typer.Option("--uid", help="A sample's uid; may be repeated")] = None,
    url: Annotated[list[str] | None, typer.Option("--url", help="The URL of a picture, as in the list")] = None,
    host: Annotated[list[str] | None, typer.Option("--host", help="A host and its subdomains, without port")] = None,
    requests: Annotated[
        Path | None, typer.Option("--list", help="File with a URL, `host:NAME` or uid in each line", metavar="FILE")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be reached, and change nothing")] = False,
    overrides: Overrides = None,
) -> None:
    from data_prep.removal.requests import RemovalRequest
    from pipeline.config import load_run_config
    from pipeline.forget import forget as forget_in

    lines = _read_lines(requests) if requests else []
    urls = [*(url or ()), *(line for line in lines if "://" in line)]
    hosts = [*(host or ()), *(line.removeprefix("host:") for line in lines if line.startswith("host:"))]
    uids = [*(uid or ()), *(line for line in lines if "://" not in line and not line.startswith("host:"))]
    request = RemovalRequest(frozenset(uids), frozenset(urls), frozenset(name.strip().lower().rstrip(".") for name in hosts))
    if not any(request):
        raise BadInputError("say what to forget: --uid, --url, --host, or --list with a file of them")
    settings = load_run_config(config, tuple(overrides or ()))
    found = forget_in(settings, request, dry_run=dry_run)
    table = Table("folder", "samples", title="would be reached" if dry_run else "reached", box=None, title_justify="left")
    for folder, count in found.reached.items():
        table.add_row(escape(folder), f"{count:,}")
    out.print(table)
    if found.removed:
        out.print(f"{'Would be removed' if dry_run else 'Removed'}, and made anew by the next run:")
        for uri in found.removed:
            out.print(f"  {escape(uri)}", soft_wrap=True)
    for name in found.unknown[:MAX_NAMED]:
        out.print(f"Names no sample here: {escape(name)}")
    if len(found.unknown) > MAX_NAMED:
        out.print(f"... and {len(found.unknown) - MAX_NAMED:,} more")
    if found.models:
        models = Table(
            "training", "model", "registered as", title="models that saw the samples", box=None, title_justify="left"
        )
        for model in found.models:
            digest = model.digest[:12] if model.digest else "not finished"
            models.add_row(escape(model.folder), digest, escape(", ".join(model.versions)) or "-")
        out.print(models)
    else:
        out.print("No training in this workspace is known to have read them.")
    for folder in found.unsure:
        out.print(f"Whether {escape(folder)} read them cannot be told: an older version made it.")
    if found.registry_problem:
        out.print(f"Registered models could not be looked up: {escape(found.registry_problem)}")
    out.print(f"Reports in MLflow may show the samples, and your own lists name them: {escape(settings.resolved_tracking.uri)}")


def _read_lines(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise BadInputError(f"{path} cannot be read: {error}") from error
    return [line for line in lines if line and not line.startswith("#")]
