"""Resolves settings that depend on each other: fills in defaults, refuses contradictions and ineffective settings."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

from suptickets_ray.config import Config, MethodConfig, SuperpositionConfig, TicketsConfig, TrainConfig
from suptickets_ray.lookup import choose, choose_or_import
from suptickets_ray.recipes.validation import check
from suptickets_ray.sparse.initial_masks import READ_WEIGHTS
from suptickets_ray.sparse.methods import METHODS, Method, check_settings, readable_settings
from suptickets_ray.tickets.rules import Rule
from suptickets_ray.tickets.schedule import plan_budget
from suptickets_ray.training.data import DATASETS
from suptickets_ray.training.initialization import INITIALIZATIONS
from suptickets_ray.training.models import find_builder
from suptickets_ray.training.optim import check_optimizer, default_momentum, find_lr_schedule
from suptickets_ray.training.task import validation_metrics
from suptickets_ray.training.tasks import make_task

WINDOW_KEYS = {"prune_start_epoch": "prune_start_fraction", "prune_end_epoch": "prune_end_fraction"}
"""Prune window: a recipe's keys in epochs, and the Sparsifier's keys as fractions of its steps."""

_DEFAULT_LR_HIGH = 0.005
_DEFAULT_EXPLORATION = 0.5
_DEFAULT_CIMA_FACTOR = 0.2


def resolve(config: Config) -> Config:
    """Returns the experiment with all defaults that depend on other settings.

    Raises:
        ValueError: If a value is out of range, a name is unknown, settings contradict each other, a setting has no
            effect, or the epochs do not suffice for one cycle.
    """
    check(config)
    method = choose(METHODS, config.method.name, "method")
    find_builder(config.model.name)
    choose_or_import(DATASETS, config.data.name, "data set")
    choose(INITIALIZATIONS, config.model.initialization, "model.initialization")
    find_lr_schedule(config.train)
    check_optimizer(config.train)
    budget = plan_budget(config.train.epochs, config.tickets.cycle_epochs, config.tickets.cycle_rate)
    _check_train(config.train, budget.pretrain_epochs, config.cluster.gpus_per_worker)
    metrics = validation_metrics(make_task(config))
    resolved = replace(
        config,
        search=replace(config.search, metric=config.search.metric or next(iter(metrics))),
        train=replace(config.train, momentum=default_momentum(config.train)),
        method=_resolve_method(config, method),
        tickets=_resolve_tickets(config, method),
        superposition=_resolve_superposition(config),
    )
    if (metric := resolved.search.metric) not in metrics:
        raise ValueError(f"search.metric must be {' or '.join(metrics)}; got {metric!r}.")
    if config.model.weights is not None and config.model.initialization != "default":
        raise ValueError(
            f"model.initialization has no effect with model.weights; got {config.model.initialization!r}. Leave one of "
            "them out."
        )
    distribution = resolved.method.distribution
    if config.model.initialization == "sparse_fan_in" and distribution in READ_WEIGHTS:
        raise ValueError(
            f"model.initialization must not be 'sparse_fan_in' with method.distribution {distribution!r}; that "
            "distribution computes the masks from the initial weights. Leave one of them out."
        )
    parts = config.cluster.max_workers * config.train.accumulation_steps
    if parts > 1 and config.data.batch_size < 2 * parts:
        raise ValueError(
            f"data.batch_size must be at least {2 * parts}, two examples per rank ({config.cluster.max_workers}) and "
            f"accumulation step ({config.train.accumulation_steps}); got {config.data.batch_size}. Increase it, or "
            "reduce cluster.num_workers or train.accumulation_steps."
        )
    return resolved


def _check_train(section: TrainConfig, pretrain_epochs: int, gpus_per_worker: float) -> None:
    for key in ("lr_milestone_epochs", "lr_decay_factor"):
        if section.lr_schedule != "multistep" and (value := getattr(section, key)) is not None:
            raise ValueError(
                f"train.{key} has no effect with train.lr_schedule {section.lr_schedule!r}; got {value}. Leave it out."
            )
    if section.lr_milestone_epochs == [] and section.lr_decay_factor is not None:
        raise ValueError("train.lr_decay_factor has no effect with train.lr_milestone_epochs []. Leave it out.")
    if not section.decay_norm_and_bias and not section.weight_decay:
        raise ValueError("train.decay_norm_and_bias=false has no effect with train.weight_decay 0. Leave it out.")
    milestones = section.lr_milestone_epochs or []
    if any(epoch >= pretrain_epochs for epoch in milestones):
        raise ValueError(
            f"train.lr_milestone_epochs must be below the {pretrain_epochs} epochs of pretraining; got {milestones}."
        )
    for key in ("float32_precision", "cudnn_benchmark"):
        if (value := getattr(section, key)) is not None and not gpus_per_worker:
            raise ValueError(f"train.{key} has no effect on CPUs; got {value}. Leave it out, or train on GPUs.")
    if section.deterministic and section.cudnn_benchmark:
        raise ValueError(
            "train.cudnn_benchmark must be false with train.deterministic=true, because it chooses other algorithms "
            "from run to run; got true. Leave it out."
        )
    if section.precision == "float16" and not gpus_per_worker:
        raise ValueError(
            "train.precision 'float16' must have GPUs, because a CPU takes minutes per step; got "
            "cluster.gpus_per_worker=0. Choose bfloat16, or leave it out."
        )
    if section.warmup_epochs >= pretrain_epochs:
        raise ValueError(
            f"train.warmup_epochs must be below the {pretrain_epochs} epochs of pretraining; got "
            f"{section.warmup_epochs}."
        )


def _resolve_method(config: Config, method: Method) -> MethodConfig:
    section = config.method
    if not method.sparse and section.density != 1:
        raise ValueError(
            f"method.density must be 1 with method {section.name!r}; got {section.density}. Leave out the density."
        )
    _check_compute(config, method)
    given = {key: value for key, value in vars(section).items() if value is not None and key != "compute"}
    of_method = readable_settings(method, given)
    defaults: dict[str, Any] = ({"dense_layers": None, "mask_embeddings": None} if method.sparse else {}) | of_method
    pretrain_epochs = plan_budget(
        config.train.epochs, config.tickets.cycle_epochs, config.tickets.cycle_rate
    ).pretrain_epochs
    for epoch_key, fraction_key in WINDOW_KEYS.items():
        if fraction_key in defaults:
            defaults[epoch_key] = math.floor(defaults.pop(fraction_key) * pretrain_epochs)
    values: dict[str, Any] = {}
    for field in fields(section):
        if field.name in ("name", "density", "compute"):
            continue
        value = getattr(section, field.name)
        if value is not None and field.name not in defaults:
            raise ValueError(
                f"method.{field.name} has no effect with method {section.name!r}. Leave it out; this method reads: "
                f"{', '.join(defaults) or 'none'}."
            )
        values[field.name] = defaults.get(field.name) if value is None else value
    check_settings({key: value for key, value in values.items() if value is not None and key in of_method})
    start, end = values["prune_start_epoch"], values["prune_end_epoch"]
    if start is not None and end is not None and start >= end:
        raise ValueError(
            f"method.prune_start_epoch must be before method.prune_end_epoch ({end}); got {start}. Set both."
        )
    if end is not None and end > pretrain_epochs:
        raise ValueError(
            f"method.prune_end_epoch must be at most {pretrain_epochs}, the epochs of pretraining, so that tickets "
            f"reach the target density; got {end}. Prune faster or train longer."
        )
    initial = values["initial_density"]
    if initial is not None and initial < section.density:
        raise ValueError(
            f"method.initial_density must be at least method.density ({section.density:g}); got {initial:g}."
        )
    return replace(section, **values)


def _check_compute(config: Config, method: Method) -> None:
    if config.method.compute == "masked":
        return
    obstacles = {
        f"method {config.method.name!r}": not method.sparse,
        "train.compile": config.train.compile,
        f"train.precision {config.train.precision!r}": config.train.precision != "float32",
        "cluster.gpus_per_worker": config.cluster.gpus_per_worker > 0,
    }
    for obstacle, is_set in obstacles.items():
        if is_set:
            raise ValueError(
                f"method.compute {config.method.compute!r} has no effect with {obstacle}; it needs masks, CPUs and "
                "float32, without torch.compile. Leave it out."
            )


def _resolve_tickets(config: Config, method: Method) -> TicketsConfig:
    section = config.tickets
    if not method.can_explore and (section.explore or section.exploration_fraction is not None):
        raise ValueError(
            f"tickets.explore must be false with method {config.method.name!r}, which does not change its masks. "
            "Leave out tickets.explore and tickets.exploration_fraction, or choose another method."
        )
    if section.update_masks and not method.exchanges:
        raise ValueError(
            f"tickets.update_masks has no effect with method {config.method.name!r}, which does not drop and grow. "
            "Leave it out or choose another method."
        )
    explore = method.can_explore if section.explore is None else section.explore
    fraction = section.exploration_fraction
    if explore and fraction is None:
        fraction = _DEFAULT_EXPLORATION
    high = section.lr_high
    if high is None:
        high = _DEFAULT_LR_HIGH if section.cyclic_lr else section.lr_low
    if high < section.lr_low:
        raise ValueError(f"tickets.lr_high must be at least lr_low ({section.lr_low:g}); got the default {high:g}.")
    return replace(section, explore=explore, exploration_fraction=fraction, lr_high=high)


def _resolve_superposition(config: Config) -> SuperpositionConfig:
    section = config.superposition
    factor = section.cima_factor
    if section.method == "cima" and factor is None:
        factor = _DEFAULT_CIMA_FACTOR
    if section.method == "greedy":
        if section.gate_tolerance not in (0.0, SuperpositionConfig.gate_tolerance):
            raise ValueError(
                f"superposition.gate_tolerance has no effect with method 'greedy', which accepts a ticket only if "
                f"no accuracy is lost; got {section.gate_tolerance}. Leave it out."
            )
        section = replace(section, gate_tolerance=0.0)
    if section.batchnorm == "average" and section.recalibration_examples is not None:
        raise ValueError(
            "superposition.recalibration_examples has no effect with superposition.batchnorm 'average'. Leave it out."
        )
    Rule(section.method, config.method.density, factor, section.prune_at, section.prune_scope)
    if config.cluster.num_merge_shards > 1 and (
        section.prune_at == "every_ticket" or section.gate_tolerance is not None
    ):
        raise ValueError(
            "cluster.num_merge_shards must be 1 unless superposition.prune_at is 'end' and "
            "superposition.gate_tolerance is none, because pruning and the gate need the whole network; "
            f"got {config.cluster.num_merge_shards}. Leave it out, or set both."
        )
    return replace(section, cima_factor=factor)
