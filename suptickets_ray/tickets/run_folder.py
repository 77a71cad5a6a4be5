"""Names of the files in the folder of a run or a search. No other module spells them out.

`recipes.recorded_run.RecordedRun` reads and writes the files by these names. The paths of tickets are in `TicketStore`.
"""

from __future__ import annotations

CONFIG_FILE = "config.yaml"
"""The resolved recipe."""
DATA_FILE = "data.sha256"
"""The fingerprint of the data."""
LOCK_FILE = ".lock"
"""The heartbeat of the process that works in the folder."""
PRETRAINED_FILE = "pretrained.pt"
"""The state at the end of pretraining."""
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
"""Number of pretrainings and cycles that a search trained. Written first, so that it identifies a search."""
BEST_FILE = "best.yaml"
"""The recipe of the best trial of a search."""
TRIALS_FILE = "trials.parquet"
"""A row per trial of a search."""
RAY_TUNE_FOLDER = "ray_tune"
"""Ray Tune's own files, which no result depends on."""
PRETRAININGS_FOLDER = "pretraining"
"""In a search, a folder for each pretraining that trials share."""
EXPLORATIONS_FOLDER = "explorations"
"""In a search, a folder for each set of tickets that trials share."""
POINTS_FOLDER = "points"
"""In a search, a folder for each point, with the scores and the sup-ticket of each seed."""
SEARCH_FOLDERS = (PRETRAININGS_FOLDER, EXPLORATIONS_FOLDER, POINTS_FOLDER)
DIVERGED_FILE = "diverged"
"""Error message of a diverged pretraining, in the folder of that pretraining."""


def chain_state_path(chain: int) -> str:
    """Returns the path, below the run's folder, of the state at the end of a chain's last finished cycle."""
    return f"chains/chain-{chain:03d}.pt"


def partial_state_path(chain: int) -> str:
    """Returns the path, below the run's folder, of a chain's state within a long cycle, or on a draining node."""
    return f"chains/chain-{chain:03d}.part.pt"
