"""Per-item results and the summary made of them: the same files for every benchmark.

``items.jsonl`` has one row per item and ``summary.json`` is a function of it, so that anyone can recount.
"""

from __future__ import annotations

import math
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from restool import files, seals

Entry = TypeVar("Entry")

_Z = 1.959963984540054
"""97.5 % quantile of the normal distribution, as in ``statsmodels`` (which takes a second to import)."""


def first(entries: Sequence[Entry], limit: int | None, category: Callable[[Entry], str]) -> list[Entry]:
    """The first ``limit`` entries of each category, in their order; None: all."""
    seen: Counter[str] = Counter()
    found = []
    for entry in entries:
        seen[category(entry)] += 1
        if limit is None or seen[category(entry)] <= limit:
            found.append(entry)
    return found


def limited(summary: dict[str, Any], limit: int | None) -> dict[str, Any]:
    """A summary that says how many of each category were asked; then it is not complete, and no total is given."""
    if limit is None:
        return summary | {"limit": None}
    no_total = {"aggregates": dict.fromkeys(summary["aggregates"]), "intervals": {}, "weights": {}}
    return summary | no_total | {"limit": limit, "complete": False}


def wilson(correct: float, n: float) -> list[float] | None:
    """95 % Wilson score interval of a proportion; None without items."""
    if n == 0:
        return None
    share, spread = correct / n, _Z * _Z / n
    centre = (share + spread / 2) / (1 + spread)
    half = _Z / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    return [max(0.0, centre - half), min(1.0, centre + half)]


def category(rows: Iterable[dict[str, Any]], correct: str = "correct") -> dict[str, Any]:
    """Counts of one category. ``correct`` names the boolean field that decides.

    Rows may carry ``parse_failure``, ``over_length``, ``force_quit`` (booleans) and ``failure`` (what broke the
    checker, or None; counted as ``errors``): all of them stay in the denominator.
    """
    rows = list(rows)
    right = sum(bool(row[correct]) for row in rows)
    return {
        "n": len(rows),
        "correct": right,
        "accuracy": right / len(rows) if rows else None,
        "interval": wilson(right, len(rows)),
        "parse_failures": sum(bool(row.get("parse_failure")) for row in rows),
        "over_length": sum(bool(row.get("over_length")) for row in rows),
        "force_quits": sum(bool(row.get("force_quit")) for row in rows),
        "errors": sum(bool(row.get("failure")) for row in rows),
    }


def weighted(weights: Mapping[str, float], categories: Mapping[str, dict[str, Any]]) -> list[float] | None:
    """Wilson's interval of a weighted mean of categories (weights sum to 1), at the effective number of items.

    That number is Kish's, 1 / sum(weight² / n): the items of an equally weighted total that is as precise. Equal to
    the plain interval where a category weighs what its items do. None if a category is missing or empty.
    """
    counted = [(weight, categories.get(name)) for name, weight in weights.items()]
    if not counted or any(c is None or not c["n"] for _, c in counted):
        return None
    share = sum(weight * c["correct"] / c["n"] for weight, c in counted)  # type: ignore[index]
    effective = 1 / sum(weight**2 / c["n"] for weight, c in counted)  # type: ignore[index]
    return wilson(share * effective, effective)


def linear_weights(
    totals: Callable[[dict[str, float]], Mapping[str, float | None]], names: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Total -> category -> weight, of totals that are weighted means: each category in turn is 1, the others 0.

    ``names``: the categories that were run; a total that needs another one has no weights.
    """
    found: dict[str, dict[str, float]] = {}
    for name in names:
        for total, value in totals({other: float(other == name) for other in names}).items():
            if value:
                found.setdefault(total, {})[name] = value
    return found


def write(
    out: Path,
    rows: Iterable[dict[str, Any]],
    summary: dict[str, Any],
    examples: Iterable[dict[str, Any]] = (),
) -> dict[str, Any]:
    """Write examples.jsonl (wrong answers to read), items.jsonl, then summary.json; return the summary.

    The summary's existence says that the evaluation is whole. It gets the versions of what scored and, as ``files``,
    the sizes of what it was made from.
    """
    summary = {**summary, "software": {"restool": metadata.version("restool"), "python": platform.python_version()}}
    files.write_json_lines(out / "examples.jsonl", examples)
    files.write_json_lines(out / "items.jsonl", rows)
    summary = {**summary, "files": seals.sizes(out, [out / "answers.jsonl", out / "items.jsonl"])}
    files.write_json(out / "summary.json", summary)
    return summary


def some(names: Sequence[str]) -> str:
    """The first ten of many names, for a message."""
    return ", ".join(names[:10]) + (", …" if len(names) > 10 else "")


def not_run(out: Path, benchmark: str, reason: str) -> dict[str, Any]:
    """The summary of a benchmark that could not be run: says so, and has no numbers."""
    summary = {
        "benchmark": benchmark,
        "version": None,
        "data_sha256": None,
        "formula": None,
        "categories": {},
        "aggregates": {},
        "decoding": None,
        "complete": False,
        "not_run": reason,
    }
    files.write_json(out / "summary.json", summary)
    return summary
