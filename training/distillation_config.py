"""How a training run learns from a larger model of ours besides its own loss."""

from pydantic import PositiveFloat

from infra.config import StrictModel


class DistillationConfig(StrictModel):
    """A teacher, whose way of telling the pictures and captions of a batch apart is a further target of training."""

    teacher: str
    """A bundle, a folder or an address.  It must read pictures of the same size as the model that is trained; its architecture
    and its embedding may be any.  A HyperCLIP teaches with its neutral parameters."""
    weight: PositiveFloat = 1.0
    """What the distillation loss is multiplied by before it is added to the loss."""
