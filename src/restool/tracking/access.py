"""Reaching the MLflow store: its address, a client, one writer at a time, patience with locks and silent servers."""

from __future__ import annotations

import logging
import os
import sqlite3
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from restool.core.errors import TrackingError

ATTEMPTS = 4
PATIENCE = 5.0
"""Seconds that one attempt waits for a locked database or a silent server."""
QUEUE = 900.0
"""Seconds that an import waits for others that write to the same database: each takes its turn."""

Report = Callable[[str], None]
Result = TypeVar("Result")


def address(results: Path, uri: str | None = None) -> str:
    """``uri``, else the environment's MLFLOW_TRACKING_URI, else ``mlflow.db`` in the results folder."""
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{results / 'mlflow.db'}"


def is_server(address: str) -> bool:
    return address.startswith(("http://", "https://"))


def database(address: str) -> Path | None:
    """The file of a SQLite store."""
    return Path(address.removeprefix("sqlite:///")) if address.startswith("sqlite:///") else None


def client(address: str) -> Any:
    """An MLflow client that neither calls home nor logs every step of creating its database."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    for noisy in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    from mlflow import MlflowClient

    file = database(address)
    if file is not None and not file.exists():
        _create(file)
    return MlflowClient(tracking_uri=address)


def _create(file: Path) -> None:
    """A new database, whole or absent: MLflow makes its tables one by one, and cannot go on from half of them."""
    from mlflow import MlflowClient

    # A folder of a new name: MLflow remembers for which addresses it has made the tables, also where that failed.
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=f".{file.name}.") as folder:
        new = Path(folder) / file.name
        MlflowClient(tracking_uri=f"sqlite:///{new}").search_experiments(max_results=1)
        os.replace(new, file)


@contextmanager
def turn(address: str, experiment_dir: Path, report: Report) -> Iterator[None]:
    """Wait for this import's turn, then hold it.

    SQLite lets one writer in at a time and fails the others after a while, so imports into one database queue here.
    A server takes many at once; only the same experiment is not imported twice at a time.
    """
    from filelock import FileLock, Timeout

    file = database(address)
    path = experiment_dir / ".mlflow.lock" if file is None else file.with_name(f".{file.name}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        try:
            lock.acquire(timeout=PATIENCE)
        except Timeout:
            report(f"another import holds {path}; waiting for it")
            lock.acquire(timeout=QUEUE)
    except Timeout:
        raise TrackingError(f"another import into MLflow still holds {path}; try again later") from None
    try:
        yield
    finally:
        lock.release()


def with_retries(address: str, action: Callable[[], Result], report: Report) -> Result:
    """``action()``, which may be repeated from its beginning. Raises TrackingError if the store goes on failing."""
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
                    "close what holds it, or set MLFLOW_TRACKING_URI to another store, and run the command again"
                ) from error
            report(f"MLflow store is busy or unreachable, attempt {attempt} of {ATTEMPTS}: {_one_line(error)}")
            time.sleep(attempt)
    raise AssertionError("unreachable")


def _probe(address: str) -> None:
    """Fail at once where MLflow itself would retry for minutes."""
    file = database(address)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.exists():
            _probe_database(file)
    elif is_server(address):
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


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
