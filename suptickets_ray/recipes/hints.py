"""Suggestions for unknown keys: names in other tools, old names, and similar spelling."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from suptickets_ray.lookup import suggestion

_ALIASES = {
    "lr": "train.lr",
    "learning_rate": "train.lr",
    "epochs": "train.epochs",
    "num_epochs": "train.epochs",
    "max_epochs": "train.epochs",
    "momentum": "train.momentum",
    "wd": "train.weight_decay",
    "l2": "train.weight_decay",
    "weight_decay": "train.weight_decay",
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
    "out": "storage",
    "run_name": "name",
    "warmup": "train.warmup_epochs",
    "fp16": "train.precision",
    "amp": "train.precision",
    "scheduler": "train.lr_schedule",
    "grad_clip": "train.clip_norm",
}
"""Names of the same settings in other tools."""
_EXPLANATIONS = {
    "optimizer": " The optimizer is SGD; train.lr, train.momentum and train.weight_decay set it.",
    "workers": " cluster.num_workers sets the ranks of pretraining; data.reader_threads sets the prefetch threads.",
    "num_workers": " cluster.num_workers sets the ranks of pretraining; data.reader_threads sets the prefetch threads.",
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
_SPARSITIES = {
    "sparsity": "method.density",
    "final_sparsity": "method.density",
    "init_sparsity": "method.initial_density",
}


def hint(key: str, value: Any, known: Collection[str]) -> str:
    """Returns the text that suggests an existing key for an unknown one: by meaning, or else by spelling."""
    leaf = key.rpartition(".")[2].lower().replace("-", "_")
    if key in _RENAMED:
        value = _RENAMED_VALUES.get(key, {}).get(value) if isinstance(value, str) else None
        return f"; did you mean {_RENAMED[key]}={value}?" if value else f"; did you mean {_RENAMED[key]!r}?"
    if leaf in _SPARSITIES:
        right = _SPARSITIES[leaf]
        if isinstance(value, (int, float)) and 0 <= value < 1:
            return f"; did you mean {right}={1 - value:.10g}? Density is the fraction of active weights, 1 - sparsity."
        return f"; did you mean {right}? Density is the fraction of active weights, 1 - sparsity."
    if leaf in _EXPLANATIONS and key not in known:
        return f".{_EXPLANATIONS[leaf]}"
    if leaf in _ALIASES and _ALIASES[leaf] != key:
        return f"; did you mean {_ALIASES[leaf]!r}?"
    return suggestion(key, known)
