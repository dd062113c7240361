"""Synthetic rows in BFCL's own file format, so that the official checker can score them.

Format of bfcl-eval 2026.3.23: a question file and a ground-truth file per category, one JSON object a line. Our
entries have one more key, ``row``, the id of the row that they were made from.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from restool import files
from restool.data.library import TOOLS, Tool
from restool.data.overlap import Content, dialogue
from restool.data.prompts import HISTORY
from restool.data.rows import Row

FOLDER = "bfcl_synthetic"
ANSWERS = "possible_answer"


def write(rows: list[Row], prepared: Path) -> dict[str, int]:
    """Write ``prepared/bfcl_synthetic/<category>.jsonl`` and ``possible_answer/<category>.jsonl`` below it.

    Irrelevance has no ground-truth file, as in BFCL. Returns the number of entries by category.
    """
    entries: dict[str, list[dict[str, Any]]] = {}
    answers: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        name = category(row)
        identity = f"{name}_{len(entries.setdefault(name, []))}"
        functions = [function(TOOLS[tool]) for tool in row.meta["listed"]]
        entries[name].append({"id": identity, "question": [_messages(row)], "function": functions, "row": row.id})
        if row.meta["calls"]:
            truth = [possible_answer(call) for call in row.meta["calls"]]
            answers.setdefault(name, []).append({"id": identity, "ground_truth": truth, "row": row.id})
    for name in sorted(entries):
        files.write_json_lines(prepared / FOLDER / f"{name}.jsonl", entries[name])
        if name in answers:
            files.write_json_lines(prepared / FOLDER / ANSWERS / f"{name}.jsonl", answers[name])
    return {name: len(entries[name]) for name in sorted(entries)}


def content(entry: dict[str, Any]) -> Content:
    """Question and tools of an entry in BFCL's format, to find it in training data: system messages do not count."""
    said = [message["content"] for turn in entry["question"] for message in turn if message["role"] != "system"]
    return Content.of(dialogue(" ".join(said)), [function["name"] for function in entry["function"]])


def category(row: Row) -> str:
    """BFCL's category: by the number of right calls, of different tools called and of tools listed."""
    called = [call["name"] for call in row.meta["calls"]]
    if not called:
        return "irrelevance"
    if len(called) > 1:
        return "parallel" if len(set(called)) == 1 else "parallel_multiple"
    return "simple_python" if len(row.meta["listed"]) == 1 else "multiple"


def function(tool: Tool) -> dict[str, Any]:
    """The function document of a tool. No parameter is required, because requests may leave one unmentioned."""
    properties = {
        p.name: {"type": "integer" if p.is_number else "string", "description": p.phrase.format(p.name)}
        for p in tool.parameters
    }
    parameters = {"type": "dict", "properties": properties, "required": []}
    return {"name": tool.name, "description": tool.request.capitalize() + ".", "parameters": parameters}


def possible_answer(call: dict[str, Any]) -> dict[str, Any]:
    """A right call as lists of accepted values; an unmentioned parameter must be left out (only "" accepted)."""
    given = call["parameters"]
    return {call["name"]: {p.name: [given.get(p.name, "")] for p in TOOLS[call["name"]].parameters}}


def _messages(row: Row) -> list[dict[str, str]]:
    question = {"role": "user", "content": row.meta["question"]}
    earlier = row.meta["earlier"]
    if not earlier:
        return [question]
    answer, _, result = row.user.partition("</user>\n\n")[2].partition("</tool_call>\n<obs> ")
    return [
        {"role": "user", "content": earlier["question"]},
        {"role": "assistant", "content": answer + "</tool_call>"},
        {"role": "tool", "name": earlier["name"], "content": result.partition(" </obs>")[0]},
        question,
    ]


def user_text(messages: list[dict[str, str]]) -> str:
    """The user message that :func:`write` made ``messages`` from."""
    turns = []
    for message in messages:
        if message["role"] == "user":
            turns.append(f"<user> {message['content']} </user>")
        elif message["role"] == "tool":
            turns[-1] += f"\n<obs> {message['content']} </obs>"
        else:
            turns.append(message["content"])
    return HISTORY + "\n\n".join(turns)
