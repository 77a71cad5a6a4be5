"""How many resource bundles fit the machines of a cluster. Pure functions, tested without a cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

Bundle = Mapping[str, float]
"""Amounts by resource, e.g. {"CPU": 1.0}. A bundle cannot span machines."""

_ROUNDING = 1e-9
"""Tolerance of a division of amounts such as 1.0 / 0.1."""


@dataclass(frozen=True)
class Machine:
    """One machine of the cluster."""

    resources: Bundle
    """Its resources. Those in use by other jobs count as free."""
    takes_workers: bool = True
    """Whether workers may run there. False for an excluded head node, which may still host a superposer."""
    node: str = ""
    """Ray's id of the machine."""


def num_on(machine: Machine, bundle: Bundle) -> int:
    """Returns how many copies of a bundle fit one machine. The bundle must not be empty."""
    free = machine.resources
    return min(int(max(free.get(kind, 0.0), 0.0) / amount + _ROUNDING) for kind, amount in bundle.items())


def num_that_fit(machines: Sequence[Machine], worker: Bundle) -> int:
    """Returns how many workers with this bundle fit the machines that take workers."""
    return sum(num_on(machine, worker) for machine in machines if machine.takes_workers)


def reserved(machine: Machine, bundle: Bundle) -> Machine:
    """Returns the machine with the resources that a bundle leaves."""
    left = {kind: machine.resources.get(kind, 0.0) - amount for kind, amount in bundle.items()}
    return replace(machine, resources={**machine.resources, **left})


def num_beside(machines: Sequence[Machine], worker: Bundle, guest: Bundle, num_guests: int = 1) -> int | None:
    """Returns how many workers fit beside guests, which may be on any machine; None if the guests do not fit.

    Best fit: each guest goes to the machine where it displaces the fewest workers. Among equal machines, it is the one
    with the least left of what the guest needs.

    Args:
        machines: The machines.
        worker: The bundle of a worker.
        guest: The bundle of a guest; an empty one needs no machine.
        num_guests: Number of guests.
    """

    def cost(machine: Machine) -> tuple[int, float]:
        displaced = num_that_fit([machine], worker) - num_that_fit([reserved(machine, guest)], worker)
        return displaced, sum(machine.resources.get(kind, 0.0) for kind in guest)

    left = list(machines)
    for _ in range(num_guests if guest else 0):
        hosts = [number for number, machine in enumerate(left) if num_on(machine, guest)]
        if not hosts:
            return None
        best = min(hosts, key=lambda number: cost(left[number]))
        left[best] = reserved(left[best], guest)
    return num_that_fit(left, worker)
