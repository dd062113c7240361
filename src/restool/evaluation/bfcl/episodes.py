"""Multi-turn episodes, all of them advancing together: one call of the model for every round of prompts.

An episode is a generator with the semantics of bfcl_eval's `BaseHandler.inference_multi_turn_prompting`: a turn goes
on until an answer holds no call; the 21st step with calls ends the whole episode; whatever breaks an episode off
(a prompt that is too long, a call that breaks the tools) makes its result an error text, which counts as wrong and
never leaves the denominator. The tools run in the fenced worker behind `Checker`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from restool import files
from restool.evaluation import answering
from restool.evaluation.answering import GeneratedAnswer, Message, Prompt, Question
from restool.evaluation.bfcl.checker import Checker
from restool.evaluation.bfcl.fenced.rules import ERROR_PREFIX, MOST_STEPS, OVER_LENGTH
from restool.settings import DecodingSettings

_STORED = ("text", "tokens", "finished", "over_length")

Ask = Callable[[Sequence[Question]], Sequence[GeneratedAnswer]]
Prompting = Callable[[dict[str, Any], Sequence[Message]], Prompt]
"""(entry, messages so far) → the prompt to answer."""


@dataclass(frozen=True)
class Episode:
    """``result``: texts by turn and step, or the text of the error that broke it off (as the official runner writes
    it). ``failure``: what a call did to the tools (see `Checker.step`). ``unanswered``: why the source of answers had
    none, where that ended it."""

    result: list[list[str]] | str
    tokens: int = 0
    finished: bool = True
    over_length: bool = False
    failure: str | None = None
    unanswered: str | None = None


def run(
    entries: Mapping[str, Sequence[dict[str, Any]]],
    checker: Checker,
    prompting: Prompting,
    ask: Ask,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Episode]:
    """Episodes of all entries (by category), by id. ``ask`` gets the prompts of all live episodes at once."""
    live = {row["id"]: _episode(category, row, prompting) for category in entries for row in entries[category]}
    asked: dict[str, Any] = {name: next(generator) for name, generator in live.items()}
    done: dict[str, Episode] = {}
    rounds = 0

    def send(replies: Sequence[Any]) -> None:
        """Hand every episode what it waits for; it then waits for something else, or is over."""
        for name, reply in zip(list(asked), replies, strict=True):
            try:
                asked[name] = live[name].send(reply)
            except StopIteration as stop:
                done[name] = stop.value
                del asked[name]

    while asked:
        rounds += 1
        report(f"bfcl: multi-turn round {rounds}: {len(asked)} episodes under way, {len(done)} over")
        send(ask(list(asked.values())))
        send(checker.step(list(asked.values())))
    return done


Step = tuple[str, str, list[str]]


def _episode(category: str, row: dict[str, Any], prompting: Prompting) -> Generator[Question | Step, Any, Episode]:
    """Yields a question (``<entry>/<turn>/<step>``), takes its answer; yields what `Checker.step` needs, takes its
    reply; and so on in turns. Returns what came of it."""
    messages: list[Message] = []
    result: list[list[str]] = []
    called: list[str] = []
    answers: list[GeneratedAnswer] = []

    def over(result: list[list[str]] | str, failure: str | None = None) -> Episode:
        total, whole = sum(answer.tokens for answer in answers), all(answer.finished for answer in answers)
        return Episode(result, total, whole, answers[-1].over_length, failure, answers[-1].failure)

    for turn, said in enumerate(row["question"]):
        messages += said
        result.append([])
        for step in range(MOST_STEPS + 1):
            answers.append((yield Question(f"{row['id']}/{turn}/{step}", prompting(row, messages))))
            if answers[-1].over_length:
                return over(OVER_LENGTH)
            if answers[-1].failure:
                return over(f"{ERROR_PREFIX} {answers[-1].failure}")
            text = answers[-1].text
            result[-1].append(text)
            messages.append({"role": "assistant", "content": text})
            done = yield category, row["id"], [*called, text]
            if done["failure"]:
                return over(f"{ERROR_PREFIX} a call broke the tools ({done['failure']})", done["failure"])
            if not done["calls"]:
                break
            called.append(text)
            messages += (
                {"role": "tool", "name": call, "content": content}
                for call, content in zip(done["calls"], done["results"], strict=True)
            )
        else:
            return over(result)
    return over(result)


class Rounds:
    """`Ask` with a memory: every answer of every round lies in answers.jsonl under its question's name.

    After an interruption the episodes run again from their beginning, with the stored answers as long as these fit
    (same model, decoding and prompt) and the model from there on. The rounds are then the same ones, so sampled
    answers are the same too.
    """

    def __init__(self, model: answering.Answerer, decoding: DecodingSettings, seed: int, path: Path):
        self._model, self._decoding, self._seed, self._path = model, decoding, seed, path
        self._stored = {row["id"]: row for row in files.read_json_lines(path) if is_step(row["id"])}
        self._used: set[str] = set()
        self._round = 0

    def __call__(self, questions: Sequence[Question]) -> list[GeneratedAnswer]:
        seed = int(files.content_hash([self._seed, self._round]), 16)  # else all rounds draw the same random numbers
        self._round += 1
        keys = answering.answer_keys(self._model.fingerprint, questions, self._decoding, seed)
        fits = [self._stored.get(question.id, {}).get("key") == keys[question.id] for question in questions]
        missing = {i for i, fitting in enumerate(fits) if not fitting}
        found = {
            question.id: _answer(self._stored[question.id])
            for question, fit in zip(questions, fits, strict=True)
            if fit
        }
        if missing:
            found |= self._answer(questions, keys, seed, missing)
        self._used.update(keys)
        return [found[question.id] for question in questions]

    def _answer(
        self, questions: Sequence[Question], keys: dict[str, str], seed: int, missing: set[int]
    ) -> dict[str, GeneratedAnswer]:
        """Ask the model; what it fails to answer is not stored, so that it is asked again next time."""
        (self._path.parent / "summary.json").unlink(missing_ok=True)  # it would speak of other answers
        found: dict[str, GeneratedAnswer] = {}
        with files.JsonLinesWriter(self._path) as writer:
            for indices, answers in self._model.batches(questions, self._decoding, seed, missing):
                new = {questions[i].id: a for i, a in zip(indices, answers, strict=True) if i in missing}
                whole = {name: answer for name, answer in new.items() if not answer.failure}
                writer.append(*({"id": name, "key": keys[name], **_row(answer)} for name, answer in whole.items()))
                found |= new
        return found

    def tidy(self) -> None:
        """Drop stored steps that belong to no episode of this run: those of another model, prompt or decoding."""
        rows = files.read_json_lines(self._path)
        last = {row["id"]: number for number, row in enumerate(rows)}
        kept = [
            row
            for number, row in enumerate(rows)
            if not is_step(row["id"]) or (row["id"] in self._used and last[row["id"]] == number)
        ]
        if len(kept) < len(rows):
            files.write_json_lines(self._path, kept)


def is_step(name: str) -> bool:
    """Whether ``name`` names one answer of an episode (no single-turn entry has two slashes)."""
    return name.count("/") == 2


def _row(answer: GeneratedAnswer) -> dict[str, Any]:
    return {name: getattr(answer, name) for name in _STORED}


def _answer(row: dict[str, Any]) -> GeneratedAnswer:
    return GeneratedAnswer(**{name: row[name] for name in _STORED})
