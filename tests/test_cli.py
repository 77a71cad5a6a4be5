"""The command as a person gives it: exit codes, sentences, stopping and going on."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from suptickets_ray import __version__, cli, load_config
from suptickets_ray.cli import main
from suptickets_ray.recipes.declarations import all_keys
from suptickets_ray.recipes.files import question_of, shipped_recipes
from suptickets_ray.recipes.options import OPTIONS, all_settings, describe, type_name


def command(*arguments):
    return [sys.executable, "-m", "suptickets_ray.cli", *arguments]


@pytest.fixture(autouse=True)
def handlers():
    before = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    for number, handler in before:
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["method.density=5"], "method.density must be in (0, 1]; got 5. Did you mean 0.05?"),
        (["method.nam=rigl"], "unknown key 'method.nam'; did you mean 'method.name'?"),
        (["method.name=rigel"], "unknown method 'rigel'; did you mean 'rigl'?"),
        (["train.epochs=many"], 'train.epochs must be a whole number; got "many".'),
        (["train.epochs=20", "tickets.cycle_epochs=5"], "so that one cycle fits; got 5."),
        (["nowhere.yaml"], "lists; got 'nowhere.yaml'"),
        (["cifar100/resnet50_grante"], "did you mean 'cifar100/resnet50_granet'?"),
        (["a.yaml", "b.yaml"], "there must be at most one recipe"),
        (["storage=ftp://host/runs"], "storage must be an absolute path or a URI that pyarrow.fs knows"),
        (["data.num_train_examples=501"], "data.num_train_examples must be at most 500"),
        (["cluster.address=127.0.0.1:1"], "cluster.address must be a Ray cluster that answers; got '127.0.0.1:1'"),
    ],
)
def test_bad_configuration_is_one_sentence_and_exit_code_2_before_ray_starts(arguments, sentence, tmp_path, capsys):
    if not any(text.startswith("storage=") for text in arguments):
        arguments = [*arguments, f"storage={tmp_path}"]
    import ray

    before = ray.is_initialized()
    assert main(["train", *arguments]) == 2
    assert sentence in " ".join(capsys.readouterr().err.split())
    assert ray.is_initialized() == before
    assert not list(tmp_path.iterdir())


def test_a_storage_that_cannot_be_written_is_exit_code_2(tmp_path, capsys):
    (tmp_path / "file").write_text("no folder")
    assert main(["train", f"storage={tmp_path / 'file'}"]) == 2
    assert "storage must be a folder that can be written" in " ".join(capsys.readouterr().err.split())


def test_without_a_command_the_help_is_printed(capsys):
    assert main([]) == 0
    assert "train" in capsys.readouterr().out


def test_an_unknown_command_gets_a_suggestion(capsys):
    with pytest.raises(SystemExit) as raised:
        main(["trian"])
    assert raised.value.code == 2
    assert "unknown command 'trian'; did you mean 'train'?" in capsys.readouterr().err


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit) as raised:
        main(["--version"])
    assert raised.value.code == 0
    assert capsys.readouterr().out == f"suptickets_ray {__version__}\n"


def test_options_can_be_limited_to_a_section(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["options", "tickets"]) == 0
    printed = capsys.readouterr().out
    assert "tickets.num_chains" in printed
    assert "method.density" not in printed
    assert main(["options", "tikets"]) == 2
    assert "unknown key 'tikets'; did you mean 'tickets'?" in capsys.readouterr().err


def test_a_finished_run_answers_that_it_is_done_without_ray(finished_run):
    run = Path(finished_run.path)
    arguments = command("train", str(run / "config.yaml"))
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "This run is already complete." in done.stdout
    accuracy = json.loads((run / "result.json").read_text())["superposed"]["accuracy"]
    assert f"{accuracy:.2%}" in done.stdout


def test_a_finished_run_of_another_recipe_is_exit_code_2_and_names_the_keys(finished_run, capsys):
    assert main(["train", str(Path(finished_run.path) / "config.yaml"), "seed=5"]) == 2
    assert "these keys differ: seed." in " ".join(capsys.readouterr().err.split())


def wait_for(condition, process, seconds=90):
    """Polls, because another process's files are what is waited for; fails when it ended or takes too long."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"ended early: {process.communicate()}"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_driver_killed_while_cycles_run_and_repeated_reaches_the_same_digest(finished_run, forked_run, ray_address):
    place = [f"storage={forked_run.parent}", f"name={forked_run.name}", f"cluster.address={ray_address}"]
    arguments = command("train", str(forked_run / "config.yaml"), *place, "cluster.num_explorers=1")
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for(lambda: list(forked_run.glob("chains/*.pt")), process)
    process.kill()
    process.communicate()
    kept = {path: path.stat().st_mtime_ns for path in forked_run.glob("tickets/*/*.arrow")}
    assert kept
    assert not (forked_run / "result.json").exists()
    again = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stdout + again.stderr
    assert {path: path.stat().st_mtime_ns for path in kept} == kept  # what was finished is not made again
    expected = json.loads((Path(finished_run.path) / "result.json").read_text())["superposed"]["digest"]
    assert json.loads((forked_run / "result.json").read_text())["superposed"]["digest"] == expected


