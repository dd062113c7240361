"""BFCL's official result layout: ``result/<name>/<group>/BFCL_v4_<category>_result.json``, rows ``{"id", "result"}``.

Written beside our own files, so that anyone can run the official ``bfcl evaluate`` on the same answers; read when
answers come from elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from restool import files
from restool.core.errors import EvaluationError
from restool.evaluation.bfcl.aggregates import LIVE, MULTI_TURN


def write(out: Path, texts: Mapping[str, Mapping[str, str]]) -> None:
    """``texts``: category → id → answer."""
    for category, rows in texts.items():
        path = out / "result" / "restool" / _group(category) / f"BFCL_v4_{category}_result.json"
        files.write_json_lines(path, [{"id": name, "result": text} for name, text in rows.items()])


def read(folder: Path, categories: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Rows of each category's result file below ``folder``; a missing or malformed file is an `EvaluationError`."""
    if not folder.is_dir():
        raise EvaluationError(f"{folder} is no folder; --answers takes BFCL's official result layout")
    return {category: _rows(folder, category) for category in categories}


def _rows(folder: Path, category: str) -> list[dict[str, Any]]:
    found = sorted(folder.rglob(f"BFCL_v4_{category}_result.json"))
    if len(found) != 1:
        problem = "no" if not found else "more than one"
        raise EvaluationError(f"{folder}: {problem} file BFCL_v4_{category}_result.json; name one run's folder")
    rows = files.read_json_lines(found[0])
    for number, row in enumerate(rows, 1):
        if not (isinstance(row, dict) and isinstance(row.get("id"), str) and isinstance(row.get("result"), str)):
            raise EvaluationError(f'{found[0]}, line {number}: expected {{"id": "...", "result": "text"}}')
    return rows


def _group(category: str) -> str:
    return "live" if category in LIVE else "multi_turn" if category in MULTI_TURN else "non_live"
