"""Resumable state of a training run: everything that step N + 1 depends on, in one file written atomically.

Random numbers need no state: prompts, sampling and batches are drawn from generators seeded by (seed, step).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from restool import files
from restool.runs import RunDirectory

_KEPT = 2


def save(run: RunDirectory, step: int, state: dict[str, Any]) -> None:
    """Write ``state`` as the checkpoint of ``step`` and drop all but the two newest."""
    with files.atomic_path(_path(run, step)) as temporary:
        try:
            torch.save(state, temporary)
        except RuntimeError as error:  # torch's writer reports a full disk so
            raise files.FileError(f"cannot write the checkpoint {_path(run, step)}: {error}") from error
    for old in _all(run)[:-_KEPT]:
        old.unlink()


def load_latest(run: RunDirectory, report: Callable[[str], None]) -> tuple[int, dict[str, Any] | None]:
    """(step, state) of the newest checkpoint that can be used; (0, None) if there is none.

    ``metrics.jsonl`` and ``rollouts.jsonl`` are cut back to that step: what was logged behind it is done again. A
    checkpoint whose earlier steps are missing from the log (the machine lost power) is passed over.
    """
    _remove_leftovers(run)
    logged = _steps_logged(run)
    step, state = 0, None
    for path in reversed(_all(run)):
        if (number := int(path.stem.removeprefix("step-"))) > logged:
            report(f"{path} is ahead of {run.metrics_path.name} ({logged} steps); trying an older checkpoint")
            continue
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            step = number
            break
        except Exception as error:  # torch raises anything on a damaged file
            report(f"{path} cannot be read ({type(error).__name__}); trying an older checkpoint")
    for log in (run.metrics_path, run.rollouts_path):
        if log.exists():
            files.write_json_lines(log, [row for row in files.read_json_lines(log) if row["step"] <= step])
    return step, state


def clear(run: RunDirectory) -> None:
    """Remove all checkpoints of a finished run."""
    shutil.rmtree(run.checkpoints, ignore_errors=True)


def _path(run: RunDirectory, step: int) -> Path:
    return run.checkpoints / f"step-{step:06d}.pt"


def _all(run: RunDirectory) -> list[Path]:
    return sorted(run.checkpoints.glob("step-*.pt"))


def _remove_leftovers(run: RunDirectory) -> None:
    """Temporary files and folders of a killed process."""
    for path in [*run.checkpoints.glob(".*.tmp"), *run.path.glob(".model.*.tmp")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _steps_logged(run: RunDirectory) -> int:
    """How many steps from the first on have their line, without a gap."""
    logged = 0
    for row in run.metrics():
        if row.get("step") != logged + 1:
            break
        logged += 1
    return logged
