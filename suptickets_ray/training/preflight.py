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
from suptickets_ray.training.nested import apply, map_tensors, tensors_of
from suptickets_ray.training.tasks import Task


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
    _check_labels(splits, learner.task)
    if "num_classes" not in loaded and config.task.name == "classification":
        _check_classes(splits)
    _check_inputs(loaded)
    _check_range(splits)
    for name in ("test", "validation"):
        learner.model.eval()
        _forward(learner, splits, name, 2)
    if config.train.compile:
        _check_compiler()
    learner.model.train()
    # The fewest examples that a rank may get: BatchNorm, for example, cannot train on one.
    with learner.sparsifier.dense_gradients():
        outputs, labels = _forward(
            learner, splits, "train", min(2, config.data.batch_size // config.cluster.max_workers)
        )
        loss = learner.task.summed_loss(outputs, labels)
        if not loss.requires_grad:
            raise ValueError("'loss' of task.name must depend on the network's outputs; its result has no gradient.")
        try:
            loss.backward()
        except Exception as error:
            raise ValueError(f"Cannot compute the loss of model.name and its gradients: {_reason(error)}") from error
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


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


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
        raise ValueError(f"Cannot store the network of model.name as a ticket: {_reason(error)}") from error


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


def _check_labels(splits: Splits, task: Task) -> None:
    """Checks the labels of all splits before any training."""
    for name in SPLITS:
        labels = getattr(splits, name).all_labels()
        if labels.is_floating_point() and not bool(labels.isfinite().all()):
            raise ValueError(f"the {name} labels must be finite; some are NaN or infinite. Correct or remove them.")
        try:
            task.check_targets(labels, splits.num_classes)
        except Exception as error:
            # A built-in task's text begins with "labels"; a user-defined task may raise anything.
            text = str(error) if isinstance(error, ValueError) else f"labels must fit task.name: {error!r}"
            raise ValueError(f"the {name} {text}") from error


def _check_classes(splits: Splits) -> None:
    """Warns if the number of classes, which is counted by the highest label, includes classes without an example."""
    labels = splits.train.all_labels()
    if empty := torch.bincount(labels, minlength=splits.num_classes).eq(0).nonzero().flatten().tolist():
        warnings.warn(
            f"{len(empty)} of {splits.num_classes} classes have no training example, the first of them {empty[0]}. "
            "Number the classes from 0 on, or give num_classes.",
            stacklevel=2,
        )


def _forward(learner: Learner, splits: Splits, name: str, size: int) -> tuple[Any, Tensor]:
    """Returns the outputs for the first examples of a split, and their labels. Checks what the task computes."""
    examples = getattr(splits, name)
    inputs, labels = examples.batch(torch.arange(min(size, len(examples))))
    try:
        outputs = apply(learner.model, inputs)
    except Exception as error:
        shapes = map_tensors(lambda tensor: tuple(tensor.shape), inputs)
        raise ValueError(
            f"Cannot run the network of model.name on {name} inputs of shape {shapes}: {_reason(error)}"
        ) from error
    learner.task.check_outputs(outputs, splits.num_classes)
    with torch.no_grad():
        _check_task(learner.task, outputs, labels, name)
    return outputs, labels


def _check_task(task: Task, outputs: Any, labels: Tensor, name: str) -> None:
    """Calls the functions of a task, because they may be user-defined."""
    results: dict[str, Any] = {}
    try:
        results["predictions"] = predictions = task.predict(outputs)
        results["measured"] = measured = task.measure(predictions, labels)
        results["loss"] = loss = task.loss(outputs, labels)
    except Exception as error:
        steps = ("predictions", "measured", "loss")
        failed = ("predict", "measure", "loss")[len([step for step in steps if step in results])]
        raise ValueError(
            f"Cannot call {failed!r} of task.name on {name} examples: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(predictions, Tensor) or len(predictions) != len(labels):
        raise ValueError(
            f"'predict' of task.name must return a tensor of {len(labels)} predictions; got {predictions!r}."
        )
    if not bool(predictions.isfinite().all()):
        raise ValueError(f"model.name must give finite outputs for {name} inputs; some are NaN or infinite.")
    for metric in task.metrics:
        values = measured.get(metric.name) if isinstance(measured, Mapping) else None
        if not isinstance(values, Tensor) or tuple(values.shape) != (len(labels),):
            found = tuple(values.shape) if isinstance(values, Tensor) else "no tensor"
            raise ValueError(
                f"'measure' of task.name must return {metric.name!r} of shape ({len(labels)},), a value for each "
                f"example; got {found}."
            )
        if not bool(values.isfinite().all()):
            raise ValueError(f"'measure' of task.name must return finite values; {metric.name!r} is NaN or infinite.")
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not bool(loss.isfinite().all()):
        raise ValueError(f"'loss' of task.name must return a finite scalar tensor; got {loss!r} for {name} examples.")


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
