import copy
import io

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, linear

from suptickets_ray.sparse import Sparsifier, active_compute, cost_model
from suptickets_ray.sparse.active_forward import ActiveForward
from suptickets_ray.sparse.active_weights import ActiveWeights, active_product
from suptickets_ray.sparse.inference import SparseLinear, compress
from suptickets_ray.sparse.methods import METHODS

TOTAL = 24


@pytest.fixture(autouse=True)
def small_layers_count(monkeypatch):
    monkeypatch.setattr(active_compute, "LEAST_WEIGHTS", 0)
    monkeypatch.setattr(active_compute, "MOST_DENSITY", 0.6)


class Dense(torch.autograd.Function):
    """Makes the gradient dense, which gradcheck expects."""

    @staticmethod
    def forward(ctx, weight):
        return weight.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient.to_dense()


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv1d(6, 8, 1, stride=2)
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.image = nn.Conv2d(8, 8, 1)
        self.last = nn.Linear(8, 4)

    def forward(self, inputs):
        hidden = self.first(inputs).transpose(1, 2)
        hidden = hidden + self.attend(hidden, hidden, hidden, need_weights=False)[0]
        hidden = self.image(hidden.transpose(1, 2)[..., None])[..., 0]
        return self.last(torch.tanh(hidden).transpose(1, 2)).mean(1)


def mlp():
    # No ReLU: in a channel without active weights rounding would decide on which side of its kink a constant is.
    return nn.Sequential(nn.Linear(8, 12), nn.BatchNorm1d(12), nn.Tanh(), nn.Linear(12, 4))


def build(compute="sparse", method="static", model=mlp, kind=torch.optim.SGD, density=0.25, **recipe):
    torch.manual_seed(0)
    model = model().double()
    # Gradients of some biases are 0 up to rounding; a large epsilon keeps Adam from scaling that up.
    options = {torch.optim.SGD: {"momentum": 0.9, "weight_decay": 1e-3}, torch.optim.AdamW: {"eps": 1e-3}}.get(kind, {})
    optimizer = kind(model.parameters(), lr=0.05, **options)
    if "update_interval_steps" in METHODS[method].defaults:
        recipe = {"update_interval_steps": 3} | recipe
    generator = torch.Generator().manual_seed(0)
    sparsifier = Sparsifier(
        model, optimizer, method, density=density, total_steps=TOTAL, generator=generator, compute=compute, **recipe
    )
    return model, optimizer, sparsifier


def batch(step, model=None):
    generator = torch.Generator().manual_seed(step)
    shape = (16, 6, 10) if isinstance(model, Mixed) else (16, 8)
    inputs = torch.randn(shape, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(4, (16,), generator=generator)


def train_step(model, optimizer, sparsifier, step):
    inputs, labels = batch(step, model)
    optimizer.zero_grad()
    cross_entropy(model(inputs), labels).backward()
    optimizer.step()
    return sparsifier.step()


def assert_close(one, other):
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12, msg=name)


def weights_of(mask):
    return ActiveWeights(mask.reshape(-1).nonzero().flatten(), mask.shape)


def test_a_product_and_its_gradients_by_hand():
    weight = torch.tensor([[0.0, 2.0, 0.0], [3.0, 0.0, 0.0]], requires_grad=True)
    inputs = torch.tensor([[5.0, 6.0, 7.0]], requires_grad=True)
    bias = torch.tensor([1.0, -1.0], requires_grad=True)
    outputs = active_product(inputs[:, :, None], weight, bias, weights_of(weight.detach() != 0))
    assert outputs.squeeze().tolist() == [13.0, 14.0]
    outputs.backward(torch.tensor([[[1.0], [10.0]]]))
    assert inputs.grad.tolist() == [[30.0, 2.0, 0.0]]
    assert weight.grad.is_sparse
    assert weight.grad.to_dense().tolist() == [[0.0, 6.0, 0.0], [50.0, 0.0, 0.0]]
    assert bias.grad.tolist() == [1.0, 10.0]


