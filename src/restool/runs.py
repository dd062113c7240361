"""The run directory: the only thing that training, evaluation, analysis and tracking share.

Layout (see README): config.yaml, env.json, metrics.jsonl, rollouts.jsonl, checkpoints/, model/,
eval/<benchmark>/{answers.jsonl,items.jsonl,summary.json}, record.json, done.json (written last).

Snakemake deletes done.json before it runs a job again, whatever the reason. record.json holds the same and is ours: as
long as every file that it names is as it was, the run is finished and done.json is put back.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from restool import files, seals
from restool.core.errors import RestoolError, RunError
from restool.settings import RunSettings, validate

PATIENCE_SECONDS = 60


@dataclass(frozen=True)
class RunDirectory:
    """Paths and records of one run. Creating the object touches nothing on disk."""

    path: Path

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def rollouts_path(self) -> Path:
        return self.path / "rollouts.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        return self.path / "model"

    def evaluation(self, benchmark: str) -> Path:
        return self.path / "eval" / benchmark

    @property
    def is_done(self) -> bool:
        return (self.path / "done.json").exists()

    @cached_property
    def settings(self) -> RunSettings:
        """The frozen configuration."""
        path = self.path / "config.yaml"
        if not path.exists():
            raise RunError(f"{self.path} is not a run directory: it has no config.yaml")
        return validate(yaml.safe_load(path.read_text()))

    @property
    def lineage(self) -> dict[str, str]:
        """What the run was made from: fingerprint of the data, identity of the start model."""
        return files.read_json(self.path / "env.json")["lineage"]

    @property
    def trained_on(self) -> list[dict[str, str]] | None:
        """Every split that this run and the runs before it learnt from: ``{"prepared", "fingerprint", "split"}``.

        None where it was not recorded.
        """
        path = self.path / "env.json"
        return files.read_json(path).get("trained_on") if path.exists() else None

    def metrics(self) -> list[dict[str, Any]]:
        return files.read_json_lines(self.metrics_path)

    def rollouts(self) -> list[dict[str, Any]]:
        return files.read_json_lines(self.rollouts_path)

    def summary(self, benchmark: str) -> dict[str, Any] | None:
        path = self.evaluation(benchmark) / "summary.json"
        return files.read_json(path) if path.exists() else None

    def done(self) -> dict[str, Any]:
        return files.read_json(self.path / "done.json")

    def finish(self, record: dict[str, Any]) -> None:
        """Write record.json and done.json: everything before them is whole. Adds what the run consists of."""
        logs = [self.metrics_path, self.rollouts_path, self.path / "env.json"]
        weights = self._weights()
        sealed = {"files": seals.sizes(self.path, [*logs, *weights]), "model": seals.fingerprint(self.model, weights)}
        content = {**record, **sealed, "finished_at": time.time()}
        files.write_json(self.path / "record.json", content)
        files.write_json(self.path / "done.json", content)

    def damage(self) -> list[str]:
        """What happened to the files of the finished run since; [] if nothing, or if it is not finished."""
        path = self.path / "done.json"
        if not path.exists():
            return []
        try:
            return seals.damage(self.path, files.read_json(path).get("files", {}))
        except (files.FileError, AttributeError):
            return [f"{path} cannot be read"]

    def settle(self, report: Callable[[str], None]) -> bool:
        """Whether the run is finished and whole. done.json is put back, or taken away, accordingly."""
        for problem in self.damage():
            report(problem)
            (self.path / "done.json").unlink(missing_ok=True)
        return self.is_done or self._restore(report)

    def _restore(self, report: Callable[[str], None]) -> bool:
        record = self.path / "record.json"
        if not record.exists():
            return False
        try:
            content = files.read_json(record)
            is_whole = not seals.damage(self.path, content["files"])
            is_whole = is_whole and seals.fingerprint(self.model, self._weights()) == content["model"]
        except (files.FileError, LookupError, TypeError):
            is_whole = False
        if is_whole:
            files.write_json(self.path / "done.json", content)
        else:
            report(f"{self.id} was finished, but its files have changed since: it is trained again")
            record.unlink()
        return is_whole

    def _weights(self) -> list[Path]:
        return [path for path in self.model.rglob("*") if path.is_file()]


@contextmanager
def alone(folder: str | Path, part: str = "") -> Iterator[None]:
    """Hold the lock of a run (or of one ``part`` of it): two writers in one run directory must never be.

    Waits a minute, because a shared file system may take that long to notice that a holder died; then RunError.
    """
    from filelock import FileLock, Timeout

    folder = Path(folder)
    lock = folder.parent / ".locks" / (folder.name + part)
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock, timeout=PATIENCE_SECONDS):
            yield
    except Timeout:
        raise RunError(f"another process is at work on {folder}{part}; wait for it to finish, or stop it") from None


def open_run(
    path: str | Path,
    settings: RunSettings,
    lineage: dict[str, str],
    *,
    replace: bool = False,
    trained_on: list[dict[str, str]] | None = None,
) -> RunDirectory:
    """Make ``path`` the directory of the run that ``settings`` describe, or resume it.

    ``lineage`` names what the run is made from (``data``: fingerprint of the prepared rows, ``start``: identity of
    the model it begins with), ``trained_on`` what it and its start model learn from (for `RunDirectory.trained_on`).
    A directory frozen with other decisive settings or another lineage is an error
    that names the differing keys; with ``replace`` (what the workflow passes) it is kept under ``.superseded/``
    and a fresh one is begun, as for one that cannot be read any more (kept under ``.damaged/``). If what is
    requested was superseded earlier, that directory comes back, finished work included.
    """
    run = RunDirectory(Path(path))
    identity = {**settings.decisive(), "lineage": lineage}
    config = run.path / "config.yaml"
    if config.exists() and replace and not _is_readable(run):
        _set_aside(run.path)
    if config.exists():
        frozen = {**run.settings.decisive(), "lineage": run.lineage}
        if frozen != identity:
            differences = ", ".join(differing_keys(frozen, identity))
            if not replace:
                raise RunError(
                    f"{run.path} was made with other settings ({differences}); "
                    "choose another folder, delete it, or pass --replace to set it aside"
                )
            _supersede(run.path, frozen)
    if not config.exists():
        _revive(run.path, identity)
    run.path.mkdir(parents=True, exist_ok=True)
    if not config.exists():
        record = {**environment_record(), "lineage": lineage, "trained_on": trained_on}
        files.write_json(run.path / "env.json", record)
    content = yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False)
    if not config.exists() or config.read_text() != content:  # e.g. only evaluation settings differ
        files.write_text(config, content)
    return RunDirectory(run.path)  # reads what is frozen now


def differing_keys(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Dotted keys whose values differ between two nested dicts."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [d for k in keys for d in differing_keys(old.get(k), new.get(k), f"{prefix}{k}.")]
    return [] if old == new else [f"{prefix[:-1]}: {old!r} -> {new!r}"]


def environment_record() -> dict[str, Any]:
    """What a reader needs to know about where a run was made."""
    packages = ["torch", "transformers", "numpy", "restool"]
    return {
        **code_record(),
        "packages": {name: metadata.version(name) for name in packages},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
    }


def code_record() -> dict[str, Any]:
    """The commit of this code (None outside a git repository), and whether files differ from it."""
    return {
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
    }


def _is_readable(run: RunDirectory) -> bool:
    try:
        return bool(run.settings and run.lineage)
    except (RestoolError, yaml.YAMLError, UnicodeDecodeError, LookupError, TypeError):
        return False


def _set_aside(path: Path) -> None:
    target = path.parent / ".damaged" / f"{path.name}-{time.time_ns()}"
    target.parent.mkdir(exist_ok=True)
    path.rename(target)


def _kept(path: Path, identity: dict[str, Any]) -> Path:
    return path.parent / ".superseded" / f"{path.name}-{files.content_hash(identity)}"


def _supersede(path: Path, frozen: dict[str, Any]) -> None:
    target = _kept(path, frozen)
    if target.exists():
        raise RunError(f"{target} exists already; delete it or {path} and run again")
    target.parent.mkdir(exist_ok=True)
    path.rename(target)


def _revive(path: Path, identity: dict[str, Any]) -> None:
    """Bring back a superseded directory of this identity; Snakemake may have left an empty folder in its place."""
    kept = _kept(path, identity)
    if not kept.exists():
        return
    if path.exists():
        leftovers = [p for p in path.rglob("*") if p.is_file()]
        if leftovers:
            raise RunError(f"{path} has no config.yaml but holds {leftovers[0]}; delete the folder and run again")
        shutil.rmtree(path)
    kept.rename(path)


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
