"""What is behind a figure: the runs that it is made from, and the commits that made those."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from restool.analysis import tables
from restool.analysis.experiment import Experiment


def behind(experiment: Experiment, run_ids: Iterable[str]) -> dict[str, Any]:
    """``runs``: ids; ``commits``: commit → how many of the runs it made, a + marking uncommitted changes."""
    runs = [run for run in map(experiment.run, run_ids) if run]
    commits = Counter(commit(run.environment) for run in runs)
    return {"runs": [run.id for run in runs], "commits": dict(commits)}


def with_starts(experiment: Experiment, run_ids: Iterable[str]) -> tuple[str, ...]:
    """The runs, and those that they started from."""
    runs = [run for run in map(experiment.run, run_ids) if run]
    starts = [start for run in runs if (start := tables.start(experiment, run))]
    return tuple(dict.fromkeys([*(run.id for run in runs), *starts]))


def measured_on(experiment: Experiment) -> tuple[str, ...]:
    """The run whose model the gradient variance was measured on; none if that is the untrained model."""
    run = experiment.run(Path((experiment.variance or {}).get("model", "")).parent.name)
    return (run.id,) if run else ()


def commit(environment: dict[str, Any]) -> str:
    """The commit of a record of `runs.code_record` or of an env.json; a + marks uncommitted changes."""
    mark = "+" if environment.get("uncommitted_changes") else ""
    return (environment.get("commit") or "unknown") + mark
