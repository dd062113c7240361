"""Eight imports at once into one store, a file or a server: nothing is lost, and nothing comes twice."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from restool import files
from restool.analysis.experiment import load
from restool.tracking import serving

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

WRITERS = 8


@pytest.fixture
def experiments(quick: Path) -> list[Path]:
    """Eight finished experiments in one results folder."""
    made = []
    for number in range(WRITERS):
        directory = quick.parent / f"quick{number}"
        shutil.copytree(quick, directory)
        plan = files.read_json(directory / "plan.json")
        plan["experiment"]["name"] = directory.name
        files.write_json(directory / "plan.json", plan)
        made.append(directory)
    return made


@pytest.mark.parametrize("kind", ["sqlite", "server"])
def test_eight_writers_at_once_lose_nothing(experiments: list[Path], tmp_path: Path, kind: str) -> None:
    store = tmp_path / "store/mlflow.db"
    store.parent.mkdir()
    address = f"sqlite:///{store}"
    with serving.served(address, 5100) if kind == "server" else nullcontext(address) as where:
        first = write_all(experiments, where)
        stored = contents(store)
        second = write_all(experiments, where)
    assert all("14 runs added, 0 replaced, 0 removed" in said for said in first), first
    for directory in experiments:
        of_runs = {f"{directory.name}/{run.id}": points(run) for run in load(directory).runs}
        assert {key: count for key, count in stored[directory.name].items() if count} == of_runs
        assert set(stored[directory.name]) == {directory.name, *of_runs}
    assert all("0 runs added, 0 replaced, 0 removed, 0 points" in said for said in second), second
    assert contents(store) == stored


def write_all(experiments: list[Path], address: str) -> list[str]:
    """Start every import before the first has ended; what each of them said."""
    environment = {**os.environ, "MLFLOW_TRACKING_URI": address, "OMP_NUM_THREADS": "1"}
    environment.pop("MLFLOW_EXPERIMENT_NAME", None)
    started = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "restool", "track", "--plan", str(directory / "plan.json")],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for directory in experiments
    ]
    said = [process.communicate(timeout=600)[1] for process in started]
    assert [process.returncode for process in started] == [0] * len(started), said
    return said


def points(run) -> int:
    """Metric points that the files of a run hold."""
    rows = [[v for k, v in row.items() if k not in ("step", "timestamp") and v is not None] for row in run.metrics]
    scores = [len((run.summary(name) or {}).get("aggregates", {})) for name in run.evaluations]
    return sum(map(len, rows)) + sum(scores)


def contents(store: Path) -> dict[str, dict[str, int]]:
    """Experiment → key of a run → its metric points, as the database holds them."""
    query = """
        select e.name, t.value, (select count(*) from metrics m where m.run_uuid = r.run_uuid)
        from runs r join experiments e using (experiment_id)
        join tags t on t.run_uuid = r.run_uuid and t.key = 'restool.key'
    """
    found: dict[str, dict[str, int]] = {}
    with sqlite3.connect(store) as database:
        for experiment, key, count in database.execute(query):
            assert key not in found.setdefault(experiment, {}), "a run that came twice"
            found[experiment][key] = count
    return found
