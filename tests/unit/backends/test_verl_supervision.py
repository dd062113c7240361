"""A run through verl that hangs is ended with all that it started; fake programs take the place of verl."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from small_runs import begin, settings

from restool.backends.progress import Progress
from restool.backends.verl import launch, supervision
from restool.core.errors import RunError

# Starts a child with a session of its own (as Ray does), does not end on SIGTERM, and says the same for ever.
HANGING = """
import pathlib, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen(["sleep", "600"], start_new_session=True)
pathlib.Path(sys.argv[1]).write_text(str(child.pid))
for second in range(6000):
    print(f"(Worker pid={second}) INFO: no block found in {second} seconds", flush=True)
    time.sleep(0.05)
"""
# Says or does something new now and then, for longer than the limit in all.
BUSY = """
import pathlib, sys, time
for word in ("weights", "graphs", "cache", "prompts"):
    print("loading", word, flush=True)
    time.sleep(0.5)
for step in (1, 2, 3):
    with pathlib.Path(sys.argv[1]).open("a") as log:
        log.write('{"step": %d}\\n' % step)
    time.sleep(0.5)
"""
LIMIT_S = 1.2


@pytest.fixture
def run(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "_LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(supervision, "_SAYS_GOODBYE_S", 0.3)
    return begin(tmp_path / "run", prepared, chosen())


def chosen():
    return settings("backend=verl_cpu", "training.rl.steps=3", f"backend.verl.stall_minutes={LIMIT_S / 60}")


def start(run, program: str, *arguments: object) -> None:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    launch._run(command, run, chosen(), Progress(lambda line: None, 0, 3), None)


def is_running(pid_file: Path) -> bool:
    """Whether it still executes; a zombie does not."""
    try:
        return psutil.Process(int(pid_file.read_text())).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_run_that_hangs_is_ended_with_all_that_it_started(run, tmp_path):
    began = time.monotonic()
    with pytest.raises(RunError, match="neither finished a step nor said anything new") as error:
        start(run, HANGING, tmp_path / "child")
    assert LIMIT_S < time.monotonic() - began < 30
    assert "\n" not in str(error.value)
    assert "stall_minutes" in str(error.value)
    assert "goes on from the last checkpoint" in str(error.value)
    assert error.value.exit_status
    assert not is_running(tmp_path / "child")
    assert (run.path / "verl.log").read_text().count("no block found") > 5


def test_a_run_that_gets_on_is_left_alone(run):
    started = time.monotonic()
    start(run, BUSY, run.metrics_path)
    assert time.monotonic() - started > 2 * LIMIT_S
    assert [row["step"] for row in run.metrics()] == [1, 2, 3]


def test_what_a_crash_leaves_is_ended_and_the_cause_is_told(run, tmp_path):
    crash = HANGING.split("for second")[0] + "raise ValueError('no room')"
    with pytest.raises(RunError, match="verl ended with status 1: ValueError: no room"):
        start(run, crash, tmp_path / "child")
    assert not is_running(tmp_path / "child")


def test_a_run_ends_when_its_parent_is_killed(tmp_path):
    """As Slurm or a person kills it: nothing is asked, nothing is told."""
    parent = (
        "import sys, time; from pathlib import Path; from restool.backends.verl import supervision as s\n"
        "with s.started([sys.executable, '-c', 'import os, time; print(os.getpid(), flush=True); time.sleep(600)'],"
        " {}, Path(sys.argv[1])): time.sleep(600)"
    )
    log = tmp_path / "log"
    process = subprocess.Popen([sys.executable, "-c", parent, log], env={**os.environ})
    try:
        deadline = time.monotonic() + 60
        while not log.exists() or not log.read_text().endswith("\n"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    deadline = time.monotonic() + 10
    while is_running(log):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_new_step_and_a_new_line_count_and_a_repeated_one_does_not(tmp_path):
    log, now = tmp_path / "verl.log", [0.0]
    log.write_text("INFO 11-25 04:33:22 waiting for 60 seconds\n")
    stall = supervision.Stall(log, 1, clock=lambda: now[0])
    for seconds, line, steps in [(50, "waiting\n", 0), (100, "loading\n", 0), (150, "", 1), (200, "half a li", 1)]:
        now[0] = seconds
        with log.open("a") as file:
            file.write(line)
        stall.check(steps)
    with log.open("a") as file:
        file.write("ne\nloading\n")
    now[0] = 205
    stall.check(1)  # "half a line" is whole and new
    with log.open("a") as file:
        file.write("loading\nwaiting\n")
    now[0] = 266
    with pytest.raises(RunError, match="for 1 minutes"):
        stall.check(1)


def test_how_long_to_wait_never_decides_a_run():
    other = settings("backend=verl_cpu", "training.rl.steps=3", "backend.verl.stall_minutes=7")
    assert other.decisive() == chosen().decisive()
    assert "stall_minutes" not in str(other.decisive())
