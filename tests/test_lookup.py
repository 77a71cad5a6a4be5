import pytest

from suptickets_ray.lookup import choose, choose_or_import
from suptickets_ray.seeding import derive_seed

TABLE = {"gradient": len, "random": max}


def test_a_row_is_found_by_its_name():
    assert choose(TABLE, "random", "grow score") is max


def test_a_misspelt_name_is_answered_with_the_nearest_and_all():
    with pytest.raises(
        ValueError, match="^unknown grow score 'gradeint'; did you mean 'gradient'. Known: gradient, random.$"
    ):
        choose(TABLE, "gradeint", "grow score")


def test_a_name_like_no_other_is_answered_with_all():
    with pytest.raises(ValueError, match="^unknown grow score 'xyz'. Known: gradient, random.$"):
        choose(TABLE, "xyz", "grow score")


def test_code_from_outside_is_named_by_module_and_function():
    import json

    assert choose_or_import(TABLE, "json:loads", "model") is json.loads


def test_seeds_depend_on_every_key_and_on_nothing_else():
    keys = [(0, "order"), (0, "order", 0), (0, "order", 1), (0, "order", 1, 0), (0, "explore", 1), (1, "order", 1)]
    assert len({derive_seed(*key) for key in keys}) == len(keys)
    assert derive_seed(3, "order", 1) == derive_seed(3, "order", 1)
    assert all(0 <= derive_seed(*key) < 2**63 for key in keys)
