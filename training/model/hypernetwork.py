"""Set hypernetwork: the text features of a set of class names -> deltas of the image encoder's generated parameters.

    (C, D) -> linear -> transformer without positions -> bottleneck -> masked mean over the set -> linear -> (P,)

after HyperCLIP (arXiv 2412.16777), with two changes: it generates *deltas* to learned base values, and its last layer starts at
zero, so that at step 0 the model is its SigLIP twin.  No part of it knows an order, so the order of the names changes nothing
beyond rounding.  Shapes: G groups, C names in a set (padded), D embedding, P generated values.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from training.model.text_encoder import Transformer

MAX_SET_SIZE = 10_000


@dataclass(frozen=True)
class HypernetworkConfig:
    width: int
    heads: int
    layers: int
    bottleneck: int
    """Values per name that survive into the mean: what a set can say about itself."""


class Hypernetwork(nn.Module):
    """Sets of text features -> flat parameter deltas."""

    def __init__(self, config: HypernetworkConfig, *, embed_dim: int, num_values: int) -> None:
        super().__init__()
        self.config = config
        self.embed_dim = embed_dim
        self.input = nn.Linear(embed_dim, config.width)
        self.blocks = Transformer(config.width, config.heads, config.layers, causal=False)
        self.final_norm = nn.LayerNorm(config.width)
        self.bottleneck = nn.Linear(config.width, config.bottleneck)
        self.output = nn.Linear(config.bottleneck, num_values)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, text_features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Generate one delta per set.

        Args:
            text_features: (G, C, D) unit vectors, one per unique name.
            mask: (G, C) bool, True at names, False at padding; None when no set is padded.

        Returns:
            (G, P).

        Raises:
            ValueError: a set has more names than `MAX_SET_SIZE`, or none.
        """
        num_names = text_features.shape[1]
        if not 1 <= num_names <= MAX_SET_SIZE:
            raise ValueError(f"a conditioning set holds {num_names:,} names; 1 to {MAX_SET_SIZE:,} are allowed")
        # unit vectors have entries of size D^-1/2: scale them to size 1, so that the first layer sees ordinary inputs
        x = self.input(text_features * self.embed_dim**0.5)
        x = self.blocks(x, mask)
        x = self.bottleneck(self.final_norm(x))  # (G, C, bottleneck)
        if mask is None:
            pooled = x.mean(dim=1)
        else:
            weight = mask.to(x.dtype)[:, :, None]
            pooled = (x * weight).sum(dim=1) / weight.sum(dim=1)
        return self.output(pooled)
