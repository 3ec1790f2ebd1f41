"""`hyperclip serve`: the champion of a run, or the shipped model, over HTTP until Ctrl-C."""

import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer
from rich.markup import escape

from infra.cluster import ClusterConfig, connected
from infra.config import StrictModel, parse_config
from infra.errors import BadInputError
from pipeline.console import out
from pipeline.run_command import Overrides

if TYPE_CHECKING:
    from serving.config import ServingConfig

TASKS_OF_SHIPPED = Path("~/.cache/hyperclip/tasks")
"""Beside the models that services have fetched; a run keeps its tasks in its workspace."""

ConfigPathOrNone = Annotated[
    Path | None,
    typer.Argument(help="Run configuration, whose champion is served; default: the shipped model", metavar="CONFIG"),
]


class _Meant(NamedTuple):
    said: str
    cluster: ClusterConfig
    serving: "ServingConfig"


def serve(config: ConfigPathOrNone = None, overrides: Overrides = None) -> None:
    """Serve the champion of a run over HTTP, with a page to try it on, until Ctrl-C; without CONFIG the shipped model."""
    from serving.switches import switch_on

    switch_on()  # before Ray Serve is imported
    from serving.launch import PortTakenError, checked_access, checked_port, running

    meant = _shipped(overrides or ()) if config is None else _champion(config, overrides or ())
    checked_access(meant.serving)
    host, port = meant.serving.host, meant.serving.port
    try:
        checked_port(host, port)  # before Ray is started for nothing
    except PortTakenError as error:
        raise BadInputError(f"{error}; choose another: --set serving.port={port + 1}") from error
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    out.print(escape(meant.said))
    with connected(meant.cluster), running(meant.serving) as base_url:
        out.print(f"Serving on {base_url}  (page: {base_url}/, interface: {base_url}/openapi.json).  Ctrl-C ends it.")
        stop.wait()
        out.print("Stopping …")
    out.print("Stopped.")


def serve_key(
    tenant: Annotated[str, typer.Argument(help="Name of the tenant: small letters, digits, - and _", metavar="TENANT")],
) -> None:
    """Make an API key for a tenant of the service.  It is shown once; the service is given its hash alone."""
    from pydantic import ValidationError

    from serving.tenants import TENANTS_VARIABLE, TenantConfig, new_key

    key, digest = new_key()
    try:
        TenantConfig(name=tenant, key_sha256=(digest,))
    except ValidationError as error:
        raise BadInputError(f"{tenant!r} cannot be the name of a tenant: {error.errors()[0]['msg']}") from None
    out.print(f"Key, for the caller; it is not kept anywhere:\n{key}\n", soft_wrap=True)
    out.print(f"For serving.tenants, or the environment variable {TENANTS_VARIABLE}:", soft_wrap=True)
    out.print(escape(f'- {{name: {tenant}, key_sha256: ["{digest}"]}}'), soft_wrap=True)


def _champion(config: Path, overrides: list[str] | tuple[str, ...]) -> _Meant:
    from infra.model_registry import CHAMPION
    from pipeline.config import load_run_config
    from pipeline.showcase_steps import serving_config

    settings = load_run_config(config, tuple(overrides))
    return _Meant(f"Starting the champion of {settings.name} …", settings.cluster, serving_config(settings, alias=CHAMPION))


def _shipped(overrides: list[str] | tuple[str, ...]) -> _Meant:
    from pipeline.model_source import shipped_model_is_used
    from serving.config import ServiceSettings, ServingConfig
    from training.shipped import shipped_model_folder, shipped_model_name

    class Settings(StrictModel):
        """So that a setting has the name that it has in a run's configuration: `serving.port`."""

        cluster: ClusterConfig = ClusterConfig()
        serving: ServiceSettings = ServiceSettings()

    settings = parse_config("{}", Settings, source="--set", overrides=tuple(overrides))
    name = shipped_model_name()
    serving = ServingConfig(
        bundle_uri=str(shipped_model_folder()),
        model_name="shipped-model",  # the page shows the architecture beside it
        task_store_uri=str(TASKS_OF_SHIPPED.expanduser()),
        **settings.serving.model_dump(),
    )
    return _Meant(f"{shipped_model_is_used(name, named_by='hyperclip serve CONFIG')} …", settings.cluster, serving)
