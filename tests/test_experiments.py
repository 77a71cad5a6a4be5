"""The published experiments: every recipe says what was published, trains, and stands in the table of results."""

import csv
import re
from pathlib import Path

import pytest
import torch

from suptickets_ray import load_config
from suptickets_ray.recipes.files import question_of, shipped_recipes
from suptickets_ray.sparse.masks import num_active, num_positions
from suptickets_ray.training.data import load_data
from suptickets_ray.training.loop import budget_of, build_learner, order_seed, train_epoch

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
RECIPES = shipped_recipes()
DATA = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "imagenet": "ImageNet"}
MODELS = {"vgg16": "VGG-16", "resnet50": "ResNet-50", "wrn_28_10": "WRN-28-10"}
METHODS = {"set": "SET", "rigl": "RigL", "granet": "GraNet", "erk": "ERK", "snip": "SNIP"}
DYNAMIC = ("set", "rigl", "granet")
CIFAR = [(data, model, method) for data in ("cifar10", "cifar100") for model in MODELS for method in DYNAMIC]
CIFAR += [(data, "resnet50", method) for data in ("cifar10", "cifar100") for method in ("erk", "snip")]
IMAGENET = [("imagenet", "resnet50", method) for method in ("rigl", "granet")]

README = (EXPERIMENTS / "README.md").read_text()
TABLE = {line.split("`")[1].removesuffix(".yaml"): line for line in README.splitlines() if line.startswith("| `")}
with (EXPERIMENTS / "paper_results.csv").open() as file:
    PUBLISHED = {
        (row["dataset"], row["model"], row["method"], float(row["sparsity"])): row for row in csv.DictReader(file)
    }


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_loads_and_opens_with_its_question(name):
    config = load_config(name)
    assert config == load_config(RECIPES[name])
    question = question_of(RECIPES[name])
    assert RECIPES[name].read_text().startswith(f"# {question}")
    assert question.endswith("?") and 20 < len(question) < 110


def test_no_two_recipes_write_to_one_folder_or_ask_the_same():
    names = [load_config(name).name for name in RECIPES]
    questions = [question_of(path) for path in RECIPES.values()]
    assert len(set(names)) == len(set(questions)) == len(RECIPES)


def test_there_is_a_recipe_for_every_experiment_of_the_paper():
    published = {f"{data}/{model}_{method}" for data, model, method in CIFAR + IMAGENET}
    assert published == {name for name in RECIPES if name.startswith(tuple(DATA))}


def settings_of(config):
    """The published hyper-parameters that all experiments share, as the paper's table has them."""
    train, method, tickets, superposition = config.train, config.method, config.tickets, config.superposition
    budget = budget_of(config)
    return {
        "epochs": (train.epochs, budget.pretrain_epochs, budget.cyclic_epochs),
        "cycle length, tickets": (tickets.cycle_epochs, budget.cycles * tickets.num_chains),
        "batch, processes": (config.data.batch_size, config.cluster.num_workers),
        "learning rate": (train.lr, train.lr_schedule, train.lr_milestone_epochs, train.lr_decay_factor),
        "warm-up, smoothing": (train.warmup_epochs, train.label_smoothing),
        "weight decay": (train.weight_decay, train.decay_norm_and_bias),
        "momentum": train.momentum,
        "cycle learning rate": (tickets.lr_low, tickets.lr_high),
        "update interval": method.update_interval_steps,
        "drop fraction schedule": method.drop_fraction_schedule,
        "topology updates": (method.update_end_fraction, tickets.update_masks),
        "exploration": (tickets.explore, tickets.exploration_fraction),
        "superposition": (superposition.method, superposition.prune_at, superposition.prune_scope),
        "pretrained network": superposition.include_pretrained,
        "batchnorm, gate": (superposition.batchnorm, superposition.gate_tolerance),
        "held out": config.data.validation_share,
    }


