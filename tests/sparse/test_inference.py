import io

import pytest
import torch
from torch import nn

from suptickets_ray.sparse.inference import SparseConv2d, SparseLinear, compress

SPARSE = (SparseLinear, SparseConv2d)


def pruned(model, density, seed=0):
    """The model with that share of each weight matrix left, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(torch.rand(parameter.shape, generator=generator) < density)
    return model.eval()


def images(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def kinds(model):
    return [type(module) for module in model.modules() if isinstance(module, SPARSE)]


def small_network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(inplace=True),
        nn.Conv2d(16, 32, 1, stride=2, bias=False),
        nn.Dropout(),
        nn.Flatten(),
        nn.Linear(32 * 16, 10),
    )


def test_a_linear_layer_by_hand():
    dense = nn.Linear(3, 2)
    dense.weight.data = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    dense.bias.data = torch.tensor([1.0, -1.0])
    sparse = compress(dense, min_weights=0)
    assert sparse.weight.values().tolist() == [2.0]
    assert sparse(torch.tensor([5.0, 6.0, 7.0])).tolist() == [13.0, -1.0]
    assert sparse(torch.tensor([[5.0, 6.0, 7.0]] * 2)).tolist() == [[13.0, -1.0]] * 2


# One row, few and many go three ways.
@pytest.mark.parametrize("leading", [(), (0,), (1,), (2,), (63,), (64,), (5, 20)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_gives_what_the_dense_one_gives(leading, bias):
    torch.manual_seed(0)
    dense = pruned(nn.Linear(40, 30, bias=bias), 0.1)
    sparse = compress(dense, min_weights=0)
    assert isinstance(sparse, SparseLinear)
    inputs = images(*leading, 40)
    torch.testing.assert_close(sparse(inputs), dense(inputs), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": 1},
        {"kernel_size": 1, "stride": 2, "bias": False},
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": (3, 2), "padding": (2, 0), "stride": (1, 2), "dilation": (2, 1)},
    ],
)
@pytest.mark.parametrize("shape", [(1, 6, 4, 4), (1, 6, 12, 9), (0, 6, 5, 5), (7, 6, 6, 4), (70, 6, 4, 4), (6, 5, 5)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_convolution_gives_what_the_dense_one_gives(settings, shape, memory_format):
    torch.manual_seed(0)
    dense = pruned(nn.Conv2d(6, 8, **settings), 0.15)
    sparse = compress(dense)
    assert isinstance(sparse, SparseConv2d)
    inputs = images(*shape)
    if len(shape) == 4:
        inputs = inputs.contiguous(memory_format=memory_format)
    torch.testing.assert_close(sparse(inputs), dense(inputs), rtol=0, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 64])
@pytest.mark.parametrize("bias", [True, False])
def test_layers_without_active_weights_give_their_bias(batch_size, bias):
    linear, conv = pruned(nn.Linear(12, 5, bias=bias), 0), pruned(nn.Conv2d(3, 5, 3, bias=bias), 0)
    for dense, inputs in ((linear, images(batch_size, 12)), (conv, images(batch_size, 3, 4, 4))):
        sparse = compress(dense, min_weights=0)
        assert isinstance(sparse, SPARSE)
        assert torch.equal(sparse(inputs), dense(inputs))


@pytest.mark.parametrize("shape", [(2, 6, 5, 5), (2, 3, 2, 5), (2, 3), (1, 2, 3, 4, 5)])
def test_images_that_do_not_fit_are_refused(shape):
    sparse = compress(pruned(nn.Conv2d(3, 4, 3), 0.1))
    with pytest.raises(
        ValueError, match=r"the images must be \(batch, 3, height, width\), not smaller than the kernel"
    ):
        sparse(images(*shape))


def test_inputs_that_do_not_fit_are_refused():
    sparse = compress(pruned(nn.Linear(6, 4), 0.1), min_weights=0)
    for shape in ((2, 3), (1, 12), (12,), (3, 4)):
        with pytest.raises(RuntimeError):
            sparse(images(*shape))


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_a_network_gives_the_same_logits(batch_size):
    model = pruned(small_network(), 0.1)
    sparse = compress(model, min_weights=0)
    assert kinds(sparse) == [SparseConv2d, SparseConv2d, SparseLinear]
    inputs = images(batch_size, 3, 8, 8)
    for context in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with context():
            torch.testing.assert_close(sparse(inputs), model(inputs), rtol=0, atol=1e-5)


def test_float64_is_computed_in_float64():
    model = pruned(small_network(), 0.1).double()
    inputs = images(2, 3, 8, 8).double()
    torch.testing.assert_close(compress(model, min_weights=0)(inputs), model(inputs), rtol=0, atol=1e-12)


def test_the_model_stays_as_it_was():
    model = pruned(small_network(), 0.1).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sparse = compress(model, min_weights=0)
    assert all(module.training for module in model.modules())
    assert not any(module.training for module in sparse.modules())
    with torch.no_grad():
        sparse.get_submodule("1").running_mean.add_(1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(parameter.requires_grad for parameter in sparse.parameters())


# torch says that it checks what it loads.
@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")
def test_the_state_has_the_same_names_and_values_and_can_be_saved():
    model = pruned(small_network(), 0.1)
    sparse = compress(model, min_weights=0)
    assert list(sparse.state_dict()) == list(model.state_dict())
    for name, tensor in sparse.state_dict().items():
        whole = model.state_dict()[name]
        assert torch.equal(tensor.to_dense().view(whole.shape) if tensor.is_sparse_csr else tensor, whole)
    file = io.BytesIO()
    torch.save(sparse.state_dict(), file)
    file.seek(0)
    other = compress(pruned(small_network(), 0.1), min_weights=0)
    other.load_state_dict(torch.load(file, weights_only=True))
    inputs = images(2, 3, 8, 8)
    assert torch.equal(other(inputs), sparse(inputs))


def test_layers_that_would_not_gain_stay_dense():
    model = nn.Sequential(pruned(nn.Linear(10, 10), 0.5), pruned(nn.Linear(10, 10), 0.1), pruned(nn.Conv2d(2, 2, 3), 1))
    assert kinds(compress(model, max_density=0.2, min_weights=100)) == [SparseLinear]
    assert kinds(compress(model, max_density=0.2, min_weights=101)) == []
    assert kinds(compress(model, max_density=1, min_weights=0)) == [SparseLinear, SparseLinear, SparseConv2d]


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
        nn.Linear(4, 4).bfloat16(),
        nn.Linear(4, 4, device="meta"),
        nn.utils.parametrizations.orthogonal(nn.Linear(4, 4)),
        nn.MultiheadAttention(4, 1),
        nn.TransformerEncoderLayer(4, 1, 8, batch_first=True),
    ],
)
def test_what_it_cannot_hold_stays_dense(layer):
    compressed = compress(layer, max_density=1, min_weights=0)
    assert len(kinds(compressed)) == 0


def test_a_layer_in_two_places_stays_one():
    shared = pruned(nn.Linear(10, 10), 0.1)
    sparse = compress(nn.Sequential(shared, nn.ReLU(), shared), min_weights=0)
    assert sparse[0] is sparse[2]


def test_the_printed_model_says_what_is_active():
    dense = nn.Linear(3, 2)
    dense.weight.data = torch.eye(2, 3)
    assert repr(compress(dense, max_density=0.5, min_weights=0)) == "SparseLinear(3, 2, active=2)"


def test_a_share_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"max_density must be in \[0, 1\]; got 5\."):
        compress(nn.Linear(2, 2), max_density=5)
