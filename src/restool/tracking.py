"""Results into MLflow: one parent run an experiment, one child a run. The only module that imports mlflow.

Importing is idempotent. A run is known by its key and its identity (settings, what it was made from, when it finished);
every part of it that was imported (metrics, each evaluation, artifacts) leaves its content hash in a tag. A second
import adds nothing; a part that came later is added; a run that was made anew replaces its old self, which goes to
MLflow's deleted runs (and comes back from there if the old result does) and is named in a tag of the new one. Metric
points carry the timestamps of metrics.jsonl, so repeating an import that was cut off logs no point twice.
"""

from __future__ import annotations

import logging
import os
import re
import sqlite3
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from restool import files
from restool.analysis import experiment as experiments
from restool.analysis.experiment import Experiment, Run
from restool.core.errors import TrackingError

if TYPE_CHECKING:
    from mlflow.entities import Run as TrackedRun

KEY, IDENTITY, PART, REPLACES = "restool.key", "restool.identity", "restool.part.", "restool.replaces"
ATTEMPTS = 4
PATIENCE = 5.0
"""Seconds that one attempt waits for a locked database or a silent server."""

_POINTS, _PARAMETERS = 1000, 100  # MLflow takes at most this many at a time
_NOT_IN_NAMES = re.compile(r"[^\w\-. :/]")


@dataclass
class Imported:
    """What an import changed: runs and metric points that were not there before."""

    added: int = 0
    replaced: int = 0
    removed: int = 0
    points: int = 0
    parts: int = 0


def track(
    experiment_dir: str | Path, *, uri: str | None = None, report: Callable[[str], None] = lambda line: None
) -> Imported:
    """Import an experiment's finished runs, tables, figures and report.

    ``uri``: the MLflow store; default the environment's MLFLOW_TRACKING_URI, else ``mlflow.db`` in the results folder,
    with artifacts in ``mlartifacts`` beside it. Raises TrackingError if the store stays locked, is unreachable or
    refuses the data; what was imported until then stays and is not imported again.
    """
    experiment = experiments.load(experiment_dir)
    results = experiment.directory.resolve().parent
    address = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{results / 'mlflow.db'}"
    with _one_import_at_a_time(results):
        imported = _with_retries(address, lambda: _import(experiment, address, results), report)
    unfinished = [run.id for run in experiment.runs if not run.is_done]
    if unfinished:
        report(f"not imported, because not finished: {', '.join(unfinished)}")
    report(
        f"MLflow: {imported.added} runs added, {imported.replaced} replaced, {imported.removed} removed, "
        f"{imported.points} points; see them with: mlflow ui --backend-store-uri {_short(address)}"
    )
    return imported


def _import(experiment: Experiment, address: str, results: Path) -> Imported:
    store = _Store(address, experiment.name, results)
    parent = store.run(experiment.name, _parent_tags(experiment), experiment.name, identity=experiment.name)
    finished = [run for run in experiment.runs if run.is_done]
    for run in finished:
        _import_run(store, experiment, run, parent)
    store.remove_unplanned({experiment.name, *(_key(experiment, run) for run in experiment.runs)})
    store.tag(parent, {"plan": experiment.hash})
    shown = [experiment.directory / "report.html", *sorted(experiment.analysis.rglob("*.*"))]
    store.artifacts(parent, experiment.directory, [path for path in shown if path.is_file()])
    ended = max((run.directory.done()["finished_at"] for run in finished), default=time.time())
    store.finish(parent, ended)
    return store.imported


def _import_run(store: _Store, experiment: Experiment, run: Run, parent: TrackedRun) -> None:
    done = run.directory.done()
    identity = files.content_hash([run.settings.decisive(), run.environment.get("lineage"), done], length=16)
    started = next((row["timestamp"] for row in run.metrics if "timestamp" in row), done["finished_at"])
    tags = _tags(run) | {"mlflow.parentRunId": parent.info.run_id}
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


