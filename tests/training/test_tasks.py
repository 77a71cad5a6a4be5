"""Tasks: losses, metrics, ensembles, inputs and outputs of every form, and what the preflight refuses."""

import math
import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from suptickets_ray import load_config
from suptickets_ray.metric import ACCURACY, Metric
from suptickets_ray.superposition.assessment import Gain, assess
from suptickets_ray.superposition.gate import Gate
from suptickets_ray.superposition.merger import Merger
from suptickets_ray.training.cycle import run_cycle
from suptickets_ray.training.data import load_data
from suptickets_ray.training.evaluation import evaluate
from suptickets_ray.training.loop import backward, build_learner, compute_gradient, order_seed, train_epoch
from suptickets_ray.training.nested import logits_of, split_parts
from suptickets_ray.training.preflight import preflight
from suptickets_ray.training.task import Task
from suptickets_ray.training.tasks import (
    TASKS,
    classification,
    language_model,
    make_task,
    multilabel,
    regression,
    segmentation,
)

FILE = """
import torch
from torch import nn
from suptickets_ray import Metric, Task

def draw(count, task, form):
    generator = torch.Generator().manual_seed(count)
    inputs = torch.randn(count, 6, generator=generator)
    if task == "classification":
        labels = (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0).long()
    elif task == "multilabel":
        labels = inputs[:, :3] > 0
    elif task == "regression":
        labels = inputs[:, :2] * 3 + inputs[:, 2:4]
    elif task == "segmentation":
        inputs = torch.randn(count, 1, 4, 4, generator=generator)
        labels = (inputs[:, 0] > 0).long() + (inputs[:, 0] > 1).long()
    else:
        tokens = torch.randint(3, (count, 1), generator=generator) + torch.arange(6)
        inputs, labels = tokens[:, :-1] % 5, tokens[:, 1:] % 5
    if form == "dict":
        return {"values": inputs, "unused": torch.ones(count, 1)}, labels
    return ((inputs, torch.ones(count, 1)) if form == "tuple" else inputs), labels

def load(task, form="tensor"):
    return {"train": draw(64, task, form), "validation": draw(30, task, form), "test": draw(40, task, form)}

class Net(nn.Module):
    def __init__(self, task, outputs, returns):
        super().__init__()
        self.task, self.returns = task, returns
        if task == "segmentation":
            self.first, self.last = nn.Conv2d(1, 12, 3, padding=1), nn.Conv2d(12, outputs, 1)
        elif task == "language_model":
            self.words = nn.Embedding(5, 8)
            self.first, self.last = nn.Linear(8, 12), nn.Linear(12, outputs)
        else:
            self.first, self.last = nn.Linear(6, 12), nn.Linear(12, outputs)

    def forward(self, values, unused=None):
        if self.task == "language_model":
            values = self.words(values)
        logits = self.last(torch.relu(self.first(values)))
        if self.returns == "object":
            return Outputs(logits)
        return {"tensor": logits, "dict": {"logits": logits}, "tuple": (logits, 1)}[self.returns]

class Outputs:
    def __init__(self, logits):
        self.logits = logits

def build(num_outputs, task, returns="tensor"):
    return Net(task, num_outputs, returns)

def absolute(factor=1.0):
    return Task(
        loss=lambda outputs, targets: factor * (outputs - targets).abs().mean(),
        predict=lambda outputs: outputs,
        measure=lambda predictions, targets: {"deviation": (predictions - targets).abs().mean(1)},
        metrics=(Metric("deviation", "min"),),
    )

def faulty(kind):
    changes = {
        "nan_loss": {"loss": lambda outputs, targets: outputs.sum() * float("nan")},
        "many_losses": {"loss": lambda outputs, targets: outputs.sum(1)},
        "constant": {"loss": lambda outputs, targets: torch.tensor(1.0)},
        "field": {"loss": lambda outputs, targets: outputs.loss},
        "nan_metric": {"measure": lambda p, t: {"deviation": p.sum(1) * float("nan")}},
        "mean_metric": {"measure": lambda p, t: {"deviation": p.mean()}},
        "other_metric": {"measure": lambda p, t: {"difference": p.sum(1)}},
    }
    import dataclasses
    return dataclasses.replace(absolute(), **changes[kind])

def nothing():
    return 3
"""

