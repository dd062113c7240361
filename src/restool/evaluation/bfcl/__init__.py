"""BFCL through its official checker, which runs behind walls in an environment of its own.

`evaluate`: the single-turn categories of V3, from a model or from answers that exist. `evaluate_synthetic`: our
synthetic held-out tasks, written in BFCL's own format, with answers that `held_out.evaluate` has made.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from restool import environments, files
from restool.core.errors import ConfigurationError, EvaluationError, nearest
from restool.data.bfcl_export import content
from restool.evaluation import answering, contamination, items
from restool.evaluation.bfcl import aggregates, prompts, results
from restool.evaluation.bfcl.checker import Checker
from restool.evaluation.bfcl.synthetic import evaluate_synthetic
from restool.evaluation.contamination import Training
from restool.settings import RunSettings

__all__ = ["BENCHMARK", "evaluate", "evaluate_synthetic"]

BENCHMARK = "bfcl"

Entries = dict[str, list[dict[str, Any]]]
Answers = dict[str, dict[str, answering.GeneratedAnswer]]


def evaluate(
    model: answering.Answerer | None,
    prepared: Path,
    out: Path,
    settings: RunSettings,
    *,
    answers: Path | None = None,
    allow_missing: bool = False,
    training: Training | None = None,
    report: Callable[[str], None],
) -> dict[str, Any]:
    """Answer the categories of ``settings.eval`` with ``model``, or take ``answers``, and score them.

    ``answers``: a folder in BFCL's official result layout; missing, duplicate or unknown ids are an
    `EvaluationError` (missing ones count as wrong with ``allow_missing``). Writes answers.jsonl, items.jsonl,
    summary.json and the official layout below ``out``. Needs the ``bfcl`` environment.
    """
    categories = _checked(settings.eval.bfcl_categories)
    skeleton = files.read_json(prepared / "manifest.json")["skeleton"]
    if skeleton is None and answers is None:
        return items.not_run(out, BENCHMARK, "the prepared data has no prompt skeleton in the rlla format")
    environments.python("bfcl")  # before anything expensive
    limit = None if answers else settings.eval.bfcl_limit  # answers that exist are all scored
    with Checker(categories) as checker:
        entries = {name: checker.entries(name)[:limit] for name in categories}
        sizes = checker.description["sizes"]
    if answers:
        found = _read(answers, entries, allow_missing=allow_missing)
        origin = {
            "model": None,
            "source": None,
            "answers": str(answers),
            "decoding": None,
            "prompt_template_sha256": None,
        }
    elif model is not None:
        found = _answer(model, entries, skeleton, settings, out, report)
        origin = {
            "model": model.fingerprint,
            "source": model.description,
            "answers": None,
            "decoding": settings.eval.bfcl.model_dump(),
            "prompt_template_sha256": prompts.template_hash(skeleton),
        }
        results.write(out, {name: {i: a.text for i, a in rows.items()} for name, rows in found.items()})
    else:
        raise EvaluationError(f"{BENCHMARK}: give a model or answers")
    rows, fence = score(entries, found, report)
    contents = {entry["id"]: content(entry) for listed in entries.values() for entry in listed}
    contamination.mark(rows, contents, training or Training.unknown())
    summary = summarize(rows, sizes, fence, limit) | origin
    return items.write(out, rows, summary | with_statistics(rows, summary, sizes, training or Training.unknown()))


def score(
    entries: Entries, found: Answers, report: Callable[[str], None]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Items of all categories and a description of the checker that judged them (a fresh process)."""
    rows: list[dict[str, Any]] = []
    with Checker(list(entries)) as checker:
        for category, listed in entries.items():
            report(f"{BENCHMARK}: scoring {category}, {len(listed)} answers")
            for entry in listed:
                rows.append(item(checker, category, entry["id"], found[category].get(entry["id"])))
        return rows, {**checker.description, "fence": checker.fence()}


