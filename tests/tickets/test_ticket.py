import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from suptickets_ray import Ticket
from suptickets_ray.tickets.arrow import SCHEMA, digest_of_rows, seal

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def ticket(dtype=torch.float32, seed=0, provenance=None):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(5, 7, generator=generator) < 0.3
    weight = torch.randn(5, 7, generator=generator).to(dtype) * mask
    state = {
        "weight": weight,
        "bias": torch.randn(5, generator=generator).to(dtype),
        "num_batches_tracked": torch.tensor(12),
        "empty": torch.zeros(0, dtype=dtype),
    }
    return Ticket(state, {"weight": mask}, provenance or {"chain": 1, "cycle": 2})


def equal(a, b):
    return all(
        torch.equal(a.state_dict()[name].view(-1).view(torch.uint8), tensor.view(-1).view(torch.uint8))
        and a.state_dict()[name].shape == tensor.shape
        for name, tensor in b.state_dict().items()
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_arrow_form_gives_the_same_ticket_back(dtype):
    original = ticket(dtype)
    again = Ticket.from_arrow(original.to_arrow())
    assert equal(original, again)
    assert torch.equal(original.masks["weight"], again.masks["weight"])
    assert again.provenance == {"chain": 1, "cycle": 2}
    assert again.digest == original.digest
    assert list(again.state_dict()) == list(original.state_dict())


def test_a_file_gives_the_same_ticket_back(tmp_path):
    ticket().save(tmp_path / "a.arrow")
    assert Ticket.load(tmp_path / "a.arrow").digest == ticket().digest


def test_nan_and_infinity_survive():
    original = Ticket(
        {"w": torch.tensor([[float("nan"), float("inf"), 0.0]])}, {"w": torch.tensor([[True, True, False]])}, {}
    )
    again = Ticket.from_arrow(original.to_arrow()).state_dict()["w"]
    assert torch.isnan(again[0, 0])
    assert again[0, 1] == float("inf")


def test_a_view_is_stored_as_what_it_shows():
    big = torch.arange(12.0).view(3, 4)
    again = Ticket.from_arrow(Ticket({"w": big.T[1:3]}, {}, {}).to_arrow())
    assert again.state_dict()["w"].tolist() == [[1, 5, 9], [2, 6, 10]]


def test_density_and_digest_are_those_of_the_content():
    a = ticket()
    assert a.density == int(a.masks["weight"].sum()) / 35
    assert a.digest == ticket(provenance={"chain": 7}).digest
    assert a.digest != ticket(seed=1).digest


def test_a_ticket_does_not_change_with_what_it_was_made_of():
    weight = torch.ones(2, 2)
    made = Ticket({"w": weight}, {}, {})
    weight.zero_()
    made.state_dict()["w"].zero_()
    assert made.state_dict()["w"].tolist() == [[1, 1], [1, 1]]


def test_a_weight_off_its_mask_is_refused():
    with pytest.raises(ValueError, match="'w' must be 0 off its mask; got 1 other values"):
        Ticket({"w": torch.ones(2)}, {"w": torch.tensor([True, False])}, {})


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="must have its tensor's shape"):
        Ticket({"w": torch.ones(2)}, {"w": torch.ones(3)}, {})


def test_minus_zero_off_the_mask_does_not_change_the_bits():
    mask = torch.tensor([True, False])
    assert equal(
        Ticket({"w": torch.tensor([1.0, -0.0])}, {"w": mask}, {}),
        Ticket({"w": torch.tensor([1.0, 0.0])}, {"w": mask}, {}),
    )


