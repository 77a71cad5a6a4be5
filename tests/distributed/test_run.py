"""The main job through a real Ray; results are read from the files, not from the log."""

import fcntl
import json
import math
import os
import random
import shutil
import signal
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import ray
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from suptickets_ray import Ticket, load_config, train
from suptickets_ray.config import RunConfig
from suptickets_ray.distributed.cluster import watchdog
from suptickets_ray.distributed.pipeline.run import finished_result
from suptickets_ray.offline.resuperpose import evaluate_runs, open_runs, superpose_runs
from suptickets_ray.progress.events import (
    CycleEpochEnded,
    EpochEnded,
    PhaseStarted,
    ResultWritten,
    Resumed,
    TicketFinished,
    TicketMerged,
    Waiting,
    to_record,
)
from suptickets_ray.sparse.masks import num_active, unpack
from suptickets_ray.tickets.averaging import superpose
from suptickets_ray.training.checkpoint import read_state

pytestmark = pytest.mark.ray
TARGET = int(0.1 * 25_856 + 1e-9)


def read(run):
    return json.loads((Path(run) / "result.json").read_text())


def scalars(run, folder):
    reader = EventAccumulator(str(Path(run) / "tensorboard" / folder))
    reader.Reload()
    return {tag: [(point.step, point.value) for point in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def test_the_files_of_the_contract_are_there(finished_run):
    run = Path(finished_run.path)
    for name in ("config.yaml", "result.json", "superposed.arrow", "report.html", "tensorboard"):
        assert (run / name).exists()
    found = sorted(str(path.relative_to(run / "tickets")) for path in run.glob("tickets/*/*"))
    assert found == [f"chain-00{chain}/cycle-00{cycle}.arrow" for chain in (0, 1, 2) for cycle in (0, 1)]
    assert not list(run.rglob("*.tmp"))


def test_the_result_agrees_with_the_tickets_on_disk(finished_run):
    result, run = read(finished_run.path), Path(finished_run.path)
    assert result["state"] == "complete"
    superposed = Ticket.load(run / "superposed.arrow")
    assert (superposed.digest, superposed.density) == (result["superposed"]["digest"], result["superposed"]["density"])
    assert [(row["chain"], row["cycle"]) for row in result["tickets"]] == [
        (chain, cycle) for cycle in (0, 1) for chain in (0, 1, 2)
    ]
    for row in result["tickets"]:
        ticket = Ticket.load(run / f"tickets/chain-{row['chain']:03d}/cycle-{row['cycle']:03d}.arrow")
        assert (ticket.digest, ticket.density) == (row["digest"], row["density"])
        assert num_active(ticket.masks) == TARGET
        assert (ticket.provenance["chain"], ticket.provenance["cycle"]) == (row["chain"], row["cycle"])
    for network in (result["superposed"], result["pretrained"], *result["tickets"]):
        assert {"accuracy", "loss", "validation_accuracy", "validation_loss", "density", "digest"} <= set(network)
    assert set(result["seconds"]) == {"start", "pretrain", "explore", "superpose", "total"}


def test_chains_start_from_pretraining_and_go_on_from_their_own_cycles(finished_run):
    result, run = read(finished_run.path), Path(finished_run.path)
    digests = {(row["chain"], row["cycle"]): row["digest"] for row in result["tickets"]}
    assert len(set(digests.values())) == 6
    for chain, cycle in digests:
        ticket = Ticket.load(run / f"tickets/chain-{chain:03d}/cycle-{cycle:03d}.arrow")
        parent = result["pretrained"]["digest"] if cycle == 0 else digests[chain, cycle - 1]
        assert ticket.provenance["parent"] == parent


def test_the_sup_ticket_is_the_accepted_tickets_superposed_in_canonical_order(finished_run):
    result, run = read(finished_run.path), Path(finished_run.path)
    config = load_config(run / "config.yaml")
    state = read_state((run / "pretrained.pt").read_bytes())
    bits = state["sparsifier"]["masks"]
    merged = [Ticket(state["model"], {name: unpack(bits[name], state["model"][name].shape) for name in bits}, {})]
    assert merged[0].digest == result["pretrained"]["digest"]
    merged += [
        Ticket.load(run / f"tickets/chain-{row['chain']:03d}/cycle-{row['cycle']:03d}.arrow")
        for row in result["tickets"]
        if row["accepted"]
    ]
    expected = superpose(merged, "cia", density=config.method.density, prune="last").state_dict()
    found = Ticket.load(run / "superposed.arrow").state_dict()
    for name, tensor in expected.items():
        recalibrated = "running" in name or "num_batches" in name
        assert recalibrated or torch.equal(tensor, found[name]), name
    assert num_active(Ticket.load(run / "superposed.arrow").masks) == TARGET


def test_recorded_accuracies_are_those_of_the_files(finished_run):
    from suptickets_ray.training.data import load_data
    from suptickets_ray.training.evaluation import evaluate
    from suptickets_ray.training.models import build_model

    config, result = load_config(Path(finished_run.path) / "config.yaml"), read(finished_run.path)
    splits = load_data(config.data)
    model = build_model(config.model, splits.sample_shape, splits.num_classes)
    model.load_state_dict(Ticket.load(Path(finished_run.path) / "superposed.arrow").state_dict())
    assert evaluate(model, splits.test)["accuracy"] == result["superposed"]["accuracy"]
    assert evaluate(model, splits.validation)["accuracy"] == result["superposed"]["validation_accuracy"]


def test_tensorboard_has_pretraining_every_chain_and_the_merge(finished_run):
    pretraining = scalars(finished_run.path, "pretraining")
    assert [step for step, _ in pretraining["validation/accuracy"]] == [20 * epoch for epoch in range(1, 37)]
    assert {"train/loss", "train/density", "train/drop_fraction", "validation/loss"} <= set(pretraining)
    explored = [value for _, value in pretraining["train/explored"]]
    assert 0.99 * TARGET / 25_856 <= explored[0] <= explored[-1] <= 1
    assert explored == sorted(explored)
    assert min(value for _, value in pretraining["train/examples_per_second"]) > 0
    # the rate of each epoch's last step: half a cosine over 36 epochs of 20 steps
    expected = [0.1 * (1 + math.cos(math.pi * (20 * epoch - 1) / 720)) / 2 for epoch in range(1, 37)]
    assert [value for _, value in pretraining["train/lr"]] == pytest.approx(expected, rel=1e-5)
    for chain in (0, 1, 2):
        chain_scalars = scalars(finished_run.path, f"chain-00{chain}")
        assert [step for step, _ in chain_scalars["train/loss"]] == [20 * epoch for epoch in range(37, 41)]
        recorded = [row["validation_accuracy"] for row in read(finished_run.path)["tickets"] if row["chain"] == chain]
        assert [value for _, value in chain_scalars["validation/accuracy"]] == pytest.approx(recorded)
    merge = scalars(finished_run.path, "superposition")
    assert not set(merge) & set(pretraining)  # its axis counts tickets
    tickets = read(finished_run.path)["tickets"]
    candidates, standing = merge["superposition/candidate_accuracy"], merge["superposition/accuracy"]
    assert [step for step, _ in candidates] == [1, 2, 3, 4, 5, 6]
    accepted = {step for step, value in merge["superposition/accepted"] if value}
    assert len(accepted) == sum(row["accepted"] for row in tickets)
    assert [one for one in standing if one[0] in accepted] == [one for one in candidates if one[0] in accepted]
    assert {step for step, _ in standing} == set(range(min(accepted), 7))
    assert all(0 < value <= 1 for _, value in merge["superposition/overlap"])
    assert [step for step, _ in merge["superposition/candidate_loss"]] == [1, 2, 3, 4, 5, 6]
    assert {step for step, _ in merge["superposition/loss"]} == {step for step, _ in standing}
    before = [value for _, value in merge["superposition/density_before_pruning"]]
    assert min(before) > TARGET / 25_856  # tickets have other masks than the network that they join
    assert merge["test/superposed"][-1][1] == pytest.approx(read(finished_run.path)["superposed"]["accuracy"])


def test_tensorboard_has_the_layers_densities_as_a_histogram_per_update(finished_run):
    # Updates come every 50 steps until three quarters of the 720; a cycle's exploration stands where it begins.
    cycles = {f"chain-00{chain}": [720, 760] for chain in range(3)}
    for name, steps in {"pretraining": [0, *range(50, 540, 50)], **cycles}.items():
        reader = EventAccumulator(f"{finished_run.path}/tensorboard/{name}", size_guidance={"histograms": 0})
        reader.Reload()
        found = reader.Histograms("layers/density")
        assert [(one.step, one.histogram_value.num) for one in found] == [(step, 3) for step in steps]


def test_tensorboard_ends_with_recipe_versions_hparams_and_pictures_of_the_tickets(finished_run):
    reader = EventAccumulator(f"{finished_run.path}/tensorboard/summary", size_guidance={"images": 0, "tensors": 0})
    reader.Reload()
    assert set(reader.Tags()["images"]) == {"tickets/overlap", "tickets/loss_between"}
    texts = {tag: reader.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in reader.Tags()["tensors"]}
    assert "density: 0.1" in texts["recipe/text_summary"]
    assert "torch" in texts["versions/text_summary"]
    assert reader.Scalars("test/superposed")[0].value == pytest.approx(
        read(finished_run.path)["superposed"]["accuracy"]
    )
    assert "_hparams_/experiment" in reader.summary_metadata


def test_the_timeline_has_every_cycle_and_merge_with_its_time(finished_run):
    timeline = json.loads((Path(finished_run.path) / "timeline.json").read_text())
    (start,) = timeline["starts"]
    kinds = [span["kind"] for span in timeline["spans"]]
    named = ("starting", "pretrain", "explore", "cycle", "merge", "superpose")
    assert [kinds.count(kind) for kind in named] == [1, 1, 1, 6, 6, 1]
    assert all(start["began"] <= span["began"] <= span["ended"] <= start["ended"] for span in timeline["spans"])


def test_whoever_watches_is_told_of_every_epoch_ticket_and_merge(finished_run):
    kinds = [to_record(event)["event"] for event in finished_run.result["events"]]
    assert [kinds.count(kind) for kind in ("epoch", "ticket", "merge", "phase")] == [36, 6, 6, 3]


def test_a_finished_run_is_not_run_again(finished_run, ray_address):
    before = (Path(finished_run.path) / "result.json").stat().st_mtime_ns
    again = train(load_config(Path(finished_run.path) / "config.yaml"))
    assert again.resumed
    assert (Path(finished_run.path) / "result.json").stat().st_mtime_ns == before


def test_another_recipe_in_the_same_folder_is_refused_by_its_keys(finished_run):
    config = load_config(Path(finished_run.path) / "config.yaml", ["seed=4", "tickets.num_chains=4"])
    with pytest.raises(ValueError, match="these keys differ: seed, tickets.num_chains"):
        train(config)


def continued(run, *overrides, on_event=lambda event: None):
    place = [f"storage={run.parent}", f"name={run.name}", "cluster.num_explorers=2"]
    config = load_config(run / "config.yaml", [*place, *overrides])
    train(config, on_event)
    return read(run)


def test_one_explorer_gives_the_same_digests_as_three(finished_run, forked_run):
    result = continued(forked_run, "cluster.num_explorers=1")
    assert result["superposed"]["digest"] == read(finished_run.path)["superposed"]["digest"]
    assert [row["digest"] for row in result["tickets"]] == [row["digest"] for row in read(finished_run.path)["tickets"]]


def actors(name):
    """This session's processes of an actor class, by the name that a person sees in `ps`."""
    found, own = [], f"HOME={os.environ['HOME']}".encode()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            is_own = own in (path / "environ").read_bytes().split(b"\0")  # other sessions may run beside this one
            if is_own and (path / "cmdline").read_bytes().startswith(f"ray::{name}".encode()):
                found.append(int(path.name))
        except OSError:
            continue
    return found


@pytest.mark.parametrize(
    ("actor", "moment"),
    [
        ("Explorer", CycleEpochEnded),
        pytest.param("Superposer", TicketMerged, marks=pytest.mark.slow),
    ],
)
def test_a_killed_actor_costs_time_but_no_bit(finished_run, forked_run, actor, moment):
    killed, ended = [], []

    def kill_once(event):
        ended.extend([(event.chain, event.cycle)] if isinstance(event, TicketFinished) else [])
        if isinstance(event, moment) and not killed:
            killed.extend(actors(actor))
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    result = continued(forked_run, on_event=kill_once)
    assert killed
    assert len(ended) == len(set(ended))  # what was finished is not run again
    assert result["superposed"]["digest"] == read(finished_run.path)["superposed"]["digest"]


@pytest.mark.slow
def test_explorers_killed_at_random_moments_cost_time_but_no_bit(finished_run, forked_run):
    moments, killed, ended = random.Random(0), [], []

    def kill_at_random(event):
        ended.extend([(event.chain, event.cycle)] if isinstance(event, TicketFinished) else [])
        if (
            isinstance(event, CycleEpochEnded | TicketFinished | TicketMerged)
            and len(killed) < 4
            and moments.random() < 0.4
        ):
            victims = actors("Explorer")
            if victims:
                killed.append(moments.choice(victims))
                os.kill(killed[-1], signal.SIGKILL)

    result = continued(forked_run, on_event=kill_at_random)
    assert len(killed) >= 2
    assert len(ended) - len(set(ended)) <= len(killed)  # each death costs the cycle that was running at most
    assert result["superposed"]["digest"] == read(finished_run.path)["superposed"]["digest"]
    assert [row["digest"] for row in result["tickets"]] == [row["digest"] for row in read(finished_run.path)["tickets"]]


@pytest.mark.slow
def test_storage_that_cannot_be_written_stops_the_run_and_loses_no_ticket(finished_run, forked_run):
    (forked_run / "tickets").mkdir()
    in_the_way = forked_run / "tickets/chain-001"
    in_the_way.write_text("a file where a folder should be")
    with pytest.raises(RuntimeError, match="of chain 1: .*chain-001"):
        continued(forked_run, "cluster.num_explorers=1")
    kept = forked_run / "tickets/chain-000/cycle-000.arrow"
    before = kept.stat().st_mtime_ns
    in_the_way.unlink()
    result = continued(forked_run, "cluster.num_explorers=1")
    assert kept.stat().st_mtime_ns == before
    assert result["superposed"]["digest"] == read(finished_run.path)["superposed"]["digest"]


def test_stored_tickets_are_taken_over_and_a_damaged_one_is_made_again(finished_run, forked_run):
    done = Path(finished_run.path)
    for folder in ("tickets/chain-000", "tickets/chain-001", "tickets/chain-002", "chains"):
        (forked_run / folder).mkdir(parents=True)
        for path in (done / folder).iterdir():
            (forked_run / folder / path.name).write_bytes(path.read_bytes())
    damaged = forked_run / "tickets/chain-001/cycle-000.arrow"
    damaged.write_bytes(damaged.read_bytes()[:100])
    kept = forked_run / "tickets/chain-000/cycle-001.arrow"
    before = kept.stat().st_mtime_ns
    events = []
    result = continued(forked_run, "cluster.num_explorers=1", on_event=events.append)
    assert result["superposed"]["digest"] == read(finished_run.path)["superposed"]["digest"]
    assert kept.stat().st_mtime_ns == before
    assert sorted((event.chain, event.cycle) for event in events if isinstance(event, TicketFinished)) == [
        (1, 0),
        (1, 1),
    ]
    assert any(isinstance(event, Resumed) and event.tickets == 4 for event in events)


# The other rules: test_superpose.py, which merges the same tickets without Ray to the same bits.
@pytest.mark.slow
def test_the_greedy_rule_takes_the_tickets_of_a_run_best_first(finished_run, forked_run):
    done = Path(finished_run.path)
    for folder in ("tickets/chain-000", "tickets/chain-001", "tickets/chain-002", "chains"):
        (forked_run / folder).mkdir(parents=True)
        for path in (done / folder).iterdir():
            (forked_run / folder / path.name).write_bytes(path.read_bytes())
    (forked_run / "config.yaml").unlink()  # another rule on the tickets of the finished run
    place = [f"storage={forked_run.parent}", f"name={forked_run.name}"]
    result = train(load_config(done / "config.yaml", [*place, "superposition.method=greedy"])).result
    assert num_active(Ticket.load(forked_run / "superposed.arrow").masks) == TARGET
    runs = open_runs([finished_run.path], ["method=greedy"])
    alone = evaluate_runs(runs, *superpose_runs(runs))
    assert result["superposed"] == alone["superposed"]


@pytest.mark.slow
def test_layers_merged_by_several_processes_are_the_bits_of_one_superposer(finished_run, forked_run):
    rule = ["superposition.prune_at=end", "superposition.gate_tolerance=none", "cluster.num_merge_shards=3"]
    (forked_run / "config.yaml").unlink()  # another rule on the pretraining of the finished run
    own, events = [f"storage={forked_run.parent}", "name=forked", "cluster.num_explorers=1"], []
    apart = train(load_config(Path(finished_run.path) / "config.yaml", [*own, *rule]), events.append).result
    runs = open_runs([str(forked_run)])
    alone = evaluate_runs(runs, *superpose_runs(runs))
    assert apart["superposed"] == alone["superposed"]
    assert apart["tickets"] == alone["tickets"]
    assert sum(isinstance(event, TicketMerged) for event in events) == 6


@pytest.mark.slow
def test_a_collapse_is_prevented_by_the_gate_and_said_loudly(finished_run, forked_run):
    (forked_run / "config.yaml").unlink()
    done = Path(finished_run.path)
    overrides = ["tickets.exploration_fraction=1", "tickets.lr_high=3.0", "tickets.lr_low=3.0"]
    place = [f"storage={forked_run.parent}", f"name={forked_run.name}", "cluster.num_explorers=1"]
    config = load_config(done / "config.yaml", [*place, *overrides])
    result = train(config).result
    assert result["rejected"] == [[row["chain"], row["cycle"]] for row in result["tickets"] if not row["accepted"]]
    assert result["rejected"]
    floor = result["pretrained"]["validation_accuracy"] - config.superposition.gate_tolerance
    assert result["superposed"]["validation_accuracy"] >= floor - 1e-9
    if len(result["rejected"]) == len(result["tickets"]):
        assert any("the gate admitted no ticket" in warning for warning in result["warnings"])


def test_a_request_that_never_fits_is_refused_with_the_numbers(ray_address, tmp_path, tiny):
    config = load_config(None, [*tiny, f"storage={tmp_path}", "cluster.num_workers=5"])
    with pytest.raises(ValueError, match="cluster.num_workers must be at most 4, .* 4 CPU on 1 machines; got 5"):
        train(config)
    assert not (tmp_path / "digits/config.yaml").exists()  # the folder is free for the corrected recipe


@pytest.mark.slow
def test_a_failing_model_fails_the_run_with_its_own_message(ray_address, tmp_path, monkeypatch, tiny):
    (tmp_path / "failing_models.py").write_text(
        "from pathlib import Path\nfrom torch import nn\n"
        "class Failing(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.layer, self.calls = nn.Linear(64, 10), 0\n"
        "    def forward(self, x):\n"
        "        self.calls += 1\n        if self.calls > 9:\n            raise ArithmeticError('the planted fault')\n"
        "        return self.layer(x.flatten(1))\n"
        "def build():\n    assert Path('beside').exists(), 'not where the command was given'\n    return Failing()\n"
    )
    (tmp_path / "beside").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    overrides = ["model.name=failing_models:build", "model.initialization=default", "cluster.num_workers=1"]
    with pytest.raises(RuntimeError, match="Cannot finish pretraining: ArithmeticError: the planted fault"):
        train(load_config(None, [*tiny, *overrides, f"storage={tmp_path}"]))


def test_two_processes_do_not_work_on_one_run(ray_address, tmp_path, tiny):
    (tmp_path / "digits").mkdir()
    with (tmp_path / "digits/.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="Cannot lock the run in .*: another process works on it"):
            train(load_config(None, [*tiny, f"storage={tmp_path}"]))


@pytest.mark.slow
def test_diverged_chains_are_left_out_and_the_run_completes(finished_run, forked_run):
    (forked_run / "config.yaml").unlink()
    overrides = ["tickets.lr_high=1e30", f"storage={forked_run.parent}", f"name={forked_run.name}"]
    overrides += ["cluster.num_explorers=1"]
    result = train(load_config(Path(finished_run.path) / "config.yaml", overrides)).result
    diverged = Ticket.load(forked_run / "tickets/chain-000/cycle-001.arrow").state_dict()
    assert any(not tensor.isfinite().all() for tensor in diverged.values() if tensor.is_floating_point())
    assert len(result["rejected"]) == 6
    assert result["superposed"]["digest"] == result["pretrained"]["digest"]
    assert any("the gate admitted no ticket" in warning for warning in result["warnings"])
    json.loads((forked_run / "result.json").read_text(), parse_constant=pytest.fail)  # NaN is no JSON


@pytest.fixture(scope="module")
def odd_run(ray_address, tmp_path_factory):
    """A wide layer before a narrow one, at a density that leaves the narrow one nothing of its own."""
    storage = tmp_path_factory.mktemp("odd")
    network = ["model.options.widths=[900, 4]", "model.initialization=default"]
    method = ["method.distribution=uniform", "method.density=0.0003"]
    short = ["train.epochs=20", "tickets.cycle_rate=0.1", "tickets.cycle_epochs=1", "tickets.num_chains=2"]
    alone = ["cluster.num_workers=1", "cluster.num_explorers=1", f"storage={storage}", "name=odd"]
    return train(load_config(None, [*network, *method, *short, *alone]))


# All methods are trained, explored and superposed without Ray, in tests/training/test_loop.py.
@pytest.mark.slow
def test_another_network_completes_at_its_density_exactly(odd_run):
    size = 64 * 900 + 900 * 4 + 4 * 10
    assert [round(row["density"] * size) for row in odd_run.result["tickets"]] == [int(0.0003 * size)] * 4
    assert num_active(Ticket.load(Path(odd_run.path) / "superposed.arrow").masks) == int(0.0003 * size)


@pytest.mark.slow
def test_layers_kept_from_being_emptied_are_said_in_the_result(odd_run):
    assert any("would leave 7.weight empty" in warning for warning in odd_run.result["warnings"])


@ray.remote
class Holder:
    def holds(self):
        return True


@pytest.mark.slow
def test_pretraining_waits_aloud_for_cpus_that_others_hold_and_goes_on_once_they_are_free(
    ray_address, tmp_path, tiny, monkeypatch
):
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "2")
    monkeypatch.setattr(watchdog, "_SLOW_START_SECONDS", 1.0)
    holder, said = Holder.options(num_cpus=4).remote(), []
    ray.get(holder.holds.remote())
    patience = threading.Timer(60, ray.kill, [holder])  # nobody is told: it fails below, and does not wait for ever
    patience.start()

    def free_once_told(event):
        if isinstance(event, Waiting):
            said.append(event.text)
            ray.kill(holder)
        if isinstance(event, PhaseStarted) and event.name == "explore":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(load_config(None, [*tiny, "cluster.num_workers=1", f"storage={tmp_path}", "name=held"]), free_once_told)
    patience.cancel()
    assert said == [
        "waiting for pretraining to start: suitable machines may be in use, or it may still be loading data",
    ]
    assert (tmp_path / "held/pretrained.pt").is_file()


@pytest.fixture
def copied_run(finished_run, ray_address, tmp_path):
    """The whole folder of the finished run, to be damaged."""
    run = tmp_path / "undisturbed"
    shutil.copytree(finished_run.path, run)
    return run


def test_the_result_of_another_recipe_is_refused_by_its_file(copied_run):
    other = read(copied_run) | {"config_digest": "of another recipe"}
    (copied_run / "result.json").write_text(json.dumps(other))
    config = load_config(copied_run / "config.yaml", [f"storage={copied_run.parent}"])
    with pytest.raises(ValueError, match=r"result\.json: it belongs to another recipe .* Remove it"):
        train(config)


def test_a_missing_report_is_written_again_unless_the_recipe_wants_none(copied_run, finished_run):
    (copied_run / "report.html").unlink()
    config = load_config(copied_run / "config.yaml", [f"storage={copied_run.parent}"])
    assert train(replace(config, run=RunConfig(report="none"))).resumed
    assert not (copied_run / "report.html").exists()
    assert train(config).resumed
    assert "Did superposing pay?" in (copied_run / "report.html").read_text()


def test_the_result_is_written_and_reported_before_the_report(finished_run):
    events = finished_run.result["events"]
    written = [event for event in events if isinstance(event, ResultWritten)]
    assert [(event.path, event.digest) for event in written] == [
        (finished_run.path, finished_run.result["superposed"]["digest"])
    ]
    assert events[-1] is written[0]
    files = {name: (Path(finished_run.path) / name).stat().st_mtime_ns for name in ("result.json", "report.html")}
    assert files["result.json"] < files["report.html"]


@pytest.mark.slow
def test_files_that_are_missing_or_cut_off_are_made_again_with_equal_digests(copied_run, finished_run):
    (copied_run / "superposed.arrow").unlink()
    (copied_run / "report.html").unlink()
    (copied_run / "tickets/chain-001/cycle-001.arrow").unlink()
    (copied_run / "result.json").write_bytes((copied_run / "result.json").read_bytes()[:-40])
    config = load_config(copied_run / "config.yaml", [f"storage={copied_run.parent}", "cluster.num_explorers=1"])
    assert not train(config).resumed
    expected = read(finished_run.path)
    assert read(copied_run)["superposed"]["digest"] == expected["superposed"]["digest"]
    assert [row["digest"] for row in read(copied_run)["tickets"]] == [row["digest"] for row in expected["tickets"]]
    assert Ticket.load(copied_run / "superposed.arrow").digest == expected["superposed"]["digest"]
    assert (copied_run / "report.html").is_file()
    assert train(config).resumed


@pytest.mark.parametrize("fault", ["cut off", "another's", "missing"])
@pytest.mark.parametrize("file", ["tickets/chain-001/cycle-000.arrow", "pretrained.pt", "timeline.json"])
def test_a_run_with_a_file_that_is_not_its_own_is_not_done(copied_run, file, fault):
    config = load_config(copied_run / "config.yaml", [f"storage={copied_run.parent}"])
    assert finished_result(config) is not None
    path = copied_run / file
    if fault == "missing":
        path.unlink()
    elif fault == "cut off":
        path.write_bytes(path.read_bytes()[:100])
    else:
        path.write_bytes((copied_run / "tickets/chain-000/cycle-000.arrow").read_bytes())
    # The timeline is a record that the report shows as far as it can be read.
    assert (finished_result(config) is None) == (file != "timeline.json" or fault == "missing")


# With three ranks, on whose number the order of sums depends: test_faults.py.
@pytest.mark.slow
def test_a_killed_rank_costs_time_but_no_bit(finished_run, tmp_path, tiny):
    epochs = []

    def kill_once(event):
        if isinstance(event, EpochEnded):
            if len(epochs) == 11:
                os.kill(actors("RayTrainWorker")[-1], signal.SIGKILL)
            epochs.append(event.epoch)
        if isinstance(event, PhaseStarted) and event.name == "explore":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(load_config(None, [*tiny, f"storage={tmp_path}", "name=killed"]), kill_once)
    killed, whole = (
        read_state((run / "pretrained.pt").read_bytes()) for run in (tmp_path / "killed", Path(finished_run.path))
    )
    assert all(torch.equal(tensor, killed["model"][name]) for name, tensor in whole["model"].items())
    assert sorted(set(epochs)) == list(range(1, 37))
    assert len(epochs) > 36  # some were trained again
    assert epochs.count(1) == 1  # but not from the start
