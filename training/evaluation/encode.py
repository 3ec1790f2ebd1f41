"""Features of pictures and names, each computed once, and features under generated parameters in large batches.

Shapes: M pictures, B pictures of a batch, S side, C names of a set, D embedding, G sets in one pass, P generated values.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from training.bundle import Bundle
from training.model.parameter_delta import GroupDelta

IMAGE_BATCH = 256
NAMES_AT_ONCE = 4096
"""Names that go through the hypernetwork together; its memory grows with it."""


class Job(NamedTuple):
    """Pictures to be seen under the parameters made from a set of names."""

    names: Tensor
    """(C, D) features of distinct names."""
    pictures: np.ndarray
    """Numbers of the pictures."""


class PictureEncoder:
    """One model and the decoded pictures."""

    def __init__(self, bundle: Bundle, images: np.ndarray) -> None:
        """Args: images (M, S, S, 3) uint8, cut as the model's preprocessing says."""
        self._model = bundle.model
        self._images = images
        self._device = bundle.model.log_scale.device
        self._mean = torch.tensor(bundle.preprocess.mean, device=self._device)
        self._std = torch.tensor(bundle.preprocess.std, device=self._device)
        self._neutral: Tensor | None = None

    @property
    def neutral(self) -> Tensor:
        """(M, D) under the neutral parameters, computed when it is first asked for."""
        if self._neutral is None:
            self._neutral = self._encode(np.arange(len(self._images)), None)
        return self._neutral

    def encode_neutral(self, ready: Iterable[slice]) -> None:
        """Fill `neutral` with rows as they get ready, while the next ones are being decoded."""
        self._neutral = torch.cat([self._encode(np.arange(rows.start, rows.stop), None) for rows in _joined(ready)])

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
    def _encode(self, pictures: np.ndarray, delta: GroupDelta | None) -> Tensor:
        """(B, D) of any number of pictures."""
        found = []
        for start in range(0, len(pictures), IMAGE_BATCH):
            batch = slice(start, start + IMAGE_BATCH)
            part = delta
            if delta is not None and delta.group_index is not None:
                part = GroupDelta(delta.flat, delta.group_index[batch])
            found.append(self._model.encode_image(self._normalized(pictures[batch]), part))
        return torch.cat(found)

    def _normalized(self, pictures: np.ndarray) -> Tensor:
        """(B, 3, S, S), value for value what `preprocess.normalize` gives, channels last as the model wants it."""
        pixels = torch.from_numpy(self._images[pictures]).to(self._device)
        return ((pixels.float() / 255 - self._mean) / self._std).permute(0, 3, 1, 2)


def _joined(ready: Iterable[slice]) -> Iterator[slice]:
    """Neighbouring rows in batches of about the usual size."""
    start = stop = 0
    for rows in ready:
        stop = rows.stop
        if stop - start >= IMAGE_BATCH:
            yield slice(start, stop)
            start = stop
    if stop > start:
        yield slice(start, stop)


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
