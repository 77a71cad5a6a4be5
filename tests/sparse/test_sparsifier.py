import copy
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from suptickets_ray.sparse import Sparsifier, cosine_fraction, drop_and_grow, layer_mask
from suptickets_ray.sparse.criteria import GROW_SCORES, REDISTRIBUTIONS, SALIENCY_SCORES
from suptickets_ray.sparse.initial_masks import INITIAL_MASKS, STRUCTURED
from suptickets_ray.sparse.masks import digest, num_active
from suptickets_ray.sparse.methods import METHODS, method_settings
from suptickets_ray.sparse.statistics import explored_fraction

TOTAL = 24
FAST = {"update_interval_steps": 3}


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-3),
    "sgd nesterov foreach": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, foreach=True),
    "sgd fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-3, fused=True),
    "sgd without momentum": lambda p: torch.optim.SGD(p, lr=0.1),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=1e-3),
    "adam amsgrad foreach": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True, foreach=True),
    "adam fused": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01, initial_accumulator_value=0.1),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.01),
    "adadelta": torch.optim.Adadelta,
    # Not known to work element by element, or known not to:
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.01),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.01),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
    "an optimizer of the user's own": lambda p: DensifyingOptimizer(p, lr=0.01),
}


class DensifyingOptimizer(torch.optim.Optimizer):
    """Moves every weight, whatever its gradient: without masking after the step it would revive all of them."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    state = self.state[p]
                    state["noise"] = state.get("noise", torch.zeros_like(p)) + p.grad.mean() + 1
                    p.sub_(group["lr"] * (p.grad + 0.01 * state["noise"].sign()))


def build(method="rigl", density=0.25, optimizer="sgd", seed=0, width=12, **recipe):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 4))
    chosen = OPTIMIZERS[optimizer](model.parameters())
    if "update_interval_steps" in METHODS[method].defaults:
        recipe = FAST | recipe
    sparsifier = Sparsifier(
        model,
        chosen,
        method,
        density=density,
        total_steps=TOTAL,
        generator=torch.Generator().manual_seed(seed),
        **recipe,
    )
    return model, chosen, sparsifier


def train_step(model, optimizer, sparsifier, step):
    generator = torch.Generator().manual_seed(step)
    inputs, labels = torch.randn(16, 8, generator=generator), torch.randint(4, (16,), generator=generator)
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(inputs), labels).backward()
    optimizer.step()
    return sparsifier.step()


def target(method):
    return 1.0 if not METHODS[method].sparse else 0.25


def assert_nothing_off_the_masks(model, optimizer, sparsifier):
    saved = optimizer.state_dict()["state"]
    for index, (name, parameter) in enumerate(model.named_parameters()):
        if name not in sparsifier.masks:
            continue
        off = ~sparsifier.masks[name]
        assert not parameter[off].any()
        for value in saved.get(index, {}).values():
            if isinstance(value, torch.Tensor) and value.ndim:
                if value.shape != parameter.shape and isinstance(optimizer, torch.optim.Adafactor):
                    continue  # row and column sums
                assert value.shape == parameter.shape
                assert not value[off].any()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_weights_and_optimizer_state_stay_zero_off_the_mask(method, optimizer):
    model, chosen, sparsifier = build(method, target(method), optimizer)
    for step in range(TOTAL):
        train_step(model, chosen, sparsifier, step)
        assert_nothing_off_the_masks(model, chosen, sparsifier)


WIDE = 16_384  # 131,072 weights in the first layer: gathered at density 0.05


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("width", [12, WIDE])
def test_no_optimizer_revives_a_pruned_weight(optimizer, width):
    density = 0.25 if width == 12 else 0.05
    model, chosen, sparsifier = build("rigl", density, optimizer, width=width, keep_updating=True)
    assert (sparsifier.layer_masks["0.weight"].positions is not None) == (width == WIDE)
    for step in range(50 if width == 12 else 12):
        before = {name: model.get_parameter(name).detach().clone() for name in sparsifier.masks}
        masks = sparsifier.masks
        updated = train_step(model, chosen, sparsifier, step)
        assert_nothing_off_the_masks(model, chosen, sparsifier)
        for name, mask in masks.items():
            grown = sparsifier.masks[name] & ~mask
            assert updated or not grown.any()
            assert not model.get_parameter(name)[grown].any()
        assert any(not torch.equal(before[name], model.get_parameter(name)) for name in masks)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_gathered_layers_are_stepped_by_the_same_arithmetic(optimizer, monkeypatch):
    gathered = build("rigl", 0.05, optimizer, width=WIDE)
    monkeypatch.setattr(layer_mask, "GATHERED_DENSITY", 0.0)
    masked = build("rigl", 0.05, optimizer, width=WIDE)
    assert gathered[2].layer_masks["0.weight"].positions is not None
    assert masked[2].layer_masks["0.weight"].positions is None
    monkeypatch.undo()
    for step in range(5):
        train_step(*gathered, step)
        monkeypatch.setattr(layer_mask, "GATHERED_DENSITY", 0.0)
        train_step(*masked, step)
        monkeypatch.undo()
    for name, mask in gathered[2].masks.items():
        assert (mask == masked[2].masks[name]).float().mean() > 0.999  # rounding may decide between two equals
    close = torch.isclose(gathered[0][0].weight, masked[0][0].weight, rtol=1e-4, atol=1e-6)
    assert close.float().mean() > 0.999


def test_a_gathered_layers_state_is_saved_in_the_weights_shape_and_a_plain_optimizer_reads_it():
    model, optimizer, sparsifier = build("rigl", 0.05, "adam", width=WIDE)
    train_step(model, optimizer, sparsifier, 0)
    weight = model[0].weight
    assert optimizer.state[weight]["exp_avg"].shape == (sparsifier.counts["0.weight"],)
    saved = optimizer.state_dict()
    assert saved["state"][0]["exp_avg"].shape == weight.shape
    plain = OPTIMIZERS["adam"](model.parameters())
    plain.load_state_dict(saved)
    plain.step()
    sparsifier.detach()
    assert optimizer.state[weight]["exp_avg"].shape == weight.shape
    optimizer.step()


def test_a_learning_rate_scheduler_reaches_gathered_layers():
    model, optimizer, sparsifier = build("static", 0.05, "sgd", width=WIDE)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(step == 0))
    train_step(model, optimizer, sparsifier, 0)
    scheduler.step()
    before = model[0].weight.detach().clone()
    train_step(model, optimizer, sparsifier, 1)
    assert torch.equal(model[0].weight, before)


def test_an_error_inside_of_the_optimizers_step_leaves_it_whole():
    model, optimizer, sparsifier = build("static", 0.05, "sgd", width=WIDE)
    train_step(model, optimizer, sparsifier, 0)
    optimizer.param_groups[0]["momentum"] = "broken"
    with pytest.raises(TypeError):
        train_step(model, optimizer, sparsifier, 1)
    optimizer.param_groups[0]["momentum"] = 0.9
    train_step(model, optimizer, sparsifier, 2)
    assert_nothing_off_the_masks(model, optimizer, sparsifier)


@pytest.mark.parametrize("width", [12, WIDE])
@pytest.mark.parametrize("make", [torch.optim.LBFGS, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)])
def test_closures_are_masked_too(width, make):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 4))
    optimizer = make(model.parameters())
    settings = {"density": 0.05, "total_steps": 20, "generator": torch.Generator().manual_seed(0)}
    sparsifier = Sparsifier(model, optimizer, "rigl", update_interval_steps=2, **settings)
    inputs, labels = torch.randn(16, 8), torch.randint(4, (16,))

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        return loss

    losses = []
    for _ in range(6):
        losses.append(float(optimizer.step(closure).detach()))
        sparsifier.step()
        for name, mask in sparsifier.masks.items():
            assert not model.get_parameter(name)[~mask].any()
    assert sparsifier.num_updates == 3
    if isinstance(optimizer, torch.optim.SGD):  # L-BFGS's history does not know that the weights were exchanged
        assert losses[-1] < losses[0]


def test_accumulated_gradients_are_one_step():
    model, optimizer, sparsifier = build("rigl")
    whole = build("rigl")
    generator = torch.Generator().manual_seed(1)
    for _ in range(6):
        inputs, labels = torch.randn(16, 8, generator=generator), torch.randint(4, (16,), generator=generator)
        model.eval(), whole[0].eval()  # BatchNorm would see other batches
        optimizer.zero_grad()
        for part in (slice(0, 8), slice(8, 16)):
            (nn.functional.cross_entropy(model(inputs[part]), labels[part]) / 2).backward()
        optimizer.step()
        sparsifier.step()
        whole[1].zero_grad()
        nn.functional.cross_entropy(whole[0](inputs), labels).backward()
        whole[1].step()
        whole[2].step()
        for name, mask in sparsifier.masks.items():
            assert torch.equal(mask, whole[2].masks[name])
    assert sparsifier.num_steps == 6
    assert torch.allclose(model[0].weight, whole[0][0].weight, atol=1e-5)


@pytest.mark.parametrize("optimizer", ["sgd", "adam fused"])
def test_a_step_that_the_gradient_scaler_skips_does_not_count(optimizer):
    model, chosen, sparsifier = build("rigl", 0.25, optimizer, update_interval_steps=1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    generator = torch.Generator().manual_seed(0)
    taken = []
    for step in range(8):
        chosen.zero_grad()
        inputs, labels = torch.randn(16, 8, generator=generator), torch.randint(4, (16,), generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            loss = nn.functional.cross_entropy(model(inputs), labels)
        scaler.scale(loss * (float("inf") if step in (0, 3) else 1.0)).backward()
        before = model[0].weight.detach().clone()
        scaler.step(chosen)
        scaler.update()
        taken.append(sparsifier.step())
        assert torch.equal(model[0].weight, before) == (step in (0, 3))
        assert_nothing_off_the_masks(model, chosen, sparsifier)
    assert taken == [False, True, True, False, True, True, True, True]
    assert sparsifier.num_steps == sparsifier.num_updates == 6


@pytest.mark.parametrize("method", ["rigl", "gmp", "granet"])
def test_a_phase_with_skipped_steps_ends_at_the_target_density_and_updates_no_more(method):
    model, optimizer, sparsifier = build(method, 0.25, update_interval_steps=1)

    def steps(count):
        for _ in range(count):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(torch.ones(4, 8).cumsum(0)), torch.arange(4)).backward()
            optimizer.step()
            yield sparsifier.step()

    assert any(steps(4))  # the others of TOTAL were skipped
    sparsifier.end_phase()
    assert num_active(sparsifier.masks) == int(0.25 * sum(mask.numel() for mask in sparsifier.masks.values()))
    assert_nothing_off_the_masks(model, optimizer, sparsifier)
    assert not any(steps(TOTAL))


def test_a_fused_optimizers_scaled_gradients_are_unscaled_for_the_criteria():
    kept = {}
    for scale in (1.0, 2.0**12):
        model, chosen, sparsifier = build("rigl", 0.25, "adam fused", drop="mest", update_interval_steps=1)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        nn.functional.cross_entropy(model(torch.ones(4, 8).cumsum(0)), torch.arange(4)).mul(scale).backward()
        scaler.scale(torch.zeros((), requires_grad=True))  # GradScaler wants to have seen a loss
        scaler.step(chosen)
        sparsifier.step()
        kept[scale] = sparsifier.masks["0.weight"]
    assert torch.equal(*kept.values())


def test_clipping_sees_the_sparse_networks_gradient():
    model, optimizer, sparsifier = build("rigl", 0.25, update_interval_steps=1)
    other = build("rigl", 0.25, update_interval_steps=1)
    for each in (model, other[0]):
        nn.functional.cross_entropy(each(torch.ones(4, 8).cumsum(0)), torch.arange(4)).backward()
    dense_norm = nn.utils.get_total_norm([p.grad for p in model.parameters()])
    sparsifier.mask_gradients()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 1e9)
    assert norm < dense_norm
    optimizer.step()
    other[1].step()
    assert sparsifier.step() and other[2].step()
    # the update still saw the dense gradient
    assert all(torch.equal(mask, other[2].masks[name]) for name, mask in sparsifier.masks.items())


@pytest.mark.parametrize(
    ("key", "table"), [("drop", SALIENCY_SCORES), ("grow", GROW_SCORES), ("redistribution", REDISTRIBUTIONS)]
)
@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.can_explore])
def test_every_method_trains_and_explores_with_every_criterion(method, key, table):
    for row in table:
        model, optimizer, sparsifier = build(method, **{key: row})
        for step in range(TOTAL):
            train_step(model, optimizer, sparsifier, step)
        assert num_active(sparsifier.masks) == int(0.25 * 144)
        before = sparsifier.masks
        nn.functional.cross_entropy(model(torch.ones(4, 8).cumsum(0)), torch.arange(4)).backward()
        sparsifier.explore(0.5)
        assert num_active(sparsifier.masks) == int(0.25 * 144)
        assert digest(before) != digest(sparsifier.masks)
        assert_nothing_off_the_masks(model, optimizer, sparsifier)


@pytest.mark.parametrize("distribution", INITIAL_MASKS)
def test_every_first_mask_can_be_trained_from(distribution):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4))
    if distribution == "from_nonzeros":
        for layer in (model[0], model[2]):
            layer.weight.data.view(-1)[::2] = 0
    nn.functional.cross_entropy(model(torch.randn(16, 8)), torch.arange(16) % 4).backward()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    settings = {"density": 0.5, "total_steps": TOTAL, "generator": torch.Generator().manual_seed(0)}
    sparsifier = Sparsifier(model, optimizer, "rigl", distribution=distribution, **FAST, **settings)
    density = sparsifier.density
    assert (density == 0.5) == (distribution not in STRUCTURED)
    for step in range(TOTAL):
        train_step(model, optimizer, sparsifier, step)
    assert sparsifier.density == density


def test_initial_masks_by_gradient_ask_for_one():
    model = nn.Linear(8, 12)
    settings = {"density": 0.5, "total_steps": TOTAL, "generator": torch.Generator()}
    with pytest.raises(RuntimeError, match=r"'weight' has none. Call backward\(\) first"):
        Sparsifier(model, torch.optim.SGD(model.parameters()), "static", distribution="snip", **settings)


def test_momentum_growth_sees_the_running_average_of_dense_gradients():
    model, optimizer, sparsifier = build("rigl", grow="momentum", momentum_decay=0.5, masks=FIRST)
    same, same_optimizer, static = build("static", masks=FIRST)
    average = torch.zeros(12, 8)
    for step in range(3):
        train_step(model, optimizer, sparsifier, step)
        generator = torch.Generator().manual_seed(step)
        inputs, labels = torch.randn(16, 8, generator=generator), torch.randint(4, (16,), generator=generator)
        same_optimizer.zero_grad()
        nn.functional.cross_entropy(same(inputs), labels).backward()
        average = 0.5 * average + same[0].weight.grad
        same_optimizer.step()
        static.step()
    first = {"w": FIRST["0.weight"]}
    fraction = cosine_fraction(3, TOTAL, 0.3)
    by_hand = drop_and_grow({"w": same[0].weight}, first, fraction, grow="momentum", momenta={"w": average})
    assert torch.equal(sparsifier.masks["0.weight"], by_hand["w"])


def test_uniform_methods_keep_every_layer_at_the_density_and_the_last_at_a_fifth():
    for method in ("gmp_uniform", "granet_uniform"):
        model, optimizer, sparsifier = build(method, 0.15, width=40)
        for step in range(TOTAL):
            train_step(model, optimizer, sparsifier, step)
        assert sparsifier.counts == {"0.weight": 72 - 32, "3.weight": 32}  # 480 weights in all, 160 in the last


def test_global_and_uniform_pruning_differ():
    found = {}
    for method in ("gmp", "gmp_uniform", "granet", "granet_uniform"):
        model, optimizer, sparsifier = build(method, 0.3, width=40)
        for step in range(TOTAL):
            train_step(model, optimizer, sparsifier, step)
        found[method] = sparsifier.counts["0.weight"]
    assert found["gmp_uniform"] == found["granet_uniform"] == int(0.3 * 320)
    assert found["gmp"] != found["gmp_uniform"]
    assert found["granet"] != found["granet_uniform"]


def test_layers_kept_dense_are_left_alone():
    model, optimizer, sparsifier = build("rigl", dense_layers=["first"])
    assert list(sparsifier.masks) == ["3.weight"]
    for step in range(3):
        train_step(model, optimizer, sparsifier, step)
    assert model[0].weight.all()
    assert sparsifier.density == 0.25


def test_explored_positions_only_grow_in_number():
    model, optimizer, sparsifier = build("itop_set", drop_fraction=0.5, grow="random_unfired")
    shares = [explored_fraction(sparsifier.explored)]
    for step in range(TOTAL):
        train_step(model, optimizer, sparsifier, step)
        shares.append(explored_fraction(sparsifier.explored))
        for name, mask in sparsifier.masks.items():
            assert not (mask & ~sparsifier.explored[name]).any()
    assert shares[0] == 0.25
    assert shares == sorted(shares)
    assert shares[-1] > 0.6


def test_growth_of_never_active_positions_explores_more_than_plain_random_growth():
    def explored(grow):
        model, optimizer, sparsifier = build("itop_set", grow=grow, drop_fraction=0.5)
        for step in range(TOTAL):
            train_step(model, optimizer, sparsifier, step)
        return explored_fraction(sparsifier.explored)

    assert explored("random_unfired") > explored("random")


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(9, 8)
        self.conv = nn.Conv1d(8, 8, 3, padding=1)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.up = nn.ConvTranspose1d(8, 8, 2)
        self.head = nn.Linear(8, 9)
        self.tied = nn.Linear(8, 9)
        self.tied.weight = self.head.weight

    def forward(self, tokens):
        x = self.conv(self.embedding(tokens).transpose(1, 2)).transpose(1, 2)
        x = x + self.attention(x, x, x)[0]
        x = self.up(x.transpose(1, 2)).mean(2)
        return self.head(x) + self.tied(x)


@pytest.mark.parametrize("mask_embeddings", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_all_kinds_of_layers_train_sparse_also_compiled(mask_embeddings, compiled):
    torch.manual_seed(0)
    model = Attending()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    forward = torch.compile(model, backend="aot_eager") if compiled else model
    sparsifier = Sparsifier(
        forward,
        optimizer,
        "rigl",
        density=0.3,
        total_steps=12,
        update_interval_steps=3,
        generator=torch.Generator().manual_seed(0),
        mask_embeddings=mask_embeddings,
    )
    assert ("embedding.weight" in sparsifier.masks) == mask_embeddings
    assert "tied.weight" not in sparsifier.masks
    tokens = torch.randint(9, (16, 5))
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(forward(tokens), tokens[:, 0])
        loss.backward()
        optimizer.step()
        sparsifier.step()
        losses.append(float(loss.detach()))
        for name, mask in sparsifier.masks.items():
            assert not model.get_parameter(name)[~mask].any()
    assert sparsifier.num_updates == 3
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_ends_at_its_target_density_exactly(method):
    model, optimizer, sparsifier = build(method, target(method))
    for step in range(TOTAL):
        train_step(model, optimizer, sparsifier, step)
    assert num_active(sparsifier.masks) == int(target(method) * 144)
    assert sparsifier.density == int(target(method) * 144) / 144


@pytest.mark.parametrize("method", METHODS)
def test_saved_and_loaded_into_new_objects_training_goes_on_bit_for_bit(method):
    model, optimizer, sparsifier = build(method, target(method))
    for step in range(10):
        train_step(model, optimizer, sparsifier, step)
    saved = [model.state_dict(), optimizer.state_dict(), sparsifier.state_dict()]
    saved = torch.load(_as_file(saved), weights_only=True)
    other = build(method, target(method), seed=99)
    for part, state in zip(other, saved, strict=True):
        part.load_state_dict(state)
    for step in range(10, TOTAL):
        train_step(model, optimizer, sparsifier, step)
        train_step(*other, step)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other[0].parameters(), strict=True))
    assert all(torch.equal(sparsifier.masks[name], mask) for name, mask in other[2].masks.items())


CONTINUE = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from test_sparsifier import TOTAL, build, train_step
continued = {}
for case, saved in torch.load(sys.argv[2], weights_only=True).items():
    parts = build(**saved["how"], seed=99)
    for part, state in zip(parts, saved["states"], strict=True):
        part.load_state_dict(state)
    for step in range(5, 25):
        assert train_step(*parts, step)
    continued[case] = [part.state_dict() for part in parts]
torch.save(continued, sys.argv[3])
"""
EVERY_STEP = {"update_interval_steps": 1, "update_end_fraction": 1.0, "keep_updating": True}
CONTINUED = {
    "random_unfired": {
        "method": "itop_set",
        "grow": "random_unfired",
        "optimizer": "adamw",
        "density": 0.25,
        **EVERY_STEP,
    },
    "momentum": {
        "method": "rigl",
        "grow": "momentum",
        "drop": "mest",
        "redistribution": "nonzeros",
        "optimizer": "sgd",
        **EVERY_STEP,
    },
    "gathered": {
        "method": "rigl",
        "grow": "mix",
        "optimizer": "adam fused",
        "width": 16_384,
        "density": 0.05,
        **EVERY_STEP,
    },
}


