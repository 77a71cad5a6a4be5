"""A callback that makes the training of Lightning's Trainer sparse."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from suptickets_ray.integrations.attach import attach_sparsifier
from suptickets_ray.sparse import Sparsifier


class SparsifierCallback(Callback):  # type: ignore[misc]
    """Keeps the trained module sparse, and saves masks and schedule in the trainer's checkpoints.

    Works with DistributedDataParallel, mixed precision, gradient accumulation and clipping. The module must have one
    optimizer and automatic optimization. The trainer's epochs or steps must be limited, because the method's schedules
    end with the training.

    Example:
        trainer = Trainer(max_epochs=20, callbacks=[SparsifierCallback("rigl", density=0.1)])
    """

    def __init__(self, method: str, *, density: float, seed: int = 0, **settings: Any) -> None:
        """Creates the callback. The Sparsifier is attached when the training starts.

        Args:
            method: A name of `METHODS`.
            density: Target density in (0, 1].
            seed: Seed of masks and growth.
            settings: Further arguments of the Sparsifier, e.g. dense_layers or update_interval_steps.
        """
        self._method, self._seed, self._settings = method, seed, {"density": density, **settings}
        self._state: dict[str, Any] | None = None
        self._clips = False
        self._counted = 0
        """Optimizer steps that the Sparsifier has counted, or that precede the training."""
        self.sparsifier: Sparsifier | None = None
        """The attached Sparsifier, from the start of the training on."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attaches the Sparsifier. Optimizers exist, and weights of a checkpoint are restored.

        Raises:
            ValueError: If there are several optimizers, the training has no end, or as the Sparsifier.
        """
        if len(trainer.optimizers) != 1:
            raise ValueError(f"the module must have one optimizer; got {len(trainer.optimizers)}.")
        total_steps = trainer.estimated_stepping_batches
        if total_steps == float("inf"):
            raise ValueError("the training must have an end; got max_epochs=-1 and max_steps=-1. Set one of them.")
        self._clips = trainer.gradient_clip_val is not None
        self.sparsifier = attach_sparsifier(
            pl_module, trainer.optimizers[0], self._method, self._settings, int(total_steps), self._seed, self._state
        )
        if isinstance(trainer.strategy.model, DistributedDataParallel):
            self.sparsifier.attach_ddp(trainer.strategy.model)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reads how many steps a restored training has taken."""
        self._counted = trainer.global_step

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Masks the gradients before they are clipped, so that the norm is the sparse network's."""
        if self._clips and self.sparsifier is not None:
            self.sparsifier.mask_gradients()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts the optimizer step, if the batch had one, updates the topology when it is due, and logs."""
        assert self.sparsifier is not None
        if trainer.global_step > self._counted:  # a batch whose gradients are accumulated has no step
            self._counted = trainer.global_step
            self.sparsifier.step()
        values = {"density": self.sparsifier.density, "updates": float(self.sparsifier.num_updates)}
        pl_module.log_dict({f"sparsifier/{name}": value for name, value in values.items()})

    def state_dict(self) -> dict[str, Any]:
        """Returns the state for the trainer's checkpoint."""
        return {} if self.sparsifier is None else self.sparsifier.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the state of a checkpoint until the Sparsifier is attached."""
        self._state = state_dict or None
