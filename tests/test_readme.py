"""What README and the pages under experiments/ promise is run."""

import json
import os
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = {
    "README.md": README,
    **{
        f"experiments/{name}.md": (ROOT / f"experiments/{name}.md").read_text()
        for name in ("README", "SETTINGS", "DATA", "SEARCH", "CLUSTER", "OUTPUTS", "PYTHON")
    },
}
TEXT = "\n".join(PAGES.values())
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
SHELL = [text.strip() for language, text in BLOCKS if not language]
PYTHON = [text for language, text in BLOCKS if language == "python"]


def all_commands():
    """The words after `suptickets` of every command in a block or in the text."""
    lines = [line for block in SHELL for line in block.splitlines()]
    commands = [line for line in lines if line.startswith("suptickets ")]
    commands += [line.partition(" -- ")[2] for line in lines if line.startswith("ray job submit ")]
    commands += re.findall(r"`(suptickets [^`]*)`", TEXT)
    return [shlex.split(command)[1:] for command in commands]


def setup_commands():
    return [block.split(" && ") for block in SHELL if block.startswith("python3 -m venv")]


def test_the_first_screen_has_one_command_for_the_job_and_one_for_the_tests():
    (make, install, job), (make_too, install_too, tests) = setup_commands()
    assert make == make_too == "python3 -m venv .venv"
    assert install.endswith("install --quiet .")
    assert install_too.endswith("install --quiet --editable '.[test]'")
    assert (job, tests) == (".venv/bin/suptickets train", ".venv/bin/python -m pytest")
    assert README.index(job) < README.index(tests) < README.index("## Results")


