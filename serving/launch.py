"""Run the service on a Ray that is already connected, for as long as a `with` block lasts."""

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from ray import serve
from ray.serve.config import HTTPOptions, ProxyLocation
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from infra.errors import BadInputError, HyperClipError
from serving.app import build_application
from serving.config import ServingConfig

APPLICATION_NAME = "hyperclip"
HEALTHY_WITHIN_S = 60
# a line per request and hop would cost more than the smallest encoders do
LOGGING = {"log_level": "WARNING", "enable_access_log": False}


class ServiceNotHealthyError(HyperClipError):
    """The application was deployed but does not answer."""


@contextmanager
def running(config: ServingConfig) -> Iterator[str]:
    """Start the service on `config.host` and `config.port` (0 for a free one), give its base URL, and end it afterwards.

    Raises:
        BadInputError: there is no such model, the port is in use, or this Ray cluster runs a service already.
        ServiceNotHealthyError: it does not answer.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    if serve.status().proxies:
        raise BadInputError("this Ray cluster runs a service already; end it, or deploy to it with `serve deploy`")
    application = build_application(config)
    port = _checked_port(config.host, config.port)
    host = f"[{config.host}]" if ":" in config.host else config.host
    try:
        serve.start(
            proxy_location=ProxyLocation.HeadOnly,
            http_options=HTTPOptions(host=config.host, port=port),
            logging_config=LOGGING,
        )
        serve.run(application, name=APPLICATION_NAME, route_prefix="/", logging_config=LOGGING)
        base_url = f"http://{'127.0.0.1' if config.host == '0.0.0.0' else host}:{port}"  # noqa: S104  (compared, not bound)
        _wait_until_healthy(base_url)
        yield base_url
    finally:
        serve.shutdown()


def _checked_port(host: str, port: int) -> int:
    """The port, proven to be free; Serve itself would keep trying."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise BadInputError(f"the service cannot listen on {host} port {port}: {error.strerror}; choose another") from error
        return int(probe.getsockname()[1])


def _wait_until_healthy(base_url: str) -> None:
    """Serve says when the replicas run; the proxy may learn their addresses a moment later."""
    try:
        for attempt in Retrying(
            stop=stop_after_delay(HEALTHY_WITHIN_S),
            wait=wait_fixed(0.1),
            retry=retry_if_exception_type(httpx.HTTPError),
            reraise=True,
        ):
            with attempt:
                httpx.get(f"{base_url}/healthz", timeout=10, trust_env=False).raise_for_status()
    except httpx.HTTPError as error:
        raise ServiceNotHealthyError(f"{base_url}/healthz does not answer after {HEALTHY_WITHIN_S} s: {error}") from error
