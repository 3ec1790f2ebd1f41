"""The Serve application.  Import path for `serve run` and KubeRay: `serving.app:build_application`."""

from typing import Any

from ray import serve
from ray.serve.config import AutoscalingConfig, BackpressureConfig
from ray.serve.deployment import Application

from infra import storage
from infra.errors import BadInputError
from serving.config import DeploymentScale, ServingConfig
from serving.deployments.hypernetwork import Hypernetwork
from serving.deployments.image_encoder import ImageEncoder
from serving.deployments.ingress import Ingress
from serving.deployments.rollout import Rollout
from serving.limits import ServingLimits
from serving.model_source import ServedModel, resolve
from serving.rollout.registry import begin
from serving.tenants import TENANTS_VARIABLE, TenantConfig, tenants_of_environment


def build_application(args: ServingConfig) -> Application:
    """Build the application: around one model for ever, or around a `Rollout` that follows the registry's alias.

    Raises:
        BadInputError: there is no such model, or nobody has said who may call.
        CorruptArtefactError: the model is damaged, and none was served before.
    """
    config = ServingConfig.model_validate(
        args
    )  # Serve gives the mapping of a config file as this type; callers may give either
    return build_allowed(config.rebuilt(tenants=tenants_allowed(config)))


def build_allowed(config: ServingConfig) -> Application:
    """The same where it is settled who may call: without keys, only this machine unless `allow_anonymous` says otherwise.

    Raises:
        BadInputError: there is no such model.
        CorruptArtefactError: the model is damaged, and none was served before.
    """
    config = config.rebuilt(
        task_store_uri=_absolute(config.task_store_uri),
        bundle_uri=None if config.bundle_uri is None else _absolute(config.bundle_uri),
    )
    if config.follows:
        begin(config)
    return assemble(config)


def assemble(config: ServingConfig) -> Application:
    """The deployments, without asking the registry for anything."""
    origin = _rollout(config) if config.follows else resolve(config)
    hypernetwork = serve.deployment(Hypernetwork, **_options(config.hypernetwork, config.limits)).bind(config, origin)
    image_encoder = serve.deployment(ImageEncoder, **_options(config.image_encoder, config.limits)).bind(config, origin)
    return ingress_application(config, origin, hypernetwork, image_encoder)


def ingress_application(
    config: ServingConfig, origin: ServedModel | Application, hypernetwork: Application, image_encoder: Application
) -> Application:
    """The ingress before any two deployments that answer as `messages.py` says."""
    ingress = serve.deployment(Ingress, **_options(config.ingress, config.limits))
    return ingress.bind(config, origin, hypernetwork, image_encoder)


def _rollout(config: ServingConfig) -> Application:
    small = {"num_cpus": 0.05}  # it holds no model and computes nothing; one that waits for a CPU would keep the others waiting
    deployment = serve.deployment(
        Rollout, num_replicas=1, max_ongoing_requests=1000, ray_actor_options=small, graceful_shutdown_timeout_s=1
    )
    return deployment.bind(config)


def tenants_allowed(config: ServingConfig) -> tuple[TenantConfig, ...]:
    """Those of the configuration, else of the environment; none where everybody may call.

    Raises:
        BadInputError: there are none, and that has not been asked for.
    """
    tenants = config.tenants or tenants_of_environment()
    if not tenants and not config.allow_anonymous:
        raise BadInputError(
            f"nobody may call this service yet: make a key with `hyperclip serve-key NAME`, and put what it prints into "
            f"serving.tenants or the environment variable {TENANTS_VARIABLE}; or say allow_anonymous: true to serve whoever "
            "reaches the port, without keys"
        )
    return tenants


def _absolute(uri: str) -> str:
    """Replicas have working folders of their own."""
    return str(storage.local_path(uri)) if storage.is_local(uri) else uri


def _options(scale: DeploymentScale, limits: ServingLimits) -> dict[str, Any]:
    return {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=scale.min_replicas,
            max_replicas=scale.max_replicas,
            target_ongoing_requests=scale.target_ongoing_requests,
        ),
        "max_ongoing_requests": scale.max_ongoing_requests,
        "max_queued_requests": scale.max_queued_requests,
        "backpressure_config": BackpressureConfig(status_code=429, retry_after_s=limits.retry_after_s),
        "ray_actor_options": {"num_cpus": scale.num_cpus, "num_gpus": scale.num_gpus},
        "health_check_period_s": 2,  # a dead replica is replaced when it misses one
        "graceful_shutdown_timeout_s": 10,
    }


__all__ = ["ServingConfig", "assemble", "build_allowed", "build_application", "ingress_application"]