@pytest.fixture(scope="module")
def continued(tmp_path_factory):
    """What 5 steps saved here, and 20 more in a fresh process, give in each case; one process for all."""
    folder, saved = tmp_path_factory.mktemp("continued"), {}
    for case, how in CONTINUED.items():
        parts = build(**how)
        for step in range(5):
            train_step(*parts, step)
        saved[case] = {"how": how, "states": [part.state_dict() for part in parts]}
    torch.save(saved, folder / "saved.pt")
    files = [str(Path(__file__).parent), str(folder / "saved.pt"), str(folder / "continued.pt")]
    subprocess.run([sys.executable, "-c", CONTINUE, *files], check=True)
    return torch.load(folder / "continued.pt", weights_only=True)


@pytest.mark.parametrize("case", CONTINUED)
def test_saved_and_loaded_into_a_fresh_process_the_next_20_updates_are_bit_equal(case, continued):
    parts = build(**CONTINUED[case])
    for step in range(25):
        train_step(*parts, step)
    assert as_bits(continued[case]) == as_bits([part.state_dict() for part in parts])


def as_bits(value):
    if isinstance(value, torch.Tensor):
        return (
            value.dtype,
            value.shape,
            value.contiguous().view(torch.uint8).flatten().tolist() if value.ndim else value.item(),
        )
    if isinstance(value, dict):
        return {key: as_bits(part) for key, part in value.items()}
    return [as_bits(part) for part in value] if isinstance(value, list | tuple) else value


