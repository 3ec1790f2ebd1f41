"""Pictures of many tasks through one encoder, in one forward pass.

A task differs from the next by its delta alone (tens of KB), so pictures of different tasks share a batch: each gets the scale
and shift of its own task.  A zero delta gives the neutral parameters.  Shapes: B pictures, G groups, C labels, D embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from serving.schemas import ModelInfo
from training.bundle import Bundle
from training.model.parameter_delta import GroupDelta
from training.preprocess import preprocess
from training.score import Scores, class_scores
from training.specialize import SpecializedEncoder


@dataclass(frozen=True, eq=False)
class EncodeItem:
    """One picture and what is wanted of it."""

    image: np.ndarray
    """(3, S, S) float32."""
    parameters: SpecializedEncoder | None
    """Whose generated parameters to encode it under; None for the neutral ones."""
    labels: SpecializedEncoder | None
    """Whose labels to score; None for features only."""


@dataclass(frozen=True)
class EncodedItem:
    """What the forward pass gave for one picture."""

    features: Tensor
    """(D,) unit vector."""
    scores: Scores | None
    """(C,) each."""


class ImageEncoderEngine:
    """Decodes and encodes; `run` is for one thread at a time, `decode` for any."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self._device = bundle.model.log_scale.device

    def decode(self, data: bytes, *, max_pixels: int) -> np.ndarray:
        """Picture bytes -> (3, S, S) float32.

        Raises:
            infra.images.ImageError: not a picture we read, damaged, or too large.
        """
        return preprocess(data, self.bundle.preprocess, max_pixels=max_pixels)

    def place(self, encoder: SpecializedEncoder) -> SpecializedEncoder:
        """The encoder with its tensors where the model is."""
        return replace(
            encoder,
            text_features=encoder.text_features.to(self._device),
            delta=encoder.delta.to(self._device),
            logit_scale=encoder.logit_scale.to(self._device),
            logit_bias=encoder.logit_bias.to(self._device),
        )

    @torch.inference_mode()
    def run(self, items: Sequence[EncodeItem]) -> list[EncodedItem]:
        """Encode a batch in one forward pass, then score each picture for the labels of its own task."""
        images = torch.from_numpy(np.stack([item.image for item in items])).to(self._device)
        features = self.bundle.model.encode_image(images, self._delta([item.parameters for item in items])).cpu()  # (B, D)
        scores: list[Scores | None] = [None] * len(items)
        for encoder, places in _places_by_task(items):
            found = class_scores(
                features[places].to(self._device),
                encoder.text_features,
                logit_scale=encoder.logit_scale,
                logit_bias=encoder.logit_bias,
            )
            softmax, match = found.softmax.cpu(), found.match.cpu()
            for row, place in enumerate(places):
                scores[place] = Scores(softmax=softmax[row], match=match[row])
        return [EncodedItem(features=features[place], scores=scores[place]) for place in range(len(items))]

    def _delta(self, wanted: Sequence[SpecializedEncoder | None]) -> GroupDelta | None:
        """One group per set of parameters in the batch; the fused path of one group where all agree."""
        groups: dict[int, Tensor] = {}
        zero = torch.zeros(self.bundle.model.image_encoder.layout.num_values, device=self._device)
        for encoder in wanted:
            groups.setdefault(id(encoder), zero if encoder is None else encoder.delta)
        if len(groups) == 1:
            return None if wanted[0] is None else GroupDelta(wanted[0].delta[None])
        number = {key: place for place, key in enumerate(groups)}
        index = torch.tensor([number[id(encoder)] for encoder in wanted], device=self._device)
        return GroupDelta(torch.stack(list(groups.values())), index)


def _places_by_task(items: Sequence[EncodeItem]) -> list[tuple[SpecializedEncoder, list[int]]]:
    by_identity: dict[int, tuple[SpecializedEncoder, list[int]]] = {}
    for place, item in enumerate(items):
        if item.labels is not None:
            by_identity.setdefault(id(item.labels), (item.labels, []))[1].append(place)
    return list(by_identity.values())


def model_info(bundle: Bundle, *, name: str, version: str) -> ModelInfo:
    """What clients are told about a loaded model."""
    config = bundle.model.config
    return ModelInfo(
        name=name,
        version=version,
        digest=bundle.digest,
        architecture=config.name,
        image_size=bundle.preprocess.image_size,
        embed_dim=config.image.embed_dim,
        num_generated=bundle.model.image_encoder.layout.num_values if config.hypernetwork else 0,
        templates=bundle.templates,
        metrics=bundle.metrics,
        none_of_these=bundle.none_of_these,
    )
