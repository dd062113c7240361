"""What this machine lacks for an experiment, and the command that mends it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from restool import costs, environments, integrity, planning
from restool.core.errors import RestoolError

if TYPE_CHECKING:
    from restool.experiments import Plan

Check = tuple[str, bool, str]


def checks(plan: Plan) -> list[Check]:
    """(what, is it there, what was found or the command that mends it), for ``plan`` on this machine."""
    total = planning.summary(plan)
    return [
        ("Python >= 3.11", sys.version_info >= (3, 11), sys.version.split()[0]),
        _disk(plan, total["disk_gb"]),
        *_computing(plan, total),
        *_environments(plan),
        *_gpu_memory(plan),
        *_data(plan),
        *_models(plan),
        *_damage(plan),
    ]


def _disk(plan: Plan, needed_gb: float) -> Check:
    folder = plan.directory if plan.directory.exists() else Path.cwd()
    free = shutil.disk_usage(folder).free / 1e9
    what = f"disk for {needed_gb:.1f} GB of results"
    if free > needed_gb + 1:
        return what, True, f"{free:.0f} GB free"
    return what, False, f"{free:.0f} GB free; put results on a larger disk: ln -s /LARGE/DISK/results results"


def _computing(plan: Plan, total: dict[str, object]) -> Iterator[Check]:
    """Memory and GPUs of this machine, or a cluster that has them."""
    import psutil

    needed_gb, gpus = float(str(total["peak_memory_gb"])), int(str(total["most_gpus"]))
    here = psutil.virtual_memory().total / 1e9
    found = _gpus() if gpus else 0
    if (here > needed_gb and found >= gpus) or shutil.which("sbatch") is None:
        submit = f"./reproduce-paper {plan.name} --profile slurm"
        fix = f"; run it on a Slurm cluster: {submit}"
        yield f"memory for {needed_gb:.1f} GB", here > needed_gb, f"{here:.0f} GB" + (fix if here <= needed_gb else "")
        if gpus:
            yield f"{gpus} GPU(s)", found >= gpus, f"{found} found" + (fix if found < gpus else "")
    else:
        yield from _slurm(gpus)


def _slurm(gpus: int) -> Iterator[Check]:
    """This machine is too small and has Slurm: does that answer, and does it know what we call its things?"""
    states = _say("sinfo", "--noheader", "--format", "%P %G %D")
    answers = states is not None
    yield "Slurm", answers, "sinfo answers" if answers else "sinfo does not answer; try: sinfo"
    if answers and gpus:
        has_gpus = "gpu" in str(states)
        yield "GPUs of the cluster", has_gpus, "found" if has_gpus else "no partition has any: sinfo -o '%P %G %D'"
    example = Path("workflow/profiles/slurm/site.example.yaml")
    site = example.with_name("site.yaml")
    if example.exists():
        fix = f"none, so the cluster's defaults; to choose: cp {example} {site}"
        yield "partition, account, GPU names", True, str(site) if site.exists() else fix


def _environments(plan: Plan) -> Iterator[Check]:
    for name in plan.environments:
        try:
            yield f"tool environment '{name}'", True, str(environments.python(name))
        except RestoolError:
            yield f"tool environment '{name}'", False, f"restool env build {name}"


def _gpu_memory(plan: Plan) -> Iterator[Check]:
    """Whether the training state of each model fits its GPUs; activations come on top."""
    needed: dict[str, float] = {}
    for run in plan.runs:
        if costs.verl_layout(run.config, run.kind) and run.resources["gpus"]:
            name = run.config["model"]["name"]
            needed[name] = max(needed.get(name, 0.0), costs.gpu_memory_gb(run.config, run.kind))
    for name, gb in needed.items():
        found = f"calculated: {gb:.0f} GB of training state on each; more GPUs: backend.verl.gpus_per_node, nodes"
        yield f"{costs.GPU_GB:.0f} GB a GPU for {name} through verl", gb < costs.GPU_GB, found


def _data(plan: Plan) -> Iterator[Check]:
    missing = False
    for prepared in plan.prepared_ids:
        manifest = plan.prepared_path(prepared) / "manifest.json"
        missing = missing or not manifest.exists()
        fix = f"restool plan {plan.name} --write && restool prepare --plan {plan.path} --prepared {prepared}"
        yield f"prepared data {prepared}", manifest.exists(), str(manifest) if manifest.exists() else fix
    from_outside = any(run.config["data"]["kind"] != "synthetic" for run in plan.runs)
    if missing and from_outside:
        yield _source("public data", "raw.githubusercontent.com", "RESTOOL_MIRROR")


def _models(plan: Plan) -> Iterator[Check]:
    """Weights that prepare fetches, in the cache of Hugging Face."""
    named = {run.config["model"]["path"]: run.config["model"]["revision"] for run in plan.runs}
    for name, revision in named.items():
        if name is None or Path(name).is_dir():
            continue
        from huggingface_hub import try_to_load_from_cache

        is_there = isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str)
        fix = f"hf download {name}" + (f" --revision {revision}" if revision else "")
        yield f"weights of {name}", is_there, "in the cache" if is_there else fix


def _damage(plan: Plan) -> Iterator[Check]:
    for path, problem in integrity.damaged(plan).items():
        yield f"{path}", False, f"{problem}; made again by: ./reproduce-paper {plan.name}"


def _source(what: str, host: str, variable: str) -> Check:
    if mirror := os.environ.get(variable):
        fix = f"{variable}={mirror} is no folder"
        return what, Path(mirror).is_dir(), f"{variable}={mirror}" if Path(mirror).is_dir() else fix
    try:
        socket.create_connection((host, 443), timeout=3).close()
        return what, True, f"{host} is reachable"
    except OSError:
        return what, False, f"{host} is not reachable; export {variable}=FOLDER with the files as published"


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _say(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
