"""Networks that other programs trained are superposed."""

import re

import pytest
import torch
from safetensors.torch import save_file

from suptickets_ray import load_config
from suptickets_ray.cli import main
from suptickets_ray.offline.checkpoints import superpose_checkpoints
from suptickets_ray.training.data import load_data
from suptickets_ray.training.models import build_model

SMALL = ["model.options.widths=[16]", "method.name=dense", "superposition.gate_tolerance=none"]


@pytest.fixture
def files(tmp_path):
    """State_dicts of three dense networks near each other."""
    config = load_config(None, SMALL)
    splits = load_data(config.data)
    torch.manual_seed(0)
    state = build_model(config.model, splits.sample_shape, splits.num_classes).state_dict()
    paths = []
    for number in range(3):
        moved = {
            name: tensor + 0.01 * number if tensor.is_floating_point() else tensor for name, tensor in state.items()
        }
        path = tmp_path / (f"{number}.safetensors" if number else "0.pt")
        if number:
            save_file(moved, str(path))
        else:
            torch.save(moved, path)
        paths.append(str(path))
    return paths


def test_the_mean_of_dense_checkpoints_is_dense(files):
    superposed, result = superpose_checkpoints(files, "digits", SMALL)
    expected = torch.load(files[0], weights_only=True)["1.weight"] + 0.01
    assert torch.allclose(superposed.state_dict()["1.weight"], expected, atol=1e-6)
    assert [(row["chain"], row["accepted"]) for row in result["tickets"]] == [(0, True), (1, True)]
    assert result["superposed"]["digest"] == superposed.digest


def test_a_lower_density_of_the_recipe_prunes_the_result(files):
    overrides = ["model.options.widths=[16]", "method.density=0.25", "superposition.gate_tolerance=none"]
    superposed, result = superpose_checkpoints(files, "digits", overrides)
    assert superposed.density == pytest.approx(0.25, abs=1e-3)
    assert result["pretrained"]["density"] == pytest.approx(0.25, abs=1e-3)


def test_the_command_writes_the_superposed_network(files, tmp_path, capsys):
    out = str(tmp_path / "out.arrow")
    assert main(["superpose", *SMALL, "--recipe", "digits", "--output", out, "--checkpoint", *files]) == 0
    assert "File: " in capsys.readouterr().out
    assert (tmp_path / "out.arrow").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint", "a.pt", "b.pt"], "--checkpoint must be given with --recipe"),
        (["--recipe", "digits", "runs/a"], "--recipe has no effect without --checkpoint"),
        (["--recipe", "digits", "--checkpoint", "a.pt"], "--checkpoint must be given at least two files; got a.pt."),
    ],
)
def test_arguments_that_contradict_each_other_are_refused(arguments, message, capsys):
    assert main(["superpose", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_checkpoint_of_another_network_is_refused_by_name(files):
    message = "must match the recipe's network 'mlp'; '1.weight' is (16, 64) in the file and (8, 64) in the network"
    with pytest.raises(ValueError, match=re.escape(message)):
        superpose_checkpoints(files, "digits", [*SMALL[1:], "model.options.widths=[8]"])
