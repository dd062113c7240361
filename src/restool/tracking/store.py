"""MLflow, seen as runs with keys: found, made, restored, replaced, and filled part by part."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from restool import files
from restool.core.errors import TrackingError

if TYPE_CHECKING:
    from mlflow.entities import Run as TrackedRun

KEY, IDENTITY, PART, ORIGIN = "restool.key", "restool.identity", "restool.part.", "restool.origin"
REPLACES, SUPERSEDED_BY = "restool.replaces", "restool.superseded_by"
NOTE = "mlflow.note.content"  # the description on the page of a run or experiment, in Markdown

_POINTS, _PARAMETERS = 1000, 100  # MLflow takes at most this many at a time

Point = tuple[str, float, int, int]
"""Metric name, value, timestamp in milliseconds, step."""
Item = TypeVar("Item")


@dataclass
class Imported:
    """What an import changed: runs and metric points that were not there before."""

    added: int = 0
    replaced: int = 0
    removed: int = 0
    points: int = 0
    parts: int = 0


class Store:
    """One MLflow experiment; remembers what this import changed.

    ``origin``: the results folder that the runs come from, if the store may hold those of others. Runs of another
    folder would look like old selves of ours, so an experiment of another origin is refused.
    """

    def __init__(self, client: Any, name: str, *, origin: str | None = None, artifacts: str | None = None):
        self.imported = Imported()
        self._client = client
        found = client.get_experiment_by_name(name)
        if found is None:
            self.experiment = client.create_experiment(name, artifact_location=artifacts)
            found = client.get_experiment(self.experiment)
        self.experiment = found.experiment_id
        if found.lifecycle_stage == "deleted":
            client.restore_experiment(self.experiment)
        self._tags = dict(found.tags)
        if origin and self._tags.get(ORIGIN, origin) != origin:
            raise TrackingError(
                f"MLflow's experiment '{name}' holds the results of {self._tags[ORIGIN]}, not of {origin}; "
                "set MLFLOW_EXPERIMENT_NAME to a name of your own, or rename that experiment in MLflow"
            )
        # Without the kind the pages open with menus for chat applications.
        self.describe({"mlflow.experimentKind": "custom_model_development", **({ORIGIN: origin} if origin else {})})
        self._runs: dict[str, TrackedRun] = {}
        for key, runs in _by_key(self._search("ACTIVE_ONLY")).items():
            self._runs[key] = self._only(runs)

    def describe(self, tags: dict[str, str]) -> None:
        """Set tags of the experiment."""
        for name, value in tags.items():
            if self._tags.get(name) != value:
                self._client.set_experiment_tag(self.experiment, name, value)

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
            mine = {KEY: key, IDENTITY: identity, **tags, **(_replacing(old) if old else {})}
            new = self._client.create_run(self.experiment, start_time=start, tags=mine, run_name=name)
        if old is None:
            self.imported.added += 1
        else:
            self._set_aside(old, new)
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

    def points(self, run: TrackedRun, part: str, content: str, points: Sequence[Point]) -> None:
        """Log points, unless the part's tag says that they are there."""
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

    def remove_unplanned(self, prefix: str, keys: set[str]) -> None:
        """Runs below ``prefix`` that nobody asks for any more go to MLflow's deleted runs."""
        for key in [key for key in self._runs if key.startswith(prefix) and key not in keys]:
            self._client.delete_run(self._runs.pop(key).info.run_id)
            self.imported.removed += 1

    def _set_aside(self, old: TrackedRun, new: TrackedRun) -> None:
        self._client.set_tag(old.info.run_id, SUPERSEDED_BY, new.info.run_id)
        self._client.delete_run(old.info.run_id)

    def _only(self, runs: Sequence[TrackedRun]) -> TrackedRun:
        """The one run of a key. An import that was killed may have left an old self beside the new one."""
        ids = {run.info.run_id for run in runs}
        tags = {run.info.run_id: run.data.tags for run in runs}
        age = {i: (tags[i].get(SUPERSEDED_BY) in ids, tags[i].get(REPLACES) not in ids) for i in ids}
        kept, *others = sorted(runs, key=lambda run: age[run.info.run_id])
        for old in others:
            self._set_aside(old, kept)
        return kept

    def _restored(self, key: str, identity: str, parts: dict[str, str]) -> TrackedRun | None:
        for run in self._deleted:
            if run.data.tags[KEY] == key and not _contradicts(run, identity, parts):
                self._client.restore_run(run.info.run_id)
                if SUPERSEDED_BY in run.data.tags:
                    self._client.delete_tag(run.info.run_id, SUPERSEDED_BY)
                return self._client.get_run(run.info.run_id)
        return None

    @cached_property
    def _deleted(self) -> list[TrackedRun]:
        """Those that were deleted when the import began; what it deletes itself contradicts what it imports."""
        return list(self._search("DELETED_ONLY"))

    def _search(self, view: str) -> Iterator[TrackedRun]:
        from mlflow.entities import ViewType

        token = None
        while True:
            page = self._client.search_runs(
                [self.experiment], run_view_type=ViewType.from_string(view.lower()), max_results=1000, page_token=token
            )
            yield from (run for run in page if KEY in run.data.tags)
            token = page.token
            if not token:
                return


def _by_key(runs: Iterable[TrackedRun]) -> dict[str, list[TrackedRun]]:
    found: dict[str, list[TrackedRun]] = {}
    for run in runs:
        found.setdefault(run.data.tags[KEY], []).append(run)
    return found


def _replacing(old: TrackedRun) -> dict[str, str]:
    """Tags of a run that replaces another one: its id, and a sentence where people read."""
    finished = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime((old.info.end_time or old.info.start_time) / 1000))
    note = (
        f"Replaces run {old.info.run_id} of {finished}, which had other results or settings. "
        "The old one is among the deleted runs (State: Deleted)."
    )
    return {REPLACES: old.info.run_id, NOTE: note}


def _contradicts(run: TrackedRun, identity: str, parts: dict[str, str]) -> bool:
    """Whether a tracked run is another one, or holds points that are no longer what the files say."""
    tags = run.data.tags
    known = {name.removeprefix(PART): value for name, value in tags.items() if name.startswith(PART)}
    changed = [name for name, value in parts.items() if known.get(name, value) != value]
    return tags.get(IDENTITY) != identity or bool(changed)


def _chunks(values: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    return (values[start : start + size] for start in range(0, len(values), size))
