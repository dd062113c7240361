"""How long Snakemake takes to say what it would do, against a bare Snakefile with the same jobs and edges.

    .venv/bin/python benchmarks/dry_run.py [--jobs 500 5000] [--done 500]

`first` composes the plan with Hydra, `again` reads it from the cache, as every later call does; a remote job reads one
JSON file. `nothing to do` is the call when every output is there. CPU seconds of the whole call, imports included: on a
busy machine they say more than wall seconds. The bare Snakefile has constant parameters. Both must plan the same number
of jobs, or the comparison is refused.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import sys
import tempfile
from pathlib import Path

import commands

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENTS = Path(os.environ.get("RESTOOL_ENVS") or ROOT / ".venvs").absolute()
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
    input: "out/{{r}}/done", "out/{{r}}/a", "out/prepared"
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


Measured = tuple[int, float, float, float]
"""Jobs, wall seconds, CPU seconds, mebibytes of a call."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, nargs="+", default=[500, 5000], help="sizes of a workflow before its start")
    parser.add_argument("--done", type=int, nargs="*", default=[500], help="sizes of a workflow that is done")
    sizes = parser.parse_args()
    print(f"{'':28}{'jobs':>7}{'wall s':>9}{'CPU s':>9}{'MiB':>7}{'wall, bare = 1':>16}{'CPU, bare = 1':>15}")
    for jobs in dict.fromkeys([*sizes.jobs, *sizes.done]):
        with tempfile.TemporaryDirectory() as folder:
            measure(Path(folder), (jobs - 5) // 3, is_new=jobs in sizes.jobs, is_done=jobs in sizes.done)


def measure(folder: Path, runs: int, *, is_new: bool, is_done: bool) -> None:
    bare, ours, chosen = copies(folder, runs)
    if is_new:
        alone = timed(bare, [])
        show("bare Snakefile", alone, alone)
        show("restool, first", timed(ours, chosen), alone)
        show("restool, again", timed(ours, chosen), alone)
    if is_done:
        pretend_done(bare, [])
        pretend_done(ours, chosen)
        alone = timed(bare, [])
        show("bare, nothing to do", alone, alone)
        show("restool, nothing to do", timed(ours, chosen), alone)


def copies(folder: Path, runs: int) -> tuple[Path, Path, list[str]]:
    """A bare workflow, ours, and the arguments with which ours has the same jobs: two evaluations a run."""
    bare, ours = folder / "bare", folder / "restool"
    bare.mkdir()
    (bare / "Snakefile").write_text(BARE.format(runs=runs))
    ours.mkdir()
    for part in PARTS:
        source = ROOT / part
        if source.is_symlink():
            (ours / part).symlink_to(os.readlink(source))
        else:
            (shutil.copytree if source.is_dir() else shutil.copy)(source, ours / part)
    values = [
        "experiment.matrix.methods=[grpo]",  # and the SFT run that all start from
        f"experiment.matrix.seeds={list(range(runs - 1))}",
        "experiment.evaluations={held-out:all,bfcl-synthetic:all}",
    ]
    return bare, ours, ["--config", "experiment=test", f"overrides={json.dumps(values)}"]


def timed(folder: Path, arguments: list[str]) -> Measured:
    """A dry run."""
    output, wall, usage = call(folder, "-n", "-q", "rules", *arguments)
    found = re.search(r"^total\s+(\d+)", output, re.MULTILINE)
    if not found and "Nothing to be done" not in output:
        sys.exit(output)
    return int(found[1]) if found else 0, wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def pretend_done(folder: Path, arguments: list[str]) -> None:
    """Put a small file at every output and have Snakemake record it as made with the current parameters."""
    lines = call(folder, "--summary", *arguments)[0].splitlines()
    names = [line.split("\t")[0] for line in lines if "\t" in line][1:]
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/figures"):  # the one output that is a folder
            path.mkdir(exist_ok=True)
        else:
            path.write_text("<html></html>" if name.endswith(".html") else "{}")
    for beside in (folder / "results" / "mlflow.db", folder / "results" / "test" / "analysis" / "index.json"):
        beside.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text("{}")
    call(folder, "--touch", *arguments)


def call(folder: Path, *arguments: str) -> tuple[str, float, resource.struct_rusage]:
    """What a Snakemake said, its wall seconds, and what it and its children took."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RESTOOL_ENVS": str(ENVIRONMENTS)}
    return commands.run([SNAKEMAKE, "--cores", "1", *arguments], folder=folder, environment=environment)


def show(name: str, found: Measured, bare: Measured) -> None:
    jobs, wall, cpu, mebibytes = found
    if jobs != bare[0]:
        sys.exit(f"{name} has {jobs} jobs and the bare workflow {bare[0]}: not of the same shape")
    ratios = f"{wall / bare[1]:>16.2f}{cpu / bare[2]:>15.2f}"
    print(f"{name:28}{jobs:>7}{wall:>9.1f}{cpu:>9.1f}{mebibytes:>7.0f}{ratios}", flush=True)


if __name__ == "__main__":
    main()
