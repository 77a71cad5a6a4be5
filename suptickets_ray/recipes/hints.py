"""Suggestions for unknown keys: names in other tools, old names, and similar spelling."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from suptickets_ray.lookup import suggestion

_ALIASES = {
    "seed": "seed",
    "random_seed": "seed",
    "manual_seed": "seed",
    "lr": "train.lr",
    "learning_rate": "train.lr",
    "epochs": "train.epochs",
    "num_epochs": "train.epochs",
    "max_epochs": "train.epochs",
    "momentum": "train.momentum",
    "optimizer": "train.optimizer",
    "betas": "train.optimizer_options.betas",
    "wd": "train.weight_decay",
    "l2": "train.weight_decay",
    "weight_decay": "train.weight_decay",
    "num_samples": "search.num_trials",
    "n_trials": "search.num_trials",
    "chains": "tickets.num_chains",
    "cpus": "cluster.cpus_per_worker",
    "num_cpus": "cluster.cpus_per_worker",
    "update_frequency": "method.update_interval_steps",
    "delta_t": "method.update_interval_steps",
    "batch": "data.batch_size",
    "batch_size": "data.batch_size",
    "bs": "data.batch_size",
    "dataset": "data.name",
    "data_dir": "data.root",
    "data_path": "data.root",
    "arch": "model.name",
    "density": "method.density",
    "gpus": "cluster.gpus_per_worker",
    "num_gpus": "cluster.gpus_per_worker",
    "nproc_per_node": "cluster.num_workers",
    "world_size": "cluster.num_workers",
    "output_dir": "storage",
    "save_dir": "storage",
    "log_dir": "storage",
    "output": "storage",
    "out": "storage",
    "run_name": "name",
    "warmup": "train.warmup_epochs",
    "fp16": "train.precision",
    "bf16": "train.precision",
    "amp": "train.precision",
    "scheduler": "train.lr_schedule",
    "grad_clip": "train.clip_norm",
}
"""Names of the same settings in other tools."""
_OPTIONS = " train.optimizer_options sets what the optimizer takes."
_EXPLANATIONS = {
    "nesterov": _OPTIONS,
    "betas": _OPTIONS,
    "loss": " The loss is cross entropy, with train.label_smoothing.",
    "dropout": " model.options sets what the model's function takes, e.g. model.options.dropout.",
    "pretrained": " model.weights starts from trained weights.",
    "early_stopping": " Every run trains for train.epochs; it has no early stopping.",
    "patience": " Every run trains for train.epochs; it has no early stopping.",
    "steps": " train.epochs and train.limit_batches set the number of steps.",
    "max_steps": " train.epochs and train.limit_batches set the number of steps.",
    "num_cycles": " train.epochs, tickets.cycle_rate and tickets.cycle_epochs set the cycles of a chain.",
    "cycles": " train.epochs, tickets.cycle_rate and tickets.cycle_epochs set the cycles of a chain.",
    "resume": " The same command resumes a run by itself.",
    "num_classes": " The data set gives the number of classes.",
    "workers": " cluster.num_workers sets the ranks of pretraining; data.reader_threads sets the prefetch threads.",
    "num_workers": " cluster.num_workers sets the ranks of pretraining; data.reader_threads sets the prefetch threads.",
    "cuda": " cluster.gpus_per_worker=1 trains on GPUs, the default 0 on CPUs.",
    "device": " cluster.gpus_per_worker=1 trains on GPUs, the default 0 on CPUs.",
}
_RENAMED = {
    "tickets.chains": "tickets.num_chains",
    "search.seeds": "search.num_seeds",
    "data.train_size": "data.num_train_examples",
    "cluster.fold_shares": "cluster.num_merge_shards",
    "cluster.wait_minutes": "cluster.resource_timeout_minutes",
    "cluster.keep_head_free": "cluster.exclude_head_node",
    "superposition.scope": "superposition.prune_scope",
    "superposition.prune": "superposition.prune_at",
}
"""Old keys of recipes from before version 0.1.0."""
_RENAMED_VALUES = {"superposition.prune": {"each": "every_ticket", "last": "end"}}
_SPARSITY_NAMES = ("sparsity", "prune_rate", "pruning_rate", "prune_ratio", "pruning_ratio", "prune_fraction")
"""Parts of the names that other tools give to the fraction of weights that are 0."""


def hint(key: str, value: Any, known: Collection[str]) -> str:
    """Returns the text that suggests an existing key for an unknown one: by meaning, or else by spelling."""
    leaf = key.rpartition(".")[2].lower().replace("-", "_")
    if key in _RENAMED:
        value = _RENAMED_VALUES.get(key, {}).get(value) if isinstance(value, str) else None
        return f"; did you mean {_RENAMED[key]}={value}?" if value else f"; did you mean {_RENAMED[key]!r}?"
    if any(name in leaf for name in _SPARSITY_NAMES):
        right = "method.initial_density" if "init" in leaf else "method.density"
        if isinstance(value, (int, float)) and 1 < value < 100:
            value = value / 100
        if isinstance(value, (int, float)) and 0 <= value < 1:
            return f"; did you mean {right}={1 - value:.10g}? Density is the fraction of active weights, 1 - sparsity."
        return f"; did you mean {right}? Density is the fraction of active weights, 1 - sparsity."
    if leaf in _EXPLANATIONS and key not in known:
        return f".{_EXPLANATIONS[leaf]}"
    if leaf in _ALIASES and _ALIASES[leaf] != key:
        return f"; did you mean {_ALIASES[leaf]!r}?"
    return suggestion(key, set(known) - {key})
