"""The actor that runs cycles of cheap-ticket exploration."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import Any

import pyarrow as pa
import ray

from suptickets_ray.distributed.cluster.capacity import draining_nodes
from suptickets_ray.distributed.pipeline.context import start_worker
from suptickets_ray.distributed.pipeline.result import versions
from suptickets_ray.process_start import collect_normally
from suptickets_ray.recipes.load import config_digest
from suptickets_ray.search.keys import exploration_key
from suptickets_ray.tickets.store import TicketStore
from suptickets_ray.training.checkpoint import read_progress, state_digest
from suptickets_ray.training.cycle import cycle_lr, run_cycle
from suptickets_ray.training.evaluation import evaluate
from suptickets_ray.training.loop import budget_of, build_learner, steps_per_epoch
from suptickets_ray.training.tensorboard import Scalars


def chain_state_path(chain: int) -> str:
    """Returns where, under the run's folder, the state lies that a chain's last finished cycle ended in."""
    return f"chains/chain-{chain:03d}.pt"


def part_path(chain: int) -> str:
    """Returns where a chain's state lies that was stored within a cycle: a long one, or one whose machine goes."""
    return f"chains/chain-{chain:03d}.part.pt"


_LOOK_SECONDS = 3.0
"""How often an explorer asks whether its machine is about to be taken away."""
_PART_SECONDS = 300.0
"""A cycle that takes longer has its state stored at the end of an epoch, this often."""


@ray.remote
class Explorer:
    """Runs any cycle of any chain: it keeps nothing from one to the next, so losing it costs the cycle it was in.

    Of a long cycle less: its state is stored in between, and at once where the machine is about to be taken away.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self._worker = start_worker(settings)
        self._learner = build_learner(self._worker.config, self._worker.splits, self._worker.device, restores=True)
        self._digest = config_digest(self._worker.config)
        self._node = self.node()
        collect_normally()

    def node(self) -> str:
        """Returns the id of the machine that it runs on; whoever answers is ready."""
        return str(ray.get_runtime_context().get_node_id())

    def run_cycle(self, state: bytes, chain: int, cycle: int, again: bool) -> tuple[pa.Table, bytes, bool]:
        """Returns the cycle's ticket as an Arrow table, the state that the chain's next cycle starts from, and True.

        The last says that the cycle is done, to whom neither of the large ones is of use. Both also go to the run's
        storage, the ticket first: a state that is there means that its ticket is, too.

        Args:
            state: What pretraining, or the cycle before, ended in.
            chain: Chain, from 0.
            cycle: Cycle within the chain, from 0.
            again: Whether an earlier, interrupted try may have left points for TensorBoard, which are then hidden.
        """
        began = time.time()
        worker, config = self._worker, self._worker.config
        tickets, epoch_steps = config.tickets, steps_per_epoch(config, worker.splits)
        first_step = (budget_of(config).pretrain_epochs + cycle * tickets.cycle_epochs) * epoch_steps
        progress = self._learner.load_bytes(state)
        pretrained = f"{progress['pretrained']:064x}" if cycle else state_digest(state)
        parent = self._learner.ticket({}).digest
        first_epoch = self._take_up(chain, cycle, parent) if again else 0
        redone = first_step + first_epoch * epoch_steps + 1
        part = _Part(self._node, bool(first_epoch))
        with Scalars(worker.tensorboard, f"chain-{chain:03d}", redone if again else None) as scalars:

            def watch(epoch: int, loss: float) -> None:
                step = first_step + (epoch + 1) * epoch_steps
                lr = cycle_lr(tickets, epoch + 1)
                scalars.write(step, train__loss=loss, train__lr=lr, train__density=self._learner.sparsifier.density)
                worker.report("cycle_epoch", chain=chain, cycle=cycle, epoch=epoch + 1, loss=loss)
                if epoch + 1 < tickets.cycle_epochs and part.is_due():
                    with suppress(OSError):  # without it a lost machine costs more; nothing else depends on it
                        worker.store.write(part_path(chain), self._part(cycle, epoch + 1, parent))

            def updated(step: int) -> None:
                scalars.write_layer_densities(first_step + step, self._learner.sparsifier.masks)

            run_cycle(self._learner, config, worker.splits, chain, cycle, watch, updated, first_epoch)
            validation = evaluate(self._learner.model, worker.splits.validation)
            scalars.write(
                first_step + tickets.cycle_epochs * epoch_steps,
                validation__accuracy=validation["accuracy"],
                validation__loss=validation["loss"],
            )
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
        if part.is_stored:
            worker.store.delete(part_path(chain))
        worker.report(
            "ticket",
            chain=chain,
            cycle=cycle,
            validation_accuracy=validation["accuracy"],
            node=self._node,
            process=os.getpid(),
            began=began,
            ended=time.time(),
        )
        return ticket.to_arrow(), state, True

    def _part(self, cycle: int, epochs: int, parent: str) -> bytes:
        """The state after some epochs of a cycle. What it comes from is a number too: states hold no texts."""
        return self._learner.to_bytes(cycle=cycle, epochs=epochs, parent=int(parent, 16))

    def _take_up(self, chain: int, cycle: int, parent: str) -> int:
        """Loads what an interrupted try of a cycle has stored, and returns how many epochs that had; 0 for nothing."""
        store = self._worker.store
        if not store.exists(part_path(chain)):
            return 0
        try:
            content = store.read(part_path(chain))
            progress = read_progress(content)
        except (FileNotFoundError, ValueError):  # damaged: the cycle is run whole
            return 0
        if (progress.get("cycle"), progress.get("parent")) != (cycle, int(parent, 16)):
            return 0
        return self._learner.load_bytes(content)["epochs"]


class _Part:
    """When a cycle's state is worth being stored before its end."""

    def __init__(self, node: str, is_stored: bool) -> None:
        """Starts with the cycle, on a machine; one may be stored already."""
        self._node, self.is_stored = node, is_stored
        self._stored = self._looked = time.monotonic()

    def is_due(self) -> bool:
        """Whether it is now: whoever asks stores it then."""
        now = time.monotonic()
        is_due = now - self._stored > _PART_SECONDS
        if not is_due and now - self._looked > _LOOK_SECONDS:
            self._looked = now
            is_due = self._node in draining_nodes()
        if is_due:
            self._stored, self.is_stored = now, True
        return is_due
