"""The example notebook runs as it stands."""

import ast
import re
import shutil
from html import unescape
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = [pytest.mark.ray, pytest.mark.slow]
NOTEBOOK = Path(__file__).parents[1] / "experiments" / "notebook.ipynb"


# The kernel's own libraries close their sockets late.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_notebook_runs_shows_progress_and_ends_with_the_figures(tmp_path):
    shutil.copy(NOTEBOOK, tmp_path)
    notebook = nbformat.read(tmp_path / NOTEBOOK.name, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error"]
    pages = ["".join(output.get("data", {}).get("text/html", "")) for output in outputs]
    live = next(page for page in pages if "tickets" in page)
    assert re.search("6 of 6, 6 merged", live)
    (framed,) = re.findall('srcdoc="([^"]*)"', pages[-1])
    assert "<svg" in unescape(framed)
    texts = [str(output.get("data", {}).get("text/plain")) for output in outputs]
    accuracies = ast.literal_eval(next(text for text in texts if "'superposed'" in text))
    assert accuracies["superposed"] > 0.7
