import contextlib
import dataclasses
import re
from typing import get_type_hints

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from suptickets_ray import load_config, train
from suptickets_ray.config import PLACEMENT_KEYS, Config, SuperpositionConfig, TicketsConfig
from suptickets_ray.recipes.files import copy_recipe, find_recipe, question_of, shipped_recipes
from suptickets_ray.recipes.load import config_digest, differing_keys, from_yaml, read_settings, to_dict, to_yaml
from suptickets_ray.recipes.overrides import replaced_overrides
from suptickets_ray.recipes.yaml_text import parse_yaml
from suptickets_ray.sparse.methods import METHODS


def test_the_built_in_recipe_is_setting_r1():
    config = load_config()
    assert (config.method.name, config.method.density, config.method.grow) == ("rigl", 0.1, "gradient")
    assert (config.train.epochs, config.tickets.num_chains, config.tickets.cycle_epochs) == (150, 4, 5)
    assert (config.data.num_train_examples, config.data.label_noise, config.data.batch_size) == (500, 0.2, 25)
    assert (config.superposition.method, config.superposition.prune_at, config.cluster.num_workers) == (
        "cia",
        "end",
        2,
    )


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
        ("cluster.threads_per_worker=0", r"cluster.threads_per_worker must be auto or in \[1, 1024\]; got 0"),
        ("cluster.threads_per_explorer=1025", r"cluster.threads_per_explorer must be auto or in \[1, 1024\]; got 1025"),
        ("tickets.cycle_epochs=50", r"tickets.cycle_epochs must be at most train.epochs \* tickets.cycle_rate = 15"),
        ("tickets={lr_high: 0.2, cyclic_lr: false}", "tickets.lr_high has no effect with tickets.cyclic_lr=false"),
        ("tickets={lr_low: 0.01, cyclic_lr: true}", r"lr_high must be at least lr_low \(0.01\); got the default 0.005"),
        ("tickets.lr_high=0.0001", r"tickets.lr_high must be at least lr_low \(0.001\)"),
        ("tickets.exploration_fraction=0", "To disable exploration, set tickets.explore=false"),
        ("tickets.explore=maybe", 'tickets.explore must be true or false; got "maybe"'),
        ("superposition.method=mean", "unknown superposition method 'mean'"),
        ("superposition.cima_factor=0.2", "superposition.cima_factor has no effect with method 'cia'"),
        ("superposition.method=gready", "unknown superposition method 'gready'; did you mean 'greedy'"),
        ("superposition.prune_at=once", "unknown superposition.prune_at 'once'"),
        ("superposition.batchnorm=keep", "superposition.batchnorm must be recalibrate or average; got 'keep'"),
        ("superposition.gate_tolerance=2", r"superposition.gate_tolerance must be none or in \[0, 1\]"),
        ("data.label_noise=20", r"data.label_noise must be in \[0, 1\]; got 20"),
        ("data.name=digit", "unknown data set 'digit'; did you mean 'digits'"),
        ("model.name=mpl", "unknown model 'mpl'; did you mean 'mlp'"),
        ("model.name=no_such_module:build", "importing 'no_such_module' failed"),
        ("model.name=json:loadz", "it has no function 'loadz'; did you mean 'load'"),
        ("model.initialization=kaiming", "unknown model.initialization 'kaiming'"),
        ("cluster.num_workers=0", "cluster.num_workers must be at least 1, or \\[min, max\\]; got 0"),
        ("cluster.num_workers=13", r"data.batch_size must be at least 26, two examples per rank \(13\)"),
        ("cluster.num_merge_shards=2", "cluster.num_merge_shards must be 1 unless superposition.prune_at is 'end'"),
        ("name=a/b", "name must be a plain folder name; got 'a/b'"),
        ("seed=-1", "seed must be at least 0; got -1"),
        ("train.epochs=2000000", r"train.epochs must be at most 1,000,000; got 2000000\.$"),
        (f"seed={2**63}", r"seed must be at most 9,223,372,036,854,775,807; got 9223372036854775808\.$"),
        (
            "train.clip_norm=1e31",
            r"train.clip_norm must be at most 1e\+30; got 1e\+31\. Leave it out for no clipping\.$",
        ),
        ("train.clip_norm=-1", r"train.clip_norm must be above 0; got -1\. Leave it out for no clipping\.$"),
        (
            "train.lr_milestone_epochs=[1, 2000000000000]",
            r"lr_milestone_epochs\.1 must be at most 1,000,000,000,000; got",
        ),
        ("cluster.num_workers=[1, 20000]", r"cluster.num_workers must be at most 10,000; got \[1, 20000\]"),
        ("data.validation_share=10", r"data.validation_share must be in \(0, 1\); got 10\. Did you mean 0\.1\?$"),
        ("superposition.gate_tolerance=-1", r"superposition.gate_tolerance must be none or in \[0, 1\]; got -1\.$"),
        ("superposition.recalibration_examples=1", r"must be all or at least 2; got 1\. BatchNorm needs two examples"),
        ("train.precision=float8", r"train.precision must be float32 or bfloat16 or float16 or auto; got 'float8'\.$"),
        ("search.mode=3", r"search.mode must be max or min; got 3\.$"),
        ("cluster.worker_resources={GPU: 1.0}", r"amounts above 0 of custom resources; got {'GPU': 1.0}\. For CPU"),
        ("data.split_seed=-1", "data.split_seed must be at least 0; got -1"),
        ("tickets.lr_high=1e9", "tickets.lr_high must be at most 1,000,000; got 1000000000.0"),
        ("cluster.memory_per_worker_gb=1e-9", "cluster.memory_per_worker_gb must be at least 0.001; got 1e-09"),
        (
            "cluster={num_workers: 2, gpus_per_worker: 0.25}",
            "gpus_per_worker must be a whole number with 2 ranks, because NCCL .* cluster.gpus_per_explorer=0.25",
        ),
        (
            "cluster.gpus_per_explorer=0.5",
            "gpus_per_explorer must be above 0 if and only if cluster.gpus_per_worker is",
        ),
        (
            "cluster={gpus_per_worker: 1, gpus_per_explorer: 0}",
            "gpus_per_explorer must be above 0 if and only if cluster.gpus_per_worker is",
        ),
        ("train.float32_precision=tf32", "train.float32_precision has no effect on CPUs; got tf32"),
        ("train.cudnn_benchmark=false", "train.cudnn_benchmark has no effect on CPUs; got False"),
        ("cluster.gpus_per_worker=1e-9", "cluster.gpus_per_worker must be 0 or at least 0.0001; got 1e-09"),
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
        ("method=set", 'method must be a section, .*; got "set". Did you mean method.name=set'),
        (
            "method.distribution=prune_global",
            "model.initialization must not be 'sparse_fan_in' with method.distribution",
        ),
        ("name.first=a", "name.first must be the key of a setting; name is not a section"),
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
        (["method.name=gmp", "method.prune_end_epoch=136"], "must be at most 135, the epochs of pretraining"),
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