ALWAYS = {
    "momentum": 0.9,
    "topology updates": (1.0, False),
    "exploration": (True, 0.5),
    "superposition": ("cia", "every_ticket", "global"),
    "pretrained network": True,
    "batchnorm, gate": ("recalibrate", None),
    "held out": 0.02,
}


@pytest.mark.parametrize(("data", "model", "method"), CIFAR)
def test_a_cifar_recipe_has_the_published_settings(data, model, method):
    config = load_config(f"{data}/{model}_{method}")
    assert settings_of(config) == {
        **ALWAYS,
        "epochs": (250, 226, 24),
        "cycle length, tickets": (8, 3),
        "batch, processes": (128, 1),
        "learning rate": (0.1, "multistep", [113, 169], 0.1),
        "warm-up, smoothing": (0, 0.0),
        "weight decay": (5e-4, True),
        "cycle learning rate": (0.001, 0.005),
        "update interval": 1000,
        "drop fraction schedule": "constant",
    }
    assert config.model.name == (model if model == "wrn_28_10" else f"cifar_{model}")
    assert (config.data.name, config.data.crop_padding, config.data.flip) == (data, 4, True)
    assert config.data.crop_padding_mode == {"cifar10": "reflect", "cifar100": "zero"}[data]
    assert [load_config(f"{data}/{model}_{method}", [f"method.density={d}"]).method.density for d in (0.1, 0.2)]
    assert config.method.density == 0.05


@pytest.mark.parametrize(("data", "model", "method"), IMAGENET)
def test_an_imagenet_recipe_has_the_published_settings(data, model, method):
    config = load_config(f"{data}/{model}_{method}")
    assert settings_of(config) == {
        **ALWAYS,
        "epochs": (100, 92, 8),
        "cycle length, tickets": (2, 4),
        "batch, processes": (2 * 64, 2),
        "learning rate": (0.1, "multistep", [30, 60, 85], 0.1),
        "warm-up, smoothing": (5, 0.1),
        "weight decay": (1e-4, False),
        "cycle learning rate": (0.0001, 0.0005),
        "update interval": 4000,
        "drop fraction schedule": "cosine",
    }
    assert (config.model.name, config.data.name, config.data.flip) == ("resnet50", "imagenet", True)
    assert config.method.density == 0.1


@pytest.mark.parametrize(("data", "model", "method"), CIFAR + IMAGENET)
def test_a_recipe_has_the_published_method(data, model, method):
    section = load_config(f"{data}/{model}_{method}").method
    static = method in ("erk", "snip")
    assert section.name == ("rigl" if static else method)
    assert section.distribution == ("snip" if method == "snip" else "erk")
    assert section.drop_fraction == (0.0 if static else 0.5)
    assert (section.drop, section.redistribution) == ("magnitude", "none")
    assert section.grow == ("random" if method == "set" else "gradient")
    window = (0, 30 if data == "imagenet" else 110) if method == "granet" else (None, None)
    assert (section.prune_start_epoch, section.prune_end_epoch) == window
    assert (section.initial_density, section.prune_scope) == ((0.5, "global") if method == "granet" else (None, None))


def differences(name, base):
    """The settings, by dotted key, in which one recipe differs from another."""
    from suptickets_ray.recipes.load import differing_keys

    config = load_config(name)
    keys = [key.split(".") for key in differing_keys(load_config(base), config)]
    return {".".join(key): getattr(getattr(config, key[0]), key[1]) for key in keys}


