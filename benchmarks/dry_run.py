"""How long Snakemake takes to say what it would do, against a bare Snakefile with a DAG of the same shape.

    .venv/bin/python benchmarks/dry_run.py [--jobs 500 5000]

`first` composes the plan with Hydra, `again` reads it from the cache, as every later call does; a remote job reads one
JSON file. CPU seconds of the whole call, imports included: on a busy machine they say more than wall seconds. The bare
Snakefile has the same jobs and edges and constant parameters.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SNAKEMAKE = str(Path(sys.executable).parent / "snakemake")
PARTS = ["Snakefile", "rules", "workflow", "configs", "envs", "profiles", "slurm", "pyproject.toml"]
BARE = """
RUNS = [f"run-{{n}}" for n in range({runs})]
EVERY = [f"out/{{r}}/{{part}}" for r in RUNS for part in ("done", "a", "b")]
rule all:
    input: "out/report", "out/tracked", EVERY, "out/variance", "out/analyzed"
rule prepare:
    output: "out/prepared"
    shell: "touch {{output}}"
rule train:
    input: "out/prepared", lambda w: [] if w.r == "run-0" else "out/run-0/done"
    output: "out/{{r}}/done"
    params: hash="0"
    shell: "touch {{output}}"
rule first:
    input: "out/{{r}}/done", "out/prepared"
    output: "out/{{r}}/a"
    params: hash="0"
    shell: "touch {{output}}"
rule second:
    input: "out/{{r}}/a", "out/prepared"
    output: "out/{{r}}/b"
    params: hash="0"
    shell: "touch {{output}}"
rule variance:
    input: "out/run-0/done"
    output: "out/variance"
    shell: "touch {{output}}"
rule analyze:
    input: EVERY, "out/variance"
    output: "out/analyzed"
    shell: "touch {{output}}"
rule report:
    input: "out/analyzed"
    output: "out/report"
    shell: "touch {{output}}"
rule track:
    input: "out/report", EVERY
    output: "out/tracked"
    shell: "touch {{output}}"
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, nargs="+", default=[500, 5000])
    print(f"{'':22}{'jobs':>7}{'wall s':>9}{'CPU s':>9}{'MB':>7}{'CPU, bare = 1':>16}")
    for jobs in parser.parse_args().jobs:
        with tempfile.TemporaryDirectory() as folder:
            measure(Path(folder), runs=(jobs - 5) // 3)


def measure(folder: Path, runs: int) -> None:
    (folder / "bare").mkdir()
    (folder / "bare" / "Snakefile").write_text(BARE.format(runs=runs))
    bare = timed(folder / "bare", [])
    show("bare Snakefile", bare, bare)
    (folder / "restool").mkdir()
    for part in PARTS:
        source = ROOT / part
        if source.is_symlink():
            (folder / "restool" / part).symlink_to(os.readlink(source))
        else:
            (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / "restool" / part)
    seeds = f"overrides=['experiment.matrix.methods=[grpo]','experiment.matrix.seeds={list(range(runs - 1))}']"
    chosen = ["--config", "experiment=test", seeds.replace(" ", "")]
    show("restool, first", timed(folder / "restool", chosen), bare)
    show("restool, again", timed(folder / "restool", chosen), bare)


def timed(folder: Path, arguments: list[str]) -> tuple[int, float, float, float]:
    """Jobs, wall seconds, CPU seconds, megabytes of a dry run."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RESTOOL_ENVS": str(ROOT / ".venvs")}
    command = [SNAKEMAKE, "-n", "-q", "rules", "--cores", "1", *arguments]
    cpu, wall = _cpu(), time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    wall, cpu = time.perf_counter() - wall, _cpu() - cpu
    found = re.search(r"^total\s+(\d+)", done.stdout + done.stderr, re.MULTILINE)
    if done.returncode or not found:
        sys.exit(done.stdout + done.stderr)
    return int(found[1]), wall, cpu, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1000


def _cpu() -> float:
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def show(name: str, found: tuple[int, float, float, float], bare: tuple[int, float, float, float]) -> None:
    jobs, wall, cpu, megabytes = found
    print(f"{name:22}{jobs:>7}{wall:>9.1f}{cpu:>9.1f}{megabytes:>7.0f}{cpu / bare[2]:>16.2f}", flush=True)


if __name__ == "__main__":
    main()
