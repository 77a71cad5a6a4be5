from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from suptickets_ray import Ticket, superpose
from suptickets_ray.tickets.accumulator import FilledValues, join_shards, split_into_shards
from suptickets_ray.tickets.averaging import finish, finish_unpruned, merge
from suptickets_ray.tickets.rules import AVERAGES, PRUNE_TIMES, Rule

GOLDEN = Path(__file__).parents[1] / "golden"


def ticket(values, buffer=0):
    weight = torch.tensor(values, dtype=torch.float64)
    return Ticket({"w": weight, "count": torch.tensor(buffer)}, {"w": weight != 0}, {})


def weights(tickets, method="cia", density=1.0, **options):
    return (
        superpose([ticket(values) for values in tickets], method, density=density, **options).state_dict()["w"].tolist()
    )


A, B = [4.0, 2.0, 0.0, 0.0], [2.0, 0.0, 6.0, 0.0]


def test_cia_counts_zeros():
    assert weights([A, B]) == [3.0, 1.0, 3.0, 0.0]


def test_caa_counts_only_active_weights():
    assert weights([A, B], "caa") == [3.0, 2.0, 6.0, 0.0]


def test_cima_gives_the_newest_ticket_its_factor():
    assert weights([A, B], "cima", cima_factor=0.25) == [3.5, 1.5, 1.5, 0.0]


OWN = """
import torch
def strongest(old, new, num_tickets, factor):
    return torch.where(old.abs() >= new.abs(), old, new)
def scaled(old, new, num_tickets, factor):
    return old + factor * new
def something(old, new, num_tickets, factor):
    return old + 1
def single(old, new, num_tickets, factor):
    return (old + new).sum()
def few(old, new):
    return old + new
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of the user's own."""
    (tmp_path / "own_averages.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    return "own_averages"


def test_an_average_of_ones_own_is_taken_entry_by_entry(own):
    assert weights([A, B, [0.0, 0.0, -7.0, 1.0]], f"{own}:strongest") == [4.0, 2.0, -7.0, 1.0]
    assert weights([A, B], f"{own}:strongest", 0.5) == [4.0, 0.0, 6.0, 0.0]
    assert weights([A, B], f"{own}:scaled", cima_factor=0.5) == [5.0, 2.0, 3.0, 0.0]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("something", "must make zeros of their shape .*'own_averages:something' makes tensor"),
        ("single", "must make zeros of their shape"),
        ("few", "must be a function of two tensors, .*'own_averages:few' failed: TypeError"),
        ("missing", "must name a function of 'own_averages'; it has no function 'missing'"),
    ],
)
def test_an_average_of_ones_own_that_cannot_be_one_is_refused(own, function, message):
    with pytest.raises(ValueError, match=message):
        Rule(f"{own}:{function}", 0.5)


def test_an_unknown_average_is_told_how_ones_own_is_named():
    with pytest.raises(ValueError, match="did you mean 'cima'.* A user-defined one is named 'package.module:function'"):
        Rule("cimo", 0.5)


def test_pruning_after_each_ticket_forgets_what_pruning_once_remembers():
    tickets = [[4.0, 3.0, 0.0, 0.0], [4.0, 0.0, 2.0, 0.0], [4.0, 0.0, 2.0, 0.0]]
    assert weights(tickets, density=0.5, prune="each") == [4.0, 1.0, 0.0, 0.0]
    assert weights(tickets, density=0.5, prune="last") == pytest.approx([4.0, 0.0, 4 / 3, 0.0])


def test_caa_ends_alike_whether_pruned_each_or_last():
    tickets = [[4.0, 3.0, 0.0, 0.0], [4.0, 0.0, 2.0, 0.0], [4.0, 0.0, 2.0, 0.0]]
    assert weights(tickets, "caa", 0.5, prune="each") == weights(tickets, "caa", 0.5, prune="last")


def test_positions_that_are_zero_in_all_tickets_are_not_filled_up():
    merged = superpose([ticket(A), ticket(B)], density=1.0)
    assert merged.masks["w"].tolist() == [True, True, True, False]
    assert merged.density == 0.75


