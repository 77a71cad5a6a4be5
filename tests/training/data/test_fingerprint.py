"""What tells two data sets apart, and that a run does not go on with another one."""

import itertools
import json

import pytest
import torch
from torch.utils.data import Dataset, Subset, TensorDataset, random_split

from suptickets_ray import load_config
from suptickets_ray.distributed.pipeline.result import stored_result
from suptickets_ray.recipes.load import config_digest, to_yaml
from suptickets_ray.tickets.run_folder import DATA_FILE
from suptickets_ray.tickets.store import RunStore
from suptickets_ray.training.data import fingerprint as fingerprint_module
from suptickets_ray.training.data.convert import convert
from suptickets_ray.training.data.examples import Examples, LabelledDataset
from suptickets_ray.training.data.fingerprint import check_data, fingerprint
from suptickets_ray.training.data.parquet import parquet
from suptickets_ray.training.data.splits import with_labels
from suptickets_ray.training.preflight import preflight


def pairs(first=0.0, label=0, count=9):
    inputs, labels = torch.zeros(count, 3), torch.arange(count) % 2
    inputs[0, 0], labels[-1] = first, label
    return {"train": (inputs, labels), "test": (torch.ones(2, 3), torch.zeros(2).long())}


class Own(Dataset):
    """Examples of the user's own; `changes` gives others at every look."""

    def __init__(self, value=0.0, changes=False, fails=False):
        self.value, self.looks, self.changes, self.fails = value, itertools.count(), changes, fails

    def __len__(self):
        return 5

    def __getitem__(self, index):
        if self.fails:
            raise OSError("damaged")
        return torch.tensor([self.value + self.changes * next(self.looks)]), 0


def of(dataset):
    return fingerprint({"train": dataset, "test": dataset})


def test_equal_data_are_told_apart_from_all_others():
    assert fingerprint(pairs()) == fingerprint(pairs())
    others = [pairs(first=1.0), pairs(label=1), pairs(count=8), {**pairs(), "validation": pairs()["test"]}]
    assert len({fingerprint(loaded) for loaded in [pairs(), *others]}) == 5
    half = {name: (inputs.half(), labels) for name, (inputs, labels) in pairs().items()}
    assert fingerprint(half) != fingerprint(pairs())


def test_a_dataset_of_ones_own_counts_by_its_first_example_where_that_stays_the_same():
    assert of(Own()) == of(Own()) != of(Own(1.0))
    assert of(Own(changes=True)) == of(Own(1.0, changes=True))
    assert of(Own(fails=True)) == of(Own(fails=True))


class Coin(Own):
    """Examples that are turned over at random, from a generator of its own or from the one that all have."""

    def __init__(self, generator=None, value=1.0):
        super().__init__(value)
        self.generator = generator

    def __getitem__(self, index):
        return torch.tensor([self.value, 0.0])[torch.randperm(2, generator=self.generator)], 0


def test_an_example_that_is_turned_over_at_random_does_not_change_the_fingerprint():
    for own in (True, False):
        found = set()
        for seed in range(8):
            torch.manual_seed(seed)
            found.add(of(Coin(torch.Generator().manual_seed(seed) if own else None)))
        assert len(found) == 1
    before = torch.get_rng_state()
    of(Coin())
    assert torch.equal(torch.get_rng_state(), before)


class Views(Own):
    def __init__(self, inputs):
        super().__init__()
        self.inputs = inputs

    def __getitem__(self, index):
        return {"image": self.inputs[index], "kind": (self.inputs[index].numpy(), "a")}, 0


def test_of_an_example_that_looks_into_a_large_tensor_only_itself_counts(monkeypatch):
    looked_at = []
    whole = fingerprint_module._bytes_of

    def counted(tensor):
        content = whole(tensor)
        looked_at.append(len(content))
        return content

    monkeypatch.setattr(fingerprint_module, "_bytes_of", counted)
    first, other, later = torch.zeros(5, 3), torch.zeros(5, 3), torch.zeros(5, 3)
    other[0, 1], later[4, 1] = 1.0, 1.0
    assert len({of(Views(first)), of(Views(later)), of(Views(other))}) == 3
    assert max(looked_at) < 60


