"""The project's own virtual environment, `.venv`: made once, redone when pyproject.toml changes.

Standard library only: this runs before anything is installed.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".venv"
BIN = FOLDER / "bin"
STAMP = FOLDER / "restool-ready"  # written last; absent while an install is under way
BEGUN = FOLDER / "restool-begun"  # this program made the folder
LOG = ROOT / "results" / ".install.log"
EVERY_SECONDS = 20


class SetupError(Exception):
    """One line for the person; the details are in the log."""


def ensure(*, with_tests: bool) -> Path:
    """Make `.venv` fit pyproject.toml; returns its folder of programs. Seconds when nothing is to do."""
    if _is_ready(with_tests):
        return BIN
    LOG.parent.mkdir(exist_ok=True)
    with LOG.with_suffix(".lock").open("a") as lock:
        _wait_for(lock)
        if not _is_ready(with_tests):
            _set_up(with_tests)
    return BIN


def _is_ready(with_tests: bool) -> bool:
    ready = STAMP.read_text().split() if STAMP.exists() else []
    fits = ready[:1] == [_fingerprint()] and ("test" in ready or not with_tests)
    return fits and (BIN / "restool").exists()


def _wait_for(lock: IO[str]) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("Another call is installing into .venv; waiting for it ...", flush=True)
        fcntl.flock(lock, fcntl.LOCK_EX)


def _set_up(with_tests: bool) -> None:
    ready = STAMP.read_text().split() if STAMP.exists() else []
    with_tests = with_tests or "test" in ready
    _make_folder(keep=bool(ready))
    STAMP.unlink(missing_ok=True)
    started = time.monotonic()
    print("Installing into .venv (once; a minute or two, 1.6 GB) ...", flush=True)
    _install(".[test]" if with_tests else ".")
    STAMP.write_text(f"{_fingerprint()} {'test' if with_tests else 'core'}\n")
    print(f"Installed in {time.monotonic() - started:.0f} s.", flush=True)


def _fingerprint() -> str:
    """Of everything that decides what belongs into the folder. An editable install remembers where it lies."""
    parts = [(ROOT / "pyproject.toml").read_bytes(), str(ROOT).encode(), sys.version.encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _make_folder(*, keep: bool) -> None:
    """A folder whose install was cut off is not trusted; one that somebody else made is used as it is."""
    if FOLDER.exists() and not keep and BEGUN.exists():
        shutil.rmtree(FOLDER)
    if not (BIN / "python").exists():
        made = subprocess.run([sys.executable, "-m", "venv", str(FOLDER)], capture_output=True, text=True)
        if made.returncode:
            shutil.rmtree(FOLDER, ignore_errors=True)
            reason = " ".join((made.stdout + made.stderr).split())[:300]
            raise SetupError(
                f"{sys.executable} cannot make a virtual environment (Debian and Ubuntu: "
                f"apt-get install python3-venv): {reason}"
            )
        BEGUN.touch()


def _install(target: str) -> None:
    """Everything in one resolution, torch included, so that its pin decides which build is taken.

    Modules are compiled when they are first imported: compiling all of them takes longer than installing them.
    """
    pip = [str(BIN / "python"), "-m", "pip", "--no-input", "--disable-pip-version-check"]
    if _run([*pip, "install", "--no-compile", "--progress-bar", "off", "--editable", target]):
        last = [line for line in LOG.read_text(errors="replace").splitlines() if line.strip()][-1:]
        raise SetupError(f"the installation failed: {''.join(last)} (all of it: {LOG.relative_to(ROOT)})")


def _run(command: list[str]) -> int:
    """Run quietly into the log, with a sign of life now and then."""
    started = time.monotonic()
    with LOG.open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        try:
            while True:
                try:
                    return process.wait(timeout=EVERY_SECONDS)
                except subprocess.TimeoutExpired:
                    print(f"  {time.monotonic() - started:4.0f} s  {_last_step()}", flush=True)
        except BaseException:
            process.terminate()
            process.wait()
            raise


def _last_step() -> str:
    lines = LOG.read_text(errors="replace").splitlines()
    steps = [line.strip() for line in lines if line.startswith(("Collecting", "Installing", "Building"))]
    return steps[-1][:100] if steps else "starting"
