import io
import json
import logging

import pytest

from suptickets_ray.progress.events import CycleEpochEnded, PhaseStarted, TicketFinished, Warned
from suptickets_ray.progress.log import EventLog, json_logs

TICKET = TicketFinished(2, 1, 0.91234567, "a", 7, 1.0, 2.0)


@pytest.fixture
def stream():
    found = io.StringIO()
    with json_logs(found):
        yield found


def lines(stream):
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_every_event_is_one_line_of_json_with_run_phase_chain_and_cycle(stream):
    log = EventLog("digits")
    log(PhaseStarted("explore", chains=4))
    log(TICKET)
    log(CycleEpochEnded(0, 0, epoch=1, loss=float("nan")))
    phase, ticket, epoch = lines(stream)
    assert (phase["event"], phase["phase"], phase["chains"]) == ("phase", "explore", 4)
    assert {key: ticket[key] for key in ("level", "run", "phase", "event", "chain", "cycle")} == {
        "level": "info",
        "run": "digits",
        "phase": "explore",
        "event": "ticket",
        "chain": 2,
        "cycle": 1,
    }
    assert (epoch["level"], epoch["loss"]) == ("debug", None)


def test_a_record_that_is_no_event_has_its_message(stream):
    logging.getLogger("suptickets_ray.elsewhere").warning("%d files", 3)
    (line,) = lines(stream)
    assert (line["logger"], line["message"], line["level"]) == ("suptickets_ray.elsewhere", "3 files", "warning")


def test_without_configuration_warnings_alone_are_for_everybody(caplog):
    log = EventLog("digits")
    with caplog.at_level(logging.WARNING, logger="suptickets_ray"):
        log(TICKET)
        log(Warned("no token"))
    assert [record.getMessage() for record in caplog.records] == ["digits start warning text=no token"]


def test_as_text_a_ticket_is_one_line(caplog):
    with caplog.at_level(logging.INFO, logger="suptickets_ray"):
        EventLog("digits")(TICKET)
    assert caplog.messages == [
        "digits start ticket chain=2 cycle=1 validation_accuracy=0.912346 node=a process=7 began=1 ended=2"
    ]
