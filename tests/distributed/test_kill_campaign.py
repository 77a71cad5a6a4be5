"""One strike of the campaign; kill_campaign.py as a script makes as many as it is told."""

import tempfile
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_a_run_whose_process_is_killed_at_a_random_moment_ends_in_the_same_bits(finished_run, tiny, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    from kill_campaign import RECIPE, Campaign

    assert tiny == RECIPE
    # The undisturbed run had three explorers; their number changes no bit.
    with tempfile.TemporaryDirectory(prefix="kc-") as folder:  # short: Ray makes sockets below it
        campaign = Campaign(folder, seed=7, digest=finished_run.result["superposed"]["digest"])
        digest, seen = campaign.run("kill")
    assert digest == campaign.digest
    assert seen["left"] == 0
    assert not seen["hung"]