@pytest.mark.slow
def test_a_run_killed_in_pretraining_and_repeated_reaches_the_same_digest(finished_run, ray_address, tmp_path):
    config = Path(finished_run.path) / "config.yaml"
    own = [f"storage={tmp_path}", "name=a", f"cluster.address={ray_address}", "cluster.num_explorers=1"]
    arguments, run = command("train", str(config), *own), tmp_path / "a"
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for(lambda: list(run.glob("ray_train/*/checkpoint_manager_snapshot.json")), process)
    process.kill()
    process.communicate()
    assert not (run / "pretrained.pt").exists()
    assert not (run / "result.json").exists()
    again = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "epoch 4 of 36" not in again.stdout  # what lies before the first checkpoint was not run again
    expected = json.loads((Path(finished_run.path) / "result.json").read_text())["superposed"]["digest"]
    assert json.loads((run / "result.json").read_text())["superposed"]["digest"] == expected


def processes_marked(mark):
    """Processes that inherited the mark in their environment, zombies apart: they wait for whoever started them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            alive = (path.parent / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
            if alive and mark.encode() in path.read_bytes():
                found.append((path.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


@pytest.mark.ray
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_an_interrupt_ends_a_local_run_with_130_and_leaves_no_process(tmp_path, number):
    mark = uuid.uuid4().hex
    environment = {**os.environ, "SUPTICKETS_TEST_MARK": mark}
    arguments = command("train", f"storage={tmp_path}", "name=a", "cluster.num_workers=1", "train.epochs=2000")
    process = subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for(lambda: list(tmp_path.glob("a/tensorboard/pretraining/*")), process)
    assert len(processes_marked(mark)) > 4
    process.send_signal(number)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 130, output
    assert "Run the same command again to resume" in output
    assert "Traceback" not in output
    deadline = time.monotonic() + 10
    while (left := processes_marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left


def test_an_override_given_twice_is_said(capsys):
    assert main(["train", "seed=1", "train.lr=0.2", "train.lr=nan", "--dry-run"]) == 2
    assert "WARNING: train.lr=0.2 has no effect, because train.lr=nan follows." in capsys.readouterr().err


def test_a_signal_that_arrives_twice_interrupts_once(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(cli.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(cli, "_last_interrupt", [0.0])
    with pytest.raises(KeyboardInterrupt):
        cli._interrupt(signal.SIGTERM, None)
    now[0] += 0.5
    cli._interrupt(signal.SIGTERM, None)
    now[0] += 0.6  # a person who means it
    with pytest.raises(KeyboardInterrupt):
        cli._interrupt(signal.SIGTERM, None)


def test_options_lists_every_row_of_every_table_with_a_line(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["options"]) == 0
    printed = capsys.readouterr().out
    titles = "|".join(rf"^{re.escape(key)}\s*$" for key in OPTIONS)
    blocks = dict(zip(OPTIONS, re.split(titles, printed, flags=re.M)[1:], strict=True))
    for key, table in OPTIONS.items():
        for name, row in table.items():
            assert describe(row)
            assert re.search(rf"^ *{name} +{re.escape(describe(row)[:40])}", blocks[key], re.M), (key, name)


def test_options_print_every_setting_with_type_unit_default_sentence_and_public_flag(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    assert main(["options"]) == 0
    printed = re.sub(r" +", " ", capsys.readouterr().out)
    for setting in all_settings():
        unit = f" ({setting.unit})" if setting.unit else ""
        default = setting.default if setting.default in ("required", "unset") else f"default {setting.default}"
        flags = f" Public flag: {', '.join(setting.flags)}." if setting.flags else ""
        assert f"\n{setting.key} {setting.kind}{unit}; {default}\n {setting.sentence}{flags}" in printed
    assert "\ntrain.warmup_epochs whole number (epochs); default 0\n" in printed
    assert "Optimizer steps between two topology updates. Public flag: --update-frequency." in printed


def test_every_setting_is_listed_once_with_a_sentence_of_its_own():
    settings = all_settings()
    sections = {setting.key.partition(".")[0] for setting in settings if "." in setting.key}
    assert [setting.key for setting in settings] == [key for key in all_keys() if key not in sections]
    assert len({setting.sentence for setting in settings}) == len(settings)
    assert all(setting.sentence.endswith(".") for setting in settings)


def test_every_number_has_a_unit_or_is_known_to_have_none():
    without = {setting.key for setting in all_settings() if "number" in setting.kind and not setting.unit}
    rates = {"train.lr", "tickets.lr_low", "tickets.lr_high"}
    factors = {"train.lr_decay_factor", "train.momentum", "train.weight_decay", "train.clip_norm"}
    weights = {"method.drop_gradient_weight", "method.momentum_decay", "superposition.cima_factor"}
    assert without <= {"seed", "data.split_seed"} | rates | factors | weights


def test_units_by_eye():
    units = {setting.key: setting.unit for setting in all_settings()}
    assert units["method.prune_end_epoch"] == units["train.epochs"] == units["train.lr_milestone_epochs"] == "epochs"
    assert units["method.update_interval_steps"] == "steps"
    assert units["method.density"] == units["data.label_noise"] == units["tickets.cycle_rate"] == "fraction"
    assert units["cluster.num_workers"] == "ranks"
    assert units["train.lr"] == units["name"] == units["tickets.explore"] == ""


def test_types_by_eye():
    assert [type_name(kind) for kind in (int, int | None, float, bool)] == [
        "whole number",
        "whole number",
        "number",
        "true or false",
    ]
    assert type_name(list[int] | None) == "list of whole numbers"


def test_recipes_lists_every_shipped_recipe_with_its_question_and_no_base(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["recipes"]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert {name: question.strip() for name, question in lines} == {
        name: question_of(path) for name, path in shipped_recipes().items()
    }
    assert {"digits", "smoke", "mnist1d", "cifar10/vgg16_set", "imagenet/resnet50_rigl"} < {name for name, _ in lines}
    assert not [name for name, _ in lines if "_cifar" in name or "_paper" in name]


def test_recipes_copy_writes_a_recipe_to_edit_and_never_overwrites(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["recipes", "copy", "cifar100/resnet50_granet"]) == 0
    assert "suptickets train resnet50_granet.yaml" in capsys.readouterr().out
    (tmp_path / "resnet50_granet.yaml").write_text("mine")
    assert main(["recipes", "copy", "cifar100/resnet50_granet"]) == 2
    assert "'resnet50_granet.yaml' already exists" in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / "resnet50_granet.yaml").read_text() == "mine"
    assert main(["recipes", "copy", "cifar100/resnet50_granet", "other.yaml"]) == 0
    assert (tmp_path / "other.yaml").read_text().startswith("# How much do Sup-tickets add to GraNet")


def test_recipes_copy_of_an_unknown_name_suggests_one(capsys):
    assert main(["recipes", "copy", "digit"]) == 2
    assert "did you mean 'digits'?" in capsys.readouterr().err


def test_train_runs_a_recipe_by_its_name(finished_run, tmp_path, monkeypatch, capsys):
    """The name of a run that is done already, so that nothing has to be trained."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(Path(finished_run.path) / "config.yaml", tmp_path / "digits")  # a path that exists wins
    assert main(["train", "digits"]) == 0
    assert "This run is already complete." in capsys.readouterr().out