def test_compute_is_kept_across_methods_and_refused_where_it_has_no_effect():
    overrides = ["method.compute=sparse"]
    assert load_config(None).method.compute == "masked"
    assert load_config(None, [*overrides, "method.name=gmp"]).method.compute == "sparse"
    for other in ("method.name=dense", "train.compile=true", "train.precision=bfloat16", "cluster.gpus_per_worker=1"):
        with pytest.raises(ValueError, match="method.compute 'sparse' has no effect with .* Leave it out"):
            load_config(None, [*overrides, other])


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
    assert (data.num_train_examples, data.label_noise, data.batch_size) == (None, 0.0, 25)


def test_a_missing_setting_is_named():
    with pytest.raises(ValueError, match="model must be given; it is missing"):
        load_config({"name": "a"})


def test_later_overrides_win_and_numbers_are_read_as_people_write_them():
    config = load_config(None, ["train.lr=1e-3", "seed=1", "seed=2", "superposition.gate_tolerance=none"])
    assert (config.train.lr, config.seed, config.superposition.gate_tolerance) == (1e-3, 2, None)


def test_a_recipe_that_is_not_there_or_not_yaml_is_said(tmp_path):
    (tmp_path / "digits.yaml").write_text("a: [")
    with pytest.raises(ValueError, match="lists; got .*digitz.yaml.*did you mean 'digits.yaml'"):
        load_config(tmp_path / "digitz.yaml")
    with pytest.raises(ValueError, match="must be readable YAML"):
        load_config(tmp_path / "digits.yaml")


