"""Every option of training changes what it should, and only that."""

import math
import re
from functools import partialmethod

import pytest
import torch
from torch import nn

from suptickets_ray import load_config
from suptickets_ray.recipes.resolve import resolve
from suptickets_ray.training.cycle import run_cycle
from suptickets_ray.training.data import load_data
from suptickets_ray.training.determinism import worker_determinism
from suptickets_ray.training.evaluation import evaluate
from suptickets_ray.training.loop import backward, build_learner, order_seed, steps_per_epoch, train_epoch
from suptickets_ray.training.preflight import preflight

SMALL = [
    "train.epochs=6",
    "tickets.cycle_rate=0.34",
    "tickets.cycle_epochs=1",
    "data.num_train_examples=200",
    "method.update_interval_steps=4",
]
IMAGES = ["data.name=synthetic", "data.options.shape=[3, 8, 8]", "data.batch_size=20", "model.name=resnet20"]
# A GPU is asked for, and not used here: a small perceptron can do it on a CPU, too.
FLOAT16 = ["train.precision=float16", "cluster.gpus_per_worker=1"]
OFTEN = ["method.update_interval_steps=2"]
IMAGES += ["model.options.width=4", "model.initialization=default", *SMALL]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def trained(*overrides, epochs=1, small=SMALL):
    config = load_config(None, [*small, *overrides])
    splits = load_data(config.data)
    learner = build_learner(config, splits, torch.device("cpu"))
    losses = [
        train_epoch(learner, learner.model, config, splits, order_seed(0, epoch), lambda step: config.train.lr)
        for epoch in range(epochs)
    ]
    return learner, config, splits, losses


def weights(learner):
    return torch.cat([parameter.detach().flatten() for parameter in learner.model.parameters()])


def gradient(*overrides):
    """The gradient of one batch of the first network, before anything is clipped or stepped."""
    config = load_config(None, [*SMALL, *overrides])
    splits = load_data(config.data)
    learner = build_learner(config, splits, torch.device("cpu"))
    learner.model.train()
    inputs, labels = next(splits.train.epoch(0, [config.data.batch_size]))
    backward(learner, learner.model, config.train, inputs, labels, 1 / len(labels))
    return {name: parameter.grad.clone() for name, parameter in learner.model.named_parameters()}


def test_label_smoothing_gives_the_gradient_of_smoothed_labels():
    found, plain = gradient("train.label_smoothing=0.3"), gradient()
    # Of the last bias: probabilities minus targets, averaged; smoothing moves 0.3 of each target to the mean of all.
    _, labels = next(load_data(load_config(None, SMALL).data).train.epoch(0, [25]))
    targets = nn.functional.one_hot(labels, 10).double().mean(0)
    last_bias = list(plain)[-1]
    expected = plain[last_bias].double() + 0.3 * (targets - 0.1)
    assert torch.allclose(found[last_bias].double(), expected, atol=1e-6)


def test_accumulated_parts_give_the_gradient_of_the_whole_batch_where_examples_do_not_meet():
    norm_free = ["model.name=lenet_300_100", "model.initialization=default"]
    whole, parts = gradient(*norm_free), gradient(*norm_free, "train.accumulation_steps=3")
    assert all(torch.allclose(parts[name], whole[name], atol=1e-7) for name in whole)


def test_accumulation_shows_the_network_smaller_batches():
    seen = []
    config = load_config(None, [*SMALL, "train.accumulation_steps=3"])
    splits = load_data(config.data)
    learner = build_learner(config, splits, torch.device("cpu"))
    learner.model.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    train_epoch(learner, learner.model, config, splits, 0, lambda step: 0.1)
    assert seen == [9, 8, 8] * 8


def test_clipping_bounds_the_norm_of_the_active_gradient_and_no_other():
    norms = []
    for overrides in ([], ["train.clip_norm=0.05"]):
        config = load_config(None, [*SMALL, "train.momentum=0", "train.weight_decay=0", *overrides])
        splits = load_data(config.data)
        learner = build_learner(config, splits, torch.device("cpu"))
        before = weights(learner)
        steps = ["train.limit_batches=1", "train.momentum=0", "train.weight_decay=0", *overrides]
        config = load_config(None, [*SMALL[:-1], "method.update_interval_steps=1", *steps])
        train_epoch(learner, learner.model, config, splits, 0, lambda step: 1.0)
        norms.append(float((weights(learner) - before).norm()))
    assert norms[0] > 0.2
    assert norms[1] == pytest.approx(0.05, rel=1e-4)