def test_masks_and_explored_positions_are_saved_as_bits():
    state = build("rigl")[2].state_dict()
    for key in ("masks", "explored"):
        assert {name: (bits.dtype, bits.numel()) for name, bits in state[key].items()} == {
            "0.weight": (torch.uint8, 12),
            "3.weight": (torch.uint8, 6),
        }


def test_a_state_of_another_schedule_is_refused():
    state = build("rigl")[2].state_dict()
    with pytest.raises(ValueError, match="same method and schedule; these differ: drop_fraction, grow"):
        build("rigl", grow="random", drop_fraction=0.1)[2].load_state_dict(state)


def _as_file(value):
    import io

    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return buffer


def test_the_dense_method_is_plain_training_bit_for_bit():
    model, optimizer, sparsifier = build("dense", 1.0)
    plain, plain_optimizer, detached = build("dense", 1.0)
    detached.detach()
    for step in range(TOTAL):
        train_step(model, optimizer, sparsifier, step)
        train_step(plain, plain_optimizer, detached, step)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))


def updates(method, **recipe):
    model, optimizer, sparsifier = build(method, **recipe)
    return [step + 1 for step in range(TOTAL) if train_step(model, optimizer, sparsifier, step)]


def test_updates_come_at_multiples_of_the_interval_until_the_methods_end():
    assert updates("set", update_interval_steps=5) == [5, 10, 15, 20]
    assert updates("rigl", update_interval_steps=5) == [5, 10, 15]  # until 75 % of 24 steps
    assert updates("gmp", update_interval_steps=3, prune_end_fraction=0.5) == [3, 6, 9, 12]
    assert updates("static") == []
    assert updates("dense", density=1.0) == []


