import pytest
import torch

from suptickets_ray import Ticket, load_config
from suptickets_ray.superposition.merger import Merger
from suptickets_ray.training.checkpoint import restore
from suptickets_ray.training.data import load_data
from suptickets_ray.training.evaluation import measure_network, predict
from suptickets_ray.training.loop import build_learner
from suptickets_ray.training.models import build_model

CPU = torch.device("cpu")
SMALL = ["model.options.widths=[16]", "data.num_train_examples=60"]


def merger_of(overrides, validates):
    """Returns a merger of nets with their own weights and masks, and the reports of the merges."""
    config = load_config(None, [*SMALL, *overrides])
    splits = load_data(config.data)
    nets = []
    for seed in range(len(validates) + 1):
        own = load_config(None, [*SMALL, *overrides, f"seed={seed}"])
        nets.append(build_learner(own, splits, CPU).ticket({"seed": seed}))
    merger = Merger(config, splits, nets[0], CPU)
    rows = [
        merger.merge(net, chain, 0, validate=validate)
        for chain, (net, validate) in enumerate(zip(nets[1:], validates, strict=True))
    ]
    return merger, rows


@pytest.mark.parametrize("method", ["cia", "caa", "cima"])
@pytest.mark.parametrize("prune", ["every_ticket", "end"])
def test_merges_without_validation_give_equal_bits(method, prune):
    rule = [f"superposition.method={method}", f"superposition.prune_at={prune}", "superposition.gate_tolerance=none"]
    validated, rows = merger_of(rule, [True, True, True])
    partly, bare = merger_of(rule, [False, True, False])
    assert partly.superposed.digest == validated.superposed.digest
    assert partly.superposed.provenance == validated.superposed.provenance
    assert ["validation_accuracy" in row for row in bare] == [False, True, False]
    assert all(row["accepted"] for row in rows + bare)
    assert partly.evaluate([])["superposed"] == validated.evaluate([])["superposed"]


@pytest.mark.parametrize("prune", ["every_ticket", "end"])
def test_the_gate_validates_every_merge(prune):
    rule = [f"superposition.prune_at={prune}", "superposition.gate_tolerance=0.5"]
    merger, rows = merger_of(rule, [False, False, False])
    assert merger.validates_every_merge
    assert all("validation_accuracy" in row for row in rows)


def test_validation_counts_the_examples_of_the_recalibration():
    digits = load_config(None)
    assert [merger_of(rule, [])[0].validation_examples - 297 for rule in ([], ["superposition.batchnorm=average"])] == [
        60,
        0,
    ]
    assert merger_of(["superposition.recalibration_examples=20"], [])[0].validation_examples == 297 + 20
    assert digits.superposition.recalibration_examples is None


def test_a_gain_comes_with_its_error_over_the_examples_of_the_test_set():
    merger, _ = merger_of(["superposition.gate_tolerance=none"], [])
    config = load_config(None, SMALL)
    splits = load_data(config.data)
    tickets = [build_learner(load_config(None, [*SMALL, f"seed={s}"]), splits, CPU).ticket({}) for s in (1, 2)]
    rows = [merger.merge(ticket, chain, 0) for chain, ticket in enumerate(tickets)]
    found, final = merger.evaluate(zip(rows, tickets, strict=True)), merger.superposed

    def logits(ticket):
        model = build_model(config.model, splits.sample_shape, splits.num_classes)
        restore(model, ticket.state_dict())
        return predict(model, splits.test)

    def right(ticket):
        return (logits(ticket).argmax(1) == splits.test.all_labels()).numpy() * 1.0

    def error(differences):
        return pytest.approx(differences.std(ddof=1) / len(differences) ** 0.5)

    differences = [right(final) - right(ticket) for ticket in tickets]
    for row, values in zip(found["tickets"], differences, strict=True):
        assert row["gain_error"] == error(values)
        assert row["only_one_right"] == [(values > 0).sum(), (values < 0).sum()]
    assert found["mean_ticket"]["gain_error"] == error((differences[0] + differences[1]) / 2)
    assert found["pretrained"]["gain_error"] == error(right(final) - right(merger._pretrained))
    together = sum(logits(ticket).softmax(1) for ticket in tickets).argmax(1) == splits.test.all_labels()
    assert found["ensemble"]["gain_error"] == error(right(final) - together.numpy())
    assert "gain_error" not in found["superposed"]


