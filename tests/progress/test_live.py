import io
import re

import pytest
from rich.console import Console

from suptickets_ray.progress.events import (
    CycleEpochEnded,
    CycleStarted,
    EpochEnded,
    JobPlanned,
    PhaseStarted,
    ResultWritten,
    Resumed,
    Starting,
    TicketFinished,
    TicketMerged,
    TrialFinished,
    Warned,
)
from suptickets_ray.progress.job_state import JobState, TicketState
from suptickets_ray.progress.job_view import JobView, finished_line
from suptickets_ray.progress.live import PlainView, TerminalView, html_view
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
    JobPlanned(20, 2, 2, 3, 2),
    Starting("Ray on this machine"),
    PhaseStarted("pretrain", epochs=20),
    *(EpochEnded(e, 20, loss=1.0, validation_score=0.5, examples_per_second=1000.0) for e in range(1, 21)),
    PhaseStarted("explore", chains=2, cycles=2),
    Starting("explorers"),
    CycleStarted(0, 0),
    CycleStarted(1, 0),
    CycleEpochEnded(0, 0, epoch=1, loss=0.25, examples_per_second=300.0),
    CycleEpochEnded(1, 0, epoch=1, loss=0.5, examples_per_second=200.0),
    TicketFinished(0, 0, 0.8, "a", 7, 1.0, 2.0),
    TicketMerged(0, 0, False, 0.7),
    TicketFinished(1, 0, 0.8, "a", 7, 1.0, 2.0),
    TicketMerged(1, 0, True, 0.9),
    CycleStarted(0, 1),
]


def state_after(events, seconds=0.0):
    state = JobState()
    for number, event in enumerate(events):
        state.update(event, number * seconds)
    return state


def lines_of(renderable, width=100, **more):
    console = Console(file=io.StringIO(), width=width, **more)
    console.print(renderable)
    return console.file.getvalue().splitlines()


def text_of(renderable):
    return "\n".join(lines_of(renderable))


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
    state = state_after([TicketMerged(0, 0, True, 0.9), TicketMerged(0, 0, False, 0.12)])
    assert state.metrics["sup-ticket"] == 0.9


def test_every_ticket_is_known_from_the_start_and_keeps_its_final_state():
    assert state_after(EVENTS[:1]).num_tickets == 4
    late = [TicketFinished(1, 0, 0.8, "a", 7, 1.0, 2.0), CycleStarted(1, 0)]
    assert state_after([*EVENTS, *late]).tickets == {
        (0, 0): TicketState.LEFT_OUT,
        (1, 0): TicketState.MERGED,
        (0, 1): TicketState.RUNNING,
    }


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_view_fits_every_width(width):
    for end in range(1, len(EVENTS) + 1):
        lines = lines_of(JobView(state_after(EVENTS[:end], 1.0), 100.0), width)
        assert max(map(len, lines)) <= width
        assert len(lines) <= 12


def test_the_view_shows_bars_numbers_and_the_grid_of_chains():
    lines = lines_of(JobView(state_after(EVENTS, 1.0), 100.0), 80)
    assert lines[0].startswith("0:01:40 elapsed, about ")
    assert [line.split()[0] for line in lines[1:4]] == ["pretraining", "exploring", "superposing"]
    assert [line.split()[-2] for line in lines[1:4]] == ["20/20", "2/4", "2/4"]
    assert lines[4:6] == ["loss 0.5000  validation:  pretraining 50.00%  last ticket 80.00%", "sup-ticket 90.00%"]
    assert lines[6:] == ["✗▸ ●·", "● 1 merged  ✗ 1 left out  ▸ 1 running  · 1 waiting"]


def test_what_starts_is_shown_with_its_seconds():
    assert "starting Ray on this machine: 7 s" in lines_of(JobView(state_after(EVENTS[:2]), 7.0))
    assert not any("starting" in line for line in lines_of(JobView(state_after(EVENTS[:4]), 7.0)))


def test_the_examples_per_second_are_those_of_all_running_explorers():
    assert "500 examples/s" in text_of(JobView(state_after(EVENTS[:29]), 0.0))


def test_many_tickets_leave_room_for_the_rest():
    lines = lines_of(JobView(state_after([JobPlanned(20, 200, 20, 3, 8)]), 0.0), 80)
    assert len(lines) <= 14
    assert "and 61 more lines of chains" in lines


