"""The recipes of other tasks than image classification, phase by phase on their own data, without Ray."""

import math

import pytest
import torch
from torchvision.models import resnet18

from suptickets_ray import load_config
from suptickets_ray.superposition.merger import Merger
from suptickets_ray.training.cycle import run_cycle
from suptickets_ray.training.data import load_data
from suptickets_ray.training.evaluation import evaluate
from suptickets_ray.training.loop import budget_of, build_learner, order_seed, steps_per_epoch, train_epoch
from suptickets_ray.training.optim import pretrain_lr
from suptickets_ray.training.preflight import preflight

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def phases(config):
    """Scores on validation before and after pretraining, and of the merged network, whose report is the last value."""
    preflight(config)
    splits = load_data(config.data)
    learner = build_learner(config, splits, CPU)
    name = learner.task.metric.name
    initial = evaluate(learner.model, splits.validation, learner.task)[name]
    epochs, epoch_steps = budget_of(config).pretrain_epochs, steps_per_epoch(config, splits)
    for epoch in range(epochs):

        def rate(step, epoch=epoch):
            return pretrain_lr(config.train, epoch * epoch_steps + step, epoch_steps, epochs)

        train_epoch(learner, learner.model, config, splits, order_seed(config.seed, epoch), rate)
    learner.sparsifier.end_phase()
    pretrained = evaluate(learner.model, splits.validation, learner.task)[name]
    state, merger, merged = learner.to_bytes(), Merger(config, splits, learner.ticket({}), CPU), []
    for chain in range(config.tickets.num_chains):
        learner.load_bytes(state)
        for cycle in range(budget_of(config).cycles):
            run_cycle(learner, config, splits, chain, cycle)
            ticket = learner.ticket({})
            merged.append((merger.merge(ticket, chain, cycle), ticket))
    return initial, pretrained, merger.evaluate(merged)


@pytest.mark.parametrize(
    ("overrides", "metric", "bound"),
    [
        # Below the variance of the targets, which is 1.
        ([], "mean_squared_error", 0.8),
        (["data.options.table=wine", "task.name=classification"], "accuracy", 0.9),
        (["data.options.table=breast_cancer", "task.name=classification"], "accuracy", 0.9),
    ],
)
def test_a_table_is_learned_by_pretraining_and_kept_by_the_sup_ticket(overrides, metric, bound):
    overrides = [*overrides, "train.epochs=40", "tickets.num_chains=2", "method.update_interval_steps=10"]
    config = load_config("diabetes", [*overrides, "data.batch_size=16"])
    initial, pretrained, report = phases(config)
    assert report["task_metric"]["name"] == metric
    sign = 1 if report["task_metric"]["mode"] == "max" else -1
    assert sign * pretrained > max(sign * initial, sign * bound)
    assert sign * report["superposed"][f"validation_{metric}"] > sign * bound
    assert report["superposed"]["density"] == pytest.approx(0.2, abs=1e-3)


def test_the_text_is_learned_by_pretraining_and_kept_by_the_sup_ticket():
    small = ["data.options.num_characters=40000", "data.options.length=32", "model.options={width: 32, depth: 1}"]
    small += ["train.epochs=10", "tickets.cycle_epochs=1", "data.batch_size=16", "method.update_interval_steps=30"]
    initial, pretrained, report = phases(load_config("text", small))
    # Guessing among the characters that occur costs about 3.2 nats by their frequencies, and more if all are alike.
    assert initial > 4 > 2.9 > pretrained
    assert report["superposed"]["validation_cross_entropy"] < 2.9
    assert report["superposed"]["token_accuracy"] > 0.2
    assert math.isfinite(report["ensemble"]["cross_entropy"])


def test_fine_tuning_starts_from_the_file_and_keeps_the_stem(tmp_path):
    torch.manual_seed(0)
    network = resnet18(num_classes=1000)
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    small = ["data.options={shape: [3, 32, 32], num_classes: 3, num_train: 40, num_test: 8}", "data.batch_size=8"]
    config = load_config("finetune", [f"model.weights={tmp_path}/weights.pt", *small, "method.update_interval_steps=2"])
    with pytest.warns(UserWarning, match="the head was not loaded from"):
        preflight(config)
    splits = load_data(config.data)
    with pytest.warns(UserWarning, match=r"'fc.weight', 'fc.bias' has 1000 rows in the file and 3 in the network"):
        learner = build_learner(config, splits, CPU)
    loaded, kept = network.state_dict(), learner.sparsifier.masks
    weights = learner.model.state_dict()
    for name, mask in kept.items():
        if name != "fc.weight":
            assert torch.equal(weights[name], loaded[name] * mask)
    train_epoch(learner, learner.model, config, splits, 0, lambda step: config.train.lr)
    stem = [name for name in loaded if name.startswith(("conv1", "bn1", "layer1"))]
    assert all(torch.equal(learner.model.state_dict()[name], loaded[name]) for name in stem)
    assert not set(stem) & set(kept)