# One position, more rows than fit one table, several images in a table, an image in several tables, nothing.
@pytest.mark.parametrize("shape", [(1, 1), (700, 1), (40, 9), (3, 700), (2, 128), (0, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("form", ["active", "scattered", "dense"])
def test_products_of_all_sizes_are_the_dense_ones(shape, dtype, form):
    torch.manual_seed(0)
    mask = torch.rand(7, 11) < 0.3
    weight = (torch.randn(7, 11, dtype=dtype) * mask).requires_grad_()
    inputs = torch.randn(shape[0], 11, shape[1], dtype=dtype, requires_grad=True)
    bias = torch.randn(7, dtype=dtype, requires_grad=True)
    outgoing = torch.randn(shape[0], 7, shape[1], dtype=dtype)
    active_product(inputs, weight, bias, weights_of(mask), lambda: form).backward(outgoing)
    found = [inputs.grad.clone(), weight.grad.to_dense() * mask, bias.grad.clone()]
    assert weight.grad.is_sparse is (form == "active")
    assert form == "dense" or not (weight.grad.to_dense() * ~mask).any()
    inputs.grad = weight.grad = bias.grad = None
    linear(inputs.transpose(1, 2), weight, bias).transpose(1, 2).backward(outgoing)
    for ours, expected in zip(found, [inputs.grad, weight.grad * mask, bias.grad], strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["first", "image", "last"])
def test_gradients_pass_gradcheck(name):
    model = build(model=Mixed)[0]
    module = getattr(model, name)
    assert isinstance(module.__dict__["forward"], ActiveForward)
    positions = {"first": (6, 5), "image": (8, 3, 2), "last": (5, 8)}[name]
    inputs = torch.randn(2, *positions, dtype=torch.float64, requires_grad=True)
    mask = module.weight.detach() != 0

    def run(inputs, values, bias):
        module._parameters["weight"] = Dense.apply(
            torch.zeros_like(mask, dtype=values.dtype).masked_scatter(mask, values)
        )
        module._parameters["bias"] = bias
        return module(inputs)

    values = module.weight.detach()[mask].requires_grad_()
    assert torch.autograd.gradcheck(run, (inputs, values, module.bias.detach().requires_grad_()))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("masks", ["none", "attention", "heads", "padding", "both", "causal"])
def test_attention_is_that_of_torch(masks, batch_first):
    torch.manual_seed(0)
    module = nn.MultiheadAttention(8, 2, batch_first=batch_first).double()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(0)
    sparsifier = Sparsifier(
        module, optimizer, "static", density=0.3, total_steps=9, generator=generator, compute="sparse"
    )
    twin = copy.deepcopy(module)
    options = {
        "none": {},
        "attention": {"attn_mask": torch.rand(5, 5, generator=generator) < 0.3},
        "heads": {"attn_mask": torch.randn(6, 5, 5, generator=generator, dtype=torch.float64)},
        "padding": {"key_padding_mask": torch.arange(5) > torch.tensor([[2], [3], [4]])},
        "causal": {"attn_mask": torch.ones(5, 5).triu(1).bool(), "is_causal": True},
    }
    chosen = options["attention"] | options["padding"] if masks == "both" else options[masks]
    shape = (3, 5, 8) if batch_first else (5, 3, 8)
    inputs = torch.randn(shape, generator=generator, dtype=torch.float64)
    for need_weights in (False, True):
        for each in (module, twin):
            each(inputs, inputs, inputs, need_weights=need_weights, **chosen)[0].square().sum().backward()
    found, expected = (each(inputs, inputs, inputs, need_weights=False, **chosen)[0] for each in (module, twin))
    torch.testing.assert_close(found, expected, equal_nan=True)
    for (name, ours), its in zip(module.named_parameters(), twin.parameters(), strict=True):
        mask = sparsifier.masks.get(name, torch.ones(()).bool())
        torch.testing.assert_close(ours.grad * mask, its.grad * mask, equal_nan=True)


@pytest.mark.parametrize("model", [mlp, Mixed])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.sparse])
def test_every_method_ends_with_the_masks_and_results_of_masked_training(method, kind, model):
    # Sparser, some weights of Mixed have no path to the loss, and rounding would decide which of them is dropped.
    density = 0.5 if model is Mixed else 0.25
    masked = build("masked", method, model, kind, density)
    sparse = build("sparse", method, model, kind, density)
    for step in range(TOTAL):
        assert train_step(*masked, step) == train_step(*sparse, step)
    assert_close(masked[0], sparse[0])
    for name, mask in masked[2].masks.items():
        assert torch.equal(mask, sparse[2].masks[name])
        assert not sparse[2].parameters[name].detach()[~mask].any()
    torch.testing.assert_close(masked[1].state_dict()["state"], sparse[1].state_dict()["state"])
    assert None in sparse[2].computes_active.values()


def test_equal_inputs_give_equal_bits_also_after_a_resume():
    runs = [build(method="rigl", model=Mixed) for _ in range(2)]
    for step in range(50):
        if step == 20:
            saved = [copy.deepcopy(part.state_dict()) for part in runs[1]]
            runs[1] = build(method="rigl", model=Mixed)
            for part, state in zip(runs[1], saved, strict=True):
                part.load_state_dict(state)
        for run in runs:
            train_step(*run, step)
    for one, other in zip(runs[0][0].state_dict().values(), runs[1][0].state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_the_model_keeps_modules_names_state_and_hooks():
    plain = mlp().double()
    model, _, sparsifier = build()
    assert [(name, type(module)) for name, module in model.named_modules()] == [
        (name, type(module)) for name, module in plain.named_modules()
    ]
    assert list(model.state_dict()) == list(plain.state_dict())
    seen = []
    model[0].register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    model[0].register_full_backward_hook(lambda module, inputs, outputs: seen.append(outputs[0].shape))
    model(batch(0)[0].requires_grad_()).sum().backward()
    assert seen == [(16, 12), (16, 12)]
    sparsifier.detach()
    assert "forward" not in model[0].__dict__


def test_dense_gradients_exist_only_at_the_steps_that_need_them():
    model, optimizer, sparsifier = build(method="rigl")
    kinds = []
    for step in range(6):
        train_step(model, optimizer, sparsifier, step)
        kinds.append(model[0].weight.grad.is_sparse)
    assert kinds == [True, True, False, True, True, False]
    assert train_step(*build(method="set"), 2) is False
    model, optimizer, sparsifier = build(method="set")
    for step in range(6):
        train_step(model, optimizer, sparsifier, step)
        assert model[0].weight.grad.is_sparse


def test_accumulated_gradients_and_weights_used_twice_are_added():
    results = []
    for compute in ("masked", "sparse"):
        model, optimizer, sparsifier = build(compute)
        for step in range(4):
            optimizer.zero_grad()
            for part in range(2):
                inputs, labels = batch(2 * step + part)
                cross_entropy(model(inputs) + model(inputs.flip(0)), labels).backward()
            if step % 2:
                (0.1 * model[0].weight.square().sum() + linear(inputs, model[0].weight).sum()).backward()
            optimizer.step()
            sparsifier.step()
        results.append(model)
    assert_close(*results)


def test_clipping_sees_the_norm_of_the_active_gradients():
    norms = []
    for compute in ("masked", "sparse"):
        model, optimizer, sparsifier = build(compute)
        for step in range(3):
            optimizer.zero_grad()
            cross_entropy(model(batch(step)[0]), batch(step)[1]).backward()
            sparsifier.mask_gradients()
            norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), 0.1)))
            optimizer.step()
            sparsifier.step()
    assert norms[:3] == pytest.approx(norms[3:])


