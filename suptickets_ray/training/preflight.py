"""The preflight: finds errors on the driver before any worker starts."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from suptickets_ray.config import Config
from suptickets_ray.sparse.methods import criteria_needs
from suptickets_ray.sparse.topology import drop_and_grow
from suptickets_ray.tickets.averaging import finish, merge
from suptickets_ray.tickets.rules import Rule
from suptickets_ray.tickets.ticket import Ticket
from suptickets_ray.training.checkpoint import restore
from suptickets_ray.training.data import Splits, load_source, make_splits
from suptickets_ray.training.data.examples import UNEQUAL_DATA, LabelledDataset, num_not_finite
from suptickets_ray.training.data.fingerprint import fingerprint
from suptickets_ray.training.data.splits import SPLITS
from suptickets_ray.training.evaluation import batch_norms
from suptickets_ray.training.loop import Learner, build_learner, seed_torch
from suptickets_ray.training.nested import tensors_of
from suptickets_ray.training.task_check import check_labels, checked_outputs, reason_of, warn_of_empty_classes


def preflight(config: Config, loaded: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
    """Loads the data, builds the learner and takes one step of two examples, on the CPU.

    Args:
        config: The recipe.
        loaded: Result of the data function, if it was already called.

    Returns:
        Result of the data function, so that the data need not be loaded again.

    Raises:
        ValueError: If data, model and method do not fit together, or user-defined code fails.
    """
    if loaded is None:
        loaded = load_source(config.data)
        if any(isinstance(part, LabelledDataset) for part in loaded.values()):
            _check_repeatable(config, loaded)
    splits = make_splits(loaded, config.data)
    seed_torch(config.seed, "rehearsal")
    # Compiling the network takes minutes, and says nothing that the plain network does not.
    plain = replace(config, train=replace(config.train, compile=False))
    learner = build_learner(plain, splits, torch.device("cpu"))
    _check_weights(learner)
    before = _shapes(learner.model)
    _check_modules(learner.model, config)
    check_labels(splits, learner.task)
    if "num_classes" not in loaded and config.task.name == "classification":
        warn_of_empty_classes(splits)
    _check_inputs(loaded)
    _check_range(splits)
    for name in ("test", "validation"):
        learner.model.eval()
        checked_outputs(learner, splits, name, 2)
    if config.train.compile:
        _check_compiler()
    learner.model.train()
    # The fewest examples that a rank may get: BatchNorm, for example, cannot train on one.
    with learner.sparsifier.dense_gradients():
        outputs, labels = checked_outputs(
            learner, splits, "train", min(2, config.data.batch_size // config.cluster.max_workers)
        )
        loss = learner.task.summed_loss(outputs, labels)
        try:
            loss.backward()
        except Exception as error:
            raise ValueError(f"Cannot compute the loss of model.name and its gradients: {reason_of(error)}") from error
    trained = {name: some for name, some in learner.sparsifier.parameters.items() if some.requires_grad}
    unused = [name for name, parameter in trained.items() if parameter.grad is None]
    if unused:
        raise ValueError(f"model.name must use every weight it has; {unused[0]!r} gets no gradient. Remove it.")
    _check_scores(learner)
    _check_ticket(learner, config)
    after = _shapes(learner.model)
    if changed := sorted(name for name in {*before, *after} if before.get(name) != after.get(name)):
        raise ValueError(
            f"the tensors of model.name must not change in a forward pass; {changed[0]!r} does. "
            "Create it with its final shape."
        )
    return loaded


def _shapes(model: Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def _check_ticket(learner: Learner, config: Config) -> None:
    """Stores, reads and merges a ticket and a state, as every cycle does."""
    learner.optimizer.step()
    try:
        ticket = Ticket.from_bytes(learner.ticket({}).to_bytes())
        learner.load_bytes(learner.to_bytes(epoch=0))
        section = config.superposition
        rule = Rule(section.method, config.method.density, section.cima_factor, section.prune_at, section.prune_scope)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a warning about emptied layers says nothing about the run
            merged = finish(merge(merge(None, ticket, rule), ticket, rule), rule, {})
        restore(learner.model, merged.state_dict())
    except Exception as error:
        raise ValueError(f"Cannot store the network of model.name as a ticket: {reason_of(error)}") from error


def _check_inputs(loaded: Mapping[str, Any]) -> None:
    """Checks the inputs that are in memory. The inputs of a Dataset are checked when they are read."""
    for name in SPLITS:
        if not isinstance(pair := loaded.get(name), (tuple, list)):
            continue
        if found := [tensor.dtype for tensor in tensors_of(pair[0]) if tensor.is_complex()]:
            raise ValueError(f"the {name} inputs must be real numbers; got {found[0]}.")
        if bad := num_not_finite(pair[0]):
            raise ValueError(
                f"the {name} inputs must be finite; {bad} of {len(pair[1])} examples hold NaN or infinity. Correct or "
                "remove them."
            )


_NUM_RANGE_CHECKED = 64
_DARK, _LARGE = 64, 50.0
"""uint8 pixels that are all below _DARK, or other inputs beyond _LARGE, are probably scaled wrongly."""


def _check_range(splits: Splits) -> None:
    """Warns if the range of the inputs does not fit their type: they would be scaled wrongly, or not at all."""
    inputs = splits.train.raw_inputs(_NUM_RANGE_CHECKED)
    if not isinstance(inputs, Tensor):
        return
    low, high = float(inputs.min()), float(inputs.max())
    if inputs.dtype == torch.uint8 and 0 < high < _DARK:
        warnings.warn(
            f"the training images are uint8 with values from {low:.0f} to {high:.0f}, and are scaled as if 255 were "
            "white. Store them in the full range, or give inputs as floats. (16-bit files keep their upper 8 bits.)",
            stacklevel=2,
        )
    if inputs.is_floating_point() and max(-low, high) > _LARGE:
        warnings.warn(
            f"the training inputs range from {low:g} to {high:g} and are not scaled. Give mean and std, or scale them.",
            stacklevel=2,
        )


def _check_repeatable(config: Config, loaded: Mapping[str, Any]) -> None:
    """Calls the data function again, as every worker does. Raises ValueError if it returns other examples."""
    if fingerprint(load_source(config.data)) != fingerprint(loaded):
        raise ValueError(UNEQUAL_DATA)


def _check_modules(model: Module, config: Config) -> None:
    """Raises ValueError for settings that have no effect on this network."""
    if config.train.channels_last and not any(parameter.ndim == 4 for parameter in model.parameters()):
        raise ValueError("train.channels_last has no effect on a network without convolutions. Leave it out.")
    if config.superposition.batchnorm == "average" and not batch_norms(model):
        raise ValueError(
            "superposition.batchnorm 'average' has no effect on a network without BatchNorm. Leave it out."
        )
    examples = config.superposition.recalibration_examples
    if examples is not None and not batch_norms(model):
        raise ValueError(
            f"superposition.recalibration_examples has no effect on a network without BatchNorm; got {examples}. Leave "
            "it out."
        )


def _check_weights(learner: Learner) -> None:
    seen: dict[int, str] = {}
    for name, tensor in learner.model.state_dict().items():
        if not isinstance(tensor, Tensor):
            raise ValueError(
                f"model.name must build a network whose state is tensors; {name!r} is {type(tensor).__name__}. Remove "
                "get_extra_state from its module."
            )
        if tensor.layout is not torch.strided:
            raise ValueError(
                f"model.name must build a network of strided tensors; {name!r} has the layout {tensor.layout}."
            )
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ValueError(f"model.name must build a network of finite numbers; {name!r} holds NaN or infinity.")
        if tensor.numel() and (other := seen.setdefault(tensor.data_ptr(), name)) != name:
            raise ValueError(
                f"model.name must build a network without shared weights; {other!r} and {name!r} are one tensor, and a "
                "ticket stores each name separately."
            )


def _check_compiler() -> None:
    try:
        torch.compile(lambda inputs: inputs * 2 + 1)(torch.ones(8))
    except Exception as error:
        raise ValueError(
            f"Cannot compile the network: torch.compile failed: {type(error).__name__}: "
            f"{str(error).splitlines()[0]}. Install a C++ compiler, or leave train.compile out."
        ) from error


def _check_scores(learner: Learner) -> None:
    """Calls the method's scores once, because they may be user-defined."""
    settings, parameters = learner.sparsifier.settings, learner.sparsifier.parameters
    if not learner.sparsifier.method.can_explore:
        return
    gradients = {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}
    needed = criteria_needs(settings)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a warning about emptied layers says nothing about the run
            drop_and_grow(
                parameters,
                learner.sparsifier.masks,
                0.5,
                drop=settings["drop"],
                grow=settings["grow"],
                redistribution=settings["redistribution"],
                gradients=gradients,
                momenta=gradients if "momentum" in needed else None,
                explored=learner.sparsifier.explored if "explored" in needed else None,
                generator=torch.Generator().manual_seed(0),
            )
    except Exception as error:
        raise ValueError(
            f"method.drop and method.grow must give scores of each weight's shape, and method.redistribution a number; "
            f"got {settings['drop']!r}, {settings['grow']!r} and {settings['redistribution']!r}, which failed: "
            f"{type(error).__name__}: {error}"
        ) from error
