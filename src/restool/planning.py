"""What a plan costs: its jobs, hours, disk and memory, and the wall time on given resources.

Every figure carries its basis: ``measured`` on finished work of the same settings in this results folder (another seed,
another experiment), ``calculated`` from model facts, or ``assumed`` (see `restool.costs`). Nothing assumed is
presented as measured.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from restool import costs, files
from restool.evaluation import benchmarks
from restool.timetable import Task, makespan

if TYPE_CHECKING:
    from restool.experiments import Plan, PlannedRun

LAST_STEPS = {"analyze": 60.0, "report": 15.0, "track": 60.0}  # assumed seconds
PREPARE_SECONDS = 60.0


@dataclass(frozen=True)
class Job:
    """One job of the workflow. ``disk_gb`` stays; ``checkpoint_gb`` only while it trains."""

    name: str
    kind: str
    model: str
    hours: float
    basis: str
    gpus: int
    cores: int
    memory_gb: float
    disk_gb: float
    checkpoint_gb: float
    done: bool
    after: tuple[str, ...]


def jobs(plan: Plan) -> list[Job]:
    """Every job in the order of the DAG."""
    history = History(plan.directory.parent)
    found = [_prepare(plan, prepared, history) for prepared in plan.prepared_ids]
    for run in plan.runs:
        found.append(_train(plan, run, history))
        found += [_evaluate(plan, run, name, history) for name in run.evaluations]
    if plan.variance_subject:
        found.append(_variance(plan, history))
    everything = tuple(job.name for job in found)
    for kind, seconds in LAST_STEPS.items():
        output = {"analyze": "analysis/analyzed.stamp", "report": "report.html", "track": "tracked.stamp"}[kind]
        hours, basis = history.hours(plan, f"{kind}.tsv", seconds / 3600)
        done = (plan.directory / output).exists()
        found.append(Job(kind, kind, "", hours, basis, 0, 1, 4.0, 0.0, 0.0, done, everything))
        everything = (kind,)
    return found


def summary(plan: Plan, gpus: int | None = None, cores: int | None = None) -> dict[str, Any]:
    """All of it as plain data. ``wall_hours``: of what is still to do on so many GPUs and cores; None if none given,
    or if a job needs more GPUs than that."""
    planned = jobs(plan)
    to_do = [job for job in planned if not job.done]
    trained = [job for job in planned if job.kind.startswith("train")]
    counts: dict[str, int] = {}
    for job in planned:
        counts[job.kind] = counts.get(job.kind, 0) + 1
    wall = None
    if gpus is not None or cores is not None:
        tasks = [Task(j.name, j.hours, j.gpus, j.cores, j.after) for j in to_do]
        wall = makespan(tasks, gpus or 0, cores or 10**6)
    return {
        "experiment": plan.name,
        "title": plan.experiment.title,
        "runs": len(plan.runs),
        "runs_done": sum(job.done for job in trained),
        "jobs": counts,
        "jobs_done": sum(job.done for job in planned),
        "gpu_hours": round(sum(j.hours * j.gpus for j in to_do), 2),
        "cpu_hours": round(sum(j.hours for j in to_do if not j.gpus), 2),
        "disk_gb": round(sum(j.disk_gb for j in to_do) + max((j.checkpoint_gb for j in to_do), default=0.0), 2),
        "peak_memory_gb": round(max((j.memory_gb for j in to_do), default=0.0), 1),
        "most_gpus": max((j.gpus for j in to_do), default=0),
        "wall_hours": None if wall is None else round(wall, 2),
        "given": {"gpus": gpus, "cores": cores},
        "basis": sorted({j.basis for j in to_do}),
        "kinds": list(_by_kind(planned)),
        "excluded": [e.model_dump() for e in plan.experiment.excluded],
        "estimates": [asdict(job) for job in planned],
    }


def _by_kind(planned: list[Job]) -> Iterator[dict[str, Any]]:
    """One row a kind of job and model."""
    groups: dict[tuple[str, str], list[Job]] = {}
    for job in planned:
        groups.setdefault((job.kind, job.model), []).append(job)
    for (kind, model), group in groups.items():
        to_do = [job for job in group if not job.done]
        yield {
            "kind": kind,
            "model": model,
            "jobs": len(group),
            "done": len(group) - len(to_do),
            "gpus": max(job.gpus for job in group),
            "hours_each": round(fmean(job.hours for job in group), 3),
            "gpu_hours": round(sum(job.hours * job.gpus for job in to_do), 2),
            "basis": ", ".join(sorted({job.basis for job in group})),
            "memory_gb": round(max(job.memory_gb for job in group), 1),
            "disk_gb": round(sum(job.disk_gb for job in to_do), 2),
        }


# ------------------------------------------------------------------------------------------------------- jobs


def _prepare(plan: Plan, prepared: str, history: History) -> Job:
    hours, basis = history.hours(plan, f"prepare/{prepared}.tsv", PREPARE_SECONDS / 3600)
    done = (plan.prepared_path(prepared) / "manifest.json").exists()
    return Job(f"prepare {prepared}", "prepare", "", hours, basis, 0, 1, 3.0, 0.0, 0.0, done, ())


def _train(plan: Plan, run: PlannedRun, history: History) -> Job:
    config, needed = run.config, run.resources
    parameters = float(config["model"]["parameters"])
    stored = costs.BYTES_PER_PARAMETER_STORED[config["model"]["dtype"]]
    is_tiny, trains = parameters <= costs.TINY_PARAMETERS, run.kind != "none"
    measured = history.training(run)
    hours = costs.ASSUMED_TINY_SECONDS[run.kind] / 3600 if is_tiny else costs.assumed_hours(config, run.kind)
    per_parameter = costs.BYTES_PER_PARAMETER_TRAINING if trains else stored
    kept = costs.CHECKPOINTS_KEPT * (stored + costs.BYTES_PER_PARAMETER_CHECKPOINT) if trains else 0
    return Job(
        name=f"train {run.id}",
        kind=f"train {run.kind}",
        model=config["model"]["name"],
        hours=hours if measured is None else measured,
        basis="assumed" if measured is None else "measured",
        gpus=needed["gpus"],
        cores=needed["threads"],
        memory_gb=_memory_gb(run, parameters * per_parameter / 1e9 + (1.5 if is_tiny else 10.0)),
        disk_gb=parameters * stored / 1e9,
        checkpoint_gb=parameters * kept / 1e9,
        done=(plan.run_path(run.id) / "done.json").exists(),
        after=(f"prepare {run.prepared}", *([f"train {run.parent}"] if run.parent else [])),
    )


def _memory_gb(run: PlannedRun, of_one_process: float) -> float:
    through_verl = costs.verl_layout(run.config, run.kind)
    return run.resources["mem_mb"] / 1000 if through_verl else of_one_process


def _evaluate(plan: Plan, run: PlannedRun, benchmark: str, history: History) -> Job:
    known = benchmarks.get(benchmark)
    needed = costs.evaluation_resources(run.config, benchmark, asks=known.asks_a_model)
    scoring = costs.ASSUMED_TINY_SECONDS["evaluate"] / 3600
    assumed = costs.evaluation_hours(run.config, benchmark) if known.asks_a_model else scoring
    hours, basis = history.evaluation(run, benchmark, assumed)
    before = f"evaluate {run.id} {known.settings.after}" if known.settings.after else f"train {run.id}"
    return Job(
        name=f"evaluate {run.id} {benchmark}",
        kind=f"evaluate {benchmark}",
        model=run.config["model"]["name"],
        hours=hours,
        basis=basis,
        gpus=needed["gpus"],
        cores=needed["threads"],
        memory_gb=needed["mem_mb"] / 1000,
        disk_gb=0.02,
        checkpoint_gb=0.0,
        done=(plan.run_path(run.id) / "eval" / benchmark / "summary.json").exists(),
        after=(before,),
    )


def _variance(plan: Plan, history: History) -> Job:
    subject = plan.variance_subject
    assert subject is not None
    assert plan.variance is not None
    needed = costs.variance_resources(subject.config, plan.variance)
    hours, basis = history.hours(plan, "variance.tsv", costs.variance_hours(subject.config, plan.variance))
    return Job(
        name="variance",
        kind="variance",
        model=subject.config["model"]["name"],
        hours=hours,
        basis=basis,
        gpus=needed["gpus"],
        cores=needed["threads"],
        memory_gb=needed["mem_mb"] / 1000,
        disk_gb=0.0,
        checkpoint_gb=0.0,
        done=(plan.directory / "analysis" / "variance.json").exists(),
        after=(f"prepare {subject.prepared}", *([f"train {subject.parent}"] if subject.parent else [])),
    )


# ---------------------------------------------------------------------------------------------- what it took before


class History:
    """What finished work below a results folder took; a figure counts for work of the same settings, seeds apart."""

    def __init__(self, results: Path):
        self._results = results

    def training(self, run: PlannedRun) -> float | None:
        return self._training.get(_cost_key(run.config))

    def evaluation(self, run: PlannedRun, benchmark: str, assumed: float) -> tuple[float, str]:
        found = self._evaluations.get((benchmark, _cost_key(run.config, evaluation=True)))
        return (assumed, "assumed") if found is None else (found, "measured")

    def hours(self, plan: Plan, name: str, assumed: float) -> tuple[float, str]:
        """Of a job of the experiment itself, from the times that Snakemake wrote down."""
        found = _seconds(plan.directory / "times" / name)
        return (assumed, "assumed") if found is None else (found / 3600, "measured")

    @cached_property
    def _runs(self) -> list[tuple[Path, dict[str, Any]]]:
        """(experiment folder, planned run) of every plan here."""
        found = []
        for path in sorted(self._results.glob("*/plan.json")):
            try:
                found += [(path.parent, run) for run in files.read_json(path)["runs"]]
            except (files.FileError, LookupError, TypeError):
                continue
        return found

    @cached_property
    def _training(self) -> dict[str, float]:
        found: dict[str, list[float]] = {}
        for folder, run in self._runs:
            path = folder / "runs" / run["id"] / "done.json"
            try:
                seconds = files.read_json(path)["wall_seconds"] if path.exists() else None
            except (files.FileError, LookupError, TypeError):
                continue
            if seconds is not None:
                found.setdefault(_cost_key(run["config"]), []).append(seconds / 3600)
        return {key: fmean(values) for key, values in found.items()}

    @cached_property
    def _evaluations(self) -> dict[tuple[str, str], float]:
        found: dict[tuple[str, str], list[float]] = {}
        for folder, run in self._runs:
            for benchmark in run["evaluations"]:
                seconds = _seconds(folder / "times" / "evaluate" / f"{run['id']}.{benchmark}.tsv")
                if seconds is not None:
                    key = (benchmark, _cost_key(run["config"], evaluation=True))
                    found.setdefault(key, []).append(seconds / 3600)
        return {key: fmean(values) for key, values in found.items()}


def _cost_key(config: dict[str, Any], *, evaluation: bool = False) -> str:
    """Equal for runs that cost the same: everything but the seed and the schedule of weights and reward."""
    parts = ("model", "data", "backend", "eval") if evaluation else ("model", "data", "method", "training", "backend")
    return files.content_hash([config[part] for part in parts])


def _seconds(path: Path) -> float | None:
    """Wall time in a benchmark file of Snakemake, if there is one."""
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        return fmean(float(row["s"]) for row in rows) if rows else None
    except (OSError, LookupError, ValueError):
        return None
