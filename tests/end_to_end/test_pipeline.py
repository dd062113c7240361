"""The whole path at a size that takes a minute, through the commands that a user types."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import time

import pytest

pytestmark = pytest.mark.end_to_end

RUNS = ["tiny-sft-none-s0", *(f"tiny-{m}-fraction-s{s}" for m in ("grpo", "rest_fixed") for s in (0, 1))]
CLOCKS = ("timestamp", "time/", "throughput/")  # what may differ between two equal runs


def metrics(clone, run: str) -> list[dict]:
    path = clone.path / "results/test/runs" / run / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(CLOCKS)} for row in rows]


def test_one_command_leads_to_a_report(finished_clone):
    results = finished_clone.path / "results/test"
    report = (results / "report.html").read_text()
    assert "<html" in report
    assert 'src="http' not in report, "the report must open offline"
    assert "test of the pipeline" in report
    for run in RUNS:
        assert (results / "runs" / run / "done.json").exists()
        for benchmark in ("held-out", *(["bfcl-synthetic"] if run.endswith("s0") else [])):
            summary = json.loads((results / "runs" / run / "eval" / benchmark / "summary.json").read_text())
            assert summary["complete"], (run, benchmark, summary)
    assert json.loads((results / "analysis/variance.json").read_text())
    assert list((results / "analysis/figures").glob("*.svg"))
    output = (finished_clone.path / "output.txt").read_text()
    assert "report: results/test/report.html" in output
    assert "restool mlflow test" in output


def test_mlflow_holds_one_parent_and_one_child_a_run(finished_clone):
    database = sqlite3.connect(finished_clone.path / "results/mlflow.db")
    count = (
        "select count(*) from runs where run_uuid {} in (select run_uuid from tags where key = 'mlflow.parentRunId')"
    )
    assert database.execute(count.format("")).fetchone() == (len(RUNS),)
    assert database.execute(count.format("not")).fetchone() == (1,)
    assert database.execute("select count(*) from metrics").fetchone()[0] > 100


def test_snakemake_report_holds_figures_with_captions(finished_clone):
    done = finished_clone.snakemake("--config", "experiment=test", "--report", "workflow.zip")
    assert done.status == 0, done.output
    assert "Adding entropy_training.png" in done.output
    assert "Adding report.html" in done.output
    assert (finished_clone.path / "workflow.zip").exists()


def test_second_call_has_nothing_to_do_and_still_says_where_the_report_is(finished_clone):
    stamps = {path: path.stat().st_mtime_ns for path in (finished_clone.path / "results/test/runs").rglob("*")}
    done = finished_clone.call(*finished_clone.reproduce("test"))
    assert done.status == 0, done.output
    assert "Nothing to be done" in done.output
    assert "report: results/test/report.html" in done.output
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


def test_stopped_and_killed_in_the_middle_the_same_command_resumes_and_ends_the_same(finished_clone, clone):
    """Ctrl-C, then kill -9 of all processes, then kill -9 of the wrapper alone, each at another stage; of one seed."""
    shutil.copytree(finished_clone.path / "results/prepared", clone.path / "results/prepared")
    command = clone.reproduce("test", "--config", 'overrides=["experiment.matrix.seeds=[0]"]')
    sft, *rl = runs = [run for run in RUNS if run.endswith("s0")]

    output = stop_when(clone, command, lambda: has_lines(clone, sft, 45), signal.SIGINT, os.killpg)
    assert "The same command goes on from here." in output
    assert not (clone.path / "results/test/runs" / sft / "done.json").exists()

    stop_when(clone, command, lambda: has_lines(clone, sft, 90), signal.SIGKILL, os.killpg)
    assert not (clone.path / "results/test/runs" / sft / "done.json").exists()

    stop_when(clone, command, lambda: any(has_lines(clone, run, 2) for run in rl), signal.SIGKILL, os.kill)

    done = clone.call(*command, timeout=500)
    assert done.status == 0, done.output
    for run in runs:
        assert metrics(clone, run) == metrics(finished_clone, run), run
        items = f"results/test/runs/{run}/eval/held-out/items.jsonl"
        assert (clone.path / items).read_bytes() == (finished_clone.path / items).read_bytes()


def stop_when(clone, command, condition, kind: signal.Signals, send) -> str:
    """Start the command and send it a signal as soon as ``condition`` holds: to its whole group, or to it alone."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a child inherits that a background shell ignores it
    with (clone.path / "output.txt").open("w+") as output:
        process = clone.start(*command, output=output)
        deadline = time.monotonic() + 240
        try:
            while not condition():
                assert process.poll() is None, (clone.path / "output.txt").read_text()
                assert time.monotonic() < deadline, "nothing happened"
                time.sleep(0.02)
        finally:
            send(process.pid, kind)
            process.wait(timeout=60)
    return (clone.path / "output.txt").read_text()


def has_lines(clone, run: str, count: int) -> bool:
    path = clone.path / "results/test/runs" / run / "metrics.jsonl"
    return path.exists() and path.read_bytes().count(b"\n") >= count
