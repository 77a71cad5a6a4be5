"""A whole life on a made-up GPU: no tensor of another device anywhere, and no wait of the host in a step."""

import pytest
import torch
from pretend_device import MixedDevices, pretend_device

from suptickets_ray import load_config
from suptickets_ray.sparse.criteria import GROW_SCORES, SALIENCY_SCORES
from suptickets_ray.sparse.initial_masks import INITIAL_MASKS
from suptickets_ray.sparse.methods import METHODS
from suptickets_ray.superposition.merger import Merger
from suptickets_ray.training.cycle import run_cycle
from suptickets_ray.training.data import load_data
from suptickets_ray.training.evaluation import evaluate
from suptickets_ray.training.loop import build_learner, steps_per_epoch, train_epoch

GPU, CPU = torch.device("cuda"), torch.device("cpu")
SMALL = [
    "name=x",
    "cluster.num_workers=1",
    "train.epochs=40",
    "train.limit_batches=4",
    "tickets.cycle_epochs=1",
    "tickets.num_chains=1",
    "model.options={widths: [300, 300]}",
]
IMAGES = [
    "name=x",
    "cluster.num_workers=1",
    "data.name=synthetic",
    "data.options={shape: [3, 8, 8], num_train: 40, num_test: 8}",
    "data.batch_size=4",
    "data.crop_padding=1",
    "data.flip=true",
    "model.name=resnet20",
    "model.options={width: 4}",
    "model.initialization=default",
    "train.limit_batches=4",
    "train.epochs=20",
    "tickets.cycle_epochs=1",
    "tickets.num_chains=1",
]
OFTEN = "method.update_interval_steps=2"


def lived(device, overrides):
    """Trains, saves, loads, explores, evaluates and superposes; returns the digests of ticket and sup-ticket."""
    config = load_config(None, overrides)
    splits = load_data(config.data)
    learner = build_learner(config, splits, device)
    train_epoch(learner, learner.model, config, splits, 1, lambda step: 0.01)
    again = build_learner(config, splits, device, restores=True)
    again.load_bytes(learner.to_bytes(epoch=1))
    pretrained = again.ticket({})
    run_cycle(again, config, splits, 0, 0)
    evaluate(again.model, splits.validation)
    ticket = again.ticket({"run": "x"})
    merger = Merger(config, splits, pretrained, device)
    merged = merger.merge(ticket, 0, 0)
    merger.evaluate([(merged, ticket)])
    return ticket.digest, merger.superposed.digest


def ends_as_on_the_cpu(overrides):
    with pretend_device() as account:
        found = lived(GPU, overrides)
    assert not account.mixes
    assert found == lived(CPU, overrides)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_lives_on_a_gpu_as_on_the_cpu(method):
    interval = [OFTEN] if METHODS[method].exchanges else []
    ends_as_on_the_cpu([*SMALL, f"method.name={method}", *(["method.density=1"] if method == "dense" else interval)])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:pruning would have emptied")  # structured masks of narrow layers
@pytest.mark.parametrize("initial", sorted(INITIAL_MASKS))
def test_every_initial_mask_lives_on_a_gpu_as_on_the_cpu(initial):
    ends_as_on_the_cpu([*IMAGES, "method.name=rigl", OFTEN, f"method.distribution={initial}"])


@pytest.mark.slow
@pytest.mark.parametrize("grow", sorted(GROW_SCORES))
@pytest.mark.parametrize("drop", sorted(SALIENCY_SCORES))
def test_every_criterion_lives_on_a_gpu_as_on_the_cpu(drop, grow):
    ends_as_on_the_cpu([*SMALL, "method.name=rigl", OFTEN, f"method.drop={drop}", f"method.grow={grow}"])


@pytest.mark.parametrize(
    "overrides",
    [[], ["train.channels_last=true"], ["train.precision=bfloat16"], ["data.crop_padding_mode=reflect"]],
    ids=["plain", "channels_last", "bfloat16", "reflect"],
)
def test_a_step_on_augmented_images_does_not_make_the_host_wait(overrides):
    config = load_config(None, [*IMAGES, "method.name=static", *overrides])
    splits = load_data(config.data)
    with pretend_device() as account:
        learner = build_learner(config, splits, GPU)
        train_epoch(learner, learner.model, config, splits, 1, lambda step: 0.01)
        account.clear()
        train_epoch(learner, learner.model, config, splits, 2, lambda step: 0.01)
    # Twice in an epoch, however many steps it has: its mean loss, and whether all losses were finite.
    assert steps_per_epoch(config, splits) == 4
    assert {kind for kind, _ in account.waits} == {"item"}, account.table()
    assert account.num_waits == 2, account.table()


def test_a_tensor_left_on_the_cpu_is_noticed():
    with pretend_device(), pytest.raises(MixedDevices):
        torch.ones(2, device="cuda") + torch.ones(2)
