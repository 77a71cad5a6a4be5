"""Pretraining: sparse training as a Ray Train DDP job."""

from __future__ import annotations

import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device, prepare_model
from torch.nn import Module
from torch.nn.parallel import DistributedDataParallel

from suptickets_ray.config import Config
from suptickets_ray.distributed.cluster.capacity import resource_shortfall, worker_bundle, worker_labels
from suptickets_ray.distributed.cluster.errors import has_diverged, lacks_capacity, lost_elsewhere
from suptickets_ray.distributed.cluster.event_queue import Event, OnEvent, reported_warnings, watched
from suptickets_ray.distributed.cluster.retry import RetryBudget
from suptickets_ray.distributed.cluster.watchdog import StallWatchdog
from suptickets_ray.distributed.pipeline.context import Worker, start_worker
from suptickets_ray.process_start import collect_normally
from suptickets_ray.recipes.load import config_digest
from suptickets_ray.search.keys import pretraining_key
from suptickets_ray.sparse.statistics import explored_fraction
from suptickets_ray.tickets.store import RunStore, patiently
from suptickets_ray.training.evaluation import evaluate
from suptickets_ray.training.loop import (
    DivergedError,
    Learner,
    budget_of,
    build_learner,
    check_finite,
    order_seed,
    seed_torch,
    steps_per_epoch,
    train_epoch,
)
from suptickets_ray.training.optim import pretrain_lr
from suptickets_ray.training.tensorboard import Scalars

STATE_FILE = "state.pt"
_MAX_JOBS = 10
"""Jobs in a row that were lost and came no further than those before."""


def pretrain(
    config: Config, settings: dict[str, Any], folder: str, on_event: OnEvent, *, verbose: bool = False
) -> bytes:
    """Returns the state that pretraining ends in. A killed pretraining goes on from its last checkpoint.

    So does a failed one: if a machine, a process or the storage was lost, or if it has come further since its start. A
    fault in the code itself strikes again at the same point, and is not waited for. Machines are: as long as the recipe
    says, and where others hold them for as long as that takes.

    Args:
        config: The recipe.
        settings: What `worker_settings` gave.
        folder: Where Ray Train keeps its checkpoints, under the run's folder.
        on_event: Is told of the progress.
        verbose: Whether Ray Train's own messages are shown.

    Raises:
        DivergedError: If a loss or weight is not finite.
        RuntimeError: If training fails for good; the message is the worker's. Or if there is no room for it any more.
    """
    cluster = config.cluster
    least, most = cluster.min_workers, cluster.max_workers
    store = RunStore(settings["run_path"])
    filesystem, location = store.location
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=settings,
        scaling_config=ScalingConfig(
            num_workers=cluster.num_workers if isinstance(cluster.num_workers, int) else (least, most),
            use_gpu=cluster.gpus_per_worker > 0,
            resources_per_worker=worker_bundle(cluster),
            label_selector=worker_labels(cluster) or None,
        ),
        run_config=RunConfig(
            # Ray Train goes on with whatever has the same name, so the name holds what the state depends on.
            name=f"pretraining-{config_digest(config)[:16]}",
            storage_path=f"{location}/{folder}",
            storage_filesystem=filesystem,
            # Whether to try again is decided below: Ray Train would repeat a fault of the code as well, and wait for
            # machines without a word or an end.
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            logging_config=ray.train.LoggingConfig(log_level="INFO" if verbose else "CRITICAL"),
        ),
    )
    retries, watchdog = RetryBudget(_MAX_JOBS), StallWatchdog(cluster, settings["monitor"], "pretraining")

    def noted(event: Event) -> None:
        if event["kind"] == "epoch":
            retries.reached(event["epoch"])
            watchdog.look(False, None)
        on_event(event)

    while True:
        furthest = retries.furthest
        try:
            result = watched(trainer.fit, settings["monitor"], noted, "pretraining")
            break
        except RuntimeError as error:
            if lacks_capacity(error.__cause__):
                watchdog.look(True, resource_shortfall(cluster))
                continue
            if has_diverged(error.__cause__):
                raise DivergedError(str(error)) from error
            lost = lost_elsewhere(error.__cause__, in_object_store="://" in settings["run_path"])
            if not retries.died() or not (lost or retries.furthest > furthest):
                raise
            on_event({"kind": "waiting", "text": f"{error}. It goes on from its last checkpoint."})
            store.exists(STATE_FILE)  # whatever the answer: it waits for one
    if result.checkpoint is None:
        raise RuntimeError(
            "pretraining ended without a checkpoint. Start the command again; it goes on from the last one."
        )
    return patiently(lambda: _state_in(result.checkpoint))


def _state_in(checkpoint: Checkpoint) -> bytes:
    with checkpoint.as_directory() as checkpoint_dir:
        return (Path(checkpoint_dir) / STATE_FILE).read_bytes()


