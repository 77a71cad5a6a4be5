"""The analysis of a run's tickets as images for TensorBoard."""

from __future__ import annotations

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from suptickets_ray.report.analysis import Findings

Image = NDArray[np.uint8]


def images_of(findings: Findings) -> dict[str, Image]:
    """Returns images of the non-empty parts of an analysis by TensorBoard tag, each uint8 (height, width, 3)."""
    images = {}
    if findings.overlaps:
        images["tickets/overlap"] = _overlap_image(findings)
    if findings.curves:
        images["tickets/loss_between"] = _curves_image(findings)
    return images


def _overlap_image(findings: Findings) -> Image:
    size = max(4.0, 0.4 * len(findings.networks) + 2)
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(findings.overlaps, vmin=0, vmax=1, cmap="viridis")
    ticks = range(len(findings.networks))
    axes.set_xticks(ticks, findings.networks, rotation=90)
    axes.set_yticks(ticks, findings.networks)
    axes.set_title("Shared connections of each pair (Jaccard index)")
    figure.colorbar(image, ax=axes, shrink=0.8)
    return _pixels(figure)


def _curves_image(findings: Findings) -> Image:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for curve in findings.curves:
        axes.plot(curve.alphas, curve.losses, marker="o", label=f"{curve.first} to {curve.second}")
    axes.set_xlabel("weight of the second network")
    axes.set_ylabel("validation loss (nats)")
    axes.set_title("Loss on the straight line between networks")
    axes.legend(fontsize="small")
    return _pixels(figure)


def _pixels(figure: Figure) -> Image:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba(), dtype=np.uint8)[:, :, :3].copy()  # type: ignore[no-untyped-call]
