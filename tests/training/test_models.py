import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from suptickets_ray.config import ModelConfig
from suptickets_ray.sparse.maskable import maskable_parameters
from suptickets_ray.training.models import MODELS, build_model, find_builder
from suptickets_ray.training.models.torchvision_models import torchvision_names

CIFAR, MNIST, DIGITS = (3, 32, 32), (1, 28, 28), (1, 8, 8)

IMAGE_MODELS = [name for name in MODELS if name != "transformer"]


def build(name, sample_shape=CIFAR, num_classes=10, **options):
    return build_model(ModelConfig(name=name, options=options), sample_shape, num_classes)


def on_meta(name, sample_shape=CIFAR, num_classes=10, **options):
    """A model without memory or time, whose shapes are all there."""
    with torch.device("meta"):
        return build(name, sample_shape, num_classes, **options)


def num_parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_mlp_has_the_widths_asked_for_and_gives_logits():
    model = build("mlp", DIGITS, widths=[16, 12])
    assert [tuple(p.shape) for p in model.parameters() if p.ndim == 2] == [(16, 64), (12, 16), (10, 12)]
    assert model(torch.zeros(3, 1, 8, 8)).shape == (3, 10)


def test_the_mlp_has_either_batchnorm_or_biases():
    plain = build("mlp", DIGITS, widths=[16], batchnorm=False)
    assert [type(layer) for layer in plain] == [nn.Flatten, nn.Linear, nn.ReLU, nn.Linear]
    assert num_parameters(plain) == 64 * 16 + 16 + 16 * 10 + 10
    assert num_parameters(build("mlp", DIGITS, widths=[16])) == 64 * 16 + 2 * 16 + 16 * 10 + 10


@pytest.mark.parametrize(
    ("name", "sample_shape", "published", "parameters"),
    [
        ("lenet_300_100", MNIST, "267 K, Han et al.", 266_610),
        ("lenet5", MNIST, "431 K, Han et al.", 431_080),
        ("resnet20", CIFAR, "0.27 M, He et al.", 269_722),
        ("resnet32", CIFAR, "0.46 M, He et al.", 464_154),
        ("resnet56", CIFAR, "0.85 M, He et al.", 853_018),
        ("wrn_16_8", CIFAR, "11.0 M, Zagoruyko and Komodakis", 10_961_370),
        ("wrn_16_10", CIFAR, "17.1 M, Zagoruyko and Komodakis", 17_116_634),
        ("wrn_28_10", CIFAR, "36.5 M, Zagoruyko and Komodakis", 36_479_194),
        ("cifar_vgg16", CIFAR, "14.7 M", 14_724_042),
        ("vgg_like", CIFAR, "15.0 M, Lee et al.", 14_987_210),
        ("cifar_alexnet", CIFAR, "5.1 M, Lee et al.", 5_073_642),
    ],
)
def test_the_parameters_are_as_many_as_published(name, sample_shape, published, parameters):
    number, unit = published.split(",")[0].split()
    assert f"{parameters / {'K': 1e3, 'M': 1e6}[unit]:.{len(number.partition('.')[2])}f}" == number
    assert num_parameters(on_meta(name, sample_shape)) == parameters


@pytest.mark.parametrize(
    ("name", "num_classes", "tensors", "weights"),
    [
        ("cifar_resnet50", 100, 54, 23_652_032),
        ("cifar_resnet34", 10, 37, 21_265_088),
        ("cifar_resnet18", 10, 21, 11_164_352),
        ("resnet20", 10, 20, 268_336),  # as many as layers: shortcuts have none
        ("cifar_vgg11", 10, 9, 9_222_848),
        ("cifar_vgg13", 10, 11, 9_407_168),
        ("cifar_vgg16", 10, 14, 14_715_584),
        ("cifar_vgg19", 10, 17, 20_024_000),
        ("wrn_22_2", 10, 23, 1_076_912),
        ("wrn_28_10", 10, 29, 36_461_232),
        ("cifar_mlp", 10, 4, 3072 * 4000 + 4000 * 1000 + 1000 * 4000 + 4000 * 10),
    ],
)
def test_the_maskable_weights_are_all_but_biases_and_batchnorm(name, num_classes, tensors, weights):
    maskable = maskable_parameters(on_meta(name, num_classes=num_classes))
    assert (len(maskable), sum(weight.numel() for weight in maskable.values())) == (tensors, weights)


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_every_model_trains(name):
    torch.manual_seed(0)
    model = build(name, (3, 16, 16), 7)
    tensors = [tensor.data_ptr() for tensor in model.state_dict().values()]
    assert len(set(tensors)) == len(tensors)
    inputs = torch.randn(2, 3, 16, 16)
    logits = model(inputs)
    assert logits.shape == (2, 7)
    cross_entropy(logits, torch.tensor([1, 5])).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.any(), parameter_name
    logits = model.eval()(inputs)
    assert logits.shape == (2, 7)
    assert (logits < 0).any()


