"""What every variant of a setting is worth under one seed, computed with the product's own functions.

Pretraining is trained once, every chain once per way of exploring; what differs in the superposition alone is
merged from the same tickets. Tickets are those of `suptickets train` with one rank, bit for bit (a test compares them).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from suptickets_ray import Ticket, load_config
from suptickets_ray.config import Config
from suptickets_ray.distributed.pipeline.result import versions
from suptickets_ray.recipes.load import config_digest
from suptickets_ray.superposition.merger import Merger
from suptickets_ray.tickets.schedule import canonical_order
from suptickets_ray.training.cycle import run_cycle
from suptickets_ray.training.data import Splits, load_data
from suptickets_ray.training.determinism import worker_determinism
from suptickets_ray.training.evaluation import evaluate
from suptickets_ray.training.loop import (
    Learner,
    budget_of,
    build_learner,
    order_seed,
    seed_torch,
    steps_per_epoch,
    train_epoch,
)
from suptickets_ray.training.optim import pretrain_lr

HERE = Path(__file__).parent
CPU = torch.device("cpu")
UNGATED = ("superposition.gate_tolerance=none",)
SCHEDULES = ("multistep", "cosine")
"""Of plain training; the better one on validation counts."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """A way to superpose the tickets of some chains."""

    name: str
    overrides: tuple[str, ...] = UNGATED
    shared_mask: bool = False
    """Whether cycles do not explore, so that all tickets have the mask of pretraining."""
    most_chains: int | None = None
    """Of how many chains at most it is asked; all when left out."""


@dataclass(frozen=True)
class Setting:
    """A recipe with the numbers of chains and the variants that are asked of it."""

    recipe: str
    seeds: int
    chains: Sequence[int]
    variants: Sequence[Variant] = field(default_factory=lambda: VARIANTS)
    overrides: tuple[str, ...] = ()
    cut_schedule: bool = False
    """Whether pretraining's rates are those of plain training's first part, cut off where the cycles begin."""


VARIANTS = (
    Variant("superposed"),
    Variant("superposed_gated", ()),
    Variant("superposed_shared_mask", UNGATED, shared_mask=True, most_chains=4),
    Variant("caa", (*UNGATED, "superposition.method=caa")),
    Variant("cima_0.2", (*UNGATED, "superposition.method=cima", "superposition.cima_factor=0.2")),
    Variant("cima_0.5", (*UNGATED, "superposition.method=cima", "superposition.cima_factor=0.5")),
    Variant("averaged_batchnorm", (*UNGATED, "superposition.batchnorm=average")),
    Variant("prune_each", (*UNGATED, "superposition.prune_at=every_ticket")),
)
COLLAPSES = (Variant("superposed", most_chains=4), Variant("superposed_gated", (), most_chains=4))
R1_CUT = ("data.num_train_examples=500", "data.label_noise=0.2")
"""What a recipe of another data set forgets of R1's."""
STANDARDISED = ("data.name=standardised:per_pixel", *R1_CUT)
SETTINGS: dict[str, Setting] = {
    "r1": Setting("r1.yaml", 16, (1, 4, 8, 16)),
    "r2": Setting("r2.yaml", 8, (1, 4, 8, 16)),
    "r2_set": Setting("r2_set.yaml", 8, (1, 4)),
    "r3": Setting("r3.yaml", 16, (1, 4, 8)),
    "conv": Setting("conv.yaml", 8, (1, 4), VARIANTS[:3]),
    "conv_hot": Setting("conv.yaml", 8, (1, 4), VARIANTS[:3], ("tickets.lr_high=0.2",)),
    **{
        f"{name}_split_{split}": Setting(f"{name}.yaml", 3, (1, 4, 8, 16), VARIANTS[:1], (f"data.split_seed={split}",))
        for name in ("r1", "r2")
        for split in range(1, 9)
    },
    "r1_cut": Setting("r1.yaml", 8, (1, 4, 8, 16), VARIANTS[:1], cut_schedule=True),
    **{
        f"r1_cut_split_{split}": Setting(
            "r1.yaml", 3, (1, 4, 8, 16), VARIANTS[:1], (f"data.split_seed={split}",), cut_schedule=True
        )
        for split in range(1, 9)
    },
    "r1_default_init": Setting("r1.yaml", 8, (1, 4), VARIANTS[:1], ("model.initialization=default",)),
    "r1_multistep": Setting("r1.yaml", 8, (1, 4), VARIANTS[:1], ("train.lr_schedule=multistep",)),
    "r1_standardised": Setting("r1.yaml", 16, (1, 4, 8, 16), VARIANTS[:1], STANDARDISED),
    **{
        f"r1_standardised_split_{split}": Setting(
            "r1.yaml", 3, (1, 4, 8, 16), VARIANTS[:1], (*STANDARDISED, f"data.split_seed={split}")
        )
        for split in range(1, 9)
    },
    "r1_centred": Setting("r1.yaml", 8, (1, 4), VARIANTS[:1], ("data.name=standardised:whole", *R1_CUT)),
    "r2_default_init": Setting("r2.yaml", 8, (1, 4), VARIANTS[:1], ("model.initialization=default",)),
    "r2_cosine": Setting("r2.yaml", 8, (1, 4), VARIANTS[:1], ("train.lr_schedule=cosine",)),
}
"""The later ones look for what moves a gain: other splits of the data and draws of label noise, other initial weights
(the builder's own instead of normal ones scaled by density), the other schedule of pretraining, one that is
cut off, and inputs of mean 0 and variance 1 instead of shares of the deepest ink.
"""
FIRST_SEED = 100
"""Those below were looked at while the product was made."""
CONTROLS: dict[str, tuple[str, ...]] = {
    "r1_hot": ("tickets.lr_high=1.0",),
    "r1_explore_0.8": ("tickets.exploration_fraction=0.8",),
    "r1_explore_0.95": ("tickets.exploration_fraction=0.95",),
    "r1_unrelated": ("tickets.cycle_epochs=15",),
}
"""Planted collapses of R1: 4 chains, ungated and gated. Unrelated: one ticket, of another pretraining."""
CONTROL_SEEDS = 4


