"""What ranks do together, without a process group: the collective calls are played by the test."""

from types import SimpleNamespace

import pytest
import torch
from ray.exceptions import NodeDiedError
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2.api.exceptions import ControllerError
from torch import nn

from suptickets_ray import load_config
from suptickets_ray.distributed.cluster import watchdog
from suptickets_ray.distributed.cluster.capacity import ResourceShortfall
from suptickets_ray.distributed.pipeline import pretrain
from suptickets_ray.progress.events import EpochEnded
from suptickets_ray.training.data import Splits
from suptickets_ray.training.data.examples import Examples
from suptickets_ray.training.loop import Learner, train_epoch

CONFIG = load_config(None, ["data.batch_size=25", "train.epochs=200"])


class FixedMasks:
    num_updates = 0

    def step(self):
        return False


def learner(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    return Learner(model, optimizer, FixedMasks(), torch.amp.GradScaler("cpu", enabled=False))


def test_running_statistics_become_the_mean_over_ranks(monkeypatch):
    monkeypatch.setattr(pretrain.dist, "all_reduce", lambda buffer: buffer.add_(3.0))  # what the other rank holds
    model = nn.BatchNorm1d(2)
    pretrain.average_buffers(model, world_size=2)
    assert model.running_mean.tolist() == [1.5, 1.5]
    assert model.running_var.tolist() == [2.0, 2.0]
    assert model.num_batches_tracked == 0


def test_a_batch_split_unevenly_over_ranks_gives_the_gradient_of_the_whole_batch():
    generator = torch.Generator().manual_seed(0)
    examples = Examples((torch.randn(25, 4, generator=generator), torch.randint(3, (25,), generator=generator)))
    splits = Splits(examples, examples, examples, 3, (4,))
    torch.manual_seed(0)
    model = nn.Linear(4, 3)

    def gradient(rank, world_size):
        train_epoch(learner(model), model, CONFIG, splits, 0, lambda step: 0.0, rank=rank, world_size=world_size)
        return model.weight.grad.clone()

    whole = gradient(0, 1)
    averaged = (gradient(0, 2) + gradient(1, 2)) / 2  # what DDP does
    assert torch.allclose(averaged, whole, atol=1e-7)
    inputs, labels = examples.batch(torch.arange(25))
    model.zero_grad()
    nn.functional.cross_entropy(model(inputs), labels).backward()
    assert torch.allclose(whole, model.weight.grad, atol=1e-7)


class FakeTrainer:
    """A job of Ray Train that a machine takes along, again and again; `reaches` says how far each try comes."""

    def __init__(self, tmp_path, reaches, error):
        self.tmp_path, self.reaches, self.error, self.tries, self.told = tmp_path, list(reaches), error, 0, None

    def __call__(self, *arguments, **settings):
        return self

    def fit(self):
        self.tries += 1
        if self.reaches:
            if (epoch := self.reaches.pop(0)) is not None:
                self.told(EpochEnded(epoch, 180, 1.0, 0.5))
            raise self.error
        (self.tmp_path / pretrain.STATE_FILE).write_bytes(b"state")
        checkpoint = pretrain.Checkpoint.from_directory(str(self.tmp_path))
        return type("Result", (), {"checkpoint": checkpoint})


@pytest.fixture
def jobs(monkeypatch, tmp_path):
    def run(reaches, error, monitor=None):
        fake = FakeTrainer(tmp_path, reaches, error)

        def watched(work, monitor, on_event, what):
            fake.told = on_event
            try:
                return work()
            except Exception as failure:
                raise RuntimeError(f"Cannot finish {what}") from failure

        monkeypatch.setattr(pretrain, "TorchTrainer", fake)
        monkeypatch.setattr(pretrain, "watched", watched)
        monkeypatch.setattr(pretrain, "worker_labels", lambda cluster: {})
        context = SimpleNamespace(config=CONFIG, run_path=str(tmp_path), monitor=monitor)
        return fake, lambda: pretrain.pretrain(context, "ray_train", lambda event: None)

    return run


def test_a_day_of_lost_machines_does_not_end_a_pretraining_that_comes_further_each_time(jobs):
    fake, pretrained = jobs(range(10, 90, 10), NodeDiedError("gone"))
    assert pretrained() == b"state"
    assert fake.tries == 9


def test_a_pretraining_that_is_lost_at_one_point_again_and_again_ends(jobs):
    fake, pretrained = jobs([10] * 20, NodeDiedError("gone"))
    with pytest.raises(RuntimeError, match="Cannot finish pretraining"):
        pretrained()
    assert fake.tries == 10


NO_PLACE = ControllerError(WorkerGroupStartupTimeoutError(2))
"""What Ray Train says when its ranks could not be placed for a minute."""


class FakeMonitor:
    def __init__(self):
        self.said, self.report = [], self

    def remote(self, event):
        self.said.append(event.text)


@pytest.fixture
def minutes(monkeypatch, jobs):
    """Lets a minute pass at every try of Ray Train; returns the monitor that is told."""
    now = [0.0]
    monkeypatch.setattr(watchdog, "time", SimpleNamespace(monotonic=lambda: now[0]))
    fit = FakeTrainer.fit

    def slow(self):
        now[0] += 60
        return fit(self)

    monkeypatch.setattr(FakeTrainer, "fit", slow)
    return FakeMonitor()


def test_a_pretraining_whose_machines_do_not_come_back_says_so_and_gives_up(jobs, minutes, monkeypatch):
    shortfall = ResourceShortfall(
        "1 of 2 workers of 1 CPU", "cluster.num_workers must be at most 1{waited}; got 2.", "Ask for fewer"
    )
    monkeypatch.setattr(pretrain, "resource_shortfall", lambda cluster: shortfall)
    fake, pretrained = jobs([None] * 50, NO_PLACE, monitor=minutes)
    with pytest.raises(RuntimeError, match=r"at most 1 after 10 minutes; got 2\. Ask for fewer, or give an autoscaler"):
        pretrained()
    assert fake.tries == 11
    assert minutes.said == [
        "waiting up to 10 minutes for machines: the cluster has capacity for 1 of 2 workers of 1 CPU",
    ]


def test_a_pretraining_goes_on_once_its_machines_are_back(jobs, minutes, monkeypatch):
    shortfalls = [ResourceShortfall("nothing", "no capacity{waited}.", "Wait")] * 8
    monkeypatch.setattr(pretrain, "resource_shortfall", lambda cluster: shortfalls.pop() if shortfalls else None)
    fake, pretrained = jobs([None] * 8, NO_PLACE, monitor=minutes)
    assert pretrained() == b"state"
    assert fake.tries == 9


def test_a_pretraining_waits_for_machines_that_others_hold_and_says_so(jobs, minutes, monkeypatch):
    monkeypatch.setattr(pretrain, "resource_shortfall", lambda cluster: None)
    fake, pretrained = jobs([None] * 30, NO_PLACE, monitor=minutes)
    assert pretrained() == b"state"
    assert fake.tries == 31
    assert minutes.said == [
        "waiting for pretraining to start: suitable machines may be in use, or it may still be loading data"
    ]


FAULT = ValueError("the planted fault")


@pytest.mark.parametrize(
    ("reaches", "tries"),
    [
        ([0], 1),  # before the end of the first epoch: nothing says that it may pass
        ([10] * 8, 2),  # a fault of the code strikes at the same point again
    ],
)
def test_a_fault_of_the_code_is_not_repeated(jobs, reaches, tries):
    fake, pretrained = jobs(reaches, FAULT)
    with pytest.raises(RuntimeError, match="Cannot finish pretraining"):
        pretrained()
    assert fake.tries == tries


def test_a_fault_that_passes_is_survived(jobs):
    fake, pretrained = jobs([10, 20, 30], FAULT)
    assert pretrained() == b"state"
    assert fake.tries == 4