def densities(method, **recipe):
    model, optimizer, sparsifier = build(method, **recipe)
    found = [sparsifier.density]
    for step in range(TOTAL):
        if train_step(model, optimizer, sparsifier, step):
            found.append(sparsifier.density)
    return found


def test_gmp_starts_dense_and_granet_at_its_initial_density_and_both_follow_the_cubic():
    # four updates: d_f + (d_i - d_f) * (1 - i/4)^3, rounded down to whole weights of 144
    def cubic(initial):
        return [int((0.25 + (initial - 0.25) * (1 - i / 4) ** 3) * 144 + 1e-9) / 144 for i in range(5)]

    assert densities("gmp", update_interval_steps=3) == cubic(1.0)
    assert densities("granet", update_interval_steps=3, initial_density=0.5)[:5] == cubic(0.5)


def test_set_grows_at_random_and_rigl_by_gradient():
    def masks(method, seed):
        model, optimizer, sparsifier = build(method, drop_fraction=0.5, masks=FIRST, seed=seed)
        for step in range(3):
            train_step(model, optimizer, sparsifier, step)
        return sparsifier.masks["0.weight"]

    assert torch.equal(masks("rigl", 1), masks("rigl", 2))
    assert not torch.equal(masks("set", 1), masks("set", 2))


