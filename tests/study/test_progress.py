"""What is shown is true and scarce."""

import io
import time

import pytest

from allometry.study import Event, Task, progress
from allometry.study.progress import PlainDisplay, Share, TerminalDisplay, show

TASKS = [Task(key, "m:f", {}, cost=cost) for key, cost in (("a", 1.0), ("b", 3.0), ("c", 4.0), ("d", 2.0))]


def event(kind: str, number: int, **fields: object) -> Event:
    return Event(kind, TASKS[number], 0.0, **fields)  # type: ignore[arg-type]


def test_share_is_of_the_cost_that_was_left_at_the_start() -> None:
    share = Share(TASKS)
    assert share.done() == 0.0
    share.take(event("skipped", 3))
    assert share.done() == 0.0
    share.take(event("finished", 0))
    assert share.done() == pytest.approx(1 / 8)
    share.take(event("progress", 1, step=1, total=100))
    share.take(event("progress", 1, step=50, total=100))
    assert share.done() == pytest.approx(2.5 / 8)
    share.take(event("failed", 1))
    assert share.done() == pytest.approx(4 / 8)
    share.take(event("finished", 2))
    assert share.done() == 1.0


def test_what_an_earlier_call_did_does_not_count_as_speed() -> None:
    share = Share(TASKS)
    share.take(event("progress", 2, step=75, total=100))  # resumed: three of its four were done before
    assert share.done() == pytest.approx(0.0)
    share.take(event("progress", 2, step=100, total=100))
    assert share.done() == pytest.approx(1 / 7)
    share.take(event("finished", 2))
    assert share.done() == pytest.approx(1 / 7)


def test_seconds_left_follow_from_the_share(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    share = Share(TASKS)
    assert share.seconds_left() is None
    now = 1030.0
    share.take(event("finished", 1))
    assert share.seconds_left() == pytest.approx(30.0 * 7 / 3)


def test_plain_lines_tell_each_record_and_progress_at_most_every_ten_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    stream = io.StringIO()
    display = PlainDisplay(TASKS, stream)
    display.show(event("skipped", 0))
    display.show(event("skipped", 3))
    display.show(event("started", 1))
    for step in range(300):
        now += 0.1
        display.show(event("progress", 1, step=step, total=300, values={"loss": 2.5}))
        if step % 100 == 99:
            display.show(event("record", 1, run="b", name=f"step={step}", values={"loss": 2.5}))
    display.show(event("failed", 1, reason="ValueError: no"))
    display.close()
    lines = [line.split("  ", 1)[1] for line in stream.getvalue().splitlines()]
    assert lines[0] == "2 of 4 tasks had ended before"
    assert lines[1] == "b: started"
    assert sum(line.startswith("b: step=") for line in lines) == 3
    assert sum("/300" in line for line in lines) == 2
    assert lines[-1] == "b: FAILED: ValueError: no"


def test_terminal_bars_show_rate_loss_and_records() -> None:
    console = pytest.importorskip("rich.console").Console(file=io.StringIO(), force_terminal=True, width=120)
    display = TerminalDisplay(TASKS, console)
    display.show(event("started", 1))
    for step in (10, 20):
        display.show(event("progress", 1, step=step, total=40, values={"loss": 2.125}))
    display.show(event("record", 1, run="b", name="step=20 [x]", values={"loss": 2.125}))
    display._progress.refresh()
    display.show(event("finished", 1))
    display.close()
    text = console.file.getvalue()
    assert "20/40" in text
    assert "loss 2.125" in text
    assert "step=20 [x]" in text  # square brackets are not markup


def test_display_is_chosen_and_misnamed_ones_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert show(None, TASKS) is None
    assert isinstance(show("auto", TASKS), PlainDisplay)  # standard error is captured: no terminal
    with pytest.raises(ValueError, match="display is 'bars'"):
        show("bars", TASKS)  # type: ignore[arg-type]
    assert capsys.readouterr().err == ""
    assert progress.duration(59.6) == "1 min 00 s"
