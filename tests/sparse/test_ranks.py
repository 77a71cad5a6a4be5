import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parent / "ddp_ranks.py"
WORLD_SIZE = 2


@pytest.fixture(scope="module")
def outcome_of(tmp_path_factory):
    """Runs a case of ddp_ranks.py on real gloo ranks, once, and returns what each rank saw.

    The ranks are started once: importing torch and connecting costs more than all cases together.
    """
    folder = tmp_path_factory.mktemp("ranks")
    ranks = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(rank), str(WORLD_SIZE), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(WORLD_SIZE)
    ]

    @cache
    def run(case):
        for rank in ranks:
            rank.stdin.write(f"{case}\n")
            rank.stdin.flush()
        assert [rank.stdout.readline() for rank in ranks] == [f"{case} done\n"] * WORLD_SIZE
        return [torch.load(folder / f"{case}-{rank}.pt") for rank in range(WORLD_SIZE)]

    try:
        yield run
        for rank in ranks:
            rank.stdin.close()
        assert [rank.wait(timeout=60) for rank in ranks] == [0] * WORLD_SIZE
    finally:
        for rank in ranks:
            rank.kill()
            rank.stdout.close()


def test_all_ranks_hold_the_same_masks_and_weights(outcome_of):
    first, second = outcome_of("compressed")
    assert all(torch.equal(mask, second["masks"][name]) for name, mask in first["masks"].items())
    assert all(torch.equal(tensor, second["model"][name]) for name, tensor in first["model"].items())


def test_between_updates_only_active_gradients_are_sent(outcome_of):
    result = outcome_of("compressed")[0]
    dense = result["dense_bytes"]
    assert result["updated"] == [False, False, False, True] * 3
    for num_bytes, updated in zip(result["bytes"], result["updated"], strict=True):
        if updated:
            assert num_bytes == dense
        else:
            assert 0 < num_bytes <= 1.1 * 0.05 * dense


def test_active_gradients_give_the_same_weights_as_plain_ddp(outcome_of):
    compressed, plain = outcome_of("compressed")[0], outcome_of("plain")[0]
    for name, mask in compressed["masks"].items():
        assert torch.equal(mask, plain["masks"][name])
    for name, tensor in compressed["model"].items():
        assert torch.allclose(tensor, plain["model"][name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("case", ["sparse", "sparse_plain"])
def test_ranks_that_compute_sparse_get_the_weights_of_masked_ranks(outcome_of, case):
    sparse, masked = outcome_of(case), outcome_of("plain")[0]
    for name, mask in masked["masks"].items():
        assert torch.equal(mask, sparse[0]["masks"][name])
    for name, tensor in masked["model"].items():
        assert torch.equal(sparse[0]["model"][name], sparse[1]["model"][name])
        assert torch.allclose(tensor, sparse[0]["model"][name], rtol=1e-5, atol=1e-7)
    assert case != "sparse" or sparse[0]["bytes"] == outcome_of("compressed")[0]["bytes"]


def test_growth_by_momentum_sends_all_gradients(outcome_of):
    first, second = outcome_of("momentum")
    assert set(first["bytes"]) == {first["dense_bytes"]}
    assert all(torch.equal(mask, second["masks"][name]) for name, mask in first["masks"].items())


def test_initial_masks_that_differ_between_ranks_are_refused_by_name(outcome_of):
    for text in outcome_of("differing"):
        assert text.startswith("masks must be equal on all ranks; at the start those of 0.weight differ.")


def test_masks_that_come_to_differ_are_named_with_the_update_and_the_layer(outcome_of):
    for text in outcome_of("drifting"):
        assert "after update 1 those of 0.weight differ. Give every rank the same weights" in text


def test_weights_in_channels_last_get_the_gradients_of_plain_ddp(outcome_of):
    compressed, plain = outcome_of("channels_last")[0], outcome_of("channels_last_plain")[0]
    for step, gradients in plain.items():
        for name, gradient in gradients.items():
            assert torch.allclose(compressed[step][name], gradient, rtol=1e-5, atol=1e-7), (step, name)
