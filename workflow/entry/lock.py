"""One call at a time in one clone, and no leftovers of a call that was killed.

The lock is an advisory lock on `results/.lock`, which also says who holds it: `./reproduce-paper`, or a Snakemake that
somebody started by hand. Every process that a call starts carries the call's id in its environment, so that what a
killed call left running can be told from anything else. Standard library only.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import json
import os
import shutil
import signal
import socket
import time
import uuid
from pathlib import Path
from typing import Any

VARIABLE = "RESTOOL_CALL"
PATIENCE_SECONDS = 10
SLURMS = b"SLURM_JOB_NAME=restool_"  # such a process is a job's, and ends by scancel (cluster.py)
LOOKS = {"-n", "--dry-run", "--dryrun", "--lint", "--list", "-l", "--unlock", "--summary", "-S", "--dag", "--d3dag"}
LOOKS |= {"-h", "--help", "-v", "--version", "--rulegraph", "--filegraph", "--list-rules", "--report"}
LOOKS |= {"-D", "--detailed-summary", "--list-changes", "--lc", "-t", "--touch"}
"""Flags of Snakemake with which no job runs."""
_held: list[int] = []  # descriptors of locks, open as long as the process lives


class Occupied(Exception):
    """Somebody else is at work; the message says who."""


def enter(path: Path, command: str) -> None:
    """Take the lock for as long as this process lives, unless the call that started this process holds it."""
    if not is_ours(path):
        _held.append(acquire(path, command))


def is_ours(path: Path) -> bool:
    """Whether this process belongs to the call that holds the lock."""
    return path.exists() and VARIABLE in os.environ and _read_path(path).get("call") == os.environ[VARIABLE]


def is_occupied(path: Path) -> bool:
    """Whether another call is at work."""
    if not path.exists() or is_ours(path):
        return False
    descriptor = os.open(path, os.O_RDWR)
    try:
        return not _try(descriptor)
    finally:
        os.close(descriptor)


def clear_stale(folder: Path) -> None:
    """Remove what a killed Snakemake left of its own lock; only for the holder of ours."""
    shutil.rmtree(folder / ".snakemake" / "locks", ignore_errors=True)


def acquire(path: Path, command: str) -> int:
    """Take the lock and return its file descriptor, which must stay open; sets RESTOOL_CALL for all children."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o664)
    holder = _read(descriptor)
    is_killed = holder.get("host") == socket.gethostname() and not _alive(holder.get("pid"))
    if not _try(descriptor) and not is_killed:
        raise Occupied(_describe(holder))
    end_leftovers(holder)
    if not _wait(descriptor):
        raise Occupied(_describe(_read(descriptor)))
    call = uuid.uuid4().hex
    record = {
        "user": _user(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": command,
        "call": call,
    }
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(record).encode(), 0)
    os.environ[VARIABLE] = call
    return descriptor


def end_leftovers(holder: dict[str, Any]) -> list[int]:
    """Stop what a killed call left running on this machine: two writers in one run directory must never be."""
    call = holder.get("call")
    found = processes_of(call) if call else []
    if found:
        print(f"Stopping {len(found)} process(es) that an earlier, killed call left running.", flush=True)
    for kind in (signal.SIGTERM, signal.SIGKILL):
        for pid in found:
            send(pid, kind)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while found and time.monotonic() < deadline:
            found = [pid for pid in found if _alive(pid)]
            time.sleep(0.05)
    return found


def processes_of(call: str) -> list[int]:
    """Processes of this machine, other than this one, that carry the call's id (Linux; elsewhere none is found)."""
    wanted = f"{VARIABLE}={call}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            variables = (folder / "environ").read_bytes().split(b"\0")
            is_slurms = any(variable.startswith(SLURMS) for variable in variables)
            if wanted in variables and not is_slurms and int(folder.name) != os.getpid():
                found.append(int(folder.name))
        except OSError:  # ended meanwhile, or somebody else's
            continue
    return found


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no such user in the system's list
        return f"user {os.getuid()}"


def _try(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait(descriptor: int) -> bool:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not _try(descriptor):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _read(descriptor: int) -> dict[str, Any]:
    try:
        return json.loads(os.pread(descriptor, 65536, 0))
    except ValueError:
        return {}


def _read_path(path: Path) -> dict[str, Any]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return _read(descriptor)
    finally:
        os.close(descriptor)


def _describe(holder: dict[str, Any]) -> str:
    if not holder:
        return "another call is at work in this folder; wait for it to finish"
    return (
        f"{holder['user']} has been running '{holder['command']}' in this folder since {holder['since']} "
        f"(process {holder['pid']} on {holder['host']}); wait for it, or stop it with: kill {holder['pid']}"
    )


def _alive(pid: int | None) -> bool:
    try:
        os.kill(pid or 0, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:  # a process that ended but was not collected is not alive
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return True


def send(pid: int, kind: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, kind)