def test_integer_buffers_are_taken_from_the_newest():
    assert superpose([ticket(A, 5), ticket(B, 8)], density=0.5).state_dict()["count"] == 8


def test_unmasked_parameters_are_averaged_also_by_caa():
    first, second = (Ticket({"w": torch.ones(2), "b": torch.tensor(b)}, {"w": torch.ones(2)}, {}) for b in (1.0, 4.0))
    assert superpose([first, second], "caa", density=1.0).state_dict()["b"] == 2.5


def test_layer_scope_keeps_each_layers_count_of_the_first_ticket():
    def two_layers(a, b):
        state = {"a": torch.tensor(a), "b": torch.tensor(b)}
        return Ticket(state, {name: tensor != 0 for name, tensor in state.items()}, {})

    tickets = [
        two_layers([9.0, 0.0, 8.0, 0.0], [0.5, 0.4, 0.0, 0.0]),
        two_layers([0.0, 7.0, 8.0, 0.0], [0.0, 0.4, 0.3, 0.0]),
    ]
    for prune in PRUNE_TIMES:
        counts = [
            [int(mask.sum()) for mask in superpose(tickets, density=0.5, scope=scope, prune=prune).masks.values()]
            for scope in ("layer", "global")
        ]
        assert counts == [[2, 2], [3, 1]]


@pytest.mark.parametrize("method", AVERAGES)
@pytest.mark.parametrize("prune", PRUNE_TIMES)
@pytest.mark.parametrize("scope", ["global", "layer"])
@given(seed=st.integers(0, 1000), copies=st.integers(1, 4))
def test_equal_tickets_give_that_ticket(method, prune, scope, seed, copies):
    generator = torch.Generator().manual_seed(seed)
    values = (torch.rand(8, generator=generator, dtype=torch.float64) + 0.5) * (torch.arange(8) % 2)
    options = {"cima": {"cima_factor": 0.3}, "greedy": {"accuracy": lambda ticket: 0.5}}.get(method, {})
    merged = superpose([ticket(values.tolist())] * copies, method, density=0.5, prune=prune, scope=scope, **options)
    assert torch.allclose(merged.state_dict()["w"], values, rtol=1e-12)
    assert merged.density == 0.5


@pytest.mark.parametrize(
    ("file", "tag", "method", "factor", "tolerance"),
    [("F_caa_float64.npz", "CAA64", "cia", None, 1e-6), ("F_cima0.5_float32.npz", "CIMA0.5", "cima", 0.5, 1e-6)],
)
def test_merging_gives_the_recorded_networks(file, tag, method, factor, tolerance):
    recorded = np.load(GOLDEN / file)

    def of(kind):
        prefix = f"{tag}/{kind}/"
        return {key.removeprefix(prefix): torch.from_numpy(recorded[key]) for key in recorded if key.startswith(prefix)}

    names = list(of("ticket1_mask"))
    tickets = [Ticket(of("ticket0"), {name: of("ticket0")[name] != 0 for name in names}, {})]
    count = 0
    while of(f"ticket{count + 1}"):
        count += 1
        state, masks = of(f"ticket{count}"), of(f"ticket{count}_mask")
        tickets.append(Ticket({k: v * masks[k] if k in masks else v for k, v in state.items()}, masks, {}))
        merged = superpose(tickets, method, density=0.1, cima_factor=factor)
        expected, expected_masks = of(f"sup{count}"), of(f"sup{count}_mask")
        for name in names:
            assert torch.equal(merged.masks[name], expected_masks[name].bool()), (count, name)
        for name, tensor in merged.state_dict().items():
            if tensor.is_floating_point():
                assert torch.allclose(tensor.double(), expected[name].double(), atol=tolerance), (count, name)
    assert count >= 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_long_running_mean_stays_the_mean(dtype):
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(200, 4, generator=generator, dtype=torch.float64) + 0.1
    tickets = [Ticket({"w": row.to(dtype)}, {"w": torch.ones(4, dtype=torch.bool)}, {}) for row in values]
    merged = superpose(tickets, density=1.0, prune="last").state_dict()["w"]
    assert merged.dtype == dtype
    assert torch.allclose(merged.double(), values.mean(0), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "cai"}, "unknown superposition method 'cai'; did you mean 'cia'"),
        ({"method": "cima"}, r"cima_factor must be in \(0, 1\] with method 'cima'; got None"),
        ({"cima_factor": 0.2}, "cima_factor has no effect with method 'cia'"),
        ({"prune_at": "once"}, "unknown superposition.prune_at 'once'"),
        ({"prune_scope": "net"}, "unknown prune scope 'net'"),
        ({"density": 0}, r"density must be in \(0, 1\]; got 0"),
    ],
)
def test_a_wrong_rule_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Rule(**({"method": "cia", "density": 0.5} | arguments))


