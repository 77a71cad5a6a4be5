"""What lies in a storage or a recipe is data: nothing that somebody planted there is run."""

import hashlib
import os
import pickle
import shutil

import pyarrow as pa
import pytest
import torch

from suptickets_ray import Ticket, load_config
from suptickets_ray.offline.resuperpose import open_run
from suptickets_ray.training.checkpoint import is_whole, read_state


class Planted:
    """Unpickling it leaves a file behind."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_planted_checkpoint_is_refused_and_does_not_run(tmp_path):
    torch.save({"model": Planted(tmp_path / "ran"), "optimizer": {}, "sparsifier": {}, "progress": {}}, tmp_path / "x")
    content = (tmp_path / "x").read_bytes()
    sealed = content + hashlib.sha256(content).digest()  # whoever plants it can seal it
    for planted in (content, sealed, pickle.dumps(Planted(tmp_path / "ran"))):
        assert not is_whole(planted)
        with pytest.raises(ValueError, match="the stored state must be whole"):
            read_state(planted)
    assert not (tmp_path / "ran").exists()


def test_a_planted_ticket_is_refused_and_does_not_run(tmp_path):
    payload = pickle.dumps(Planted(tmp_path / "ran"))
    sink = pa.BufferOutputStream()
    table = pa.table({"name": ["w"], "values": [payload]})
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    for content in (payload, sink.getvalue().to_pybytes()):
        with pytest.raises(ValueError, match="ticket"):
            Ticket.from_bytes(content)
    assert not (tmp_path / "ran").exists()


def test_a_planted_recipe_is_refused_and_does_not_run(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"name: !!python/object/apply:os.mkdir ['{tmp_path}/ran']\n")
    with pytest.raises(ValueError, match="must be readable YAML"):
        load_config(recipe)
    with pytest.raises(ValueError, match="must be YAML"):
        load_config(None, [f"name=!!python/object/apply:os.mkdir ['{tmp_path}/ran']"])
    assert not (tmp_path / "ran").exists()


def test_a_run_folder_with_a_planted_recipe_is_refused(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(__file__, folder / "pretrained.pt")
    (folder / "config.yaml").write_text("name: !!python/name:os.system\n")
    with pytest.raises(ValueError, match="a stored recipe must be safe YAML"):
        open_run(str(folder))
