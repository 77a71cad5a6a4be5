import pytest
import torch
from torch import nn

from suptickets_ray.sparse import Sparsifier
from suptickets_ray.sparse.masks import num_active
from suptickets_ray.sparse.methods import METHODS, method_settings

TOTAL = 24
FAST = {"update_interval_steps": 3}


def build(method="rigl", density=0.25, optimizer="sgd", seed=0, **recipe):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 4))
    make = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-3),
        "adam": lambda p: torch.optim.Adam(p, lr=0.01),
        "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    }[optimizer]
    chosen = make(model.parameters())
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


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_weights_and_optimizer_state_stay_zero_off_the_mask(method, optimizer):
    model, chosen, sparsifier = build(method, target(method), optimizer)
    for step in range(TOTAL):
        train_step(model, chosen, sparsifier, step)
        for name, parameter in model.named_parameters():
            if name not in sparsifier.masks:
                continue
            off = ~sparsifier.masks[name]
            assert not parameter[off].any()
            for state in chosen.state[parameter].values():
                if isinstance(state, torch.Tensor) and state.shape == parameter.shape:
                    assert not state[off].any()


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


def test_step_before_the_optimizers_is_an_error_in_the_order_of_calls():
    _, _, sparsifier = build("rigl", update_interval_steps=1)
    with pytest.raises(RuntimeError, match=r"must follow optimizer.step\(\)"):
        sparsifier.step()


def test_exploring_without_gradients_or_criteria_is_refused():
    _, _, sparsifier = build("rigl")
    with pytest.raises(RuntimeError, match=r"Call backward\(\) first"):
        sparsifier.explore(0.5)
    _, _, static = build("static")
    with pytest.raises(ValueError, match="keeps its masks"):
        static.explore(0.5)


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
