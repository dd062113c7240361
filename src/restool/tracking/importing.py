"""What of an experiment goes into MLflow: settings, tags, metric points, evaluations, files, and a saved view."""

from __future__ import annotations

import getpass
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from restool import files
from restool.analysis import experiment as experiments
from restool.analysis.experiment import Experiment, Run
from restool.tracking import access, views
from restool.tracking.access import Report
from restool.tracking.store import NOTE, Imported, Point, Store

if TYPE_CHECKING:
    from mlflow.entities import Run as TrackedRun

_NOT_IN_NAMES = re.compile(r"[^\w\-. :/]")


def track(experiment_dir: str | Path, *, uri: str | None = None, report: Report = lambda line: None) -> Imported:
    """Import an experiment's finished runs, tables, figures and report.

    ``uri``: the MLflow store; default the environment's MLFLOW_TRACKING_URI, else ``mlflow.db`` in the results folder,
    with artifacts in ``mlartifacts`` beside it. MLflow's experiment has the name of ours unless the environment's
    MLFLOW_EXPERIMENT_NAME says otherwise. Raises TrackingError if the store stays locked, is unreachable, refuses the
    data or holds the same experiment of another results folder; what was imported until then stays and is not imported
    again.
    """
    experiment = experiments.load(experiment_dir)
    results = experiment.directory.resolve().parent
    address = access.address(results, uri)
    with access.turn(address, experiment.directory, report):
        imported = access.with_retries(address, lambda: _import(experiment, address, results), report)
    unfinished = [run.id for run in experiment.runs if not run.is_done]
    if unfinished:
        report(f"not imported, because not finished: {', '.join(unfinished)}")
    report(
        f"MLflow: {imported.added} runs added, {imported.replaced} replaced, {imported.removed} removed, "
        f"{imported.points} points; see them with: restool mlflow {experiment.name}"
    )
    return imported


def experiment_name(experiment: Experiment) -> str:
    """The name of our experiment in MLflow."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or experiment.name


def _import(experiment: Experiment, address: str, results: Path) -> Imported:
    is_local = access.database(address) is not None
    # A store inside the results folder moves with it; in any other one, folders must be told apart.
    origin = None if access.database(address) == results / "mlflow.db" else _origin(results)
    artifacts = (results / "mlartifacts" / experiment.name).as_uri() if is_local else None
    store = Store(access.client(address), experiment_name(experiment), origin=origin, artifacts=artifacts)
    parent = store.run(experiment.name, _parent_tags(experiment), experiment.name, identity=experiment.name)
    finished = [run for run in experiment.runs if run.is_done]
    compared = views.compared(experiment)
    for run in finished:
        _import_run(store, experiment, run, parent, is_compared=run.method in compared)
    store.remove_unplanned(f"{experiment.name}/", {_key(experiment, run) for run in experiment.runs})
    store.tag(parent, {"plan": experiment.hash})
    shown = [experiment.directory / "report.html", *sorted(experiment.analysis.rglob("*.*"))]
    store.artifacts(parent, experiment.directory, [path for path in shown if path.is_file()])
    view = views.of_experiment(experiment)
    store.describe({**view.tags(), NOTE: views.note(experiment, store.experiment, view)})
    ended = max((run.directory.done()["finished_at"] for run in finished), default=time.time())
    store.finish(parent, ended)
    return store.imported


def _import_run(store: Store, experiment: Experiment, run: Run, parent: TrackedRun, *, is_compared: bool) -> None:
    done = run.directory.done()
    identity = files.content_hash([run.settings.decisive(), run.environment.get("lineage"), done], length=16)
    started = next((row["timestamp"] for row in run.metrics if "timestamp" in row), done["finished_at"])
    tags = _tags(experiment, run, done) | {"mlflow.parentRunId": parent.info.run_id}
    tags[views.COMPARED] = experiment.name if is_compared else "no"
    parts = {"metrics": files.content_hash(run.metrics, length=16)}
    summaries = {name: run.summary(name) for name in run.evaluations}
    parts |= {f"eval.{name}": files.content_hash(s, length=16) for name, s in summaries.items() if s}
    tracked = store.run(_key(experiment, run), tags, run.id, identity=identity, parts=parts, started=started)
    store.parameters(tracked, flatten(run.settings.model_dump(mode="json")))
    store.points(tracked, "metrics", parts["metrics"], _training_points(run, done["finished_at"]))
    last = run.metrics[-1]["step"] if run.metrics else 0
    for name, summary in summaries.items():
        if summary:
            values = {f"{name}/{key}": value for key, value in summary.get("aggregates", {}).items()}
            points = list(_numbers(values, last, done["finished_at"]))
            store.points(tracked, f"eval.{name}", parts[f"eval.{name}"], points)
    small = [run.directory.path / name for name in ("config.yaml", "env.json", "done.json")]
    small += [run.directory.evaluation(name) / "summary.json" for name in run.evaluations]
    store.artifacts(tracked, run.directory.path, [path for path in small if path.is_file()])
    store.finish(tracked, done["finished_at"])


def _origin(results: Path) -> str:
    """Whose results folder this is. Not the machine: a cluster has several that see the same folder."""
    return f"{getpass.getuser()}:{results}"


def _key(experiment: Experiment, run: Run) -> str:
    return f"{experiment.name}/{run.id}"


def _parent_tags(experiment: Experiment) -> dict[str, str]:
    settings = experiment.settings
    note = f"**{settings.title}**\n\n{settings.note}"
    return {NOTE: note, "kind": "experiment", "reference": settings.reference}


def _tags(experiment: Experiment, run: Run, done: dict[str, Any]) -> dict[str, str]:
    """Who the run is, where its parts come from, and where its model lies (below the results folder)."""
    environment = run.environment
    known = {
        "method": run.method,
        "model": run.model,
        "schedule": run.schedule,
        "seed": run.seed,
        "kind": run.kind,
        "starts_from": run.parent,
        "data": run.prepared,
        "data_fingerprint": environment.get("lineage", {}).get("data"),
        "run_directory": f"{experiment.name}/runs/{run.id}",
        "model_directory": f"{experiment.name}/runs/{run.id}/model" if run.directory.model.exists() else None,
        "model_fingerprint": done.get("model"),
        "commit": environment.get("commit"),
        "mlflow.source.git.commit": environment.get("commit"),
    }
    return {name: str(value) for name, value in known.items() if value is not None}


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted keys with text values, as MLflow's parameters are."""
    flat: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = str(value)[:6000]
    return flat


def _training_points(run: Run, finished_at: float) -> list[Point]:
    return [
        point
        for row in run.metrics
        for point in _numbers(row, row["step"], row.get("timestamp", finished_at))
        if point[0] not in ("step", "timestamp")
    ]


def _numbers(values: dict[str, Any], step: int, timestamp: float) -> Iterator[Point]:
    for name, value in values.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield _NOT_IN_NAMES.sub("_", name), float(value), int(1000 * timestamp), int(step)