def test_a_copy_of_the_model_alone_computes_with_dense_weights():
    model, optimizer, sparsifier = build()
    train_step(model, optimizer, sparsifier, 0)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for copied in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        torch.testing.assert_close(copied(batch(1)[0]), model(batch(1)[0]))
        copied(batch(1)[0]).sum().backward()
        assert not copied[0].weight.grad.is_sparse
        assert copied[0].forward.module is copied[0]


def test_copies_made_together_compute_with_their_own_active_weights():
    parts = build(method="rigl")
    for step in range(5):
        train_step(*parts, step)
    copied = copy.deepcopy(parts)
    for run in (parts, copied):
        for step in range(5, 14):
            train_step(*run, step)
    assert copied[0][0].weight.grad.is_sparse
    assert copied[0][0].forward is not parts[0][0].forward
    for one, other in zip(parts[0].state_dict().values(), copied[0].state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_a_layer_that_is_pruned_below_the_limit_computes_sparse_from_then_on():
    parts = build(method="gmp")
    assert set(parts[2].computes_active.values()) == {
        "it has 96 weights at density 1: dense products are faster",
        "it has 48 weights at density 1: dense products are faster",
    }
    for step in range(TOTAL):
        train_step(*parts, step)
    assert set(parts[2].computes_active.values()) == {None}


def test_exploring_by_gradient_needs_dense_gradients():
    model, _, sparsifier = build(method="rigl")
    model(batch(0)[0]).sum().backward()
    with pytest.raises(RuntimeError, match="gradients hold active weights alone. Compute them and explore within"):
        sparsifier.explore(0.5)
    model.zero_grad()
    with sparsifier.dense_gradients():
        model(batch(0)[0]).sum().backward()
    before = sparsifier.masks
    sparsifier.explore(0.5)
    assert not torch.equal(before["0.weight"], sparsifier.masks["0.weight"])
    assert sparsifier.counts["0.weight"] == int(before["0.weight"].sum())


WRITES = {
    "load_state_dict": lambda weight, new: weight.copy_(new),
    "data": lambda weight, new: setattr(weight, "data", new.clone()),
    "numpy": lambda weight, new: np.copyto(weight.detach().numpy(), new.numpy()),
}


@pytest.mark.parametrize("write", WRITES)
def test_what_others_write_into_the_weights_is_used(write):
    results = []
    for compute in ("masked", "sparse"):
        parts = build(compute)
        train_step(*parts, 0)
        weight = parts[0][0].weight
        new = torch.ones_like(weight.detach()) * sparse_mask(parts[2])
        with torch.no_grad():
            WRITES[write](weight, new)
        for step in range(1, 3):
            train_step(*parts, step)
        results.append(parts[0])
    assert_close(*results)


def sparse_mask(sparsifier):
    return sparsifier.masks["0.weight"]


@pytest.mark.parametrize("condition", ["autocast", "compile"])
def test_where_it_cannot_compute_sparse_it_computes_dense(condition):
    model = build()[0]
    inputs = batch(0)[0]
    expected = model(inputs)
    if condition == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            found = model(inputs.float().double())
    else:
        found = torch.compile(model, backend="eager")(inputs)
    found.sum().backward()
    assert not model[0].weight.grad.is_sparse
    torch.testing.assert_close(found.double(), expected, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("make", [torch.optim.LBFGS, torch.optim.SGD])
def test_closures_give_the_results_of_masked_training(make):
    if make is torch.optim.LBFGS:
        with pytest.raises(ValueError, match="LBFGS reads dense gradients"):
            build(kind=make)
        return
    results = []
    for compute in ("masked", "sparse"):
        model, optimizer, sparsifier = build(compute)

        def closure(model=model, optimizer=optimizer):
            optimizer.zero_grad()
            loss = cross_entropy(model(batch(0)[0]), batch(0)[1])
            loss.backward()
            return loss

        for _ in range(3):
            optimizer.step(closure)
            sparsifier.step()
        results.append(model)
    assert_close(*results)


def test_differentiating_twice_is_refused():
    model = build()[0]
    inputs = batch(0)[0].requires_grad_()
    (gradient,) = torch.autograd.grad(model(inputs).square().sum(), inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: nn.Sequential(nn.Conv2d(3, 8, 3)), "only convolutions with one group and a kernel of size 1"),
        (lambda: nn.Sequential(nn.Conv2d(4, 8, 1, padding=1)), "pads its input"),
        (lambda: nn.Bilinear(3, 4, 5), "no such forward pass for Bilinear"),
        (lambda: torch.compile(nn.Linear(8, 8)), "torch.compile computes with dense weights"),
        (lambda: nn.Linear(8, 8).bfloat16(), "no such kernels for torch.bfloat16"),
        (lambda: nn.Linear(8, 8, device="meta"), "on the CPU only; it is on meta"),
    ],
)
def test_a_model_without_a_layer_that_can_is_refused(model, message):
    model = model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=f"compute must be 'masked' for a model without .*{message}"):
        Sparsifier(
            model, optimizer, "static", density=0.5, total_steps=9, generator=torch.Generator(), compute="sparse"
        )


