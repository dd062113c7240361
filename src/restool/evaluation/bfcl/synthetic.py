"""The synthetic held-out tasks through BFCL's official checker: a number above zero that real code gave.

The tasks lie in BFCL's own file format in ``prepared/bfcl_synthetic/``; the answers are the greedy ones that
`held_out.evaluate` generated, so nothing is generated here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from restool import files
from restool.core.errors import EvaluationError
from restool.data import bfcl_export
from restool.evaluation import items
from restool.evaluation.bfcl.checker import Checker

BENCHMARK = "bfcl-synthetic"
FORMULA = (
    "accuracy = right by BFCL's checker / entries; calls = right / entries over the categories that ask for calls; "
    "overall = the same over all (in irrelevance anything unreadable counts as right, so calls is the one to look at). "
    "Synthetic tasks: these numbers do not compare with BFCL's"
)


def evaluate_synthetic(
    held_out_dir: Path, prepared: Path, out: Path, *, report: Callable[[str], None]
) -> dict[str, Any]:
    """Score the greedy answers below ``held_out_dir`` and write items.jsonl and summary.json below ``out``.

    Raises `EvaluationError` if held-out answers are not there, `ToolEnvironmentError` without the ``bfcl``
    environment. Data without synthetic tasks (rlla) gives a summary that says so.
    """
    folder = prepared / bfcl_export.FOLDER
    categories = sorted(path.stem for path in folder.glob("*.jsonl"))
    if not categories:
        return items.not_run(
            out, BENCHMARK, "the prepared data has no tasks in BFCL's format (only data=synthetic has)"
        )
    held_out = held_out_dir / "summary.json"
    if not held_out.exists():
        raise EvaluationError(f"{held_out} does not exist; run restool evaluate held-out first")
    texts = {
        row["id"].removeprefix("greedy/"): row["text"]
        for row in files.read_json_lines(held_out_dir / "answers.jsonl")
        if row["id"].startswith("greedy/")
    }
    rows: list[dict[str, Any]] = []
    with Checker(categories, folder=folder) as checker:
        for category in categories:
            entries = checker.entries(category)
            report(f"{BENCHMARK}: scoring {category}, {len(entries)} answers")
            rows += [_item(checker, category, entry, texts) for entry in entries]
        judged = {**checker.description, "fence": checker.fence()}
    return items.write(out, rows, _summary(rows, judged, files.read_json(held_out)))


def _item(checker: Checker, category: str, entry: dict[str, Any], texts: dict[str, str]) -> dict[str, Any]:
    row = entry["row"]
    if row not in texts:
        raise EvaluationError(f"{BENCHMARK}: no greedy held-out answer to '{row}'; run restool evaluate held-out again")
    verdict = checker.check(category, entry["id"], texts[row])
    parts = ("correct", "error_type", "error", "calls", "failure")
    base = {"id": entry["id"], "row": row, "category": category, "parse_failure": verdict["unreadable"]}
    return base | {name: verdict[name] for name in parts}


def _summary(rows: list[dict[str, Any]], judged: dict[str, Any], held_out: dict[str, Any]) -> dict[str, Any]:
    names = list(dict.fromkeys(row["category"] for row in rows))
    totals = {
        "calls": items.category(row for row in rows if "irrelevance" not in row["category"]),
        "overall": items.category(rows),
    }
    return {
        "benchmark": BENCHMARK,
        "version": f"bfcl-eval {judged['bfcl_eval']}",
        "data_sha256": judged["data_sha256"],
        "formula": FORMULA,
        "categories": {name: items.category([r for r in rows if r["category"] == name]) for name in names},
        "aggregates": {name: total["accuracy"] for name, total in totals.items()},
        "intervals": {name: total["interval"] for name, total in totals.items()},
        "decoding": held_out["decoding"]["greedy"],
        "model": held_out["model"],
        "fence": judged["fence"],
        "complete": True,
    }
