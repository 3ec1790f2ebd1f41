"""Features of pictures and names, each computed once, and features under generated parameters in large batches.

Shapes: M pictures, B pictures of a batch, S side, C names of a set, D embedding, G sets in one pass, P generated values.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from training.bundle import Bundle
from training.evaluation.core_threads import core_threads
from training.fold import fold_image_encoder
from training.model.hyperclip import HyperClip
from training.model.parameter_delta import GroupDelta

IMAGE_BATCH = 256
CORE_BATCH = 64
"""Pictures that one core encodes at a time; what a small network makes of more does not stay in its cache."""
NAMES_AT_ONCE = 4096
"""Names that go through the hypernetwork together; its memory grows with it."""


class Job(NamedTuple):
    """Pictures to be seen under the parameters made from a set of names."""

    names: Tensor
    """(C, D) features of distinct names."""
    pictures: np.ndarray
    """Numbers of the pictures."""


def neutral_encoder(model: HyperClip) -> Callable[[Tensor], Tensor]:
    """(B, 3, S, S) -> (B, D) under the neutral parameters: folded, as on a device, and a fifth faster than wrapped."""
    encoder = model.image_encoder
    no_delta = torch.zeros(encoder.layout.num_values)
    return fold_image_encoder(encoder, no_delta).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


class PictureEncoder:
    """One model and the decoded pictures."""

    def __init__(self, bundle: Bundle, images: np.ndarray) -> None:
        """Args: images (M, S, S, 3) uint8, cut as the model's preprocessing says."""
        self._model = bundle.model
        self._images = images
        self._device = bundle.model.log_scale.device
        # repeated along a row: arithmetic over an axis of three runs at a fraction of the speed
        self._mean = torch.tensor(bundle.preprocess.mean, device=self._device).repeat(images.shape[2])
        self._std = torch.tensor(bundle.preprocess.std, device=self._device).repeat(images.shape[2])
        self._neutral: Tensor | None = None
        self._neutral_encoder = neutral_encoder(bundle.model)

    @property
    def neutral(self) -> Tensor:
        """(M, D) under the neutral parameters, computed when it is first asked for."""
        if self._neutral is None:
            starts = range(0, len(self._images), CORE_BATCH)
            with core_threads() as threads:
                self.keep_neutral(threads.map(self.encode_neutral, (slice(start, start + CORE_BATCH) for start in starts)))
        assert self._neutral is not None
        return self._neutral

    def keep_neutral(self, parts: Iterable[Tensor]) -> None:
        """Args: parts: what `encode_neutral` gave for all pictures, in order."""
        self._neutral = torch.cat(list(parts))

    @torch.no_grad()
    def encode_neutral(self, rows: slice) -> Tensor:
        """(B, D) of these pictures under the neutral parameters; may be called in several threads at once."""
        return self._neutral_encoder(self._normalized(self._images[rows]))

    @torch.no_grad()
    def under(self, jobs: Sequence[Job]) -> Iterator[Tensor]:
        """(B, D) for each job, in order.  Small jobs share a forward pass: each picture gets the parameters of its own job."""
        for part in _parts(jobs):
            deltas = self._generate([job.names for job in part])  # (G, P)
            if not deltas.any():  # a model that generates nothing, such as a SigLIP twin
                yield from (self.neutral[job.pictures] for job in part)
            elif len(part) == 1:  # the fused kernel, which is faster for many pictures under one set of parameters
                yield self._encode(part[0].pictures, GroupDelta(deltas))
            else:
                sizes = torch.tensor([len(job.pictures) for job in part])
                index = torch.repeat_interleave(torch.arange(len(part)), sizes).to(self._device)
                features = self._encode(np.concatenate([job.pictures for job in part]), GroupDelta(deltas, index))
                yield from features.split(sizes.tolist())

    def _generate(self, sets: Sequence[Tensor]) -> Tensor:
        """(G, P); sets of one size go through together, others one by one: padding would be paid for."""
        if len({len(names) for names in sets}) == 1:
            return self._model.generate(torch.stack(list(sets)))
        return torch.cat([self._model.generate(names[None]) for names in sets])

    @torch.no_grad()
    def _encode(self, pictures: np.ndarray, delta: GroupDelta) -> Tensor:
        """(B, D) of any number of pictures."""
        found = []
        for start in range(0, len(pictures), IMAGE_BATCH):
            batch = slice(start, start + IMAGE_BATCH)
            part = delta
            if delta.group_index is not None:
                part = GroupDelta(delta.flat, delta.group_index[batch])
            found.append(self._model.encode_image(self._normalized(self._images[pictures[batch]]), part))
        return torch.cat(found)

    def _normalized(self, images: np.ndarray) -> Tensor:
        """(B, S, S, 3) -> (B, 3, S, S): value for value `preprocess.normalize`, but channels last as the model wants it."""
        pixels = torch.from_numpy(images).to(self._device)
        scaled = pixels.float().flatten(2).div_(255).sub_(self._mean).div_(self._std)  # (B, S, 3 S)
        return scaled.view(pixels.shape).permute(0, 3, 1, 2)


def _parts(jobs: Sequence[Job]) -> Iterator[list[Job]]:
    """Runs of jobs that go through together."""
    part: list[Job] = []
    for job in jobs:
        num_pictures = sum(len(other.pictures) for other in part) + len(job.pictures)
        if part and (num_pictures > IMAGE_BATCH or (len(part) + 1) * len(job.names) > NAMES_AT_ONCE):
            yield part
            part = []
        part.append(job)
    if part:
        yield part