FIRST = {
    "0.weight": torch.arange(96).view(12, 8) % 4 == 0,
    "3.weight": torch.arange(48).view(4, 12) % 4 == 0,
}


def test_what_stays_keeps_its_weight_and_momentum_and_what_is_grown_starts_at_zero():
    model, optimizer, sparsifier = build("rigl")
    for step in range(2):
        train_step(model, optimizer, sparsifier, step)
    weight = model[0].weight
    old_mask = sparsifier.masks["0.weight"]
    old, old_momentum = weight.detach().clone(), optimizer.state[weight]["momentum_buffer"].clone()
    weight.grad.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(5)))
    sparsifier.explore(0.5)
    new_mask = sparsifier.masks["0.weight"]
    stays, grown = old_mask & new_mask, new_mask & ~old_mask
    assert grown.any()
    assert torch.equal(weight[stays], old[stays])
    assert torch.equal(optimizer.state[weight]["momentum_buffer"][stays], old_momentum[stays])
    assert not weight[~stays].any()
    assert not optimizer.state[weight]["momentum_buffer"][~stays].any()


def test_exploring_keeps_the_counts_of_every_layer():
    model, optimizer, sparsifier = build("rigl")
    train_step(model, optimizer, sparsifier, 0)
    before = [int(mask.sum()) for mask in sparsifier.masks.values()]
    sparsifier.explore(0.9)
    assert [int(mask.sum()) for mask in sparsifier.masks.values()] == before


def test_updates_go_on_after_the_phase_only_when_asked():
    for keep_updating in (False, True):
        model, optimizer, sparsifier = build("rigl", keep_updating=keep_updating)
        happened = [train_step(model, optimizer, sparsifier, step) for step in range(TOTAL + 6)][TOTAL:]
        assert any(happened) == keep_updating