def test_the_sup_ticket_says_what_it_is_made_of():
    merger, rows = merger_of(["superposition.gate_tolerance=none", "seed=5"], [True, True, True])
    provenance = merger.superposed.provenance
    assert provenance["accepted"] == [[0, 0], [1, 0], [2, 0]]
    assert (provenance["num_tickets"], provenance["seed"]) == (4, 5)
    assert provenance["superposition"]["method"] == "cia"
    assert provenance["parent"] == merger.evaluate([])["pretrained"]["digest"]
    gated, rows = merger_of(["superposition.gate_tolerance=0"], [True, True, True])
    accepted = [[row["chain"], row["cycle"]] for row in rows if row["accepted"]]
    assert gated.superposed.provenance.get("accepted", []) == accepted


@pytest.mark.parametrize("tolerance", ["none", "0.5"])
def test_a_diverged_ticket_is_left_out_whatever_the_gate(tolerance):
    merger, _ = merger_of([f"superposition.gate_tolerance={tolerance}"], [True])
    before = merger.superposed.digest
    state = merger.superposed.state_dict()
    name = next(iter(state))
    for bad in (float("nan"), float("inf")):
        state[name].view(-1)[0] = bad
        ticket = Ticket(state, {}, {})
        assert merger.merge(ticket, 1, 0) == {"chain": 1, "cycle": 0, "accepted": False}
        assert merger.superposed.digest == before


def test_a_pretrained_network_that_has_diverged_is_never_superposed():
    config = load_config(None, SMALL)
    with pytest.raises(RuntimeError, match="the pretrained network has diverged"):
        Merger(config, load_data(config.data), Ticket({"w": torch.tensor([float("nan")])}, {}, {}), CPU)


@pytest.mark.parametrize("is_measured", [False, True])
def test_every_network_is_evaluated_once_per_split(monkeypatch, is_measured):
    counted = []

    def counting(model, examples, task, **options):
        counted.append(len(examples))
        return measure_network(model, examples, task, **options)

    monkeypatch.setattr("suptickets_ray.superposition.network_meter.measure_network", counting)
    config = load_config(None, [*SMALL, "superposition.gate_tolerance=1"])
    splits = load_data(config.data)
    nets = [build_learner(load_config(None, [*SMALL, f"seed={s}"]), splits, CPU).ticket({}) for s in range(3)]
    sizes = {split: len(getattr(splits, split)) for split in ("validation", "test")}
    merger = Merger(config, splits, nets[0], CPU)
    rows = []
    for chain, net in enumerate(nets[1:]):
        model = build_model(config.model, splits.sample_shape, splits.num_classes)
        restore(model, net.state_dict())
        measured = {split: measure_network(model, getattr(splits, split), keep_predictions=True) for split in sizes}
        merger.score_ticket(net, chain, 0, measured if is_measured else None)
        rows.append(merger.merge(net, chain, 0))
        merger.validation_scores()
    merger.score_pretrained()
    found = merger.evaluate(zip(rows, nets[1:], strict=True))
    tickets = 0 if is_measured else 2
    # Pretrained network, merges and unpruned mean on validation; sup-ticket instead of the merges on test.
    assert counted.count(sizes["validation"]) == 1 + 2 + 1 + tickets
    assert counted.count(sizes["test"]) == 1 + 1 + 1 + tickets
    assert found["tickets"][1]["accuracy"] == merger.score(nets[2], "test")["accuracy"]