def item(checker: Checker, category: str, entry: str, answer: answering.GeneratedAnswer | None) -> dict[str, Any]:
    """The per-item row. What was never answered (too long a prompt, missing) is wrong everywhere: an empty text
    would otherwise count as a correct refusal in the irrelevance categories."""
    base = {
        "id": entry,
        "category": category,
        "over_length": bool(answer and answer.over_length),
        "missing": answer is None,
        "tokens": answer.tokens if answer else 0,
        "finished": bool(answer and answer.finished),
    }
    if answer is None or answer.over_length:
        kind = "missing" if answer is None else "over_length"
        unknown = {"error_type": kind, "error": None, "calls": None, "failure": None}
        return base | {"correct": False, "parse_failure": False} | unknown
    verdict = checker.check(category, entry, answer.text)
    return base | {
        "correct": verdict["correct"],
        "parse_failure": verdict["unreadable"],
        "error_type": verdict["error_type"],
        "error": verdict["error"],
        "calls": verdict["calls"],
        "failure": verdict["failure"],
    }


def summarize(
    rows: list[dict[str, Any]], sizes: dict[str, int], judged: dict[str, Any], limit: int | None
) -> dict[str, Any]:
    """Categories, V3 totals, V4 components; ``complete`` only if every entry of every asked category was scored."""
    names = list(dict.fromkeys(row["category"] for row in rows))
    categories = {name: items.category([r for r in rows if r["category"] == name]) for name in names}
    accuracy = {name: counted["accuracy"] for name, counted in categories.items()}
    return {
        "benchmark": BENCHMARK,
        "version": f"bfcl-eval {judged['bfcl_eval']}, V3 single-turn categories",
        "data_sha256": judged["data_sha256"],
        "formula": aggregates.FORMULA,
        "categories": categories,
        "aggregates": aggregates.totals(accuracy, sizes),
        "limit": limit,
        "not_run_categories": [name for name in (*aggregates.SINGLE_TURN, *aggregates.MULTI_TURN) if name not in names],
        "missing": sum(row["missing"] for row in rows),
        "fence": judged["fence"],
        "complete": not any(row["missing"] for row in rows)
        and all(categories[name]["n"] == sizes[name] for name in names)
        and set(names) >= set(aggregates.SINGLE_TURN),
    }


def with_statistics(
    rows: list[dict[str, Any]], summary: dict[str, Any], sizes: dict[str, int], training: Training
) -> dict[str, Any]:
    """Of marked rows: what each total weighs, its interval, and what the model was trained on."""
    categories = summary["categories"]
    weights = items.linear_weights(lambda accuracy: aggregates.totals(accuracy, sizes), list(categories))
    whole = {name: some for name, some in weights.items() if summary["aggregates"][name] is not None}
    groups = {name: ([row for row in rows if row["category"] == name], "correct") for name in categories}
    return {
        "weights": whole,
        "intervals": {name: items.weighted(some, categories) for name, some in whole.items()},
        "contamination": contamination.record(rows, training, groups),
    }


def _answer(
    model: answering.Answerer,
    entries: Entries,
    skeleton: str,
    settings: RunSettings,
    out: Path,
    report: Callable[[str], None],
) -> Answers:
    """Answers of the model to all categories together: one load, batches across categories."""
    questions = [
        answering.Question.of(row["id"], prompts.system(skeleton, row["function"]), prompts.user(row["question"][0]))
        for listed in entries.values()
        for row in listed
    ]
    chosen = settings.eval
    found = answering.collect(model, questions, chosen.bfcl, chosen.seed, out / "answers.jsonl", report=report)
    return {name: {row["id"]: found[row["id"]] for row in listed} for name, listed in entries.items()}


def _read(folder: Path, entries: Entries, *, allow_missing: bool) -> Answers:
    found: Answers = {}
    for category, rows in results.read(folder, list(entries)).items():
        wanted = [row["id"] for row in entries[category]]
        items.check_ids(folder, [row["id"] for row in rows], wanted, allow_missing=allow_missing)
        found[category] = {row["id"]: answering.GeneratedAnswer(row["result"], 0, True) for row in rows}
    return found


def _checked(categories: list[str]) -> list[str]:
    for name in categories:
        if name in aggregates.MULTI_TURN:
            raise ConfigurationError(f"eval.bfcl_categories: multi-turn category '{name}' cannot be run yet; remove it")
        if name not in aggregates.SINGLE_TURN:
            known = ", ".join(aggregates.SINGLE_TURN)
            close = nearest(name, aggregates.SINGLE_TURN)
            raise ConfigurationError(f"eval.bfcl_categories: unknown category '{name}'{close}; there are: {known}")
    return list(dict.fromkeys(categories))
