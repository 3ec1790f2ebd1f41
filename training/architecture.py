"""The model that a run trains: one of the registry, with another choice of what is generated where the run says so."""

from dataclasses import replace

from pydantic import Field, PositiveInt

from infra.config import StrictModel
from training.model.hyperclip import HyperClipConfig
from training.model.image_encoder import Kind
from training.model.registry import model_config


class GenerationConfig(StrictModel):
    """What the hypernetwork generates; what is absent stays as the registry's model has it."""

    generates: tuple[Kind, ...] | None = Field(default=None, min_length=1)
    """Some of norm (scale and bias, the paper's choice), convolution (low-rank deltas of the convolutions over more than one
    pixel, grouped and depthwise ones excepted), pointwise (those of the 1x1 convolutions) and projection (one of the projection
    to the embedding)."""
    convolution_rank: PositiveInt | None = None
    """So many values a task for each channel that a convolution over more than one pixel writes."""
    pointwise_rank: PositiveInt | None = None
    """So many values a task for each channel that a 1x1 convolution writes."""
    pointwise_stages: PositiveInt | None = None
    """Only the 1x1 convolutions of the last so many stages (resolutions) of the trunk."""
    projection_rank: PositiveInt | None = None
    """So many values a task for each dimension of the embedding."""
    basis: int | None = Field(default=None, ge=2)
    """A set of names mixes one learned delta less than this, or none at all, instead of a linear map to a delta of its own."""
    zero_mean: bool | None = None
    """Whether deltas have zero mean over the label sets of training, so that the neutral parameters are the average."""
    tokens: PositiveInt | None = None
    """A control: the hypernetwork reads so many learned tokens instead of the names, so that one delta serves all label sets.
    As many as a set has names in evaluation; what this gains over the twin is capacity, not specialization."""


def architecture(name: str, generation: GenerationConfig) -> HyperClipConfig:
    """The model by name, changed as the run says.

    Raises:
        ValueError: the name is unknown, or the model generates nothing and was to generate something.
    """
    config = model_config(name)
    changes = {key: value for key, value in generation.model_dump().items() if value is not None}
    if not changes:
        return config
    if config.hypernetwork is None:
        raise ValueError(f"generation sets {', '.join(changes)}, but {name} has no hypernetwork that could generate anything")
    ours = {key: changes.pop(key) for key in ("basis", "zero_mean", "tokens") if key in changes}
    return replace(config, image=replace(config.image, **changes), hypernetwork=replace(config.hypernetwork, **ours))