@pytest.mark.parametrize("name", IMAGE_MODELS)
@pytest.mark.parametrize("sample_shape", [DIGITS, (2, 16, 16), MNIST, (3, 33, 47), (3, 64, 64)])
def test_every_model_takes_images_of_any_channels_and_size(name, sample_shape):
    if (name, sample_shape) == ("lenet5", DIGITS):
        sample_shape = (1, 16, 16)  # it refuses smaller ones
    assert on_meta(name, sample_shape, 3)(torch.zeros(2, *sample_shape, device="meta")).shape == (2, 3)


def test_convolutions_start_normal_with_the_variance_of_their_fan_out():
    torch.manual_seed(0)
    model = build("cifar_resnet18")
    weight = model.stages[3][1].branch[0].weight
    assert weight.std().item() == pytest.approx((2 / (3 * 3 * 512)) ** 0.5, rel=0.01)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()


def test_a_shortcut_without_weights_takes_every_second_pixel_and_adds_channels_of_zeros():
    block = build("resnet20", width=1).stages[1][0]
    nn.init.zeros_(block.branch[-1].weight)
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert block(image).tolist() == [[[[0, 2], [8, 10]], [[0, 0], [0, 0]]]]


def test_the_width_of_a_thin_resnet_is_that_of_its_first_stage():
    shapes = [tuple(p.shape[:2]) for p in maskable_parameters(on_meta("resnet20", width=8)).values()]
    assert (shapes[0], shapes[-1]) == ((8, 3), (10, 32))


def test_a_wide_block_adds_to_its_inputs_before_any_activation():
    block = build("wrn_22_2").stages[0][1]
    nn.init.zeros_(block.branch[-1].weight)
    images = torch.randn(2, 32, 3, 3)
    assert torch.equal(block(images), images)


def test_dropout_is_between_the_convolutions_of_a_wide_block_and_only_where_asked_for():
    def rates(**options):
        return [m.p for m in on_meta("wrn_16_8", **options).modules() if isinstance(m, nn.Dropout)]

    assert (rates(), rates(dropout_rate=0), rates(dropout_rate=0.3)) == ([], [], [0.3] * 6)
    assert on_meta("wrn_16_8").state_dict().keys() == on_meta("wrn_16_8", dropout_rate=0.3).state_dict().keys()


def test_vgg_like_drops_out_as_published():
    kinds = (nn.Dropout, nn.MaxPool2d, nn.Linear)
    found = [m for m in on_meta("vgg_like").modules() if isinstance(m, kinds)]
    text = " ".join(str(m.p) if isinstance(m, nn.Dropout) else type(m).__name__[0] for m in found)
    assert text == "0.3 M 0.4 M 0.4 0.4 M 0.4 0.4 M 0.4 0.4 M 0.5 L 0.5 L"


def test_the_larger_alexnet_has_the_published_count():
    assert round(num_parameters(on_meta("cifar_alexnet", hidden_units=2048)) / 1e6, 1) == 8.5


