"""The public code's command lines as recipes. The five commands are those of the public README."""

import pytest
import yaml

from suptickets_ray import load_config
from suptickets_ray.paper_cli.flags import ALIASES, FLAGS, flags_of
from suptickets_ray.paper_cli.translate import recipe_from_flags
from suptickets_ray.recipes.declarations import all_keys
from suptickets_ray.recipes.load import differing_keys

_CIFAR = (
    "python3 main_suptickets.py --indicate_method {label} --update_bn --pre_train --cyclic_train --re_explore "
    "--no_maskupdates --cyc_lr --lr_2 0.005 --lr_1 0.001 --cycle 8 --cycle_rate 0.1 --sparse  --decay-schedule "
    "constant --seed 41 --sparse-init ERK --update-frequency 1000 --batch-size 128 --prune-rate 0.5 --large-death-rate "
    "0.5 --method {method} --growth {growth} --prune magnitude --init-density {initial} --final-density 0.05  "
    "--epochs 250  --model ResNet50 --data cifar100 "
)
_IMAGENET = (
    "python $1multiproc.py --nproc_per_node 2 $1main.py --sparse --sparse-init ERK --first_m 30 --second_m 60 "
    "--third_m 85 --method {method} --init-prune-epoch 0 --final-prune-epoch 30 --init-density {initial}  "
    "--final-density 0.1  --multiplier 1 --growth gradient --seed 17 --master_port 7768 -j20 -p 500 --arch resnet50 "
    "-c fanin --update-frequency 4000 --label-smoothing 0.1 -b 64 --lr 0.1 --warmup 5 --density 0.1  $2 "
    "../../imagenet2012/ --epochs 100 --indicate_method {label} --cyclic_epochs 8 --pretrain_epoch 92 --pre_train "
    "--cyclic_train --bn_update --lr_2 0.0005 --lr_1 0.0001 --cycle 2 --large-death-rate 0.5 --cyc_lr "
)
CIFAR = {
    "granet": _CIFAR.format(label="granet", method="GraNet", growth="gradient", initial=0.5),
    "rigl": _CIFAR.format(label="rigl", method="DST", growth="gradient", initial=0.05),
    "set": _CIFAR.format(label="set", method="DST", growth="random", initial=0.05),
}
IMAGENET = {
    "granet": _IMAGENET.format(method="DST", initial=0.5, label="Rigl"),
    "rigl": _IMAGENET.format(method="GraNet", initial=0.1, label="Granet"),
}
"""By heading; each carries the other's method."""
SMALL = "--model ResNet50 --data cifar100 "


def recipe_of(translation):
    return load_config(yaml.safe_load(translation.to_yaml()))


@pytest.mark.parametrize("method", CIFAR)
def test_a_cifar_command_is_the_shipped_recipe_with_its_seed(method):
    translation = recipe_from_flags(CIFAR[method])
    shipped = load_config(f"cifar100/resnet50_{method}", ["seed=41"])
    assert recipe_of(translation) == shipped
    assert not translation.warnings


@pytest.mark.parametrize(("heading", "given"), [("granet", "rigl"), ("rigl", "granet")])
def test_an_imagenet_command_follows_its_flags_and_warns_that_they_are_the_other_headings(heading, given):
    translation = recipe_from_flags(IMAGENET[heading])
    config = recipe_of(translation)
    assert config.method.name == given
    assert config.method.initial_density == (0.1 if given == "granet" else None)
    swapped, unexplored, updating = translation.warnings
    assert "the method flags of the two ImageNet commands (GraNet and RigL) are swapped" in swapped
    assert f"as in the heading and the paper, use the recipe imagenet/resnet50_{heading}." in swapped
    assert "--re_explore is missing, as in both ImageNet commands" in unexplored
    assert "--no_maskupdates is missing, as in both ImageNet commands" in updating


@pytest.mark.parametrize("given", ["rigl", "granet"])
def test_what_an_imagenet_command_says_besides_is_the_shipped_recipe(given):
    config = recipe_of(recipe_from_flags(IMAGENET["granet" if given == "rigl" else "rigl"]))
    keys = differing_keys(load_config(f"imagenet/resnet50_{given}"), config)
    own = {"seed", "tickets.explore", "tickets.exploration_fraction", "tickets.update_masks"}
    assert set(keys) == own | ({"method.initial_density"} if given == "granet" else set())
    assert (config.data.root, config.data.batch_size, config.cluster.num_workers) == ("../../imagenet2012/", 128, 2)


def test_the_warnings_of_an_imagenet_command_name_overrides_that_mend_it():
    settings = recipe_from_flags(IMAGENET["rigl"]).settings
    mended = ["tickets.explore=true", "tickets.exploration_fraction=0.5", "tickets.update_masks=false"]
    config = load_config(settings, [*mended, "method.initial_density=0.5"])
    assert differing_keys(load_config("imagenet/resnet50_granet"), config) == ["seed"]


