"""Answers as a model would write them, made from BFCL's ground truth."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

DONE = "<think> x </think>\n<response> Done. </response>"


def multi_turn_oracle(data: Path, category: str) -> dict[str, list[list[str]]]:
    """All calls of a turn in one answer, then an answer without calls."""
    truths = read_rows(data / "possible_answer" / f"BFCL_v4_{category}.json")
    order = parameter_order(data)
    return {
        truth["id"]: [
            [answer([json_call(call, order) for call in turn])] * bool(turn) + [DONE] for turn in truth["ground_truth"]
        ]
        for truth in truths
    }


def parameter_order(data: Path) -> dict[str, list[str]]:
    """Function → its parameters in order: some official calls give them by position."""
    documents = [row for path in sorted((data / "multi_turn_func_doc").glob("*.json")) for row in read_rows(path)]
    return {row["name"]: list(row["parameters"]["properties"]) for row in documents}


def json_call(source: str, order: dict[str, list[str]]) -> dict[str, Any]:
    """A call of the official ground truth as a model writes it."""
    call = ast.parse(source, mode="eval").body
    assert isinstance(call, ast.Call)
    name = ast.unparse(call.func)
    given = dict(zip(order[name], map(ast.literal_eval, call.args), strict=False))
    given |= {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    return {"name": name, "parameters": given}


def answer(calls: list[dict[str, Any]]) -> str:
    return "<think> x </think>\n<tool_call>\n" + "\n".join(map(json.dumps, calls)) + "\n</tool_call>"


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
