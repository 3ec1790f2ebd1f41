"""The parity certificate: one number that is off refuses a package, a tie does not."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from infra.errors import ParityError
from tests.unit.model_helpers import random_images
from training.parity import BOUND, Outputs, ParityCertificate, certify

TEXTS = torch.eye(3)


def outputs(images: Tensor) -> Outputs:
    """Three labels; the features of an input are its first three numbers."""
    features = torch.nn.functional.normalize(images.flatten(1)[:, :3], dim=1)
    logits = 10 * features @ TEXTS.T
    return Outputs(logits.softmax(dim=1).numpy(), logits.sigmoid().numpy(), features.numpy())


def certificate_of(path: Callable[[Tensor], Outputs], images: Tensor) -> ParityCertificate:
    return certify(
        images, functional=outputs, folded=outputs, onnx=path, text_features=TEXTS, num_pictures=0,
        model_sha256="", bundle_digest="", versions={},
    )  # fmt: skip


@pytest.mark.parametrize("name", Outputs._fields)
@pytest.mark.parametrize("wrong", [2 * BOUND, float("nan")])
def test_one_wrong_number_is_enough(name: str, wrong: float) -> None:
    def spoilt(images: Tensor) -> Outputs:
        right = outputs(images)
        values = getattr(right, name).copy()
        values[-1, 0] += wrong
        return right._replace(**{name: values})

    with pytest.raises(ParityError, match=f"{name} (nan|0.0002)"):
        certificate_of(spoilt, random_images(8, 2))


def test_a_tie_is_counted_and_tolerated() -> None:
    images = random_images(8, 2)
    images[3].view(-1)[:3] = torch.tensor([1.0, 1.0, 0.0])  # two labels share the first place
    images[3].view(-1)[3] = 7

    def other_winner(batch: Tensor) -> Outputs:
        right = outputs(batch)
        scores = right.scores.copy()
        scores[(batch.flatten(1)[:, 3] == 7).numpy(), 1] += BOUND / 10
        return right._replace(scores=scores)

    certificate = certificate_of(other_winner, images)
    assert certificate.top1_ties == 1 and certificate.top1_agreement == 7 / 8