def all_jobs(seeds: int | None = None) -> list[tuple[str, int]]:
    """Returns every (setting, seed), planted collapses among them; `seeds` of each setting at most."""
    jobs = []
    for name, setting in {**SETTINGS, **dict.fromkeys(CONTROLS, SETTINGS["r1"])}.items():
        count = setting.seeds if name in SETTINGS else CONTROL_SEEDS
        jobs += [(name, FIRST_SEED + number) for number in range(min(count, seeds or count))]
    return jobs


def digest_of(name: str, seed: int, overrides: Sequence[str] = ()) -> str:
    """Returns 16 hex digits that change with whatever the rows of a setting under one seed depend on, but the code."""
    setting, own, chains = _asked(name, seed, overrides)
    config = load_config(HERE / setting.recipe, [*own, f"tickets.num_chains={max(chains)}"])
    return hashlib.sha256(
        repr((name, config_digest(config), chains, setting.variants, setting.cut_schedule)).encode()
    ).hexdigest()[:16]


def _asked(name: str, seed: int, overrides: Sequence[str]) -> tuple[Setting, list[str], list[int]]:
    """The setting, the overrides of its recipe, and the numbers of chains."""
    planted = CONTROLS.get(name)
    setting = SETTINGS[name] if planted is None else replace(SETTINGS["r1"], variants=COLLAPSES)
    chains = list(setting.chains) if planted is None else [1 if name == "r1_unrelated" else 4]
    return setting, [*(planted or ()), *setting.overrides, *overrides, f"seed={seed}"], chains


