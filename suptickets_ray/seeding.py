"""Seeds that depend on what they are for, never on when or where they are drawn."""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, purpose: str, *keys: int) -> int:
    """Returns a seed in [0, 2**63) that is a function of its arguments alone.

    Args:
        seed: The run's seed.
        purpose: What the randomness is for, e.g. "order"; two purposes never share a stream.
        keys: Chain, cycle, epoch or rank, whatever tells two streams of one purpose apart.
    """
    text = "/".join([str(seed), purpose, *map(str, keys)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
