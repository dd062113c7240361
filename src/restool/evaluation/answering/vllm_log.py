"""What a server of vLLM died of, from what it said.

Several processes write into one log. The one that fails tells its exception; those that wait for it then fail too,
with exceptions that only point at the first; the interpreters' farewells come behind.
"""

from __future__ import annotations

import re
import signal

_PREFIX = re.compile(r"(?:\(\S+ pid=\d+\) )*(?:ERROR \S+ \S+ \[\S+\] )?")
_EXCEPTION = re.compile(r"(?:\w+\.)*\w*(?:Error|Exception)(?:: .*)?")
_POINTS_ELSEWHERE = "root cause"  # "Engine core initialization failed. See root cause above." and two more
_LONGEST = 300


def cause(log: str, status: int) -> str:
    """One line: the last exception that does not point at another, else the last complaint, else how it ended."""
    lines = [line[_PREFIX.match(line).end() :].rstrip() for line in log.splitlines()]
    places = [i for i, line in enumerate(lines) if _EXCEPTION.fullmatch(line) and _POINTS_ELSEWHERE not in line]
    if places:
        return _short(_told(lines, places[-1]))
    if status == -signal.SIGKILL or re.search(rf"'\w+': -{signal.SIGKILL:d}\b", log):
        return "it was killed; that is what happens where memory does not suffice"
    complaints = [line for line in lines if "error" in line.lower()]
    return _short(complaints[-1]) if complaints else f"it ended with status {status} and without a message"


def _told(lines: list[str], place: int) -> str:
    """The exception at ``place``; where its first line only announces the others, with the next of them."""
    line = lines[place]
    if line.endswith(":") or "validation error" in line:
        # pydantic: "1 validation error for ModelConfig", then "  Value error, <what is wrong> [type=value_error, ...]"
        behind = next((each.strip() for each in lines[place + 1 :] if each.strip()), "")
        return f"{line} {behind.partition(' [type=')[0]}"
    return line


def _short(line: str) -> str:
    line = " ".join(line.split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…"
