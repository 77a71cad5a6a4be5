"""Superposers that die, played without a cluster: an answer is what Ray would raise, or give."""

from itertools import count
from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError

from suptickets_ray.config import ClusterConfig
from suptickets_ray.distributed.pipeline import superposer_client
from suptickets_ray.distributed.pipeline.exploration import FinishedTicket
from suptickets_ray.distributed.pipeline.superposer_client import SuperposerClient


class FakeExploration:
    def ticket(self, chain, cycle):
        return FinishedTicket("table", "logits")

    def forget_tickets(self):
        raise AssertionError("none was lost")

    def advance(self):
        pass


class FakeSuperposers:
    """Each one that is started answers so many merges, as `lives` says, and is dead from then on."""

    def __init__(self, lives):
        self.lives, self.started, self.merged, self.asked = iter(lives), 0, [], {}

    def options(self, **options):
        self.asked = options
        return self

    def remote(self, *arguments):
        self.started += 1
        return FakeActor(self, next(self.lives))


class FakeActor:
    def __init__(self, owner, life):
        self.owner, self.life, self.merge, self.evaluate = owner, life, self, self

    def remote(self, *arguments):
        if not arguments:
            return ("table", {}) if self.life else ActorDiedError()
        if not self.life:
            return ActorDiedError()
        self.life -= 1
        self.owner.merged.append(arguments[2:4])
        return {}


@pytest.fixture
def merged_by(monkeypatch):
    def get(answers):
        for answer in answers if isinstance(answers, list) else [answers]:
            if isinstance(answer, Exception):
                raise answer
        return answers

    monkeypatch.setattr(superposer_client.ray, "wait", lambda answers, **options: (answers, []))
    monkeypatch.setattr(superposer_client.ray, "get", get)
    monkeypatch.setattr(superposer_client.ray, "kill", lambda actor: None)
    monkeypatch.setattr(superposer_client, "superposer_labels", lambda cluster: {"ray.io/node-id": "!in(going)"})

    def run(lives, num_tickets):
        superposers = FakeSuperposers(lives)
        monkeypatch.setattr(superposer_client, "Superposer", superposers)
        config = SimpleNamespace(cluster=ClusterConfig(superposer_gpus=0.5))
        merge = SuperposerClient(SimpleNamespace(config=config, monitor=None), None, FakeExploration())
        for cycle in range(num_tickets):
            merge.merge(0, cycle)
        merge.evaluate()
        return superposers

    return run


def test_a_day_of_preemptions_does_not_end_a_merge_that_comes_further_each_time(merged_by):
    superposers = merged_by(count(1), 20)
    assert superposers.started == 21
    assert superposers.merged[-20:] == [(0, cycle) for cycle in range(20)]


def test_a_superposer_that_always_dies_at_one_ticket_ends_the_run(merged_by):
    with pytest.raises(RuntimeError, match="the superposer died 5 times"):
        merged_by([3] * 100, 20)


def test_it_is_asked_for_with_its_gpu_and_off_machines_that_go(merged_by):
    asked = merged_by([100], 3).asked
    assert asked == {"num_gpus": 0.5, "label_selector": {"ray.io/node-id": "!in(going)"}}
