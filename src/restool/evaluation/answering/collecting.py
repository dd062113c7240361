"""The file of answers: what is there is never asked for again, what does not belong there is thrown away.

A stored answer counts only if its key fits: the source's fingerprint, the decoding settings and the prompt.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from restool import files
from restool.core.errors import EvaluationError
from restool.evaluation import items
from restool.evaluation.answering.questions import Answerer, GeneratedAnswer, Prompt, Question
from restool.settings import DecodingSettings

_PROGRESS_SECONDS = 10.0
_FIELDS = ("text", "tokens", "finished", "over_length")


def answer(model: Answerer, prompts: Sequence[Prompt], decoding: DecodingSettings, seed: int) -> list[GeneratedAnswer]:
    """One answer to each prompt, in order; what has no room for an answer comes back as ``over_length``."""
    questions = [Question(str(i), prompt) for i, prompt in enumerate(prompts)]
    found: dict[int, GeneratedAnswer] = {}
    for indices, answers in model.batches(questions, decoding, seed, set(range(len(questions)))):
        found.update(zip(indices, answers, strict=True))
    return [found[i] for i in range(len(questions))]


def collect(
    model: Answerer,
    questions: Sequence[Question],
    decoding: DecodingSettings,
    seed: int,
    path: Path,
    *,
    allow_missing: bool = False,
    report: Callable[[str], None],
) -> dict[str, GeneratedAnswer]:
    """The answer to every question, by id; ``path`` (answers.jsonl) holds those that exist and gets the new ones.

    Several sets of questions may share one file. An answer that exists is never sampled again. Questions that the
    source failed to answer are an `EvaluationError` that names them, or absent with ``allow_missing``.
    """
    keys = answer_keys(model.fingerprint, questions, decoding, seed)
    found = _stored(path, keys, report)
    missing = {i for i, question in enumerate(questions) if question.id not in found}
    if not missing:
        return found
    if found:
        report(f"{len(found)} of {len(questions)} answers are there already; generating the other {len(missing)}")
    (path.parent / "summary.json").unlink(missing_ok=True)  # it would speak of other answers than those beside it
    progress = _Progress(len(missing), report)
    failures: dict[str, str] = {}
    with files.JsonLinesWriter(path) as writer:
        for indices, answers in model.batches(questions, decoding, seed, missing):
            new = {questions[i].id: a for i, a in zip(indices, answers, strict=True) if i in missing}
            failures |= {name: answer.failure for name, answer in new.items() if answer.failure}
            whole = {name: answer for name, answer in new.items() if not answer.failure}
            writer.append(*(_row(name, keys[name], answer) for name, answer in whole.items()))
            found.update(whole)
            progress.add(len(new), sum(answer.tokens for answer in new.values()))
    if failures and not allow_missing:
        raise EvaluationError(_missing(failures, len(questions), path))
    return found


def _missing(failures: dict[str, str], total: int, path: Path) -> str:
    names = items.some(sorted(failures))
    return (
        f"{len(failures)} of {total} answers could not be had ({names}), the first: {next(iter(failures.values()))}; "
        f"the others are kept in {path}; run the same command to ask again, or --allow-missing counts them wrong"
    )


def answer_keys(
    fingerprint: str, questions: Sequence[Question], decoding: DecodingSettings, seed: int
) -> dict[str, str]:
    """What an answer depends on, hashed, by question id.

    Greedy: model, decoding, prompt. Sampled: also the seed and the whole set of questions, because the random
    numbers of a row depend on its place in its batch.
    """
    settings = decoding.model_dump(exclude={"batch_tokens"})
    shared: list[Any] = [fingerprint, settings]
    if decoding.temperature > 0:
        everything = hashlib.sha256()
        for question in questions:
            everything.update(f"{question.id}\0{_text(question.prompt)}\0".encode("utf-8", "replace"))
        shared += [seed, decoding.batch_tokens, everything.hexdigest()]
    return {q.id: files.content_hash([*shared, *q.prompt.identity()], length=16) for q in questions}


def _text(prompt: Prompt) -> str:
    return "\0".join(part if isinstance(part, str) else json.dumps(part) for part in prompt.identity())


def _row(name: str, key: str, answer: GeneratedAnswer) -> dict[str, Any]:
    return {"id": name, "key": key, **{field: getattr(answer, field) for field in _FIELDS}}


def _stored(path: Path, keys: dict[str, str], report: Callable[[str], None]) -> dict[str, GeneratedAnswer]:
    """Answers in ``path`` whose keys fit; rows that answer one of these questions under another key are removed."""
    rows = files.read_json_lines(path)
    kept = [row for row in rows if row.get("id") not in keys or row.get("key") == keys[row["id"]]]
    if len(kept) < len(rows):
        report(f"{path}: dropping {len(rows) - len(kept)} answers of another model, prompt or decoding")
        files.write_json_lines(path, kept)
    return {
        row["id"]: GeneratedAnswer(**{name: row[name] for name in _FIELDS}) for row in kept if row.get("id") in keys
    }


class _Progress:
    """A line now and then: how many, how fast, how long still."""

    def __init__(self, total: int, report: Callable[[str], None]):
        self._total, self._report = total, report
        self._done = self._tokens = 0
        self._start = self._last = time.monotonic()

    def add(self, answers: int, tokens: int) -> None:
        self._done += answers
        self._tokens += tokens
        now = time.monotonic()
        if now - self._last < _PROGRESS_SECONDS and self._done < self._total:
            return
        self._last = now
        spent = max(now - self._start, 1e-9)
        left = spent / self._done * (self._total - self._done)
        rate = self._tokens / spent
        self._report(f"answers {self._done}/{self._total}, {rate:.0f} tokens/s, {left:.0f} s left")