def test_clipping_leaves_growth_the_dense_gradients():
    clipped, _, _, _ = trained("train.clip_norm=1000")
    free, _, _, _ = trained()
    assert clipped.sparsifier.num_updates == 2
    for name, mask in free.sparsifier.masks.items():
        assert torch.equal(clipped.sparsifier.masks[name], mask)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_lower_precision_multiplies_in_it_and_keeps_weights_in_float32(precision):
    seen = set()
    config = load_config(None, [*SMALL, *FLOAT16, f"train.precision={precision}"])
    splits = load_data(config.data)
    learner = build_learner(config, splits, torch.device("cpu"))
    learner.model[1].register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    before = evaluate(learner.model, splits.validation)["accuracy"]
    seen.clear()
    for epoch in range(3):
        train_epoch(learner, learner.model, config, splits, order_seed(0, epoch), lambda step: 0.05)
    assert seen == {getattr(torch, precision)}
    assert {parameter.dtype for parameter in learner.model.parameters()} == {torch.float32}
    assert evaluate(learner.model, splits.validation)["accuracy"] > before + 0.3


def test_float16_scales_losses_and_skips_a_step_that_overflows():
    learner, config, splits, _ = trained(*FLOAT16, "train.limit_batches=2", *OFTEN)
    assert learner.scaler.is_enabled()
    scale = learner.scaler.get_scale()
    before, steps = weights(learner), learner.sparsifier.num_steps
    with torch.no_grad():
        learner.model[1].weight.mul_(1e30)
    blown = weights(learner)
    train_epoch(learner, learner.model, config, splits, 0, lambda step: 0.1)
    assert torch.equal(weights(learner), blown)
    assert learner.sparsifier.num_steps == steps
    assert learner.scaler.get_scale() < scale
    assert not torch.equal(before, blown)


def test_the_scale_of_float16_is_part_of_the_state():
    learner, config, splits, _ = trained(*FLOAT16)
    learner.scaler.update(128.0)
    other = build_learner(config, splits, torch.device("cpu"))
    other.load_bytes(learner.to_bytes())
    assert other.scaler.get_scale() == 128.0


def test_channels_last_changes_where_weights_lie_and_no_result_beyond_rounding():
    last, _, splits, _ = trained("train.channels_last=true", "train.limit_batches=3", small=IMAGES)
    first, _, _, _ = trained("train.limit_batches=3", small=IMAGES)
    convolutions = [weight for weight in last.model.parameters() if weight.ndim == 4 and weight.shape[1] > 1]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in convolutions)
    assert torch.allclose(weights(last), weights(first), atol=1e-3)
    ticket = last.ticket({})
    assert all(ticket.state_dict()[name].shape == tensor.shape for name, tensor in last.model.state_dict().items())
    assert len(splits.train)


def test_channels_last_saves_and_explores_as_any_other():
    learner, config, splits, _ = trained("train.channels_last=true", "train.limit_batches=2", small=IMAGES)
    state = learner.to_bytes()
    digests = []
    for _ in range(2):
        learner.load_bytes(state)
        run_cycle(learner, config, splits, 0, 0)
        digests.append(learner.ticket({}).digest)
    assert digests[0] == digests[1]


def test_limit_batches_ends_an_epoch_early():
    _, config, splits, _ = trained("train.limit_batches=3", "method.update_interval_steps=2")
    assert steps_per_epoch(config, splits) == 3
    learner, config, splits, _ = trained("train.limit_batches=100")
    assert steps_per_epoch(config, splits) == 8
    assert learner.sparsifier.num_steps == 8


def test_deterministic_mode_allows_no_other_algorithms_and_is_put_back():
    config = load_config(
        None, ["train.deterministic=true", "cluster.threads_per_worker=3", "cluster.threads_per_explorer=2"]
    )
    with worker_determinism(config):
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.get_num_threads() == 2
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], (False, False)),
        (["cluster.gpus_per_worker=1"], (False, True)),
        (["cluster.gpus_per_worker=1", "train.deterministic=true"], (False, False)),
        (["cluster.gpus_per_worker=1", "train.float32_precision=tf32", "train.cudnn_benchmark=false"], (True, False)),
    ],
)
def test_gpus_compute_as_the_recipe_says_and_torchs_own_settings_are_put_back(options, expected):
    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    config = load_config(None, [*options, "cluster.num_workers=1"])
    with worker_determinism(config):
        found = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.benchmark
        assert torch.backends.cudnn.allow_tf32 == expected[0]
    assert found == expected
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark) == before


def test_a_choice_of_algorithms_by_time_is_not_deterministic():
    gpu = ["cluster.gpus_per_worker=1", "train.deterministic=true", "train.cudnn_benchmark=true"]
    with pytest.raises(ValueError, match="train.cudnn_benchmark must be false with train.deterministic=true"):
        resolve(load_config(None, gpu))


def test_weight_decay_spares_what_the_recipe_says_through_the_whole_loop():
    spared, _, _, _ = trained("train.weight_decay=0.5", "train.decay_norm_and_bias=false", epochs=2)
    decayed, _, _, _ = trained("train.weight_decay=0.5", epochs=2)
    norms = [
        sum(float(p.detach().norm()) for p in learner.model.parameters() if p.ndim == 1)
        for learner in (spared, decayed)
    ]
    assert norms[0] > 2 * norms[1]
    again = build_learner(load_config(None, [*SMALL, "train.decay_norm_and_bias=false"]), *_rest(spared))
    again.load_bytes(spared.to_bytes())
    assert torch.equal(weights(again), weights(spared))


