"""Run the service on a Ray that is already connected, for as long as a `with` block lasts."""

import ipaddress
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import ray
from ray import serve
from ray.serve.config import HTTPOptions, ProxyLocation
from ray.serve.deployment import Application
from tenacity import RetryError, Retrying, retry_if_exception_type, retry_if_result, stop_after_delay, wait_fixed

from infra.errors import BadInputError, HyperClipError
from serving.app import build_allowed, tenants_allowed
from serving.config import ServingConfig
from serving.devices import check_gpus
from serving.tenants import tenants_of_environment

logger = logging.getLogger(__name__)

APPLICATION_NAME = "hyperclip"
HEALTHY_WITHIN_S = 60
GONE_WITHIN_S = 30
# a line per request and hop would cost more than the smallest encoders do
LOGGING = {"log_level": "WARNING", "enable_access_log": False}


class ServiceNotHealthyError(HyperClipError):
    """The application was deployed but does not answer."""


class PortTakenError(BadInputError):
    """The service cannot listen where it was told to."""


@contextmanager
def running(config: ServingConfig) -> Iterator[str]:
    """Start the service on `config.host` and `config.port` (0 for a free one), give its base URL, and end it afterwards.

    Raises:
        BadInputError: there is no such model, this Ray cluster runs a service already, others could call without a key,
            or there is no such GPU.
        PortTakenError: something else listens there, or this user may not.
        ServiceNotHealthyError: it does not answer.
    """
    config = checked_access(config)
    check_gpus(config)
    with deployed(build_allowed(config), host=config.host, port=config.port) as base_url:
        yield base_url


@contextmanager
def deployed(application: Application, *, host: str, port: int) -> Iterator[str]:
    """The same for an application that was built already."""
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    if serve.status().proxies:
        raise BadInputError("this Ray cluster runs a service already; end it, or deploy to it with `serve deploy`")
    port = checked_port(host, port)
    try:
        serve.start(
            proxy_location=ProxyLocation.HeadOnly,
            http_options=HTTPOptions(host=host, port=port),
            logging_config=LOGGING,
        )
        serve.run(application, name=APPLICATION_NAME, route_prefix="/", logging_config=LOGGING)
        named = f"[{host}]" if ":" in host else host
        base_url = f"http://{'127.0.0.1' if host == '0.0.0.0' else named}:{port}"  # noqa: S104  (compared, not bound)
        _wait_until_healthy(base_url)
        yield base_url
    finally:
        _tell_controller_to_end()
        serve.shutdown()  # waits for what is left, and forgets the connection


def _tell_controller_to_end() -> None:
    """End the service without a call that its end cuts off.

    `serve.shutdown()` alone waits for an answer of the controller, which the controller never gives: it is killed in the
    middle, and Ray prints at every end that a task has failed and will be retried.  Here the call returns first.  The actor's
    name and the argument are Serve's own: should a version change them, `serve.shutdown()` does the work, with that line.
    """
    try:
        ray.get(_controller().graceful_shutdown.remote(wait=False), timeout=GONE_WITHIN_S)
        Retrying(stop=stop_after_delay(GONE_WITHIN_S), wait=wait_fixed(0.05), retry=retry_if_result(bool))(_has_controller)
    except (ValueError, AttributeError, TypeError, RetryError, ray.exceptions.RayError) as error:
        logger.debug("Ray Serve has no controller, or one that does not know the call: %s", error)


def _controller() -> Any:
    """Raises ValueError when there is none."""
    return ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")


def _has_controller() -> bool:
    try:
        _controller()
    except ValueError:
        return False
    return True


def checked_access(config: ServingConfig) -> ServingConfig:
    """The same with its tenants; on loopback, none are needed.

    Raises:
        BadInputError: it would listen beyond loopback, without keys, and nobody has said that it should.
    """
    if _is_loopback(config.host):
        return config.rebuilt(tenants=config.tenants or tenants_of_environment())
    try:
        return config.rebuilt(tenants=tenants_allowed(config))
    except BadInputError as error:
        raise BadInputError(f"serving.host={config.host} is open to other machines: {error}") from error


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # some other name
        return False


def checked_port(host: str, port: int) -> int:
    """The port, proven to be free; Serve itself would keep trying.

    Raises:
        PortTakenError: something else listens there, or this user may not.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise PortTakenError(f"the service cannot listen on {host} port {port}: {error.strerror}") from error
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
