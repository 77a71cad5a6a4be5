"""Optimizers whose step changes nothing where weight, gradient and state are all 0."""

from __future__ import annotations

from torch.optim import SGD, Adadelta, Adagrad, Adam, AdamW, NAdam, RAdam, RMSprop

from suptickets_ray.sparse.eager_sgd import EagerSGD

ELEMENTWISE = frozenset({SGD, EagerSGD, Adam, AdamW, NAdam, RAdam, RMSprop, Adagrad, Adadelta})
"""After a step of another optimizer, weight and state are masked."""
