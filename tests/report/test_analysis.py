"""The numbers behind a run's page: masks, lines between networks, lanes of time, and the figures of them."""

import math
import re

import pytest
import torch
from torch import nn

from suptickets_ray import Ticket, load_config
from suptickets_ray.report.analysis import (
    Curve,
    chance_overlap,
    curve,
    evenly_spaced,
    layer_densities,
    line_pairs,
    overlap_matrix,
    sample_data,
)
from suptickets_ray.report.figures import _COLORS, Series, line_figure
from suptickets_ray.report.gantt import lanes_of
from suptickets_ray.report.heat_map import heat_map
from suptickets_ray.sparse.statistics import mask_distance
from suptickets_ray.training.data import load_data
from suptickets_ray.training.evaluation import evaluate, recalibrate


def ticket_of(*masks):
    """A ticket with a layer for each mask, its active weights all one."""
    tensors = [torch.tensor(mask) for mask in masks]
    state = {f"{index}.weight": mask.float() for index, mask in enumerate(tensors)}
    return Ticket(state, {name: state[name].bool() for name in state}, {})


# Masks


def test_the_overlap_is_what_both_have_over_what_either_has():
    tickets = [ticket_of([1, 1, 0, 0]), ticket_of([0, 1, 1, 0]), ticket_of([0, 0, 0, 1])]
    assert overlap_matrix(tickets) == [[1, 1 / 3, 0], [1 / 3, 1, 0], [0, 0, 1]]


def test_the_overlap_counts_the_positions_of_all_layers_together_and_is_one_less_the_distance():
    first = ticket_of([1, 0, 1], [[1, 1], [0, 1]])
    second = ticket_of([1, 1, 0], [[1, 0], [0, 1]])
    found = overlap_matrix([first, second])[0][1]
    assert found == 3 / 6
    assert found == pytest.approx(1 - mask_distance(first.masks, second.masks))


def test_tickets_of_another_model_are_refused():
    with pytest.raises(ValueError, match="their masked layers differ"):
        overlap_matrix([ticket_of([1, 0]), ticket_of([1, 0, 1])])


def test_the_overlap_by_chance_follows_from_the_layers_densities():
    half, quarter = ticket_of([1, 1, 0, 0]), ticket_of([1, 0, 0, 0])
    assert chance_overlap(half, quarter) == pytest.approx((0.5 * 0.25) / (0.5 + 0.25 - 0.5 * 0.25))


def test_layer_densities_are_shares_of_active_weights():
    assert layer_densities(ticket_of([1, 0, 0, 0], [[1, 1], [1, 0]])) == {"0.weight": 0.25, "1.weight": 0.75}


def test_of_many_tickets_some_are_chosen_evenly_with_the_first_and_the_last():
    assert evenly_spaced(range(5), 16) == [0, 1, 2, 3, 4]
    assert evenly_spaced(range(31), 16) == list(range(0, 31, 2))


# Lines


def test_lines_run_along_a_chain_and_from_chain_to_chain():
    keys = [(chain, cycle) for chain in range(3) for cycle in range(2)]
    assert line_pairs(keys) == [((0, 0), (0, 1)), ((0, 0), (1, 0)), ((0, 0), (2, 0))]


def test_one_chain_has_a_line_from_its_first_ticket_to_its_last():
    assert line_pairs([(0, 0), (0, 1), (0, 2)]) == [((0, 0), (0, 1)), ((0, 0), (0, 2))]


def test_a_single_ticket_has_no_line():
    assert line_pairs([(0, 0)]) == []
    assert line_pairs([]) == []


def test_the_barrier_is_measured_from_the_line_between_the_ends():
    found = Curve("a", "b", [0.0, 0.5, 1.0], [1.0, 2.0, 2.0], [0.9, 0.7, 0.8])
    assert found.barrier == 0.5
    assert found.score_lost == pytest.approx(0.15)


def test_there_is_no_barrier_where_the_way_is_better_than_its_ends():
    found = Curve("a", "b", [0.0, 0.5, 1.0], [1.0, 0.5, 1.0], [0.8, 0.9, 0.8])
    assert (found.barrier, found.score_lost) == (0, 0)


def test_a_diverged_network_has_a_barrier_that_is_no_number():
    assert math.isnan(Curve("a", "b", [0.0, 1.0], [1.0, math.nan], [0.8, 0.1]).barrier)


@pytest.fixture
def splits():
    config = load_config(None)
    return sample_data(load_data(config.data), config)


def test_the_ends_of_a_curve_are_what_the_tickets_are_worth(splits):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))
    tickets = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model[1].reset_parameters()
        model[4].reset_parameters()
        recalibrate(model, splits, seed)
        tickets.append((Ticket(model.state_dict(), {}, {}), evaluate(model, splits.validation)["loss"]))
    config = load_config(None, ["superposition.batchnorm=average"])
    found = curve(model, ("a", tickets[0][0]), ("b", tickets[1][0]), config, splits)
    assert (found.losses[0], found.losses[-1]) == (tickets[0][1], tickets[1][1])
    assert found.alphas == [index / 6 for index in range(7)]


def test_batchnorm_statistics_are_recalibrated_on_the_way_if_the_recipe_says_so(splits):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Linear(16, 10))
    stale = Ticket(model.state_dict(), {}, {})  # as made: mean 0 and variance 1
    ends = ("a", stale), ("b", stale)
    recalibrated = curve(model, *ends, load_config(None), splits).losses
    averaged = curve(model, *ends, load_config(None, ["superposition.batchnorm=average"]), splits).losses
    assert recalibrated[0] != averaged[0]
    assert recalibrated == pytest.approx([recalibrated[0]] * 7)  # both ends are the same network


