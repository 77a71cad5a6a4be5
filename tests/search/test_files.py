import math

from suptickets_ray import load_config
from suptickets_ray.search.files import SearchFiles, holds_search
from suptickets_ray.tickets.store import RunStore
from suptickets_ray.tickets.ticket import Ticket

POINT = {"tickets.lr_high": 0.1}
TICKET = Ticket({}, {}, {})


def files(path, *settings):
    return SearchFiles(str(path), load_config(None, list(settings)))


def test_a_row_belongs_to_a_recipe_too(tmp_path):
    files(tmp_path).write_row(POINT, 0, {"point": POINT, "finished": 1.0, "validation_accuracy": 0.5}, TICKET)
    assert files(tmp_path).row(POINT, 0)["validation_accuracy"] == 0.5
    assert files(tmp_path).row(POINT, 1) is None
    other = files(tmp_path, "train.lr=0.7")
    assert other.row(POINT, 0) is None
    assert other.points() == []
    assert files(tmp_path, "search.num_seeds=3", "name=other").row(POINT, 0) is not None
    assert [point for point, _ in SearchFiles(str(tmp_path)).points()] == [POINT]  # whoever only reads sees all


def test_a_score_that_json_does_not_know_is_no_number(tmp_path):
    kept = {"point": POINT, "finished": 1.0, "validation_loss": None, "validation_accuracy": 0.1}
    files(tmp_path).write_row(POINT, 0, kept, TICKET)
    assert math.isnan(files(tmp_path).row(POINT, 0)["validation_loss"])
    ((_, (row,)),) = files(tmp_path).points()
    assert math.isnan(row["validation_loss"])


def test_what_was_trained_is_counted_each_time_and_over_starts(tmp_path):
    search = files(tmp_path)
    search.begin()
    search.count("cycle")
    search.count("cycle")  # the same one twice: the count says so
    search.count("pretraining")
    again = files(tmp_path)
    again.begin()
    again.count("cycle")
    assert (again.num_cycles(), again.num_pretrainings()) == (3, 1)


def test_what_lies_there_was_trained_even_if_nobody_could_count_it(tmp_path):
    search = files(tmp_path)
    search.begin()
    for cycle in range(2):
        search.store.write(f"explorations/abc/tickets/chain-000/cycle-{cycle:03d}.arrow", b"")
    search.store.write("pretraining/abc/pretrained.pt", b"")
    search.count("cycle")
    assert (search.num_cycles(), search.num_pretrainings()) == (2, 1)


def test_a_folder_is_known_as_a_searchs_from_its_start_on(tmp_path):
    store = RunStore(str(tmp_path))
    assert not holds_search(store)
    store.write("config.yaml", b"")
    store.write("pretrained.pt", b"")
    assert not holds_search(store)
    files(tmp_path).begin()
    assert holds_search(store)


def test_a_search_of_an_earlier_version_is_known_by_what_it_has_made(tmp_path):
    RunStore(str(tmp_path)).write("pretraining/abc/config.yaml", b"")
    assert holds_search(RunStore(str(tmp_path)))