@pytest.mark.parametrize(
    ("method", "recipe", "message"),
    [
        ("gmp", {"drop_fraction": 0.3}, "drop_fraction has no effect with method 'gmp'"),
        ("static", {"grow": "random"}, "grow has no effect with method 'static'"),
        ("rigle", {}, "unknown method 'rigle'; did you mean 'rigl'"),
        ("gmp", {"update_interval_steps": 20}, "the prune window must hold at least one update"),
        (
            "granet",
            {"initial_density": 0.1, **FAST},
            "initial_density must be at least the target density 0.25; got 0.1",
        ),
        ("dense", {}, "density must be 1 with method 'dense'; got 0.25"),
        ("rigl", {"update_interval_steps": 20}, "update_interval_steps must leave room for an update in the 24 steps"),
        ("rigl", {"grow": "gradeint"}, "unknown grow score 'gradeint'; did you mean 'gradient'"),
        ("rigl", {"drop_fraction": 7}, r"drop_fraction must be in \[0, 1\]; got 7"),
        ("rigl", {"update_interval_steps": 0}, "update_interval_steps must be at least 1; got 0"),
        ("rigl", {"drop_fraction_schedule": "x"}, "unknown drop-fraction schedule 'x'"),
        ("rigl", {"redistribution": "zz"}, "unknown redistribution 'zz'"),
        ("rigl", {"update_end_fraction": -3}, r"update_end_fraction must be in \[0, 1\]; got -3"),
        ("rigl", {**FAST, "masks": {}}, "masks must be given for weight; got none"),
        ("gmp", {**FAST, "density": 0.001}, "density must leave a connection for each of the 1 layers of 96 weights"),
    ],
)
def test_what_cannot_work_is_refused_at_once(method, recipe, message):
    model = nn.Linear(8, 12)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=message):
        settings = {"density": 0.25, "total_steps": TOTAL, "generator": torch.Generator()} | recipe
        Sparsifier(model, optimizer, method, **settings)


def test_a_weight_that_the_optimizer_does_not_hold_is_refused():
    model = nn.Sequential(nn.Linear(8, 12), nn.Linear(12, 4))
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    settings = {"density": 0.25, "total_steps": TOTAL, "generator": torch.Generator()}
    with pytest.raises(ValueError, match="optimizer must hold every masked weight; '1.weight' is not among"):
        Sparsifier(model, optimizer, "static", **settings)
    Sparsifier(model, optimizer, "static", dense_layers=["1"], **settings)


def test_step_before_the_optimizers_is_an_error_in_the_order_of_calls():
    _, _, sparsifier = build("rigl", update_interval_steps=1)
    with pytest.raises(RuntimeError, match=r"Call optimizer.step\(\) first"):
        sparsifier.step()


def test_exploring_without_gradients_or_criteria_is_refused():
    _, _, sparsifier = build("rigl")
    with pytest.raises(RuntimeError, match=r"Call backward\(\) first"):
        sparsifier.explore(0.5)
    _, _, static = build("static")
    with pytest.raises(ValueError, match="keeps its masks"):
        static.explore(0.5)


@pytest.mark.parametrize("width", [12, WIDE])
def test_gradients_stay_dense_through_a_step_so_that_exploring_may_follow_it(width):
    model, optimizer, sparsifier = build("rigl", 0.05 if width == WIDE else 0.25, width=width)
    nn.functional.cross_entropy(model(torch.ones(4, 8).cumsum(0)), torch.arange(4)).backward()
    gradient = model[0].weight.grad.clone()
    assert gradient[~sparsifier.masks["0.weight"]].any()
    optimizer.step()
    assert torch.equal(model[0].weight.grad, gradient)
    sparsifier.step()
    weights, masks = {"w": model[0].weight.detach().clone()}, {"w": sparsifier.masks["0.weight"]}
    sparsifier.explore(0.5)
    by_hand = drop_and_grow(weights, masks, 0.5, gradients={"w": gradient})
    assert torch.equal(sparsifier.masks["0.weight"], by_hand["w"])


def test_exploring_with_masked_gradients_is_refused():
    model, optimizer, sparsifier = build("rigl")
    nn.functional.cross_entropy(model(torch.ones(4, 8).cumsum(0)), torch.arange(4)).backward()
    sparsifier.mask_gradients()
    with pytest.raises(RuntimeError, match="Cannot explore: the gradients are masked"):
        sparsifier.explore(0.5)
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(torch.ones(4, 8).cumsum(0)), torch.arange(4)).backward()
    sparsifier.explore(0.5)


def test_a_step_that_was_left_out_is_said():
    model, optimizer, sparsifier = build("rigl")
    nn.functional.cross_entropy(model(torch.ones(4, 8).cumsum(0)), torch.arange(4)).backward()
    optimizer.step()
    optimizer.step()
    with pytest.raises(RuntimeError, match=r"Cannot count 2 optimizer steps at once: .* after every optimizer"):
        sparsifier.step()


@pytest.mark.parametrize("where", ["bias", "off the mask"])
def test_a_step_skipped_for_what_masking_hides_is_no_error(where):
    model, optimizer, sparsifier = build("rigl", grow="momentum", masks=FIRST)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for step in range(4):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(torch.ones(4, 8).cumsum(0)), torch.arange(4))
        scaler.scale(loss).backward()
        if step == 1:
            target = model[0].bias.grad if where == "bias" else model[0].weight.grad
            target.view(-1)[1] = float("inf")
        scaler.unscale_(optimizer)
        sparsifier.mask_gradients()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        sparsifier.step()
    assert sparsifier.num_steps == (3 if where == "bias" else sparsifier.num_steps)
    assert all(momentum.isfinite().all() for momentum in sparsifier.state_dict()["momenta"].values())


@pytest.mark.parametrize("fused", [False, True])
def test_channels_last_weights_keep_their_layout_in_the_optimizers_state(fused):
    def run(channels_last):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(64, 128, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4))
        if channels_last:
            model = model.to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=fused)
        settings = {"density": 0.05, "total_steps": 20, "generator": torch.Generator().manual_seed(0)}
        sparsifier = Sparsifier(model, optimizer, "rigl", update_interval_steps=2, **settings)
        assert sparsifier.layer_masks["0.weight"].positions is not None
        for step in range(6):
            if step == 4:
                sparsifier.detach()
            inputs = torch.randn(4, 64, 3, 3, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), torch.arange(4)).backward()
            optimizer.step()
            sparsifier.step()
        return model[0].weight.detach()

    assert torch.allclose(run(True), run(False), atol=1e-5)


