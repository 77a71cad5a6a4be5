"""The tickets in a run's folder, and which of them belong to the run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from suptickets_ray.tickets.store import RunStore

if TYPE_CHECKING:
    from suptickets_ray.tickets.ticket import Ticket


@dataclass(frozen=True)
class Origin:
    """What identifies the tickets of one exploration, so that files of another one are not mistaken for them."""

    exploration: str
    """Digest of all settings that a ticket depends on."""
    pretrained: str
    """Digest of the state that the first cycle of every chain started from."""

    def is_of(self, ticket: Ticket) -> bool:
        """Returns whether the provenance of a ticket names this origin."""
        provenance = ticket.provenance
        own = (provenance.get("exploration"), provenance.get("pretrained"))
        return own == (self.exploration, self.pretrained)


class TicketStore:
    """The tickets of one run, keyed by chain and cycle."""

    def __init__(self, store: RunStore) -> None:
        """Uses the `tickets` folder of a run."""
        self._store = store

    @staticmethod
    def path(chain: int, cycle: int) -> str:
        """Returns a ticket's path under the run's folder."""
        return f"tickets/chain-{chain:03d}/cycle-{cycle:03d}.arrow"

    def put(self, ticket: Ticket, chain: int, cycle: int) -> None:
        """Stores a ticket, and replaces one of the same key."""
        self._store.write(self.path(chain, cycle), ticket.to_bytes())

    def get(self, chain: int, cycle: int) -> Ticket:
        """Returns a ticket.

        Raises:
            FileNotFoundError: If there is no ticket of this key.
            ValueError: If its file is damaged. The message names the file.
        """
        # Imported here: `suptickets runs` reads folders without torch.
        from suptickets_ray.tickets.ticket import Ticket

        path = self.path(chain, cycle)
        try:
            ticket = Ticket.from_bytes(self._store.read(path))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        own = (ticket.provenance.get("chain", chain), ticket.provenance.get("cycle", cycle))
        if own != (chain, cycle):
            raise ValueError(f"{path}: the ticket must be that of its name; it is of chain {own[0]}, cycle {own[1]}.")
        return ticket

    def verify(self) -> dict[tuple[int, int], str]:
        """Reads every stored ticket, and returns the errors of the damaged ones by (chain, cycle)."""
        faults = {}
        for key in self.list():
            try:
                self.get(*key)
            except ValueError as error:
                faults[key] = str(error)
        return faults

    def own(self, origin: Origin) -> dict[tuple[int, int], str]:
        """Returns the digests of the tickets that are whole and of this origin, each made from the one before it.

        All others count as missing: damaged files, and those of another run.
        """
        found: dict[tuple[int, int], str] = {}
        for chain, cycle in self.list():
            if cycle and (chain, cycle - 1) not in found:
                continue
            try:
                ticket = self.get(chain, cycle)
            except ValueError:
                continue
            before = found[chain, cycle - 1] if cycle else None
            if origin.is_of(ticket) and before in (None, ticket.provenance.get("parent")):
                found[chain, cycle] = ticket.digest
        return found

    def list(self) -> list[tuple[int, int]]:
        """Returns the (chain, cycle) of every stored ticket, sorted."""
        paths = set(self._store.list("tickets"))
        matches = [re.fullmatch(r"tickets/chain-(\d+)/cycle-(\d+)\.arrow", path) for path in paths]
        keys = sorted((int(match[1]), int(match[2])) for match in matches if match)
        return [key for key in keys if self.path(*key) in paths]
