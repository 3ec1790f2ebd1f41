"""Distillation from a larger model: the student tells pictures and captions of a batch apart as its teacher does.

Contrastive relational distillation of CLIP-KD (arXiv 2307.12732): for each image the softmax over the captions of the batch,
for each caption the softmax over its images, of the teacher and of the student, each under its own logit scale, and the
divergence between them.  Only relations are compared, so the embeddings of the two may differ in size.
Shapes: B images of this rank, N images of all, S texts of each rank, T unique texts, D embedding of either model.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from infra import storage
from infra.errors import BadInputError
from training.bundle import load_bundle
from training.config import TrainConfig
from training.exchange import gather_dealt, gather_rows, rank
from training.loss import PairIds, counted_pairs
from training.model.hyperclip import HyperClip, HyperClipConfig
from training.preprocess import PreprocessConfig


@dataclass(frozen=True)
class Teacher:
    """No module, so that it is no part of what holds it: neither optimizer nor checkpoint know of it, nor does ZeRO."""

    model: HyperClip
    """In eval mode, without gradients."""
    weight: float
    digest: str
    """Identity of its bundle."""


def read_teacher(config: TrainConfig, *, device: torch.device) -> Teacher | None:
    """The teacher of a run, where it has one.

    Raises:
        BadInputError: none there, or it cannot read what the student reads; the message says what differs.
        CorruptArtefactError: a damaged bundle, or one of another tokenizer.
    """
    if config.distillation is None:
        return None
    uri, student = config.distillation.teacher, config.architecture()
    with storage.localized(uri) as folder:
        bundle = load_bundle(folder, device=str(device))
    ours, theirs = _inputs(student, config.preprocess), _inputs(bundle.model.config, bundle.preprocess)
    different = [f"{name} {theirs[name]} instead of {value}" for name, value in ours.items() if theirs[name] != value]
    if different:
        raise BadInputError(
            f"distillation.teacher={uri} is a {bundle.model.config.name}, which does not read the batches of "
            f"{student.name}: {'; '.join(different)}. Take a teacher that was trained on the same input"
        )
    return Teacher(bundle.model, config.distillation.weight, bundle.digest)


def _inputs(model: HyperClipConfig, preprocess: PreprocessConfig) -> dict[str, Any]:
    """What a batch has to look like for a model."""
    return {
        "image_size": preprocess.image_size,
        "mean": preprocess.mean,
        "std": preprocess.std,
        "vocab_size": model.text.vocab_size,
        "context_length": model.text.context_length,
    }


@dataclass(frozen=True)
class Features:
    """What one of the two models makes of a batch."""

    images: Tensor
    """(B, D) unit vectors of this rank's images."""
    texts: Tensor
    """(S, D) unit vectors, the unique texts dealt to this rank (see `training.exchange`)."""
    logit_scale: Tensor
    """() already exponentiated."""


def distillation_loss(student: Features, teacher: Features, *, pairs: PairIds, num_texts: int) -> Tensor:
    """Divergence of the student from the teacher, over captions given an image plus over images given a caption.

    KL(teacher || student) of each, means over the samples; fp32 also under autocast.  Pairs of different groups take no part in
    either distribution.  Every sample's caption counts, also where several have the same.  Memory is some B x N matrices.
    Every rank must take part.

    Args:
        student: with gradient.
        teacher: without.
        pairs: of the samples of all ranks, (N,) each; the number of a text is its place before dealing.
        num_texts: T.

    Returns:
        () this rank's share; the mean over the ranks is the loss of the contrastive batch.
    """
    count = len(student.images)
    own = pairs[slice(rank() * count, (rank() + 1) * count)]
    counted = counted_pairs(own, pairs)
    with torch.autocast(student.images.device.type, enabled=False):
        wanted = _logits(teacher, own, pairs, num_texts)
        found = _logits(student, own, pairs, num_texts)
        over_captions, over_images = (_divergence(theirs, ours, counted) for theirs, ours in zip(wanted, found, strict=True))
        return over_captions + over_images


def _logits(features: Features, own: PairIds, pairs: PairIds, num_texts: int) -> tuple[Tensor, Tensor]:
    """(B, N) of this rank's images with the captions of all samples, and (B, N) of its captions with the images of all."""
    texts = gather_dealt(features.texts, num_texts).float()  # (T, D)
    images = gather_rows(features.images).float()  # (N, D)
    # texts repeat; unlike plain indexing, the backward pass of an embedding sums in a fixed order on every device
    over_captions = features.images.float() @ F.embedding(pairs.text, texts).T
    over_images = F.embedding(own.text, texts) @ images.T
    return features.logit_scale * over_captions, features.logit_scale * over_images


def _divergence(teacher: Tensor, student: Tensor, counted: Tensor | None) -> Tensor:
    """() mean over rows of KL(teacher || student), both (B, N) logits."""
    if counted is not None:
        teacher, student = (logits.masked_fill(~counted, float("-inf")) for logits in (teacher, student))
    of_student = student.log_softmax(dim=1)
    if counted is not None:
        of_student = of_student.masked_fill(~counted, 0)  # times the teacher's 0, which minus infinity would make NaN
    return F.kl_div(of_student, teacher.softmax(dim=1), reduction="batchmean")