COMMAND = "python3 main_suptickets.py --sparse --method DST --growth gradient --model ResNet50 --data cifar100"


def test_from_flags_prints_a_recipe_that_can_be_piped_into_a_file_and_runs_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "40")
    assert main(["train", "--from-flags", COMMAND]) == 0
    printed = capsys.readouterr()
    (tmp_path / "own.yaml").write_text(printed.out)
    assert load_config(tmp_path / "own.yaml").method.name == "rigl"
    assert printed.err.startswith("WARNING: --re_explore is missing")
    assert [path.name for path in tmp_path.iterdir()] == ["own.yaml"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--from-flags", f"{COMMAND} --cycel 8"],
            "unknown flag '--cycel' of the public code; did you mean '--cycle'?",
        ),
        (
            ["seed=1", "--from-flags", COMMAND],
            "--from-flags must have no recipe or overrides, because it trains nothing; got 'seed=1'.",
        ),
        (
            ["--from-flags", COMMAND, "seed=1"],
            "--from-flags must have no recipe or overrides, because it trains nothing; got 'seed=1'.",
        ),
    ],
)
def test_from_flags_that_cannot_be_translated_is_exit_code_2(arguments, sentence, capsys):
    assert main(["train", *arguments]) == 2
    printed = capsys.readouterr()
    assert sentence in " ".join(printed.err.split())
    assert not printed.out


