"""Pretraining: sparse training as a Ray Train DDP job."""

from __future__ import annotations

import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import ray
import ray.train
import torch.distributed as dist
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device, prepare_model
from torch.nn import Module
from torch.nn.parallel import DistributedDataParallel

from suptickets_ray.distributed.cluster.capacity import resource_shortfall, worker_bundle, worker_labels
from suptickets_ray.distributed.cluster.errors import has_diverged, is_placement_timeout, is_transient_failure
from suptickets_ray.distributed.cluster.event_queue import reported_warnings, watched
from suptickets_ray.distributed.cluster.retry import RetryBudget
from suptickets_ray.distributed.cluster.watchdog import StallWatchdog
from suptickets_ray.distributed.pipeline.context import Worker, WorkerContext, start_worker
from suptickets_ray.process_start import collect_normally
from suptickets_ray.progress.events import EpochEnded, Event, OnEvent, Resumed, Starting, Waiting
from suptickets_ray.recipes.load import config_digest
from suptickets_ray.search.keys import pretraining_key
from suptickets_ray.sparse.statistics import explored_fraction
from suptickets_ray.tickets.store import RunStore, patiently
from suptickets_ray.training.divergence import DivergedError, check_finite
from suptickets_ray.training.evaluation import evaluate
from suptickets_ray.training.loop import (
    Learner,
    budget_of,
    build_learner,
    order_seed,
    seed_torch,
    steps_per_epoch,
    train_epoch,
)
from suptickets_ray.training.optim import pretrain_lr
from suptickets_ray.training.tensorboard import Scalars

STATE_FILE = "state.pt"
_MAX_FAILED_JOBS = 10
"""Consecutive failed jobs without new progress after which pretraining fails."""


def pretrain(context: WorkerContext, folder: str, on_event: OnEvent, *, verbose: bool = False) -> bytes:
    """Returns the final state of pretraining. A killed pretraining continues from its last checkpoint.

    A failed job is retried if a machine, a process or the storage was lost, or if the job made new progress. A bug in
    the code fails again at the same point, and is not retried. If the cluster has too few machines, pretraining waits
    as long as the recipe says. If other jobs hold the machines, it waits without a limit.

    Args:
        context: What is sent to the ranks.
        folder: Folder of Ray Train's checkpoints, relative to the run's folder.
        on_event: Called with progress events.
        verbose: Whether Ray Train's messages are shown.

    Raises:
        DivergedError: If a loss or a weight is not finite.
        RuntimeError: If training fails permanently, with the worker's message. Or if the cluster no longer has
            capacity for it.
    """
    config, cluster = context.config, context.config.cluster
    store = RunStore(context.run_path)
    filesystem, location = store.location
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"context": context},
        scaling_config=ScalingConfig(
            num_workers=cluster.num_workers
            if isinstance(cluster.num_workers, int)
            else (cluster.min_workers, cluster.max_workers),
            use_gpu=cluster.gpus_per_worker > 0,
            resources_per_worker=worker_bundle(cluster),
            label_selector=worker_labels(cluster) or None,
        ),
        run_config=RunConfig(
            # Ray Train continues the job of the same name, so the name contains a digest of the recipe.
            name=f"pretraining-{config_digest(config)[:16]}",
            storage_path=f"{location}/{folder}",
            storage_filesystem=filesystem,
            # Retries are decided below. Ray Train would also retry bugs, and would wait for machines silently and
            # without a limit.
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            logging_config=ray.train.LoggingConfig(log_level="INFO" if verbose else "CRITICAL"),
        ),
    )
    retries, watchdog = RetryBudget(_MAX_FAILED_JOBS), StallWatchdog(cluster, context.monitor, "pretraining")

    def handle_event(event: Event) -> None:
        if isinstance(event, EpochEnded):
            retries.record_progress(event.epoch)
            watchdog.poll(False, None)
        on_event(event)

    while True:
        earlier_progress = retries.max_progress
        on_event(Starting(f"pretraining on {_ranks(cluster.min_workers, cluster.max_workers)}"))
        try:
            result = watched(trainer.fit, context.monitor, handle_event, "pretraining")
            break
        except RuntimeError as error:
            if is_placement_timeout(error.__cause__):
                watchdog.poll(True, resource_shortfall(cluster))
                continue
            if has_diverged(error.__cause__):
                raise DivergedError(str(error)) from error
            is_transient = is_transient_failure(error.__cause__, in_object_store="://" in context.run_path)
            if not retries.record_failure() or not (is_transient or retries.max_progress > earlier_progress):
                raise
            on_event(Waiting(f"{error}. Pretraining continues from its last checkpoint."))
            store.exists(STATE_FILE)  # waits until the storage answers; the result is not needed
    if result.checkpoint is None:
        raise RuntimeError(
            "Cannot finish pretraining: Ray Train returned no checkpoint. The same command continues from the last one."
        )
    return patiently(lambda: _state_in(result.checkpoint))


