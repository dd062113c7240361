"""BFCL's official result layout: ``result/<name>/<group>/BFCL_v4_<category>_result.json``, rows ``{"id", "result"}``.

``result`` is the text of a single-turn answer; in multi-turn, a list of turns, each the list of its answers' texts, or
the text of the error that broke the episode off. Written beside our own files, so that anyone can run the official
``bfcl evaluate`` on the same answers; read when answers come from elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from restool import files
from restool.core.errors import EvaluationError
from restool.evaluation import given
from restool.evaluation.answering import GeneratedAnswer
from restool.evaluation.bfcl.aggregates import LIVE, MULTI_TURN
from restool.evaluation.bfcl.episodes import Episode
from restool.evaluation.bfcl.fenced.rules import OVER_LENGTH

Answer = GeneratedAnswer | Episode


def write(out: Path, found: Mapping[str, Mapping[str, Any]]) -> None:
    """``found``: category → id → result (see `of`)."""
    for category, rows in found.items():
        path = out / "result" / "restool" / group(category) / f"BFCL_v4_{category}_result.json"
        files.write_json_lines(path, [{"id": name, "result": result} for name, result in rows.items()])


def of(answer: Answer) -> Any:
    """An answer or episode as its row's ``result``."""
    if isinstance(answer, Episode):
        return answer.result
    return OVER_LENGTH if answer.over_length else answer.text


def read(
    folder: Path, ids: Mapping[str, Sequence[str]], *, allow_missing: bool
) -> tuple[dict[str, dict[str, Answer]], dict[str, str]]:
    """(answers, faults) by category: a category is in one of the two.

    A fault says all that is wrong with a category's file: not there, rows that are cut off, malformed, duplicate,
    unknown or missing. ``allow_missing``: rows that are missing or cut off are no fault.
    """
    if not folder.is_dir():
        raise EvaluationError(f"{folder} is no folder; --answers takes BFCL's official result layout")
    found: dict[str, dict[str, Answer]] = {}
    faults: dict[str, str] = {}
    for category, wanted in ids.items():
        try:
            rows = _rows(_only(folder, category), category, wanted, allow_missing)
        except EvaluationError as error:
            faults[category] = str(error)
        else:
            found[category] = {row["id"]: _answer(category, row["result"]) for row in rows}
    return found, faults


def group(category: str) -> str:
    """The folder of a category's files."""
    return "live" if category in LIVE else "multi_turn" if category in MULTI_TURN else "non_live"


def _answer(category: str, result: Any) -> Answer:
    over = result == OVER_LENGTH
    if category in MULTI_TURN:
        return Episode(result, over_length=over)
    return GeneratedAnswer("" if over else result, 0, True, over_length=over)


def _only(folder: Path, category: str) -> Path:
    found = sorted(folder.rglob(f"BFCL_v4_{category}_result.json"))
    if len(found) != 1:
        problem = "no" if not found else "more than one"
        raise EvaluationError(f"{folder}: {problem} file BFCL_v4_{category}_result.json; name one run's folder")
    return found[0]


def _rows(path: Path, category: str, wanted: Sequence[str], allow_missing: bool) -> list[dict[str, Any]]:
    shape = f'{{"id": "...", "result": {"[[text, ...], ...]" if category in MULTI_TURN else "text"}}}'
    return given.read(path, wanted, shape, lambda row: _fits(category, row.get("result")), allow_missing=allow_missing)


def _fits(category: str, result: Any) -> bool:
    if isinstance(result, str):
        return True
    return (
        category in MULTI_TURN
        and isinstance(result, list)
        and all(isinstance(turn, list) and all(isinstance(text, str) for text in turn) for turn in result)
    )