def test_a_command_whose_placeholders_a_shell_has_emptied_is_the_same():
    command = IMAGENET["rigl"].replace("$1", "").replace("$2", "")
    assert recipe_from_flags(command).settings == recipe_from_flags(IMAGENET["rigl"]).settings


def test_a_command_over_several_lines_is_the_same():
    command = CIFAR["set"].replace(" --", " \\\n  --")
    assert recipe_from_flags(command).settings == recipe_from_flags(CIFAR["set"]).settings


def test_what_has_no_counterpart_is_named_in_a_comment():
    text = recipe_from_flags(IMAGENET["granet"]).to_yaml()
    comments = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    for flag in ("--workers", "--print-freq", "--master_port", "--indicate_method", "--multiplier"):
        assert f"Left out: {flag}" in comments
    assert "--init-prune-epoch" in comments  # which RigL does not read
    assert "WARNING: --method DST" in comments


@pytest.mark.parametrize(
    ("flags", "key", "value"),
    [
        ("--sparse --method GMP", "method.name", "gmp"),
        ("--sparse --method GMP_uniform", "method.name", "gmp_uniform"),
        ("--sparse --method GraNet_uniform", "method.name", "granet_uniform"),
        ("--sparse --method DST --growth momentum", "method.grow", "momentum"),
        ("--sparse --method DST --growth random --prune SET", "method.drop", "set"),
        ("--sparse --method DST --growth gradient --redistribution nonzeros", "method.redistribution", "nonzeros"),
        ("--sparse --method DST --growth gradient --sparse-init prune_global", "method.distribution", "prune_global"),
        (
            "--sparse --method DST --growth gradient --re_explore --large-death-rate 0.3",
            "tickets.exploration_fraction",
            0.3,
        ),
        ("--sparse --method DST --growth gradient --re_explore", "tickets.exploration_fraction", 0.5),
        ("--sparse --method DST --growth gradient --no_maskupdates", "tickets.update_masks", False),
        ("--sparse --method DST --growth gradient", "tickets.update_masks", True),
        ("", "method.name", "dense"),
        ("--superposing_method CAA", "superposition.method", "cia"),
        ("--superposing_method CIMA --CIMA_factor 0.8", "superposition.cima_factor", 0.8),
        ("--CIMA_factor 0.8", "superposition.method", "cia"),
        ("--update_bn", "superposition.batchnorm", "recalibrate"),
        ("", "superposition.batchnorm", "average"),
        ("--model lenet5", "superposition.batchnorm", "recalibrate"),  # it has none, so that nothing else has an effect
        ("-b 64", "data.batch_size", 64),
        ("-b64", "data.batch_size", 64),
        ("--batch-size=64", "data.batch_size", 64),
        ("--lr_1 0.002 --lr_2 0.01", "tickets.lr_low", 0.002),
        ("--lr_1 0.002 --lr_2 0.01 --cyc_lr", "tickets.lr_high", 0.01),
        ("--lr_1 0.002 --lr_2 0.01 --cyc_lr", "tickets.cyclic_lr", True),
        ("--lr_1 0.002 --lr_2 0.01", "tickets.cyclic_lr", False),
        ("--epochs 100 --multiplier 2", "train.epochs", 200),
        ("--multiplier 2", "train.epochs", 500),
        ("--first_m 30 --second_m 60 --multiplier 2", "train.lr_milestone_epochs", [60, 120]),
        ("--sparse --method GraNet --epochs 100 --final-prune-epoch 30 --multiplier 3", "method.prune_end_epoch", 90),
        ("--epochs 100", "train.lr_milestone_epochs", [46, 69]),
        ("--l2 1e-4 --momentum 0.8", "train.weight_decay", 1e-4),
        ("--fp16", "train.precision", "float16"),
        ("--valid_split 0.1", "data.validation_share", 0.1),
        ("--model vgg-16", "model.name", "cifar_vgg16"),
        ("--model WRN-28-10", "model.name", "wrn_28_10"),
        ("--data cifar10", "data.crop_padding_mode", "reflect"),
        ("--data mnist", "data.crop_padding", None),
    ],
)
def test_a_flag_decides_its_setting(flags, key, value):
    config = recipe_of(recipe_from_flags(SMALL + flags))
    section, _, name = key.partition(".")
    assert getattr(getattr(config, section), name) == value


def test_a_command_without_cyc_lr_keeps_the_low_rate_and_is_warned():
    translation = recipe_from_flags(SMALL + "--pre_train --cyclic_train --lr_1 0.002 --lr_2 0.01")
    (warning,) = translation.warnings
    assert "--cyc_lr is missing, so cycles keep the learning rate 0.002 here" in warning
    assert "--lr_2" in translation.to_yaml()


