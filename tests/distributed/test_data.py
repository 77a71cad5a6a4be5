"""Data that workers share, and data that Ray Data streams to them."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from PIL import Image
from small_runs import make_run

from suptickets_ray import load_config, train
from suptickets_ray.distributed.pipeline.data import fetch_by_ray_data, put_data, worker_splits
from suptickets_ray.training.data import load_source
from suptickets_ray.training.data.convert import convert
from suptickets_ray.training.data.streaming import Job

pytestmark = pytest.mark.ray

FEW = [
    "train.epochs=10",
    "tickets.cycle_rate=0.2",
    "tickets.cycle_epochs=1",
    "tickets.num_chains=2",
    "method.update_interval_steps=2",
    "data.batch_size=20",
    "superposition.gate_tolerance=none",
    "cluster.num_workers=1",
    "cluster.num_explorers=1",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """84 JPEG files of three colours in a folder for each."""
    root = tmp_path_factory.mktemp("images")
    pixels = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 4)):
        for label, name in enumerate(("blue", "green", "red")):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                width, height = pixels.integers(20, 40, 2)
                image = pixels.integers(0, 120, (height, width, 3)).astype(np.uint8)
                image[..., 2 - label] += 80
                Image.fromarray(image).save(root / split / name / f"{index:02d}.jpg")
    return root


def result_of(run):
    return json.loads((run / "result.json").read_text())


def digests(finished):
    return finished.result["superposed"]["digest"], [row["digest"] for row in finished.result["tickets"]]


def test_workers_map_one_copy_of_what_fits_in_memory(ray_address):
    config = load_config(None, ["data.name=synthetic", "data.options.num_train=2000", "model.initialization=default"])
    shared = put_data(load_source(config.data))

    @ray.remote(num_cpus=0)
    class Holder:
        def __init__(self, settings):
            self.splits = worker_splits(config, settings["shared"])

        def first(self):
            images = self.splits.train._source[0]
            regions = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
            inside = [
                " ".join(parts[5:])
                for parts in regions
                if int(parts[0].split("-")[0], 16) <= images.data_ptr() < int(parts[0].split("-")[1], 16)
            ]
            return images.dtype, inside, self.splits.train.batch(torch.arange(1))[0]

    holders = [Holder.remote({"shared": shared}) for _ in range(2)]
    found = ray.get([holder.first.remote() for holder in holders])
    for holder in holders:
        ray.kill(holder)
    for dtype, inside, _ in found:
        assert dtype == torch.uint8
        assert any("plasma" in path or "/dev/shm" in path for path in inside)
    assert torch.equal(found[0][2], found[1][2])


def test_a_worker_whose_data_differ_from_the_drivers_is_refused_and_reads_no_labels(ray_address, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "counted_data.py").write_text(
        "import torch\nREADS, SEED = [], 0\n"
        "class Counted(torch.utils.data.Dataset):\n"
        "    def __init__(self, seed):\n"
        "        self.inputs = torch.rand(90, 4, generator=torch.Generator().manual_seed(seed))\n"
        "    def __len__(self):\n        return 90\n"
        "    def __getitem__(self, index):\n        READS.append(index)\n        return self.inputs[index], index % 3\n"
        "def load():\n    return {'train': Counted(SEED), 'test': Counted(SEED + 1)}\n"
    )
    import counted_data

    config = load_config(None, ["data.name=counted_data:load", "data.batch_size=10", "model.initialization=default"])
    loaded = load_source(config.data)
    shared = put_data(loaded)
    counted_data.READS.clear()
    splits = worker_splits(config, shared)
    assert splits.num_classes == 3
    assert torch.equal(splits.test.all_labels(), torch.arange(90) % 3)
    assert len(counted_data.READS) < 100  # some examples of both sets, instead of all 180
    monkeypatch.setattr(counted_data, "SEED", 7)
    with pytest.raises(ValueError, match="data.name must give the same examples in every process"):
        worker_splits(config, shared)


@pytest.mark.slow
def test_ray_data_reads_the_jobs_in_order_while_all_cpus_are_taken(ray_address, folder, tmp_path):
    size = ["data.options.image_size=16", "model.initialization=default"]
    loaded = load_source(load_config(None, ["data.name=image_folder", f"data.root={folder}", *size]).data)
    convert(loaded, str(tmp_path / "parquet"), rows_per_file=20)
    stored = load_config(None, ["data.name=parquet", f"data.root={tmp_path}/parquet", *size])
    source = load_source(stored.data)["train"]

    @ray.remote(num_cpus=4)
    class Greedy:
        def read(self):
            jobs = [Job(list(range(start, start + 9)), start if start else None) for start in (63, 0, 18)]
            return [images.numpy() for images in fetch_by_ray_data(source, jobs, 2)]

    greedy = Greedy.remote()
    found = ray.get(greedy.read.remote(), timeout=120)
    ray.kill(greedy)
    for images, start in zip(found, (63, 0, 18), strict=True):
        expected = loaded["train"].read(list(range(start, start + 9)), start or None)
        assert np.array_equal(images, expected.numpy())


@pytest.mark.slow
def test_a_folder_converted_to_parquet_trains_to_the_same_digest(ray_address, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder.parent)  # ranks and explorers run in folders of their own
    # Blocks this small, so that Ray Data has something to do; a few images are read by the worker itself.
    common = [
        *FEW,
        "train.lr_schedule=constant",
        "data.options.image_size=16",
        "data.options.block_size=16",
        "superposition.recalibration_examples=20",
    ]
    common += ["train.epochs=2", "tickets.cycle_rate=0.5", "tickets.num_chains=1", "method.update_interval_steps=1"]
    common += ["model.name=resnet20", "model.options.width=4", "model.initialization=default"]
    plain = load_config(None, [*common, "data.name=image_folder", f"data.root={folder.name}"])
    convert(load_source(plain.data), str(tmp_path / "parquet"), rows_per_file=20)
    stored = load_config(
        None, [*common, f"storage={tmp_path}", "name=parquet", "data.name=parquet", f"data.root={tmp_path}/parquet"]
    )
    make_run(tmp_path / "folder", ["data.name=image_folder", f"data.root={folder.name}"], common)  # without Ray
    made = result_of(tmp_path / "folder")
    assert digests(train(stored)) == (made["superposed"]["digest"], [row["digest"] for row in made["tickets"]])


@pytest.mark.slow
def test_made_cifar_files_train_end_to_end_with_their_own_reader(ray_address, tmp_path):
    base = tmp_path / "cifar-10-batches-py"
    base.mkdir()
    pixels = np.random.default_rng(0)
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        labels = pixels.integers(0, 10, 100)
        data = (pixels.integers(0, 100, (100, 3072)) + 15 * labels[:, None]).astype(np.uint8)
        content = {"data": data, "labels": labels.tolist(), "batch_label": "made", "filenames": ["x.png"] * 100}
        (base / name).write_bytes(pickle.dumps(content, protocol=2))
    names = {"label_names": ["a"] * 10, "num_cases_per_batch": 100, "num_vis": 3072}
    (base / "batches.meta").write_bytes(pickle.dumps(names, protocol=2))
    config = load_config(
        None,
        [
            *FEW,
            "data.name=cifar10",
            f"data.root={tmp_path}",
            "model.name=resnet20",
            "model.options.width=4",
            "model.initialization=default",
            "train.limit_batches=10",
            "train.epochs=4",
            "tickets.cycle_rate=0.5",
            "tickets.num_chains=1",
            f"storage={tmp_path}",
            "name=made",
        ],
    )
    finished = train(config)
    assert len(finished.result["tickets"]) == 2
    assert result_of(tmp_path / "made")["state"] == "complete"
    assert 0 <= finished.result["superposed"]["accuracy"] <= 1