@given(st.data())
def test_a_damaged_file_is_an_error_never_another_ticket(data):
    content = bytearray(ticket().to_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        read = Ticket.from_bytes(bytes(content))
    except ValueError:
        return
    assert read.digest == ticket().digest  # padding, or provenance, which is no part of the content


def test_a_foreign_table_is_refused():
    with pytest.raises(ValueError, match="the table must be a ticket"):
        Ticket.from_arrow(pa.table({"a": [1]}))


def crafted(rows, compression=None, batches=1):
    """A file whose digest and seal hold, whatever its rows say."""
    metadata = {"version": 1, "digest": digest_of_rows(rows), "provenance": {}}
    metadata["seal"] = seal(metadata)
    schema = SCHEMA.with_metadata({b"suptickets_ray.ticket": json.dumps(metadata, sort_keys=True).encode()})
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        for _ in range(batches):
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    return sink.getvalue()


def row(shape, mask=None, values=b"", dtype="float32"):
    return {"name": "w", "shape": shape, "dtype": dtype, "mask": mask, "values": values}


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_compressed_buffers_are_refused_before_they_expand(compression):
    size = 40 * 2**20
    content = crafted([row([size * 8], mask=bytes(size))], compression)
    assert len(content) < 500_000
    before = pa.total_allocated_bytes()
    with pytest.raises(ValueError, match="buffers must be uncompressed"):
        Ticket.from_bytes(content)
    assert pa.total_allocated_bytes() - before < 2**20
    assert Ticket.from_bytes(crafted([row([2], values=bytes(8))])).state_dict()["w"].tolist() == [0, 0]


def test_a_batch_that_is_listed_again_and_again_is_refused():
    with pytest.raises(ValueError, match="must be one record batch; got 3"):
        Ticket.from_bytes(crafted([row([2], values=bytes(8))], batches=3))


@pytest.mark.parametrize(
    "one",
    [
        row([2**40]),
        row([2**40], mask=bytes(8)),
        row([0, 2**62, 2**62]),
        row([-1], values=bytes(4)),
        row([2], values=bytes(8), dtype="complex64"),
    ],
    ids=["no values", "short mask", "overflow", "negative", "type"],
)
def test_a_shape_that_the_file_cannot_fill_is_refused(one):
    with pytest.raises(ValueError, match="must|damaged"):
        Ticket.from_bytes(crafted([one])).state_dict()


@pytest.mark.slow
@settings(max_examples=2000, deadline=None)
@given(st.data())
def test_crafted_and_resealed_rows_are_a_ticket_or_a_value_error(data):
    shape = data.draw(st.lists(st.integers(-1, 2**63 - 1) | st.integers(0, 5), max_size=4))
    binary = st.binary(max_size=40) | st.integers(0, 64).map(bytes)
    mask = data.draw(st.none() | binary)
    dtype = data.draw(st.sampled_from(["float32", "bool", "int64", "bfloat16", "complex64", "", "float33"]))
    rows = [row(shape, mask, data.draw(binary), dtype)] * data.draw(st.integers(0, 2))
    content = bytearray(crafted(rows))
    for _ in range(data.draw(st.integers(0, 2))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ValueError):
        found = Ticket.from_bytes(bytes(content))
        found.state_dict()
        assert 0 <= found.density <= 1


def test_pandas_opens_a_ticket(tmp_path):
    ticket().save(tmp_path / "a.arrow")
    with pa.ipc.open_file(tmp_path / "a.arrow") as reader:
        frame = reader.read_pandas()
    assert frame["name"].tolist() == ["weight", "bias", "num_batches_tracked", "empty"]
    assert frame["mask"].notna().tolist() == [True, False, False, False]


def test_provenance_is_as_it_is_read_again():
    ticket = Ticket({"w": torch.ones(2)}, {}, {"pair": (1, 2), "h": {9: 0.5, 10: 0.6}})
    assert ticket.provenance == {"pair": [1, 2], "h": {"9": 0.5, "10": 0.6}}
    assert Ticket.from_bytes(ticket.to_bytes()).provenance == ticket.provenance
    with pytest.raises(ValueError, match="provenance must be JSON values; .*float32"):
        Ticket({"w": torch.ones(2)}, {}, {"accuracy": np.float32(0.5)})


def test_a_ticket_that_cannot_be_written_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "a.arrow"
    old = Ticket({"w": torch.ones(2)}, {}, {})
    old.save(path)

    def full(self, content):
        with self.open("wb") as file:
            file.write(content[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        Ticket({"w": torch.zeros(2)}, {}, {}).save(path)
    assert Ticket.load(path).digest == old.digest
    assert [file.name for file in tmp_path.iterdir()] == ["a.arrow"]


def test_the_digest_is_the_same_in_another_process():
    code = "import torch; from suptickets_ray import Ticket; print(Ticket({'w': torch.arange(3.)}, {}, {}).digest)"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == Ticket({"w": torch.arange(3.0)}, {}, {}).digest


def test_a_ticket_of_resnet50_at_a_twentieth_is_at_most_8_5_megabytes():
    # 54 maskable tensors of 23,652,032 weights, and 106,340 other parameters and buffers (ResNet-50 for 100 classes)
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(23_652_032, generator=generator) < 0.05
    state = {"w": torch.randn(23_652_032, generator=generator) * mask, "rest": torch.zeros(106_340)}
    assert len(Ticket(state, {"w": mask}, {}).to_bytes()) <= 8.5e6


def test_bits_behind_the_last_weight_and_a_tensor_given_twice_are_refused():
    table = ticket().to_arrow()
    rows = table.to_pylist()
    mask = bytearray(rows[0]["mask"])
    mask[-1] |= 0b1000_0000  # 35 weights in 40 bits
    for damaged, message in (
        ([{**rows[0], "mask": bytes(mask)}, *rows[1:]], "must end with its last weight"),
        ([*rows, rows[1]], "must hold each tensor once"),
        ([rows[0], {**rows[1], "dtype": "complex64"}], "must have a known type and shape"),
        ([{**rows[0], "shape": [7, 6]}], "must hold 42 bits; got 5 bytes"),
        ([{**rows[0], "values": rows[0]["values"][4:]}], "values of float32; got"),
        ([rows[1]], "it is damaged"),
    ):
        with pytest.raises(ValueError, match=message):
            Ticket.from_arrow(pa.Table.from_pylist(damaged, schema=table.schema))


def test_another_version_is_refused():
    table = ticket().to_arrow()
    metadata = {key: value.replace(b'"version": 1', b'"version": 9') for key, value in table.schema.metadata.items()}
    with pytest.raises(ValueError, match="version must be 1; got 9. Update suptickets_ray"):
        Ticket.from_arrow(table.replace_schema_metadata(metadata))


def test_a_ticket_is_read_without_pickle(monkeypatch):
    import pickle

    content = ticket().to_bytes()
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, None)
    assert Ticket.from_bytes(content).digest == ticket().digest


def test_provenance_is_sealed():
    content = ticket(provenance={"chain": 3, "seed": 17}).to_bytes()
    for old, new in ((b'"chain": 3', b'"chain": 9'), (b'"seed": 17', b'"seed": 71')):
        assert old in content
        with pytest.raises(ValueError, match="metadata must be as it was written"):
            Ticket.from_bytes(content.replace(old, new))


@pytest.mark.parametrize("metadata", [b"[" * 200_000, b"[]", b'{"version": 1, "digest": "", "provenance": 5}', b"\xff"])
def test_metadata_of_another_kind_is_an_error(metadata):
    table = ticket().to_arrow().replace_schema_metadata({b"suptickets_ray.ticket": metadata})
    with pytest.raises(ValueError, match="metadata must be readable"):
        Ticket.from_arrow(table)


def test_every_single_flipped_bit_is_an_error_or_harmless():
    original = Ticket({"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([True, False])}, {"chain": 1})
    content = original.to_bytes()
    for position in range(len(content)):
        for bit in (0, 3, 7):
            damaged = bytearray(content)
            damaged[position] ^= 1 << bit
            try:
                read = Ticket.from_bytes(bytes(damaged))
            except ValueError:
                continue
            assert (read.digest, read.provenance) == (original.digest, {"chain": 1})
