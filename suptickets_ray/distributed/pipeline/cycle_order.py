"""Which cycle runs next, and which are finished: pure decisions, tested without a cluster."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def next_cycle(done: Mapping[int, int], running: Iterable[int], cycles: int) -> tuple[int, int] | None:
    """Returns the (chain, cycle) that an idle explorer should run, or None when there is nothing to start now.

    The chain that is furthest behind comes first, lower chains before higher ones: the tickets then arrive roughly
    in the order in which they are merged, and few have to wait.

    Args:
        done: Chain to its number of finished cycles.
        running: Chains with a cycle under way; a chain's cycles run one after another.
        cycles: Cycles of every chain.
    """
    busy = set(running)
    ready = [(cycle, chain) for chain, cycle in done.items() if cycle < cycles and chain not in busy]
    if not ready:
        return None
    cycle, chain = min(ready)
    return chain, cycle


def cycles_behind_state(done: int, state_cycle: int | None) -> int | None:
    """Returns how many cycles of a chain its stored state says are finished, None where the state is of no use.

    A machine may go after a cycle was stored and before the driver heard of it: then it is more than the driver counts.

    Args:
        done: Cycles of the chain that the driver knows to be finished.
        state_cycle: The cycle that the stored state was taken after, None without one.
    """
    return None if state_cycle is None or state_cycle + 1 < done else state_cycle + 1


def finished_cycles(stored: Iterable[tuple[int, int]], chain: int, state_cycle: int | None) -> int:
    """Returns how many cycles of a chain need not be run again.

    Args:
        stored: (chain, cycle) of every whole ticket.
        chain: The chain.
        state_cycle: The cycle that its stored state was taken after, None without one.
    """
    if state_cycle is None:
        return 0
    kept = {cycle for other, cycle in stored if other == chain}
    return state_cycle + 1 if kept.issuperset(range(state_cycle + 1)) else 0
