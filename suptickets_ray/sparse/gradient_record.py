"""The dense gradients that the next update of the masks reads, kept while the optimizer steps with masked ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

from suptickets_ray.sparse.masks import Tensors


class GradientRecord:
    """Gradients of one step, their running averages, and the layers that the step trained."""

    def __init__(self) -> None:
        self.gradients: dict[str, Tensor] | None = None
        """Dense gradients of this step by name; None if no update reads them."""
        self.trained: set[str] = set()
        """Layers that had a gradient at the last step; the others keep their masks at an update."""
        self.momenta: dict[str, Tensor] = {}
        """Running averages of the dense gradients, for criteria that read them."""
        self._saw_diverged = False

    @torch.no_grad()
    def copy(self, gradients: Tensors, optimizer: Optimizer) -> None:
        """Copies the dense gradients, once per step, because they are masked before they are read.

        Raises:
            RuntimeError: If a gradient holds active weights alone.
        """
        if self.gradients is not None:
            return
        if any(gradient.is_sparse for gradient in gradients.values()):
            raise RuntimeError(
                "Cannot update the masks: gradients were computed for the active weights alone. Load states and change "
                "masks before backward()."
            )
        self.gradients = {name: gradient.clone() for name, gradient in gradients.items()}
        scale = getattr(optimizer, "grad_scale", None)  # a fused optimizer unscales inside its step
        if scale is not None:
            for gradient in self.gradients.values():
                gradient.div_(scale)

    @torch.no_grad()
    def average(self, decay: float) -> None:
        """Adds this step's gradients to the running averages."""
        for name, gradient in (self.gradients or {}).items():
            # As torch's SGD: the first gradient unchanged, then a decaying sum.
            momentum = self.momenta.get(name)
            self.momenta[name] = gradient.clone() if momentum is None else momentum.mul_(decay).add_(gradient)

    def clear(self) -> None:
        """Ends the step: its gradients are released."""
        self.gradients = None

    def note_diverged(self, gradients: Iterable[Tensor]) -> None:
        """Remembers whether a gradient is not finite, because masking may hide the values."""
        sums = [gradient.sum().float() for gradient in gradients]
        # One result for all layers: each transfer to the host makes a GPU wait.
        self._saw_diverged = bool(sums) and not bool(torch.stack([s.to(sums[0].device) for s in sums]).isfinite().all())

    def accept_skipped(self, optimizer: Optimizer) -> None:
        """Accepts a missing optimizer step if a GradScaler skipped it for its gradients.

        Raises:
            RuntimeError: If all gradients are finite, so that no step was due to be skipped.
        """
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        diverged, self._saw_diverged = self._saw_diverged, False
        if not diverged and all(bool(_entries(gradient).isfinite().all()) for gradient in gradients):
            raise RuntimeError(
                "Cannot count a step: the Sparsifier's optimizer made none since the last call. Call optimizer.step() "
                "first, and zero_grad() after both."
            )

    def load_momenta(self, momenta: Mapping[str, Tensor], weights: Tensors) -> None:
        """Restores the running averages, on the weights' devices, and forgets this step's gradients."""
        self.momenta = {name: momentum.to(weights[name].device).clone() for name, momentum in momenta.items()}
        self.gradients = None


def _entries(gradient: Tensor) -> Tensor:
    return gradient.coalesce().values() if gradient.is_sparse else gradient
