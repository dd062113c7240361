"""What a plan costs, and what this machine lacks for it.

Every figure carries its basis: ``measured`` on finished runs of the same model and method here, ``calculated``
from model facts, or ``assumed`` (see `restool.costs`). Nothing assumed is presented as measured.
"""

from __future__ import annotations

import shutil
import socket
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from restool import files
from restool.costs import (
    BYTES_PER_PARAMETER_CHECKPOINT,
    BYTES_PER_PARAMETER_STORED,
    BYTES_PER_PARAMETER_TRAINING,
    CHECKPOINTS_KEPT,
    TINY_PARAMETERS,
    assumed_hours,
    gpus,
)

if TYPE_CHECKING:
    from restool.experiments import Plan, PlannedRun


@dataclass(frozen=True)
class Estimate:
    """Cost of one run."""

    run: str
    kind: str
    hours: float
    hours_basis: str
    gpus: int
    memory_gb: float
    disk_gb: float  # the exported model
    checkpoint_gb: float  # while it trains
    done: bool


def estimate(plan: Plan) -> list[Estimate]:
    """One estimate per run, measured where this results folder has a finished run of the same model and method."""
    measured = _measured_hours(plan)
    return [_estimate_run(plan, run, measured) for run in plan.runs]


def summary(plan: Plan) -> dict[str, Any]:
    """Jobs by kind, GPU-hours, CPU-hours, disk and peak memory of what is still to do, as plain data."""
    estimates = estimate(plan)
    to_do = [e for e in estimates if not e.done]
    jobs: Counter[str] = Counter(prepare=len(plan.prepared_ids))
    for run in plan.runs:
        jobs[f"train {run.kind}"] += 1
        jobs.update(f"evaluate {name}" for name in run.evaluations)
    jobs.update(["analyze", "report", "track"] + (["variance"] if plan.variance else []))
    return {
        "experiment": plan.name,
        "title": plan.experiment.title,
        "runs": len(plan.runs),
        "runs_done": len(estimates) - len(to_do),
        "jobs": dict(jobs),
        "gpu_hours": round(sum(e.hours * e.gpus for e in to_do), 2),
        "cpu_hours": round(sum(e.hours for e in to_do if not e.gpus), 2),
        "disk_gb": round(sum(e.disk_gb for e in to_do) + max((e.checkpoint_gb for e in to_do), default=0.0), 2),
        "peak_memory_gb": round(max((e.memory_gb for e in to_do), default=0.0), 1),
        "basis": sorted({e.hours_basis for e in to_do}),
        "excluded": [e.model_dump() for e in plan.experiment.excluded],
        "estimates": [asdict(e) for e in estimates],
    }


def doctor(plan: Plan) -> list[tuple[str, bool, str]]:
    """Checks of this machine for ``plan``: (what, is it there, how to mend it or what was found)."""
    total = summary(plan)
    checks = [
        ("Python >= 3.11", sys.version_info >= (3, 11), sys.version.split()[0]),
        _disk_check(plan, total["disk_gb"]),
        _memory_check(total["peak_memory_gb"]),
        _gpu_check(plan),
        _environment_check(plan),
        *_data_checks(plan),
    ]
    return [check for check in checks if check is not None]


def _estimate_run(plan: Plan, run: PlannedRun, measured: dict[tuple[str, str], float]) -> Estimate:
    parameters = float(run.config["model"]["parameters"])
    stored = BYTES_PER_PARAMETER_STORED[run.config["model"]["dtype"]]
    is_tiny = parameters <= TINY_PARAMETERS
    key = (run.config["model"]["name"], run.config["method"]["name"])
    if key in measured:
        hours, basis = measured[key], "measured"
    elif run.kind == "none":
        hours, basis = 0.0, "calculated"
    elif is_tiny:
        hours, basis = (200 if run.kind == "sft" else 60) / 3600, "assumed"
    else:
        hours, basis = assumed_hours(run.config, run.kind), "assumed"
    trains = run.kind != "none"
    return Estimate(
        run=run.id,
        kind=run.kind,
        hours=hours,
        hours_basis=basis,
        gpus=0 if is_tiny or not trains else gpus(parameters),
        memory_gb=parameters * (BYTES_PER_PARAMETER_TRAINING if trains else stored) / 1e9 + (1.5 if is_tiny else 10.0),
        disk_gb=parameters * stored / 1e9,
        checkpoint_gb=parameters * CHECKPOINTS_KEPT * (stored + BYTES_PER_PARAMETER_CHECKPOINT) / 1e9
        if trains
        else 0.0,
        done=(plan.run_path(run.id) / "done.json").exists(),
    )


def _measured_hours(plan: Plan) -> dict[tuple[str, str], float]:
    found: dict[tuple[str, str], list[float]] = {}
    for run in plan.runs:
        path = plan.run_path(run.id) / "done.json"
        if path.exists() and "wall_seconds" in (done := files.read_json(path)):
            key = (run.config["model"]["name"], run.config["method"]["name"])
            found.setdefault(key, []).append(done["wall_seconds"] / 3600)
    return {key: sum(values) / len(values) for key, values in found.items()}


def _disk_check(plan: Plan, needed_gb: float) -> tuple[str, bool, str]:
    folder = plan.directory if plan.directory.exists() else Path.cwd()
    free = shutil.disk_usage(folder).free / 1e9
    return (f"disk for {needed_gb:.1f} GB of results", free > needed_gb + 1, f"{free:.0f} GB free")


def _memory_check(needed_gb: float) -> tuple[str, bool, str]:
    import psutil

    total = psutil.virtual_memory().total / 1e9
    return (f"memory for {needed_gb:.1f} GB", total > needed_gb, f"{total:.0f} GB on this machine")


def _gpu_check(plan: Plan) -> tuple[str, bool, str] | None:
    needed = max((run.resources["gpus"] for run in plan.runs), default=0)
    if not needed:
        return None
    import torch

    found = torch.cuda.device_count()
    return (f"{needed} GPU(s)", found >= needed, f"{found} found; run on a cluster with --profile slurm")


def _environment_check(plan: Plan) -> tuple[str, bool, str] | None:
    if not any("bfcl" in name for run in plan.runs for name in run.evaluations):
        return None
    from restool import environments
    from restool.core.errors import RestoolError

    try:
        return ("tool environment 'bfcl'", True, str(environments.python("bfcl")))
    except RestoolError as error:
        return ("tool environment 'bfcl'", False, str(error))


def _data_checks(plan: Plan) -> list[tuple[str, bool, str]]:
    checks = []
    for prepared in plan.prepared_ids:
        manifest = plan.prepared_path(prepared) / "manifest.json"
        found = manifest.exists()
        fix = str(manifest) if found else f"restool prepare --plan {plan.path} --prepared {prepared} ({_sources()})"
        checks.append((f"prepared data {prepared}", found, fix))
    return checks


def _sources() -> str:
    import os

    if mirror := os.environ.get("RESTOOL_MIRROR"):
        return f"RESTOOL_MIRROR={mirror}"
    try:
        socket.create_connection(("raw.githubusercontent.com", 443), timeout=3).close()
        return "network reachable"
    except OSError:
        return "network not reachable, RESTOOL_MIRROR not set"