def split_of(labels, seed):
    data = TensorDataset(torch.arange(90.0).view(-1, 1), labels)
    generator = torch.Generator() if seed is None else torch.Generator().manual_seed(seed)
    if seed is None:
        generator.seed()
    train, test = random_split(data, [60, 30], generator=generator)
    return {"train": train, "test": test, "num_classes": 2}


def test_a_split_of_a_dataset_counts_by_its_indices_and_labels():
    labels = torch.arange(90) % 2
    assert fingerprint(split_of(labels, 0)) == fingerprint(with_labels(split_of(labels, 0)))
    assert fingerprint(split_of(labels, 0)) != fingerprint(split_of(labels, 1))
    assert fingerprint(split_of(labels, 0)) != fingerprint(split_of(1 - labels, 0))


def test_indices_tell_splits_apart_whose_examples_change_at_every_look():
    changing = [of(Subset(Own(changes=True), indices)) for indices in ([0, 1], [0, 1], [1, 2])]
    assert changing[0] == changing[1] != changing[2]


def test_data_that_differ_at_every_call_are_refused_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "unseeded_data.py").write_text(
        "import torch\nfrom torch.utils.data import TensorDataset, random_split\n"
        "def load():\n    data = TensorDataset(torch.rand(90, 64), torch.randint(10, (90,)))\n"
        "    train, test = random_split(data, [60, 30])\n"
        "    return {'train': train, 'test': test, 'num_classes': 10}\n"
    )
    config = load_config(None, ["data.name=unseeded_data:load", "data.batch_size=10", f"storage={tmp_path}"])
    with pytest.raises(
        ValueError, match="data.name must give the same examples in every process .* Seed its random choices"
    ):
        preflight(config)


def test_labels_that_are_known_are_compared_whenever_examples_are_read():
    data = TensorDataset(torch.zeros(4, 1), torch.tensor([0, 1, 0, 1]))
    examples = Examples(LabelledDataset(data, torch.tensor([0, 1, 1, 1])))
    assert examples.all_labels().tolist() == [0, 1, 1, 1]
    examples.batch(torch.tensor([0, 1, 3]))
    with pytest.raises(ValueError, match="data.name must give the same examples in every process"):
        examples.batch(torch.tensor([1, 2]))


def test_a_streamed_set_that_cannot_be_read_is_said_and_not_counted_as_another(tmp_path, monkeypatch):
    convert(pairs(), str(tmp_path))
    loaded = parquet(str(tmp_path), in_memory=False)
    monkeypatch.setattr(type(loaded["train"]), "contents", lambda self, indices: 1 / 0, raising=False)
    monkeypatch.setattr(type(loaded["train"]), "read", lambda self, indices, seed: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fingerprint(loaded)


def test_streamed_data_count_by_their_labels_and_first_images(tmp_path):
    found = set()
    for number, first in enumerate((0.0, 1.0)):
        convert(pairs(first), str(tmp_path / str(number)))
        found |= {fingerprint(parquet(str(tmp_path / str(number)), in_memory=held)) for held in (False, True)}
    assert len(found) == 2


def test_work_that_was_begun_on_other_data_is_refused(tmp_path):
    store = RunStore(str(tmp_path))
    check_data(store, "a")  # an earlier version kept none
    store.write(DATA_FILE, b"a")
    check_data(store, "a")
    with pytest.raises(ValueError, match="the data must be those that the work in .* was begun with"):
        check_data(store, "b")


def test_a_finished_run_is_no_answer_to_a_question_about_other_data(tmp_path):
    for number in (0, 1):
        convert(pairs(float(number)), str(tmp_path / str(number)))
    kind = ["data.name=parquet", "model.initialization=default", "data.batch_size=4"]

    def asked(number):
        return load_config(None, [*kind, f"data.root={tmp_path / str(number)}"])

    store = RunStore(str(tmp_path / "run"))
    store.write("config.yaml", to_yaml(asked(0)).encode())
    done = {"state": "complete", "config_digest": config_digest(asked(0))}
    store.write("result.json", json.dumps(done).encode())
    store.write(DATA_FILE, fingerprint(parquet(str(tmp_path / "0"))).encode())
    assert stored_result(str(tmp_path / "run"), asked(0), "run") == done
    (tmp_path / "0").rename(tmp_path / "2")
    assert stored_result(str(tmp_path / "run"), asked(2), "run") == done
    with pytest.raises(ValueError, match="the data must be those that the work in"):
        stored_result(str(tmp_path / "run"), asked(1), "run")