def test_an_ablation_differs_from_its_experiment_in_what_it_asks_for_alone():
    resnet, vgg = "cifar100/resnet50_rigl", "cifar100/vgg16_rigl"
    assert differences("ablations/cycle_length", resnet) == {"tickets.cycle_epochs": 4}
    assert differences("ablations/more_tickets", vgg) == {"train.epochs": 274, "tickets.cycle_rate": 0.1752}
    assert differences("ablations/averages_resnet50", resnet) == {"superposition.method": "caa"}
    assert differences("ablations/averages_vgg16", vgg) == {"superposition.method": "caa"}
    cima = {"superposition.method": "cima", "superposition.cima_factor": 0.2}
    assert differences("ablations/cima_factor", resnet) == cima
    assert differences("ablations/collapse", resnet) == {"tickets.lr_high": 0.1}
    assert differences("ablations/imagenet_ensemble", "imagenet/resnet50_rigl") == {}


def test_the_overrides_that_an_ablation_names_give_its_other_points():
    cycles = {
        length: budget_of(load_config("ablations/cycle_length", [f"tickets.cycle_epochs={length}"]))
        for length in (2, 8, 12)
    }
    assert {length: budget.cycles for length, budget in cycles.items()} == {2: 12, 8: 3, 12: 2}
    six = budget_of(load_config("ablations/more_tickets"))
    nine = budget_of(load_config("ablations/more_tickets", ["train.epochs=298", "tickets.cycle_rate=0.2417"]))
    assert [(budget.pretrain_epochs, budget.cycles) for budget in (six, nine)] == [(226, 6), (226, 9)]
    for factor in (0.1, 0.5, 0.8, 0.9):
        assert load_config("ablations/cima_factor", [f"superposition.cima_factor={factor}"])
    assert load_config("ablations/averages_vgg16", ["superposition.method=cima"]).superposition.cima_factor == 0.2


def test_the_fixed_mask_is_drawn_once_and_kept():
    config = load_config("ablations/fixed_mask")
    assert (config.method.name, config.method.distribution, config.method.density) == ("static", "erk", 0.05)
    assert (config.tickets.explore, config.tickets.update_masks) == (False, False)
    twin = load_config("cifar100/resnet50_erk")
    assert (config.train, config.data, config.superposition) == (twin.train, twin.data, twin.superposition)


def test_mnist1d_is_the_setting_that_was_measured_offline():
    config = load_config("mnist1d")
    budget = budget_of(config)
    assert (budget.pretrain_epochs, budget.cycles, budget.cycle_epochs, config.tickets.num_chains) == (96, 3, 8, 4)
    assert config.model.options == {"widths": [128, 128, 128]}
    assert (config.data.batch_size, config.data.num_train_examples, config.data.label_noise) == (50, 2000, 0.2)
    assert (config.train.lr, config.train.lr_schedule, config.train.weight_decay) == (0.1, "multistep", 2e-3)
    assert (config.tickets.lr_low, config.tickets.lr_high, config.tickets.exploration_fraction) == (0.001, 0.2, 0.2)


def training_of(name):
    """What two steps of training depend on: recipes that share it are trained once."""
    config = load_config(name)
    section = config.method
    parts = (config.model, config.data.name, section.name, section.distribution, section.drop_fraction)
    return str((*parts, config.train.label_smoothing, config.train.decay_norm_and_bias))


TRAININGS = {training_of(name): name for name in reversed(RECIPES)}


SOME_LARGE = {"cifar10/resnet50_rigl", "cifar10/vgg16_rigl"}


def is_large(name):
    return any(word in load_config(name).model.name for word in ("resnet50", "wrn", "vgg16"))


