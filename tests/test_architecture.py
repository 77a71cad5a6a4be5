import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def modules_after(code):
    script = f"{code}\nimport sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_nothing_but_distributed_loads_ray():
    modules = (
        "sparse",
        "tickets.averaging",
        "superposition.merger",
        "recipes.load",
        "progress.live",
        "report.run_page",
    )
    code = "\n".join(f"import suptickets_ray.{module}" for module in modules)
    assert "ray" not in modules_after(code)


def test_the_package_itself_loads_nothing_heavy():
    assert not {"torch", "ray", "pyarrow"} & modules_after("import suptickets_ray")


def test_an_unknown_key_is_reported_without_torch():
    code = (
        "from suptickets_ray import load_config\ntry: load_config(None, ['method.nme=rigl'])\nexcept ValueError: pass"
    )
    assert "torch" not in modules_after(code)


def test_the_main_job_loads_ray_train_only_when_it_trains():
    assert "ray.train" not in modules_after("import suptickets_ray.distributed.pipeline.run")


def test_every_public_name_is_there():
    import suptickets_ray

    for name in suptickets_ray.__all__:
        assert getattr(suptickets_ray, name) is not None


def test_the_top_level_holds_what_the_plan_says():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode:
        pytest.fail("the tests run in a git checkout")
    top = {line.split("/")[0] for line in tracked.stdout.splitlines()}
    allowed = {"suptickets_ray", "experiments", "tests", "cluster.yaml", "pyproject.toml", "README.md", "LICENSE"}
    assert {name for name in top if not name.startswith(".")} <= allowed
