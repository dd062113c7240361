"""Wrong answers worth reading: a few of every kind of failure, with the end of the prompt and what was expected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

PER_KIND = 3
PROMPT_TAIL = 700
ANSWER_CAP = 2000

Row = dict[str, Any]


@dataclass(frozen=True)
class Shown:
    """What belongs to a row of items: the user's text, what would have been right, what was answered."""

    prompt: str
    expected: Any
    answer: str


def choose(rows: Sequence[Row], shown: Sequence[Shown]) -> list[Row]:
    """Up to `PER_KIND` examples of every ``failure_kind``, the most frequent kind first.

    Of one kind: the lowest reward first where items have one (``total``), from different categories if there are.
    """
    wrong = [(row, one) for row, one in zip(rows, shown, strict=True) if row.get("failure_kind")]
    counts = Counter(row["failure_kind"] for row, _ in wrong)
    chosen: list[Row] = []
    for kind, count in counts.most_common():
        of_kind = sorted((pair for pair in wrong if pair[0]["failure_kind"] == kind), key=_badness)
        for row, one in _varied(of_kind)[:PER_KIND]:
            chosen.append(_example(row, one) | {"of": count})
    return chosen


def _badness(pair: tuple[Row, Shown]) -> float:
    return float(pair[0].get("total") or 0.0)


def _varied(pairs: list[tuple[Row, Shown]]) -> list[tuple[Row, Shown]]:
    """First one of every category, then the rest."""
    seen: set[str] = set()
    first = [pair for pair in pairs if not (pair[0]["category"] in seen or seen.add(pair[0]["category"]))]
    taken = {id(row) for row, _ in first}
    return first + [pair for pair in pairs if id(pair[0]) not in taken]


def _example(row: Row, one: Shown) -> Row:
    return {
        "id": row["id"],
        "category": row["category"],
        "kind": row["failure_kind"],
        "why": row["why"],
        "prompt_tail": one.prompt[-PROMPT_TAIL:],
        "answer": one.answer[:ANSWER_CAP],
        "answer_characters": len(one.answer),
        "expected": one.expected,
    }
