import dataclasses
from typing import get_type_hints

import pytest
import yaml

from suptickets_ray import load_config
from suptickets_ray.config import PLACEMENT_KEYS, Config
from suptickets_ray.config_io import config_digest, differing_keys, from_yaml, to_dict, to_yaml
from suptickets_ray.sparse.methods import METHODS


def test_the_built_in_recipe_is_setting_r1():
    config = load_config()
    assert (config.method.name, config.method.density, config.method.grow) == ("rigl", 0.1, "gradient")
    assert (config.train.epochs, config.tickets.chains, config.tickets.cycle_epochs) == (150, 4, 5)
    assert (config.data.train_size, config.data.label_noise, config.data.batch_size) == (500, 0.2, 25)
    assert (config.superposition.method, config.superposition.prune, config.cluster.num_workers) == ("cia", "last", 2)


def test_clean_labels_are_one_key_away():
    assert load_config(None, ["data.label_noise=0"]).data.label_noise == 0


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_one_key_away_from_the_built_in_recipe(method):
    config = load_config(None, [f"method.name={method}"])
    assert config.method.name == method
    assert config.method.density == (0.1 if METHODS[method].sparse else 1.0)
    assert config.tickets.explore == METHODS[method].can_explore


@pytest.mark.parametrize("method", METHODS)
def test_a_resolved_recipe_reads_back_as_itself(method, tmp_path):
    config = load_config(None, [f"method.name={method}", "superposition.gate_tolerance=none"])
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "config.yaml") == config == from_yaml(to_yaml(config))
    assert load_config(to_dict(config)) == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method.density=5", r"method.density must be in \(0, 1\]; got 5. Did you mean 0.05\?"),
        ("method.density=0", r"method.density must be in \(0, 1\]; got 0."),
        ("method.name=rigel", "unknown method 'rigel'; did you mean 'rigl'"),
        ("method.nam=rigl", "unknown key 'method.nam'; did you mean 'method.name'"),
        ("colour=red", "unknown key 'colour'"),
        ("method.grow=gradeint", "unknown grow score 'gradeint'; did you mean 'gradient'"),
        ("method.drop=size", "unknown drop score 'size'"),
        ("method.distribution=ekr", "unknown distribution 'ekr'; did you mean 'erk'"),
        ("method.redistribution=some", "unknown redistribution 'some'"),
        ("method.drop_fraction_schedule=cos", "unknown drop-fraction schedule 'cos'; did you mean 'cosine'"),
        ("method.drop_fraction=1.5", r"method.drop_fraction must be in \[0, 1\]; got 1.5"),
        ("method.initial_density=0.5", "method.initial_density has no effect with method 'rigl'"),
        ("method.update_interval_steps=0", "method.update_interval_steps must be at least 1; got 0"),
        ("train.epochs=abc", 'train.epochs must be a whole number; got "abc"'),
        ("train.epochs=1.5", "train.epochs must be a whole number; got 1.5"),
        ("train.epochs=true", "train.epochs must be a whole number; got true"),
        ("train.lr=fast", 'train.lr must be a number; got "fast"'),
        ("train.lr=0", "train.lr must be above 0; got 0"),
        ("train.momentum=1", r"train.momentum must be in \[0, 1\)"),
        ("train.lr_schedule=cosin", "unknown train.lr_schedule 'cosin'; did you mean 'cosine'"),
        ("train=5", "train must be a section"),
        ("tickets.cycle_epochs=50", r"tickets.cycle_epochs must be at most train.epochs \* tickets.cycle_rate = 15"),
        ("tickets.lr_high=0.0001", r"tickets.lr_high must be at least lr_low \(0.001\)"),
        ("tickets.exploration_fraction=0", "tickets.explore=false leaves the exploration out"),
        ("tickets.explore=maybe", 'tickets.explore must be true or false; got "maybe"'),
        ("superposition.method=mean", "unknown superposition method 'mean'"),
        ("superposition.cima_factor=0.2", "superposition.cima_factor has no effect with method 'cia'"),
        ("superposition.method=gready", "unknown superposition method 'gready'; did you mean 'greedy'"),
        ("superposition.prune=once", "unknown superposition.prune 'once'"),
        ("superposition.batchnorm=keep", "superposition.batchnorm must be recalibrate or average; got 'keep'"),
        ("superposition.gate_tolerance=2", r"superposition.gate_tolerance must be none or in \[0, 1\]"),
        ("data.label_noise=20", r"data.label_noise must be in \[0, 1\]; got 20"),
        ("data.name=digit", "unknown data set 'digit'; did you mean 'digits'"),
        ("model.name=mpl", "unknown model 'mpl'; did you mean 'mlp'"),
        ("model.name=no_such_module:build", "importing 'no_such_module' failed"),
        ("model.name=json:loadz", "it has no function 'loadz'; did you mean 'load'"),
        ("model.initialization=kaiming", "unknown model.initialization 'kaiming'"),
        ("cluster.num_workers=0", "cluster.num_workers must be at least 1; got 0"),
        ("cluster.num_workers=13", "data.batch_size must be at least two examples for each of the 13 workers"),
        ("name=a/b", "name must be a plain folder name; got 'a/b'"),
        ("seed=-1", "seed must be at least 0; got -1"),
        ("train.lr=.inf", "train.lr must be a finite number; got Infinity"),
        ("method.name=[rigl]", r'method.name must be text .*; got \["rigl"\]'),
        ("name=1", r"name must be text \(for a number in double quotes"),
        ("seed", "an override must be dotted.key=value; got 'seed'"),
        ("method.dense_layers=first", r'method.dense_layers must be a list, e.g. \[first\]; got "first"'),
        ("method.distribution=snap", "unknown distribution 'snap'; did you mean 'snip'"),
        ("method.redistribution=no", "method.redistribution must be text .*; got false"),
        ("method.grow_gradient_share=0.3", "method.grow_gradient_share has no effect with method 'rigl'"),
        ("method.momentum_decay=0.3", "method.momentum_decay has no effect with method 'rigl'"),
        ("method.regrow_fraction=0.3", "method.regrow_fraction has no effect with method 'rigl'"),
        ("method.drop_gradient_weight=0.3", "method.drop_gradient_weight has no effect with method 'rigl'"),
        ("method.prune_scope=layer", "method.prune_scope has no effect with method 'rigl'"),
        ("method.distribution=prune_global", "model.initialization must be 'default' with method.distribution"),
        ("name.first=a", "name.first must be a setting; name has no parts"),
        ("train.lr=[1", "the value of train.lr must be YAML"),
    ],
)
def test_a_wrong_setting_is_one_sentence(override, message):
    with pytest.raises(ValueError, match=message) as raised:
        load_config(None, [override])
    assert "\n" not in str(raised.value)


