"""Keeping weights and optimizer state masked at every `optimizer.step()`, at less than the price of a dense step.

Off the mask weight, gradient and state are all 0, so an optimizer that works element by element changes nothing there.
A large, sparse layer is therefore stepped on its active values alone: they are gathered, stepped by the optimizer's own
arithmetic, and written back; its state stays gathered in between, (active,) instead of the weight's shape. Other layers
are stepped with a masked copy of their gradient, which is the same arithmetic.
"""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import SGD, Adadelta, Adagrad, Adam, AdamW, NAdam, Optimizer, RAdam, RMSprop

from suptickets_ray.sparse.layer_mask import LayerMask, keep_only_

ELEMENTWISE = frozenset({SGD, Adam, AdamW, NAdam, RAdam, RMSprop, Adagrad, Adadelta})
"""Optimizers that leave a weight at 0 whose gradient and state are 0; after any other, weight and state are masked."""


class MaskedStep:
    """Hooks into an optimizer: what is off the mask stays 0 through its steps."""

    def __init__(
        self, optimizer: Optimizer, parameters: Mapping[str, Parameter], before: Callable[[], None] = lambda: None
    ) -> None:
        """Attaches to the optimizer, with all connections active.

        Args:
            optimizer: Holds the parameters; may hold others.
            parameters: The masked weights by name.
            before: Called when the gradients of a step are complete, and not yet masked.
        """
        self.connections: dict[str, LayerMask] = {}
        self.num_steps = 0
        """Steps that the optimizer took; one that a GradScaler skips does not count."""
        self.optimizer = optimizer
        self._parameters = dict(parameters)
        self._before = before
        # With an epsilon of 0 an adaptive optimizer divides 0 by 0 off the masks.
        self._elementwise = type(optimizer) in ELEMENTWISE and not any(
            float(torch.tensor(group.get("eps", 1.0), dtype=parameter.dtype)) == 0
            for group in optimizer.param_groups
            for parameter in group["params"]
        )
        self._masked: dict[str, tuple[int, int]] = {}
        self._withheld: list[tuple[Parameter, Tensor]] = []
        self._has_foreign_state = False
        self._rewritten: set[str] = set()
        """Layers that this step has written whole."""
        self._register()

    def _register(self) -> None:
        self._hooks = [
            self.optimizer.register_step_pre_hook(self._before_step),
            self.optimizer.register_step_post_hook(self._after_step),
            self.optimizer.register_state_dict_post_hook(self._with_dense_state),
            self.optimizer.register_load_state_dict_post_hook(self._state_was_loaded),
        ]

    def __deepcopy__(self, memo: dict[int, Any]) -> MaskedStep:
        """Returns a copy that is attached to the copy of the optimizer: torch copies an optimizer without its hooks."""
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        attributes = {name: value for name, value in vars(self).items() if name not in ("_hooks", "_masked")}
        vars(copied).update({name: copy.deepcopy(value, memo) for name, value in attributes.items()})
        copied._masked = {}  # identities of the original's gradients
        copied._register()
        return copied

    @torch.no_grad()
    def set_masks(self, masks: Mapping[str, Tensor], *, exchanging: bool) -> None:
        """Makes the masks current, and everything off them 0.

        Args:
            masks: Bool masks by name, on the weights' devices.
            exchanging: Whether connections are exchanged: what was and stays active keeps weight and state, and what is
                new starts at 0. If not, the weights and states are taken to be those of the new masks.
        """
        for name, parameter in self._parameters.items():
            old, new = self.connections.get(name), LayerMask(masks[name])
            if exchanging and old is not None:
                self._exchange(parameter, old, new, masks[name])
            else:
                self._spread_state(name)
                for tensor in (parameter, *self._state_tensors(parameter)):
                    new.fill_(tensor)
            self.connections[name] = new

    def _exchange(self, parameter: Parameter, old: LayerMask, new: LayerMask, new_mask: Tensor) -> None:
        """Zeroes weight and state but for what was and stays active."""
        old_mask = old.mask()
        if old.positions is None:
            gone = ~(old_mask & new_mask)
            for tensor in (parameter, *self._state_tensors(parameter)):
                tensor.masked_fill_(gone, 0)
            return
        stays = new_mask.reshape(-1)[old.positions]
        state = self.optimizer.state.get(parameter, {})
        for key, value in state.items():
            if not isinstance(value, Tensor) or value.shape != (old.count,):
                continue
            if new.positions is None:
                state[key] = self._spread(value, parameter, old)
                continue
            # Gathered state is carried over; positions ascend in both, so what stays comes in the same order.
            carried = value.new_zeros(new.count)
            carried[old_mask.view(-1)[new.positions]] = value[stays]
            state[key] = carried
        staying = old.positions[stays]
        for tensor in (parameter, *self._state_tensors(parameter)):
            keep_only_(tensor, staying)

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Zeroes the gradients off the masks."""
        for name, parameter in self._parameters.items():
            if parameter.grad is not None:
                self.connections[name].fill_(parameter.grad)
                if self.connections[name].count < parameter.numel():
                    self._masked[name] = (id(parameter.grad), parameter.grad._version)

    def has_masked_gradients(self) -> bool:
        """Whether all gradients are still as `mask_gradients` left them, so that nothing is known off the masks."""
        noted = [
            self._masked[name] == (id(parameter.grad), parameter.grad._version)
            for name, parameter in self._parameters.items()
            if parameter.grad is not None and name in self._masked
        ]
        return bool(noted) and all(noted)

    def detach(self) -> None:
        """Removes the hooks; the optimizer's state has the weights' shapes again."""
        for name in self._parameters:
            self._spread_state(name)
        for hook in self._hooks:
            hook.remove()

    def _state_was_loaded(self, optimizer: Optimizer) -> None:
        # Masked at the next step: the masks that belong to it may be loaded after it.
        self._has_foreign_state = True

    def _before_step(self, optimizer: Optimizer, arguments: Any, options: Any) -> Any:
        if self._has_foreign_state:
            with torch.no_grad():
                for name, parameter in self._parameters.items():
                    for tensor in self._state_tensors(parameter):
                        self.connections[name].fill_(tensor)
            self._has_foreign_state = False
        self._withheld.clear()  # of a step that broke off
        self._rewritten.clear()
        # `arguments` begins with the optimizer itself.
        closure = arguments[1] if len(arguments) > 1 else options.get("closure")
        if closure is not None:
            seen = False

            def masked_closure() -> Any:
                nonlocal seen
                loss = closure()
                if not seen:
                    self._before()
                seen = True
                self.mask_gradients()
                return loss

            for name in self._parameters:
                self._spread_state(name)
            return (arguments[0], masked_closure), {key: value for key, value in options.items() if key != "closure"}
        if self._is_skipped():
            return None
        self._before()
        with torch.no_grad():
            if self._elementwise:
                self._step_gathered()
            for name, parameter in self._parameters.items():
                connections = self.connections[name]
                if parameter.grad is not None and connections.count < parameter.numel():
                    # A masked copy for the step: the gradient stays dense, for whoever reads it after.
                    self._withheld.append((parameter, parameter.grad))
                    parameter.grad = connections.masked(parameter.grad)
        return None

    def _after_step(self, *_: object) -> None:
        for parameter, gradient in self._withheld:
            parameter.grad = gradient
        self._withheld.clear()
        if self._is_skipped():
            return
        self.num_steps += 1
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                # Also after an elementwise step: weights may have been written from outside, e.g. by load_state_dict.
                # Version counters do not see writes through .data or NumPy.
                if name not in self._rewritten:
                    self.connections[name].fill_(parameter)
                for tensor in () if self._elementwise else self._state_tensors(parameter):
                    self.connections[name].fill_(tensor)
        self._rewritten.clear()

    def _is_skipped(self) -> bool:
        """Whether a GradScaler has a fused optimizer skip this step, which it does inside of it."""
        found_inf = getattr(self.optimizer, "found_inf", None)
        return found_inf is not None and bool(found_inf.item())

    def _step_gathered(self) -> None:
        """Steps the gathered layers by the optimizer's own arithmetic, and withholds their gradients from it.

        A second optimizer of the same class and settings does it. The first one is never changed, so that an error
        inside of its step leaves it as it was.
        """
        names = {id(parameter): name for name, parameter in self._parameters.items()}
        twin: Optimizer = object.__new__(type(self.optimizer))
        twin.__dict__.update(self.optimizer.__dict__)
        twin.__dict__.pop("step", None)  # a learning-rate scheduler's wrapper, bound to the first one
        twin._optimizer_step_pre_hooks, twin._optimizer_step_post_hooks = OrderedDict(), OrderedDict()
        twin.param_groups, twin.state = [], defaultdict(dict)
        stepped: list[tuple[Parameter, Tensor, LayerMask]] = []
        for group in self.optimizer.param_groups:
            gathered = []
            for parameter in group["params"]:
                connections = self.connections.get(names.get(id(parameter), ""))
                if connections is None or connections.positions is None or parameter.grad is None:
                    continue
                values = connections.gather(parameter)
                values.requires_grad_().grad = connections.gather(parameter.grad)
                twin.state[values] = self._gathered_state(parameter, connections)
                stepped.append((parameter, values, connections))
                gathered.append(values)
            twin.param_groups.append({**group, "params": gathered})
        if not stepped:
            return
        twin.step()
        for parameter, values, connections in stepped:
            parameter.zero_()
            connections.scatter_(parameter, values.detach())
            self._rewritten.add(names[id(parameter)])
            if twin.state[values]:
                self.optimizer.state[parameter] = twin.state[values]
            assert parameter.grad is not None
            self._withheld.append((parameter, parameter.grad))
            parameter.grad = None

    def _gathered_state(self, parameter: Parameter, connections: LayerMask) -> dict[str, Any]:
        return {
            key: connections.gather(value) if isinstance(value, Tensor) and value.shape == parameter.shape else value
            for key, value in self.optimizer.state.get(parameter, {}).items()
        }

    def _spread_state(self, name: str) -> None:
        """Gives the state of a gathered layer the weight's shape again."""
        parameter, connections = self._parameters[name], self.connections.get(name)
        if connections is None or connections.positions is None or parameter not in self.optimizer.state:
            return
        state = self.optimizer.state[parameter]
        for key, value in state.items():
            state[key] = self._spread(value, parameter, connections)

    def _spread(self, value: Any, parameter: Parameter, connections: LayerMask) -> Any:
        if not isinstance(value, Tensor) or value.shape != (connections.count,) or connections.positions is None:
            return value
        # Laid out as the weight: fused optimizers walk through both side by side.
        dense = torch.zeros_like(parameter, dtype=value.dtype, requires_grad=False)
        connections.scatter_(dense, value)
        return dense

    def _with_dense_state(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        """What is saved has the weights' shapes, as without masks: any optimizer of this class reads it."""
        names = {id(parameter): name for name, parameter in self._parameters.items()}
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        state = dict(state_dict["state"])
        for index, parameter in enumerate(parameters):
            if index in state and id(parameter) in names:
                connections = self.connections[names[id(parameter)]]
                state[index] = {key: self._spread(value, parameter, connections) for key, value in state[index].items()}
        return {**state_dict, "state": state}

    def _state_tensors(self, parameter: Parameter) -> Iterator[Tensor]:
        """Every optimizer state tensor of the weight's shape."""
        for value in self.optimizer.state.get(parameter, {}).values():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                yield value