def test_a_curve_can_be_given_up(splits):
    ticket = Ticket(nn.Linear(2, 2).state_dict(), {}, {})
    assert curve(nn.Linear(2, 2), ("a", ticket), ("b", ticket), load_config(None), splits, lambda: True) is None


def test_lines_see_a_limited_number_of_examples(monkeypatch):
    monkeypatch.setattr("suptickets_ray.report.analysis.MAX_EXAMPLES", 50)
    config = load_config(None)
    splits = load_data(config.data)
    few = sample_data(splits, config)
    assert (len(few.train), len(few.validation)) == (50, 50)
    last = few.validation.batch(torch.tensor([0, 49]))[0]
    assert torch.equal(last, splits.validation.batch(torch.tensor([0, len(splits.validation) - 1]))[0])


# The timeline


def start(began, ended):
    return {"began": began, "ended": ended}


def cycle(chain, process, began, ended, start=0):
    where = {"chain": chain, "cycle": 0, "node": "abcdef99", "process": process}
    return {"kind": "cycle", **where, "began": began, "ended": ended, "start": start}


def test_every_process_has_a_lane_and_cycles_at_once_are_counted():
    spans = [
        {"kind": "pretrain", "began": 10.0, "ended": 20.0, "start": 0},
        cycle(0, 7, 20.0, 30.0),
        cycle(1, 8, 20.0, 25.0),
        cycle(2, 8, 25.0, 30.0),
        {"kind": "superpose", "began": 30.0, "ended": 31.0, "start": 0},
    ]
    found = lanes_of({"starts": [start(10.0, 32.0)], "spans": spans})
    assert [lane.name for lane in found.lanes] == [
        "pretraining", "explorer 1 (abcdef:7)", "explorer 2 (abcdef:8)", "superposer",
    ]  # fmt: skip
    assert [(bar.began, bar.seconds, bar.text) for bar in found.lanes[2].bars] == [(10, 5, "1.0"), (15, 5, "2.0")]
    assert (found.num_cycles, found.max_concurrent, found.mean_concurrent, found.seconds) == (3, 2, 2.0, 22.0)


def test_waiting_for_ray_and_for_the_explorers_has_its_own_lane():
    spans = [
        {"kind": "starting", "began": 0.0, "ended": 4.0, "start": 0},
        {"kind": "pretrain", "began": 4.0, "ended": 10.0, "start": 0},
        {"kind": "explore", "began": 10.0, "ended": 30.0, "start": 0},
        cycle(0, 7, 13.0, 30.0),
    ]
    found = lanes_of({"starts": [start(0.0, 31.0)], "spans": spans})
    assert found.lanes[0].name == "starting"
    assert [(bar.began, bar.seconds) for bar in found.lanes[0].bars] == [(0.0, 4.0), (10.0, 3.0)]


def test_pauses_between_starts_are_cut_out_and_restarts_are_marked():
    spans = [cycle(0, 7, 0.0, 10.0), cycle(1, 9, 1001.0, 1005.0, start=1)]
    found = lanes_of({"starts": [start(0.0, 8.0), start(1000.0, 1006.0)], "spans": spans})
    assert found.restarts == [10.0]  # the first start was seen to last until its cycle ended
    assert [lane.bars[0].began for lane in found.lanes] == [0.0, 11.0]
    assert found.seconds == 16.0


def test_a_clock_that_goes_after_does_not_show_a_cycle_before_its_start():
    found = lanes_of({"starts": [start(0.0, 8.0)], "spans": [cycle(0, 7, -3.0, 1.0)]})
    assert found.lanes[0].bars[0].began == 0.0


def test_of_very_many_lanes_and_bars_the_longest_are_shown_and_the_others_counted():
    spans = [cycle(chain, chain % 100, float(chain), chain + 1.0 + chain / 1e6) for chain in range(20_000)]
    found = lanes_of({"starts": [start(0.0, 20_000.0)], "spans": spans})
    shown = sum(len(lane.bars) for lane in found.lanes)
    assert (len(found.lanes), shown, found.num_hidden) == (40, 3_000, 17_000)
    assert found.num_explorers == 100


# Figures


def test_a_figure_says_what_it_shows_and_escapes_its_words():
    svg = line_figure("a < b & $c$", "x$1$", "y", [0, 1], [Series("line", [0, None]), Series("<i>", [1, 2])])
    assert 'role="img" aria-label="a &lt; b &amp; $c$"' in svg
    assert "<figcaption>a &lt; b &amp; $c$</figcaption>" in svg
    assert "x$1$" in svg
    assert "<i>" not in svg


def test_a_figure_names_nothing_outside_of_the_page():
    svg = line_figure("a", "x", "y", [0, 1], [Series("line", [0, 1])])
    assert not re.search(r"https?:|xlink|url\((?!#)", svg)


def test_a_heat_map_has_a_cell_with_its_number_for_every_pair():
    svg = heat_map("overlap", ["a", "b"], [[1.0, 0.25], [0.25, 1.0]])
    assert svg.count("<rect") == 4
    assert svg.count(">0.25</text>") == 2
    assert "<title>a, b: 0.250</title>" in svg


def test_black_words_can_be_read_on_every_colour_of_a_bar():
    def luminance(color):
        parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for color in _COLORS:
        assert (luminance(color) + 0.05) / 0.05 >= 4.5, color