SMALL = [
    "data.batch_size=16",
    "data.label_noise=0",
    "train.epochs=6",
    "tickets.cycle_rate=0.34",
    "tickets.cycle_epochs=1",
    "train.lr=0.1",
    "method.density=0.5",
    "method.update_interval_steps=4",
    "model.initialization=default",
]


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """Returns a recipe of a task, with networks and data of this file."""
    (tmp_path / "own_task.py").write_text(FILE)
    monkeypatch.syspath_prepend(tmp_path)

    def made(task, *overrides, form="tensor", returns="tensor"):
        own = ["data.name=own_task:load", f"data.options={{task: {task}, form: {form}}}", "model.name=own_task:build"]
        own += [f"model.options={{task: {task}, returns: {returns}}}", f"task.name={task}"]
        return load_config({**load_config_dict(), "name": "own"}, [*own, *SMALL, *overrides])

    return made


def load_config_dict():
    return {
        "model": {"name": "mlp"},
        "data": {"name": "digits"},
        "train": {"epochs": 10},
        "method": {"name": "rigl", "density": 0.5},
    }


def loss_after_training(config):
    splits = load_data(config.data)
    learner = build_learner(config, splits, torch.device("cpu"))
    before = evaluate(learner.model, splits.validation, learner.task)
    for epoch in range(10):
        train_epoch(learner, learner.model, config, splits, order_seed(0, epoch), lambda step: config.train.lr)
    return before, evaluate(learner.model, splits.validation, learner.task), learner, splits


@pytest.mark.parametrize("task", TASKS)
def test_every_task_passes_the_preflight_learns_and_merges(recipe, task):
    config = recipe(task)
    preflight(config)
    before, after, learner, splits = loss_after_training(config)
    metric = learner.task.metric
    assert metric.is_better(after[metric.name], before[metric.name])
    assert after["loss"] < before["loss"]
    pretrained = learner.ticket({})
    merger = Merger(config, splits, pretrained, torch.device("cpu"))
    run_cycle(learner, config, splits, 0, 0)
    ticket = learner.ticket({})
    merged = [(merger.merge(ticket, 0, 0), ticket), (merger.merge(pretrained, 1, 0), pretrained)]
    report = merger.evaluate(merged)
    keys = {measured.name for measured in learner.task.metrics} | {"loss"}
    for name in ("superposed", "pretrained", "ensemble", "unpruned_mean"):
        assert keys | {f"validation_{key}" for key in keys} <= set(report[name])
        assert all(math.isfinite(report[name][key]) for key in keys)
    assert report["task_metric"] == metric.to_dict()
    assert ("only_one_right" in report["pretrained"]) == (task == "classification")


@pytest.mark.parametrize("form", ["tuple", "dict"])
@pytest.mark.parametrize("returns", ["object", "dict", "tuple"])
def test_inputs_and_outputs_of_every_form_give_the_same_bits(recipe, form, returns):
    plain, nested = recipe("classification"), recipe("classification", form=form, returns=returns)
    digests = []
    for config in (plain, nested):
        preflight(config)
        *_, learner, splits = loss_after_training(config)
        run_cycle(learner, config, splits, 0, 0)
        digests.append(learner.ticket({}).digest)
    assert digests[0] == digests[1]


def test_a_user_defined_task_trains_by_its_mean_loss(recipe):
    config = recipe("regression", "task.name=own_task:absolute")
    preflight(config)
    splits = load_data(config.data)
    learner = build_learner(config, splits, torch.device("cpu"))
    inputs, targets = next(splits.train.epoch(0, [16]))
    backward(learner, learner.model, config.train, inputs, targets, 1 / 16)
    found = learner.model.last.bias.grad.clone()
    learner.model.zero_grad()
    (learner.model(inputs) - targets).abs().mean().backward()
    assert torch.allclose(found, learner.model.last.bias.grad)
    assert set(evaluate(learner.model, splits.test, learner.task)) == {"deviation", "loss"}