def test_no_ticket_and_tickets_of_two_models_are_refused():
    with pytest.raises(ValueError, match="at least one ticket"):
        superpose([], density=0.5)
    with pytest.raises(ValueError, match="must be of one model"):
        superpose([ticket(A), ticket([1.0, 2.0])], density=0.5)


def test_an_active_weight_that_happens_to_be_zero_is_kept_before_an_inactive_one():
    grown = Ticket({"w": torch.tensor([0.0, 0.0, 5.0, 0.0])}, {"w": torch.tensor([False, False, True, True])}, {})
    assert superpose([grown], density=0.5).masks["w"].tolist() == [False, False, True, True]


def test_greedy_takes_the_best_first_and_leaves_out_what_loses():
    worth = {4.0: 0.9, 2.0: 0.8, 3.0: 0.95, 10.0: 0.1, 5.5: 0.2}

    def accuracy(ticket):
        return worth.get(round(float(ticket.state_dict()["w"][0]), 3), 0.0)

    tickets = [ticket([10.0, 1.0]), ticket([2.0, 1.0]), ticket([4.0, 1.0])]
    # best first: 4, then (4 + 2) / 2 = 3 gains, then a mean with 10 loses
    assert superpose(tickets, "greedy", density=1.0, accuracy=accuracy).state_dict()["w"].tolist() == [3.0, 1.0]
    for method, scorer in (("greedy", None), ("cia", accuracy)):
        with pytest.raises(ValueError, match="must be given accuracy= with method 'greedy', and with no other"):
            superpose(tickets, method, density=1.0, accuracy=scorer)


def test_the_order_of_tickets_does_not_matter_to_cia_that_is_pruned_once():
    generator = torch.Generator().manual_seed(0)
    tickets = []
    for _ in range(5):
        values = torch.randn(40, generator=generator, dtype=torch.float64)
        tickets.append(ticket((values * (torch.rand(40, generator=generator) < 0.3)).tolist()))
    one = superpose(tickets, density=0.3, prune="last")
    other = superpose(tickets[::-1], density=0.3, prune="last")
    assert torch.equal(one.masks["w"], other.masks["w"])
    assert torch.allclose(one.state_dict()["w"], other.state_dict()["w"], rtol=1e-12)
    assert one.density == 0.3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", ["cia", "caa"])
def test_half_precision_is_averaged_in_single(dtype, method):
    values = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=dtype)
    same = Ticket({"w": values}, {"w": torch.ones(4)}, {})
    merged = superpose([same] * 300, method, density=1.0).state_dict()["w"]
    assert merged.dtype == dtype
    assert torch.equal(merged, values)
    generator = torch.Generator().manual_seed(0)
    different = [torch.rand(4, generator=generator).to(dtype) + 0.5 for _ in range(200)]
    merged = superpose([Ticket({"w": w}, {"w": torch.ones(4)}, {}) for w in different], method, density=1.0)
    exact = torch.stack(different).double().mean(0)
    assert torch.allclose(merged.state_dict()["w"].double(), exact, rtol=float(torch.finfo(dtype).eps))


