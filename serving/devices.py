"""Where a replica computes: on the CPU, or on the share of a GPU that it was given."""

import ray
import torch

from infra.errors import BadInputError
from serving.config import DeploymentScale, ServiceSettings


def usable_device(scale: DeploymentScale) -> str:
    """The torch device of a replica, proven to be there, and made to compute in float32.

    Raises:
        BadInputError: a GPU was asked for, and torch sees none.
    """
    if scale.device == "cuda":
        if not torch.cuda.is_available():
            raise BadInputError(
                f"num_gpus={scale.num_gpus:g} was asked for, but torch {torch.__version__} sees no CUDA device on this "
                "machine: set num_gpus to 0, or install torch with CUDA where there is a GPU"
            )
        # a replica on a GPU answers as one on a CPU does; torch would allow TF32 in convolutions: 10 bits of each factor
        torch.backends.cudnn.allow_tf32 = False
    return scale.device


def check_gpus(config: ServiceSettings) -> None:
    """That some machine of the connected Ray cluster has the GPU that a deployment asks for; Serve itself would wait for ever.

    Raises:
        BadInputError: none has.
    """
    most = max((node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
    for name in ("ingress", "hypernetwork", "image_encoder"):
        wanted = getattr(config, name).num_gpus
        if wanted > most:
            raise BadInputError(
                f"serving.{name}.num_gpus={wanted:g}, but no machine of this Ray cluster offers more than {most:g} GPUs: "
                "set it to 0 to compute on CPUs"
            )
