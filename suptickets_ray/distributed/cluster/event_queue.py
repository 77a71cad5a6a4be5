"""Progress events on their way from the workers to the driver."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from suptickets_ray.distributed.cluster.errors import root_cause
from suptickets_ray.distributed.cluster.polling import POLL_SECONDS
from suptickets_ray.progress.events import Event, OnEvent, Warned

_PACKAGE = Path(__file__).parents[2]
"""Folder of this package. Warnings of other packages are for their developers."""


@ray.remote(num_cpus=0)
class Monitor:
    """Holds events until the driver fetches them. Its loss affects the display, never a result."""

    def __init__(self) -> None:
        self._events: list[Event] = []

    def report(self, event: Event) -> None:
        """Adds an event; workers do not wait for the call."""
        self._events.append(event)

    def drain(self) -> list[Event]:
        """Returns the events since the last call, in the order of their arrival."""
        events, self._events = self._events, []
        return events


def start_local_actor(actor: Any) -> Any:
    """Returns the handle of a new actor of the class `actor`, on this process's machine.

    Other machines may be preempted.
    """
    strategy = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return actor.options(scheduling_strategy=strategy).remote()


@contextmanager
def monitoring() -> Iterator[Any]:
    """Yields the handle of a Monitor, which ends with the run even if Ray keeps running."""
    monitor = start_local_actor(Monitor)
    try:
        yield monitor
    finally:
        with suppress(Exception):  # Ray may have ended first
            ray.kill(monitor)


def show_events(monitor: Any, on_event: OnEvent) -> None:
    """Forwards the events that have arrived. A dead monitor is ignored, because it holds no results."""
    try:
        events = ray.get(monitor.drain.remote())
    except ray.exceptions.RayActorError:
        return
    for event in events:
        on_event(event)


def watched(
    work: Callable[[], Any], monitor: Any, on_event: OnEvent, what: str, on_poll: Callable[[], None] = lambda: None
) -> Any:
    """Returns the result of `work`, and forwards events while it runs.

    `work` runs in a separate thread. In the main thread Ray Train and Ray Tune would handle Ctrl-C themselves, and exit
    with code 0.

    Args:
        work: The function to run.
        monitor: Handle of the `Monitor`.
        on_event: Called with the events that workers report to the monitor.
        what: Name of the work, for the error text.
        on_poll: Called a few times a second. Its exceptions end this call, but not the work.

    Raises:
        RuntimeError: If `work` raises. The text contains `what` and the root cause.
    """
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            outcome["result"] = work()
        except BaseException as error:  # noqa: BLE001 - raised again below, in the main thread
            outcome["error"] = error

    thread = threading.Thread(target=run, name=what, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(POLL_SECONDS)
        show_events(monitor, on_event)
        on_poll()
    if "error" in outcome:
        raise RuntimeError(f"Cannot finish {what}: {root_cause(outcome['error'])}") from outcome["error"]
    return outcome["result"]


def collecting_warnings(texts: list[str], on_event: OnEvent) -> OnEvent:
    """Returns an `on_event` that appends every new warning's text to `texts`, and forwards each warning only once."""

    def watch(event: Event) -> None:
        if isinstance(event, Warned):
            if event.text in texts:
                return
            texts.append(event.text)
        on_event(event)

    return watch


@contextmanager
def reported_warnings(on_event: OnEvent) -> Iterator[None]:
    """Turns this package's warnings into events, because a worker's output is not shown to the user."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    own = [warning for warning in caught if Path(warning.filename).is_relative_to(_PACKAGE)]
    for text in dict.fromkeys(str(warning.message) for warning in own if warning.category is UserWarning):
        on_event(Warned(text))
