"""Progress on its way from workers to the person who watches."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from suptickets_ray.distributed.cluster.errors import root_cause

_POLL_SECONDS = 0.2
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


def start_here(actor: Any) -> Any:
    """Returns the handle of a new actor of a class, on this process's own machine: others may be taken away."""
    strategy = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return actor.options(scheduling_strategy=strategy).remote()


@contextmanager
def monitoring() -> Iterator[Any]:
    """Yields the handle of a Monitor, which ends with the job and not with the Ray that it ran on."""
    monitor = start_here(Monitor)
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


def watched(
    work: Callable[[], Any], monitor: Any, on_event: OnEvent, what: str, on_poll: Callable[[], None] = lambda: None
) -> Any:
    """Returns what `work` returns, and passes events on while it runs.

    It runs in a thread of its own: in the main one Ray Train and Ray Tune take Ctrl-C over and leave with exit code 0.

    Args:
        work: What to do.
        monitor: Handle of the `Monitor`.
        on_event: Is told what workers report to it.
        what: The work, in words.
        on_poll: Called a few times a second; what it raises ends the watch, though not the work.

    Raises:
        RuntimeError: If it raises; the sentence begins with `what` and ends in the cause.
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
        thread.join(_POLL_SECONDS)
        show_events(monitor, on_event)
        on_poll()
    if "error" in outcome:
        raise RuntimeError(f"{what} failed: {root_cause(outcome['error'])}") from outcome["error"]
    return outcome["result"]


def collecting_warnings(texts: list[str], on_event: OnEvent) -> OnEvent:
    """Returns an `on_event` that adds the text of every warning to `texts`, and passes each one on only once."""

    def watch(event: Event) -> None:
        if event["kind"] == "warning":
            if event["text"] in texts:
                return
            texts.append(event["text"])
        on_event(event)

    return watch


@contextmanager
def reported_warnings(on_event: OnEvent) -> Iterator[None]:
    """Turns warnings of the sparse core into events: what a worker prints is not shown to anybody."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    for text in dict.fromkeys(str(warning.message) for warning in caught if warning.category is UserWarning):
        if "Choose a higher density" in text:
            on_event({"kind": "warning", "text": text})
