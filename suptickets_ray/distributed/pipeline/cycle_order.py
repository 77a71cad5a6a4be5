"""Decides which cycle runs next, and which cycles are finished. Pure functions, tested without a cluster."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def next_cycle(done: Mapping[int, int], running: Iterable[int], cycles: int) -> tuple[int, int] | None:
    """Returns the (chain, cycle) that an idle explorer should run, or None if no cycle can start now.

    The chain with the fewest finished cycles is chosen; of equal chains, the lowest. Tickets then arrive roughly in the
    order in which they are merged, and few have to wait.

    Args:
        done: Number of finished cycles by chain.
        running: Chains with a running cycle. The cycles of one chain run one after another.
        cycles: Cycles per chain.
    """
    busy = set(running)
    ready = [(cycle, chain) for chain, cycle in done.items() if cycle < cycles and chain not in busy]
    if not ready:
        return None
    cycle, chain = min(ready)
    return chain, cycle


def cycles_from_state(done: int, state_cycle: int | None) -> int | None:
    """Returns how many cycles of a chain are finished according to its stored state, or None if the state is outdated.

    A machine may be lost after it stored a cycle and before the driver received the result. The number is then higher
    than the driver's count.

    Args:
        done: The driver's count of finished cycles of the chain.
        state_cycle: The cycle after which the stored state was taken; None without a state.
    """
    return None if state_cycle is None or state_cycle + 1 < done else state_cycle + 1


def finished_cycles(stored: Iterable[tuple[int, int]], chain: int, state_cycle: int | None) -> int:
    """Returns how many cycles of a chain do not have to run again.

    Args:
        stored: (chain, cycle) of every intact ticket.
        chain: The chain.
        state_cycle: The cycle after which its stored state was taken; None without a state.
    """
    if state_cycle is None:
        return 0
    kept = {cycle for other, cycle in stored if other == chain}
    return state_cycle + 1 if kept.issuperset(range(state_cycle + 1)) else 0
