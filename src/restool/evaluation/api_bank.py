"""API-Bank in ToolRL's form: 597 single-step samples of three levels, each with one right call.

Two rules, always both reported:

- ``compat``: the released evaluation with its quirks. Text after the last ``<tool_call>`` (or all of it) counts, a
  line that is no JSON is dropped, *any* of several calls may be the right one, an object without a name or
  without parameters is taken for the parameters of the right tool, and a line that is JSON but no container ends
  the sample.
- ``strict``: exactly one call, with name and parameters.

Both compare name and parameters exactly (case, types, formats). Scores of the two rules, and of the original
API-Bank evaluator, do not compare with each other. Deviations from the released scripts: answers are batched,
an answer that exists is never sampled again (the released rerun re-samples the wrong ones, which can only raise
the score), and no more than 64 k characters of an answer are read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from restool import files
from restool.core.errors import EvaluationError
from restool.data.overlap import Content
from restool.evaluation import answering, contamination, examples, failures, items
from restool.evaluation.contamination import Training
from restool.evaluation.examples import Shown
from restool.evaluation.tasks import read_answers
from restool.settings import RunSettings

BENCHMARK = "api-bank"
RULES = ("compat", "strict")
TEXT_CAP = 64 * 1024
PARSED_CAP = 20
"""Parsed values of one answer that its row of items keeps."""
FORMULA = (
    "accuracy of a level = right / samples; overall = right / 597 (micro average over the levels); "
    "compat: any call equals the gold call, as released; strict: the only call equals it"
)


@dataclass(frozen=True)
class Sample:
    """One sample. ``gold``: ``{"name", "parameters"}``, all values strings."""

    id: str
    level: str
    system: str
    user: str
    gold: dict[str, Any]


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
    """Answer all samples with ``model``, or take ``answers``, and score them.

    ``answers``: JSON lines ``{"id": "level-1/0", "text": ...}``; missing, duplicate or unknown ids are an
    `EvaluationError` that names them. With ``allow_missing`` a missing answer counts as wrong, and the summary
    says how many there are. ``training``: what the model was trained on, to find samples that it has seen. Writes
    answers.jsonl, examples.jsonl, items.jsonl and summary.json below ``out``.
    """
    record = files.read_json(prepared / "manifest.json")["benchmarks"]["api_bank"]
    if not record["available"]:
        return items.not_run(out, BENCHMARK, record["reason"])
    limit = None if answers else settings.eval.api_bank_limit  # answers that exist are all scored
    samples = items.first(load(prepared, record), limit, lambda sample: sample.level)
    decoding = None if answers else settings.eval.api_bank
    if answers:
        found = read_answers(answers, [sample.id for sample in samples], allow_missing=allow_missing)
    elif model is not None:
        questions = [answering.Question.of(s.id, s.system, s.user) for s in samples]
        path = out / "answers.jsonl"
        found = answering.collect(
            model,
            questions,
            settings.eval.api_bank,
            settings.eval.seed,
            path,
            allow_missing=allow_missing,
            report=report,
        )
    else:
        raise EvaluationError(f"{BENCHMARK}: give a model or answers")
    rows = [item(sample, found.get(sample.id)) for sample in samples]
    made = model is not None and answers is None
    identity = {
        "model": model.fingerprint if made else None,
        "source": model.description if made else None,
        "answers": str(answers) if answers else None,
        "seed": settings.eval.seed if made else None,
        "allow_missing": allow_missing,
    }
    contents = {sample.id: Content.of_prompt(sample.system, sample.user) for sample in samples}
    contamination.mark(rows, contents, training or Training.unknown())
    summary = summarize(rows, samples, training) | {"decoding": decoding.model_dump() if decoding else None} | identity
    shown = [Shown(s.user, s.gold, found[s.id].text if s.id in found else "") for s in samples]
    whole = summary | {"complete": all(sample.id in found for sample in samples)}
    return items.write(out, rows, items.limited(whole, limit), examples.choose(rows, shown))


def load(prepared: Path, record: dict[str, Any]) -> list[Sample]:
    """The samples of the three level files that the data preparation verified."""
    from restool.data import api_bank

    folder = Path(record["path"])
    rows = api_bank.load_samples(folder if folder.is_absolute() else prepared / folder)
    return [Sample(r["id"], r["id"].rpartition("/")[0], r["system"], r["user"], r["gold"]) for r in rows]


def item(sample: Sample, answer: answering.GeneratedAnswer | None) -> dict[str, Any]:
    """The per-item row: verdict by both rules, what was parsed, what went wrong."""
    text = answer.text if answer else ""
    calls = read_calls(text)
    is_right = compat(calls, sample.gold)
    kind, why = (None, None) if is_right else _reason(calls, sample, answer)
    return {
        "id": sample.id,
        "category": sample.level,
        "compat": is_right,
        "strict": strict(calls, sample.gold),
        "calls": len(calls),
        "parsed": calls[:PARSED_CAP],
        "failure_kind": kind,
        "why": why,
        "parse_failure": not calls,
        "over_length": bool(answer and answer.over_length),
        "missing": answer is None,
        "tokens": answer.tokens if answer else 0,
        "finished": bool(answer and answer.finished),
    }


def _reason(calls: Sequence[Any], sample: Sample, answer: answering.GeneratedAnswer | None) -> failures.Reason:
    """Why a sample is wrong by the released rule."""
    if answer is None:
        return failures.MISSING
    if answer.over_length:
        return failures.TOO_LONG
    if not calls:
        return failures.UNREADABLE, "no line is JSON"
    objects = [call for call in calls if isinstance(call, dict)]
    if not objects:
        return failures.UNREADABLE, "what is JSON is no object"
    return failures.difference(objects, [sample.gold]) or (failures.WRONG, "a line that is no call comes first")


def read_calls(text: str) -> list[Any]:
    """The JSON values after the last ``<tool_call>``, one a line; lines that are no JSON are dropped. Never raises."""
    calls = []
    for line in text[:TEXT_CAP].split("<tool_call>")[-1].split("</tool_call>")[0].split("\n"):
        try:
            calls.append(json.loads(line))
        except (ValueError, RecursionError, MemoryError):
            continue
    return calls


def compat(calls: Sequence[Any], gold: dict[str, Any]) -> bool:
    """The released rule, call by call until one is right or one is no container."""
    try:
        for value in calls:
            call = json.loads(value) if isinstance(value, str) else value
            bare = "name" not in call or "parameters" not in call
            name, parameters = (gold["name"], call) if bare else (call["name"], call["parameters"])
            if name == gold["name"] and parameters == gold["parameters"]:
                return True
    except (TypeError, ValueError, RecursionError):
        return False
    return False


def strict(calls: Sequence[Any], gold: dict[str, Any]) -> bool:
    """Exactly one call, and it is an object whose name and parameters are the right ones."""
    if len(calls) != 1 or not isinstance(calls[0], dict):
        return False
    try:
        return calls[0].get("name") == gold["name"] and calls[0].get("parameters") == gold["parameters"]
    except RecursionError:
        return False


def summarize(
    rows: list[dict[str, Any]], samples: Sequence[Sample], training: Training | None = None
) -> dict[str, Any]:
    """Categories ``<rule>/<level>`` and the micro averages."""
    levels = {level: [r for r in rows if r["category"] == level] for level in sorted({r["category"] for r in rows})}
    parts = {f"{rule}/{level}": (of_level, rule) for rule in RULES for level, of_level in levels.items()}
    categories = {name: items.category(*content) for name, content in parts.items()}
    aggregates, intervals, weights = {}, {}, {}
    for rule in RULES:
        weights[f"{rule}/overall"] = {f"{rule}/{level}": len(some) / len(rows) for level, some in levels.items()}
        overall = items.category(rows, rule)
        aggregates[f"{rule}/overall"] = overall["accuracy"]
        intervals[f"{rule}/overall"] = overall["interval"]
    return {
        "benchmark": BENCHMARK,
        "version": "ToolRL 8cee13e",
        "data_sha256": files.content_hash([vars(sample) for sample in samples], length=64),
        "formula": FORMULA,
        "categories": categories,
        "aggregates": aggregates,
        "intervals": intervals,
        "weights": weights,
        "metrics": {rule: {"field": rule, "categories": f"{rule}/"} for rule in RULES},
        "prompt_template_sha256": files.content_hash([[s.system, s.user] for s in samples], length=64),
        "contamination": contamination.record(rows, training or Training.unknown(), parts),
        "missing": sum(row["missing"] for row in rows),
    }
