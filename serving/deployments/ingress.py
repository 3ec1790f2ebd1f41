"""The deployment that speaks HTTP: validates, finds or makes the task, forwards."""

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from serving.config import ServingConfig
from serving.deployments.handles import HypernetworkHandle, ImageEncoderHandle
from serving.deployments.ray_metrics import ray_publisher
from serving.deployments.replica import keep_share, set_up_replica
from serving.metrics import IngressMetrics
from serving.rate import Access
from serving.routes import create_http_app
from serving.service import ClassifierService
from serving.task_store import TaskStore


@serve.ingress()
class Ingress:
    """A thin shell around `ClassifierService`."""

    def __init__(self, config: ServingConfig, hypernetwork: DeploymentHandle, image_encoder: DeploymentHandle) -> None:
        set_up_replica(config)
        self._access = Access(config.tenants, config.limits)
        if self._access.has_rates:
            keep_share(self._access)
        self._service = ClassifierService(
            hypernetwork=HypernetworkHandle(hypernetwork, config.limits),
            image_encoder=ImageEncoderHandle(image_encoder, config.limits),
            store=TaskStore(config.task_store_uri),
            limits=config.limits,
            metrics=IngressMetrics(ray_publisher),
            task_cache_s=config.task_cache_s,
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_http_app(self._service, self._access)