def test_an_epsilon_of_zero_leaves_no_nan_off_the_masks():
    model = nn.Linear(8, 12)
    optimizer = torch.optim.Adam(model.parameters(), eps=0.0)
    settings = {"density": 0.25, "total_steps": 4, "generator": torch.Generator().manual_seed(0)}
    sparsifier = Sparsifier(model, optimizer, "static", **settings)
    model(torch.randn(4, 8)).square().sum().backward()
    optimizer.step()
    off = ~sparsifier.masks["weight"]
    assert torch.equal(model.weight[off], torch.zeros(int(off.sum())))


def test_masks_sparser_than_the_schedule_are_never_filled_up():
    model, optimizer, sparsifier = build("gmp", masks=FIRST, density=0.1)
    counts = [sum(sparsifier.counts.values())]
    for step in range(12):
        train_step(model, optimizer, sparsifier, step)
        counts.append(sum(sparsifier.counts.values()))
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == 14


def test_the_dense_method_takes_weights_that_cannot_be_masked():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 4))
    model[1].requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    Sparsifier(model, optimizer, "dense", density=1.0, total_steps=2, generator=torch.Generator())


def test_state_of_another_model_is_refused():
    _, _, sparsifier = build("rigl")
    state = sparsifier.state_dict()
    state["masks"] = {"0.weight": state["masks"]["0.weight"]}
    with pytest.raises(ValueError, match="must be of this model"):
        sparsifier.load_state_dict(state)


def test_a_method_reads_exactly_its_defaults():
    for name, method in METHODS.items():
        assert method_settings(name, {}) == dict(method.defaults)
        for key in ("drop_fraction", "update_interval_steps", "grow", "distribution", "initial_density"):
            if key in method.defaults:
                value = {"grow": "random", "distribution": "uniform", "update_interval_steps": 7}.get(key, 0.125)
                assert method_settings(name, {key: value}) == {**method.defaults, key: value}
            else:
                with pytest.raises(ValueError, match=f"{key} has no effect with method '{name}'"):
                    method_settings(name, {key: 1})


def test_a_diverged_gradient_revives_no_pruned_weight():
    model, optimizer, sparsifier = build("rigl")
    train_step(model, optimizer, sparsifier, 0)
    for parameter in model.parameters():
        parameter.grad.fill_(float("nan"))
    optimizer.step()
    for name, mask in sparsifier.masks.items():
        assert not model.get_parameter(name)[~mask].any()
        assert model.get_parameter(name)[mask].isnan().all()


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.a, self.b = nn.Linear(20, 64), nn.Linear(64, 8), nn.Linear(64, 8)

    def forward(self, inputs, head):
        return getattr(self, head)(self.body(inputs).relu())


def trained_in_turn(method, frozen_from=None, **settings):
    """Heads a and b trained in turn; yields the masks before and after each update with the layers left out."""
    torch.manual_seed(0)
    model = TwoHeads()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    settings = {"density": 0.2, "total_steps": 120, "update_interval_steps": 9, **settings}
    sparsifier = Sparsifier(model, optimizer, method, generator=torch.Generator().manual_seed(0), **settings)
    for step in range(120):
        if step == frozen_from:
            model.body.requires_grad_(False)
        inputs, head = torch.randn(16, 20), "ab"[step % 2]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs, head), (inputs[:, 0] > 0).long()).backward()
        unused = [name for name, weight in sparsifier.parameters.items() if weight.grad is None]
        before = sparsifier.masks
        optimizer.step()
        if sparsifier.step():
            yield unused, before, sparsifier


@pytest.mark.parametrize("settings", [{}, {"grow": "momentum"}, {"drop": "threshold", "redistribution": "nonzeros"}])
@pytest.mark.parametrize("method", ["set", "rigl", "gmp", "gmp_uniform", "granet", "granet_uniform"])
def test_a_layer_without_a_gradient_at_an_update_keeps_its_mask(method, settings):
    if method.startswith("gmp") and settings:
        return
    seen, changed, density = set(), set(), 1.0
    for unused, before, sparsifier in trained_in_turn(method, **settings):
        seen.update(unused)
        for name, mask in sparsifier.masks.items():
            assert name not in unused or torch.equal(mask, before[name]), name
            changed |= set() if torch.equal(mask, before[name]) else {name}
        assert sparsifier.density <= density
        density = sparsifier.density
    assert seen == {"a.weight", "b.weight"}
    assert changed == {"body.weight", "a.weight", "b.weight"}
    assert density == int(0.2 * (20 * 64 + 2 * 64 * 8)) / (20 * 64 + 2 * 64 * 8)


@pytest.mark.parametrize("method", ["set", "rigl", "granet"])
def test_a_layer_frozen_in_mid_training_keeps_weights_and_mask(method):
    frozen = None
    for _, _, sparsifier in trained_in_turn(method, frozen_from=60):
        if sparsifier.num_steps > 60:
            body = sparsifier.parameters["body.weight"].detach()
            frozen = body.clone() if frozen is None else frozen
            assert torch.equal(body, frozen)
    assert frozen is not None


def test_exploring_needs_a_gradient_of_some_layer_and_leaves_the_others():
    *_, (_, _, sparsifier) = trained_in_turn("rigl")
    before = sparsifier.masks
    sparsifier.explore(0.5)
    unused = [name for name, weight in sparsifier.parameters.items() if weight.grad is None]
    assert unused
    for name, mask in sparsifier.masks.items():
        assert torch.equal(mask, before[name]) == (name in unused)
    for weight in sparsifier.parameters.values():
        weight.grad = None
    with pytest.raises(RuntimeError, match="no masked weight has a gradient. Call backward"):
        sparsifier.explore(0.5)


