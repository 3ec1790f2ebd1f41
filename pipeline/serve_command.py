"""`hyperclip serve`: the champion of a run, or the shipped model, over HTTP until Ctrl-C."""

import logging
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer
from rich.markup import escape

from infra.cluster import ClusterConfig, connected
from infra.config import StrictModel, parse_config
from infra.errors import BadInputError
from pipeline.console import out
from pipeline.pasteable import pasteable
from pipeline.run_command import Overrides

if TYPE_CHECKING:
    from serving.config import ServingConfig

logger = logging.getLogger(__name__)

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
    with _ended_by_signals() as stop:
        _serve(stop, config, overrides or [])


def _serve(stop: "_Stop", config: Path | None, overrides: list[str]) -> None:
    from serving.switches import switch_on

    switch_on()  # before Ray Serve is imported
    out.print("Loading Ray and torch …")  # which takes seconds
    from serving.launch import PortTakenError, checked_access, checked_port, running

    meant = _shipped(overrides) if config is None else _champion(config, overrides)
    checked_access(meant.serving)
    host, port = meant.serving.host, meant.serving.port
    try:
        checked_port(host, port)  # before Ray is started for nothing
    except PortTakenError as error:
        raise BadInputError(f"{error}; choose another: --set serving.port={port + 1}") from error
    if config is not None:
        _check_run_is_here(config, meant.serving)
    out.print(escape(meant.said))
    with ExitStack() as parts:
        own = meant.cluster.address == "local"
        out.print("Starting Ray …" if own else f"Connecting to Ray at {escape(meant.cluster.address)} …")
        parts.enter_context(connected(meant.cluster))
        out.print("Loading the model in every replica …")
        base_url = parts.enter_context(running(meant.serving))
        stop.started()
        out.print(f"Serving on {base_url}  (page: {base_url}/, interface: {base_url}/openapi.json).  Ctrl-C ends it.")
        _wait(stop.asked, meant.serving)
    out.print("Stopped.")


def _wait(stopped: threading.Event, config: "ServingConfig") -> None:
    """Until it is stopped, with a line for each model version that the service takes or refuses meanwhile."""
    from serving.rollout.state import RolloutState, StateFile, what_changed

    known: RolloutState | None = None
    while not stopped.wait(config.rollout.poll_interval_s if config.follows else None):
        try:
            state = StateFile(config).read()
        except Exception as error:  # the store may be away for a while: the service knows what to do then
            logger.debug("the state of the rollout cannot be read: %r", error)
            continue
        if known is not None and state is not None:
            for line in what_changed(known, state):
                out.print(escape(line))
        known = state or known


class _Stop:
    """What Ctrl-C and SIGTERM do: during the start they break it off, later they end the wait; said at once, and heard once.

    What is being ended is not to be cut off by a second one: it would leave processes of Ray behind.
    """

    def __init__(self) -> None:
        self.asked = threading.Event()
        self._starting = True

    def __call__(self, *_: object) -> None:
        if self.asked.is_set():
            return
        self.asked.set()
        if self._starting:
            raise KeyboardInterrupt

    def started(self) -> None:
        """Raises KeyboardInterrupt where the start has swallowed the one that was to break it off."""
        self._starting = False
        if self.asked.is_set():
            raise KeyboardInterrupt


@contextmanager
def _ended_by_signals() -> Iterator[_Stop]:
    stop = _Stop()
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    fd_before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    saying = threading.Thread(target=_say_once_woken, args=(reader,), daemon=True)
    saying.start()
    try:
        yield stop
    finally:
        signal.set_wakeup_fd(fd_before)
        for number, handler in before.items():
            signal.signal(number, handler)
        writer.close()
        saying.join()
        reader.close()


def _say_once_woken(reader: socket.socket) -> None:
    """In a thread: the start of Ray keeps the main one, in which Python handles signals, for seconds."""
    if reader.recv(1):
        out.print("Stopping …")


def serve_key(
    tenant: Annotated[
        str,
        typer.Argument(
            help="Name of the tenant: at most 63 small letters, digits, - and _, with a letter or a digit first",
            metavar="TENANT",
        ),
    ],
) -> None:
    """Make an API key for a tenant of the service.  It is shown once; the service is given its hash alone."""
    from pydantic import ValidationError

    from serving.tenants import TENANTS_VARIABLE, TenantConfig, new_key

    key, digest = new_key()
    try:
        TenantConfig(name=tenant, key_sha256=(digest,))
    except ValidationError:
        raise BadInputError(
            f"{tenant!r} cannot be the name of a tenant: 1 to 63 of a-z, 0-9, - and _, beginning with a letter or a digit, "
            "such as acme-corp"
        ) from None
    out.print(f"Key, for the caller; it is not kept anywhere:\n{key}\n", soft_wrap=True)
    out.print(f"For serving.tenants, or the environment variable {TENANTS_VARIABLE}:", soft_wrap=True)
    out.print(escape(f'- {{name: {tenant}, key_sha256: ["{digest}"]}}'), soft_wrap=True)


def _champion(config: Path, overrides: list[str]) -> _Meant:
    from infra.model_registry import CHAMPION
    from pipeline.config import load_run_config
    from pipeline.showcase_steps import serving_config

    settings = load_run_config(config, tuple(overrides))
    return _Meant(f"Starting the champion of {settings.name} …", settings.cluster, serving_config(settings, alias=CHAMPION))


def _check_run_is_here(config: Path, serving: "ServingConfig") -> None:
    """Raises BadInputError where the database of the run is missing: MLflow would make an empty one."""
    uri = serving.tracking.uri if serving.tracking else ""
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        raise BadInputError(
            f"there is no model of this run: no MLflow database at {uri}.  Make one first with "
            f"`{pasteable('hyperclip', 'run', str(config))}`, or call this from the folder in which that was done"
        )


def _shipped(overrides: list[str]) -> _Meant:
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