def _rest(learner):
    return load_data(load_config(None, SMALL).data), torch.device("cpu")


@pytest.mark.slow  # the compiler takes half a minute
def test_a_compiled_network_computes_the_same_and_keeps_its_names(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    compiled, _, splits, losses = trained(
        "train.compile=true", "train.limit_batches=2", "method.update_interval_steps=2"
    )
    plain, _, _, plain_losses = trained("train.limit_batches=2", *OFTEN)
    assert losses == pytest.approx(plain_losses, rel=1e-4)
    assert list(compiled.ticket({}).parts) == list(plain.ticket({}).parts)
    assert math.isfinite(evaluate(compiled.model, splits.validation)["loss"])


@pytest.mark.parametrize("model", [[], IMAGES])
def test_a_compiled_network_is_one_graph_under_ddp(model, monkeypatch):
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    config = load_config(None, [*SMALL, *model, "train.compile=true"])
    splits = load_data(config.data)
    learner = build_learner(config, splits, torch.device("cpu"))
    names = [name for name, _ in learner.model.named_parameters()]
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=torch.distributed.HashStore())
    try:
        ddp = nn.parallel.DistributedDataParallel(learner.model, find_unused_parameters=True)
        inputs, _ = next(iter(splits.train.epoch(0, [4], torch.device("cpu"))))
        for _ in range(2):
            ddp(inputs).sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]
    assert [name for name, _ in learner.model.named_parameters()] == names
    assert not any("_orig_mod" in name for name in names)


def test_the_preflight_passes_with_every_option_at_once():
    preflight(
        load_config(
            None,
            [
                *SMALL,
                *IMAGES,  # channels last needs convolutions
                "train.label_smoothing=0.1",
                "train.accumulation_steps=2",
                "train.clip_norm=1",
                "train.precision=bfloat16",
                "train.channels_last=true",
                "train.warmup_epochs=1",
                "train.decay_norm_and_bias=false",
            ],
        )
    )


def test_float16_without_a_gpu_is_refused():
    with pytest.raises(ValueError, match="train.precision 'float16' must have GPUs"):
        load_config(None, ["train.precision=float16"])


def test_the_exploration_sees_no_more_examples_at_once_than_training_does():
    config = load_config(None, [*SMALL, "train.accumulation_steps=4"])
    splits = load_data(config.data)
    learner = build_learner(config, splits, torch.device("cpu"))
    seen = []
    learner.model.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    run_cycle(learner, config, splits, 0, 0)
    assert max(seen) == 7


def test_a_learner_that_restores_a_state_draws_no_gradient_for_its_initial_masks():
    settings = [*SMALL, "method.distribution=snip", "model.initialization=default"]
    learner, _, splits, _ = trained("method.distribution=snip", "model.initialization=default")
    state = learner.to_bytes()
    splits.train.epoch = None  # nobody may read it
    other = build_learner(load_config(None, settings), splits, torch.device("cpu"), restores=True)
    other.load_bytes(state)
    assert other.ticket({}).digest == learner.ticket({}).digest


def test_a_network_with_versions_in_its_state_is_restored():
    settings = ["data.name=synthetic", "data.batch_size=8", "model.name=mnasnet0_5", "model.initialization=default"]
    config = load_config(
        None, [*settings, *SMALL[:3], "method.update_interval_steps=1", "data.options.shape=[3, 32, 32]"]
    )
    splits = load_data(config.data)
    learner = build_learner(config, splits, torch.device("cpu"))
    assert learner.load_bytes(learner.to_bytes(epoch=1)) == {"epoch": 1}


def test_a_compiler_that_is_missing_is_said_before_anything_starts(monkeypatch):
    def compiled(function):
        def fails(*inputs):
            raise RuntimeError("no compiler\nat all")

        return fails

    monkeypatch.setattr(torch, "compile", compiled)
    words = "torch.compile failed: RuntimeError: no compiler. Install a C++ compiler"
    with pytest.raises(ValueError, match=re.escape(words)):
        preflight(load_config(None, [*SMALL, "train.compile=true"]))


@pytest.mark.parametrize(("mode", "axis"), [("fan_in", 1), ("fan_out", 0)])
def test_kaiming_weights_have_the_variance_of_their_fan_before_masks_are_drawn(mode, axis):
    wide = ["data.name=synthetic", "model.name=resnet20", "model.options.width=32", "method.density=0.5"]
    learner, *_ = trained(*wide, f"model.initialization=kaiming_{mode}", epochs=0, small=())
    for name, parameter in learner.sparsifier.parameters.items():
        if parameter.ndim == 4 and parameter.shape[0] != parameter.shape[1]:
            active = parameter.detach()[learner.sparsifier.masks[name]]
            fan = parameter.shape[axis] * 9
            assert float(active.var()) == pytest.approx(2 / fan, rel=0.15), name
    with pytest.raises(ValueError, match="kaiming_fan_in has no effect on a network without convolutions"):
        trained("model.initialization=kaiming_fan_in", epochs=0)
