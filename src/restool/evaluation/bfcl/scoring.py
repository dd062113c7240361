"""Answers and episodes → items and summary, with verdicts from a checker process that serves nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from restool.evaluation import contamination, failures, items
from restool.evaluation.answering import GeneratedAnswer
from restool.evaluation.bfcl import aggregates
from restool.evaluation.bfcl.checker import Checker
from restool.evaluation.bfcl.episodes import Episode
from restool.evaluation.bfcl.fenced.rules import ERROR_PREFIX
from restool.evaluation.contamination import Training
from restool.evaluation.examples import Shown

BENCHMARK = "bfcl"

Answers = Mapping[str, Mapping[str, GeneratedAnswer | Episode]]
"""Category → entry → what was answered; a multi-turn category holds episodes."""


def score(
    checker: Checker, ids: Mapping[str, Sequence[str]], found: Answers, report: Callable[[str], None]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Items of the categories of ``found``, one for each of ``ids``, and a description of what judged them."""
    rows: list[dict[str, Any]] = []
    for category, answers in found.items():
        report(f"{BENCHMARK}: scoring {category}, {len(ids[category])} answers")
        judge = episode_items if category in aggregates.MULTI_TURN else single_turn_items
        judged = judge(checker, category, {name: answers.get(name) for name in ids[category]})
        expected = checker.expected(category)
        rows += [row | {"expected": expected[row["id"]]} for row in judged]
    return list(map(explained, rows)), {**checker.description, "fence": checker.fence()}


def explained(row: dict[str, Any]) -> dict[str, Any]:
    """``row`` with its kind of failure and the checker's message as every benchmark's items have them."""
    if row["correct"]:
        return row | {"failure_kind": None, "why": None}
    where = f"turn {row['turn'] + 1}: " if row.get("turn") is not None else ""
    return row | {"failure_kind": _kind(row), "why": where + _why(row)}


_KINDS = {
    "irrelevance_error:decoder_success": failures.UNASKED,
    "relevance_error:decoder_failed": failures.NO_CALL,
    "over_length": failures.TOO_LONG[0],
    "missing": failures.MISSING[0],
}


def _kind(row: dict[str, Any]) -> str:
    """The checker's error type in words. It says "wrong count" of single-turn answers that are no calls at all."""
    told = str(row["error_type"])
    if told.endswith(("wrong_count", "decoder_failed")) and not row["calls"]:
        return failures.UNREADABLE if row["parse_failure"] else failures.NO_CALL
    plain = told.rpartition(":")[2] if "checker" in told else told
    return _KINDS.get(told) or plain.replace("_", " ").replace(":", ": ")


def _why(row: dict[str, Any]) -> str:
    told = str(row["error"] or row["error_type"])
    if row["error_type"].endswith("wrong_count") and isinstance(row["calls"], list):  # a long one is kept as text
        told += f" {len(row['calls'])} can be read, {len(row['expected'])} expected."
    return dict([failures.TOO_LONG, failures.MISSING]).get(_kind(row), told)


def shown(turns: Sequence[Sequence[dict[str, Any]]], row: dict[str, Any], given: Any) -> Shown:
    """What a reader of a wrong answer needs, beside the checker's message. ``given``: see `results.of`."""
    said = [f"<{message['role']}> {message['content']}" for turn in turns for message in turn]
    text = given if isinstance(given, str) else json.dumps(given, indent=1, ensure_ascii=False)
    return Shown("\n".join(said), readable(row["expected"]), text)


def readable(expected: Any) -> str:
    """What a row of items expects, one call a line; in multi-turn, one turn a line."""
    if isinstance(expected, str):
        return expected
    if all(isinstance(part, list) for part in expected):
        turns = (f"turn {n}: {'; '.join(calls) or 'no call'}" for n, calls in enumerate(expected, 1))
        return "\n".join(turns)
    return "\n".join(json.dumps(call, ensure_ascii=False) for call in expected)


def single_turn_items(
    checker: Checker, category: str, answers: Mapping[str, GeneratedAnswer | None]
) -> list[dict[str, Any]]:
    """The per-item rows. What was never answered (too long a prompt, missing, an error of whoever answered) is wrong
    everywhere: its text would otherwise count as a correct refusal in the irrelevance categories."""
    scored = {name: answer.text for name, answer in answers.items() if answer and _unanswered(answer) is None}
    verdicts = dict(zip(scored, checker.check(category, list(scored.items())), strict=True))
    return [
        _base(category, name, answer) | (_judged(verdicts[name]) if name in verdicts else _not_judged(answer))
        for name, answer in answers.items()
    ]


def _judged(verdict: dict[str, Any]) -> dict[str, Any]:
    told = {name: verdict[name] for name in ("error_type", "error", "calls", "failure")}
    return {"correct": verdict["correct"], "parse_failure": verdict["unreadable"], **told}


