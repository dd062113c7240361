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
from restool.data.overlap import Content
from restool.evaluation import contamination, examples, items
from restool.evaluation.bfcl import scoring
from restool.evaluation.bfcl.checker import Checker
from restool.evaluation.contamination import Training
from restool.evaluation.examples import Shown

BENCHMARK = "bfcl-synthetic"
SPLIT = "held_out"
"""The split that the tasks in BFCL's format were made from."""
FORMULA = (
    "accuracy = right by BFCL's checker / entries; calls = right / entries over the categories that ask for calls; "
    "overall = the same over all (in irrelevance anything unreadable counts as right, so calls is the one to look at). "
    "Synthetic tasks: these numbers do not compare with BFCL's"
)


def evaluate(model: Any, prepared: Path, out: Path, settings: Any, **given: Any) -> dict[str, Any]:
    """As the registry calls a benchmark: the answers are those of held-out, beside ``out``."""
    if given["answers"] is not None:
        raise EvaluationError(f"{BENCHMARK} scores the answers of held-out; leave --answers away")
    return evaluate_synthetic(
        out.parent / "held-out", prepared, out, training=given["training"], report=given["report"]
    )


def evaluate_synthetic(
    held_out_dir: Path,
    prepared: Path,
    out: Path,
    *,
    training: Training | None = None,
    report: Callable[[str], None],
) -> dict[str, Any]:
    """Score the greedy answers below ``held_out_dir``; write items, examples and summary below ``out``.

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
    contents: dict[str, Content] = {}
    shown: list[Shown] = []
    with Checker(categories, folder=folder) as checker:
        for category in categories:
            entries, expected = checker.entries(category), checker.expected(category)
            report(f"{BENCHMARK}: scoring {category}, {len(entries)} answers")
            verdicts = checker.check(category, [(entry["id"], _text(entry, texts)) for entry in entries])
            for entry, verdict in zip(entries, verdicts, strict=True):
                rows.append(_item(category, entry, verdict, expected[entry["id"]]))
                shown.append(scoring.shown(entry["question"], rows[-1], _text(entry, texts)))
            contents |= {entry["id"]: bfcl_export.content(entry) for entry in entries}
        judged = {**checker.description, "fence": checker.fence()}
    contamination.mark(rows, contents, training or Training.unknown())
    summary = _summary(rows, judged, files.read_json(held_out), training or Training.unknown())
    return items.write(out, rows, summary, examples.choose(rows, shown))


def _text(entry: dict[str, Any], texts: dict[str, str]) -> str:
    row = entry["row"]
    if row not in texts:
        raise EvaluationError(f"{BENCHMARK}: no greedy held-out answer to '{row}'; run restool evaluate held-out again")
    return texts[row]


def _item(category: str, entry: dict[str, Any], verdict: dict[str, Any], expected: Any) -> dict[str, Any]:
    parts = ("correct", "error_type", "error", "calls", "failure")
    base = {"id": entry["id"], "row": entry["row"], "category": category, "parse_failure": verdict["unreadable"]}
    return scoring.explained(base | {name: verdict[name] for name in parts} | {"expected": expected})


def _summary(
    rows: list[dict[str, Any]], judged: dict[str, Any], held_out: dict[str, Any], training: Training
) -> dict[str, Any]:
    names = list(dict.fromkeys(row["category"] for row in rows))
    groups = {name: [row for row in rows if row["category"] == name] for name in names}
    asking = [name for name in names if "irrelevance" not in name]
    totals = {
        "calls": items.category(row for row in rows if "irrelevance" not in row["category"]),
        "overall": items.category(rows),
    }
    return {
        "benchmark": BENCHMARK,
        "version": f"bfcl-eval {judged['bfcl_eval']}",
        "data_sha256": judged["data_sha256"],
        "formula": FORMULA,
        "categories": {name: items.category(group) for name, group in groups.items()},
        "aggregates": {name: total["accuracy"] for name, total in totals.items()},
        "intervals": {name: total["interval"] for name, total in totals.items()},
        "weights": {
            total: {name: len(groups[name]) / sum(len(groups[n]) for n in some) for name in some}
            for total, some in (("calls", asking), ("overall", names))
        },
        "prompt_template_sha256": held_out["prompt_template_sha256"],
        "contamination": contamination.record(rows, training, {n: (g, "correct") for n, g in groups.items()}),
        "decoding": held_out["decoding"][f"{SPLIT}/greedy"],
        "model": held_out["model"],
        "fence": judged["fence"],
        "complete": True,
    }
