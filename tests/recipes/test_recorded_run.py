import pytest
import torch

from suptickets_ray import Ticket, load_config
from suptickets_ray.recipes.load import config_digest
from suptickets_ray.recipes.recorded_run import RecordedRun, pretrained_ticket
from suptickets_ray.tickets.run_folder import RESULT_FILE, TIMELINE_FILE
from suptickets_ray.training.data import load_data
from suptickets_ray.training.loop import build_learner

CONFIG = load_config(None, ["model.options.widths=[16]", "data.num_train_examples=60", "name=small"])


@pytest.fixture
def run(tmp_path):
    return RecordedRun(str(tmp_path / "small"))


def test_a_folder_that_does_not_exist_yet_has_nothing(run):
    assert (run.is_begun, run.is_pretrained, run.is_superposed, run.records_data) == (False, False, False, False)
    assert (run.result, run.timeline, run.tickets.list()) == (None, None, [])


def test_what_is_written_is_read_by_another_process(run):
    run.begin(CONFIG, "0a")
    run.write_result({"state": "complete"})
    again = RecordedRun(run.path)
    assert again.config == CONFIG
    assert again.result == {"state": "complete"}
    assert (again.is_begun, again.records_data) == (True, True)


def test_the_pretrained_network_names_its_run(run):
    learner = build_learner(CONFIG, load_data(CONFIG.data), torch.device("cpu"))
    run.begin(CONFIG, "0a")
    run.write_pretrained_state(learner.to_bytes(epoch=1))
    ticket = run.pretrained()
    assert ticket.digest == learner.ticket({}).digest
    assert ticket.provenance == {"run": "small", "config_digest": config_digest(CONFIG)}
    more = pretrained_ticket(CONFIG, run.pretrained_state(), versions={"torch": "2"})
    assert more.provenance == {**ticket.provenance, "versions": {"torch": "2"}}


def test_the_sup_ticket_is_read_as_it_was_written(run):
    ticket = Ticket({"weight": torch.eye(2)}, {"weight": torch.eye(2).bool()}, {})
    run.write_superposed(ticket)
    assert run.superposed().digest == ticket.digest


@pytest.mark.parametrize("content", [b'{"state": ', b"[1]", b"[" * 100_000])
def test_a_damaged_result_is_a_value_error(run, content):
    run.store.write(RESULT_FILE, content)
    with pytest.raises(ValueError):
        _ = run.result


@pytest.mark.parametrize("content", [b'{"starts": 3', b"[1]", b'{"config_digest": "of another recipe"}'])
def test_a_damaged_timeline_and_one_of_another_recipe_are_empty(run, content):
    run.begin(CONFIG, "0a")
    run.store.write(TIMELINE_FILE, content)
    assert run.timeline == {}
