"""The actor that runs cycles of cheap-ticket exploration."""

from __future__ import annotations

import os
import time
from contextlib import suppress

import pyarrow as pa
import ray

from suptickets_ray.distributed.cluster.capacity import draining_nodes
from suptickets_ray.distributed.cluster.polling import ClusterPollTimer
from suptickets_ray.distributed.pipeline.context import WorkerContext, start_worker
from suptickets_ray.distributed.pipeline.result import versions
from suptickets_ray.process_start import collect_normally
from suptickets_ray.progress.events import CycleEpochEnded, CycleStarted, TicketFinished
from suptickets_ray.recipes.load import config_digest
from suptickets_ray.search.keys import exploration_key
from suptickets_ray.superposition.ticket_scores import EVALUATED_SPLITS
from suptickets_ray.tickets.run_folder import chain_state_path, partial_state_path
from suptickets_ray.tickets.ticket_store import TicketStore
from suptickets_ray.training.checkpoint import read_progress, state_digest
from suptickets_ray.training.cycle import cycle_lr, run_cycle
from suptickets_ray.training.evaluation import Measured, measure_network
from suptickets_ray.training.loop import budget_of, build_learner, steps_per_epoch
from suptickets_ray.training.tensorboard import Scalars

_CHECKPOINT_SECONDS = 300.0
"""Time between two checkpoints within a cycle. A checkpoint is written at the end of an epoch."""


