"""Killed (-9) inside evaluate, analyze, report and track, files lost behind our back: one command mends it, equally."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.end_to_end]

DRIVER = Path(__file__).with_name("killed_at.py")
PLAN = "results/test/plan.json"
RUN = "tiny-rest_fixed-fraction-s0"


@pytest.fixture
def copy(finished_clone, clone):
    """A finished experiment of one's own."""
    shutil.copytree(finished_clone.path / "results", clone.path / "results", dirs_exist_ok=True)
    shutil.copytree(finished_clone.path / ".snakemake", clone.path / ".snakemake", dirs_exist_ok=True)
    return clone


def killed_everywhere(copy, points: int, results: list[str], *command: str, last: str, timeout: float = 1500):
    """Kill the verb at so many moments; check after each that ``last``, if it is there, is what it should be."""
    done = copy.call(sys.executable, str(DRIVER), str(points), *results, "--", *command, timeout=timeout)
    assert done.status == 0, done.output[-3000:] + (copy.path / "killed.log").read_text()[-2000:]
    seen = [json.loads(line) for line in done.output.splitlines() if line.startswith("{")]
    undisturbed, *later = seen
    assert len(later) == 2 * points
    for state in later:
        if state["whole"]:
            assert state["found"] == undisturbed["found"], state["moment"]
        elif last in state["found"]:
            assert state["found"][last] == undisturbed["found"][last], state["moment"]
    return undisturbed["found"]


def test_evaluate_is_killed_at_any_moment(copy, finished_clone):
    folder = f"results/test/runs/{RUN}/eval/held-out"
    found = killed_everywhere(
        copy, 8, [folder], "evaluate", "held-out", "--plan", PLAN, "--run", RUN, last=f"{folder}/summary.json"
    )
    assert f"{folder}/summary.json" in found
    for name in ("answers.jsonl", "items.jsonl"):
        same = (copy.path / folder / name).read_bytes() == (finished_clone.path / folder / name).read_bytes()
        assert same, f"{name} is not as when Snakemake ran it"


def test_analyze_is_killed_at_any_moment(copy):
    folder = "results/test/analysis"
    variance = (copy.path / folder / "variance.json").read_bytes()
    results = [f"{folder}/figures", f"{folder}/index.json"]
    results += [path.relative_to(copy.path).as_posix() for path in (copy.path / folder).glob("*.csv")]
    found = killed_everywhere(copy, 6, results, "analyze", "--plan", PLAN, last=f"{folder}/index.json")
    assert len([name for name in found if name.endswith(".png")]) > 3
    assert (copy.path / folder / "variance.json").read_bytes() == variance


def test_report_is_killed_at_any_moment(copy):
    page = "results/test/report.html"
    killed_everywhere(copy, 3, [page], "report", "--plan", PLAN, last=page)


def test_track_is_killed_at_any_moment(copy, finished_clone):
    store = copy.path / "results/mlflow.db"
    store.unlink()
    shutil.rmtree(copy.path / "results/mlartifacts")
    command = ["restool", "track", "--plan", PLAN]
    for delay in (2.0, 3.5, 4.5, 5.5, 6.5, 8.0):
        process = copy.start(*command)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    done = copy.call(*command)
    assert done.status == 0, done.output
    assert stored(store) == stored(finished_clone.path / "results/mlflow.db")


def stored(path: Path) -> dict[str, object]:
    """What MLflow shows: the active runs with parameters, points and tags, without ids and clocks of the import."""
    database = sqlite3.connect(path)
    alive = "select run_uuid from runs where lifecycle_stage = 'active'"
    names = dict(database.execute(f"select run_uuid, name from runs where run_uuid in ({alive})"))
    assert len(set(names.values())) == len(names), "a run counts twice"
    content = {}
    for table, columns in {
        "params": "key, value",
        "metrics": "key, value, step, timestamp",
        "tags": "key, value",
    }.items():
        rows = database.execute(f"select run_uuid, {columns} from {table} where run_uuid in ({alive})")
        kept = [(names[row[0]], *row[1:]) for row in rows if row[1] not in ("mlflow.parentRunId", "mlflow.user")]
        content[table] = sorted(kept)
    statuses = database.execute(f"select name, status, start_time, end_time from runs where run_uuid in ({alive})")
    parent = "test"
    content["runs"] = sorted((n, s, None if n == parent else b, e) for n, s, b, e in statuses)
    return content


def test_lost_and_cut_files_are_noticed_and_made_again_and_nothing_else_is_trained(copy, finished_clone):
    runs = copy.path / "results/test/runs"
    other = "tiny-grpo-fraction-s0"
    (runs / RUN / "done.json").unlink()
    (runs / "tiny-rest_fixed-fraction-s1" / "done.json").write_text("")
    cut(runs / other / "metrics.jsonl")
    cut(runs / "tiny-grpo-fraction-s1/model/model.safetensors")
    cut(runs / RUN / "eval/held-out/items.jsonl")
    (runs / other / "eval/bfcl-synthetic/summary.json").write_text('{"benchmark"')
    (copy.path / "results/mlflow.db").unlink()
    dry = copy.snakemake("-n", "--config", "experiment=test")
    assert dry.output.count("would be made again") >= 5, dry.output
    assert (runs / other / "done.json").exists(), "a dry run changes nothing"

    done = copy.call(*copy.reproduce("test"), timeout=900)
    assert done.status == 0, done.output
    assert "has 0 bytes" not in done.output
    logs = {run.name: (copy.path / f"results/test/logs/train/{run.name}.log").read_text() for run in runs.glob("t*")}
    trained = {name for name, text in logs.items() if "step " in text and "finished already" not in text}
    assert trained >= {other, "tiny-grpo-fraction-s1"}
    for kept in (RUN, "tiny-rest_fixed-fraction-s1"):
        assert f"{kept} is finished already" in logs[kept]
    for run in finished_clone.path.glob("results/test/runs/tiny-*"):
        for name in ("model/model.safetensors", "eval/held-out/items.jsonl", "eval/bfcl-synthetic/items.jsonl"):
            if (run / name).exists():  # BFCL's checker sees one seed
                assert (runs / run.name / name).read_bytes() == (run / name).read_bytes(), (run.name, name)
    assert (copy.path / "results/mlflow.db").exists()
    again = copy.snakemake("--config", "experiment=test")
    assert "Nothing to be done" in again.output, again.output


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_is_one_line_and_more_room_mends_it(copy, finished_clone):
    folder = copy.path / "results/test/runs" / RUN
    shutil.rmtree(folder)
    folder.mkdir()
    mounted = copy.call("mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder))
    if mounted.status:
        pytest.skip(f"cannot mount: {mounted.output}")
    command = ["restool", "train", "--plan", PLAN, "--run", RUN, "--replace"]
    try:
        full = copy.call(*command)
        assert full.status == 2, full.output
        assert full.output.splitlines()[-1].startswith("restool: error: cannot write the checkpoint ")
        assert not (folder / "done.json").exists()
        assert not list(folder.rglob("*.tmp"))
        copy.call("mount", "-o", "remount,size=200m", str(folder))
        done = copy.call(*command)
        assert done.status == 0, done.output
        weights = "model/model.safetensors"
        made = finished_clone.path / "results/test/runs" / RUN / weights
        assert (folder / weights).read_bytes() == made.read_bytes()
    finally:
        copy.call("umount", "-l", str(folder))
