"""What trials share: pretraining and explorations, by the digest of all that they depend on."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from suptickets_ray.config import Config
from suptickets_ray.recipes.load import changes_results, flatten, to_dict
from suptickets_ray.tickets.schedule import plan_budget

_NOT_OF_PRETRAINING = "superposition."
_PRETRAINING_TICKETS = ("tickets.update_masks",)


def pretraining_key(config: Config) -> str:
    """Returns the digest of what the state that pretraining ends in depends on.

    That is everything but superposition and cycles; of the epochs, those that pretraining gets. A search over cycle
    lengths that leave pretraining the same epochs trains it once.
    """
    return _digest(_pretraining_settings(config))


def exploration_key(config: Config) -> str:
    """Returns the digest of what a ticket depends on, besides its chain and cycle.

    Neither the number of chains nor that of cycles is part of it: a longer exploration goes on from a shorter one.
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
        and not key.startswith(_NOT_OF_PRETRAINING)
        and (not key.startswith("tickets.") or key in _PRETRAINING_TICKETS)
    }
    return {**settings, "train.epochs": budget.pretrain_epochs}


def _digest(settings: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