def test_data_is_converted_with_a_bar_and_a_second_time_there_is_nothing_to_do(tmp_path, capsys):
    target = tmp_path / "digits"
    convert = ["data", "convert", "data.name=digits", "--to", str(target), "--rows-per-file", "400"]
    assert main(convert) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "500/500" in out
    assert "6 files written" in out
    assert f"data.name=parquet data.root={target}" in out
    assert main(convert) == 0
    assert "0 files written" in capsys.readouterr().out
    assert main(["data", "convert", "data.name=digits", "data.split_seed=1", "--to", "ftp://nowhere"]) == 2
    assert "must be a path that pyarrow.fs can write" in " ".join(capsys.readouterr().err.split())


@pytest.fixture
def stored_ticket(tmp_path):
    """A ticket that was never trained, in the folder of a run."""
    import torch

    from suptickets_ray.recipes.load import to_yaml
    from suptickets_ray.training.data import load_data
    from suptickets_ray.training.loop import build_learner

    config = load_config(None, ["model.options.widths=[16]"])
    ticket = build_learner(config, load_data(config.data), torch.device("cpu")).ticket({"run": "digits"})
    run = tmp_path / "run=1"  # a folder may hold an equals sign
    run.mkdir()
    (run / "config.yaml").write_text(to_yaml(config))
    ticket.save(run / "superposed.arrow")
    return str(run / "superposed.arrow")


def test_evaluate_gives_what_the_run_recorded_for_its_sup_ticket(finished_run, capsys):
    path = f"{finished_run.path}/superposed.arrow"
    assert main(["evaluate", path, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    recorded = json.loads((Path(finished_run.path) / "result.json").read_text())["superposed"]
    assert {key: report[key] for key in ("accuracy", "loss", "density", "digest")} == {
        key: recorded[key] for key in ("accuracy", "loss", "density", "digest")
    }
    assert main(["evaluate", path]) == 0
    printed = capsys.readouterr().out
    assert f"{recorded['accuracy']:.2%}" in printed
    assert recorded["digest"] in printed


def test_evaluate_reads_settings_of_the_data_before_and_after_its_options(stored_ticket, capsys):
    assert main(["evaluate", stored_ticket, "data.num_train_examples=200", "--json", "--split", "train"]) == 0
    before = json.loads(capsys.readouterr().out)
    assert main(["evaluate", "--json", stored_ticket, "--split", "train", "data.num_train_examples=200"]) == 0
    assert json.loads(capsys.readouterr().out) == before
    assert before["num_examples"] == 200


@pytest.mark.parametrize("form", ["safetensors", "state_dict", "onnx", "csr", "arrow"])
def test_export_writes_every_form_and_says_how_to_load_it(form, stored_ticket, tmp_path, capsys):
    file = tmp_path / "exported"
    assert main(["export", stored_ticket, "--format", form, "--output", str(file)]) == 0
    printed = capsys.readouterr().out
    assert f"File: {file} ({file.stat().st_size:,} bytes)" in printed
    assert "Load it: " in printed
    assert "'exported'" in printed


def test_the_help_of_export_names_every_form(capsys):
    from suptickets_ray.offline.export import EXPORTS

    with pytest.raises(SystemExit):
        main(["export", "--help"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in EXPORTS)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["evaluate", "nowhere.arrow"], "the ticket must be an existing Arrow file; got 'nowhere.arrow'"),
        (["evaluate", "nowhere.arrow", "--split", "tset"], "unknown split 'tset'; did you mean 'test'?"),
        (["export", "nowhere.arrow", "--format", "onxx"], "unknown export format 'onxx'; did you mean 'onnx'?"),
        (["export", "nowhere.arrow", "--format", "csr", "--recipe", "a"], "--recipe has no effect with --format csr"),
    ],
)
def test_what_cannot_be_evaluated_or_exported_is_exit_code_2(arguments, sentence, capsys):
    assert main(arguments) == 2
    assert sentence in " ".join(capsys.readouterr().err.split())


