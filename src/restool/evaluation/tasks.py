"""Everything around a benchmark whose module says only what its tasks are and when an answer is right.

Such a module has

- ``tasks(source) -> list[Task]``: what is asked;
- ``judge(task, text) -> dict``: the fields of an item; ``correct`` (bool) at least, ``parsed`` (what was read from
  the answer), ``failure_kind`` and ``why`` (None where it is right), and any number that is to be averaged;

and may have ``METRICS``, ``FORMULA``, ``VERSION``, ``CORRECT`` (the field that decides, if it is not ``correct``),
``decoding(source, round)`` and ``totals(rows)``. Answers, resuming, items, intervals, contamination, examples and the
summary are made here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from types import ModuleType
from typing import Any

from restool import files
from restool.core.errors import ConfigurationError, EvaluationError
from restool.data.overlap import Content
from restool.evaluation import answering, contamination, examples, failures, given, items
from restool.evaluation.answering import GeneratedAnswer
from restool.evaluation.contamination import Training
from restool.evaluation.examples import Shown
from restool.settings import BenchmarkSettings, DecodingSettings, RunSettings

Row = dict[str, Any]

WHOLE: dict[str, Row] = {"correct": {"field": "correct"}}


@dataclass(frozen=True)
class Source:
    """Where a module takes its tasks from: the prepared data, the run's settings, the benchmark's own YAML."""

    name: str
    prepared: Path
    settings: RunSettings
    benchmark: BenchmarkSettings


@dataclass(frozen=True)
class Task:
    """One question. ``expected``: what would be right, JSON-serialisable. ``item``: id of its row, where one item is
    asked several ways (default: ``id``). ``round``: tasks of one round are answered together, with one decoding.
    ``given``: anything else that the judge needs."""

    id: str
    system: str
    user: str
    expected: Any
    category: str = "all"
    round: str = ""
    item: str | None = None
    given: Any = None


def evaluate(
    module: ModuleType,
    source: Source,
    model: answering.Answerer | None,
    out: Path,
    *,
    answers: Path | None = None,
    allow_missing: bool = False,
    training: Training,
    report: Callable[[str], None],
) -> Row:
    """Answer (or read), judge, count; writes answers.jsonl, examples.jsonl, items.jsonl and summary.json.

    Raises `EvaluationError` if answers do not fit the tasks, `ConfigurationError` if nothing answers.
    """
    tasks = module.tasks(source)
    _check(source.name, tasks)
    limit = None if answers else source.benchmark.limit  # answers that exist are all scored
    tasks = items.first(tasks, limit, lambda task: task.category)
    decodings = {name: _decoding(module, source, name) for name in dict.fromkeys(task.round for task in tasks)}
    if answers is not None:
        found = read_answers(answers, [task.id for task in tasks], allow_missing=allow_missing)
    elif model is not None:
        found = _collect(model, tasks, decodings, source, out, allow_missing, report)
    else:
        raise ConfigurationError(f"{source.name}: give a model or answers")
    rows = [_row(module, task, found.get(task.id)) for task in tasks]
    contents = {task.item or task.id: Content.of_prompt(task.system, task.user) for task in tasks}
    contamination.mark(rows, contents, training)
    shown = {name: values.model_dump() for name, values in decodings.items()}
    origin = {
        "decoding": None if answers else shown.get("", shown),
        "seed": source.settings.eval.seed,
        "model": None if model is None else model.fingerprint,
        "source": None if model is None else model.description,
        "answers": str(answers) if answers else None,
        "allow_missing": allow_missing,
        "complete": not any(row["missing"] for row in rows),
    }
    summary = summarize(module, source.name, tasks, rows, training) | origin
    summary = items.limited(summary, limit)
    texts = (found[task.id].text if task.id in found else "" for task in tasks)
    shown_to_readers = [Shown(task.user, task.expected, text) for task, text in zip(tasks, texts, strict=True)]
    return items.write(out, rows, summary, examples.choose(rows, shown_to_readers))


def summarize(module: ModuleType, name: str, tasks: Sequence[Task], rows: list[Row], training: Training) -> Row:
    """The summary without what answered."""
    correct = getattr(module, "CORRECT", "correct")
    metrics = getattr(module, "METRICS", WHOLE)
    groups = {category: [row for row in rows if row["category"] == category]
              for category in dict.fromkeys(row["category"] for row in rows)}  # fmt: skip
    totals = module.totals(rows) if hasattr(module, "totals") else _totals(groups, rows, metrics)
    return {
        "benchmark": name,
        "version": getattr(module, "VERSION", "1"),
        "data_sha256": files.content_hash([[t.id, t.user, t.expected, t.category] for t in tasks], length=64),
        "prompt_template_sha256": files.content_hash([[t.system, t.user] for t in tasks], length=64),
        "formula": getattr(module, "FORMULA", f"accuracy = share of items with {correct}"),
        "metrics": metrics,
        "categories": {category: items.category(group, correct) for category, group in groups.items()},
        **totals,
        "missing": sum(row["missing"] for row in rows),
        "contamination": contamination.record(rows, training, {c: (group, correct) for c, group in groups.items()}),
    }


def _totals(groups: dict[str, list[Row]], rows: list[Row], metrics: dict[str, Row]) -> Row:
    """Each metric over all items; Wilson's interval where it is a share of right answers."""
    aggregates, intervals = {}, {}
    for name, how in metrics.items():
        values = [float(row[how["field"]]) for row in rows]
        aggregates[name] = fmean(values) if values else None
        if how.get("kind", "binary") == "binary":
            intervals[name] = items.wilson(int(sum(values)), len(values))
    weights = {"all": {category: len(group) / len(rows) for category, group in groups.items()}}
    return {"aggregates": aggregates, "intervals": intervals, "weights": weights}


