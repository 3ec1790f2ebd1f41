"""What every replica does when it starts, and what it can find out about the others of its deployment."""

import gc
import logging
import threading
import time

from ray import serve
from ray.serve.exceptions import RayServeException

from serving.config import ServingConfig
from serving.deployments.ray_metrics import ray_publisher
from serving.logs import configure_logs
from serving.metrics import Publisher, unpublished
from serving.rate import Access
from serving.tracing import configure_tracing

logger = logging.getLogger(__name__)

ASKED_EVERY_S = 5.0


def set_up_replica(config: ServingConfig) -> Publisher:
    """Logs and spans of this process, and where its metrics go; nothing of that where the process is somebody else's.

    What is loaded by now, some 300,000 objects of torch, Ray and others, stays as long as the process: it is taken out of the
    garbage collector's sight, whose full collections would hold up every call of the replica for a few tenths of a second.
    """
    try:
        context = serve.get_replica_context()
    except RayServeException:
        return unpublished
    configure_logs(config.log_level)
    configure_tracing(context.deployment)
    gc.collect()
    gc.freeze()
    return ray_publisher


def keep_share(access: Access) -> None:
    """Adjust what this replica allows of each rate whenever the number of replicas changes, until its process ends."""
    threading.Thread(target=_keep, args=(access, serve.get_replica_context()), name="replica-share", daemon=True).start()


def _keep(access: Access, context: serve.context.ReplicaContext) -> None:
    while True:
        try:
            deployments = serve.status().applications[context.app_name].deployments
            access.share_among(deployments[context.deployment].replica_states.get("RUNNING", 1))
        except Exception as error:  # the controller may be away for a while; the last share stands
            logger.warning("the number of ingress replicas is not known now: %r", error)
        time.sleep(ASKED_EVERY_S)
