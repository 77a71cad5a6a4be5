"""A callback that makes the training of Hugging Face's Trainer sparse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.nn import Module
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from suptickets_ray.integrations.attach import attach_sparsifier
from suptickets_ray.sparse import Sparsifier

STATE_FILE = "sparsifier.pt"
"""File in the trainer's checkpoints."""


class SparsifierCallback(TrainerCallback):  # type: ignore[misc]
    """Keeps the trained model sparse, and saves masks and schedule in the trainer's checkpoints.

    Works with DistributedDataParallel, mixed precision, gradient accumulation and clipping.

    Example:
        callback = SparsifierCallback("rigl", density=0.1)
        trainer = Trainer(model, arguments, train_dataset=data, callbacks=[callback])
        callback.attach(trainer)
        trainer.train()
    """

    def __init__(
        self, method: str, *, density: float, seed: int = 0, resume_from: str | None = None, **settings: Any
    ) -> None:
        """Creates the callback. The Sparsifier is attached when the training starts.

        Args:
            method: A name of `METHODS`.
            density: Target density in (0, 1].
            seed: Seed of masks and growth.
            resume_from: Folder of the checkpoint that the training resumes from, if it is not in the output folder.
            settings: Further arguments of the Sparsifier, e.g. dense_layers or update_interval_steps.
        """
        self._method, self._seed, self._settings = method, seed, {"density": density, **settings}
        self._resume_from = resume_from
        self._trainer: Trainer | None = None
        self.sparsifier: Sparsifier | None = None
        """The attached Sparsifier, from the start of the training on."""

    def attach(self, trainer: Trainer) -> None:
        """Lets the callback mask gradients before the trainer clips them. Call it once, before `train`."""
        self._trainer, accelerator = trainer, trainer.accelerator
        unscale = accelerator.unscale_gradients

        def unscale_and_mask(optimizer: Any = None) -> None:
            """Accelerate calls it right before it clips."""
            unscale(optimizer)
            if self.sparsifier is not None:
                self.sparsifier.mask_gradients()

        accelerator.unscale_gradients = unscale_and_mask

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Attaches the Sparsifier. The optimizer exists, and a checkpoint's weights and optimizer are restored.

        Raises:
            RuntimeError: If gradients are clipped and `attach` was not called.
            ValueError: If the checkpoint has no state of a Sparsifier, or as the Sparsifier.
        """
        if args.max_grad_norm > 0 and self._trainer is None:
            raise RuntimeError(
                "Cannot clip the sparse network's gradients: call attach(trainer) before trainer.train(), or set "
                "max_grad_norm=0."
            )
        model: Module = kwargs["model"]
        optimizer = getattr(kwargs["optimizer"], "optimizer", kwargs["optimizer"])  # inside accelerate's wrapper
        stored = None
        if state.global_step:
            folder = Path(self._resume_from or f"{args.output_dir}/checkpoint-{state.global_step}")
            if not (folder / STATE_FILE).exists():
                raise ValueError(
                    f"the checkpoint must hold {STATE_FILE}; {folder} has none. Pass the checkpoint's folder as "
                    "resume_from."
                )
            stored = torch.load(folder / STATE_FILE, map_location="cpu", weights_only=True)
        self.sparsifier = attach_sparsifier(
            model, optimizer, self._method, self._settings, state.max_steps, self._seed, stored
        )
        wrapped = getattr(self._trainer, "model_wrapped", None)
        if isinstance(wrapped, DistributedDataParallel):
            self.sparsifier.attach_ddp(wrapped)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Counts the optimizer step, and updates the topology when it is due."""
        assert self.sparsifier is not None
        self.sparsifier.step()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Adds density and number of updates to the trainer's logs."""
        if self.sparsifier is None:
            return
        values = {"sparsifier_density": self.sparsifier.density, "sparsifier_updates": self.sparsifier.num_updates}
        for logs in (kwargs.get("logs"), state.log_history[-1] if state.log_history else None):
            if logs is not None:
                logs.update(values)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Writes masks and schedule into the checkpoint."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if self.sparsifier is not None and state.is_world_process_zero and folder.exists():
            torch.save(self.sparsifier.state_dict(), folder / STATE_FILE)
