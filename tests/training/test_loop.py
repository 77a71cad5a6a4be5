import pytest
import torch
from torch import nn

from suptickets_ray import load_config
from suptickets_ray.sparse.masks import num_active
from suptickets_ray.sparse.methods import METHODS
from suptickets_ray.superposition.merger import Merger
from suptickets_ray.training.cycle import cycle_lr, run_cycle
from suptickets_ray.training.data import load_data
from suptickets_ray.training.divergence import DivergedError, check_finite
from suptickets_ray.training.evaluation import evaluate
from suptickets_ray.training.loop import (
    budget_of,
    build_learner,
    order_seed,
    sparsifier_settings,
    steps_per_epoch,
    train_epoch,
)

SMALL = ["train.epochs=6", "tickets.cycle_rate=0.34", "tickets.cycle_epochs=1", "data.num_train_examples=200"]
FAST = ["method.update_interval_steps=4"]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def prepare(*overrides):
    config = load_config(None, [*SMALL, *overrides])
    splits = load_data(config.data)
    return config, splits, build_learner(config, splits, CPU)


def pretrain(config, splits, learner, epochs=None):
    total = budget_of(config).pretrain_epochs
    for epoch in range(total if epochs is None else epochs):
        seed = order_seed(config.seed, epoch)
        train_epoch(learner, learner.model, config, splits, seed, lambda step: config.train.lr)
    return learner


def digest(learner):
    return learner.ticket({}).digest


@pytest.mark.parametrize("method", METHODS)
def test_both_phases_and_the_sup_ticket_hold_the_target_density_exactly(method):
    interval = FAST if "update_interval_steps" in METHODS[method].defaults else []
    config, splits, learner = prepare(f"method.name={method}", "superposition.gate_tolerance=none", *interval)
    pretrain(config, splits, learner)
    merger = Merger(config, splits, learner.ticket({}), CPU)
    expected = int(config.method.density * 25_856 + 1e-9)  # 64 * 128 + 128 * 128 + 128 * 10
    assert num_active(learner.sparsifier.masks) == expected
    for cycle in range(2):
        run_cycle(learner, config, splits, chain=0, cycle=cycle)
        assert num_active(learner.sparsifier.masks) == expected
        merger.merge(learner.ticket({}), 0, cycle)
    assert num_active(merger.superposed.masks) == expected


def test_dense_is_plain_training_bit_for_bit():
    config, splits, learner = prepare("method.name=dense", "model.initialization=default")
    _, _, twin = prepare("method.name=dense", "model.initialization=default")
    model = twin.model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=2e-3)
    pretrain(config, splits, learner, epochs=2)
    twin.sparsifier.detach()
    for epoch in range(2):
        for inputs, labels in splits.train.epoch(order_seed(config.seed, epoch), [25] * 8):
            optimizer.zero_grad()
            (nn.functional.cross_entropy(model(inputs), labels, reduction="sum") / 25).backward()
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(learner.model.parameters(), model.parameters(), strict=True))


def test_a_cycle_is_a_function_of_state_chain_and_cycle():
    config, splits, learner = prepare(*FAST)
    state = pretrain(config, splits, learner).to_bytes()
    digests = {}
    for chain, cycle in [(0, 0), (1, 0), (0, 1), (0, 0)]:
        _, _, other = prepare(*FAST, "seed=0")
        other.load_bytes(state)
        run_cycle(other, config, splits, chain, cycle)
        assert digests.setdefault((chain, cycle), digest(other)) == digest(other)
    assert len(set(digests.values())) == 3


def test_a_learner_that_ran_another_cycle_before_gives_the_same_ticket():
    config, splits, learner = prepare(*FAST)
    state = pretrain(config, splits, learner).to_bytes()
    _, _, fresh = prepare(*FAST)
    fresh.load_bytes(state)
    run_cycle(learner, config, splits, 1, 0)
    learner.load_bytes(state)
    for other in (learner, fresh):
        run_cycle(other, config, splits, 0, 0)
    assert digest(learner) == digest(fresh)


def test_a_saved_learner_is_the_same_after_loading():
    config, splits, learner = prepare(*FAST)
    pretrain(config, splits, learner)
    _, _, other = prepare(*FAST, "seed=7")
    assert other.load_bytes(learner.to_bytes(epoch=3)) == {"epoch": 3}
    assert digest(other) == digest(learner)


def masks_after_cycle(*overrides):
    config, splits, learner = prepare(*FAST, *overrides)
    pretrain(config, splits, learner)
    before = learner.ticket({}).masks
    run_cycle(learner, config, splits, 0, 0)
    return sum(int((mask & ~before[name]).sum()) for name, mask in learner.sparsifier.masks.items())


def test_exploration_changes_the_topology_by_at_most_its_fraction_and_its_absence_not_at_all():
    assert masks_after_cycle("tickets.explore=false") == 0
    assert 0 < masks_after_cycle("tickets.exploration_fraction=0.2") <= 0.2 * 2585 + 3
    assert masks_after_cycle("tickets.exploration_fraction=0.2") < masks_after_cycle("tickets.exploration_fraction=0.8")


