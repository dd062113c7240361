"""What a server of vLLM died of, from what it said.

Several processes write into one log. The one that fails tells its exception; those that wait for it then fail too,
with exceptions that only point at the first; the interpreters' farewells come behind.
"""

from __future__ import annotations

import re
import signal

_PREFIX = re.compile(r"(?:\(\S+ pid=\d+\) )*(?:ERROR \S+ \S+ \[\S+\] )?")
_EXCEPTION = re.compile(r"(?:\w+\.)*(\w*(?:Error|Exception)(?:: .*)?)")
_VALIDATION = re.compile(r"\d+ validation errors? for \w+")
_POINTS_ELSEWHERE = "root cause"  # "Engine core initialization failed. See root cause above." and its like
_GONE = re.compile(r"\b(?:exited|died) unexpectedly")
_WITHOUT_ENGINE = "EngineCore failed to start"
_LONGEST = 300


def is_without_engine(log: str) -> bool:
    """Whether the engine behind the server has given up."""
    return _WITHOUT_ENGINE in log


def cause(log: str, status: int | None) -> str:
    """One line: the last exception that does not point at another; where there is none, how the server ended."""
    lines = [line[_PREFIX.match(line).end() :].rstrip() for line in log.splitlines()]
    found = [(i, match[1]) for i, line in enumerate(lines) if (match := _EXCEPTION.fullmatch(line))]
    own = [(i, told) for i, told in found if _POINTS_ELSEWHERE not in told]
    if own:
        place, told = own[-1]
        return _short(_validation(lines[place + 1 :]) if _VALIDATION.search(told) else told)
    if status == -signal.SIGKILL or f": -{signal.SIGKILL:d}" in (found[-1][1] if found else ""):
        return "it was killed, as happens where memory does not suffice"
    if _GONE.search(log):
        return "its engine is gone without a word, as happens where memory does not suffice"
    how = f"was killed by signal {-status}" if status and status < 0 else f"ended with status {status}"
    return f"it {how} without a word on why"


def _validation(behind: list[str]) -> str:
    """pydantic's complaint: "  Value error, <what is wrong> [type=value_error, ...]"."""
    first = next((line.strip() for line in behind if line.strip()), "")
    return first.partition(" [type=")[0].removeprefix("Value error, ")


def _short(line: str) -> str:
    line = " ".join(line.split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…"
