import multiprocessing
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from multiprocessing import forkserver

import long_jobs
import pytest

from robustguide.plans import Job, JobDisplay, JobError, jobs, run_jobs


@pytest.fixture(autouse=True)
def light(monkeypatch):
    """Processes that import next to nothing."""
    monkeypatch.setattr(jobs, "forking", lambda: multiprocessing.get_context("spawn"))
    monkeypatch.setattr(jobs, "logged", long_jobs.logged)


def ignore(name, line, seconds, ended):
    pass


def times(logs, name):
    return [float(line) for line in (logs / f"{name}.times").read_text().split()]


def test_jobs_wait_for_those_they_need(tmp_path):
    plan = [
        Job("c", ("say", "three"), ("a", "b")),
        Job("a", ("wait", "0.3")),
        Job("b", ("say", "two"), ("a",)),
    ]
    shown = []
    seconds = run_jobs(plan, tmp_path / "logs", 2, lambda *what: shown.append(what))
    assert list(seconds) == ["a", "b", "c"] and seconds["a"] >= 0.3
    starts, ends = zip(*(times(tmp_path / "logs", name) for name in "abc"), strict=True)
    assert starts[1] >= ends[0] and starts[2] >= ends[1]
    assert [name for name, _, _, ended in shown if ended] == ["a", "b", "c"]
    assert ("c", "say three") in [(name, line) for name, line, *_ in shown]


def test_as_many_at_a_time_as_there_are_workers(tmp_path):
    plan = [Job(name, ("wait", "1.5")) for name in "ab"]
    run_jobs(plan, tmp_path, 2, ignore)
    (start_a, end_a), (start_b, end_b) = (times(tmp_path, name) for name in "ab")
    assert max(start_a, start_b) < min(end_a, end_b)
    run_jobs([Job(name, ("wait", "0.1")) for name in "ab"], tmp_path, 1, ignore)
    assert times(tmp_path, "b")[0] >= times(tmp_path, "a")[1]


def test_a_job_that_fails_ends_the_others_and_shows_its_log(tmp_path):
    plan = [
        Job("long", ("wait", "60")),
        Job("bad", ("fail", "badly")),
        Job("next", ("say", "x"), ("bad",)),
    ]
    began = time.monotonic()
    with pytest.raises(JobError) as raised:
        run_jobs(plan, tmp_path, 2, ignore)
    assert time.monotonic() - began < 30
    message = str(raised.value)
    assert "`robustguide fail badly` ended with exit code 3" in message
    assert str(tmp_path / "bad.log") in message
    assert message.endswith("\nline 29\nfail badly") and "line 16\n" in message
    assert "line 15\n" not in message
    deadline = time.monotonic() + 10
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not multiprocessing.active_children()
    assert not (tmp_path / "next.log").exists()


def test_threads_do_not_take_the_exit_codes_of_each_others_jobs(tmp_path, monkeypatch):
    """A second job starts while the exit code of the first is about to be read."""
    read, number, asked = forkserver.read_signed, count(), threading.Event()

    def read_late(descriptor):
        if next(number) == 1:  # the first number is the process's own
            asked.set()
            time.sleep(1)
        return read(descriptor)

    monkeypatch.setattr(jobs, "forking", lambda: multiprocessing.get_context("forkserver"))
    monkeypatch.setattr(forkserver, "read_signed", read_late)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(run_jobs, [Job("a", ("say", "x"))], tmp_path, 1, ignore)
        assert asked.wait(30)
        assert list(run_jobs([Job("b", ("say", "x"))], tmp_path, 1, ignore)) == ["b"]
        assert list(first.result()) == ["a"]


@pytest.mark.parametrize("needs", [("nobody",), ("b",)])
def test_a_job_that_waits_for_ever(tmp_path, needs):
    """For one that is not there, or for one that waits for it."""
    plan = [Job("a", ("say", "x"), needs), Job("b", ("say", "y"), ("a",))]
    with pytest.raises(JobError, match=r"wait for jobs that are not in the plan: a, b"):
        run_jobs(plan, tmp_path, 2, ignore)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("one\ntwo\n\n", "two"),
        ("fit 10%\rfit 20%\r", "fit 20%"),
        ("é" * 3000, "é" * 1000),
    ],
)
def test_the_last_line_of_a_log(tmp_path, text, expected):
    log = tmp_path / "a.log"
    log.write_text(text)
    assert jobs.last_line(log) == expected


def test_lines_of_a_display_without_a_terminal(capsys):
    with JobDisplay([Job("fit", ())], silence=0) as show:
        show("fit", "no percentage", 1.0)
        show("fit", "fit 3/30 steps 10%", 2.0)
        show("fit", "fit 3/30 steps 10%", 2.5)
        show("fit", "anything", 3.0, True)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["fit", "fit"]
    assert lines[0].endswith("2.0 s  fit 3/30 steps 10%") and lines[1].endswith("3.0 s  done")


@pytest.mark.check
def test_a_job_is_a_command_line(tmp_path, monkeypatch):
    """From a process that has imported everything once."""
    monkeypatch.undo()
    plan = [Job("version", ("--version",)), Job("help", ("--help",))]
    assert set(run_jobs(plan, tmp_path, 2, ignore)) == {"version", "help"}
    assert (tmp_path / "version.log").read_text() == "0.1.0\n"
    with pytest.raises(JobError, match="no command 'nothing'; there are fit"):
        run_jobs([Job("wrong", ("nothing",))], tmp_path, 1, ignore)
