"""What was found out about a run's tickets as pictures, for TensorBoard."""

from __future__ import annotations

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from suptickets_ray.report.analysis import Findings

Picture = NDArray[np.uint8]


def pictures_of(findings: Findings) -> dict[str, Picture]:
    """Returns pictures by TensorBoard tag, each uint8 (height, width, 3): those for which something was found."""
    found = {}
    if findings.overlaps:
        found["tickets/overlap"] = _overlap_picture(findings)
    if findings.curves:
        found["tickets/loss_between"] = _curves_picture(findings)
    return found


def _overlap_picture(findings: Findings) -> Picture:
    size = max(4.0, 0.4 * len(findings.networks) + 2)
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(findings.overlaps, vmin=0, vmax=1, cmap="viridis")
    places = range(len(findings.networks))
    axes.set_xticks(places, findings.networks, rotation=90)
    axes.set_yticks(places, findings.networks)
    axes.set_title("Shared connections of each pair (Jaccard index)")
    figure.colorbar(image, ax=axes, shrink=0.8)
    return _pixels(figure)


def _curves_picture(findings: Findings) -> Picture:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for curve in findings.curves:
        axes.plot(curve.shares, curve.losses, marker="o", label=f"{curve.first} to {curve.second}")
    axes.set_xlabel("weight of the second network")
    axes.set_ylabel("validation loss (nats)")
    axes.set_title("Loss on the straight line between networks")
    axes.legend(fontsize="small")
    return _pixels(figure)


def _pixels(figure: Figure) -> Picture:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba(), dtype=np.uint8)[:, :, :3].copy()  # type: ignore[no-untyped-call]