class _Store:
    """MLflow, seen as runs with keys; remembers what this import changed."""

    def __init__(self, address: str, name: str, results: Path):
        self.imported = Imported()
        self._client = _client(address)
        artifacts = (results / "mlartifacts" / name).as_uri() if address.startswith("sqlite:") else None
        found = self._client.get_experiment_by_name(name)
        if found is None:
            self._experiment = self._client.create_experiment(name, artifact_location=artifacts)
        else:
            self._experiment = found.experiment_id
            if found.lifecycle_stage == "deleted":
                self._client.restore_experiment(self._experiment)
        # Without this tag the pages open with menus for chat applications.
        self._client.set_experiment_tag(self._experiment, "mlflow.experimentKind", "custom_model_development")
        self._runs = {run.data.tags[KEY]: run for run in self._search("ACTIVE_ONLY")}

    def run(
        self,
        key: str,
        tags: dict[str, str],
        name: str,
        *,
        identity: str,
        parts: dict[str, str] | None = None,
        started: float | None = None,
    ) -> TrackedRun:
        """The run of this key and identity: as it is, restored, or made. One that contradicts it is set aside."""
        old = self._runs.get(key)
        if old is not None and not _contradicts(old, identity, parts or {}):
            self.tag(old, tags)
            return old
        new = self._restored(key, identity, parts or {})
        if new is None:
            start = int(1000 * (started or time.time()))
            mine = {KEY: key, IDENTITY: identity, **tags}
            new = self._client.create_run(self._experiment, start_time=start, tags=mine, run_name=name)
        if old is None:
            self.imported.added += 1
        else:
            self._client.delete_run(old.info.run_id)
            self._client.set_tag(new.info.run_id, REPLACES, old.info.run_id)
            self.imported.replaced += 1
        self._runs[key] = new
        self.tag(new, tags)
        return new

    def tag(self, run: TrackedRun, tags: dict[str, str]) -> None:
        for name, value in tags.items():
            if run.data.tags.get(name) != value:
                self._client.set_tag(run.info.run_id, name, value)

    def parameters(self, run: TrackedRun, values: dict[str, str]) -> None:
        from mlflow.entities import Param

        missing = [Param(key, value) for key, value in values.items() if key not in run.data.params]
        for some in _chunks(missing, _PARAMETERS):
            self._client.log_batch(run.info.run_id, params=some)

    def points(self, run: TrackedRun, part: str, content: str, points: Sequence[tuple[str, float, int, int]]) -> None:
        """Log (name, value, milliseconds, step) points, unless the part's tag says that they are there."""
        from mlflow.entities import Metric

        if run.data.tags.get(PART + part) == content:
            return
        for some in _chunks(points, _POINTS):
            metrics = [Metric(name, value, timestamp, step) for name, value, timestamp, step in some]
            self._client.log_batch(run.info.run_id, metrics=metrics)
        self._client.set_tag(run.info.run_id, PART + part, content)
        self.imported.points += len(points)
        self.imported.parts += 1

    def artifacts(self, run: TrackedRun, root: Path, paths: Sequence[Path]) -> None:
        """Store files under their path below ``root``; changed content overwrites."""
        content = files.content_hash([[str(p.relative_to(root)), files.sha256(p)] for p in paths], length=16)
        if run.data.tags.get(PART + "artifacts") == content:
            return
        for path in paths:
            folder = path.relative_to(root).parent.as_posix()
            self._client.log_artifact(run.info.run_id, str(path), None if folder == "." else folder)
        self._client.set_tag(run.info.run_id, PART + "artifacts", content)
        self.imported.parts += 1

    def finish(self, run: TrackedRun, ended: float) -> None:
        if run.info.status != "FINISHED" or run.info.end_time != int(1000 * ended):
            self._client.set_terminated(run.info.run_id, "FINISHED", int(1000 * ended))

    def remove_unplanned(self, keys: set[str]) -> None:
        """Runs that the experiment no longer asks for go to MLflow's deleted runs."""
        for key in self._runs.keys() - keys:
            self._client.delete_run(self._runs.pop(key).info.run_id)
            self.imported.removed += 1

    def _restored(self, key: str, identity: str, parts: dict[str, str]) -> TrackedRun | None:
        for run in self._search("DELETED_ONLY"):
            if run.data.tags[KEY] == key and not _contradicts(run, identity, parts):
                self._client.restore_run(run.info.run_id)
                return self._client.get_run(run.info.run_id)
        return None

    def _search(self, view: str) -> Iterator[TrackedRun]:
        from mlflow.entities import ViewType

        token = None
        while True:
            page = self._client.search_runs(
                [self._experiment], run_view_type=ViewType.from_string(view.lower()), max_results=1000, page_token=token
            )
            yield from (run for run in page if KEY in run.data.tags)
            token = page.token
            if not token:
                return