def test_masks_stay_fixed_in_a_cycle_unless_asked():
    config, splits, learner = prepare(*FAST, "tickets.explore=false", "tickets.update_masks=true")
    pretrain(config, splits, learner)
    before = learner.ticket({}).masks
    run_cycle(learner, config, splits, 0, 0)
    assert any(not torch.equal(before[name], mask) for name, mask in learner.sparsifier.masks.items())


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "data.label_noise=0.4",
        "data.split_seed=1",
        "data.batch_size=20",
        "train.lr=0.05",
        "train.momentum=0.5",
        "train.weight_decay=0",
        "train.epochs=12",
        "model.initialization=default",
        "model.options.widths=[64]",
        "method.density=0.2",
        "method.compute=sparse",
        "method.distribution=uniform",
        "method.grow=random",
        "method.drop_fraction=0.6",
        "method.update_interval_steps=3",
        "method.update_end_fraction=0.3",
        "method.name=set",
        "tickets.exploration_fraction=0.5",
        "tickets.explore=false",
        "tickets.lr_high=0.4",
        "tickets.lr_low=0.01",
        "tickets.cyclic_lr=false",
    ],
)
def test_changing_a_setting_changes_the_ticket(override):
    def made(*overrides):
        config, splits, learner = prepare(*FAST, *overrides)
        pretrain(config, splits, learner)
        run_cycle(learner, config, splits, 0, 0)
        return digest(learner)

    assert made(override) != made()


@pytest.mark.parametrize(("cyclic", "rates"), [("true", (0.001, 0.2, 0.001)), ("false", (0.001, 0.001, 0.001))])
def test_a_cycles_rate_is_a_triangle_or_stays_low(cyclic, rates):
    section = load_config(None, [f"tickets.cyclic_lr={cyclic}"]).tickets
    assert [cycle_lr(section, epochs) for epochs in (0, 2.5, 5)] == pytest.approx(rates)


def test_sparse_initial_weights_have_the_variance_of_the_connections_that_are_there():
    _, _, learner = prepare("method.density=0.3", *FAST)
    weight, mask = learner.model[4].weight, learner.sparsifier.masks["4.weight"]
    expected = (1 / (3 * 128 * float(mask.float().mean()))) ** 0.5
    values = weight.detach()[mask]
    assert float(values.std()) == pytest.approx(expected, rel=4 / (2 * len(values)) ** 0.5)


def test_the_prune_window_counts_epochs_of_pretraining():
    config, splits, learner = prepare(
        "method.name=gmp", *FAST, "method.prune_start_epoch=1", "method.prune_end_epoch=3"
    )
    steps = steps_per_epoch(config, splits)
    assert sparsifier_settings(config)["prune_end_fraction"] == 3 / 4
    seen = []
    for _ in range(4):
        pretrain(config, splits, learner, epochs=1)
        seen.append(learner.sparsifier.density)
    assert steps == 8
    assert seen[0] == 1.0 > seen[1] > seen[2]
    assert seen[2] == seen[3] == int(0.1 * 25_856) / 25_856


def test_training_learns_something():
    config, splits, learner = prepare(*FAST)
    before = evaluate(learner.model, splits.validation)["accuracy"]
    pretrain(config, splits, learner)
    assert before < 0.3 < 0.5 < evaluate(learner.model, splits.validation)["accuracy"]


def test_chains_that_share_their_masks_still_see_the_data_in_orders_of_their_own():
    config, splits, learner = prepare(*FAST, "tickets.explore=false", "model.options.widths=[32]")
    state = pretrain(config, splits, learner).to_bytes()
    digests = set()
    for chain, cycle in [(0, 0), (1, 0), (0, 1)]:
        learner.load_bytes(state)
        run_cycle(learner, config, splits, chain, cycle)
        digests.add(digest(learner))
    assert len(digests) == 3


def test_chains_explore_on_batches_of_their_own_so_that_gradient_growth_gives_them_other_masks():
    config, splits, learner = prepare(*FAST)
    state = pretrain(config, splits, learner).to_bytes()
    masks = []
    for chain in (0, 1):
        learner.load_bytes(state)
        run_cycle(learner, config, splits, chain, 0)
        masks.append(learner.ticket({}).masks)
    assert config.method.grow == "gradient"
    assert any(not torch.equal(masks[0][name], masks[1][name]) for name in masks[0])


def test_pretraining_that_diverges_stops_with_the_step_and_a_remedy():
    config, splits, learner = prepare(*FAST)
    seen = []

    def rate(step):
        return 1e30 if step == 2 else config.train.lr

    train_epoch(learner, learner.model, config, splits, 0, rate, on_diverged=seen.append)
    assert seen == [4]  # the step after the one that was too large
    with pytest.raises(DivergedError, match=r"not finite from step 4 of epoch 1 on. Lower train.lr \(0.1\), clip"):
        check_finite(learner, config.train, 1, seen[0])
    with pytest.raises(DivergedError, match="a weight is not finite after epoch 1"):
        check_finite(learner, config.train, 1, None)
    check_finite(prepare(*FAST)[2], config.train, 1, None)
