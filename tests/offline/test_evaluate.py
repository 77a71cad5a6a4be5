"""Scores by hand, and `evaluate` on tickets in the folder of a run that was never trained."""

import json
import math

import boto3
import pytest
import torch

from suptickets_ray import load_config
from suptickets_ray.offline.evaluate import (
    calibration,
    evaluate_classes,
    evaluate_logits,
    evaluate_stored,
)
from suptickets_ray.offline.export import export_stored
from suptickets_ray.offline.stored_ticket import build_network, read_ticket, recipe_of, split_path
from suptickets_ray.recipes.load import to_yaml
from suptickets_ray.search.keys import exploration_key
from suptickets_ray.search.points import config_of
from suptickets_ray.tickets.store import RunStore
from suptickets_ray.training.data import load_data
from suptickets_ray.training.evaluation import evaluate_ticket
from suptickets_ray.training.loop import build_learner

SMALL = ["model.options.widths=[16]", "data.num_train_examples=60"]
CPU = torch.device("cpu")


def ticket_of(config):
    return build_learner(config, load_data(config.data), CPU).ticket({"run": config.name})


@pytest.fixture(scope="module")
def config():
    return load_config(None, SMALL)


@pytest.fixture(scope="module")
def ticket(config):
    return ticket_of(config)


@pytest.fixture
def run(tmp_path, config, ticket):
    """A folder with what `suptickets train` leaves: the recipe, a ticket and the sup-ticket."""
    store = RunStore(str(tmp_path / "run"))
    store.write("config.yaml", to_yaml(config).encode())
    for name in ("superposed.arrow", "tickets/chain-000/cycle-000.arrow"):
        store.write(name, ticket.to_bytes())
    return tmp_path / "run"


def logits_of(probabilities):
    return torch.tensor(probabilities, dtype=torch.float64).log()


def test_the_calibration_error_by_hand():
    # Two of four right at a confidence of 0.9, one of one at 0.6: 4/5 * |0.5 - 0.9| + 1/5 * |1 - 0.6|.
    logits = logits_of([[0.9, 0.1]] * 4 + [[0.4, 0.6]])
    error, bins = calibration(logits, torch.tensor([0, 0, 1, 1, 1]))
    assert error == pytest.approx(0.4)
    filled = [row for row in bins if row["num_examples"]]
    assert [(row["num_examples"], row["accuracy"]) for row in filled] == [(1, 1.0), (4, 0.5)]
    assert [row["confidence"] for row in filled] == pytest.approx([0.6, 0.9])
    assert len(bins) == 15


def test_a_confidence_on_the_end_of_a_bin_belongs_to_the_bin_below():
    _, bins = calibration(logits_of([[0.5, 0.5], [0.75, 0.25]]), torch.tensor([0, 0]), num_bins=4)
    assert [row["num_examples"] for row in bins] == [0, 1, 1, 0]


def test_a_network_that_is_sure_and_right_has_no_calibration_error():
    assert calibration(torch.eye(3) * 100, torch.arange(3))[0] == pytest.approx(0)


def test_the_classes_by_hand():
    rows = evaluate_classes(torch.tensor([0, 0, 1, 0]), torch.tensor([0, 0, 1, 1]), 3)
    assert rows == [
        {"class": 0, "num_examples": 2, "accuracy": 1.0, "precision": 2 / 3},
        {"class": 1, "num_examples": 2, "accuracy": 0.5, "precision": 1.0},
        {"class": 2, "num_examples": 0, "accuracy": None, "precision": None},
    ]


def test_top_5_counts_labels_among_the_five_likeliest():
    logits = -torch.arange(7.0).expand(7, 7)
    assert evaluate_logits(logits, torch.arange(7))["top5_accuracy"] == pytest.approx(5 / 7)
    assert evaluate_logits(logits, torch.arange(7))["accuracy"] == pytest.approx(1 / 7)


@pytest.mark.parametrize(("num_classes", "there"), [(5, False), (6, True)])
def test_top_5_is_there_for_more_than_5_classes_alone(num_classes, there):
    assert ("top5_accuracy" in evaluate_logits(torch.eye(num_classes), torch.arange(num_classes))) is there


def test_a_network_that_has_diverged_gives_valid_json():
    assessed = evaluate_logits(torch.full((4, 3), math.nan), torch.tensor([0, 1, 2, 0]))
    assert assessed["loss"] is assessed["calibration_error"] is None
    assert json.loads(json.dumps(assessed, allow_nan=False))["num_examples"] == 4


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_every_split_is_scored_as_the_run_scores_it(run, config, ticket, split):
    report = evaluate_stored(str(run / "superposed.arrow"), split)
    expected = evaluate_ticket(config, load_data(config.data), ticket, split)
    assert {key: report[key] for key in expected} == expected
    assert (report["split"], report["digest"], report["density"]) == (split, ticket.digest, ticket.density)
    assert sum(row["num_examples"] for row in report["classes"]) == report["num_examples"]
    recalled = sum(row["accuracy"] * row["num_examples"] for row in report["classes"])
    assert recalled / report["num_examples"] == pytest.approx(report["accuracy"])


def test_a_ticket_of_a_chain_is_evaluated_with_its_runs_recipe(run, config):
    path = str(run / "tickets/chain-000/cycle-000.arrow")
    assert recipe_of(path) == config
    assert evaluate_stored(path)["accuracy"] == evaluate_stored(str(run / "superposed.arrow"))["accuracy"]


