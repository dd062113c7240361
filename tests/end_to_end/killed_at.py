"""Run a verb of restool again and again, killed (-9) each time at another change that it makes to the file system.

    python killed_at.py POINTS FOLDERS_AND_FILES_TO_REMOVE -- VERB ...

Libraries are imported once, in a parent that does nothing else; every attempt is a fork of it. Each attempt starts
without the named results, is killed at its moment, and is followed by an undisturbed one. After either, the parent
prints one JSON line: the moment, and the hashes of what lies there, folders file by file.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
import traceback
from pathlib import Path

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def main() -> None:
    split = sys.argv.index("--")
    points, results, command = int(sys.argv[1]), [Path(p) for p in sys.argv[2:split]], sys.argv[split + 1 :]
    import_everything(command)
    remove(results)
    read, write = os.pipe()
    attempt(command, lambda: count_changes(write))
    total = int(os.read(read, 100))
    tell(f"0 of {total}", results, whole=True)
    for k in range(points):
        at = 1 + k * (total - 1) // max(points - 1, 1)
        remove(results)
        status = attempt(command, lambda at=at: die_at_change(at))
        assert os.WIFSIGNALED(status), f"not killed at change {at} of {total}"
        tell(f"{at} of {total}", results, whole=False)
        assert attempt(command) == 0
        tell(f"{at} of {total}", results, whole=True)


def attempt(command: list[str], prepare=lambda: None) -> int:
    """Wait status of a fork that runs the verb."""
    child = os.fork()
    if child == 0:
        status = 70
        with open("killed.log", "a") as log:
            os.dup2(log.fileno(), 2)
            os.dup2(log.fileno(), 1)
        try:
            prepare()
            from restool.cli import app

            app(command, standalone_mode=False)
            status = 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        for last in AT_END:
            last()
        os._exit(status)
    return os.waitpid(child, 0)[1]


AT_END = []


def count_changes(pipe: int) -> None:
    seen = [0]
    on_change(lambda: seen.__setitem__(0, seen[0] + 1))
    AT_END.append(lambda: os.write(pipe, str(seen[0]).encode()))


def die_at_change(at: int) -> None:
    seen = [0]

    def count() -> None:
        seen[0] += 1
        if seen[0] == at:
            os.kill(os.getpid(), signal.SIGKILL)

    on_change(count)


def on_change(do) -> None:
    """Call ``do`` before every change below the working directory, and in the middle of every line of a log."""
    from restool import files

    here = os.getcwd()
    append = files.JsonLinesWriter.append

    def torn(self, *rows) -> None:
        half = json.dumps(rows[0])[:20].encode() if rows else b""
        place = self._file.tell()
        self._file.write(half)
        do()
        self._file.truncate(place)
        append(self, *rows)

    files.JsonLinesWriter.append = torn

    def audit(event: str, arguments: tuple) -> None:
        if event == "open":
            path, _, flags = arguments
            writes = isinstance(path, str | Path | os.PathLike) and bool((flags or 0) & WRITING)
        else:
            path, writes = arguments[0] if arguments else "", event in CHANGES
        if writes and os.path.abspath(os.fspath(path)).startswith(here) and not str(path).endswith((".log", ".lock")):
            do()

    sys.addaudithook(audit)


def import_everything(command: list[str]) -> None:
    import pandas  # noqa: F401
    import torch
    import transformers  # noqa: F401

    torch.set_num_threads(1)
    import restool.analysis.figures
    import restool.analysis.report
    import restool.cli
    import restool.evaluation.held_out  # noqa: F401


def remove(results: list[Path]) -> None:
    for path in results:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def tell(moment: str, results: list[Path], *, whole: bool) -> None:
    found = {}
    for top in results:
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.is_file() and not any(part.startswith(".") for part in path.parts):
                found[path.as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    print(json.dumps({"moment": moment, "whole": whole, "found": found}), flush=True)


if __name__ == "__main__":
    main()