# SNIP at density 0.05 leaves layers of a deep network without a connection but the one that they keep.
@pytest.mark.filterwarnings("ignore:pruning would have emptied")
@pytest.mark.parametrize(
    "name",
    [
        # Of the paper's large networks two take part in the default run.
        pytest.param(name, marks=[pytest.mark.slow] if is_large(name) and name not in SOME_LARGE else [])
        for name in sorted(TRAININGS.values())
    ],
)
def test_a_recipe_trains_two_steps_on_synthetic_data_of_its_shape(name):
    config = load_config(name)
    overrides = ["data.name=synthetic", "data.options.num_train=6", "data.options.num_test=1", "data.batch_size=2"]
    if config.task.name != "classification":  # synthetic data are images with classes; these data need no files
        overrides = ["data.batch_size=2"]
    if config.method.update_interval_steps is not None:
        overrides.append("method.update_interval_steps=1")
    config = load_config(name, [*overrides, "train.limit_batches=2", "cluster.num_workers=1"])
    splits = load_data(config.data)
    learner = build_learner(config, splits, torch.device("cpu"))
    before = num_active(learner.sparsifier.masks)
    seed = order_seed(config.seed, 0)
    loss = train_epoch(learner, learner.model, config, splits, seed, lambda step: config.train.lr)
    assert 0 < loss < 100
    assert learner.sparsifier.num_steps == 2
    masks = learner.sparsifier.masks
    if config.method.name == "granet":
        assert before == int(0.5 * num_positions(masks)) > num_active(masks)
    else:
        assert before == int(config.method.density * num_positions(masks) + 1e-9) == num_active(masks)


def accuracy(data, model, method, sparsity):
    """Mean and standard deviation as published; ImageNet's have none."""
    row = PUBLISHED[data, model, method, sparsity]
    return " +- ".join(part for part in (row["top1_percent_mean"], row["top1_percent_std"]) if part)


def published_cells(data, model, method):
    """What a row of the table says at densities 0.05, 0.1 and 0.2: the method alone, then with Sup-tickets."""
    names = (DATA[data], MODELS[model], METHODS[method])
    return [
        f"{accuracy(*names, sparsity)}, {accuracy(*names[:2], f'{names[2]} + Sup-tickets', sparsity)}"
        for sparsity in (0.95, 0.9, 0.8)
        if (*names, sparsity) in PUBLISHED
    ]


@pytest.mark.parametrize(("data", "model", "method"), CIFAR + IMAGENET)
def test_the_table_of_results_holds_the_published_numbers_and_the_command(data, model, method):
    name = f"{data}/{model}_{method}"
    _, file, question, *cells, _ = (cell.strip() for cell in TABLE[name].split("|"))
    *published, ours, command = cells
    assert (file, question) == (f"`{name}.yaml`", question_of(RECIPES[name]))
    assert published == published_cells(data, model, method)
    assert f"`suptickets train {name}`" in command
    assert ours == "not run yet" or re.search(r"\d \+- \d", ours)


@pytest.mark.parametrize("data", DATA)
def test_the_table_of_results_holds_the_published_numbers_that_have_no_recipe(data):
    section = README.split(f"### {DATA[data]}\n")[1].partition("\n#")[0]
    recipes = {(MODELS[model], METHODS[method]) for where, model, method in CIFAR + IMAGENET if where == data}
    for where, model, method, sparsity in PUBLISHED:
        if where == DATA[data] and (model, method.removesuffix(" + Sup-tickets")) not in recipes:
            method_at = method if method == "dense" else f"{method} at density {1 - sparsity:.1f}"
            assert f"{model} {method_at} {accuracy(where, model, method, sparsity)}" in section


def test_every_recipe_has_a_row_in_the_table_of_results():
    assert {name for name in RECIPES if name in TABLE} == set(RECIPES)


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("more_tickets", ["71.47", "71.79", "71.92"]),
        ("averages_resnet50", ["77.58", "76.38", "77.34"]),
        ("averages_vgg16", ["71.31", "69.04", "71.38"]),
        ("collapse", ["76", "77", "10.37"]),
        ("fixed_mask", ["75.66", "76.67", "77.50"]),
        ("imagenet_ensemble", ["74.04", "74.07", "75.97", "76.02"]),
    ],
)
def test_the_table_holds_the_published_numbers_of_the_ablations(name, numbers):
    published = TABLE[f"ablations/{name}"].split("|")[3]
    assert re.findall(r"(?<![-.\d])\d\d(?:\.\d\d)?\b", published) == numbers
