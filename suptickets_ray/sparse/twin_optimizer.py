"""A second optimizer with the class and the settings of a first one, for other parameters."""

from __future__ import annotations

from collections import OrderedDict, defaultdict

from torch.optim import Optimizer


def twin_of(optimizer: Optimizer) -> Optimizer:
    """Returns an optimizer without parameter groups, state and hooks; the first one does not change."""
    twin: Optimizer = object.__new__(type(optimizer))
    twin.__dict__.update(optimizer.__dict__)
    twin.__dict__.pop("step", None)  # a learning-rate scheduler's wrapper, bound to the first one
    twin._optimizer_step_pre_hooks, twin._optimizer_step_post_hooks = OrderedDict(), OrderedDict()
    twin.param_groups, twin.state = [], defaultdict(dict)
    return twin
