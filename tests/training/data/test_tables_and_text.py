"""Data that ship with Python and scikit-learn."""

import pytest
import torch

from suptickets_ray.training.data.fingerprint import fingerprint
from suptickets_ray.training.data.tables import TABLES, table
from suptickets_ray.training.data.text import NUM_TOKENS, python_docs


@pytest.mark.parametrize(
    ("name", "rows", "columns", "outputs"),
    [("diabetes", 442, 10, 1), ("breast_cancer", 569, 30, 2), ("wine", 178, 13, 3)],
)
def test_a_table_is_standardized_with_its_training_rows(name, rows, columns, outputs):
    loaded = table(0, name)
    sizes = [len(loaded[split][1]) for split in ("train", "validation", "test")]
    assert sum(sizes) == rows and sizes[1] == sizes[2] == round(0.2 * rows)
    inputs, targets = loaded["train"]
    assert inputs.shape[1] == columns and loaded["num_classes"] == outputs
    assert torch.allclose(inputs.mean(0), torch.zeros(columns), atol=1e-5)
    assert torch.allclose(inputs.std(0), torch.ones(columns), atol=1e-5)
    assert targets.is_floating_point() == (name == "diabetes")
    assert fingerprint(table(0, name)) == fingerprint(loaded) != fingerprint(table(1, name))


def test_an_unknown_table_is_refused():
    assert set(TABLES) == {"diabetes", "breast_cancer", "wine"}
    with pytest.raises(ValueError, match="unknown data.options.table 'whine'; did you mean 'wine'?"):
        table(0, "whine")


def test_the_text_is_cut_into_sequences_with_the_next_character_as_label():
    loaded = python_docs(0, length=20, num_characters=5000)
    for inputs, labels in (loaded[split] for split in ("train", "validation", "test")):
        assert inputs.shape == labels.shape and inputs.shape[1] == 20
        assert torch.equal(inputs[:, 1:], labels[:, :-1])
        assert int(labels.max()) < NUM_TOKENS == loaded["num_classes"]
    with pytest.raises(ValueError, match="length must be at least 1 and below a tenth of the 300 characters; got 40"):
        python_docs(0, length=40, num_characters=300)
