"""Which finished parts of an experiment are no longer what they were, so that they have to be made again.

Snakemake looks at times and at the files that its rules declare. This looks behind them: at what a finished run, an
evaluation or an analysis said that it consists of. It reads small files and asks for sizes; it changes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from restool import files, preparation, seals
from restool.experiments import Plan, PlannedRun
from restool.runs import RunDirectory

ANALYZED, VARIANCE = "analysis/analyzed.stamp", "analysis/variance.json"
REPORT, TRACKED = "report.html", "tracked.stamp"
"""Outputs of the workflow below an experiment's folder."""


def damaged(plan: Plan) -> dict[Path, str]:
    """Declared output → what is wrong with it or with a file behind it, for outputs that exist."""
    found = [(path, problem) for path, problem in _problems(plan) if path.exists()]
    return dict(reversed(found))  # the first problem of each


def _problems(plan: Plan) -> Iterator[tuple[Path, str]]:
    for prepared in plan.prepared_ids:
        manifest = plan.prepared_path(prepared) / "manifest.json"
        problems = _sealed(manifest, manifest.parent, "sealed")
        yield from ((manifest, problem) for problem in problems)
        settings = plan.prepared_ids[prepared].settings
        if not problems and manifest.exists() and preparation.can_be_completed(settings, manifest.parent):
            yield manifest, "API-Bank, which the data was prepared without, can be had now"
    for run in plan.runs:
        yield from _run_problems(plan, run)
    stamp, index = plan.directory / ANALYZED, plan.directory / "analysis" / "index.json"
    if stamp.exists() and not index.exists():
        yield stamp, f"{index} is gone"
    yield from ((stamp, problem) for problem in _sealed(index, index.parent))
    yield from ((path, problem) for path in [plan.directory / VARIANCE] for problem in _sealed(path, path.parent))
    report = plan.directory / REPORT
    if report.exists() and not report.read_bytes().rstrip().endswith(b"</html>"):
        yield report, f"{report} is cut off"
    store = plan.directory.parent / "mlflow.db"
    if not os.environ.get("MLFLOW_TRACKING_URI") and not (store.exists() and store.stat().st_size):
        yield plan.directory / TRACKED, f"{store} is gone"


def _run_problems(plan: Plan, run: PlannedRun) -> Iterator[tuple[Path, str]]:
    directory = RunDirectory(plan.run_path(run.id))
    done = directory.path / "done.json"
    yield from ((done, problem) for problem in directory.damage())
    for benchmark in run.evaluations:
        summary = directory.evaluation(benchmark) / "summary.json"
        yield from ((summary, problem) for problem in _sealed(summary, summary.parent))


def _sealed(record: Path, root: Path, key: str = "files") -> list[str]:
    """Problems of a JSON record, if it exists, and of the files that it names."""
    if not record.exists():
        return []
    try:
        content: Any = files.read_json(record)
        return seals.damage(root, content.get(key, {}))
    except (files.FileError, AttributeError):
        return [f"{record} cannot be read"]