def test_report_writes_one_page_on_runs_where_it_is_told(finished_run, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert main(["report", finished_run.path, "--output", str(page)]) == 0
    assert f"Report: {page}" in capsys.readouterr().out
    assert page.read_text().startswith("<!doctype html>")


def test_json_logs_are_one_object_per_line_with_run_and_phase_and_end_with_the_result(finished_run, capsys):
    config = str(Path(finished_run.path) / "config.yaml")
    assert main(["train", config, "--log-format", "json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[-1]["event"] == "done"
    assert lines[-1]["digest"] == finished_run.result["superposed"]["digest"]
    assert {line["run"] for line in lines} == {"undisturbed"}


def test_a_uri_is_a_recipe_and_what_follows_its_question_mark_no_override():
    from suptickets_ray.commands.recipe_arguments import recipe_and_overrides

    uri = "s3://bucket/best.yaml?region=us-east-1"
    assert recipe_and_overrides([uri, "storage=s3://bucket/runs", "seed=1"]) == (
        uri,
        ["storage=s3://bucket/runs", "seed=1"],
    )


def test_printed_paths_on_an_object_store_are_below_its_folder_and_shells_take_them(capsys):
    from rich.console import Console

    from suptickets_ray.commands.runs import _print_curves, _print_path

    console = Console()
    _print_curves(console, "s3://bucket/runs/digits?region=us-east-1")
    _print_path(console, "Run the best: suptickets train", "s3://bucket/best.yaml?region=a&scheme=http")
    assert capsys.readouterr().out.splitlines() == [
        "Curves: tensorboard --logdir s3://bucket/runs/digits/tensorboard",
        "Run the best: suptickets train 's3://bucket/best.yaml?region=a&scheme=http'",
    ]


def test_whoever_stops_watching_a_submitted_job_is_told_that_it_goes_on_and_how_to_end_it(
    monkeypatch, capsys, tmp_path
):
    from suptickets_ray.distributed.cluster import submit as submission

    def interrupted(*arguments, on_start, **options):
        on_start("raysubmit_1")
        raise KeyboardInterrupt

    monkeypatch.setattr(submission, "submit", interrupted)
    assert main(["train", f"storage={tmp_path}", "--submit", "http://127.0.0.1:8265"]) == 130
    said = capsys.readouterr().out
    assert "Job raysubmit_1 keeps running." in said
    assert "ray job stop --address http://127.0.0.1:8265 raysubmit_1" in said


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train", "search.num_seeds=5"], "search.num_seeds=5 has no effect with train; suptickets tune reads it"),
        (["train", "model.options.widths=many"], "model.options.widths must be"),
        (["train", "model.options.batchnorm=maybe"], "model.options.batchnorm must be a valid boolean; got 'maybe'"),
        (["train", "data.options.split=3"], "data.options.split has no effect"),
        (["train", "cluster.superposer_gpus=1"], "cluster.superposer_gpus must fit this machine's 0 GPUs"),
        (["evaluate", "a.arrow", "data.batch_size=3"], "has no effect: only training reads it"),
    ],
)
def test_what_does_nothing_or_cannot_be_is_exit_code_2(
    arguments, sentence, capsys, tmp_path, monkeypatch, stored_ticket
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    assert main([stored_ticket if text == "a.arrow" else text for text in arguments]) == 2
    assert sentence in " ".join(capsys.readouterr().err.split())


READ = {
    "train": lambda key: not key.startswith("search."),
    "tune": lambda key: key != "run.report",
    "evaluate": lambda key: key.startswith("data.") and not re.search("batch_size|crop_padding|flip", key),
    "export": lambda key: key.startswith("data.") and not re.search("batch_size|crop_padding|flip", key),
    "superpose": lambda key: key.startswith("superposition.") or key == "data.root",
    "data convert": lambda key: key in ("data.name", "data.options", "data.root", "data.download", "data.split_seed"),
}


@pytest.mark.parametrize("command", READ)
def test_every_key_that_a_command_does_not_read_is_refused_by_it(command, stored_ticket, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {
        "evaluate": [stored_ticket],
        "export": [stored_ticket, "--format", "onnx", "--output", str(tmp_path / "a")],
        "superpose": [str(Path(stored_ticket).parent)],
        "data convert": ["--to", str(tmp_path / "to")],
    }
    sections = {"model", "data", "train", "method", "tickets", "superposition", "cluster", "search", "run"}
    for key in set(all_keys()) - sections:
        if READ[command](key):
            continue
        assert main([*command.split(), *given.get(command, []), f"{key}=1"]) == 2, key
        said = " ".join(capsys.readouterr().err.split())
        assert key in said or key.rpartition(".")[2] in said, (key, said)