def train_worker(settings: dict[str, Any]) -> None:
    """Trains pretraining on one rank; rank 0 checkpoints, validates and writes TensorBoard's scalars."""
    worker = start_worker(settings, get_device())
    config, splits = worker.config, worker.splits
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    epochs, epoch_steps = budget_of(config).pretrain_epochs, steps_per_epoch(config, splits)
    learner = build_learner(config, splits, worker.device)
    collect_normally()
    first_epoch = _last_checkpoint(learner)
    forward = prepare_model(
        learner.model,
        parallel_strategy_kwargs={
            # Running statistics are averaged once an epoch instead of being sent from rank 0 at every step.
            "broadcast_buffers": False,
            # Otherwise DDP sorts its gradient buckets anew after the first step, and with them the order in which 3 or
            # more ranks are summed: the step after a resume would differ in its last bits from the undisturbed one.
            "find_unused_parameters": True,
        },
    )
    if isinstance(forward, DistributedDataParallel):
        learner.sparsifier.attach_ddp(forward)
    if config.train.compile:
        forward = torch.compile(forward)
    with (
        Scalars(worker.tensorboard, "pretraining", first_epoch * epoch_steps + 1)
        if rank == 0
        else nullcontext() as scalars
    ):
        if scalars is not None and first_epoch == 0:
            scalars.write_layer_densities(0, learner.sparsifier.masks)
        for epoch in range(first_epoch, epochs):
            began = time.monotonic()
            seed_torch(config.seed, "pretrain", epoch, rank)

            def rate(step: int, epoch: int = epoch) -> float:
                return pretrain_lr(config.train, epoch * epoch_steps + step, epoch_steps, epochs)

            def updated(step: int, epoch: int = epoch) -> None:
                if scalars is not None:
                    scalars.write_layer_densities(epoch * epoch_steps + step, learner.sparsifier.masks)

            bad_steps: list[int] = []
            with reported_warnings(worker.send) if rank == 0 else nullcontext():
                loss = train_epoch(
                    learner,
                    forward,
                    config,
                    splits,
                    order_seed(config.seed, epoch),
                    rate,
                    rank=rank,
                    world_size=world_size,
                    on_update=updated,
                    on_diverged=bad_steps.append,
                )
            check_finite(learner, config.train, epoch + 1, bad_steps[0] if bad_steps else None)
            if epoch + 1 == epochs:
                learner.sparsifier.end_phase()
            if world_size > 1:
                average_buffers(learner.model, world_size)
            if scalars is not None:
                _watch(worker, learner, scalars, epoch + 1, loss, time.monotonic() - began)
            if (epoch + 1) % config.train.checkpoint_every_epochs == 0 or epoch + 1 == epochs:
                _checkpoint(learner, rank, epoch + 1, int(pretraining_key(config), 16))


def _watch(worker: Worker, learner: Learner, scalars: Scalars, epoch: int, loss: float, seconds: float) -> None:
    """Validates after `epoch` epochs; TensorBoard and the person who watches are told."""
    validation = evaluate(learner.model, worker.splits.validation)
    epoch_steps, fraction = steps_per_epoch(worker.config, worker.splits), learner.sparsifier.drop_fraction
    extra = {} if fraction is None else {"train__drop_fraction": fraction}
    scalars.write(
        epoch * epoch_steps,
        **extra,
        train__examples_per_second=epoch_steps * worker.config.data.batch_size / seconds,
        train__loss=loss,
        train__lr=learner.optimizer.param_groups[0]["lr"],
        train__density=learner.sparsifier.density,
        train__explored=explored_fraction(learner.sparsifier.explored),
        validation__accuracy=validation["accuracy"],
        validation__loss=validation["loss"],
    )
    epochs = budget_of(worker.config).pretrain_epochs
    worker.report("epoch", epoch=epoch, epochs=epochs, loss=loss, validation_accuracy=validation["accuracy"])


def _last_checkpoint(learner: Learner) -> int:
    """Loads the last checkpoint, if there is one, and returns the epoch to go on with."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return 0
    with checkpoint.as_directory() as folder:
        return learner.load_bytes((Path(folder) / STATE_FILE).read_bytes())["epoch"]


def _checkpoint(learner: Learner, rank: int, epoch: int, recipe: int) -> None:
    """Reports the state to Ray Train, with the digest of its recipe; every rank takes part, rank 0 brings the file."""
    if rank != 0:
        ray.train.report({"epoch": epoch})
        return
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / STATE_FILE).write_bytes(learner.to_bytes(epoch=epoch, recipe=recipe))
        ray.train.report({"epoch": epoch}, checkpoint=Checkpoint.from_directory(folder))


def average_buffers(model: Module, world_size: int) -> None:
    """Makes every floating buffer the mean over ranks, so that all ranks hold the same network."""
    for buffer in model.buffers():
        if buffer.is_floating_point():
            dist.all_reduce(buffer)
            buffer.div_(world_size)
