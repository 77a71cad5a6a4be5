import ast
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


OWNER = "tickets/run_folder.py"


def file_names():
    """The names of files and folders of a run that `tickets/run_folder.py` owns."""
    from suptickets_ray.tickets import run_folder

    return {value for name, value in vars(run_folder).items() if name.endswith(("_FILE", "_FOLDER"))}


def texts_of(source):
    """All texts of a module's code with their lines; docstrings and other bare texts are left out."""
    tree = ast.parse(source)
    bare = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in bare:
            yield node.lineno, node.value


def spelled_out(source, names):
    """The lines of a module that spell out a name: a file anywhere in a text, a folder as a part of a path."""
    files = {name for name in names if "." in name}
    folders = {f"{name}/" for name in names - files}
    return sorted(line for line, text in texts_of(source) if any(word in text for word in files | folders))


def test_only_run_folder_spells_out_the_names_of_a_runs_files():
    names = file_names()
    assert {"config.yaml", "result.json", "pretrained.pt", "superposed.arrow", "timeline.json", "tensorboard"} <= names
    package = ROOT / "suptickets_ray"
    found = [
        f"{path.relative_to(package)}:{line}"
        for path in sorted(package.rglob("*.py"))
        if path.relative_to(package).as_posix() != OWNER
        for line in spelled_out(path.read_text(), names)
    ]
    assert found == []


def test_a_name_in_code_is_found_and_one_in_a_docstring_is_not():
    source = '"""Reads result.json."""\npath = f"{folder}/result.json"\nlogs = "tensorboard/chain-000"\n'
    assert spelled_out(source, {"result.json", "tensorboard"}) == [2, 3]
