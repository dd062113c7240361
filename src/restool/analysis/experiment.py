"""An experiment as analysis and tracking see it: its plan and the run directories, nothing else.

``analyze`` turns them into tables, figures and an index of both under ``<experiment>/analysis``. Importing this
module is cheap; pandas, matplotlib and scipy are imported when ``analyze`` runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from restool import files, seals
from restool.core.errors import RestoolError, RunError
from restool.runs import RunDirectory, code_record
from restool.settings import ExperimentSettings, RunSettings, validate

Report = Callable[[str], None]


@dataclass(frozen=True)
class Run:
    """One planned run; its directory may be unfinished or absent."""

    directory: RunDirectory
    kind: str
    parent: str | None
    prepared: str
    evaluations: tuple[str, ...]
    settings: RunSettings

    @property
    def id(self) -> str:
        return self.directory.id

    @property
    def model(self) -> str:
        return self.settings.model.name

    @property
    def method(self) -> str:
        return self.settings.method.name

    @property
    def schedule(self) -> str:
        return self.settings.schedule.name

    @property
    def seed(self) -> int:
        return self.settings.seed

    @cached_property
    def is_current(self) -> bool:
        """Whether the directory holds this run, rather than none or one of other training settings."""
        try:
            return self.directory.settings.decisive() == self.settings.decisive()
        except RestoolError:
            return False

    @property
    def is_done(self) -> bool:
        return self.is_current and self.directory.is_done

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """One row a step, in order; where a resumed run wrote a step twice, the later row counts."""
        rows = {row["step"]: row for row in self.directory.metrics() if "step" in row} if self.is_current else {}
        return [rows[step] for step in sorted(rows)]

    def summary(self, benchmark: str) -> dict[str, Any] | None:
        """What the evaluation found; None if it has not run on this run's model."""
        return self.directory.summary(benchmark) if self.is_done else None

    @cached_property
    def environment(self) -> dict[str, Any]:
        path = self.directory.path / "env.json"
        return files.read_json(path) if path.exists() else {}

    def items(self, benchmark: str) -> list[dict[str, Any]]:
        return files.read_json_lines(self.directory.evaluation(benchmark) / "items.jsonl")

    @property
    def labels(self) -> dict[str, Any]:
        """The columns that identify a run in every table."""
        return {
            "run": self.id,
            "model": self.model,
            "schedule": self.schedule,
            "method": self.method,
            "seed": self.seed,
        }


@dataclass(frozen=True)
class Experiment:
    directory: Path
    settings: ExperimentSettings
    hash: str
    runs: tuple[Run, ...]

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def analysis(self) -> Path:
        return self.directory / "analysis"

    @property
    def rl_runs(self) -> list[Run]:
        return [run for run in self.runs if run.kind == "rl"]

    def run(self, run_id: str | None) -> Run | None:
        return next((run for run in self.runs if run.id == run_id), None)

    @cached_property
    def methods(self) -> list[str]:
        """Methods in the order of the plan: what everything else starts from (SFT) first, the reference next."""
        names = list(dict.fromkeys(run.method for run in self.runs))
        trained = {run.method for run in self.rl_runs}
        return sorted(names, key=lambda name: (name in trained, name != self.settings.reference))

    def manifest(self, run: Run) -> dict[str, Any]:
        """Manifest of the data that ``run`` was made from; {} if it is gone."""
        path = self.directory.parent / "prepared" / run.prepared / "manifest.json"
        return files.read_json(path) if path.exists() else {}

    @cached_property
    def variance(self) -> dict[str, Any] | None:
        path = self.analysis / "variance.json"
        return files.read_json(path) if path.exists() else None


def load(experiment_dir: str | Path) -> Experiment:
    """Read ``<experiment_dir>/plan.json``; :class:`RunError` if there is none."""
    directory = Path(experiment_dir)
    path = directory / "plan.json"
    if not path.exists():
        raise RunError(f"{directory} is not an experiment's folder: it has no plan.json; run 'restool plan' first")
    plan = files.read_json(path)
    runs = tuple(_run(directory, record) for record in plan["runs"])
    return Experiment(directory, validate(plan["experiment"], ExperimentSettings), files.content_hash(plan), runs)


def _run(directory: Path, record: dict[str, Any]) -> Run:
    return Run(
        directory=RunDirectory(directory / "runs" / record["id"]),
        kind=record["kind"],
        parent=record.get("parent"),
        prepared=record["prepared"],
        evaluations=tuple(record.get("evaluations", ())),
        settings=validate(record["config"], RunSettings),
    )


def analyze(experiment_dir: str | Path, *, report: Report = lambda line: None) -> Path:
    """Write ``analysis/{*.csv, figures/*.{png,svg,csv}, index.json}``; returns the analysis folder.

    Parts whose data is missing are left out and named, with the reason, in ``index.json`` (written last).
    """
    from restool.analysis import figures, tables

    experiment = load(experiment_dir)
    written = tables.write_all(experiment)
    report(f"{len(written)} tables in {experiment.analysis}")
    drawn, missing = figures.write_all(experiment)
    report(f"{len(drawn)} figures in {experiment.analysis / 'figures'}")
    for name, reason in missing.items():
        report(f"not drawn: {name} ({reason})")
    index = {"plan": experiment.hash, "tables": written, "figures": drawn, "missing_figures": missing}
    index["drawn_with"] = code_record()
    others = ("index.json", "variance.json")
    made = [p for p in experiment.analysis.rglob("[!.]*.*") if p.name not in others]
    index["files"] = seals.sizes(experiment.analysis, made)
    files.write_json(experiment.analysis / "index.json", index)
    return experiment.analysis