def _contradicts(run: TrackedRun, identity: str, parts: dict[str, str]) -> bool:
    """Whether a tracked run is another one, or holds points that are no longer what the files say."""
    tags = run.data.tags
    known = {name.removeprefix(PART): value for name, value in tags.items() if name.startswith(PART)}
    changed = [name for name, value in parts.items() if known.get(name, value) != value]
    return tags.get(IDENTITY) != identity or bool(changed)


# ------------------------------------------------------------------------------------------------ what is logged


def _key(experiment: Experiment, run: Run) -> str:
    return f"{experiment.name}/{run.id}"


def _parent_tags(experiment: Experiment) -> dict[str, str]:
    settings = experiment.settings
    note = f"**{settings.title}**\n\n{settings.note}"
    return {"mlflow.note.content": note, "kind": "experiment", "reference": settings.reference}


def _tags(run: Run) -> dict[str, str]:
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


def _training_points(run: Run, finished_at: float) -> list[tuple[str, float, int, int]]:
    return [
        point
        for row in run.metrics
        for point in _numbers(row, row["step"], row.get("timestamp", finished_at))
        if point[0] not in ("step", "timestamp")
    ]


def _numbers(values: dict[str, Any], step: int, timestamp: float) -> Iterator[tuple[str, float, int, int]]:
    for name, value in values.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield _NOT_IN_NAMES.sub("_", name), float(value), int(1000 * timestamp), int(step)


def _chunks(values: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (values[start : start + size] for start in range(0, len(values), size))


# ---------------------------------------------------------------------------------------------------- the store


def _client(address: str) -> Any:
    """An MLflow client that neither calls home nor logs every step of creating its database."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    for noisy in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=address)


@contextmanager
def _one_import_at_a_time(results: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    try:
        with FileLock(results / ".mlflow.lock", timeout=ATTEMPTS * PATIENCE):
            yield
    except Timeout:
        raise TrackingError(f"another import into MLflow holds {results / '.mlflow.lock'}; try again later") from None


def _with_retries(address: str, action: Callable[[], Imported], report: Callable[[str], None]) -> Imported:
    """The import may be repeated from its beginning: what is there already is not logged again."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _probe(address)
            return action()
        except TrackingError:
            raise
        except Exception as error:
            if not _is_store_failure(error):
                raise
            if attempt == ATTEMPTS:
                raise TrackingError(
                    f"MLflow store {address} failed {ATTEMPTS} times ({_one_line(error)}); "
                    "close what holds it, or set MLFLOW_TRACKING_URI to another store, and run 'restool track' again"
                ) from error
            report(f"MLflow store is busy or unreachable, attempt {attempt} of {ATTEMPTS}: {_one_line(error)}")
            time.sleep(attempt)
    raise AssertionError("unreachable")


def _probe(address: str) -> None:
    """Fail at once where MLflow itself would retry for minutes."""
    if address.startswith("sqlite:///"):
        path = Path(address.removeprefix("sqlite:///"))
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _probe_database(path)
    elif address.startswith(("http://", "https://")):
        with suppress(urllib.error.HTTPError):  # it answers
            urllib.request.urlopen(address.rstrip("/") + "/health", timeout=PATIENCE).close()


def _probe_database(path: Path) -> None:
    connection = sqlite3.connect(path, timeout=PATIENCE)
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.rollback()
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise
        raise TrackingError(f"{path} is no MLflow database ({error}); move it away or choose another store") from None
    finally:
        connection.close()


def _is_store_failure(error: Exception) -> bool:
    """Whether the world outside failed (rather than this program)."""
    origin = type(error).__module__.split(".")[0]
    return isinstance(error, OSError | sqlite3.Error) or origin in ("mlflow", "sqlalchemy", "requests", "alembic")


def _short(address: str) -> str:
    """A SQLite address relative to the current folder, where it lies below it."""
    here = f"sqlite:///{Path.cwd()}/"
    return f"sqlite:///{address.removeprefix(here)}" if address.startswith(here) else address


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