def test_overrides_of_the_data_apply(run):
    path = str(run / "superposed.arrow")
    assert evaluate_stored(path, "train", overrides=["data.num_train_examples=50"])["num_examples"] == 50
    with pytest.raises(ValueError, match=r"must be a setting of the data.*got 'train.lr=1'"):
        evaluate_stored(path, overrides=["train.lr=1"])


def test_a_named_recipe_stands_in_where_there_is_none(run, tmp_path, ticket):
    (tmp_path / "elsewhere").mkdir()
    lonely = tmp_path / "elsewhere/a.arrow"
    ticket.save(lonely)
    with pytest.raises(ValueError, match=r"no folder above .*Pass the recipe with --recipe"):
        evaluate_stored(str(lonely))
    assert evaluate_stored(str(lonely), recipe=str(run / "config.yaml"))["num_examples"] == 1000


def test_a_ticket_that_is_not_there_is_named_and_the_sup_ticket_suggested(run):
    with pytest.raises(ValueError, match=r"must be an existing Arrow file; got '.*none.arrow'"):
        read_ticket(str(run / "none.arrow"))
    with pytest.raises(ValueError, match=r"Did you mean '.*/run/superposed.arrow'\?"):
        read_ticket(str(run))


def test_a_damaged_ticket_is_named(run):
    path = run / "superposed.arrow"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"run/superposed.arrow: the ticket must be a whole Arrow file"):
        evaluate_stored(str(path))


def test_a_ticket_of_another_network_is_refused_with_both_shapes(run, config, ticket):
    other = load_config(None, ["model.options.widths=[8]"])
    with pytest.raises(ValueError, match=r"'1.weight' is \(16, 64\) in the ticket and \(8, 64\) in the network"):
        build_network(other, load_data(config.data), ticket)


def test_a_split_that_does_not_exist_is_refused_before_anything_is_read():
    with pytest.raises(ValueError, match="unknown split 'tset'; did you mean 'test'"):
        evaluate_stored("nowhere.arrow", "tset")


def test_tickets_of_a_search_have_the_recipe_of_their_trial(tmp_path):
    base = load_config(None, [*SMALL, "search.num_seeds=2"])
    point = {"model.options.widths": [8]}
    trial = config_of(base, point, 1)
    store = RunStore(str(tmp_path))
    store.write("config.yaml", to_yaml(base).encode())
    store.write("points/abc/seed-001.json", json.dumps({"point": point, "finished": 1.0}).encode())
    assert recipe_of(str(tmp_path / "points/abc/seed-001.arrow")) == trial
    explored = tmp_path / "explorations" / exploration_key(trial) / "tickets/chain-000/cycle-000.arrow"
    assert recipe_of(str(explored)).model == trial.model
    own = tmp_path / "explorations" / exploration_key(base) / "tickets/chain-000/cycle-000.arrow"
    assert recipe_of(str(own)) == base
    with pytest.raises(ValueError, match="no finished trial uses this ticket"):
        recipe_of(str(tmp_path / "explorations/other/tickets/chain-000/cycle-000.arrow"))


def test_the_query_of_a_uri_stays_with_the_folder():
    uri = "s3://bucket/run/tickets/a.arrow?region=us-east-1"
    assert split_path(uri) == ("s3://bucket/run/tickets?region=us-east-1", "a.arrow")


def test_a_ticket_in_an_object_store_is_evaluated_with_the_recipe_there(run, tmp_path, monkeypatch, s3_server):
    query = f"endpoint_override={s3_server}&scheme=http&region=us-east-1"
    client = boto3.client("s3", endpoint_url=f"http://{s3_server}", region_name="us-east-1")
    client.create_bucket(Bucket="evaluated")
    store = RunStore(f"s3://evaluated/runs/a?{query}")
    for name in ("config.yaml", "tickets/chain-000/cycle-000.arrow"):
        store.write(name, (run / name).read_bytes())
    uri = f"s3://evaluated/runs/a/tickets/chain-000/cycle-000.arrow?{query}"
    local = evaluate_stored(str(run / "tickets/chain-000/cycle-000.arrow"))
    assert evaluate_stored(uri) == local | {"ticket": uri}
    monkeypatch.chdir(tmp_path)
    assert export_stored(uri, "arrow").path == str(tmp_path / "cycle-000.arrow")
    export_stored(uri, "state_dict", f"s3://evaluated/exports/a.pt?{query}")
    assert RunStore(f"s3://evaluated/exports?{query}").exists("a.pt")
    with pytest.raises(ValueError, match=r"Did you mean 's3://evaluated/runs/a/tickets/.*\?endpoint_override"):
        store.write("tickets/superposed.arrow", b"any")
        read_ticket(f"s3://evaluated/runs/a/tickets?{query}")


def test_data_that_are_not_those_of_the_run_are_refused(run):
    ticket = str(run / "superposed.arrow")
    own = evaluate_stored(ticket)
    (run / "data.sha256").write_text("another")
    with pytest.raises(ValueError, match="the data must be those that the work in .* was begun with"):
        evaluate_stored(ticket)
    # Another data set is meant to be another one.
    assert evaluate_stored(ticket, overrides=["data.split_seed=1"])["digest"] == own["digest"]