def _not_judged(answer: GeneratedAnswer | None) -> dict[str, Any]:
    kind = "missing" if answer is None else _unanswered(answer)
    failure = kind if kind == "inference_error" else None
    error = answer.text if answer and failure else None
    told = {"error_type": kind, "error": error, "calls": None, "failure": failure}
    return {"correct": False, "parse_failure": False, **told}


def _unanswered(answer: GeneratedAnswer) -> str | None:
    if answer.over_length:
        return "over_length"
    return "inference_error" if answer.text.startswith(ERROR_PREFIX) else None


def episode_items(checker: Checker, category: str, episodes: Mapping[str, Episode | None]) -> list[dict[str, Any]]:
    """The rows of multi-turn entries: ``calls`` by turn and step, ``turn`` (from 0) in which it failed, ``steps``:
    answers by turn. ``parse_failure``: at least one of its answers was unreadable."""
    there = {name: episode.result for name, episode in episodes.items() if episode}
    verdicts = dict(zip(there, checker.judge(category, list(there.items())), strict=True))
    missing = {"correct": False, "unreadable": 0, "force_quit": False, "error_type": "missing"}
    missing |= dict.fromkeys(("error", "calls", "turn", "failure"))
    return [_episode_row(category, name, e, verdicts.get(name, missing)) for name, e in episodes.items()]


def _episode_row(category: str, name: str, episode: Episode | None, verdict: dict[str, Any]) -> dict[str, Any]:
    broken = episode is not None and isinstance(episode.result, str) and not episode.over_length
    known = episode is not None and not isinstance(episode.result, str)
    return _base(category, name, episode) | {
        "correct": verdict["correct"],
        "parse_failure": verdict["unreadable"] > 0,
        **{part: verdict[part] for part in ("force_quit", "error_type", "error", "calls", "turn")},
        "failure": verdict["failure"] or (episode and episode.failure) or ("inference_error" if broken else None),
        "steps": [len(turn) for turn in episode.result] if known else [],
    }


def _base(category: str, entry: str, answer: GeneratedAnswer | Episode | None) -> dict[str, Any]:
    return {
        "id": entry,
        "category": category,
        "over_length": bool(answer and answer.over_length),
        "missing": answer is None,
        "tokens": answer.tokens if answer else 0,
        "finished": bool(answer and answer.finished),
    }


def summarize(
    rows: list[dict[str, Any]],
    judged: dict[str, Any],
    limit: int | None,
    faults: Mapping[str, str] | None = None,
    training: Training | None = None,
) -> dict[str, Any]:
    """Categories, V3 totals, V4 components; ``complete`` only if every entry of every asked category was scored.

    ``faults``: what keeps categories from being scored; they are as good as not run. ``training``: what the model was
    trained on, if the rows are marked with it.
    """
    names = list(dict.fromkeys(row["category"] for row in rows))
    categories = {name: items.category([r for r in rows if r["category"] == name]) for name in names}
    totals = aggregates.totals({name: c["accuracy"] for name, c in categories.items()}, judged["sizes"])
    return {
        "benchmark": BENCHMARK,
        "version": f"bfcl-eval {judged['bfcl_eval']}, V3 categories",
        "data_sha256": judged["data_sha256"],
        "formula": aggregates.FORMULA,
        "categories": categories,
        "aggregates": totals,
        **_statistics(rows, categories, totals, judged["sizes"], training or Training.unknown()),
        "limit": limit,
        "not_run_categories": [name for name in (*aggregates.SINGLE_TURN, *aggregates.MULTI_TURN) if name not in names],
        "missing": sum(row["missing"] for row in rows),
        "faults": dict(faults or {}),
        "fence": judged["fence"],
        "complete": not any(row["missing"] for row in rows)
        and not faults
        and all(categories[name]["n"] == judged["sizes"][name] for name in names)
        and set(names) >= set(aggregates.SINGLE_TURN),
    }


def _statistics(
    rows: list[dict[str, Any]],
    categories: Mapping[str, dict[str, Any]],
    totals: Mapping[str, float | None],
    sizes: Mapping[str, int],
    training: Training,
) -> dict[str, Any]:
    """What each total weighs, its interval, and what the model was trained on."""
    weights = items.linear_weights(lambda accuracy: aggregates.totals(accuracy, sizes), list(categories))
    whole = {name: some for name, some in weights.items() if totals[name] is not None}
    groups = {name: ([row for row in rows if row["category"] == name], "correct") for name in categories}
    return {
        "weights": whole,
        "intervals": {name: items.weighted(some, categories) for name, some in whole.items()},
        "contamination": contamination.record(rows, training, groups),
    }
