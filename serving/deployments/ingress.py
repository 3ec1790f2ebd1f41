"""The deployment that speaks HTTP: validates, finds or makes the task, forwards."""

import asyncio

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from serving.config import ServingConfig
from serving.deployments.handles import HypernetworkHandle, ImageEncoderHandle
from serving.deployments.replica import keep_share, set_up_replica
from serving.metrics import IngressMetrics
from serving.model_source import ServedModel
from serving.rate import Access
from serving.rollout.serve_source import plan_source
from serving.rollout.served_versions import ServedVersions
from serving.routes import create_http_app
from serving.service import ClassifierService
from serving.task_store import TaskStore


@serve.ingress()
class Ingress:
    """A thin shell around `ClassifierService`."""

    def __init__(
        self,
        config: ServingConfig,
        origin: ServedModel | DeploymentHandle,
        hypernetwork: DeploymentHandle,
        image_encoder: DeploymentHandle,
    ) -> None:
        """Args: origin, the one model to serve, or the `Rollout` that says which."""
        metrics = IngressMetrics(set_up_replica(config))
        self._access = Access(config.tenants, config.limits, local_only=config.local_only)
        if self._access.has_rates:
            keep_share(self._access)
        names_to_encoders = HypernetworkHandle(hypernetwork, config.limits)
        versions = ServedVersions(
            plan_source(config, origin),
            hypernetwork=names_to_encoders,
            limits=config.limits,
            metrics=metrics,
            num_recent_tasks=config.rollout.warm_tasks,
        )
        if config.follows:
            self._following = asyncio.get_running_loop().create_task(versions.follow(config.rollout.sync_interval_s))
        self._service = ClassifierService(
            versions=versions,
            hypernetwork=names_to_encoders,
            image_encoder=ImageEncoderHandle(image_encoder, config.limits),
            store=TaskStore(config.task_store_uri),
            limits=config.limits,
            metrics=metrics,
            task_cache_s=config.task_cache_s,
            task_ttl_s=config.task_ttl_s,
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_http_app(self._service, self._access)
