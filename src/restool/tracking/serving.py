"""Opening the saved view of an experiment: in the server that holds it, or in one that is started for it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import webbrowser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from restool.analysis import experiment as experiments
from restool.analysis.experiment import Experiment
from restool.core.errors import ConfigurationError, TrackingError, nearest
from restool.tracking import access, importing, views
from restool.tracking.access import Report

START_SECONDS = 120.0  # a first start creates the database's tables
QUIET = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
"""MLflow starts seven more processes of 240 MB for jobs that it can run itself; nothing here asks for any."""


def show(
    experiment_dir: str | Path,
    methods: Sequence[str] = (),
    *,
    uri: str | None = None,
    port: int = 5000,
    browser: bool = True,
    report: Report = lambda line: None,
) -> None:
    """Print the address of the experiment's saved view, and open it where there is a desktop.

    ``methods``: compare these instead of the experiment's own choice. A store without a server gets one on this
    machine, on ``port`` or the next free one; then this returns when it is stopped. Raises TrackingError if the
    experiment was not imported, ConfigurationError for a method without runs.
    """
    experiment = experiments.load(experiment_dir)
    address = access.address(experiment.directory.resolve().parent, uri)
    where = access.with_retries(address, lambda: _saved(experiment, address, methods), report)
    if access.is_server(address):
        _open(f"{address.rstrip('/')}/{where}", browser)
        return
    with served(address, port) as server:
        _open(f"{server}/{where}", browser)
        report("the server runs until you press Ctrl-C")
        signal.pause()


def _saved(experiment: Experiment, address: str, methods: Sequence[str]) -> str:
    """The path of the view, which is saved first if it is not the experiment's own."""
    file = access.database(address)
    name = importing.experiment_name(experiment)
    client = access.client(address) if file is None or file.exists() else None
    found = client.get_experiment_by_name(name) if client else None
    if client is None or found is None:
        raise TrackingError(
            f"{address} has no experiment '{name}'; import it first: "
            f"restool track --plan {experiment.directory / 'plan.json'}"
        )
    if not methods:
        return views.path(found.experiment_id, views.of_experiment(experiment))
    view = views.of_runs(experiment, methods, _runs_of(client, found.experiment_id, experiment, methods))
    for tag, value in view.tags().items():
        client.set_experiment_tag(found.experiment_id, tag, value)
    return views.path(found.experiment_id, view)


def _runs_of(client: Any, experiment_id: str, experiment: Experiment, methods: Sequence[str]) -> list[str]:
    known = list(dict.fromkeys(run.method for run in experiment.runs))
    run_ids = []
    for method in methods:
        if method not in known:
            raise ConfigurationError(f"{experiment.name} has no method '{method}'{nearest(method, known)}")
        found = client.search_runs([experiment_id], f"tags.method = '{method}'")
        if not found:
            raise TrackingError(f"no run of {method} was imported yet")
        run_ids += [run.info.run_id for run in found]
    return run_ids


def _free(port: int) -> int:
    """The first port from here on that nobody listens to."""
    for candidate in range(port, port + 100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", candidate)):
                return candidate
    raise TrackingError(f"no free port between {port} and {port + 99}; name another one with --port")


@contextmanager
def served(address: str, port: int = 5000) -> Iterator[str]:
    """A server of MLflow's pages for a store, on ``port`` or the next free one of this machine. Yields its address."""
    port = _free(port)
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", address, "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", "1"]
    if address.startswith("sqlite:///"):  # what is sent to it goes beside the store, not into the current directory
        beside = Path(address.removeprefix("sqlite:///")).resolve().parent / "mlartifacts"
        command += ["--artifacts-destination", beside.as_uri()]
    with tempfile.TemporaryFile() as log:
        # A session of its own: Ctrl-C reaches us alone, and its workers end with it.
        server = subprocess.Popen(command, env=os.environ | QUIET, stdout=log, stderr=log, start_new_session=True)
        before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        try:
            _wait(server, port, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            _stop(server)
            signal.signal(signal.SIGTERM, before)


def _wait(server: subprocess.Popen[bytes], port: int, log: IO[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            log.seek(0)
            last = log.read().decode(errors="replace").strip().splitlines()
            raise TrackingError(f"MLflow's server did not start: {last[-1] if last else 'it said nothing'}")
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise TrackingError(f"MLflow's server did not answer on port {port} within {START_SECONDS:.0f} s")


def _stop(server: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGTERM)
    try:
        server.wait(timeout=10)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _open(url: str, browser: bool) -> None:
    print(url, flush=True)
    is_desktop = sys.platform in ("darwin", "win32") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))
    if browser and is_desktop:  # elsewhere a browser would be one in the terminal
        webbrowser.open(url)
