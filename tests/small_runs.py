"""Small finished runs, made without Ray, and a browser to open their pages in."""

import json
import os
import shutil

import pytest

SMALL = [
    "model.options.widths=[16]",
    "data.num_train_examples=100",
    "train.epochs=20",
    "train.checkpoint_every_epochs=10",
    "method.update_interval_steps=5",
    "tickets.num_chains=2",
    "tickets.cycle_epochs=2",
    "tickets.cycle_rate=0.2",
]
"""Overrides of the digits recipe: 16 epochs of pretraining, then 2 chains of 2 cycles."""

NODES = ("4ddca3268f000ce6", "2cab9f5e8b77a1d0")


def timeline():
    """Of a run that was killed after its first two cycles and started again, with an explorer process in each start."""

    def cycle(chain, cycle, process, began, ended, start):
        where = {"node": NODES[process], "process": 100 + process}
        return {
            "kind": "cycle",
            "chain": chain,
            "cycle": cycle,
            **where,
            "began": began,
            "ended": ended,
            "start": start,
        }

    return {
        "starts": [{"began": 1000.0, "ended": 1030.0}, {"began": 5000.0, "ended": 5020.0}],
        "spans": [
            {"kind": "pretrain", "began": 1001.0, "ended": 1015.0, "start": 0},
            cycle(0, 0, 0, 1016.0, 1026.0, 0),
            cycle(1, 0, 1, 1018.0, 1028.0, 0),
            cycle(0, 1, 0, 5002.0, 5012.0, 1),
            cycle(1, 1, 1, 5002.0, 5010.0, 1),
            {"kind": "merge", "chain": 0, "cycle": 0, "began": 5012.0, "ended": 5012.5, "start": 1},
            {"kind": "superpose", "began": 5015.0, "ended": 5018.0, "start": 1},
        ],
    }


def make_run(path, overrides=(), base=SMALL):
    """Makes a run's folder as `train` leaves it, in this process; only the tensorboard files are missing."""
    import torch

    from suptickets_ray import load_config
    from suptickets_ray.distributed.pipeline.result import assemble_result, without_nan
    from suptickets_ray.recipes.load import config_digest, to_yaml
    from suptickets_ray.search.keys import exploration_key, pretraining_key
    from suptickets_ray.superposition.merger import Merger
    from suptickets_ray.tickets.store import RunStore
    from suptickets_ray.tickets.ticket_store import TicketStore
    from suptickets_ray.training.checkpoint import state_digest
    from suptickets_ray.training.cycle import run_cycle
    from suptickets_ray.training.data import load_data
    from suptickets_ray.training.determinism import worker_determinism
    from suptickets_ray.training.loop import budget_of, build_learner, order_seed, train_epoch

    config = load_config(None, [*base, f"storage={path.parent}", f"name={path.name}", *overrides])
    store, splits, device = RunStore(str(path)), load_data(config.data), torch.device("cpu")
    budget = budget_of(config)
    store.write("config.yaml", to_yaml(config).encode())
    with worker_determinism(config):
        learner = build_learner(config, splits, device)
        for epoch in range(budget.pretrain_epochs):
            seed = order_seed(config.seed, epoch)
            train_epoch(learner, learner.model, config, splits, seed, lambda step: config.train.lr)
        state = learner.to_bytes(epoch=budget.pretrain_epochs, recipe=int(pretraining_key(config), 16))
        store.write("pretrained.pt", state)
        provenance = {"run": config.name, "config_digest": config_digest(config)}
        merger = Merger(config, splits, learner.ticket(provenance), device)
        judged = []
        for chain in range(config.tickets.num_chains):
            learner.load_bytes(state)
            for cycle in range(budget.cycles):
                origin = {"exploration": exploration_key(config), "pretrained": state_digest(state)}
                parent = learner.ticket({}).digest
                run_cycle(learner, config, splits, chain, cycle)
                ticket = learner.ticket({**provenance, **origin, "parent": parent, "chain": chain, "cycle": cycle})
                TicketStore(store).put(ticket, chain, cycle)
                judged.append((merger.merge(ticket, chain, cycle), ticket))
        report = merger.evaluate(judged)
    store.write("superposed.arrow", merger.superposed.to_bytes())
    seconds = {"pretrain": 14.0, "explore": 20.0, "superpose": 3.0, "total": 40.0}
    result = assemble_result(config, report, seconds, [])
    store.write("result.json", json.dumps(without_nan(result), indent=2).encode())
    store.write("timeline.json", json.dumps({"config_digest": config_digest(config), **timeline()}).encode())


def store_pretraining(store, folder, recipe):
    """Stores what a search would pretrain, so that it need not.

    Args:
        store: The store of the search.
        folder: Of a run to make in this process.
        recipe: Overrides of the digits recipe, with one rank.
    """
    from suptickets_ray import load_config
    from suptickets_ray.search.keys import pretraining_key
    from suptickets_ray.tickets.run_folder import PRETRAINED_FILE, PRETRAININGS_FOLDER

    make_run(folder, base=recipe)
    key = pretraining_key(load_config(None, recipe))
    store.write(f"{PRETRAININGS_FOLDER}/{key}/{PRETRAINED_FILE}", (folder / PRETRAINED_FILE).read_bytes())


@pytest.fixture(scope="session")
def stored_runs(tmp_path_factory):
    """A folder with runs a and b, which differ in their seed, and c, of another number of cycles. Not to be changed."""
    root = tmp_path_factory.mktemp("runs")
    make_run(root / "a")
    make_run(root / "b", ["seed=1"])
    make_run(root / "c", ["tickets.num_chains=3"])
    return root


@pytest.fixture
def run(stored_runs, tmp_path):
    """A copy of run a, to be changed."""
    return shutil.copytree(stored_runs / "a", tmp_path / "a")


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium. Of the module only: while it runs, an event loop runs in this thread."""

    def missing(what):
        if os.environ.get("CI_REQUIRES_BROWSER"):
            pytest.fail(f"CI_REQUIRES_BROWSER is set, but {what}")
        pytest.skip(what)

    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("playwright is not installed")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        missing("no Chromium is installed; on Debian: apt-get install chromium")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield started
        started.close()
