"""Keeps weights and optimizer state masked in every `optimizer.step()`, at less than the cost of a dense step.

Off the mask weight, gradient and state are all 0, so an elementwise optimizer changes nothing there. A large, sparse
layer is therefore stepped on its active values only: they are gathered, stepped by an optimizer of the same class, and
written back. Between steps its state stays gathered, (active,) instead of the weight's shape. Other layers are stepped
with a masked copy of their gradient, which gives the same result.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from suptickets_ray.sparse.elementwise import ELEMENTWISE
from suptickets_ray.sparse.gathered_state import gather_state, spread_state, spread_value, state_tensors
from suptickets_ray.sparse.layer_mask import LayerMask, keep_only_, version_of
from suptickets_ray.sparse.masks import num_true
from suptickets_ray.sparse.twin_optimizer import twin_of


class MaskedStep:
    """Hooks into an optimizer, so that weights and state off the mask stay 0 through its steps."""

    def __init__(
        self,
        optimizer: Optimizer,
        parameters: Mapping[str, Parameter],
        before: Callable[[], None] = lambda: None,
        computes_active: Callable[[str, int], bool] = lambda name, count: False,
    ) -> None:
        """Attaches to the optimizer, with all connections active.

        Args:
            optimizer: Holds the parameters; may hold others.
            parameters: The masked weights by name.
            before: Called when the gradients of a step are complete and not yet masked.
            computes_active: Called with a layer's name and its number of active weights: whether the layer computes
                with them alone.
        """
        self.layer_masks: dict[str, LayerMask] = {}
        self.num_steps = 0
        """Number of steps of the optimizer, without those that a GradScaler skipped."""
        self.optimizer = optimizer
        self._parameters = dict(parameters)
        self._before = before
        self._computes_active = computes_active
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
        """Layers that this step has written completely."""
        self._written: dict[str, tuple[int, int]] = {}
        """Version and address of each weight after the last step."""
        self._register()

    def _register(self) -> None:
        self._hooks = [
            self.optimizer.register_step_pre_hook(self._before_step),
            self.optimizer.register_step_post_hook(self._after_step),
            self.optimizer.register_state_dict_post_hook(self._with_dense_state),
            self.optimizer.register_load_state_dict_post_hook(self._state_was_loaded),
        ]
        # A copied or pickled optimizer has no hooks, so it cannot step gathered state.
        self.optimizer.__dict__["__getstate__"] = self._plain_optimizer

    def __deepcopy__(self, memo: dict[int, Any]) -> MaskedStep:
        """Returns a copy attached to the copy of the optimizer, because torch copies an optimizer without its hooks."""
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        attributes = {
            name: value for name, value in vars(self).items() if name not in ("_hooks", "_masked", "_written")
        }
        vars(copied).update({name: copy.deepcopy(value, memo) for name, value in attributes.items()})
        copied._masked, copied._written = {}, {}  # identities of the original's tensors
        copied._register()
        return copied

    @torch.no_grad()
    def set_masks(self, masks: Mapping[str, Tensor], *, exchanging: bool) -> None:
        """Sets the masks, and zeroes weights and state off them.

        Args:
            masks: Bool masks by name, on the weights' devices.
            exchanging: Whether connections are exchanged. Then connections that stay active keep weight and state, and
                new ones start at 0. Otherwise weights and state are assumed to belong to the new masks.
        """
        for name, parameter in self._parameters.items():
            computes_active = self._computes_active(name, num_true(masks[name]))
            old, new = self.layer_masks.get(name), LayerMask(masks[name], computes_active=computes_active)
            if exchanging and old is not None:
                self._exchange(parameter, old, new, masks[name])
            else:
                self._spread_state(name)
                for tensor in (parameter, *state_tensors(self.optimizer, parameter)):
                    new.fill_(tensor)
            self.layer_masks[name] = new

    def _exchange(self, parameter: Parameter, old: LayerMask, new: LayerMask, new_mask: Tensor) -> None:
        """Zeroes weight and state except where a connection stays active."""
        old_mask = old.mask()
        if old.positions is None:
            gone = ~(old_mask & new_mask)
            for tensor in (parameter, *state_tensors(self.optimizer, parameter)):
                tensor.masked_fill_(gone, 0)
            return
        stays = new_mask.reshape(-1)[old.positions]
        state = self.optimizer.state.get(parameter, {})
        for key, value in state.items():
            if not isinstance(value, Tensor) or value.shape != (old.count,):
                continue
            if new.positions is None:
                state[key] = spread_value(value, parameter, old)
                continue
            # Gathered state is carried over; positions ascend in both masks, so that the order is the same.
            carried = value.new_zeros(new.count)
            carried[old_mask.view(-1)[new.positions]] = value[stays]
            state[key] = carried
        staying = old.positions[stays]
        for tensor in (parameter, *state_tensors(self.optimizer, parameter)):
            keep_only_(tensor, staying)

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Zeroes the gradients off the masks."""
        for name, parameter in self._parameters.items():
            if parameter.grad is not None and not parameter.grad.is_sparse:
                self.layer_masks[name].fill_(parameter.grad)
                if self.layer_masks[name].count < parameter.numel():
                    self._masked[name] = (id(parameter.grad), parameter.grad._version)

    @torch.no_grad()
    def mask_foreign_writes(self) -> None:
        """Masks the weights that other code has written since the last step.

        Writes through `.data` in place or NumPy change neither version nor address; the next step masks them.
        """
        for name, parameter in self._parameters.items():
            if self._written.get(name) != version_of(parameter):
                self.layer_masks[name].fill_(parameter)
                self._written[name] = version_of(parameter)

    def has_masked_gradients(self) -> bool:
        """Whether no gradient has changed since `mask_gradients`, so that nothing is known off the masks."""
        unchanged = [
            self._masked[name] == (id(parameter.grad), parameter.grad._version)
            for name, parameter in self._parameters.items()
            if parameter.grad is not None and name in self._masked
        ]
        return bool(unchanged) and all(unchanged)

    def detach(self) -> None:
        """Removes the hooks; the optimizer's state has the weights' shapes again."""
        for name in self._parameters:
            self._spread_state(name)
        for hook in self._hooks:
            hook.remove()
        self.optimizer.__dict__.pop("__getstate__", None)

    def _state_was_loaded(self, optimizer: Optimizer) -> None:
        # Masked in the next step, because its masks may be loaded later.
        self._has_foreign_state = True

    def _before_step(self, optimizer: Optimizer, arguments: Any, options: Any) -> Any:
        if self._has_foreign_state:
            with torch.no_grad():
                for name, parameter in self._parameters.items():
                    for tensor in state_tensors(self.optimizer, parameter):
                        self.layer_masks[name].fill_(tensor)
            self._has_foreign_state = False
        self._withheld.clear()  # left by a step that raised an error
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
                self._densify_gradients()
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
            self._densify_gradients()
            for name, parameter in self._parameters.items():
                layer_mask = self.layer_masks[name]
                if parameter.grad is not None and layer_mask.count < parameter.numel():
                    # A masked copy for the step: the gradient stays dense for later readers.
                    self._withheld.append((parameter, parameter.grad))
                    parameter.grad = layer_mask.masked(parameter.grad)
        return None

    def _densify_gradients(self) -> None:
        """Replaces sparse gradients by dense ones, for steps that are not made on gathered values."""
        for parameter in self._parameters.values():
            if parameter.grad is not None and parameter.grad.is_sparse:
                parameter.grad = parameter.grad.to_dense()

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
                    self.layer_masks[name].fill_(parameter)
                for tensor in () if self._elementwise else state_tensors(self.optimizer, parameter):
                    self.layer_masks[name].fill_(tensor)
                self._written[name] = version_of(parameter)
        self._rewritten.clear()

    def _is_skipped(self) -> bool:
        """Whether a GradScaler makes a fused optimizer skip this step, which happens inside the step."""
        found_inf = getattr(self.optimizer, "found_inf", None)
        return found_inf is not None and bool(found_inf.item())

    def _step_gathered(self) -> None:
        """Steps the gathered layers with a second optimizer, and withholds their gradients from the first.

        The second optimizer has the same class and settings. The first is never changed, so that an error inside the
        step leaves it intact.
        """
        names = {id(parameter): name for name, parameter in self._parameters.items()}
        twin = twin_of(self.optimizer)
        stepped: list[tuple[Parameter, Tensor, LayerMask]] = []
        for group in self.optimizer.param_groups:
            gathered = []
            for parameter in group["params"]:
                layer_mask = self.layer_masks.get(names.get(id(parameter), ""))
                if layer_mask is None or layer_mask.positions is None or parameter.grad is None:
                    continue
                values = layer_mask.gather(parameter)
                values.requires_grad_().grad = layer_mask.gather_gradient(parameter.grad)
                twin.state[values] = gather_state(self.optimizer.state.get(parameter, {}), parameter, layer_mask)
                stepped.append((parameter, values, layer_mask))
                gathered.append(values)
            twin.param_groups.append({**group, "params": gathered})
        if not stepped:
            return
        twin.step()
        for parameter, values, layer_mask in stepped:
            parameter.zero_()
            layer_mask.scatter_(parameter, values.detach())
            self._rewritten.add(names[id(parameter)])
            if twin.state[values]:
                self.optimizer.state[parameter] = twin.state[values]
            assert parameter.grad is not None
            self._withheld.append((parameter, parameter.grad))
            parameter.grad = None

    def _spread_state(self, name: str) -> None:
        """Restores the weight's shape of a gathered layer's state."""
        if name in self.layer_masks and (parameter := self._parameters[name]) in self.optimizer.state:
            self.optimizer.state[parameter].update(self._dense_state(name, self.optimizer.state[parameter]))

    def _dense_state(self, name: str | None, state: dict[str, Any]) -> dict[str, Any]:
        """Returns a layer's state with the weight's shape; the state of other parameters as it is."""
        return state if name is None else spread_state(state, self._parameters[name], self.layer_masks[name])

    def _plain_optimizer(self) -> dict[str, Any]:
        """Returns the attributes of a copy of the optimizer, whose state has the weights' shapes."""
        names = {id(parameter): name for name, parameter in self._parameters.items()}
        state = defaultdict(
            dict, {p: self._dense_state(names.get(id(p)), of_one) for p, of_one in self.optimizer.state.items()}
        )
        return {**type(self.optimizer).__getstate__(self.optimizer), "state": state}

    def _with_dense_state(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Returns the state with the weights' shapes, as without masks; any optimizer of this class can load it."""
        names = {id(parameter): name for name, parameter in self._parameters.items()}
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        state = {
            index: self._dense_state(names.get(id(parameters[index])), of_one) if index < len(parameters) else of_one
            for index, of_one in state_dict["state"].items()
        }
        return {**state_dict, "state": state}
