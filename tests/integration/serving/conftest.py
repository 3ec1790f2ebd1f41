"""One service for all the tests of this package: a real Serve behind real HTTP, started once."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from selenium import webdriver

from infra.cluster import ClusterConfig, connected
from serving.client import ServingClient
from serving.config import BatchingConfig, DeploymentScale, ServingConfig
from serving.launch import running
from serving.limits import ServingLimits
from tests.integration.serving.page import Page, started_browser
from tests.unit.serving_helpers import make_bundle, picture
from training.bundle import Bundle, load_bundle

SMALL = DeploymentScale(num_cpus=0.1)


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serving")
    make_bundle(folder / "bundle")
    return folder


@pytest.fixture(scope="package")
def config(folder: Path) -> ServingConfig:
    return ServingConfig(
        bundle_uri=str(folder / "bundle"),
        task_store_uri=str(folder / "tasks"),
        port=0,
        limits=ServingLimits(max_body_bytes=2_000_000, max_images=8, max_total_tokens=100_000, max_requests_in_flight=24),
        batching=BatchingConfig(max_batch_size=8, batch_wait_timeout_s=0.05),  # long enough for pictures to meet
        ingress=SMALL.rebuilt(max_ongoing_requests=256),
        hypernetwork=SMALL,
        image_encoder=SMALL,
    )


@pytest.fixture(scope="package")
def cluster() -> Iterator[None]:
    with connected(ClusterConfig(num_cpus=2)):
        yield


@dataclass
class Service:
    """The running service; the last test ends it early."""

    url: str
    stack: ExitStack


@pytest.fixture(scope="package")
def service(cluster: None, config: ServingConfig) -> Iterator[Service]:
    with ExitStack() as stack:
        yield Service(stack.enter_context(running(config)), stack)


@pytest.fixture(scope="package")
def base_url(service: Service) -> str:
    return service.url


@pytest.fixture(scope="package")
def client(base_url: str) -> Iterator[ServingClient]:
    with ServingClient(base_url) as client:
        yield client


@pytest.fixture(scope="package")
def http(base_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=base_url, timeout=60, trust_env=False) as http:
        yield http


@pytest.fixture(scope="package")
def bundle(folder: Path) -> Bundle:
    return load_bundle(folder / "bundle")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    with started_browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def page(browser: webdriver.Chrome, base_url: str) -> Page:
    return Page(browser, base_url)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pictures")
    contents = {"one.png": picture(1), "two.jpg": picture(2, kind="JPEG"), "not.png": b"just text", "notes.txt": b"just text"}
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    return {name: folder / name for name in contents}
