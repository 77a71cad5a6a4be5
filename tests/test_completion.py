"""Completion in a shell: what a request of argcomplete is answered."""

import os
import subprocess
import sys

import pytest

from suptickets_ray.cli import main
from suptickets_ray.commands.completion import SHELLS, TABLES, values_of

argcomplete = pytest.importorskip("argcomplete")


def completions(line, shell="zsh"):
    """Returns what the shell is offered at the end of a command line."""
    code = "import sys; from suptickets_ray.cli import run; sys.argv = ['suptickets']; run()"
    request = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_SHELL": shell,
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
    }
    reader, writer = os.pipe()
    script = f"import os; os.dup2({writer}, 8); {code}"
    subprocess.run([sys.executable, "-c", script], env={**os.environ, **request}, pass_fds=[writer], check=True)
    os.close(writer)
    with os.fdopen(reader) as stream:
        return [item.partition(":")[0] for item in stream.read().split("\n")]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("suptickets tr", ["train"]),
        ("suptickets train method.na", ["method.name="]),
        ("suptickets train method.name=rig", ["method.name=rigl"]),
        ("suptickets train run.report=", ["run.report=full", "run.report=short", "run.report=none"]),
        ("suptickets tune cifar100/resnet50_gr", ["cifar100/resnet50_granet"]),
        ("suptickets train --log-format j", ["json"]),
        ("suptickets recipes copy digi", ["digits"]),
        ("suptickets options tickets.num_ch", ["tickets.num_chains"]),
        ("suptickets completion f", ["fish"]),
    ],
)
def test_the_start_of_a_word_is_completed(line, expected):
    assert [item.strip() for item in completions(line)] == expected


def test_a_setting_offers_every_row_of_its_table():
    from suptickets_ray.recipes.options import OPTIONS

    assert {key: list(values_of(key)) for key in TABLES} == {key: list(rows) for key, rows in OPTIONS.items()}


def test_a_number_has_no_values_and_a_switch_two():
    assert not values_of("method.density")
    assert not values_of("unknown.key")
    assert values_of("data.download") == ("true", "false")


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_gets_a_script_for_the_command(shell, capsys):
    assert main(["completion", shell]) == 0
    assert "suptickets" in capsys.readouterr().out


def test_bash_accepts_its_script_and_completes_a_command():
    script = 'eval "$(' + f"{sys.executable} -m suptickets_ray.cli completion bash" + ')"; complete -p suptickets'
    shown = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert "_python_argcomplete" in shown.stdout
