"""The file for `serve deploy`, as `serve build` would make it if it could call a builder with its settings.

python -m serving.deploy_file > infra/serve/config.yaml
"""

import sys
from typing import Any

import yaml
from ray.serve._private.build_app import build_app
from ray.serve.deployment import deployment_to_schema
from ray.serve.schema import ServeApplicationSchema, ServeDeploySchema

from infra.tracking import TrackingConfig
from serving.app import assemble
from serving.config import DeploymentScale, ServingConfig
from serving.launch import APPLICATION_NAME, LOGGING
from serving.switches import FAST

HEADER = """\
# The service for `serve deploy infra/serve/config.yaml` on a Ray cluster that is already there (docs/cluster.md).
# Made by `python -m serving.deploy_file`: put your MLflow server and your bucket in, and scale the deployments as you need.
# The model is the champion of `model_name`: put the `name` of your run's configuration there.
# It listens on loopback, for the proxy that ends TLS.  Who may call has to be said: put `HYPERCLIP_TENANTS`, a list as
# `hyperclip serve-key` prints it, into the environment in which Ray is started, or `tenants` into args.
"""
EXAMPLE = ServingConfig(
    tracking=TrackingConfig(uri="https://mlflow.your-domain.example"),
    model_name="hyperclip",
    task_store_uri="s3://your-bucket/hyperclip/tasks",
    ingress=DeploymentScale(max_replicas=4, max_ongoing_requests=256, target_ongoing_requests=32),
    hypernetwork=DeploymentScale(max_replicas=2, max_ongoing_requests=8, target_ongoing_requests=2, num_cpus=2, num_threads=2),
    image_encoder=DeploymentScale(max_replicas=16, target_ongoing_requests=16, num_cpus=2, num_threads=2),
)


def deploy_config(config: ServingConfig) -> dict[str, Any]:
    """What `serve deploy` takes, with the options of each deployment written out."""
    built = build_app(assemble(config), name=APPLICATION_NAME)
    application = ServeApplicationSchema(
        name=APPLICATION_NAME,
        route_prefix="/",
        import_path="serving.app:build_application",
        args=config.model_dump(mode="json", exclude_unset=True),
        runtime_env={"env_vars": dict(FAST)},
        deployments=[deployment_to_schema(deployment) for deployment in built.deployments],
    )
    found = {
        "proxy_location": "HeadOnly",
        "http_options": {"host": config.host, "port": config.port},
        "logging_config": LOGGING,
        "applications": [application.model_dump(mode="json", exclude_unset=True)],
    }
    ServeDeploySchema.model_validate(found)
    return found


if __name__ == "__main__":
    sys.stdout.write(HEADER + yaml.safe_dump(deploy_config(EXAMPLE), sort_keys=False, width=120))
