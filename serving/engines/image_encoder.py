"""Pictures of many tasks through one encoder, in one forward pass.

A task differs from the next by its parameters alone (tens of KB), so pictures of different tasks share a batch: each gets those
of its own task.  Shapes: B pictures, S side of a picture, P values of a task, C labels, D embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from serving.engines.predictions import best_labels
from serving.schemas import ModelInfo, Prediction
from training.bundle import Bundle
from training.per_image import PerImageEncoder
from training.preprocess import square_pixels
from training.shipped import note_of
from training.specialize import SpecializedEncoder


@dataclass(frozen=True, eq=False)
class ReadyTask:
    """A task as an encoder replica keeps it, with everything computed that depends on it alone."""

    labels: tuple[str, ...]
    text_features: Tensor
    """(C, D) unit vectors, one per label; on the host, where scores are computed."""
    parameters: Tensor
    """(P,) from `PerImageEncoder.prepare`, where the model is."""
    logit_scale: float
    logit_bias: float

    @cached_property
    def num_bytes(self) -> int:
        """Of the tensors and, roughly, of the labels."""
        tensors = self.parameters.nbytes + self.text_features.nbytes
        return tensors + sum(len(label.encode()) + 64 for label in self.labels)


@dataclass(frozen=True, eq=False)
class EncodeItem:
    """One picture and what is wanted of it."""

    image: np.ndarray
    """(S, S, 3) uint8."""
    parameters: ReadyTask | None
    """Whose generated parameters to encode it under; None for the neutral ones."""
    labels: ReadyTask | None
    """Whose labels to score; None for features only."""
    top_k: int = 0
    """How many of them to answer with."""


@dataclass(frozen=True)
class EncodedItem:
    """What the forward pass gave for one picture."""

    features: np.ndarray
    """(D,) float32 unit vector."""
    predictions: tuple[Prediction, ...] | None


class ImageEncoderEngine:
    """Decodes and encodes; `run` is for one thread at a time, the rest for any."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self._device = bundle.model.log_scale.device
        self._few_sizes = self._device.type != "cpu"
        self._encoder = PerImageEncoder(bundle.model.image_encoder)
        self._neutral = self._encoder.prepare(torch.zeros(bundle.model.image_encoder.layout.num_values, device=self._device))
        self._mean = torch.tensor(bundle.preprocess.mean, device=self._device)[:, None, None]
        self._std = torch.tensor(bundle.preprocess.std, device=self._device)[:, None, None]

    def decode(self, data: bytes, *, max_pixels: int) -> np.ndarray:
        """Picture bytes -> (S, S, 3) uint8.

        Raises:
            infra.images.ImageError: not a picture we read, damaged, or too large.
        """
        return square_pixels(data, self.bundle.preprocess, max_pixels=max_pixels)

    def ready(self, encoder: SpecializedEncoder) -> ReadyTask:
        """The task of an encoder of this model, ready for `run`."""
        return ReadyTask(
            labels=encoder.task.labels,
            text_features=encoder.text_features.cpu(),
            parameters=self._encoder.prepare(encoder.delta.to(self._device)),
            logit_scale=float(encoder.logit_scale),
            logit_bias=float(encoder.logit_bias),
        )

    @torch.inference_mode()
    def run(self, items: Sequence[EncodeItem]) -> list[EncodedItem]:
        """Encode a batch in one forward pass, then score each picture for the labels of its own task.

        Scores are computed on the host: a GPU would have to be waited for once a task.
        """
        features = self._encode(items).cpu()  # (B, D)
        predictions: list[tuple[Prediction, ...] | None] = [None] * len(items)
        for task, places in _places_by_task(items):
            logits = (task.logit_scale * (features[places] @ task.text_features.T)).numpy()  # (places, C)
            for place, row in zip(places, logits, strict=True):
                predictions[place] = best_labels(task.labels, row, logit_bias=task.logit_bias, top_k=items[place].top_k)
        return [EncodedItem(*found) for found in zip(features.numpy(), predictions, strict=True)]

    def warm_up(self, max_batch_size: int) -> None:
        """On a GPU, run every size of batch once: the first of each takes a hundred times as long as the next."""
        if not self._few_sizes:
            return
        side = self.bundle.preprocess.image_size
        item = EncodeItem(np.zeros((side, side, 3), np.uint8), parameters=None, labels=None)
        sizes = {padded_size(size) for size in range(1, max_batch_size + 1)}
        for size in sorted(sizes):
            self.run([item] * size)

    def _encode(self, items: Sequence[EncodeItem]) -> Tensor:
        """(B, D).  A GPU gets few sizes of batch only, as each new one makes cuDNN choose anew for every convolution."""
        missing = padded_size(len(items)) - len(items) if self._few_sizes else 0
        padded = [*items, *([items[0]] * missing)]
        rows = [self._neutral if item.parameters is None else item.parameters.parameters for item in padded]
        features: Tensor = self._encoder(self.normalized([item.image for item in padded]), torch.stack(rows))
        return features[: len(items)]

    def normalized(self, images: Sequence[np.ndarray]) -> Tensor:
        """(S, S, 3) uint8 each -> (B, 3, S, S) float32, channels last: what `preprocess` gives, for a whole batch at once."""
        pixels = torch.from_numpy(np.stack(images)).to(self._device).permute(0, 3, 1, 2)
        return pixels.to(torch.float32).div_(255).sub_(self._mean).div_(self._std)


def padded_size(size: int) -> int:
    """The next power of two."""
    return 1 << (size - 1).bit_length()


def _places_by_task(items: Sequence[EncodeItem]) -> list[tuple[ReadyTask, list[int]]]:
    by_identity: dict[int, tuple[ReadyTask, list[int]]] = {}
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
        note=note_of(bundle.digest),
    )
