"""The actor that runs cycles of cheap-ticket exploration."""

from __future__ import annotations

import os
import time
from typing import Any

import pyarrow as pa
import ray

from suptickets_ray.config_io import config_digest
from suptickets_ray.distributed.result import versions
from suptickets_ray.distributed.worker import start_worker
from suptickets_ray.tickets.store import TicketStore
from suptickets_ray.training.cycle import cycle_rate, run_cycle
from suptickets_ray.training.evaluation import evaluate
from suptickets_ray.training.loop import budget_of, build_learner, steps_per_epoch
from suptickets_ray.training.tensorboard import Scalars


def chain_state_path(chain: int) -> str:
    """Returns where, under the run's folder, the state lies that a chain's last finished cycle ended in."""
    return f"chains/chain-{chain:03d}.pt"


@ray.remote
class Explorer:
    """Runs any cycle of any chain: it keeps nothing from one to the next, so losing it costs the cycle it was in."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._worker = start_worker(settings)
        self._learner = build_learner(self._worker.config, self._worker.splits, self._worker.device, restores=True)
        self._digest = config_digest(self._worker.config)

    def node(self) -> str:
        """Returns the id of the machine that it runs on; whoever answers is ready."""
        return str(ray.get_runtime_context().get_node_id())

    def run_cycle(self, state: bytes, chain: int, cycle: int, again: bool) -> tuple[pa.Table, bytes, bool]:
        """Returns the cycle's ticket as an Arrow table, the state that the chain's next cycle starts from, and True.

        The last says that the cycle is done, to whom neither of the large ones is of use. Both also go to the run's
        storage, the ticket first: a state that is there means that its ticket is, too.

        Args:
            state: What phase one, or the cycle before, ended in.
            chain: Chain, from 0.
            cycle: Cycle within the chain, from 0.
            again: Whether an earlier, interrupted try may have left points for TensorBoard, which are then hidden.
        """
        began = time.time()
        worker, config = self._worker, self._worker.config
        tickets, epoch_steps = config.tickets, steps_per_epoch(config, worker.splits)
        first_step = (budget_of(config).pretrain_epochs + cycle * tickets.cycle_epochs) * epoch_steps
        self._learner.load_bytes(state)
        parent = self._learner.ticket({}).digest
        with Scalars(worker.tensorboard, f"chain-{chain:03d}", first_step + 1 if again else None) as scalars:

            def watch(epoch: int, loss: float) -> None:
                step = first_step + (epoch + 1) * epoch_steps
                lr = cycle_rate(tickets, epoch + 1)
                scalars.write(step, train__loss=loss, train__lr=lr, train__density=self._learner.sparsifier.density)
                worker.report("cycle_epoch", chain=chain, cycle=cycle, epoch=epoch + 1, loss=loss)

            def updated(step: int) -> None:
                scalars.write_layer_densities(first_step + step, self._learner.sparsifier.masks)

            run_cycle(self._learner, config, worker.splits, chain, cycle, watch, updated)
            validation = evaluate(self._learner.model, worker.splits.validation)
            scalars.write(
                first_step + tickets.cycle_epochs * epoch_steps,
                validation__accuracy=validation["accuracy"],
                validation__loss=validation["loss"],
            )
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
            }
        )
        state = self._learner.to_bytes(cycle=cycle)
        TicketStore(worker.store).put(ticket, chain, cycle)
        worker.store.write(chain_state_path(chain), state)
        worker.report(
            "ticket",
            chain=chain,
            cycle=cycle,
            validation_accuracy=validation["accuracy"],
            node=self.node(),
            process=os.getpid(),
            began=began,
            ended=time.time(),
        )
        return ticket.to_arrow(), state, True
