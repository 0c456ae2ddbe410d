import io
import time

import pytest
from rich.console import Console

from robustguide.report import progress
from robustguide.report.progress import Bars, Count, Lines, clock, line, speed


@pytest.fixture
def clock_at(monkeypatch):
    """Sets the time."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def set_to(seconds):
        now[0] = 1000.0 + seconds

    return set_to


def count(total=600, **others):
    return Count("fit", "steps", total, started=time.monotonic(), **others)


def test_a_line_says_rate_and_time_left_of_this_process(clock_at):
    resumed = count(first=100)
    resumed.done = 300
    clock_at(20)
    assert line(resumed, {"train/loss": 1.52345, "note": "a\nb"}) == (
        "fit      300/600 steps   50%  10.0 it/s  0:30 left  train/loss=1.523  note=a b"
    )
    assert line(count(total=None), {}) == "fit      0 steps"
    assert line(count(), {}) == "fit        0/600 steps    0%"
    unknown = count(total=None)
    unknown.done = 5
    clock_at(30)
    assert line(unknown, {}) == "fit      5 steps  2.0 s/it"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"),
        (24.4, "0:24"),
        (605, "10:05"),
        (3723, "1:02:03"),
        (90061, "1 day, 1:01:01"),
    ],
)
def test_clock(seconds, text):
    assert clock(seconds) == text


def test_speed():
    assert (speed(12.34), speed(0.5)) == ("12.3 it/s", "2.0 s/it")


def due(lines, running, clock_at, step_seconds):
    """When a run prints between start and end: (second, done)."""
    printed = []
    lines.start(running)
    for done in range(1, running.total + 1):
        running.done = done
        clock_at(done * step_seconds)
        if lines.is_due(running):
            lines.show(running, {})
            printed.append((round(running.seconds), done))
    return printed


def test_a_short_run_prints_each_tenth(clock_at):
    lines = Lines(15.0, io.StringIO())
    printed = due(lines, count(total=95), clock_at, 0.01)
    # the first step of each tenth; the last line is that of the end
    assert [done for _, done in printed] == [10, 19, 29, 38, 48, 57, 67, 76, 86]
    assert len(lines.file.getvalue().splitlines()) == 1 + len(printed)


def test_a_slow_run_is_never_silent_for_long(clock_at):
    printed = due(Lines(15.0, io.StringIO()), count(total=20000), clock_at, 4.0)
    seconds = [second for second, _ in printed]
    gaps = [after - before for before, after in zip([0, *seconds], seconds, strict=False)]
    assert max(gaps[:10]) == 16  # the first batch that ends after 15 s
    assert max(gaps) <= 604  # of 22 hours
    assert len(printed) < 300


def test_a_validation_within_training_prints_only_when_it_is_long(clock_at):
    quick, slow = io.StringIO(), io.StringIO()
    for file, seconds in ((quick, 0.1), (slow, 6.0)):
        inner = count(total=10, is_whole_run=False)
        due(Lines(15.0, file), inner, clock_at, seconds)
        Lines(15.0, file).end(inner, {})
        clock_at(0)
    assert quick.getvalue() == ""
    assert len(slow.getvalue().splitlines()) == 3  # after 18, 36 and 54 s


def test_bars_draw_over_themselves_and_leave_the_last_state():
    file = io.StringIO()
    bars = Bars(0.0, Console(file=file, force_terminal=True, width=100))
    outer, inner = count(total=2), count(total=1, is_whole_run=False)
    bars.start(outer)
    outer.done = 1
    assert bars.is_due(outer)
    bars.show(outer, {"train/loss": 0.5})
    bars.start(inner)
    inner.done = 1
    bars.end(inner, {})
    outer.done = 2
    bars.end(outer, {"train/loss": 0.25})
    bars.close()
    text = file.getvalue()
    assert "1/2 steps   50%" in text and "train/loss=0.5" in text
    last = text.rsplit("\x1b[2K", 1)[-1]
    assert "2/2 steps  100%" in last and "in all  train/loss=0.25" in last
    assert text.endswith("\x1b[?25h")  # the cursor is back