def test_the_wheel_that_the_first_command_installs_holds_all_recipes_and_all_templates(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        for recipe in (ROOT / "experiments").rglob("*.yaml"):
            if recipe.parent.name == "kuberay":
                continue  # no recipe: what a cluster is given
            assert wheel.read(f"suptickets_ray/{recipe.relative_to(ROOT).as_posix()}") == recipe.read_bytes()
        templates = [path for path in (ROOT / "suptickets_ray/report/templates").rglob("*") if path.is_file()]
        assert len(templates) > 5
        for template in templates:
            assert wheel.read(template.relative_to(ROOT).as_posix()) == template.read_bytes()
        assert not [name for name in wheel.namelist() if name.startswith("tests")]


@pytest.mark.ray
def test_the_main_job_ends_with_a_sup_ticket_above_the_pretraining_net_and_the_mean_ticket(tmp_path):
    _, _, job = setup_commands()[0]
    _, *arguments = shlex.split(job)
    command = [sys.executable, "-m", "suptickets_ray.cli", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr
    assert not re.search(r"ray::|\(pid=|Traceback|WARN(?!ING: merger)", done.stdout)  # Ray's noise is not shown
    result = json.loads((tmp_path / "runs/digits/result.json").read_text())
    superposed = result["superposed"]["accuracy"]
    # 1,000 test images: one network's accuracy has a standard error of 0.01; the prototype's gains are 0.05 and 0.02.
    assert superposed > 0.86
    assert superposed > result["pretrained"]["accuracy"]
    assert superposed > result["mean_ticket"]["accuracy"]
    assert round(result["superposed"]["density"] * 25_856) == 2585
    for words in ("pretrained network", "mean ticket", "best ticket", "sup-ticket", "ensemble of all tickets"):
        assert words in done.stdout
    assert [row["chain"] for row in result["tickets"]] == [0, 1, 2, 3] * 3


@pytest.mark.ray
def test_the_example_of_your_own_model_and_data_runs(ray_address, tmp_path):
    example = next(block for block in PYTHON if "def build" in block)
    assert sum(bool(line.strip()) for line in example.splitlines()) <= 10
    (tmp_path / "mine.py").write_text(example)
    train, export = next(block for block in SHELL if "mine:build" in block).splitlines()
    _, *arguments = shlex.split(train)
    short = ["train.epochs=40", "tickets.cycle_epochs=2", "data.label_noise=0", f"cluster.address={ray_address}"]
    short += ["tickets.num_chains=2", "cluster.num_workers=1", "cluster.num_explorers=1"]
    command = [sys.executable, "-m", "suptickets_ray.cli", *arguments, *short]
    done = subprocess.run(command, cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "runs/mine/result.json").read_text())
    assert result["config"]["model"]["options"] == {"width": 64}
    assert result["superposed"]["accuracy"] > 0.8
    command = [sys.executable, "-m", "suptickets_ray.cli", *shlex.split(export)[1:]]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    loads = next(block for block in PYTHON if "safetensors" in block)
    assert sum(bool(line.strip()) for line in loads.splitlines()) == 3
    check = (
        loads + "print(sum(int(weight.count_nonzero()) for weight in model.state_dict().values() if weight.ndim > 1))"
    )
    done = subprocess.run([sys.executable, "-c", check], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert int(done.stdout) <= result["superposed"]["density"] * (20 * 64 + 64 * 2) + 0.5


def test_the_loop_of_your_own_trains_sparse():
    example = next(block for block in PYTHON if "Sparsifier" in block)
    scope: dict = {}
    exec(example, scope)
    assert scope["sparsifier"].density == int(0.1 * 1408) / 1408
    assert scope["sparsifier"].num_updates == 7  # every 100 steps until 75 %
    inputs = scope["torch"].randn(1000, 20)
    assert (scope["model"](inputs).argmax(1) == (inputs[:, 0] > 0)).float().mean() > 0.9


def test_the_example_from_python_names_what_there_is():
    example = next(block for block in PYTHON if "load_config" in block)
    scope: dict = {}
    exec(example.split("\n\n")[0], scope)
    config = scope["load_config"](ROOT / "experiments/digits.yaml", ["seed=1", "name=seed-1"])
    assert (config.seed, config.name) == (1, "seed-1")


def test_the_example_of_your_own_task_is_measured():
    example = next(block for block in PYTHON if "import Metric, Task" in block)
    scope: dict = {}
    exec(example, scope)
    task = scope["price"](scale=2.0)
    import torch

    outputs, targets = torch.tensor([[1.0], [3.0]]), torch.tensor([1.0, 2.0])
    assert task.measure(task.predict(outputs), targets)["deviation"].tolist() == [0, 2]
    assert float(task.loss(outputs, targets)) == 0.25


@pytest.mark.parametrize("words", all_commands(), ids=" ".join)
def test_the_command_line_takes_every_command_of_the_pages(words):
    from suptickets_ray.commands.arguments import command_parser

    options, late = command_parser().parse_known_args(words)
    assert options.command == words[0]
    assert not [word for word in late if word.startswith("-")]


def test_every_command_of_the_pages_is_a_valid_configuration(tmp_path, monkeypatch):
    from suptickets_ray import load_config
    from suptickets_ray.paper_cli.translate import recipe_from_flags

    example = next(block for block in PYTHON if "def build" in block)
    (tmp_path / "mine.py").write_text(example)
    monkeypatch.syspath_prepend(tmp_path)
    commands = [words[1:] for words in all_commands() if words[0] in ("train", "tune")]
    assert len(commands) >= 10
    for words in commands:
        if "--from-flags" in words:
            assert recipe_from_flags(words[1])
            continue
        recipes = [word for word in words if "=" not in word and word != "my_recipe.yaml"]
        load_config(recipes[0] if recipes else None, [word for word in words if "=" in word])


def test_every_key_of_the_pages_exists():
    from suptickets_ray.recipes.declarations import all_keys

    keys = re.findall(r"`((?:method|tickets|superposition|cluster|data|train|model|search)\.[a-z_]+)[=`]", TEXT)
    assert len(keys) > 12
    assert set(keys) - {"cluster.yaml"} <= set(all_keys())


def test_the_table_of_all_settings_is_the_generated_one():
    from suptickets_ray.recipes.options import settings_markdown

    page = PAGES["experiments/SETTINGS.md"]
    table = page.partition("<!-- settings: begin -->")[2].partition("<!-- settings: end -->")[0]
    lines = settings_markdown().splitlines()
    stale = [line for line in table.strip().splitlines() if line not in lines]
    assert not stale, f"these lines are not what `settings_markdown()` of recipes/options.py gives: {stale}"
    assert table.strip().splitlines() == lines


def test_the_recipes_of_the_pages_are_shipped():
    from suptickets_ray.recipes.files import shipped_recipes

    names = [words[2] for words in all_commands() if words[:2] == ["recipes", "copy"]]
    assert names and set(names) <= set(shipped_recipes())


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 170


def anchors(text):
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_a_page_leads_to_a_file_and_a_heading(page):
    for link in re.findall(r"\]\(([^)]+)\)", PAGES[page]):
        path, _, anchor = link.partition("#")
        if "://" in link:
            continue
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


def test_the_file_tree_names_every_package_and_module_of_the_top():
    (tree,) = (block for block in SHELL if block.startswith("suptickets_ray/"))
    package = ROOT / "suptickets_ray"
    folders = {path.parent.name for path in package.rglob("__init__.py")} - {"suptickets_ray"}
    modules = {path.name for path in package.glob("*.py")} - {"__init__.py"}
    named = set(re.findall(r"\b(\w+)/", tree)) - {"suptickets_ray"}
    assert named == folders
    assert set(re.findall(r"\w+\.py", tree)) == modules


def test_the_files_to_read_first_hold_what_the_readme_says():
    rows = re.findall(r"^\| (.*\?) \| `([\w/]+\.py)` \| `([\w.]+)` \|$", README, re.MULTILINE)
    assert len(rows) == 10
    for question, file, name in rows:
        source = (ROOT / "suptickets_ray" / file).read_text()
        for part in name.split("."):
            assert re.search(rf"^\s*(?:def|class) {part}\b|^{part}\b", source, re.MULTILINE), question