@pytest.mark.parametrize(
    ("name", "sample_shape", "options", "message"),
    [
        ("mlp", DIGITS, {"width": [3]}, "width has no effect: model.name does not take it. Known: widths, batchnorm."),
        ("mlp", DIGITS, {"widths": []}, "model.options.widths must be a list of numbers above 0"),
        ("resnet20", DIGITS, {"width": 0}, "model.options.width must be at least 1; got 0."),
        ("cifar_alexnet", DIGITS, {"hidden_units": 0}, "model.options.hidden_units must be at least 1; got 0."),
        ("wrn_22_2", DIGITS, {"dropout_rate": 1}, r"model.options.dropout_rate must be in \[0, 1\); got 1."),
        ("cifar_vgg11", (7,), {}, r"must be images \(channels, height, width\); got examples of shape \(7,\). Choose"),
        ("lenet5", DIGITS, {}, "must be at least 16 x 16 pixels; got 8 x 8. Choose mlp"),
        ("resnet18", MNIST, {}, "the images of torchvision's resnet18 must have 3 channels; got 1. Choose"),
        ("resnet18", (7,), {}, "must be images"),
        ("resnet18", CIFAR, {"weights": "DEFAULT"}, "model.options.weights has no effect with torchvision's resnet18"),
        ("googlenet", CIFAR, {"aux_logits": True}, "model.options.aux_logits must be false; got True."),
        ("resnet18", CIFAR, {"depth": 3}, "Cannot call the function of model.name .*: TypeError: .*'depth'"),
    ],
)
def test_what_cannot_work_is_refused(name, sample_shape, options, message):
    with pytest.raises(ValueError, match=message):
        build(name, sample_shape, **options)


def test_no_model_of_ours_hides_one_of_torchvision():
    assert not set(MODELS) & set(torchvision_names())


@pytest.mark.parametrize(
    ("name", "size", "parameters"),
    [
        ("resnet50", 224, 25_557_032),
        ("vgg16_bn", 224, 138_365_992),
        ("googlenet", 96, None),
        ("inception_v3", 96, None),
        ("vit_b_16", 48, None),
        ("maxvit_t", 224, None),
        ("mobilenet_v2", 32, None),
    ],
)
def test_torchvisions_models_give_plain_logits_in_training(name, size, parameters):
    model = on_meta(name, (3, size, size), 1000)
    assert model.training
    assert model(torch.zeros(2, 3, size, size, device="meta")).shape == (2, 1000)
    if parameters:
        assert num_parameters(model) == parameters


def test_torchvisions_models_take_their_own_options_and_train():
    model = build("shufflenet_v2_x0_5", CIFAR, 7)
    cross_entropy(model(torch.randn(2, 3, 32, 32)), torch.tensor([1, 5])).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert on_meta("resnet50", width_per_group=128).layer1[0].conv1.out_channels == 128


def test_torchvision_is_imported_only_for_its_own_models():
    code = (
        "import sys; from suptickets_ray.training.models import find_builder; find_builder('cifar_resnet18')\n"
        "print('torchvision' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(("name", "near"), [("cifar_resnet5", "cifar_resnet50"), ("densnet121", "densenet121")])
def test_an_unknown_model_is_named_with_the_nearest_of_both_lists(name, near):
    with pytest.raises(ValueError) as caught:
        find_builder(name)
    text = str(caught.value)
    assert text.startswith(f"unknown model {name!r}; did you mean {near!r}? Known: mlp, ")
    assert text.endswith(
        "wrn_28_10, or any classification model of torchvision. timm:NAME and hf:FOLDER are those of timm and "
        "transformers. A user-defined one is named 'package.module:function'."
    )


def test_your_own_function_is_given_what_it_names(tmp_path, monkeypatch):
    (tmp_path / "own_models.py").write_text(
        "import torch\n"
        "def build(num_classes, width=5):\n    return torch.nn.Linear(width, num_classes)\n"
        "def needs(depth):\n    return torch.nn.Linear(depth, 1)\n"
        "def wrong(num_classes):\n    return num_classes\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert build("own_models:build", (7,), 4, width=7).weight.shape == (4, 7)
    with pytest.raises(ValueError, match="model.options.depth must be given"):
        build("own_models:needs", (7,), 4)
    with pytest.raises(ValueError, match="must build a torch.nn.Module; 'own_models:wrong' gave int"):
        build("own_models:wrong", (7,), 4)


def test_a_transformer_sees_only_earlier_tokens_and_keeps_embeddings_dense():
    torch.manual_seed(0)
    model = build("transformer", (6,), 9, width=8, heads=2).eval()
    tokens = torch.randint(9, (2, 6))
    changed = tokens.clone()
    changed[:, 4] = (changed[:, 4] + 1) % 9
    before, after = model(tokens), model(changed)
    assert before.shape == (2, 6, 9)
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.equal(before[:, 4:], after[:, 4:])
    assert len(maskable_parameters(model)) == 2 * 4 + 1
    for sample_shape, options in (((3, 8, 8), {}), ((6,), {"width": 10, "heads": 4})):
        with pytest.raises(ValueError, match=r"sequences of tokens|a width that heads divide"):
            build("transformer", sample_shape, 9, **options)
