"""SGD without torch.compile, whose import at the first optimizer step costs each process more than a second."""

from __future__ import annotations

import inspect

import torch
from torch.optim import SGD


class EagerSGD(SGD):
    """Computes the same bits as `torch.optim.SGD`, but cannot be part of a compiled function. A compiled model can.

    Torch wraps these methods, so that a compiled function skips them. The wrappers import the compiler when they are
    called. A version of torch that wraps them in another way keeps its wrappers.
    """

    add_param_group = inspect.unwrap(SGD.add_param_group)
    zero_grad = inspect.unwrap(SGD.zero_grad)
    state_dict = inspect.unwrap(SGD.state_dict)
    load_state_dict = inspect.unwrap(SGD.load_state_dict)
    # One of the wrappers also turns gradients off.
    step = torch.no_grad()(inspect.unwrap(SGD.step))