def test_a_model_of_small_layers_is_refused(monkeypatch):
    monkeypatch.setattr(active_compute, "LEAST_WEIGHTS", 97)
    with pytest.raises(ValueError, match="'0.weight' cannot: it has 96 weights, and dense products are faster below"):
        build()


def test_an_unknown_way_to_compute_is_refused():
    with pytest.raises(ValueError, match="unknown compute 'sprase'; did you mean 'sparse'"):
        build("sprase")


def test_compress_replaces_layers_that_train_sparse():
    model, _, _ = build(density=0.1)
    small = compress(model.float(), min_weights=0)
    assert isinstance(small[0], SparseLinear)
    inputs = batch(0)[0].float()
    torch.testing.assert_close(small(inputs), model.eval()(inputs))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(cost_model, "_LEAST_SECONDS", 0)
    return tmp_path / "suptickets_ray" / "density_limits.json"


@pytest.mark.parametrize("limit", [0.0, 0.5])
def test_auto_masks_the_first_step_and_then_keeps_to_the_measured_limits(limit, monkeypatch):
    monkeypatch.setattr(active_compute, "density_limit", lambda size: limit)
    parts = build("auto")
    assert set(parts[2].computes_active.values()) == {"it was not trained yet"}
    for step in range(3):
        train_step(*parts, step)
        assert parts[0][0].weight.grad.is_sparse is (step > 0 and limit > 0)
    masked = build("masked")
    for step in range(3):
        train_step(*masked, step)
    assert_close(parts[0], masked[0])


