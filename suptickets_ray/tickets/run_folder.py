"""The files in the folder of a run or a search: the one place that names them."""

from __future__ import annotations

CONFIG_FILE = "config.yaml"
"""The resolved recipe."""
DATA_FILE = "data.sha256"
"""The fingerprint of the data."""
LOCK_FILE = ".lock"
"""The sign of the process that works in the folder."""
PRETRAINED_FILE = "pretrained.pt"
"""The state that pretraining ended in."""
SUPERPOSED_FILE = "superposed.arrow"
"""The sup-ticket."""
RESULT_FILE = "result.json"
"""The final numbers. Written last: a folder that has it is complete."""
REPORT_FILE = "report.html"
TIMELINE_FILE = "timeline.json"
"""When each phase, cycle and merge began and ended."""
TENSORBOARD_FOLDER = "tensorboard"
RAY_TRAIN_FOLDER = "ray_train"
"""Ray Train's checkpoints, only while pretraining is not finished."""
SEARCH_FILE = "search.json"
"""Of a search: how often pretraining and cycles were trained. Written first: a folder that has it is a search's."""
BEST_FILE = "best.yaml"
"""Of a search: the recipe of the best trial."""
TRIALS_FILE = "trials.parquet"
"""Of a search: a row per trial."""


def chain_state_path(chain: int) -> str:
    """Returns the path, below the run's folder, of the state that a chain's last finished cycle ended in."""
    return f"chains/chain-{chain:03d}.pt"


def partial_state_path(chain: int) -> str:
    """Returns the path, below the run's folder, of a chain's state within a cycle: a long one, or a draining node's."""
    return f"chains/chain-{chain:03d}.part.pt"
