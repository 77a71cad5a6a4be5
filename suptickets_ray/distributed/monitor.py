"""Progress on its way from workers to the person who watches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray

Event = dict[str, Any]
"""What happened, as plain values; `kind` says what."""
OnEvent = Callable[[Event], None]


@ray.remote(num_cpus=0)
class Monitor:
    """Holds events until the driver asks for them. Losing it costs what is shown, never a result."""

    def __init__(self) -> None:
        self._events: list[Event] = []

    def report(self, event: Event) -> None:
        """Adds an event; workers do not wait for it."""
        self._events.append(event)

    def drain(self) -> list[Event]:
        """Returns the events since the last call, in the order of their arrival."""
        events, self._events = self._events, []
        return events


def show_events(monitor: Any, on_event: OnEvent) -> None:
    """Passes on what has arrived; a monitor that died is passed over in silence, because it holds nothing of value."""
    try:
        events = ray.get(monitor.drain.remote())
    except ray.exceptions.RayActorError:
        return
    for event in events:
        on_event(event)
