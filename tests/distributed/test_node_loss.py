import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray


def test_a_node_removed_while_it_explores_costs_time_but_no_bit(finished_run, forked_run):
    # Short: a Unix socket's path has at most 107 bytes. The nodes are real raylets, in a Ray of their own.
    temp_dir = tempfile.mkdtemp(prefix="st-")
    (Path(temp_dir) / "ray").mkdir()
    script = Path(__file__).parent / "node_loss.py"
    try:
        done = subprocess.run(
            [sys.executable, str(script), str(forked_run), temp_dir],
            capture_output=True,
            text=True,
            timeout=240,
            env={**os.environ, "RAY_TMPDIR": temp_dir},
            check=False,
        )
    finally:
        shutil.rmtree(temp_dir, ignore_errors=True)
    assert done.returncode == 0, done.stdout + done.stderr
    digest = done.stdout.partition("DIGEST ")[2].split()[0]  # Ray's own lines about the lost node follow
    assert digest == json.loads((Path(finished_run.path) / "result.json").read_text())["superposed"]["digest"]
