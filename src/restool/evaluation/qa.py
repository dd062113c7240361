"""Questions with short answers from a file: exact match and F1 over words.

The file is JSON lines: ``{"id": "1", "question": "...", "answers": ["...", "..."]}``, where any of the answers is
right; ``category`` is optional. What counts of a model's answer is what follows its last ``Answer:``, else its
``<response>``, else its last line; thoughts do not count. Both measures compare as SQuAD's evaluation does (lower
case, no punctuation, no English articles) and take the best of the right answers.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from pathlib import Path
from typing import Any

from restool import files
from restool.core.errors import ConfigurationError, EvaluationError
from restool.core.parsing import parse
from restool.evaluation import failures
from restool.evaluation.tasks import Source, Task

METRICS = {"correct": {"field": "correct"}, "f1": {"field": "f1", "kind": "number"}}
FORMULA = "accuracy = share of answers equal to a right one after SQuAD's normalisation; f1: mean overlap of words"

_ANSWER = re.compile(r"answer\s*:", re.I)
_NO_MEANING = str.maketrans("", "", string.punctuation)


def tasks(source: Source) -> list[Task]:
    """One task a line of the file; `EvaluationError` names the first line that is no question."""
    named = source.benchmark.questions
    if named is None:
        raise ConfigurationError(f"{source.name}: name the file of questions with --questions FILE")
    path = Path(named)
    if not path.is_file():
        raise EvaluationError(f"{path} is no file; {source.name} reads questions as JSON lines from it")
    system = source.benchmark.options.get("system", "")
    return [_task(path, number, row, system) for number, row in enumerate(files.read_json_lines(path), 1)]


def judge(task: Task, text: str) -> dict[str, Any]:
    """Exact match (``correct``) and ``f1`` of the short answer in ``text``."""
    found = short_answer(text)
    correct = any(normalised(found) == normalised(right) for right in task.expected)
    return {
        "correct": correct,
        "f1": max(f1(found, right) for right in task.expected),
        "parsed": found,
        "parse_failure": not found,
        "failure_kind": None if correct else failures.WRONG if found else failures.UNREADABLE,
        "why": None if correct else f"'{found}' is none of: {', '.join(task.expected)}" if found else "no answer",
    }


def short_answer(text: str) -> str:
    """What counts of an answer; "" where there is nothing."""
    structure = parse(text)
    spoken = structure.part(structure.response) or text.rpartition("</think>")[2]
    after = _ANSWER.split(spoken)[-1] if _ANSWER.search(spoken) else spoken
    lines = [line.strip() for line in after.splitlines() if line.strip()]
    return (lines[0] if after is not spoken else lines[-1]) if lines else ""


def normalised(text: str) -> str:
    words = text.casefold().translate(_NO_MEANING).split()
    return " ".join(word for word in words if word not in ("a", "an", "the"))


def f1(found: str, right: str) -> float:
    """Harmonic mean of the shares of words that both have."""
    ours, theirs = normalised(found).split(), normalised(right).split()
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs)) if common else float(ours == theirs)


def _task(path: Path, number: int, row: Any, system: str) -> Task:
    well_formed = isinstance(row, dict) and isinstance(row.get("question"), str)
    answers = row.get("answers") if well_formed else None
    if not (isinstance(answers, list) and answers and all(isinstance(one, str) for one in answers)):
        raise EvaluationError(f'{path}, line {number}: expected {{"id": "1", "question": "...", "answers": ["..."]}}')
    identity, category = str(row.get("id", number)), str(row.get("category", "all"))
    return Task(identity, system, row["question"], answers, category=category)