def _check(name: str, tasks: Sequence[Task]) -> None:
    if not tasks:
        raise EvaluationError(f"{name}: there are no tasks")
    ids = [task.id for task in tasks]
    if len(set(ids)) < len(ids):
        twice = next(one for one in ids if ids.count(one) > 1)
        raise EvaluationError(f"{name}: two tasks have the id '{twice}'")


def _decoding(module: ModuleType, source: Source, name: str) -> DecodingSettings:
    chosen = module.decoding(source, name) if hasattr(module, "decoding") else source.benchmark.decoding
    if chosen is None:
        raise ConfigurationError(f"configs/benchmark/{source.name}.yaml: key 'decoding' is missing")
    return chosen


def _collect(
    model: answering.Answerer,
    tasks: Sequence[Task],
    decodings: dict[str, DecodingSettings],
    source: Source,
    out: Path,
    allow_missing: bool,
    report: Callable[[str], None],
) -> dict[str, GeneratedAnswer]:
    found: dict[str, GeneratedAnswer] = {}
    for name, decoding in decodings.items():
        asked = [task for task in tasks if task.round == name]
        report(f"{source.name}: {f'{name}, ' if name else ''}{len(asked)} prompts")
        questions = [answering.Question.of(task.id, task.system, task.user) for task in asked]
        found |= answering.collect(
            model,
            questions,
            decoding,
            source.settings.eval.seed,
            out / "answers.jsonl",
            allow_missing=allow_missing,
            report=report,
        )
    return found


def _row(module: ModuleType, task: Task, answer: GeneratedAnswer | None) -> Row:
    """What was never answered is wrong, also where silence would be right."""
    base = {
        "id": task.item or task.id,
        "category": task.category,
        "parse_failure": False,
        "over_length": bool(answer and answer.over_length),
        "missing": answer is None,
        "tokens": answer.tokens if answer else 0,
        "finished": bool(answer and answer.finished),
    }
    judged = module.judge(task, answer.text if answer else "")
    row = base | {"parsed": None, "failure_kind": None, "why": None} | judged
    if answer is None or answer.over_length:
        kind, why = failures.MISSING if answer is None else failures.TOO_LONG
        row |= {getattr(module, "CORRECT", "correct"): False, "parse_failure": False, "failure_kind": kind, "why": why}
    return row


def read_answers(path: Path, wanted: list[str], *, allow_missing: bool) -> dict[str, GeneratedAnswer]:
    """Answers that somebody else generated, JSON lines of id and text, checked against the ids that there are."""
    if not path.is_file():
        raise EvaluationError(f"{path} is no file; --answers takes JSON lines with the keys id and text")
    shape = f'{{"id": "{wanted[0]}", "text": "..."}}'
    rows = given.read(path, wanted, shape, lambda row: isinstance(row.get("text"), str), allow_missing=allow_missing)
    return {row["id"]: GeneratedAnswer(row["text"], 0, True) for row in rows}
