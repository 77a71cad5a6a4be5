"""Tracks the finished cycles of each chain, and the state that its next cycle starts from."""

from __future__ import annotations

from typing import Any

import ray

from suptickets_ray.distributed.pipeline.cycle_order import cycles_from_state, finished_cycles
from suptickets_ray.tickets.run_folder import chain_state_path
from suptickets_ray.tickets.store import RunStore
from suptickets_ray.tickets.ticket import Ticket
from suptickets_ray.tickets.ticket_store import Origin, TicketStore
from suptickets_ray.training.checkpoint import read_progress


class Chains:
    """All chains of a run. Holds the object reference of a state only while a cycle may start from it."""

    def __init__(self, store: RunStore, num_chains: int, cycles: int, pretrained: Any, origin: Origin) -> None:
        """Reads what earlier starts of the run have finished. Ignores files of another run.

        Args:
            store: The run's files.
            num_chains: Number of chains.
            cycles: Cycles per chain.
            pretrained: Object reference of the final state of pretraining.
            origin: The common origin of the run's tickets.
        """
        self._origin = origin
        self._store, self._cycles, self._pretrained = store, cycles, pretrained
        self._states: dict[int, Any] = {}
        self.done: dict[int, int] = {}
        """Number of finished cycles by chain."""
        self.num_trained = 0
        """Number of cycles finished since this object was created."""
        self.restarted: list[int] = []
        """Chains that start again because their files are damaged or belong to another run."""
        stored = TicketStore(store).own(origin)
        for chain in range(num_chains):
            state_cycle, _ = self._stored_state(chain)
            self.done[chain] = min(finished_cycles(stored, chain, state_cycle), cycles)
            if not self.done[chain] and store.exists(chain_state_path(chain)):
                self.restarted.append(chain)

    @property
    def num_unfinished(self) -> int:
        """Number of chains with unfinished cycles."""
        return sum(done < self._cycles for done in self.done.values())

    @property
    def num_states(self) -> int:
        """Number of states held, besides that of pretraining."""
        return len(self._states)

    def state_of(self, chain: int) -> Any:
        """Returns the object reference of the state that a chain's next cycle starts from.

        The state is read from the storage if it is not in memory.

        Raises:
            RuntimeError: If the stored state was changed or damaged during the run.
        """
        if not self.done[chain]:
            return self._pretrained
        if chain not in self._states:
            state_cycle, state = self._stored_state(chain)
            if state_cycle != self.done[chain] - 1:
                raise RuntimeError(
                    f"Cannot continue chain {chain}: {chain_state_path(chain)} was changed or damaged during the run. "
                    "The same command continues from the undamaged files."
                )
            self._states[chain] = ray.put(state)
        return self._states[chain]

    def finish(self, chain: int, cycles: int, state: Any) -> None:
        """Records the number of finished cycles of a chain.

        Args:
            chain: The chain.
            cycles: Number of its finished cycles.
            state: Object reference of the state after the last of them. None if it is read when needed.
        """
        self.num_trained += cycles - self.done[chain]
        self.done[chain] = cycles
        self._states.pop(chain, None)
        if state is not None and cycles < self._cycles:
            self._states[chain] = state

    def reload_after_loss(self, chain: int) -> None:
        """Drops the reference of a state that may be lost with a process or machine, if the storage has the state.

        The storage may hold one cycle more than the driver has counted. A ticket is stored before its state. The
        tickets are checked nevertheless: a chain that restarts because of a damaged ticket may still have an old state.
        """
        state_cycle, _ = self._stored_state(chain)
        cycles = cycles_from_state(self.done[chain], state_cycle)
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
        """Returns the cycle after which a chain's stored state was taken, and the state; None and b"" if it is invalid.

        The state must match its ticket. Otherwise it is damaged or belongs to another run.
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