@ray.remote
class Explorer:
    """Runs any cycle of any chain. It keeps no state between cycles, so its loss costs only the running cycle.

    A long cycle loses less: it is checkpointed in between. On a draining machine, that is at the end of the epoch.
    """

    def __init__(self, context: WorkerContext) -> None:
        self._worker = start_worker(context)
        self._learner = build_learner(self._worker.config, self._worker.splits, self._worker.device, restores=True)
        self._digest = config_digest(self._worker.config)
        self._node = self.node()
        collect_normally()

    def node(self) -> str:
        """Returns the id of the explorer's machine. An answer also shows that the explorer is ready."""
        return str(ray.get_runtime_context().get_node_id())

    def run_cycle(
        self, state: bytes, chain: int, cycle: int, again: bool
    ) -> tuple[pa.Table, bytes, dict[str, Measured], bool]:
        """Returns the ticket as an Arrow table, the state of the chain's next cycle, what was measured of it, and True.

        The driver waits for the last value without fetching the large ones. What was measured, on validation and test,
        serves the superposer, which otherwise measures it again. Ticket and state are also stored, the
        ticket first: if a state exists, its ticket exists, too.

        Args:
            state: Final state of pretraining or of the previous cycle.
            chain: Chain, from 0.
            cycle: Cycle within the chain, from 0.
            again: Whether an interrupted attempt may precede this one. The cycle then continues from its checkpoint, if
                there is one, and TensorBoard hides the points of that attempt.
        """
        began = time.time()
        worker, config = self._worker, self._worker.config
        worker.send(CycleStarted(chain, cycle))
        tickets, epoch_steps = config.tickets, steps_per_epoch(config, worker.splits)
        first_step = (budget_of(config).pretrain_epochs + cycle * tickets.cycle_epochs) * epoch_steps
        progress = self._learner.load_bytes(state)
        pretrained = f"{progress['pretrained']:064x}" if cycle else state_digest(state)
        parent = self._learner.ticket({}).digest
        first_epoch = self._load_checkpoint(chain, cycle, parent) if again else 0
        redone = first_step + first_epoch * epoch_steps + 1
        checkpoints = _CheckpointTimer(self._node, bool(first_epoch))
        epoch_began = time.monotonic()
        with Scalars(worker.tensorboard, f"chain-{chain:03d}", redone if again else None) as scalars:

            def on_epoch(epoch: int, loss: float) -> None:
                nonlocal epoch_began
                seconds, epoch_began = time.monotonic() - epoch_began, time.monotonic()
                speed = epoch_steps * config.data.batch_size / seconds
                step = first_step + (epoch + 1) * epoch_steps
                lr = cycle_lr(tickets, epoch + 1)
                scalars.write(step, train__loss=loss, train__lr=lr, train__density=self._learner.sparsifier.density)
                worker.send(CycleEpochEnded(chain, cycle, epoch + 1, loss, speed))
                if epoch + 1 < tickets.cycle_epochs and checkpoints.is_due():
                    with suppress(OSError):  # optional: without a checkpoint, only a lost machine costs more
                        worker.store.write(partial_state_path(chain), self._partial_state(cycle, epoch + 1, parent))

            def on_update(step: int) -> None:
                scalars.write_layer_densities(first_step + step, self._learner.sparsifier.masks)

            run_cycle(self._learner, config, worker.splits, chain, cycle, on_epoch, on_update, first_epoch)
            measured = {
                name: measure_network(
                    self._learner.model, getattr(worker.splits, name), self._learner.task, keep_predictions=True
                )
                for name in EVALUATED_SPLITS
            }
            validation = measured["validation"].scores
            found = {f"validation__{name}": value for name, value in validation.items()}
            scalars.write(first_step + tickets.cycle_epochs * epoch_steps, **found)
        tensors = self._learner.model.state_dict().values()
        ticket = self._learner.ticket(
            {
                "run": config.name,
                "chain": chain,
                "cycle": cycle,
                "seed": config.seed,
                "lr_low": tickets.lr_low,
                "lr_high": tickets.lr_high,
                "config_digest": self._digest,
                "parent": parent,
                "versions": versions(),
                "exploration": exploration_key(config),
                "pretrained": pretrained,
                "diverged": not all(bool(tensor.isfinite().all()) for tensor in tensors if tensor.is_floating_point()),
            }
        )
        state = self._learner.to_bytes(cycle=cycle, ticket=int(ticket.digest, 16), pretrained=int(pretrained, 16))
        TicketStore(worker.store).put(ticket, chain, cycle)
        worker.store.write(chain_state_path(chain), state)
        if checkpoints.is_stored:
            worker.store.delete(partial_state_path(chain))
        metric = self._learner.task.metric
        place = (self._node, os.getpid(), began, time.time())
        worker.send(TicketFinished(chain, cycle, validation[metric.name], *place, metric=metric))
        return ticket.to_arrow(), state, measured, True

    def _partial_state(self, cycle: int, epochs: int, parent: str) -> bytes:
        """Returns the state after some epochs of a cycle. `parent` is stored as a number: states contain no text."""
        return self._learner.to_bytes(cycle=cycle, epochs=epochs, parent=int(parent, 16))

    def _load_checkpoint(self, chain: int, cycle: int, parent: str) -> int:
        """Loads the checkpoint of an interrupted cycle. Returns its number of finished epochs, 0 without one."""
        store = self._worker.store
        if not store.exists(partial_state_path(chain)):
            return 0
        try:
            content = store.read(partial_state_path(chain))
            progress = read_progress(content)
        except (FileNotFoundError, ValueError):  # damaged: the whole cycle runs again
            return 0
        if (progress.get("cycle"), progress.get("parent")) != (cycle, int(parent, 16)):
            return 0
        return self._learner.load_bytes(content)["epochs"]


class _CheckpointTimer:
    """Decides when a cycle is checkpointed before its end."""

    def __init__(self, node: str, is_stored: bool) -> None:
        """Starts with the cycle.

        Args:
            node: Id of the explorer's machine.
            is_stored: Whether the storage has a checkpoint of the cycle.
        """
        self._node, self.is_stored = node, is_stored
        self._last_checkpoint, self._poll_timer = time.monotonic(), ClusterPollTimer()

    def is_due(self) -> bool:
        """Returns whether a checkpoint is due. The caller then writes it."""
        now = time.monotonic()
        is_due = now - self._last_checkpoint > _CHECKPOINT_SECONDS
        if not is_due and self._poll_timer.is_due():
            is_due = self._node in draining_nodes()
        if is_due:
            self._last_checkpoint, self.is_stored = now, True
        return is_due
