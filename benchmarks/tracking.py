"""Speed of importing results into MLflow, against bare clients that log the same points.

    .venv/bin/python benchmarks/tracking.py [--steps 25] [--at-most 10]

Eight RL runs of 40 metrics a step (8,000 points with 25 steps) and their SFT run lie in run directories; `restool
track` imports them into an empty SQLite store, then once more. Wall seconds of the whole command, the start of Python,
the import of mlflow and the creation of the database included. The peers are programs of their own, too: one sends
the points in batches of 1,000, without settings, tags or files; one calls `log_metric` for every tenth point, and its
rate is compared, not its time. Exit status 1 if the first import takes longer than ``--at-most`` seconds, if a point
is missing, or if the second import adds anything.
"""

from __future__ import annotations

import argparse
import re
import sqlite3
import sys
import tempfile
from pathlib import Path

import commands

from restool import files, runs
from restool.analysis.experiment import load
from restool.experiments import load_plan

METRICS = 40
SHAPE = ["experiment.matrix.methods=[grpo,rest_fixed]", "experiment.matrix.seeds=[0,1,2,3]"]
PEER = """
import json, sys
from pathlib import Path
import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric
folder, store, mode = sys.argv[1:]
client = MlflowClient(f"sqlite:///{store}")
mlflow.set_tracking_uri(f"sqlite:///{store}")
experiment = client.create_experiment("peer")
for log in sorted(Path(folder).glob("*/metrics.jsonl")):
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    points = [(n, v, int(1000 * r["timestamp"]), r["step"]) for r in rows for n, v in r.items() if "/" in n]
    with mlflow.start_run(experiment_id=experiment, run_name=log.parent.name) as run:
        if mode == "batches":
            for start in range(0, len(points), 1000):
                client.log_batch(run.info.run_id, metrics=[Metric(*point) for point in points[start : start + 1000]])
        else:
            for name, value, _, step in points[::10]:
                mlflow.log_metric(name, value, step=step)
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--at-most", type=float, default=10.0, help="seconds")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results"
        directory = made_up(results, options.steps)
        track = [sys.executable, "-m", "restool", "track", "--plan", str(directory / "plan.json")]
        print(f"{'':28}{'points':>8}{'wall s':>9}{'CPU s':>9}{'points/s':>10}")
        first, cpu, said = timed(track)
        points = stored(results / "mlflow.db")
        show("restool track, empty store", points, first, cpu)
        again, cpu, said_again = timed(track)
        show("restool track, once more", stored(results / "mlflow.db") - points, again, cpu)
        peers = {}
        for mode in ("batches", "log_metric"):
            store = Path(folder) / f"{mode}.db"
            command = [sys.executable, "-W", "ignore", "-c", PEER, str(directory / "runs"), str(store), mode]
            spent, cpu, _ = timed(command)
            peers[mode] = stored(store) / spent
            show(f"bare client, {mode}", stored(store), spent, cpu)
    rate = points / first
    print(f"rate of ours: {rate / peers['batches']:.2f} of batches, {rate / peers['log_metric']:.1f} times log_metric")
    complete = points == (expected := 8 * options.steps * METRICS)
    unchanged = bool(re.search(r"0 runs added, 0 replaced, 0 removed, 0 points", said_again))
    if not complete or not unchanged or first > options.at_most:
        print(f"failed: {points} of {expected} points in {first:.1f} s.\n{said}{said_again}")
        return 1
    return 0


def made_up(results: Path, steps: int) -> Path:
    """An experiment whose RL runs are finished and have METRICS metrics a step."""
    plan = load_plan("quick", SHAPE, results)
    for run in load(plan.directory).runs:
        directory = runs.open_run(run.directory.path, run.settings, {"data": "f" * 12, "start": "initial"})
        names = [f"part{number % 5}/metric{number}" for number in range(METRICS)] if run.kind == "rl" else []
        rows = [
            {"step": step, "timestamp": 1.7e9 + step, **{name: step / (1 + len(name)) for name in names}}
            for step in range(1, steps + 1)
        ]
        files.write_json_lines(directory.metrics_path, rows)
        directory.finish({"steps": steps})
    return plan.directory


def timed(command: list[str]) -> tuple[float, float, str]:
    """Wall and CPU seconds of a command, and what it said."""
    output, wall, usage = commands.run(command)
    return wall, usage.ru_utime + usage.ru_stime, output


def stored(store: Path) -> int:
    with sqlite3.connect(store) as database:
        return database.execute("select count(*) from metrics").fetchone()[0]


def show(name: str, points: int, wall: float, cpu: float) -> None:
    print(f"{name:28}{points:>8}{wall:>9.1f}{cpu:>9.1f}{points / wall:>10.0f}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
