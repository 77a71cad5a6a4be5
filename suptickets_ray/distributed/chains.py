"""How far each chain of cycles has come, and the state that its next cycle starts from."""

from __future__ import annotations

from typing import Any

import ray

from suptickets_ray.distributed.explorer import chain_state_path
from suptickets_ray.distributed.schedule import cycles_behind_state, finished_cycles
from suptickets_ray.tickets.store import RunStore, TicketStore
from suptickets_ray.training.state import read_progress


class Chains:
    """All chains of a run. States are held by reference, only while a cycle may start from them."""

    def __init__(self, store: RunStore, num_chains: int, cycles: int, pretrained: Any) -> None:
        """Finds out what an earlier start of the run has finished.

        Args:
            store: The run's files.
            num_chains: Number of chains.
            cycles: Cycles of every chain.
            pretrained: Object reference of the state that phase one ended in.
        """
        self._store, self._cycles, self._pretrained = store, cycles, pretrained
        self._states: dict[int, Any] = {}
        self.done: dict[int, int] = {}
        """Chain to its number of finished cycles."""
        self.num_trained = 0
        """Cycles that were run to their end since then."""
        self.remade: list[int] = []
        """Chains that are run anew because what is stored of them is damaged."""
        stored = _whole_tickets(TicketStore(store))
        for chain in range(num_chains):
            state_cycle, _ = stored_state(store, chain)
            self.done[chain] = min(finished_cycles(stored, chain, state_cycle), cycles)
            if not self.done[chain] and store.exists(chain_state_path(chain)):
                self.remade.append(chain)

    @property
    def num_unfinished(self) -> int:
        """Chains that have cycles left."""
        return sum(done < self._cycles for done in self.done.values())

    @property
    def num_states(self) -> int:
        """States that are held, beside that of phase one."""
        return len(self._states)

    def state_of(self, chain: int) -> Any:
        """Returns the object reference of what a chain's next cycle starts from, read from the storage if need be.

        Raises:
            RuntimeError: If the stored state is not the one that it was.
        """
        if not self.done[chain]:
            return self._pretrained
        if chain not in self._states:
            state_cycle, state = stored_state(self._store, chain)
            if state_cycle != self.done[chain] - 1:
                raise RuntimeError(
                    f"{chain_state_path(chain)} must be what it was when the run began, and it was changed or damaged. "
                    "The same command goes on from what is whole."
                )
            self._states[chain] = ray.put(state)
        return self._states[chain]

    def finish(self, chain: int, cycles: int, state: Any) -> None:
        """Counts so many cycles of a chain as done.

        Args:
            chain: The chain.
            cycles: Its finished cycles.
            state: Object reference of the state that the last one ended in; None to read it when it is needed.
        """
        self.num_trained += cycles - self.done[chain]
        self.done[chain] = cycles
        self._states.pop(chain, None)
        if state is not None and cycles < self._cycles:
            self._states[chain] = state

    def doubt(self, chain: int) -> None:
        """After a death, forgets what the lost machine may have held, where the storage has it.

        The storage may also hold a cycle more than was heard of. Its ticket is stored before its state; but of a chain
        that is made anew because a ticket was damaged, the old state may still be there.
        """
        state_cycle, _ = stored_state(self._store, chain)
        cycles = cycles_behind_state(self.done[chain], state_cycle)
        if cycles is not None and all(self._is_whole(chain, cycle) for cycle in range(self.done[chain], cycles)):
            self.finish(chain, min(cycles, self._cycles), None)

    def _is_whole(self, chain: int, cycle: int) -> bool:
        try:
            TicketStore(self._store).get(chain, cycle)
        except (FileNotFoundError, ValueError):
            return False
        return True


def _whole_tickets(tickets: TicketStore) -> list[tuple[int, int]]:
    """Those that are kept and whole; a damaged one counts as missing, and is made again."""
    faults = tickets.verify()
    return [key for key in tickets.list() if key not in faults]


def stored_state(store: RunStore, chain: int) -> tuple[int | None, bytes]:
    """Returns the cycle after which a chain's stored state was taken, and the state; None where it is no good."""
    path = chain_state_path(chain)
    if not store.exists(path):
        return None, b""
    content = store.read(path)
    try:
        return read_progress(content)["cycle"], content
    except ValueError:
        return None, b""
