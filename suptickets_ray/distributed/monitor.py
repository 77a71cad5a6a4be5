"""Progress on its way from workers to the person who watches."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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


@contextmanager
def monitoring() -> Iterator[Any]:
    """Yields the handle of a Monitor, which ends with the job and not with the Ray that it ran on."""
    monitor = Monitor.remote()  # type: ignore[attr-defined]
    try:
        yield monitor
    finally:
        with suppress(Exception):  # its Ray may have ended before it
            ray.kill(monitor)


def show_events(monitor: Any, on_event: OnEvent) -> None:
    """Passes on what has arrived; a monitor that died is passed over in silence, because it holds nothing of value."""
    try:
        events = ray.get(monitor.drain.remote())
    except ray.exceptions.RayActorError:
        return
    for event in events:
        on_event(event)


@contextmanager
def reported_warnings(on_event: OnEvent) -> Iterator[None]:
    """Turns warnings of the sparse core into events: what a worker prints is not shown to anybody."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    for text in dict.fromkeys(str(warning.message) for warning in caught if warning.category is UserWarning):
        if "Choose a higher density" in text:
            on_event({"kind": "warning", "text": text})
