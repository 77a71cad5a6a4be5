import io

from rich.console import Console

from suptickets_ray.progress.events import (
    CycleEpochEnded,
    EpochEnded,
    PhaseStarted,
    Resumed,
    TicketFinished,
    TicketMerged,
)
from suptickets_ray.progress.live import PlainView, Progress, TerminalView
from suptickets_ray.progress.summary_table import closing_table
from suptickets_ray.report.run_page import render_report


def network(accuracy, **more):
    return {"accuracy": accuracy, "validation_accuracy": accuracy + 0.01, **more}


RESULT = {
    "name": "a<b>",
    "pretrained": network(0.8, density=0.1),
    "mean_ticket": network(0.82),
    "best_ticket": network(0.83, density=0.1),
    "superposed": network(0.85, density=0.1, digest="abc"),
    "unpruned_mean": network(0.845, density=0.25),
    "ensemble": network(0.86),
    "tickets": [
        network(0.83, density=0.1, chain=0, cycle=0, accepted=True),
        network(0.81, density=0.1, chain=1, cycle=0, accepted=False),
    ],
    "warnings": ["superposing did not pay & more"],
    "seconds": {"total": 3.0},
    "versions": {"ray": "2.60"},
}

EVENTS = [
    PhaseStarted("pretrain", epochs=20),
    *(EpochEnded(e, 20, loss=1.0, validation_score=0.5) for e in range(1, 21)),
    PhaseStarted("explore", chains=2, cycles=1),
    CycleEpochEnded(0, 0, epoch=1, loss=0.5),
    TicketFinished(0, 0, 0.8, "a", 7, 1.0, 2.0),
    TicketMerged(0, 0, False, 0.7),
    Resumed("1 finished tickets", 1),
    PhaseStarted("superpose"),
]


def text_of(table):
    console = Console(file=io.StringIO(), width=100)
    console.print(table)
    return console.file.getvalue()


def test_the_closing_table_names_every_network_with_both_accuracies():
    text = text_of(closing_table(RESULT))
    for words in (
        "pretrained network",
        "mean ticket",
        "best ticket",
        "sup-ticket",
        "not pruned",
        "0.2500",
        "ensemble",
        "85.00%",
        "86.00%",
        "1 of 2",
    ):
        assert words in text


def test_the_report_shows_the_result_and_escapes_what_it_is_given():
    page = render_report(RESULT, "name: <script>")
    for words in ("sup-ticket", "85.00%", "1.0 (rejected)", "did not pay &amp; more", "a&lt;b&gt;"):
        assert words in page
    assert "<script>" not in page
    assert "http" not in page  # opens from disk, without a network


def test_a_ticket_that_is_left_out_does_not_change_the_sup_tickets_accuracy():
    progress = Progress()
    for accepted, accuracy in ((True, 0.9), (False, 0.12)):
        progress.update(TicketMerged(0, 0, accepted, accuracy), now=0.0)
    assert progress.scores["sup-ticket"] == 0.9


def test_plain_lines_tell_phases_tenths_tickets_and_merges():
    lines = []
    ticks = iter(range(1000))
    view = PlainView(lines.append, clock=lambda: float(next(ticks)))
    for event in EVENTS:
        view(event)
    assert sum("epoch" in line for line in lines) == 10
    assert any("ticket 1 of 2: chain 0, cycle 0, validation accuracy 80.00%" in line for line in lines)
    assert any("chain 0, cycle 0 rejected" in line for line in lines)
    assert any("resuming with 1 finished tickets" in line for line in lines)


def test_progress_estimates_the_seconds_left():
    progress = Progress()
    progress.update(EVENTS[0], 0.0)
    assert progress.seconds_left(5.0) is None
    for second, event in enumerate(EVENTS[1:6]):
        progress.update(event, 10.0 + 2 * second)
    assert progress.seconds_left(18.0) == 2.0 * 15
    for event in EVENTS[6:]:
        progress.update(event, 100.0)
    assert (progress.tickets, progress.num_tickets, progress.merged) == (2, 2, 1)


def test_the_seconds_left_of_a_resumed_exploration_count_only_what_this_start_made():
    progress = Progress()
    progress.update(PhaseStarted("explore", chains=4, cycles=3), 0.0)
    progress.update(Resumed("8 finished tickets", 8), 0.0)
    assert progress.seconds_left(1.0) is None
    progress.update(TicketFinished(0, 2, 0.8, "a", 7, 1.0, 2.0), 5.0)
    assert progress.seconds_left(5.0) == 5.0 * 3


def test_the_terminal_view_shows_phase_epochs_tickets_and_accuracies():
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with TerminalView(console, clock=lambda: 1.0) as view:
        for event in EVENTS[:-1]:
            view(event)
        view._live.refresh()
    text = console.file.getvalue()
    for words in ("exploring", "20 of 20", "2 of 2, 1 merged", "50.00%", "80.00%"):
        assert words in text
