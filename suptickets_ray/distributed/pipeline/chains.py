"""How far each chain of cycles has come, and the state that its next cycle starts from."""

from __future__ import annotations

from typing import Any

import ray

from suptickets_ray.distributed.pipeline.cycle_order import cycles_behind_state, finished_cycles
from suptickets_ray.distributed.pipeline.explorer import chain_state_path
from suptickets_ray.tickets.store import Origin, RunStore, TicketStore
from suptickets_ray.tickets.ticket import Ticket
from suptickets_ray.training.checkpoint import read_progress


class Chains:
    """All chains of a run. States are held by reference, only while a cycle may start from them."""

    def __init__(self, store: RunStore, num_chains: int, cycles: int, pretrained: Any, origin: Origin) -> None:
        """Finds out what an earlier start of the run has finished; files of another run do not count.

        Args:
            store: The run's files.
            num_chains: Number of chains.
            cycles: Cycles of every chain.
            pretrained: Object reference of the state that pretraining ended in.
            origin: What the run's own tickets have in common.
        """
        self._origin = origin
        self._store, self._cycles, self._pretrained = store, cycles, pretrained
        self._states: dict[int, Any] = {}
        self.done: dict[int, int] = {}
        """Chain to its number of finished cycles."""
        self.num_trained = 0
        """Cycles that were run to their end since then."""
        self.remade: list[int] = []
        """Chains that run again because their files are damaged or belong to another run."""
        stored = TicketStore(store).own(origin)
        for chain in range(num_chains):
            state_cycle, _ = self._stored_state(chain)
            self.done[chain] = min(finished_cycles(stored, chain, state_cycle), cycles)
            if not self.done[chain] and store.exists(chain_state_path(chain)):
                self.remade.append(chain)

    @property
    def num_unfinished(self) -> int:
        """Chains that have cycles left."""
        return sum(done < self._cycles for done in self.done.values())

    @property
    def num_states(self) -> int:
        """States that are held, beside that of pretraining."""
        return len(self._states)

    def state_of(self, chain: int) -> Any:
        """Returns the object reference of what a chain's next cycle starts from, read from the storage if need be.

        Raises:
            RuntimeError: If the stored state is not the one that it was.
        """
        if not self.done[chain]:
            return self._pretrained
        if chain not in self._states:
            state_cycle, state = self._stored_state(chain)
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
        state_cycle, _ = self._stored_state(chain)
        cycles = cycles_behind_state(self.done[chain], state_cycle)
        if cycles is not None and all(self._is_own(chain, cycle) for cycle in range(self.done[chain], cycles)):
            self.finish(chain, min(cycles, self._cycles), None)

    def _is_own(self, chain: int, cycle: int) -> bool:
        return self._own_ticket(chain, cycle) is not None

    def _own_ticket(self, chain: int, cycle: int) -> Ticket | None:
        try:
            ticket = TicketStore(self._store).get(chain, cycle)
        except (FileNotFoundError, ValueError):
            return None
        return ticket if self._origin.is_of(ticket) else None

    def _stored_state(self, chain: int) -> tuple[int | None, bytes]:
        """Returns the cycle after which a chain's stored state was taken, and the state; None where it is no good.

        It must be the state of its ticket, or it is damaged or that of another run.
        """
        path = chain_state_path(chain)
        if not self._store.exists(path):
            return None, b""
        content = self._store.read(path)
        try:
            progress = read_progress(content)
            ticket = self._own_ticket(chain, progress["cycle"])
            if ticket is not None and int(ticket.digest, 16) == progress["ticket"]:
                return progress["cycle"], content
        except (ValueError, KeyError):
            pass
        return None, b""