def test_settings_that_contradict_each_other_are_refused():
    for overrides, message in [
        (["method.name=gmp", "method.drop_fraction=0.4"], "method.drop_fraction has no effect with method 'gmp'"),
        (["method.name=static", "tickets.explore=true"], "tickets.explore must be false with method 'static'"),
        (["method.name=gmp", "tickets.update_masks=true"], "tickets.update_masks has no effect with method 'gmp'"),
        (["method.name=dense", "method.density=0.1"], "method.density must be 1 with method 'dense'; got 0.1"),
        (["method.name=gmp", "method.prune_end_epoch=136"], "must be at most 135, where phase one ends"),
        (["method.name=gmp", "method.prune_start_epoch=80"], r"must be before method.prune_end_epoch \(67\); got 80"),
        (["method.name=granet", "method.initial_density=0.05"], "must be at least method.density"),
        (["tickets.explore=false", "tickets.exploration_fraction=0.2"], "has no effect with tickets.explore=false"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_config(None, overrides)


def test_a_method_chosen_by_an_override_has_its_own_defaults_but_the_problems_density_and_interval():
    config = load_config(None, ["method.name=granet"]).method
    assert (config.drop_fraction, config.initial_density, config.update_end_fraction) == (0.5, 0.5, 1.0)
    assert (config.density, config.distribution, config.update_interval_steps) == (0.1, "erk", 50)
    assert load_config(None, ["method.name=set"]).method.drop_fraction_schedule == "constant"
    assert load_config(None, ["method.name=set"]).method.grow == "random"


def test_a_criterion_brings_the_settings_that_it_reads():
    for overrides, key, default in [
        (["method.grow=mix"], "grow_gradient_share", 0.5),
        (["method.grow=momentum"], "momentum_decay", 0.9),
        (["method.redistribution=momentum"], "momentum_decay", 0.9),
        (["method.drop=mest"], "drop_gradient_weight", 1.0),
        (["method.distribution=prune_and_grow_global", "model.initialization=default"], "regrow_fraction", 0.5),
    ]:
        assert getattr(load_config(None, overrides).method, key) == default
        assert getattr(load_config(None, [*overrides, f"method.{key}=0.25"]).method, key) == 0.25
        assert getattr(load_config().method, key) is None


def test_dense_layers_are_kept_across_methods_and_refused_without_masks():
    overrides = ["method.dense_layers=[first, Conv2d]"]
    assert load_config(None, [*overrides, "method.name=gmp"]).method.dense_layers == ["first", "Conv2d"]
    with pytest.raises(ValueError, match="method.dense_layers has no effect with method 'dense'"):
        load_config(None, [*overrides, "method.name=dense"])


def test_a_uniform_method_starts_uniformly():
    assert load_config(None, ["method.name=granet_uniform"]).method.distribution == "uniform"


def test_a_dense_run_lends_a_sparse_method_neither_its_density_nor_its_lack_of_exploration(tmp_path):
    (tmp_path / "dense.yaml").write_text(to_yaml(load_config(None, ["method.name=dense"])))
    with pytest.raises(ValueError, match="method.density must be given"):
        load_config(tmp_path / "dense.yaml", ["method.name=rigl"])
    assert load_config(tmp_path / "dense.yaml", ["method.name=rigl", "method.density=0.1"]).tickets.explore


def test_another_model_or_data_set_leaves_the_recipes_own_settings_of_it_behind():
    model = load_config(None, ["model.name=json:loads"]).model
    assert (model.options, model.initialization) == ({}, "default")
    data = load_config(None, ["data.name=json:loads"]).data
    assert (data.train_size, data.label_noise, data.batch_size) == (None, 0.0, 25)


def test_a_missing_setting_is_named():
    with pytest.raises(ValueError, match="model must be given; it is missing"):
        load_config({"name": "a"})


def test_later_overrides_win_and_numbers_are_read_as_people_write_them():
    config = load_config(None, ["train.lr=1e-3", "seed=1", "seed=2", "superposition.gate_tolerance=none"])
    assert (config.train.lr, config.seed, config.superposition.gate_tolerance) == (1e-3, 2, None)


def test_a_recipe_that_is_not_there_or_not_yaml_is_said(tmp_path):
    (tmp_path / "digits.yaml").write_text("a: [")
    with pytest.raises(ValueError, match="there is no .*digitz.yaml.*did you mean 'digits.yaml'"):
        load_config(tmp_path / "digitz.yaml")
    with pytest.raises(ValueError, match="must be readable YAML"):
        load_config(tmp_path / "digits.yaml")


def test_a_recipe_cannot_run_code(tmp_path):
    (tmp_path / "evil.yaml").write_text(f"name: !!python/object/apply:os.mkdir ['{tmp_path}/made']")
    with pytest.raises(ValueError, match="must be readable YAML"):
        load_config(tmp_path / "evil.yaml")
    assert not (tmp_path / "made").exists()


def test_the_digest_leaves_out_only_where_it_runs():
    base = load_config()
    where = [
        "name=b",
        "storage=x",
        "cluster.num_explorers=3",
        "cluster.address=auto",
        "train.checkpoint_every_epochs=2",
    ]
    placed = load_config(None, where)
    assert config_digest(base) == config_digest(placed)
    assert config_digest(base) != config_digest(load_config(None, ["cluster.num_workers=1"]))
    assert differing_keys(base, load_config(None, ["seed=4", "name=c", "tickets.chains=2"])) == [
        "seed",
        "tickets.chains",
    ]


def test_every_setting_has_a_sentence_and_every_placement_key_exists():
    import ast
    import inspect

    from suptickets_ray import config as module

    keys = set()
    for node in ast.parse(inspect.getsource(module)).body:
        if not isinstance(node, ast.ClassDef):
            continue
        for field, after in zip(node.body, node.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and not field.target.id.startswith("__"):
                sentence = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                kind = get_type_hints(getattr(module, node.name))[field.target.id]
                assert sentence or dataclasses.is_dataclass(kind), f"{node.name}.{field.target.id}"
    for field in dataclasses.fields(Config):
        kind = get_type_hints(Config)[field.name]
        if dataclasses.is_dataclass(kind):
            keys |= {f"{field.name}.{inner.name}" for inner in dataclasses.fields(kind)}
        else:
            keys.add(field.name)
    assert keys >= PLACEMENT_KEYS


def test_the_yaml_of_a_run_is_plain():
    assert yaml.safe_load(to_yaml(load_config()))["superposition"]["gate_tolerance"] == 0.005