def test_what_a_command_leaves_open_is_as_in_the_paper():
    config = recipe_of(recipe_from_flags("--model ResNet50 --data cifar100 --sparse --method GraNet"))
    assert (config.train.epochs, config.method.prune_end_epoch, config.method.density) == (250, 110, 0.05)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (SMALL + "--metod DST", "unknown flag '--metod' of the public code; did you mean '--method'"),
        (
            SMALL + "--final_density 0.05",
            "unknown flag '--final_density' of the public code; did you mean '--final-density'",
        ),
        ("--data imagenet --model ResNet50 --sparse --method GraNet", "--model must be left out with ImageNet"),
        (SMALL + "--sparse-init GMP", "unless --method is GMP or GraNet; got GMP, a dense start"),
        (SMALL + "-z 3", "unknown flag '-z' of the public code"),
        (SMALL + "--lr fast", "--lr must be a number; got 'fast'"),
        (SMALL + "--lr nan", "--lr must be a number; got 'nan'"),
        (SMALL + "--l2 inf", "--l2 must be a number; got 'inf'"),
        (SMALL + "--epochs 0 --cyclic_epochs 24", "--epochs must be at least 1; got 0"),
        (SMALL + "--epochs 2.5", "--epochs must be a whole number; got '2.5'"),
        (SMALL + "--epochs", "--epochs must be followed by a value; got 'nothing'"),
        (SMALL + "--epochs --lr 0.1", "--epochs must be followed by a value; got '--lr'"),
        (SMALL + "--sparse=yes", "--sparse must have no value, because it is a switch; got '--sparse=yes'"),
        (SMALL + "--sparse", "--method must be given; it is missing from the command"),
        (SMALL + "--sparse --method DST", "--growth must be given; it is missing from the command"),
        (SMALL + "--sparse --method RigL", "unknown value of --method 'RigL'"),
        (SMALL + "--sparse --method DST --growth all", "unknown value of --growth 'all'"),
        (SMALL + "--superposing_method CIA", "unknown value of --superposing_method 'CIA'"),
        (
            SMALL + "--density 0.1 --final-density 0.2 --sparse --method GMP",
            "--final-density and --density must be equal; got 0.1 and 0.2",
        ),
        (SMALL + "--multiplier 0", "--multiplier must be at least 1; got 0"),
        (SMALL + "cifar", "the command must contain only flags and their values; got 'cifar' without a flag"),
        (SMALL + "'", "Cannot split the command line of --from-flags: No closing quotation"),
        ("--data cifar100", "--model must be given"),
        ("--model ResNet50", "--data must be given"),
        ("--data cifar100 --model ResNet51", "unknown value of --model 'resnet51'; did you mean 'resnet"),
        ("--data cifar1000 --model ResNet50", "unknown data set 'cifar1000'; did you mean 'cifar100'"),
        (SMALL + "--epochs 5", "so that one cycle fits"),
    ],
)
def test_a_command_that_cannot_be_had_is_one_sentence(command, message):
    with pytest.raises(ValueError, match=message) as raised:
        recipe_from_flags(command)
    assert "\n" not in str(raised.value)


def test_every_flag_decides_a_setting_that_exists_or_says_what_there_is_instead():
    for name, flag in FLAGS.items():
        assert bool(flag.setting) != bool(flag.reason), name
        assert not flag.setting or flag.setting in all_keys()
        assert not flag.setting or name in flags_of(flag.setting)
    assert set(ALIASES.values()) <= set(FLAGS)


def test_the_model_config_of_the_imagenet_commands_decides_the_initial_weights():
    for name, command in IMAGENET.items():
        assert recipe_from_flags(command).settings["model"]["initialization"] == "kaiming_fan_in", name
    classic = recipe_from_flags(IMAGENET["granet"].replace("-c fanin", "-c classic"))
    assert classic.settings["model"]["initialization"] == "kaiming_fan_out"


def test_a_switch_that_leaves_a_default_as_it_is_decides():
    text = recipe_from_flags(CIFAR["granet"]).to_yaml()
    assert "no effect" not in text
    without = recipe_from_flags(CIFAR["granet"].replace("--cyc_lr ", "")).to_yaml()
    assert "cyclic_lr: false" in without
    assert "no effect" in without  # --lr_2


@pytest.mark.parametrize(
    ("words", "section", "key", "value"),
    [
        ("--model cifar_resnet_32", "model", "name", "resnet32"),
        ("--wd 0.001", "train", "weight_decay", 0.001),
        ("--weight-decay 0.001", "train", "weight_decay", 0.001),
        ("--learning-rate 0.05", "train", "lr", 0.05),
    ],
)
def test_other_names_of_the_public_code_are_read(words, section, key, value):
    command = CIFAR["granet"].replace("--model ResNet50", "") if section == "model" else CIFAR["granet"]
    assert recipe_from_flags(f"{command} {words}").settings[section][key] == value