def test_the_metrics_by_hand():
    measured = multilabel().measure(torch.tensor([[0.9, 0.2], [0.1, 0.2]]), torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
    assert measured["f1"].tolist() == pytest.approx([2 / 3, 1])
    assert measured["exact_match"].tolist() == [False, True]
    measured = regression().measure(torch.tensor([[1.0], [2.0]]), torch.tensor([3.0, 2.0]))
    assert measured["mean_squared_error"].tolist() == [4, 0]
    assert measured["mean_absolute_error"].tolist() == [2, 0]
    probabilities = torch.tensor([0.8, 0.2]).view(1, 2, 1, 1).expand(1, 2, 2, 2)
    measured = segmentation().measure(probabilities, torch.tensor([[[0, 1], [255, 0]]]))
    assert measured["mean_iou"].tolist() == pytest.approx([(2 / 3 + 0) / 2])
    assert measured["pixel_accuracy"].tolist() == pytest.approx([2 / 3])
    assert measured["loss"].tolist() == pytest.approx([-(2 * math.log(0.8) + math.log(0.2)) / 3])
    measured = language_model().measure(torch.tensor([[[0.5, 0.5], [0.1, 0.9]]]), torch.tensor([[0, 1]]))
    assert measured["cross_entropy"].tolist() == pytest.approx([-(math.log(0.5) + math.log(0.9)) / 2])
    ignored = language_model().measure(torch.tensor([[[0.5, 0.5], [0.1, 0.9]]]), torch.tensor([[-100, 1]]))
    assert ignored["cross_entropy"].tolist() == pytest.approx([-math.log(0.9)])


@pytest.mark.parametrize(
    ("task", "outputs", "targets"),
    [
        (classification(), torch.randn(4, 3), torch.tensor([0, 1, 2, 1])),
        (multilabel(), torch.randn(4, 3), torch.ones(4, 3)),
        (regression(), torch.randn(4, 1), torch.randn(4)),
        (segmentation(), torch.randn(4, 3, 2, 2), torch.randint(3, (4, 2, 2))),
        (language_model(), torch.randn(4, 5, 3), torch.randint(3, (4, 5))),
    ],
)
def test_the_measured_loss_is_the_mean_of_the_loss_of_training(task, outputs, targets):
    measured = task.measure(task.predict(outputs), targets)["loss"]
    assert float(measured.mean()) == pytest.approx(float(task.summed_loss(outputs, targets)) / 4, rel=1e-5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task.options={kind: nan_loss}"], "'loss' of task.name must return a finite scalar tensor; got tensor(nan"),
        (["task.options={kind: many_losses}"], "'loss' of task.name must return a finite scalar tensor"),
        (
            ["task.options={kind: constant}"],
            "Cannot compute the loss of model.name and its gradients: Runtime",
        ),
        (["task.options={kind: field}"], "Cannot call 'loss' of task.name on test examples: AttributeError"),
        (["task.options={kind: nan_metric}"], "'measure' of task.name must return finite values; 'deviation' is NaN"),
        (["task.options={kind: mean_metric}"], "'measure' of task.name must return 'deviation' of shape (2,)"),
        (
            ["task.options={kind: other_metric}"],
            "must return 'deviation' of shape (2,), a value for each example; got no",
        ),
    ],
)
def test_faults_of_a_user_defined_task_are_refused_by_the_preflight(recipe, overrides, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        preflight(recipe("regression", "task.name=own_task:faulty", *overrides))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task.name=regresion"], "unknown task 'regresion'; did you mean 'regression'?"),
        (["task.name=own_task:nothing"], "must name a function that returns a suptickets_ray.Task"),
        (["task.options={loss: l3}"], "unknown task.options.loss 'l3'; did you mean 'l1'?"),
        (["task.options={tau: 3}"], "task.options.tau has no effect"),
        (["train.label_smoothing=0.1"], "train.label_smoothing has no effect with task 'regression'"),
        (["search.metric=validation_accuracy"], "search.metric must be validation_mean_squared_error or"),
    ],
)
def test_settings_that_do_not_fit_the_task_are_refused(recipe, overrides, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        recipe("regression", *overrides)


@pytest.mark.parametrize(
    ("task", "other", "message"),
    [
        ("classification", "regression", "the train labels must be whole numbers, one class each; got torch.float32"),
        ("regression", "classification", "the train labels must be floating-point numbers"),
        ("multilabel", "regression", "the train labels must be 0 or 1, of shape (n, 2)"),
        ("segmentation", "classification", "the train labels must be classes 0 to 2, of shape of 3 dimensions"),
        ("language_model", "classification", "the train labels must be classes 0 to 2, of shape of 2 dimensions"),
    ],
)
def test_targets_of_another_task_are_refused_before_training(recipe, task, other, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        preflight(recipe(other, f"task.name={task}"))


def test_the_search_compares_the_metric_of_the_task(recipe):
    assert recipe("regression").search.metric == "validation_mean_squared_error"
    assert recipe("classification").search.metric == "validation_accuracy"


def test_the_gate_of_a_lower_metric_admits_a_relative_loss():
    gate = Gate(0.1, 100.0, Metric("error", "min"))
    assert [gate.admit(score) for score in (109.0, 111.0, 50.0, 54.0, 56.0)] == [True, False, True, True, False]


def test_a_gain_of_a_lower_metric_is_positive_if_it_is_lower():
    error = Metric("mean_squared_error", "min")
    assert Gain(0.5, 0.1, metric=error).in_points() == "0.5 ± 0.1 below"
    assert Gain(-0.5, 0.1, metric=error).in_points() == "0.5 ± 0.1 above"
    assert Gain(0.0125, 0.0031, metric=ACCURACY).in_points() == "1.25 ± 0.31 points above"


def test_a_gain_over_few_examples_is_judged_by_students_t():
    assert Gain(2.1, 1.0, num_examples=5).may_be_chance
    assert not Gain(2.1, 1.0, num_examples=500).may_be_chance


def test_the_assessment_names_the_metric():
    network = {"mse": 2.0, "loss": 2.0, "validation_mse": 2.0, "validation_loss": 2.0}
    other = network | {"mse": 3.0, "gain_error": 0.1, "num_examples": 100, "chain": 0, "cycle": 0, "accepted": True}
    result = {"task_metric": Metric("mse", "min").to_dict(), "superposed": network, "tickets": [other]}
    result |= dict.fromkeys(("pretrained", "mean_ticket", "best_ticket", "ensemble"), other)
    found = assess(result)
    assert found.outcome == "gain"
    assert "test mse is 2, 1 ± 0.1 below the pretrained network" in found.sentence


def test_outputs_without_logits_are_refused():
    assert logits_of(SimpleNamespace(logits=torch.ones(1))).tolist() == [1]
    with pytest.raises(
        ValueError, match="must return a tensor of logits, or an object, dict or tuple with logits; got int"
    ):
        logits_of(3)


def test_parts_of_nested_inputs_keep_their_form():
    inputs = {"a": torch.arange(5), "b": torch.arange(10).view(5, 2)}
    parts = split_parts(inputs, 2)
    assert [part["a"].tolist() for part in parts] == [[0, 1, 2], [3, 4]]
    assert [some[1].shape for some in split_parts(tuple(inputs.values()), 2)] == [(3, 2), (2, 2)]


def test_smoothed_labels_of_the_gradient_for_exploration_are_those_of_torch():
    config = load_config(None, ["train.label_smoothing=0.1", "model.options.widths=[16]", "data.num_train_examples=60"])
    splits = load_data(config.data)
    learner = build_learner(config, splits, torch.device("cpu"))
    compute_gradient(learner.model, splits, config, 3)
    found = {name: parameter.grad.clone() for name, parameter in learner.model.named_parameters()}
    inputs, labels = next(splits.train.epoch(3, [config.data.batch_size]))
    learner.model.zero_grad()
    nn.functional.cross_entropy(learner.model(inputs), labels, label_smoothing=0.1).backward()
    assert all(torch.equal(found[name], parameter.grad) for name, parameter in learner.model.named_parameters())


def test_a_task_is_made_with_the_options_of_the_recipe(recipe):
    task = make_task(recipe("regression", "task.options={loss: l1}"))
    assert isinstance(task, Task)
    assert float(task.loss(torch.tensor([[3.0]]), torch.tensor([1.0]))) == 2
