import subprocess
import sys


def run(code):
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split("\n")


def test_a_started_process_collects_as_before():
    out = run(
        "import gc\nfrom suptickets_ray.process_start import collect_normally, collect_rarely\n"
        "before = gc.get_threshold()\ncollect_rarely()\nprint(gc.get_threshold() > before)\n"
        "collect_normally()\nprint(gc.get_threshold() == before, gc.get_freeze_count() > 0)"
    )
    assert out[:2] == ["True", "True True"]


def test_thresholds_that_a_user_has_set_are_left_alone():
    out = run(
        "import gc\nfrom suptickets_ray.process_start import collect_normally\n"
        "gc.set_threshold(5, 6, 7)\ncollect_normally()\nprint(gc.get_threshold(), gc.get_freeze_count())"
    )
    assert out[0] == "(5, 6, 7) 0"


def test_an_ordinary_recipe_does_not_load_torchs_compiler():
    out = run(
        "import sys\nfrom suptickets_ray import load_config\n"
        "from suptickets_ray.training.determinism import set_determinism\n"
        "set_determinism(load_config())\nprint('torch._dynamo' in sys.modules)"
    )
    assert out[0] == "False"


def test_a_run_of_the_built_in_recipe_leaves_costly_modules_out():
    out = run(
        "import sys, torch\nfrom suptickets_ray import load_config\n"
        "from suptickets_ray.superposition.assessment import Gain\n"
        "from suptickets_ray.training.data import load_data\n"
        "from suptickets_ray.training.loop import build_learner, train_epoch\n"
        "config = load_config(None, ['method.update_interval_steps=1'])\n"
        "splits = load_data(config.data)\nlearner = build_learner(config, splits, torch.device('cpu'))\n"
        "train_epoch(learner, learner.model, config, splits, 0, lambda step: 0.1)\n"
        "learner.load_bytes(learner.to_bytes(epoch=1))\n"
        "Gain(0.1, only_one_right=(1, 2)).may_be_chance\n"
        "print({'torch._dynamo', 'sklearn', 'scipy.stats', 'matplotlib', 'pandas'} & set(sys.modules))"
    )
    assert out[0] == "set()"