def test_a_terminal_without_unicode_gets_ascii():
    lines = lines_of(JobView(state_after(EVENTS), 0.0), 80, legacy_windows=False)
    console = Console(file=io.TextIOWrapper(io.BytesIO(), "ascii"), width=80)
    console.print(JobView(state_after(EVENTS), 0.0))
    console.file.flush()
    text = console.file.buffer.getvalue().decode()
    assert "x> #." in text
    assert lines


def test_a_search_shows_trials_and_no_merged_tickets():
    search = [
        JobPlanned(trials=3),
        PhaseStarted("pretrain", epochs=4, number=1, of=2),
        PhaseStarted("search", trials=3),
        TrialFinished({"seed": 0}, 0.75, 0.5),
        TicketMerged(0, 0, True, 0.5),
    ]
    text = text_of(JobView(state_after(search), 0.0))
    assert "pretraining 1/2" in text
    assert "1/3 trials" in text
    assert "best trial 75.00%" in text
    assert "merged" not in text


def test_plain_lines_tell_phases_tenths_tickets_and_merges():
    lines = []
    ticks = iter(range(1000))
    view = PlainView(lines.append, clock=lambda: float(next(ticks)))
    for event in [*EVENTS, Resumed("1 finished tickets", 1, (0, 1)), Resumed("", epoch=45)]:
        view(event)
    assert sum("epoch" in line for line in lines) == 11
    assert any("starting Ray on this machine" in line for line in lines)
    assert any("ticket 1 of 4: chain 0, cycle 0, validation accuracy 80.00%" in line for line in lines)
    assert any("chain 0, cycle 0 rejected" in line for line in lines)
    assert any("resuming with 1 finished tickets" in line for line in lines)
    assert any("continuing pretraining from epoch 45" in line for line in lines)


def test_the_time_left_is_that_of_pretraining_and_of_all_cycles():
    state = state_after(EVENTS[:3])
    assert state.seconds_left(5.0) is None
    for second, event in enumerate(EVENTS[3:8]):
        state.update(event, 10.0 + 2 * second)
    cycles_of_each_explorer, cycle_epochs = 2, 3
    assert state.seconds_left(18.0) == 2.0 * (15 + cycles_of_each_explorer * cycle_epochs)
    state.update(EpochEnded(20, 20, loss=1.0, validation_score=0.5), 48.0)
    state.update(PhaseStarted("explore", chains=2, cycles=2), 50.0)
    assert state.seconds_left(51.0) == 2.0 * cycles_of_each_explorer * cycle_epochs


def test_the_time_left_of_a_resumed_exploration_counts_only_what_this_start_made():
    state = JobState()
    state.update(PhaseStarted("explore", chains=4, cycles=3), 0.0)
    state.update(Resumed("8 finished tickets", 8, (2, 2, 2, 2)), 0.0)
    assert state.seconds_left(1.0) is None
    state.update(TicketFinished(0, 2, 0.8, "a", 7, 1.0, 2.0), 5.0)
    assert state.seconds_left(5.0) == 5.0 * 3


def test_pretraining_continues_from_the_epoch_of_its_checkpoint():
    state = state_after([*EVENTS[:3], Resumed("the pretraining of 12 epochs", epoch=12)])
    assert "12/20" in text_of(JobView(state, 0.0))


@pytest.mark.parametrize("width", [40, 80])
def test_a_line_per_phase_and_whole_words_of_warnings_stay_on_the_terminal(width):
    console = Console(file=io.StringIO(), force_terminal=True, width=width, no_color=True)
    text = "the validation set has seven examples, which is too few for the gate to decide about tickets"
    with TerminalView(console, clock=lambda: 1.0) as view:
        for event in [*EVENTS, Warned(text), PhaseStarted("superpose"), ResultWritten("/runs/a", 0.5, "0a")]:
            view(event)
    shown = re.sub(r"\x1b\[[?\d;]*[a-zA-Z]", " ", console.file.getvalue())
    assert finished_line(state_after(EVENTS[:23]), 0.0) == "pretraining: 20 epochs in 0:00:00, validation 50.00%"
    for words in ("20 epochs in 0:00:00", "2 tickets, 1 merged", "evaluating in 0:00:00"):
        assert words in shown
    assert set(text.split()) <= set(shown.split())


def test_a_notebook_gets_bars_and_ends_with_done():
    state = state_after([*EVENTS, PhaseStarted("superpose"), ResultWritten("/runs/a", 0.5, "0a")])
    page = html_view(state, 61.0, ["a <warning>"])
    assert '<progress value="2" max="4"></progress>' in page
    assert "<p>done; 0:01:01 elapsed;" in page
    assert "a &lt;warning&gt;" in page
    assert "evaluating" not in page
