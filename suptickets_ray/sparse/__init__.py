"""Sparse training without Ray: tensors in, tensors out. `Sparsifier` attaches it to a model and an optimizer."""

from suptickets_ray.sparse.distributions import layer_densities
from suptickets_ray.sparse.schedules import cosine_fraction, cubic_density
from suptickets_ray.sparse.sparsifier import Sparsifier
from suptickets_ray.sparse.topology import drop_and_grow, prune_to_density

__all__ = [
    "Sparsifier",
    "cosine_fraction",
    "cubic_density",
    "drop_and_grow",
    "layer_densities",
    "prune_to_density",
]
