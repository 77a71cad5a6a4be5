"""Seeds that depend only on their purpose, never on time or place."""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, purpose: str, *keys: int) -> int:
    """Returns a seed in [0, 2**63) that depends only on the arguments.

    Args:
        seed: The run's seed.
        purpose: Purpose of the random numbers, e.g. "order". Two purposes never share a stream.
        keys: Chain, cycle, epoch or rank, which distinguish the streams of one purpose.
    """
    text = "/".join([str(seed), purpose, *map(str, keys)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
