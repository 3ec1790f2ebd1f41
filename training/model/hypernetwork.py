"""Set hypernetwork: the text features of a set of class names -> deltas of the image encoder's generated parameters.

    (C, D) -> linear -> transformer without positions -> bottleneck -> masked mean over the set = code -> linear -> (P,)

after HyperCLIP (arXiv 2412.16777), with two changes: it generates *deltas* to learned base values, and its last layer starts at
zero, so that at step 0 the model is its SigLIP twin.  No part of it knows an order, so the order of the names changes nothing
beyond rounding.

Two options, alone or together.  A *basis*: a softmax over K ways says what the delta is a mixture of: no delta at all (way 0),
or one of K - 1 learned deltas, which have a part in common so that each has to learn only what is its own.  A set that is like
none of those that the learned deltas are for then has the neutral parameters, and nothing to lose.  *Zero mean*: a running mean
of the code over the label sets of training is taken from it before the last layer, which has no bias.  As that layer is linear,
so is the mean taken from the delta; and unlike a mean taken from the delta itself, it leaves the last layer no gradient along a
constant delta, which the base parameters should learn and the neutral ones with them.
And a control: *tokens* of its own that it reads instead of the names.  Then the delta is the same for every set, and what a
model gains by it is capacity, not specialization.
Shapes: G groups, C names in a set (padded), D embedding, K values of a code, P generated values.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.bounds import MAX_SET_SIZE
from training.model.text_encoder import Transformer

MEAN_SHARE = 0.05
"""Of a batch's sets in the running mean of the codes."""


@dataclass(frozen=True)
class HypernetworkConfig:
    width: int
    heads: int
    layers: int
    bottleneck: int
    """Values per name that survive into the mean: what a set can say about itself."""
    basis: int | None = None
    """K, the ways to be specialized that a set mixes, way 0 being not at all, so that a task is so many numbers; None: the
    delta is a linear map of the mean."""
    zero_mean: bool = False
    """Whether deltas have zero mean over the label sets of training, so that the neutral parameters are the average."""
    tokens: int | None = None
    """Number of learned tokens that stand in for the names, whatever these are: the prompt-independent control, which generates
    as many values from as large a hypernetwork."""

    def __post_init__(self) -> None:
        """Raises ValueError when the basis is too small to mix, or nothing would be left of a delta that is always the same."""
        if self.tokens is not None and (self.tokens < 1 or self.zero_mean):
            raise ValueError(
                f"tokens={self.tokens}, zero_mean={self.zero_mean}: there must be at least one token, and not zero_mean, "
                "as a delta that is the same for all sets is its own mean"
            )
        if self.basis is not None and self.basis < 2:
            raise ValueError(f"basis={self.basis}: there must be at least two deltas to mix")


class Hypernetwork(nn.Module):
    """Sets of text features -> flat parameter deltas."""

    code_mean: Tensor
    """(K,), with `zero_mean` only."""

    def __init__(self, config: HypernetworkConfig, *, embed_dim: int, num_values: int) -> None:
        super().__init__()
        self.config = config
        self.embed_dim = embed_dim
        self.input = nn.Linear(embed_dim, config.width)
        self.blocks = Transformer(config.width, config.heads, config.layers, causal=False)
        self.final_norm = nn.LayerNorm(config.width)
        self.bottleneck = nn.Linear(config.width, config.bottleneck)
        code_size = config.basis or config.bottleneck
        self.mix = nn.Linear(config.bottleneck, config.basis) if config.basis else None
        if self.mix is not None:
            nn.init.normal_(self.mix.weight, std=2 * config.bottleneck**-0.5)  # or all K would begin with the same gradient
        self.output = nn.Linear(code_size, num_values, bias=not (config.basis or config.zero_mean))
        nn.init.zeros_(self.output.weight)
        if self.output.bias is not None:
            nn.init.zeros_(self.output.bias)
        if config.zero_mean:
            self.register_buffer("code_mean", torch.zeros(code_size))
        # last, so that the same seed gives the hypernetwork that reads names the same weights
        self.tokens = nn.Parameter(embed_dim**-0.5 * torch.randn(config.tokens, embed_dim)) if config.tokens else None

    def forward(self, text_features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Generate one delta per set: (G, C, D) -> (G, P).  Arguments and errors as those of `code`."""
        return self.decode(self.code(text_features, mask))

    def code(self, text_features: Tensor, mask: Tensor | None = None) -> Tensor:
        """What each set says of itself, all that its delta is made of.

        Args:
            text_features: (G, C, D) unit vectors, one per unique name.
            mask: (G, C) bool, True at names, False at padding; None when no set is padded.

        Returns:
            (G, K).

        Raises:
            ValueError: a set has more names than `MAX_SET_SIZE`, or none.
        """
        num_names = text_features.shape[1]
        if not 1 <= num_names <= MAX_SET_SIZE:
            raise ValueError(f"a conditioning set holds {num_names:,} names; 1 to {MAX_SET_SIZE:,} are allowed")
        if self.tokens is not None:
            return self._code(self.tokens[None], None).expand(len(text_features), -1)
        return self._code(text_features, mask)

    def _code(self, text_features: Tensor, mask: Tensor | None) -> Tensor:
        # unit vectors have entries of size D^-1/2: scale them to size 1, so that the first layer sees ordinary inputs
        x = self.input(text_features * self.embed_dim**0.5)
        x = self.blocks(x, mask)
        x = self.bottleneck(self.final_norm(x))  # (G, C, bottleneck)
        if mask is None:
            pooled = x.mean(dim=1)
        else:
            weight = mask.to(x.dtype)[:, :, None]
            pooled = (x * weight).sum(dim=1) / weight.sum(dim=1)
        if self.mix is None:
            return pooled
        share = self.mix(pooled).softmax(dim=-1)
        return torch.cat([1 - share[:, :1], share[:, 1:]], dim=1)  # of the part in common, and of each learned delta

    def decode(self, code: Tensor) -> Tensor:
        """(G, K) -> (G, P)."""
        if self.config.zero_mean:
            code = code - self.code_mean
        delta: Tensor = self.output(code)
        return delta

    @torch.no_grad()
    def follow(self, code: Tensor) -> None:
        """Move the running mean towards that of these sets, (G, K), the same on every rank; nothing without `zero_mean`."""
        if self.config.zero_mean and len(code):
            self.code_mean.lerp_(code.float().mean(dim=0), MEAN_SHARE)

    @torch.no_grad()
    def weaken(self, share: float) -> None:
        """Keep this share of every delta."""
        for parameter in self.output.parameters():
            parameter.mul_(share)
