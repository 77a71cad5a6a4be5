"""A part of Ray is killed in a real run; kill_campaign.py as a script strikes any process, as often as it is told."""

import tempfile
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_a_local_ray_that_loses_an_agent_is_started_again_and_the_digest_is_equal(finished_run, tiny, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    from kill_campaign import RECIPE, Campaign

    assert tiny == RECIPE
    # The undisturbed run had three explorers; their number changes no bit.
    digest = finished_run.result["superposed"]["digest"]
    with tempfile.TemporaryDirectory(prefix="kc-") as folder:
        found, seen = Campaign(folder, 7, digest, victim="ray::DashboardAgent").run("kill")
    assert seen["victim"].startswith("ray::DashboardAgent")
    assert found == digest
    assert seen["codes"] == [0]  # by itself
    assert seen["left"] == 0
