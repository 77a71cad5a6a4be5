"""Superposers that die, played without a cluster: an answer is what Ray would raise, or give."""

from itertools import count

import pytest
from ray.exceptions import ActorDiedError

from suptickets_ray.config import ClusterConfig
from suptickets_ray.distributed import folding
from suptickets_ray.distributed.folding import Folding


class FakeExploration:
    def ticket(self, chain, cycle):
        return chain, cycle

    def forget_tickets(self):
        raise AssertionError("none was lost")

    def advance(self):
        pass


class FakeSuperposers:
    """Each one that is started answers so many folds, as `lives` says, and is dead from then on."""

    def __init__(self, lives):
        self.lives, self.started, self.folded, self.asked = iter(lives), 0, [], {}

    def options(self, **options):
        self.asked = options
        return self

    def remote(self, *arguments):
        self.started += 1
        return FakeActor(self, next(self.lives))


class FakeActor:
    def __init__(self, owner, life):
        self.owner, self.life, self.fold, self.judge = owner, life, self, self

    def remote(self, *arguments):
        if not arguments:
            return ("table", {}) if self.life else ActorDiedError()
        if not self.life:
            return ActorDiedError()
        self.life -= 1
        self.owner.folded.append(arguments[1:3])
        return {}


@pytest.fixture
def folded_by(monkeypatch):
    def get(answers):
        for answer in answers if isinstance(answers, list) else [answers]:
            if isinstance(answer, Exception):
                raise answer
        return answers

    monkeypatch.setattr(folding.ray, "wait", lambda answers, **options: (answers, []))
    monkeypatch.setattr(folding.ray, "get", get)
    monkeypatch.setattr(folding.ray, "kill", lambda actor: None)
    monkeypatch.setattr(folding, "superposer_labels", lambda cluster: {"ray.io/node-id": "!in(going)"})

    def run(lives, num_tickets):
        superposers = FakeSuperposers(lives)
        monkeypatch.setattr(folding, "Superposer", superposers)
        settings = {"config": {"cluster": vars(ClusterConfig(superposer_gpus=0.5))}, "monitor": None}
        fold = Folding(settings, None, FakeExploration())
        for cycle in range(num_tickets):
            fold.fold(0, cycle)
        fold.judge()
        return superposers

    return run


def test_a_day_of_preemptions_does_not_end_a_fold_that_comes_further_each_time(folded_by):
    superposers = folded_by(count(1), 20)
    assert superposers.started == 21
    assert superposers.folded[-20:] == [(0, cycle) for cycle in range(20)]


def test_a_superposer_that_always_dies_at_one_ticket_ends_the_run(folded_by):
    with pytest.raises(RuntimeError, match="the superposer died 5 times"):
        folded_by([3] * 100, 20)


def test_it_is_asked_for_with_its_gpu_and_off_machines_that_go(folded_by):
    asked = folded_by([100], 3).asked
    assert asked == {"num_gpus": 0.5, "label_selector": {"ray.io/node-id": "!in(going)"}}
