"""Rows of answers that exist already, from whoever made them: whatever is wrong with a file is told at once, by line
and by the id of the question."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from restool.core.errors import EvaluationError
from restool.evaluation.items import some

Row = dict[str, Any]

_ID = re.compile(rb'"id"\s*:\s*("(?:[^"\\]|\\.)*")')


def read(
    path: Path, wanted: Sequence[str], shape: str, fits: Callable[[Row], bool], *, allow_missing: bool
) -> list[Row]:
    """The rows of a file of JSON lines, each with an ``id`` of ``wanted``.

    Raises `EvaluationError` that names all faults: lines that are no row (``fits``; ``shape`` shows one) or no JSON,
    a last line that is cut off, ids that are duplicate, unknown or missing. With ``allow_missing`` ids that are
    missing and a line that is cut off are no fault.
    """
    rows: list[Row] = []
    broken: dict[str, list[str]] = {"cut off": [], "no JSON": [], f"not as expected, {shape}": []}
    cut, no_json, misshapen = broken.values()
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            (cut if number == len(lines) else no_json).append(f"line {number}{_whose(line)}")
            continue
        if isinstance(row, dict) and isinstance(row.get("id"), str) and fits(row):
            rows.append(row)
        else:
            misshapen.append(f"line {number}{_whose(line)}")
    if allow_missing:
        cut.clear()
    told = [f"{some(places)}: {fault}" for fault, places in broken.items() if places]
    _complain(path, told + id_faults([row["id"] for row in rows], wanted, allow_missing=allow_missing))
    return rows


def id_faults(found: Sequence[str], wanted: Sequence[str], *, allow_missing: bool) -> list[str]:
    """Duplicate, unknown and (unless allowed) missing ids, counted and named."""
    counts = Counter(found)
    faults = {
        "duplicate": sorted(name for name, count in counts.items() if count > 1),
        "unknown": sorted(counts.keys() - set(wanted)),
        "missing": [] if allow_missing else [name for name in wanted if name not in counts],
    }
    return [f"{len(ids)} {kind} ({some(ids)})" for kind, ids in faults.items() if ids]


def _complain(path: Path, told: list[str]) -> None:
    if told:
        hint = "; --allow-missing counts missing ones as wrong" if " missing (" in told[-1] else ""
        raise EvaluationError(f"{path}: answers do not fit the benchmark: {'; '.join(told)}{hint}")


def _whose(line: bytes) -> str:
    """The id in a line that is no row, where it can be made out: " (its id)"."""
    found = _ID.search(line)
    try:
        return f" ({json.loads(found[1])})" if found else ""
    except ValueError:
        return ""
