"""TensorBoard's own page on a finished run, in a real browser."""

import socket
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def tensorboard(finished_run, free_ports):
    """The address of a TensorBoard that shows a finished run."""
    tree = f"{finished_run.path}/tensorboard"
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", tree, "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while True:
            assert process.poll() is None
            assert time.monotonic() < deadline
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture
def page(browser):
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    page = context.new_page()
    page.set_default_timeout(30_000)
    yield page
    context.close()


def test_curves_of_pretraining_and_every_chain_are_shown(page, tensorboard):
    page.goto(f"{tensorboard}/?darkMode=false#timeseries")
    for words in ("pretraining", "chain-000", "chain-001", "superposition", "summary", "train", "validation"):
        page.get_by_text(words, exact=True).first.wait_for()


def test_the_recipe_is_a_page_of_text(page, tensorboard):
    page.goto(f"{tensorboard}/#text")
    page.get_by_text("density: 0.1").first.wait_for()


def test_the_settings_and_final_metrics_are_on_the_hparams_page(page, tensorboard):
    page.goto(f"{tensorboard}/#hparams")
    page.get_by_text("train.lr").first.wait_for()


@pytest.mark.parametrize(("tab", "tag"), [("images", "tickets/overlap"), ("histograms", "layers/density")])
def test_pictures_and_histograms_have_their_tabs(page, tensorboard, tab, tag):
    page.goto(f"{tensorboard}/#{tab}")
    page.get_by_text(tag).first.wait_for()
