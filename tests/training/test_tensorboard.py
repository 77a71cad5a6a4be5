"""Event files as TensorBoard's own reader sees them."""

import os
import time

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from suptickets_ray.training.tensorboard import Scalars


def points(folder, tag="train/loss"):
    reader = EventAccumulator(str(folder))
    reader.Reload()
    return [(point.step, point.value) for point in reader.Scalars(tag)]


@pytest.fixture
def process(monkeypatch):
    """Plays a process of another number: a chain's cycles may run in any."""
    return lambda number: monkeypatch.setattr(os, "getpid", lambda: number)


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands in one second: each look at it is a nanosecond later."""
    now = [1_800_000_000 * 10**9]

    def time_ns():
        now[0] += 1
        return now[0]

    monkeypatch.setattr(time, "time_ns", time_ns)
    return now


def test_cycles_of_one_second_are_read_in_the_order_in_which_they_were_begun(tmp_path, process, clock):
    for step, number in enumerate([90, 8, 700, 8]):
        process(number)
        with Scalars(str(tmp_path), "chain-000") as scalars:
            scalars.write(step, train__loss=step / 2)
    assert points(tmp_path / "chain-000") == [(0, 0.0), (1, 0.5), (2, 1.0), (3, 1.5)]


def test_a_cycle_that_is_run_again_hides_the_points_of_its_first_try(tmp_path, process, clock):
    for number, steps, first in ((90, (1, 2, 3), None), (8, (3, 4), 3)):
        process(number)
        with Scalars(str(tmp_path), "chain-000", first) as scalars:
            for step in steps:
                scalars.write(step, train__loss=number)
    assert points(tmp_path / "chain-000") == [(1, 90.0), (2, 90.0), (3, 8.0), (4, 8.0)]


def test_names_of_later_seconds_come_later(tmp_path, clock):
    names = []
    for nanoseconds in (4, 999_999_999, 1_000_000_003):
        clock[0] = 1_800_000_000 * 10**9 + nanoseconds - 1
        Scalars(str(tmp_path), "a").close()
        names += [path.name for path in (tmp_path / "a").iterdir() if path.name not in names]
    assert names == sorted(names)
    numbers = [name.removeprefix("events.out.tfevents.").rsplit(".", 2)[0] for name in names]
    assert numbers == ["1800000000.000000004", "1800000000.999999999", "1800000001.000000003"]


def test_points_are_on_the_disk_at_once(tmp_path):
    scalars = Scalars(str(tmp_path), "chain-000")
    for step in range(3):
        scalars.write(step, train__loss=1.0)
        assert [step for step, _ in points(tmp_path / "chain-000")] == list(range(step + 1))
    scalars.close()


def test_layer_densities_are_one_histogram_per_update(tmp_path):
    masks = {"a": torch.tensor([[True, False]]), "b": torch.ones(4, 4, dtype=torch.bool)}
    with Scalars(str(tmp_path), "pretraining") as scalars:
        scalars.write_layer_densities(7, masks)
    reader = EventAccumulator(str(tmp_path / "pretraining"))
    reader.Reload()
    (found,) = reader.Histograms("layers/density")
    value = found.histogram_value
    assert (found.step, value.num, value.min, value.max, value.sum) == (7, 2, 0.5, 1.0, 1.5)
