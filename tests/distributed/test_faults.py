"""The fault matrix: whatever goes wrong, a run ends in the bits of the undisturbed one."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray
IN_DEFAULT_RUN = "node_lost_in_exploration"


@pytest.fixture(scope="module")
def seen(request, finished_run, tmp_path_factory):
    """What each scenario of faults.py saw, by its name; those of the selected tests run on one cluster of raylets."""
    selected = (item for item in request.session.items if item.path == request.path)
    names = {item.callspec.params["scenario"] for item in selected}
    if names != {IN_DEFAULT_RUN}:
        names |= {"undisturbed", "undisturbed_pretraining"}
    # Short: a Unix socket's path has at most 107 bytes.
    temp_dir = tempfile.mkdtemp(prefix="st-")
    (Path(temp_dir) / "ray").mkdir()
    script = Path(__file__).parent / "faults.py"
    try:
        done = subprocess.run(
            [sys.executable, str(script), str(tmp_path_factory.mktemp("faults")), temp_dir, finished_run.path, *names],
            capture_output=True,
            text=True,
            timeout=2400,
            # As users run it: other tests do without what waits for machines to be taken away.
            env={**os.environ, "RAY_TMPDIR": temp_dir, "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1"},
            check=False,
        )
    finally:
        shutil.rmtree(temp_dir, ignore_errors=True)
    assert done.returncode == 0, done.stdout + done.stderr
    # Ray's own lines about lost nodes stand between them.
    lines = (line.partition("SCENARIO ")[2] for line in done.stdout.splitlines())
    return {found.pop("name"): found for line in lines if line for found in [json.loads(line)]}


@pytest.fixture
def scenario(seen, request):
    found = seen[request.param]
    if "skipped" in found:
        pytest.skip(found["skipped"])
    assert "error" not in found, found
    return found


def of(*names):
    rows = [pytest.param(name, marks=[] if name == IN_DEFAULT_RUN else pytest.mark.slow) for name in names]
    return pytest.mark.parametrize("scenario", rows, indirect=True)


@of(
    "node_lost_while_merging",
    "preemption_with_notice",
    "driver_killed_and_started_on_another_machines_view",
    "full_disk",
    "explorers_spread",
)
def test_a_fault_costs_time_but_no_bit(scenario, seen):
    assert scenario["digest"] == seen["undisturbed"]["digest"]


@of("node_lost_in_pretraining")
def test_a_node_lost_in_pretraining_costs_no_bit_of_its_final_state(scenario, seen):
    assert scenario["digest"] == seen["undisturbed_pretraining"]["digest"]


@of("node_lost_in_exploration", "object_store_out_of_reach")
def test_a_fault_costs_no_bit_of_the_finished_run(scenario, finished_run):
    assert scenario["digest"] == finished_run.result["superposed"]["digest"]


@of("node_lost_in_pretraining")
def test_pretraining_goes_on_from_its_last_checkpoint(scenario):
    assert scenario["went_on_with"] in (11, 21)  # after a checkpoint, one of which is made every 10 epochs
    assert scenario["reached"] - scenario["went_on_with"] < 10


@of("node_lost_in_exploration")
def test_a_node_that_joins_late_explores(scenario):
    assert scenario["tickets_of_the_late_node"] >= 1


@of("node_lost_while_merging")
def test_the_superposer_is_started_anew_on_another_machine(scenario):
    assert scenario["superposers"] == 2


@of("preemption_with_notice")
def test_a_machine_under_notice_finishes_its_cycle_and_begins_no_other(scenario):
    assert 1 <= scenario["there"] < 8
    assert scenario["began_late"] == 0
    assert scenario["tickets"] == scenario["distinct"] == 8  # no cycle was lost and run again


@of("driver_killed_and_started_on_another_machines_view")
def test_another_machine_takes_the_tickets_over(scenario):
    assert scenario["resumed"] >= 1


@of("object_store_out_of_reach")
def test_the_storage_was_silent_for_20_seconds_in_pretraining_and_in_exploration(scenario):
    assert scenario["silences"] == 2
    assert scenario["seconds"] >= 40


@of("machine_with_a_folder_of_its_own")
def test_a_machine_that_does_not_see_the_storage_is_refused_whenever_it_comes(scenario):
    assert "storage must be a folder that all machines share" in scenario["late"]
    assert scenario["late"].startswith("RuntimeError")
    assert scenario["early"].startswith("ValueError: storage must be a folder that all machines share")
    assert 1 <= scenario["tickets"] < 120


@of("full_disk")
def test_a_full_disk_is_said_and_no_ticket_is_lost(scenario):
    assert "No space left on device" in scenario["message"]
    # A ticket counts once its chain's state lies beside it; a cycle that found no room for that is run again.
    assert scenario["kept"] >= scenario["resumed"] >= scenario["made"] >= 1


@of("elastic_pretraining")
def test_elastic_ranks_go_on_with_the_machines_that_are_left(scenario):
    assert scenario["density"] == pytest.approx(0.1, abs=1e-4)
    assert scenario["alive"] == 1


@of("head_kept_free")
def test_workers_keep_off_the_head_when_asked(scenario):
    assert not scenario["head_used"]
    assert scenario["places"] == 2


@of("explorers_spread")
def test_explorers_spread_and_of_four_machines_one_is_lost(scenario):
    assert scenario["machines"] == 2
    assert scenario["alive_before"] == 4
    assert scenario["tickets"] >= 8


@of("fractions_of_a_gpu")
def test_four_explorers_share_a_gpu_and_a_fifth_finds_no_room(scenario):
    assert scenario["places"] == scenario["started"] == 4


@of("search_on_two_machines")
def test_a_search_on_two_machines_shares_pretraining_and_tickets(scenario):
    assert scenario["states"] == ["complete"] * 4
    assert (scenario["pretrainings"], scenario["cycles"]) == (1, 2 * 2 * 2)  # two rates, two chains of two cycles
