"""A causal transformer for sequences of tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention


class Block(nn.Module):
    """Causal self-attention and two linear layers, each after a LayerNorm and with a residual connection."""

    def __init__(self, width: int, heads: int) -> None:
        """Creates a block.

        Args:
            width: Features of a token.
            heads: Heads of the attention; they divide the width.
        """
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns features (n, t, width) of tokens (n, t, width)."""
        shape = (*tokens.shape[:2], 3, self.heads, -1)
        query, key, value = self.qkv(self.norm1(tokens)).view(shape).permute(2, 0, 3, 1, 4)
        attended = scaled_dot_product_attention(query, key, value, is_causal=True)
        tokens = tokens + self.out(attended.transpose(1, 2).reshape(tokens.shape))
        hidden: Tensor = self.down(gelu(self.up(self.norm2(tokens))))
        return tokens + hidden


class Transformer(nn.Module):
    """Embeddings of tokens and positions, blocks, and a linear layer to the logits of the next token."""

    def __init__(self, length: int, num_tokens: int, width: int, depth: int, heads: int) -> None:
        """Creates the network; see `transformer`."""
        super().__init__()
        self.embedding = nn.Embedding(num_tokens, width)
        self.position = nn.Parameter(0.02 * torch.randn(1, length, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, num_tokens)

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns logits (n, t, num_tokens) of tokens (n, t)."""
        features = self.embedding(tokens) + self.position[:, : tokens.shape[1]]
        logits: Tensor = self.head(self.norm(self.blocks(features)))
        return logits


def transformer(
    sample_shape: Sequence[int], num_classes: int, width: int = 64, depth: int = 2, heads: int = 4
) -> nn.Module:
    """Returns a causal transformer with logits (batch, t, num_classes) for tokens (batch, t).

    Args:
        sample_shape: Shape of one input, (t,).
        num_classes: Number of tokens.
        width: Features of a token.
        depth: Number of blocks.
        heads: Heads of the attention; they divide the width.

    Raises:
        ValueError: If inputs are not sequences, or the heads do not divide the width.

    Source: Radford et al. 2019 (GPT-2), sizes aside, with weights as torch draws them.
    """
    if len(sample_shape) != 1:
        raise ValueError(
            f"the inputs of transformer must be sequences of tokens (t,); got shape {tuple(sample_shape)}."
        )
    if min(width, depth, heads) < 1 or width % heads:
        raise ValueError(
            f"model.options must hold a depth of at least 1 and a width that heads divide; got {depth}, {width} and "
            f"{heads} heads."
        )
    return Transformer(sample_shape[0], num_classes, width, depth, heads)