def test_an_endless_recipe_is_refused_after_its_first_characters():
    with pytest.raises(ValueError, match="'/dev/zero' must be readable YAML; got: it has 1,048,576 characters"):
        load_config("/dev/zero")


def test_a_recipe_whose_name_is_too_long_is_refused():
    with pytest.raises(ValueError, match="the recipe must be a YAML file, or a name"):
        load_config(300 * "a")


def test_an_override_that_a_later_one_replaces_is_named():
    given = ["tickets.num_chains=7", "train.lr=0.2", "seed=1", "train.lr=0.3", "tickets={cycle_epochs: 2}"]
    assert replaced_overrides(given) == [
        "tickets.num_chains=7 has no effect, because tickets={cycle_epochs: 2} follows. Leave one of them out.",
        "train.lr=0.2 has no effect, because train.lr=0.3 follows. Leave one of them out.",
    ]
    assert replaced_overrides(["tickets={cycle_epochs: 2}", "tickets.num_chains=7", "data.root=a=b"]) == []


@pytest.mark.parametrize("twice", ["{true: 2, yes: 3}", "{1: 2, 0x1: 3}", "{null: 1, ~: 2}"])
def test_one_key_in_two_spellings_is_refused(twice):
    with pytest.raises(ValueError, match="is written twice"):
        load_config(None, [f"model.options={twice}"])


def test_a_section_written_twice_is_refused_with_both_lines(tmp_path):
    (tmp_path / "own.yaml").write_text("base: digits\ntrain:\n  epochs: 200\nname: own\ntrain:\n  lr: 0.05\n")
    with pytest.raises(ValueError, match="the key 'train' is written twice, in lines 2 and 5"):
        load_config(tmp_path / "own.yaml")


def test_a_key_written_twice_in_an_override_is_refused():
    with pytest.raises(ValueError, match=r"the value of model must be YAML; .*the key 'name' is written twice"):
        load_config(None, ["model={name: mlp, name: lenet5}"])


def test_an_alias_may_be_merged_and_overridden(tmp_path):
    text = "base: digits\nname: own\ntrain: &train {lr: 0.05, epochs: 60}\n"
    (tmp_path / "own.yaml").write_text(text + "model: {options: {<<: *train, lr: 1}}")
    assert read_settings(tmp_path / "own.yaml")["model"]["options"] == {"lr": 1, "epochs": 60, "widths": [128, 128]}


