"""HyperCLIP: image encoder, text encoder and the hypernetwork between them; without the hypernetwork, its SigLIP twin.

Shapes: B images, T texts, G conditioning groups, C names in a set, D embedding, P generated values.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from training.model.hypernetwork import Hypernetwork, HypernetworkConfig
from training.model.image_encoder import ImageEncoder, ImageEncoderConfig, Kind
from training.model.parameter_delta import GroupDelta
from training.model.text_encoder import TextEncoder, TextEncoderConfig


@dataclass(frozen=True)
class HyperClipConfig:
    """The architecture, and nothing about training."""

    name: str
    image: ImageEncoderConfig
    text: TextEncoderConfig
    hypernetwork: HypernetworkConfig | None
    """None makes the SigLIP twin: the same encoders without conditioning."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "HyperClipConfig":
        """Inverse of `to_dict`.

        Raises:
            ValueError: a key is unknown or missing.
        """
        try:
            hypernetwork = values["hypernetwork"]
            return HyperClipConfig(
                image=ImageEncoderConfig(**values["image"]),
                text=TextEncoderConfig(**values["text"]),
                hypernetwork=None if hypernetwork is None else HypernetworkConfig(**hypernetwork),
                **{key: value for key, value in values.items() if key not in ("image", "text", "hypernetwork")},
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a model configuration: {error}") from error


class HyperClip(nn.Module):
    """Anatomy: `image_encoder`, `text_encoder`, `hypernetwork`, `log_scale`, `bias`."""

    def __init__(self, config: HyperClipConfig) -> None:
        super().__init__()
        if config.image.embed_dim != config.text.embed_dim:
            raise ValueError(f"image embed_dim {config.image.embed_dim} differs from text embed_dim {config.text.embed_dim}")
        self.config = config
        self.image_encoder = ImageEncoder(config.image)
        self.text_encoder = TextEncoder(config.text)
        # SigLIP's start: scale 10, bias -10.  One element, not none: DeepSpeed cannot broadcast a scalar
        self.log_scale = nn.Parameter(torch.full((1,), math.log(10.0)))
        self.bias = nn.Parameter(torch.full((1,), -10.0))
        # last, so that the same seed gives the twin the same weights
        self.hypernetwork = (
            Hypernetwork(config.hypernetwork, embed_dim=config.text.embed_dim, num_values=self.image_encoder.layout.num_values)
            if config.hypernetwork
            else None
        )

    def recompute_activations(self) -> None:
        """Trade time for memory in training: the backward pass computes the activations of blocks and stages again.

        Raises:
            ValueError: the image trunk cannot do that.
        """
        self.image_encoder.recompute_activations()
        self.text_encoder.blocks.recompute = True
        if self.hypernetwork is not None:
            self.hypernetwork.blocks.recompute = True

    def compile_blocks(self) -> None:
        """Compile every transformer block where it stands; names of parameters stay.  Lengths of texts and sets may vary."""
        for blocks in (self.text_encoder.blocks, self.hypernetwork.blocks if self.hypernetwork else ()):
            for block in blocks:
                block.compile(dynamic=True)

    @property
    def num_generated(self) -> dict[Kind, int]:
        """Values of a delta by what they are; none for the SigLIP twin."""
        return self.image_encoder.num_generated if self.hypernetwork else {}

    @property
    def logit_scale(self) -> Tensor:
        """() the scale itself, already exponentiated."""
        return self.log_scale.exp()[0]

    @property
    def logit_bias(self) -> Tensor:
        """() added to every logit."""
        return self.bias[0]

    def encode_text(self, tokens: Tensor) -> Tensor:
        """(T, L) int64 -> (T, D) unit vectors."""
        features: Tensor = self.text_encoder(tokens)
        return features

    def encode_image(self, images: Tensor, delta: GroupDelta | None = None) -> Tensor:
        """(B, 3, H, W) -> (B, D) unit vectors; neutral parameters when `delta` is None."""
        features: Tensor = self.image_encoder(images, delta)
        return features

    def generate(self, text_features: Tensor, mask: Tensor | None = None) -> Tensor:
        """(G, C, D) text features of unique names -> (G, P) deltas; zeros for the SigLIP twin, which generates nothing."""
        if self.hypernetwork is None:
            return text_features.new_zeros(len(text_features), self.image_encoder.layout.num_values)
        delta: Tensor = self.hypernetwork(text_features, mask)
        return delta
