import pytest
import torch

from suptickets_ray.config import ModelConfig
from suptickets_ray.training.models import build_model


def test_the_mlp_has_the_widths_asked_for_and_gives_logits():
    model = build_model(ModelConfig(name="mlp", options={"widths": [16, 12]}), (1, 8, 8), 10)
    assert [tuple(p.shape) for p in model.parameters() if p.ndim == 2] == [(16, 64), (12, 16), (10, 12)]
    assert model(torch.zeros(3, 1, 8, 8)).shape == (3, 10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": [3]}, "model.options.width has no effect: model.name does not take it. Known: widths."),
        ({"widths": []}, "model.options.widths must be a list of numbers above 0"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build_model(ModelConfig(name="mlp", options=options), (1, 8, 8), 10)


def test_your_own_function_is_given_what_it_names(tmp_path, monkeypatch):
    (tmp_path / "own_models.py").write_text(
        "import torch\n"
        "def build(num_classes, width=5):\n    return torch.nn.Linear(width, num_classes)\n"
        "def needs(depth):\n    return torch.nn.Linear(depth, 1)\n"
        "def wrong(num_classes):\n    return num_classes\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert build_model(ModelConfig(name="own_models:build", options={"width": 7}), (7,), 4).weight.shape == (4, 7)
    with pytest.raises(ValueError, match="model.options.depth must be given"):
        build_model(ModelConfig(name="own_models:needs"), (7,), 4)
    with pytest.raises(ValueError, match="must build a torch.nn.Module; 'own_models:wrong' gave int"):
        build_model(ModelConfig(name="own_models:wrong"), (7,), 4)
