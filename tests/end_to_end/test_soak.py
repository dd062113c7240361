"""Twenty kill -9 at random moments of a small experiment, each followed by the same command: nothing is lost.

Victims: one job, Snakemake, the command around it, and everything at once, as when a machine loses power. An experiment
that ends before all kills are used up is compared, and the next begins in an empty folder. RESTOOL_SOAK_SEED chooses
other moments and victims.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import sqlite3
import subprocess
from typing import Any

import psutil
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.end_to_end]

KILLS = 20
SEED = int(os.environ.get("RESTOOL_SOAK_SEED", "0"))
VICTIMS = ("a job", "Snakemake", "the command", "everything")
DELAYS = (2.0, 14.0)  # seconds; a call takes some three to give out its first job
CLOCKS = ("timestamp", "time/", "throughput/", "wall_seconds", "cpu_seconds", "finished_at")
SIZE_OF_CLOCKS = "metrics.jsonl"  # among the sizes that a run vouches for: a time has more digits or fewer
LAST_RUN = re.compile(r"the last at \d{4}-\d\d-\d\d \d\d:\d\d UTC")
ABOUT_JOBS = ("logs/", "times/")


def test_twenty_kills_at_random_moments_change_nothing(finished_clone, new_clone):
    chance, kills = random.Random(SEED), 0
    expected, in_store = results(finished_clone), stored(finished_clone)
    while kills < KILLS:
        clone, done = new_clone(), False
        while kills < KILLS and not done:
            done = not killed(clone, chance)
            kills += not done
        ended = clone.call(*clone.reproduce("test"), timeout=900)
        assert ended.status == 0, ended.output[-3000:]
        found = results(clone)
        assert found.keys() == expected.keys()
        assert [name for name in found if found[name] != expected[name]] == []
        assert stored(clone) == in_store


def killed(clone, chance: random.Random) -> bool:
    """Whether the command was killed; it may have come to its end before."""
    victim, delay = chance.choice(VICTIMS), chance.uniform(*DELAYS)
    log = clone.path / "soak.log"
    with log.open("w") as output:
        process = clone.start(*clone.reproduce("test"), output=output)
        try:
            process.wait(delay)
        except subprocess.TimeoutExpired:
            print(f"after {delay:.1f} s: {strike(process.pid, victim, chance)}", flush=True)
            process.wait(timeout=600)
            assert process.returncode != 0, f"nobody noticed:\n{log.read_text()[-3000:]}"
            return True
        assert process.returncode == 0, log.read_text()[-3000:]
        return False


def strike(leader: int, victim: str, chance: random.Random) -> str:
    """Kill and say what; Snakemake where no job is under way, the command where Snakemake is not there yet."""
    below = {}
    for process in psutil.Process(leader).children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it may have ended by now
            below[process] = " ".join(process.cmdline())
    jobs = [p for p, line in below.items() if "/restool " in line and "snakemake" not in line.split("/restool ")[0]]
    snakemakes = [p for p, line in below.items() if "/snakemake " in line]
    if victim == "everything":
        os.killpg(leader, signal.SIGKILL)
        return victim
    chosen = {"a job": jobs or snakemakes, "Snakemake": snakemakes, "the command": []}[victim]
    process = chance.choice(chosen) if chosen else psutil.Process(leader)
    line = below.get(process, "the command")
    with contextlib.suppress(psutil.Error):
        process.kill()
    return f"{victim}: {line[-100:]}"


def results(clone) -> dict[str, Any]:
    """What the experiment leaves behind, file by file, without clocks."""
    folder = clone.path / "results/test"
    found: dict[str, Any] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if name.startswith(ABOUT_JOBS):
            continue
        if path.suffix == ".jsonl":
            found[name] = [without_clocks(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.suffix == ".json":
            found[name] = without_clocks(json.loads(path.read_text()))
        elif path.suffix == ".html":
            found[name] = LAST_RUN.sub("", path.read_text())
        else:
            found[name] = path.read_bytes()
    return found


def without_clocks(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: item for key, item in value.items() if not key.startswith(CLOCKS) and key != SIZE_OF_CLOCKS}
        return {key: without_clocks(item) for key, item in kept.items()}
    return [without_clocks(item) for item in value] if isinstance(value, list) else value


def stored(clone) -> list[tuple[Any, ...]]:
    """MLflow's points by run and step, without clocks; every active run counts once."""
    database = sqlite3.connect(clone.path / "results/mlflow.db")
    query = (
        "select name, key, step, value from metrics join runs using (run_uuid) "
        "where lifecycle_stage = 'active' order by name, key, step, value"
    )
    return [row for row in database.execute(query) if not row[1].startswith(CLOCKS)]
