"""./reproduce-paper's own logic: whose turn it is, what is left over, what Snakemake is given."""

from __future__ import annotations

import getpass
import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ENTRY = Path(__file__).resolve().parents[2] / "workflow" / "entry"
HOLD = "import sys, time; sys.path.insert(0, {entry!r}); import lock, pathlib; "
HOLD += "lock.acquire(pathlib.Path(sys.argv[1]), './reproduce-paper quick'); print('held', flush=True); "


@pytest.fixture
def entry(monkeypatch):
    monkeypatch.syspath_prepend(str(ENTRY))
    monkeypatch.delenv("RESTOOL_CALL", raising=False)
    return importlib.import_module


def hold(path: Path, then: str = "time.sleep(60)") -> subprocess.Popen[str]:
    program = HOLD.format(entry=str(ENTRY)) + then
    process = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_second_person_is_told_who_is_at_work(entry, tmp_path):
    lock = entry("lock")
    holder = hold(tmp_path / ".lock")
    try:
        with pytest.raises(lock.Occupied, match=rf"'./reproduce-paper quick'.*process {holder.pid} "):
            lock.acquire(tmp_path / ".lock", "./reproduce-paper")
    finally:
        holder.kill()
        holder.wait()
    os.close(lock.acquire(tmp_path / ".lock", "./reproduce-paper"))


def test_what_a_killed_call_left_running_is_stopped_before_the_next_begins(entry, tmp_path, capsys):
    lock = entry("lock")
    child = "import subprocess; c = subprocess.Popen(['sleep', '60']); print(c.pid, flush=True); time.sleep(60)"
    holder = hold(tmp_path / ".lock", child)
    left = int(holder.stdout.readline())
    call = json.loads((tmp_path / ".lock").read_text())["call"]
    while left not in lock.processes_of(call):  # a process shows its environment only a moment after its start
        os.kill(left, 0)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    os.kill(left, 0)
    os.close(lock.acquire(tmp_path / ".lock", "./reproduce-paper"))
    assert "1 process(es)" in capsys.readouterr().out
    assert not lock._alive(left)


def test_processes_of_others_are_left_alone(entry, tmp_path):
    lock = entry("lock")
    other = subprocess.Popen(["sleep", "60"], env={**os.environ, "RESTOOL_CALL": "somebody else"})
    os.close(lock.acquire(tmp_path / ".lock", "a"))
    os.close(lock.acquire(tmp_path / ".lock", "b"))
    assert other.poll() is None
    other.kill()
    other.wait()


def test_experiment_joins_the_config_that_was_given(entry):
    reproduce = entry("reproduce")
    join = reproduce._with_experiment
    assert join(["-n"], "paper") == ["-n", "--config", "experiment=paper"]
    assert join(["--config", "a=1", "-n"], "paper") == ["--config", "experiment=paper", "a=1", "-n"]
    assert reproduce._split(["paper", "-n"]) == ("paper", ["-n"])
    assert reproduce._split(["-n"]) == ("quick", ["-n"])


def test_unknown_experiment_is_refused_before_anything_is_set_up(clone):
    done = clone.call("./reproduce-paper", "rlla_tny")
    assert done.status == 2
    assert done.output.startswith("restool: unknown experiment 'rlla_tny' (did you mean 'rlla_tiny'?); there are: ")
    assert done.output.count("\n") == 1
    assert not (clone.path / ".venv").exists()


@pytest.mark.parametrize("program", ["./reproduce-paper", "./run-tests"])
def test_help_needs_no_set_up(clone, program):
    done = clone.call(program, "--help")
    assert done.status == 0
    assert done.output.startswith(f"usage: {program}")
    assert not (clone.path / ".venv").exists()


def test_old_python_is_one_line(clone):
    clone.write("python-old", "#!/bin/sh\ncase $1 in --version) echo Python 3.9.2;; *) exit 1;; esac\n")
    (clone.path / "python-old").chmod(0o755)
    done = clone.call("./reproduce-paper", RESTOOL_PYTHON="./python-old")
    assert done.status == 2
    assert done.output.startswith("restool: Python 3.11 or newer is needed")
    assert done.output.count("\n") == 1


def test_stale_lock_of_snakemake_is_removed_and_the_experiment_goes_on(clone):
    """By whichever of the two commands it is called; the target needs no job."""
    clone.write(".snakemake/locks/0.output.lock", "results/test/report.html\n")
    clone.write("results/prepared/some/manifest.json", "{}\n")
    done = clone.snakemake("results/prepared/some/manifest.json", "--config", "experiment=test")
    assert done.status == 0, done.output
    assert "Nothing to be done" in done.output
    assert not list((clone.path / ".snakemake").glob("locks/*"))


def test_snakemake_by_hand_is_told_who_is_at_work_and_may_look_meanwhile(clone):
    holder = hold(clone.path / "results" / ".lock")
    try:
        done = clone.snakemake("--config", "experiment=test")
        assert done.status == 2
        assert f"restool: {getpass.getuser()} has been running './reproduce-paper quick'" in done.output
        assert f"process {holder.pid} " in done.output
        assert not (clone.path / "results/test").exists()
        looked = clone.call(*clone.reproduce("test", "-n"))
        assert looked.status == 0, looked.output
        assert not (clone.path / "results/test/plan.json").exists(), "the plan belongs to the call that is at work"
    finally:
        holder.kill()
        holder.wait()
