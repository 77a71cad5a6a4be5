"""Keys of the work that trials share: pretraining and explorations, by the digest of all settings they depend on."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from suptickets_ray.config import Config
from suptickets_ray.recipes.load import changes_results, flatten, to_dict
from suptickets_ray.tickets.schedule import plan_budget

_AFTER_PRETRAINING = "superposition."
_PRETRAINING_TICKET_KEYS = ("tickets.update_masks",)
"""Settings of the section `tickets` that pretraining depends on."""


def pretraining_key(config: Config) -> str:
    """Returns the digest of all settings that the final state of pretraining depends on.

    These are all settings except superposition and cycles, with the epochs of pretraining instead of the whole run's.
    A search over cycle lengths therefore trains pretraining once if its number of epochs is the same for all.
    """
    return _digest(_pretraining_settings(config))


def exploration_key(config: Config) -> str:
    """Returns the digest of all settings that a ticket depends on, besides its chain and cycle.

    It excludes the numbers of chains and cycles, so that a longer exploration continues a shorter one.
    """
    tickets = {key: value for key, value in flatten(to_dict(config)) if key.startswith("tickets.")}
    for key in ("tickets.num_chains", "tickets.cycle_rate"):
        tickets.pop(key)
    return _digest({**_pretraining_settings(config), **tickets})


def _pretraining_settings(config: Config) -> dict[str, Any]:
    budget = plan_budget(config.train.epochs, config.tickets.cycle_epochs, config.tickets.cycle_rate)
    settings = {
        key: value
        for key, value in flatten(to_dict(config))
        if changes_results(key)
        and not key.startswith(_AFTER_PRETRAINING)
        and (not key.startswith("tickets.") or key in _PRETRAINING_TICKET_KEYS)
    }
    return {**settings, "train.epochs": budget.pretrain_epochs}


def _digest(settings: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
