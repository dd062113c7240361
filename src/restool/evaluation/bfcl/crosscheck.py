"""Our scores of an evaluation against those of BFCL's unmodified runner on the same answers, entry by entry."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from restool import environments, files
from restool.core.errors import EvaluationError
from restool.evaluation import items
from restool.evaluation.bfcl import results
from restool.evaluation.bfcl.fenced.decoding import clean

SCRIPT = Path(__file__).parent / "fenced" / "official.py"
ENVIRONMENT = "bfcl-official"
LIMITS = {"memory_bytes": 4 << 30, "processor_seconds": 1800, "file_bytes": 1 << 30}
UNANSWERED = ("missing", "over_length", "inference_error")
"""Our error types of what nobody answered. The official runner has no word for it: in single-turn it would read the
text of the error as an answer, which irrelevance counts as right."""


def crosscheck(out: Path, *, report: Callable[[str], None]) -> dict[str, Any]:
    """Score the answers of the evaluation in ``out`` with the official runner; write and return crosscheck.json.

    ``{"equal", "categories": {name: {"n", "ours", "official", "differing": [ids]}}, "left_out": {name: n}}``;
    left out are entries that nobody answered, which must be wrong with us. Raises `EvaluationError` if ``out`` holds
    no evaluation, or the official runner does not get through; the caller decides what a difference means.
    """
    python = environments.python(ENVIRONMENT)
    summary = files.read_json(out / "summary.json")
    if summary.get("benchmark") != "bfcl" or not summary["categories"]:
        raise EvaluationError(f"{out} holds no evaluation of bfcl; make one with: restool evaluate bfcl --out {out}")
    ours = _ours(out, list(summary["categories"]))
    rows = _answers(Path(summary["answers"] or out / "result"), ours)
    report(f"scoring {sum(map(len, rows.values()))} answers with the runner of bfcl-eval")
    partial = any(summary[key] for key in ("limit", "missing")) or _left(ours, rows)
    theirs = official(python, rows, partial=partial, form=summary.get("format", "rlla"))
    compared = {name: _compared(ours[name], theirs[name], rows[name]) for name in rows}
    outcome = {
        "bfcl_eval": environments.packages(ENVIRONMENT)["bfcl-eval"],
        "equal": not any(row["differing"] for row in compared.values()),
        "categories": compared,
        "left_out": {name: len(listed) - len(rows.get(name, ())) for name, listed in ours.items()},
    }
    files.write_json(out / "crosscheck.json", outcome)
    return outcome


def differences(outcome: dict[str, Any]) -> str:
    """The entries that the two judge differently, in a few words."""
    differing = {name: row["differing"] for name, row in outcome["categories"].items() if row["differing"]}
    return "; ".join(f"{len(ids)} entries of {name} differ ({items.some(ids)})" for name, ids in differing.items())


def _ours(out: Path, categories: list[str]) -> dict[str, dict[str, dict[str, Any]]]:
    found: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in categories}
    for row in files.read_json_lines(out / "items.jsonl"):
        if row["error_type"] in UNANSWERED and row["correct"]:
            raise EvaluationError(f"{out}: '{row['id']}' was not answered, and counts as right")
        found[row["category"]][row["id"]] = row
    return found


def _answers(folder: Path, ours: Mapping[str, Mapping[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Category → id → result, of what was answered."""
    found, faults = results.read(folder, {name: list(listed) for name, listed in ours.items()}, allow_missing=True)
    if faults:
        raise EvaluationError("; ".join(faults.values()))
    answered = {
        name: {i: results.of(a) for i, a in answers.items() if ours[name][i]["error_type"] not in UNANSWERED}
        for name, answers in found.items()
    }
    return {name: clean(rows) for name, rows in answered.items() if rows}


def _left(ours: Mapping[str, Any], rows: Mapping[str, Any]) -> bool:
    return any(len(rows.get(name, ())) < len(listed) for name, listed in ours.items())


def official(
    python: Path, rows: Mapping[str, Mapping[str, Any]], *, partial: bool, form: str = "rlla"
) -> dict[str, dict[str, Any]]:
    """Category → {"correct", "n", "wrong": id → what the official runner says of it}, from its score files."""
    with tempfile.TemporaryDirectory(prefix="restool-official-") as name:
        root = Path(name)
        results.write(root, rows)
        told = {"root": str(root.resolve()), "categories": list(rows), "format": form, "partial": partial}
        environment = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "TZ": "UTC", "HOME": name, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [python, "-I", "-B", SCRIPT, json.dumps(told | LIMITS)],
            cwd=root,
            env={**environment, "OPENBLAS_NUM_THREADS": "1", "BFCL_PROJECT_ROOT": str(root.resolve())},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            check=False,
        )
        return {category: _scores(root, category, done.stderr) for category in rows}


def _scores(root: Path, category: str, errors: str) -> dict[str, Any]:
    path = root / "score" / "restool" / results.group(category) / f"BFCL_v4_{category}_score.json"
    if not path.exists():  # its status is 0 even where an answer ended it
        lines = errors.strip().splitlines() or ["no message"]
        raise EvaluationError(f"bfcl-eval's runner ended without a score for {category}: {lines[-1]}")
    head, *wrong = files.read_json_lines(path)
    said = {row["id"]: row.get("error") for row in wrong}
    return {"correct": head["correct_count"], "n": head["total_count"], "wrong": said}


def _compared(ours: Mapping[str, dict[str, Any]], theirs: dict[str, Any], rows: Mapping[str, Any]) -> dict[str, Any]:
    right = {name for name in rows if ours[name]["correct"]}
    accepted = set(rows) - set(theirs["wrong"])
    if theirs["n"] != len(rows) or theirs["correct"] != len(accepted):
        raise EvaluationError(f"bfcl-eval's runner counted {theirs['n']} of {len(rows)} answers")
    return {"n": len(rows), "ours": len(right), "official": len(accepted), "differing": sorted(right ^ accepted)}
