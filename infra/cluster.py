"""The Ray cluster a run uses: one of its own on this machine, or one that is already there.

Ray is imported when it is needed, so that reading a configuration does not pay for it.
"""

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from pydantic import PositiveInt

from infra.config import StrictModel
from infra.errors import ClusterError

WORKER_ENVIRONMENT = {
    # nothing phones home, and nothing is fetched from a hub at run time
    "HF_HUB_OFFLINE": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "WANDB_MODE": "disabled",
}


class ClusterConfig(StrictModel):
    """Which Ray cluster to use."""

    address: str = "local"
    """`local` starts a cluster on this machine and ends it with the command; else a Ray address (`auto`, `ray://host:10001`)."""
    num_cpus: PositiveInt | None = None
    """CPUs a local cluster offers; all of the machine's when absent."""
    log_level: Literal["debug", "info", "warning", "error"] = "warning"
    """Of Ray's own messages; at `info` and below the workers' output is shown too."""


@contextmanager
def connected(config: ClusterConfig) -> Iterator[None]:
    """Connect to Ray, and disconnect (ending an own cluster) at the end.  A connection already there is used as it is.

    SIGTERM stops as Ctrl-C does meanwhile, so that what is under way is ended in order; a handler of the caller stays.

    Raises:
        ClusterError: Ray does not start, or does not answer.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.update(WORKER_ENVIRONMENT)
    if not sys.stdout.isatty():
        os.environ.setdefault("RAY_COLOR_PREFIX", "0")  # Ray's own lines, which it colours in files too
    import ray

    if ray.is_initialized():
        yield
        return
    own = config.address == "local"
    handler = signal.getsignal(signal.SIGTERM)
    # Ray warns that the cluster it starts wants a token, which it has made and uses by itself
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    try:
        ray.init(
            address=config.address,
            num_cpus=config.num_cpus if own else None,
            include_dashboard=False if own else None,
            # what workers print stays in Ray's logs: errors travel as exceptions, progress by our own reports
            log_to_driver=config.log_level in ("debug", "info"),
            logging_level=getattr(logging, config.log_level.upper()),
            runtime_env={"env_vars": WORKER_ENVIRONMENT | _switches_of_serve()},
            configure_logging=False,
        )
    except KeyboardInterrupt:
        ray.shutdown()
        raise
    except Exception as error:  # Ray raises a plain one where its processes are not up in time
        ray.shutdown()
        what = (
            "a Ray cluster did not start on this machine"
            if own
            else f"no Ray cluster answers at cluster.address={config.address}"
        )
        hint = "Is the machine busy, or short of memory? Run it again, it goes on where it was" if own else "Is it running?"
        raise ClusterError(f"{what}: {str(error) or type(error).__name__}. {hint}") from error
    finally:
        _close_token_file()
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread:  # Ray's own ends with a dump of the stack, and without a word to those who wait
        signal.signal(signal.SIGTERM, signal.default_int_handler if handler == signal.SIG_DFL else handler)
    try:
        yield
    finally:
        ray.shutdown()
        if in_main_thread:
            signal.signal(signal.SIGTERM, handler)


def _close_token_file() -> None:
    """Ray writes its token, with which anyone can run code on its clusters, as a file that every user of the machine reads."""
    with suppress(OSError):  # none there, or another user's
        (Path.home() / ".ray" / "auth_token").chmod(0o600)


def _switches_of_serve() -> dict[str, str]:
    """Those that hold for this process: all processes of a service must agree on them, wherever they run."""
    return {name: value for name, value in os.environ.items() if name.startswith("RAY_SERVE_")}
