"""Pooling that each name chooses: a rival after Llip (Lavoie et al., 2024, arXiv 2405.00740) on the product's own trunk.

The places of the trunk's last map, and their mean, are tokens.  Every name queries them by cross-attention; the mixture it gets
is mapped to the embedding, added to the neutral feature and made a unit vector, which is compared with that name and no other:

    feature(picture, name) = normalize(neutral + output(attention(query(name), key(tokens), value(tokens))))

The last map starts at zero, so at the start it is the encoder that it is built on.
Shapes: B pictures, S side, T texts, K tokens (h w + 1), F channels of the map, A attention width, D embedding.
"""

import copy
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.benchmarks._on_device import num_parameters
from tests.benchmarks._rival_training import Rival
from training.fold import fold_image_encoder
from training.model.hyperclip import HyperClip

WIDTH, HEADS = 64, 4
TEXTS_TIMES_PICTURES = 1 << 17
"""Pairs at once: of a batch of 256 all, of a large task a part."""


class Pooling(nn.Module):
    """What is run for each picture and name."""

    def __init__(self, *, channels: int, num_tokens: int, embed_dim: int) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.empty(num_tokens, channels).normal_(std=0.02))
        self.norm = nn.LayerNorm(channels)
        self.key = nn.Linear(channels, WIDTH)
        self.value = nn.Linear(channels, WIDTH)
        self.output = nn.Linear(WIDTH, embed_dim)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, neutral: Tensor, tokens: Tensor, queries: Tensor) -> Tensor:
        """(B, D) unit vectors, (B, K, F), (T, A) -> (B, T, D) unit vectors."""
        tokens = self.norm(tokens + self.positional_embedding)
        query = _heads(queries[None]).expand(len(tokens), -1, -1, -1)  # (B, heads, T, A / heads)
        mixture = F.scaled_dot_product_attention(query, _heads(self.key(tokens)), _heads(self.value(tokens)))
        return F.normalize(neutral[:, None] + self.output(mixture.transpose(1, 2).flatten(2)), dim=-1)


class TextPooling(Rival):
    """The pooling on the image encoder of a model, with its text encoder."""

    def __init__(self, model: HyperClip) -> None:
        super().__init__(model)
        image = model.config.image
        trunk = model.image_encoder.trunk
        training = trunk.training
        with torch.no_grad():  # in eval mode: this pass must not count in the statistics
            _, channels, height, width = (
                trunk.eval().forward_features(torch.zeros(1, 3, image.image_size, image.image_size)).shape
            )
        trunk.train(training)
        self.query = nn.Linear(image.embed_dim, WIDTH)
        self.pooling = Pooling(channels=channels, num_tokens=height * width + 1, embed_dim=image.embed_dim)

    def see(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, S, S) -> neutral features (B, D), unit vectors, and tokens (B, K, F)."""
        return neutral_and_tokens(self.model.image_encoder, images)

    def cosines(self, seen: tuple[Tensor, ...], texts: Tensor) -> Tensor:
        """Neutral features (B, D) and tokens (B, K, F), texts (T, D) -> (B, T)."""
        queries = self.query(texts)
        at_once = max(1, TEXTS_TIMES_PICTURES // len(texts))
        parts = zip(*(rows.split(at_once) for rows in seen), strict=True)
        return torch.cat([torch.einsum("btd,td->bt", self.pooling(*part, queries), texts) for part in parts])


def neutral_and_tokens(encoder: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """(B, 3, S, S) -> (B, D) as the encoder gives them, and (B, K, F).

    Args:
        encoder: an `ImageEncoder` or a folded one, with a trunk whose last map has places.
    """
    features = encoder.trunk.forward_features(images.contiguous(memory_format=torch.channels_last))  # (B, F, h, w)
    pooled = encoder.trunk.forward_head(features)  # (B, F)
    neutral = F.normalize(encoder.projection(pooled).float(), dim=-1)
    return neutral, torch.cat([features.flatten(2).transpose(1, 2), pooled[:, None]], dim=1)


def _heads(rows: Tensor) -> Tensor:
    """(B, N, A) -> (B, heads, N, A / heads)."""
    return rows.unflatten(-1, (HEADS, -1)).transpose(1, 2)


class PoolingClassifier(nn.Module):
    """What a device would have to run for a list of names: the folded encoder, and the pooling for each name."""

    queries: Tensor
    texts: Tensor

    def __init__(self, rival: TextPooling, texts: Tensor) -> None:
        """Args: texts: (C, D) unit vectors of the names; their queries are made here, once."""
        super().__init__()
        encoder = rival.model.image_encoder
        self.encoder = fold_image_encoder(encoder, torch.zeros(encoder.layout.num_values))
        self.pooling = copy.deepcopy(rival.pooling).requires_grad_(False).eval()
        self.register_buffer("texts", texts)
        self.register_buffer("queries", rival.query(texts).detach())

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, C) cosines."""
        features = self.pooling(*neutral_and_tokens(self.encoder, images), self.queries)
        return torch.einsum("btd,td->bt", features, self.texts)

    @property
    def num_parameters(self) -> int:
        """Of the folded encoder and the pooling; queries and names belong to the task."""
        return num_parameters(self.encoder) + num_parameters(self.pooling)

    def to_onnx(self, path: Path, *, side: int) -> Path:
        """Write a file that takes `images`."""
        example = torch.zeros(2, 3, side, side)  # a batch of one would be taken for a constant
        program = torch.onnx.export(
            self.eval(), (example,), dynamo=True, input_names=["images"], dynamic_shapes={"images": {0: "N"}}, verbose=False
        )
        assert program is not None
        program.save(path)
        return path
