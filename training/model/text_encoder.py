"""CLIP text transformer: causal, pooled at the end-of-text token.

Feed it texts cut to the longest of the batch, never padded to the whole context: attention is causal, so what follows the
end-of-text token changes nothing.  Shapes: T texts, L tokens, W width, D embedding.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class TextEncoderConfig:
    width: int
    heads: int
    layers: int
    embed_dim: int
    """D."""
    context_length: int = 77
    vocab_size: int = 49408
    """Of the CLIP BPE; the last id is the end of text."""


class TextEncoder(nn.Module):
    """Token ids -> unit vectors."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.positional_embedding = nn.Parameter(torch.empty(config.context_length, config.width))
        self.blocks = Transformer(config.width, config.heads, config.layers, causal=True)
        self.final_norm = nn.LayerNorm(config.width)
        self.projection = nn.Linear(config.width, config.embed_dim, bias=False)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.projection.weight, std=config.width**-0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        """(T, L) int64, zero-padded after the end-of-text token -> (T, D) unit vectors."""
        length = tokens.shape[1]
        x = self.token_embedding(tokens) + self.positional_embedding[:length]  # (T, L, W)
        x = self.blocks(x)
        end_of_text = (tokens == self.config.vocab_size - 1).int().argmax(dim=1)
        pooled = x[torch.arange(len(x), device=x.device), end_of_text]
        return F.normalize(self.projection(self.final_norm(pooled)).float(), dim=-1)


class TransformerBlock(nn.Module):
    """Pre-norm attention and MLP, as in CLIP."""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}")
        self.heads = heads
        self.causal = causal
        self.attention_norm = nn.LayerNorm(width)
        self.attention_in = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, 4 * width)
        self.mlp_out = nn.Linear(4 * width, width)

    def reset_parameters(self, *, num_layers: int) -> None:
        """CLIP's initialization, scaled by depth."""
        width = self.attention_out.in_features
        residual_std = width**-0.5 * (2 * num_layers) ** -0.5
        for linear, std in (
            (self.attention_in, width**-0.5),
            (self.attention_out, residual_std),
            (self.mlp_in, (2 * width) ** -0.5),
            (self.mlp_out, residual_std),
        ):
            nn.init.normal_(linear.weight, std=std)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Args: x (N, L, W); key_mask (N, L) bool, True where attention may look; None for everywhere."""
        x = x + self.attention_out(self._attend(self.attention_norm(x), key_mask))
        return x + self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(x))))

    def _attend(self, x: Tensor, key_mask: Tensor | None) -> Tensor:
        n, length, width = x.shape
        q, k, v = self.attention_in(x).view(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # each (N, heads, L, W/heads)
        mask = None if key_mask is None else key_mask[:, None, None, :]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=self.causal)
        return y.transpose(1, 2).reshape(n, length, width)


class Transformer(nn.ModuleList):
    """A stack of blocks with CLIP's initialization."""

    def __init__(self, width: int, heads: int, layers: int, *, causal: bool) -> None:
        blocks = [TransformerBlock(width, heads, causal=causal) for _ in range(layers)]
        for block in blocks:
            block.reset_parameters(num_layers=layers)
        super().__init__(blocks)
        self.recompute: bool = False
        """Keep only the input of each block for the backward pass and compute the rest again."""

    def forward(self, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Args as those of a block."""
        for block in self:
            x = checkpoint(block, x, key_mask, use_reentrant=False) if self.recompute and self.training else block(x, key_mask)
        return x