def test_auto_decides_about_every_kind_of_layer(monkeypatch):
    seen = {}
    monkeypatch.setattr(active_compute, "density_limit", lambda size: seen.setdefault(size, 0.5))
    parts = build("auto", model=Mixed)
    train_step(*parts, 0)
    assert set(seen) == {
        cost_model.LayerSize(8, 6, 16, 5, "float64"),
        cost_model.LayerSize(24, 8, 80, 0, "float64"),
        cost_model.LayerSize(8, 8, 80, 0, "float64"),
        cost_model.LayerSize(8, 8, 16, 5, "float64"),
        cost_model.LayerSize(4, 8, 80, 0, "float64"),
    }
    assert set(parts[2].computes_active.values()) == {None}


def test_a_resumed_run_keeps_the_decisions_of_the_first(monkeypatch):
    monkeypatch.setattr(active_compute, "density_limit", lambda size: 0.5)
    parts = build("auto")
    for step in range(3):
        train_step(*parts, step)
    monkeypatch.setattr(active_compute, "density_limit", lambda size: 0.0)
    resumed = build("auto")
    for part, state in zip(resumed, [copy.deepcopy(part.state_dict()) for part in parts], strict=True):
        part.load_state_dict(state)
    for step in range(3, 6):
        train_step(*parts, step)
        train_step(*resumed, step)
    for one, other in zip(parts[0].state_dict().values(), resumed[0].state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_a_limit_is_measured_once_and_kept(cache, monkeypatch):
    size = cost_model.LayerSize(32, 16, 5, 3, "float32")
    limit = cost_model.density_limit(size)
    assert 0 <= limit <= 0.5
    monkeypatch.setattr(cost_model, "_measure", lambda size: pytest.fail("measured again"))
    assert cost_model.density_limit(size._replace(num_examples=8)) == limit
    assert list(cache.parent.iterdir()) == [cache]


@pytest.mark.parametrize("content", ["", "[]", '{"a": 1}', "{"])
def test_a_damaged_file_of_limits_is_measured_and_written_again(cache, content, monkeypatch):
    cache.parent.mkdir()
    cache.write_text(content)
    monkeypatch.setattr(cost_model, "_measure", lambda size: 0.125)
    size = cost_model.LayerSize(32, 16, 5, 0, "float32")
    assert cost_model.density_limit(size) == 0.125
    monkeypatch.setattr(cost_model, "_measure", lambda size: 0.25)
    assert cost_model.density_limit(size) == 0.125


@pytest.mark.parametrize(
    ("times", "limit"),
    [
        ([2, 4, 3, 50], 0.06),  # below the density at which masked steps become slower
        ([2, 4, 5, 10], 0.34),
        ([2, 4, 10, 5], 0.14),
        ([2, 4, 1, 9], 0.0),
        ([2, 4, 99, 99], 0.5),
        ([2, 2, 3, 3], 0.5),
        ([2, 2, 1, 3], 0.0),
    ],
)
def test_a_limit_is_where_the_line_through_two_densities_meets_the_masked_time(times, limit, monkeypatch):
    monkeypatch.setattr(cost_model, "_seconds", lambda steps: times)
    assert cost_model._measure(cost_model.LayerSize(4, 3, 2, 0, "float32")) == pytest.approx(limit)


def test_measuring_leaves_the_random_generator_alone(cache):
    state = torch.get_rng_state()
    cost_model.density_limit(cost_model.LayerSize(8, 8, 4, 0, "float32"))
    assert torch.equal(state, torch.get_rng_state())


def test_auto_says_once_that_no_layer_can():
    model = nn.Sequential(nn.Conv2d(3, 8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match="compute 'auto' masks dense weights .* kernel of size 1"):
        Sparsifier(model, optimizer, "static", density=0.5, total_steps=9, generator=torch.Generator(), compute="auto")