def sparse_ticket(seed):
    generator = torch.Generator().manual_seed(seed)
    state, masks = {}, {}
    for name, size in (("a", 90), ("b", 60), ("c", 7)):
        masks[name] = torch.rand(size, generator=generator) < 0.3
        state[name] = torch.randn(size, generator=generator) * masks[name]
    return Ticket(state | {"bias": torch.randn(4, generator=generator), "count": torch.tensor(seed)}, masks, {})


@pytest.mark.parametrize("method", ["cia", "caa", "cima"])
@pytest.mark.parametrize("count", [2, 3, 9])
def test_layers_merged_apart_are_the_bits_of_one_merge(method, count):
    rule = Rule(method, 0.3, 0.3 if method == "cima" else None, "end")
    tickets = [sparse_ticket(seed) for seed in range(4)]
    whole = None
    for ticket in tickets:
        whole = merge(whole, ticket, rule)
    sizes = {name: tensor.numel() for name, tensor in tickets[0].state_dict().items()}
    apart = []
    for names in split_into_shards(sizes, count):
        some = None
        for ticket in tickets:
            some = merge(some, Ticket.some_of(ticket.to_arrow(), names), rule)
        apart.append(some)
    assert len(apart) == min(count, len(sizes))
    again = finish(join_shards(apart, sizes), rule, {})
    assert list(again.parts) == list(tickets[0].parts)
    assert again.digest == finish(whole, rule, {}).digest


def test_shares_are_about_equal_and_hold_every_tensor_once():
    sizes = {"a": 100, "b": 60, "c": 40, "d": 5, "e": 0}
    groups = split_into_shards(sizes, 2)
    assert sorted(name for group in groups for name in group) == sorted(sizes)
    assert [sum(sizes[name] for name in group) for group in groups] == [105, 100]


@pytest.mark.parametrize("method", AVERAGES)
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_averages_that_hold_all_entries_give_the_same_bits(method, scope, monkeypatch):
    generator = torch.Generator().manual_seed(0)

    def made():
        state = {name: torch.randn(shape, generator=generator) for name, shape in (("a", (20, 10)), ("b", (7, 3, 3)))}
        masks = {name: torch.rand(tensor.shape, generator=generator) < 0.2 for name, tensor in state.items()}
        return Ticket({name: tensor * masks[name] for name, tensor in state.items()}, masks, {})

    rule = Rule(method, 0.3, 0.2 if method == "cima" else None, prune_at="end", prune_scope=scope)
    tickets = [made() for _ in range(6)]
    found = []
    monkeypatch.setattr("suptickets_ray.tickets.averaging._PIECE", 64)
    for share in (0.0, 0.25, 1.0):
        monkeypatch.setattr("suptickets_ray.tickets.averaging.FILLED_SHARE", share)
        accumulator = None
        for one in tickets:
            accumulator = merge(accumulator, one, rule)
        ends = [finish(accumulator, rule, {}).digest, finish_unpruned(accumulator, {}).digest, accumulator.num_unpruned]
        found.append([isinstance(accumulator.mean["a"], FilledValues), *ends])
    assert [filled for filled, *_ in found] == [True, True, False]
    assert found[0][1:] == found[1][1:] == found[2][1:]


def test_averages_pruned_each_time_stay_sparse():
    rule = Rule("cia", 1.0)
    assert not isinstance(merge(merge(None, ticket(A), rule), ticket(B), rule).mean["w"], FilledValues)


def test_cima_keeps_a_tensor_that_is_equal_in_all_tickets_bit_for_bit():
    frozen = torch.randn(100, generator=torch.Generator().manual_seed(0))
    tickets = [Ticket({"frozen": frozen, "w": torch.full((2, 2), value)}, {}, {}) for value in (1.0, 2.0, 3.0)]
    merged = superpose(tickets, "cima", density=1.0, cima_factor=0.3).state_dict()
    assert torch.equal(merged["frozen"], frozen)
    assert torch.allclose(merged["w"], torch.full((2, 2), 0.7 * 1.3 + 0.3 * 3))