def _ranks(low: int, high: int) -> str:
    return f"{high} {'rank' if high == 1 else 'ranks'}" if low == high else f"{low} to {high} ranks"


def _state_in(checkpoint: Checkpoint) -> bytes:
    with checkpoint.as_directory() as checkpoint_dir:
        return (Path(checkpoint_dir) / STATE_FILE).read_bytes()


def train_worker(arguments: dict[str, WorkerContext]) -> None:
    """Runs pretraining on one rank. Rank 0 writes checkpoints, validates, and writes TensorBoard scalars."""
    worker = start_worker(arguments["context"], get_device(), trains_rank=True)
    config, splits = worker.config, worker.splits
    job = ray.train.get_context()
    rank, world_size = job.get_world_rank(), job.get_world_size()
    epochs, epoch_steps = budget_of(config).pretrain_epochs, steps_per_epoch(config, splits)
    learner = build_learner(config, splits, worker.device)
    collect_normally()
    first_epoch = _load_checkpoint(learner)
    if rank == 0 and 0 < first_epoch < epochs:
        worker.send(Resumed(f"the pretraining of {first_epoch} epochs", epoch=first_epoch))
    forward = prepare_model(
        learner.model,
        parallel_strategy_kwargs={
            # Running statistics are averaged once per epoch, instead of being sent from rank 0 at every step.
            "broadcast_buffers": False,
            # Otherwise DDP re-sorts its gradient buckets after the first step, which changes the order of sums over 3
            # or more ranks. The first step after a resume would then differ in its last bits from an undisturbed run.
            "find_unused_parameters": True,
        },
    )
    if isinstance(forward, DistributedDataParallel):
        learner.sparsifier.attach_ddp(forward)
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

            def lr_of(step: int, epoch: int = epoch) -> float:
                return pretrain_lr(config.train, epoch * epoch_steps + step, epoch_steps, epochs)

            def on_update(step: int, epoch: int = epoch) -> None:
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
                    lr_of,
                    rank=rank,
                    world_size=world_size,
                    on_update=on_update,
                    on_diverged=bad_steps.append,
                )
            check_finite(learner, config.train, epoch + 1, bad_steps[0] if bad_steps else None)
            if epoch + 1 == epochs:
                learner.sparsifier.end_phase()
            if world_size > 1:
                average_buffers(learner.model, world_size)
            if scalars is not None:
                _validate_and_report(worker, learner, scalars, epoch + 1, loss, time.monotonic() - began)
            if (epoch + 1) % config.train.checkpoint_every_epochs == 0 or epoch + 1 == epochs:
                _save_checkpoint(learner, rank, epoch + 1, int(pretraining_key(config), 16))


def _validate_and_report(
    worker: Worker, learner: Learner, scalars: Scalars, epoch: int, loss: float, seconds: float
) -> None:
    """Validates after `epoch` epochs, and sends the scores to TensorBoard and the driver."""
    validation = evaluate(learner.model, worker.splits.validation, learner.task)
    epoch_steps, fraction = steps_per_epoch(worker.config, worker.splits), learner.sparsifier.drop_fraction
    extra = {} if fraction is None else {"train__drop_fraction": fraction}
    examples_per_second = epoch_steps * worker.config.data.batch_size / seconds
    scalars.write(
        epoch * epoch_steps,
        **extra,
        train__examples_per_second=examples_per_second,
        train__loss=loss,
        train__lr=learner.optimizer.param_groups[0]["lr"],
        train__density=learner.sparsifier.density,
        train__explored=explored_fraction(learner.sparsifier.explored),
        **{f"validation__{name}": value for name, value in validation.items()},
    )
    epochs = budget_of(worker.config).pretrain_epochs
    metric = learner.task.metric
    worker.send(EpochEnded(epoch, epochs, loss, validation[metric.name], metric, examples_per_second))


def _load_checkpoint(learner: Learner) -> int:
    """Loads the last checkpoint, if there is one. Returns the number of finished epochs."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return 0
    with checkpoint.as_directory() as folder:
        return learner.load_bytes((Path(folder) / STATE_FILE).read_bytes())["epoch"]


def _save_checkpoint(learner: Learner, rank: int, epoch: int, recipe: int) -> None:
    """Reports the state to Ray Train, with the digest of its recipe. All ranks must call it; rank 0 writes the file."""
    if rank != 0:
        ray.train.report({"epoch": epoch})
        return
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / STATE_FILE).write_bytes(learner.to_bytes(epoch=epoch, recipe=recipe))
        ray.train.report({"epoch": epoch}, checkpoint=Checkpoint.from_directory(folder))


def average_buffers(model: Module, world_size: int) -> None:
    """Replaces every floating-point buffer by its mean over ranks, so that all ranks hold the same network."""
    for buffer in model.buffers():
        if buffer.is_floating_point():
            dist.all_reduce(buffer)
            buffer.div_(world_size)