def test_aliases_that_expand_to_gigabytes_are_refused_at_once(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    (tmp_path / "own.yaml").write_text("\n".join(lines))
    with pytest.raises(ValueError, match="its aliases expand to more than 50,000 values"):
        load_config(tmp_path / "own.yaml")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: &a [*a]", "an alias refers to a collection that contains it"),
        ("[" * 3000, "its collections are nested too deeply"),
        ("a: 2026-99-99", "month must be in 1..12"),
        ("a: " + "9" * 5000, "Exceeds the limit"),
        ("#" * 300_000, "it has 300,000 characters"),
    ],
    ids=["loop", "deep", "date", "digits", "long"],
)
def test_what_yaml_cannot_hold_is_refused_with_the_reason(tmp_path, text, reason):
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(ValueError, match=f"own.yaml' must be readable YAML; got: .*{reason}"):
        load_config(tmp_path / "own.yaml")


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
    assert differing_keys(base, load_config(None, ["seed=4", "name=c", "tickets.num_chains=2"])) == [
        "seed",
        "tickets.num_chains",
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


@pytest.fixture
def digits_yaml(tmp_path):
    """A folder with a copy of the built-in recipe, to build on."""
    (tmp_path / "digits.yaml").write_text(find_recipe("digits").read_text())
    return tmp_path


def write(folder, name, text):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


def test_a_recipe_builds_on_its_base_and_its_own_values_win(digits_yaml):
    recipe = write(
        digits_yaml, "own.yaml", "base: digits.yaml\nname: own\ntrain: {lr: 0.05}\nmodel: {options: {widths: [8]}}"
    )
    config = load_config(recipe)
    assert (config.name, config.train.lr, config.model.options) == ("own", 0.05, {"widths": [8]})
    assert differing_keys(config, load_config()) == ["model.options.widths", "train.lr"]


def test_a_base_is_relative_to_the_recipes_own_folder_and_may_have_a_base(digits_yaml, monkeypatch):
    write(digits_yaml, "_middle.yaml", "base: digits.yaml\nseed: 3\ntrain: {lr: 0.05, momentum: 0.5}")
    recipe = write(digits_yaml, "deep/own.yaml", "base: ../_middle.yaml\ntrain: {lr: 0.2}")
    monkeypatch.chdir("/")
    config = load_config(recipe)
    assert (config.seed, config.train.lr, config.train.momentum, config.train.epochs) == (3, 0.2, 0.5, 150)


def test_a_base_may_be_a_shipped_recipe(tmp_path):
    recipe = write(tmp_path, "digits.yaml", "base: digits\nname: own")
    assert load_config(recipe).name == "own"
    assert differing_keys(load_config(recipe), load_config()) == []


def test_a_setting_of_the_base_is_left_out_by_null(tmp_path):
    recipe = write(tmp_path, "own.yaml", "base: digits\ndata: {num_train_examples: null}")
    assert load_config(recipe).data.num_train_examples is None


def test_another_model_leaves_its_bases_options_out_by_null(tmp_path):
    recipe = write(tmp_path, "own.yaml", "base: digits\nmodel: {name: lenet5, options: null}")
    assert load_config(recipe).model.options == {}


def test_a_resolved_recipe_has_no_base(tmp_path):
    recipe = write(tmp_path, "own.yaml", "base: digits\nname: own")
    assert "base" not in to_dict(load_config(recipe))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: [digits]", r"base in '.*own.yaml' must be the path or name of one recipe; got \['digits'\]"),
        ("base: 3", r"base in '.*own.yaml' must be the path or name of one recipe; got 3"),
        (
            "base: digit.yaml",
            "base in '.*own.yaml' must be an existing recipe; got 'digit.yaml'; did you mean 'digits.yaml'",
        ),
        ("base: own.yaml", "base in '.*own.yaml' must not form a cycle of bases; got 'own.yaml'"),
        ("base: ring.yaml", "base in '.*ring.yaml' must not form a cycle of bases; got 'own.yaml'"),
        ("base: broken.yaml", "the recipe '.*broken.yaml' must be readable YAML"),
        ("base: list.yaml", "the recipe '.*list.yaml' must contain sections such as 'model:'; got list"),
        ("base: digits.yaml\nmodel: mlp", 'model must be a section, a mapping of keys to values; got "mlp"'),
    ],
)
def test_a_base_that_cannot_be_is_one_sentence(digits_yaml, text, message):
    recipe = write(digits_yaml, "own.yaml", text)
    write(digits_yaml, "ring.yaml", "base: own.yaml")
    write(digits_yaml, "broken.yaml", "a: [")
    write(digits_yaml, "list.yaml", "[a]")
    with pytest.raises(ValueError, match=message) as raised:
        load_config(recipe)
    assert "\n" not in str(raised.value)


def test_two_ways_to_the_same_base_are_no_cycle(digits_yaml):
    write(digits_yaml, "_middle.yaml", "base: ./digits.yaml\nseed: 1")
    assert load_config(write(digits_yaml, "own.yaml", "base: ./_middle.yaml\nseed: 2")).seed == 2


@pytest.mark.parametrize(("recipe", "overrides"), [({"base": "digits"}, []), (None, ["base=digits"])])
def test_a_base_outside_a_file_is_refused(recipe, overrides):
    with pytest.raises(ValueError, match="base must be set in a recipe file"):
        load_config(recipe, overrides)


