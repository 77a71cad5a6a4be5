import pytest
import torch

from suptickets_ray import load_config
from suptickets_ray.training.data import load_data
from suptickets_ray.training.loop import build_learner
from suptickets_ray.training.superposing import Superposing

CPU = torch.device("cpu")
SMALL = ["model.options.widths=[16]", "data.train_size=60"]


def superposing_of(overrides, looks):
    """The fold of three nets with their own weights and masks, of which some merges are looked at."""
    config = load_config(None, [*SMALL, *overrides])
    splits = load_data(config.data)
    nets = []
    for seed in range(4):
        own = load_config(None, [*SMALL, *overrides, f"seed={seed}"])
        nets.append(build_learner(own, splits, CPU).ticket({"seed": seed}))
    superposing = Superposing(config, splits, nets[0], CPU)
    rows = [
        superposing.fold(net, chain, 0, look=look)
        for chain, (net, look) in enumerate(zip(nets[1:], looks, strict=True))
    ]
    return superposing, rows


@pytest.mark.parametrize("method", ["cia", "caa", "cima"])
def test_merges_that_nobody_looks_at_change_no_bit(method):
    rule = [f"superposition.method={method}", "superposition.prune=last", "superposition.gate_tolerance=none"]
    looked, rows = superposing_of(rule, [True, True, True])
    unseen, bare = superposing_of(rule, [False, True, False])
    assert unseen.superposed.digest == looked.superposed.digest
    assert unseen.superposed.provenance == looked.superposed.provenance
    assert ["validation_accuracy" in row for row in bare] == [False, True, False]
    assert all(row["accepted"] for row in rows + bare)
    assert unseen.judge([])["superposed"] == looked.judge([])["superposed"]


@pytest.mark.parametrize("rule", [["superposition.prune=each"], ["superposition.prune=last"]])
def test_a_merge_on_which_the_next_depends_is_looked_at_whoever_asks(rule):
    gate = "superposition.gate_tolerance=" + ("none" if rule == ["superposition.prune=each"] else "0.5")
    superposing, rows = superposing_of([*rule, gate], [False, False, False])
    assert superposing.needs_every_look
    assert all("validation_accuracy" in row for row in rows)