def rows_of(name: str, seed: int, overrides: Sequence[str] = ()) -> list[Row]:
    """Returns a row for every variant and number of chains of a setting under one seed.

    Args:
        name: A name of `SETTINGS` or `CONTROLS`.
        seed: The run's seed; the data are the same for all.
        overrides: Of the recipe, e.g. to make it short.
    """
    setting, own, chains = _asked(name, seed, overrides)
    recipe = HERE / setting.recipe
    base = load_config(recipe, [*own, f"tickets.num_chains={max(chains)}"])
    work = _Work(base, load_data(base.data), base.train.epochs if setting.cut_schedule else None)
    if name == "r1_unrelated":
        work.put_in(load_config(recipe, [*own, f"seed={seed + 1000}"]))
    rows = [] if name in CONTROLS else list(work.plain(recipe, own))
    rows += work.single_tickets(max(chains))
    for variant in setting.variants:
        for count in chains:
            if variant.most_chains is None or count <= variant.most_chains:
                rows.append(work.superposed(variant, count, recipe, own))
    return [{"setting": name, "seed": seed, **row, "versions": str(versions())} for row in rows]


class _Work:
    """What is trained once for all variants of a setting and seed."""

    def __init__(self, config: Config, splits: Splits, schedule_epochs: int | None) -> None:
        self._config, self._splits = config, splits
        self._tickets: dict[tuple[bool, int, int], Ticket] = {}
        self._states: dict[tuple[bool, int], bytes] = {}
        self._seconds: dict[tuple[bool, int, int], float] = {}
        began = time.perf_counter()
        with worker_determinism(config):
            learner = trained(config, splits, schedule_epochs=schedule_epochs)
        self._state = learner.to_bytes(epoch=budget_of(config).pretrain_epochs)
        self._pretrained = learner.ticket({})
        self._pretrain_seconds = time.perf_counter() - began

    def put_in(self, other: Config) -> None:
        """Puts another pretraining in the place of every ticket of the first chain."""
        with worker_determinism(other):
            stranger = trained(other, self._splits).ticket({})
        for cycle in range(budget_of(self._config).cycles):
            self._tickets[False, 0, cycle] = stranger
            self._seconds[False, 0, cycle] = self._pretrain_seconds

    def plain(self, recipe: Path, overrides: Sequence[str]) -> Iterator[Row]:
        """Plain training of the same total epochs, at its end and where validation was best."""
        total = self._config.train.epochs
        found = []
        for schedule in SCHEDULES:
            # One epoch more, which a cycle would take: pretraining then has exactly the total.
            own = [f"train.epochs={total + 1}", "tickets.cycle_epochs=1", f"tickets.cycle_rate={1.5 / (total + 1)}"]
            config = load_config(recipe, [*overrides, *own, f"train.lr_schedule={schedule}"])
            assert budget_of(config).pretrain_epochs == total
            began, best = time.perf_counter(), _Best()
            with worker_determinism(config):
                learner = trained(config, self._splits, best.look(self._splits))
                ends = self._scores(learner)
            found.append((ends, best.scores, learner.ticket({}).digest, time.perf_counter() - began))
        ends, _, digest, seconds = max(found, key=lambda one: one[0]["validation_accuracy"])
        yield {"variant": "plain", "chains": 0, **ends, "seconds": seconds, "digest": digest}
        _, stopped, _, seconds = max(found, key=lambda one: one[1]["validation_accuracy"])
        yield {"variant": "early_stop", "chains": 0, **stopped, "seconds": seconds}

    def superposed(self, variant: Variant, chains: int, recipe: Path, overrides: Sequence[str]) -> Row:
        """The sup-ticket of some chains under a variant."""
        config = load_config(recipe, [*overrides, f"tickets.num_chains={chains}", *variant.overrides])
        order = list(canonical_order(chains, budget_of(config).cycles))
        tickets = [self._ticket(variant.shared_mask, *key) for key in order]
        began = time.perf_counter()
        with worker_determinism(config):
            merger = Merger(config, self._splits, self._pretrained, CPU)
            for ticket, key in zip(tickets, order, strict=True):
                merger.merge(ticket, *key, validate=False)
            merged = merger.superposed
            scores = {split: merger.score(merged, split)["accuracy"] for split in ("validation", "test")}
        spent = time.perf_counter() - began + self._pretrain_seconds
        spent += sum(self._seconds[variant.shared_mask, *key] for key in order)
        return {
            "variant": variant.name,
            "chains": chains,
            "validation_accuracy": scores["validation"],
            "test_accuracy": scores["test"],
            "seconds": spent,
            "digest": merged.digest,
        }

    def single_tickets(self, chains: int) -> list[Row]:
        """The pretrained network, and the mean over all tickets."""
        config = self._config
        order = list(canonical_order(chains, budget_of(config).cycles))
        with worker_determinism(config):
            judge = Merger(config, self._splits, self._pretrained, CPU)
            scores = [
                [judge.score(ticket, split)["accuracy"] for split in ("validation", "test")]
                for ticket in [self._pretrained, *(self._ticket(False, *key) for key in order)]
            ]
        (validation, test), others = scores[0], scores[1:]
        spent = sum(self._seconds[False, *key] for key in order)
        first = {"variant": "pretraining", "chains": 0, "validation_accuracy": validation, "test_accuracy": test}
        mean = {
            "variant": "mean_ticket",
            "chains": chains,
            "validation_accuracy": sum(one[0] for one in others) / len(others),
            "test_accuracy": sum(one[1] for one in others) / len(others),
        }
        return [
            {**first, "seconds": self._pretrain_seconds, "digest": self._pretrained.digest},
            # The mean is no single network: it has no digest.
            {**mean, "seconds": self._pretrain_seconds + spent / len(order), "digest": ""},
        ]

    def _ticket(self, shared_mask: bool, chain: int, cycle: int) -> Ticket:
        """Runs a chain as far as needed, once."""
        key = shared_mask, chain, cycle
        if key not in self._tickets:
            if cycle:
                self._ticket(shared_mask, chain, cycle - 1)
            config = _without_exploration(self._config) if shared_mask else self._config
            began = time.perf_counter()
            with worker_determinism(config):
                learner = build_learner(config, self._splits, CPU, restores=True)
                learner.load_bytes(self._states.get((shared_mask, chain), self._state))
                run_cycle(learner, config, self._splits, chain, cycle)
            self._states[shared_mask, chain] = learner.to_bytes(cycle=cycle)
            self._tickets[key] = learner.ticket({"chain": chain, "cycle": cycle})
            self._seconds[key] = time.perf_counter() - began
        return self._tickets[key]

    def _scores(self, learner: Learner) -> dict[str, float]:
        return scores_of(learner, self._splits)