def test_a_recipe_is_found_by_its_name_and_a_path_that_exists_wins(tmp_path, monkeypatch):
    assert load_config("smoke").name == "smoke"
    assert load_config("cifar100/resnet50_granet").name == "cifar100-resnet50-granet"
    assert load_config("cifar100/resnet50_granet.yaml").method.name == "granet"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smoke").mkdir()
    assert load_config("smoke").name == "smoke"  # a folder is no recipe
    (tmp_path / "digits").write_text("base: smoke\nname: mine")
    assert load_config("digits").name == "mine"


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("cifar100/resnet50_grant", "cifar100/resnet50_granet"),
        ("smok", "smoke"),
        ("_cifar", None),
        ("imagenet/_imagenet", None),
    ],
)
def test_an_unknown_recipe_suggests_a_shipped_one_and_never_a_base(name, near):
    with pytest.raises(ValueError, match="must be a YAML file, or a name that `suptickets recipes` lists") as raised:
        load_config(name)
    assert near is None or f"did you mean {near!r}?" in str(raised.value)


def test_a_copied_recipe_stands_alone_and_asks_the_same(tmp_path):
    for name, path in shipped_recipes().items():
        copy = copy_recipe(name, tmp_path / f"{name.replace('/', '-')}.yaml")
        assert question_of(copy) == question_of(path)
        assert "base" not in yaml.safe_load(copy.read_text())
        assert load_config(copy) == load_config(name)


def test_a_recipe_without_a_base_is_copied_as_it_stands(tmp_path):
    copy = copy_recipe("digits", tmp_path / "mine.yaml")
    assert copy.read_bytes() == find_recipe("digits").read_bytes()


def test_a_copy_never_overwrites(tmp_path):
    (tmp_path / "mine.yaml").write_text("mine")
    with pytest.raises(ValueError, match="Cannot copy the recipe: the file .*mine.yaml' already exists"):
        copy_recipe("digits", tmp_path / "mine.yaml")
    assert (tmp_path / "mine.yaml").read_text() == "mine"
    with pytest.raises(ValueError, match="Cannot copy the recipe: .*No such file"):
        copy_recipe("digits", tmp_path / "none" / "mine.yaml")


def test_synthetic_data_takes_over_shape_and_augmentation_of_the_recipes_own():
    data = load_config("cifar10/vgg16_set", ["data.name=synthetic"]).data
    assert (data.name, data.options) == ("synthetic", {"like": "cifar10"})
    assert (data.crop_padding, data.crop_padding_mode, data.flip, data.validation_share) == (4, "reflect", True, 0.02)
    digits = load_config(None, ["data.name=synthetic"]).data
    assert (digits.options, digits.num_train_examples, digits.label_noise) == ({"like": "digits"}, None, 0.0)


@pytest.mark.parametrize(
    ("overrides", "options"),
    [
        (["data.options={shape: [1, 9, 9]}"], {"shape": [1, 9, 9]}),
        (["data.options.shape=[1, 9, 9]"], {"shape": [1, 9, 9]}),
        (["data.options.like=mnist"], {"like": "mnist"}),
        (["data.options.num_train=8"], {"like": "digits", "num_train": 8}),
    ],
)
def test_synthetic_data_has_the_shape_that_an_override_gives_it(overrides, options):
    assert load_config(None, ["data.name=synthetic", *overrides]).data.options == options


def test_synthetic_data_in_place_of_a_users_own_has_its_own_shape():
    settings = to_dict(load_config(None, ["data.name=json:loads"]))
    assert load_config(settings, ["data.name=synthetic"]).data.options == {}