WRITES = {
    "load_state_dict": lambda model, first: model.load_state_dict(first),
    "data": lambda model, first: [setattr(p, "data", first[name].clone()) for name, p in model.named_parameters()],
    "data in place": lambda model, first: [p.data.copy_(first[name]) for name, p in model.named_parameters()],
    "numpy": lambda model, first: [
        np.copyto(p.detach().numpy(), first[name].numpy()) for name, p in model.named_parameters()
    ],
    "init": lambda model, first: [nn.init.normal_(p) for p in model.parameters()],
}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("width", [64, 16_384], ids=["masked", "gathered"])
@pytest.mark.parametrize("write", WRITES)
def test_what_others_write_into_the_weights_is_masked_at_the_next_step(write, width, optimizer):
    model = nn.Sequential(nn.Linear(20, width), nn.ReLU(), nn.Linear(width, 2))
    first = copy.deepcopy(model.state_dict())
    classes = {"sgd": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}), "adamw": (torch.optim.AdamW, {"lr": 0.01})}
    kind, options = classes[optimizer]
    made = kind(model.parameters(), **options)
    generator = torch.Generator().manual_seed(0)
    sparsifier = Sparsifier(model, made, "static", density=0.1, total_steps=100, generator=generator)
    for step in range(4):
        if step == 2:
            WRITES[write](model, first)
        made.zero_grad()
        nn.functional.cross_entropy(model(torch.randn(8, 20)), torch.arange(8) % 2).backward()
        made.step()
        sparsifier.step()
        nonzero = sum(int(weight.count_nonzero()) for weight in sparsifier.parameters.values())
        assert nonzero <= sum(sparsifier.counts.values())
        for name, mask in sparsifier.masks.items():
            assert not sparsifier.parameters[name].detach()[~mask].any()


@pytest.mark.parametrize("width", [64, 16_384], ids=["masked", "gathered"])
@pytest.mark.parametrize("write", ["load_state_dict", "data", "init", "second optimizer"])
def test_what_others_write_after_the_optimizers_step_is_masked_by_step(write, width):
    def step_second(model, first):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        torch.optim.SGD(model.parameters(), lr=0.1).step()

    model, optimizer, sparsifier = build(method="static", density=0.1, width=width)
    first = {name: torch.ones_like(tensor) for name, tensor in model.state_dict().items()}
    for step in range(3):
        train_step(model, optimizer, sparsifier, step)
    optimizer.step()
    {**WRITES, "second optimizer": step_second}[write](model, first)
    sparsifier.step()
    for name, mask in sparsifier.masks.items():
        assert not sparsifier.parameters[name].detach()[~mask].any()


@pytest.mark.parametrize("copy_of", [copy.deepcopy, lambda parts: pickle.loads(pickle.dumps(parts))])
@pytest.mark.parametrize("width", [64, 16_384], ids=["masked", "gathered"])
def test_a_copy_of_model_and_optimizer_alone_trains_densely(width, copy_of):
    model, optimizer, sparsifier = build(method="static", density=0.1, width=width)
    train_step(model, optimizer, sparsifier, 0)
    copied, copied_optimizer = copy_of((model, optimizer))
    assert as_bits(copied_optimizer.state_dict()["state"]) == as_bits(optimizer.state_dict()["state"])
    for parameter in copied.parameters():
        parameter.grad = torch.ones_like(parameter)
    copied_optimizer.step()
    assert all(bool(parameter.all()) for parameter in copied.parameters() if parameter.ndim > 1)
    sparsifier.detach()
    assert "__getstate__" not in vars(optimizer)


def test_a_parameter_that_was_replaced_is_refused_by_name():
    model, optimizer, sparsifier = build(method="static")
    train_step(model, optimizer, sparsifier, 0)
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    with pytest.raises(RuntimeError, match=r"'\S+weight' was replaced, as by load_state_dict\(assign=True\)"):
        train_step(model, optimizer, sparsifier, 1)


@pytest.mark.parametrize("how", list(CONTINUED.values()), ids=list(CONTINUED))
def test_copies_made_together_go_on_with_equal_bits_and_apart(how):
    parts = build(**how)
    for step in range(5):
        train_step(*parts, step)
    copied = copy.deepcopy(parts)
    for step in range(5, 15):
        train_step(*parts, step)
    before = as_bits([part.state_dict() for part in parts])
    for step in range(5, 15):
        train_step(*copied, step)
    assert as_bits([part.state_dict() for part in copied]) == before == as_bits([part.state_dict() for part in parts])
    for name, mask in copied[2].masks.items():
        assert not copied[2].parameters[name].detach()[~mask].any()


def test_a_sparsifier_is_not_pickled():
    with pytest.raises(TypeError, match="Cannot pickle a Sparsifier: .* Save its state_dict"):
        pickle.dumps(build(method="static")[2])


@pytest.mark.parametrize("width", [64, 16_384], ids=["masked", "gathered"])
def test_a_dense_optimizer_state_that_is_loaded_is_masked_at_the_next_step(width):
    _, dense, _ = built = build(method="dense", density=1.0, width=width)
    train_step(*built, 0)
    model, optimizer, sparsifier = build(method="static", width=width)
    optimizer.load_state_dict(dense.state_dict())
    train_step(model, optimizer, sparsifier, 1)
    state = optimizer.state_dict()["state"]
    for index, (name, _) in enumerate(model.named_parameters()):
        if name in sparsifier.masks:
            assert not state[index]["momentum_buffer"][~sparsifier.masks[name]].any()