def scores_of(learner: Learner, splits: Splits) -> dict[str, float]:
    """Returns the accuracies (fractions) of a network."""
    return {
        f"{name}_accuracy": evaluate(learner.model, getattr(splits, name))["accuracy"]
        for name in ("validation", "test")
    }


class _Best:
    """Early stopping: the epoch with the best validation accuracy, and what the test set says then."""

    def __init__(self) -> None:
        self.scores: dict[str, Any] = {"validation_accuracy": -1.0}

    def look(self, splits: Splits) -> Callable[[Learner], None]:
        def after_epoch(learner: Learner) -> None:
            validation = evaluate(learner.model, splits.validation)["accuracy"]
            if validation > self.scores["validation_accuracy"]:
                self.scores = {**scores_of(learner, splits), "digest": learner.ticket({}).digest}

        return after_epoch


def trained(
    config: Config,
    splits: Splits,
    after_epoch: Callable[[Learner], None] = lambda learner: None,
    schedule_epochs: int | None = None,
) -> Learner:
    """Returns what pretraining of a recipe ends in, as one rank of `suptickets train` trains it.

    Args:
        config: The recipe.
        splits: Its data.
        after_epoch: Is shown the learner after every epoch.
        schedule_epochs: Epochs over which the schedule of the rates is laid, if not over those of pretraining.
    """
    learner = build_learner(config, splits, CPU)
    epochs, epoch_steps = budget_of(config).pretrain_epochs, steps_per_epoch(config, splits)
    for epoch in range(epochs):
        seed_torch(config.seed, "pretrain", epoch, 0)

        def rate(step: int, epoch: int = epoch) -> float:
            return pretrain_lr(config.train, epoch * epoch_steps + step, epoch_steps, schedule_epochs or epochs)

        train_epoch(learner, learner.model, config, splits, order_seed(config.seed, epoch), rate)
        after_epoch(learner)
    learner.sparsifier.end_phase()
    return learner


def _without_exploration(config: Config) -> Config:
    return replace(config, tickets=replace(config.tickets, explore=False, exploration_fraction=None))