def test_another_data_set_leaves_augmentation_and_validation_share_behind():
    data = load_config("cifar10/vgg16_set", ["data.name=mnist"]).data
    assert (data.crop_padding, data.crop_padding_mode, data.flip, data.validation_share) == (None, None, None, None)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["train.lr_schedule=multistep", "train.lr_milestone_epochs=[]", "train.lr_decay_factor=0.5"],
            "train.lr_decay_factor has no effect with train.lr_milestone_epochs",
        ),
        (["train.weight_decay=0", "train.decay_norm_and_bias=false"], "decay_norm_and_bias=false has no effect"),
    ],
)
def test_settings_that_together_do_nothing_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        load_config(None, overrides)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tickets.chains=8", "did you mean 'tickets.num_chains'?"),
        ("search.seeds=3", "did you mean 'search.num_seeds'?"),
        ("data.train_size=100", "did you mean 'data.num_train_examples'?"),
        ("cluster.fold_shares=2", "did you mean 'cluster.num_merge_shards'?"),
        ("cluster.wait_minutes=2", "did you mean 'cluster.resource_timeout_minutes'?"),
        ("cluster.keep_head_free=true", "did you mean 'cluster.exclude_head_node'?"),
        ("superposition.scope=layer", "did you mean 'superposition.prune_scope'?"),
        ("superposition.prune=last", "did you mean superposition.prune_at=end?"),
        ("method.sparsity=0.9", "did you mean method.density=0.1? Density is the fraction of active weights"),
        ("sparsity=0.95", "did you mean method.density=0.05?"),
        ("method.init_sparsity=0.5", "did you mean method.initial_density=0.5?"),
        ("method.sparsity=high", "did you mean method.density?"),
        ("sparsity=90", "did you mean method.density=0.1?"),
        ("method.target_sparsity=0.9", "did you mean method.density=0.1?"),
        ("initial_sparsity=0.2", "did you mean method.initial_density=0.8?"),
        ("prune_rate=0.9", "did you mean method.density=0.1?"),
        ("dropout=0.1", "unknown key 'dropout'. model.options sets"),
        ("nesterov=true", "unknown key 'nesterov'. train.optimizer_options sets"),
        ("random_seed=1", "did you mean 'seed'?"),
        ("train.seed=1", "did you mean 'seed'?"),
        ("search.num_samples=4", "did you mean 'search.num_trials'?"),
        ("num_cycles=4", "unknown key 'num_cycles'. train.epochs, tickets.cycle_rate and tickets.cycle_epochs"),
        ("early_stopping=true", "unknown key 'early_stopping'."),
        ("pretrained=true", "unknown key 'pretrained'. model.weights"),
        ("optimizer=adam", "unknown key 'optimizer'; did you mean 'train.optimizer'?"),
        ("lr=0.1", "did you mean 'train.lr'?"),
        ("epochs=3", "did you mean 'train.epochs'?"),
        ("batch_size=4", "did you mean 'data.batch_size'?"),
        ("train.batch_size=4", "did you mean 'data.batch_size'?"),
        ("workers=2", "cluster.num_workers sets the ranks of pretraining; data.reader_threads sets"),
        ("gpus=1", "did you mean 'cluster.gpus_per_worker'?"),
        ("tickets.chain=2", "did you mean 'tickets.num_chains'?"),
    ],
)
def test_names_of_other_tools_lead_to_the_right_key(override, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        load_config(None, [override])


def kinds(section=Config, prefix=""):
    """Dotted key to annotation of every setting."""
    found = {}
    for key, kind in get_type_hints(section).items():
        found |= kinds(kind, f"{prefix}{key}.") if dataclasses.is_dataclass(kind) else {prefix + key: str(kind)}
    return found


WHOLE = {key for key, kind in kinds().items() if "int" in kind and "str" not in kind}
FLOATS = {key for key, kind in kinds().items() if "float" in kind and "dict" not in kind and "Literal" not in kind}


# A cycle's rates may be as large as float32 holds: how a run stands divergence is tested so.
@pytest.mark.parametrize("key", sorted((WHOLE | FLOATS) - {"tickets.lr_low", "tickets.lr_high"}))
def test_every_number_has_a_largest_value(key):
    value = f"[1, {10**30}]" if key == "cluster.num_workers" else str(10**30 if key in WHOLE else "1e39")
    with pytest.raises(ValueError, match=rf"{key} (must be|has no effect)"):
        load_config(None, [f"{key}={value}"])


@pytest.mark.slow
@settings(max_examples=2000, deadline=2000)
@given(st.text("[]{}:,&*!?|>-#'\"\n ab0.~", max_size=200))
def test_any_text_is_a_value_or_a_yaml_error(text):
    with contextlib.suppress(yaml.YAMLError):
        parse_yaml(text)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": -1}, r"seed must be at least 0; got -1\.$"),
        ({"tickets": TicketsConfig(num_chains=0)}, r"tickets.num_chains must be at least 1; got 0\.$"),
        ({"superposition": SuperpositionConfig(batchnorm="keep")}, "must be recalibrate or average; got 'keep'"),
    ],
)
def test_a_config_that_was_not_loaded_is_checked_before_it_runs(changed, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(dataclasses.replace(load_config(None, [f"storage={tmp_path}"]), **changed))
