"""Why an answer is wrong: a kind, to be counted, and one sentence, to be read.

Nothing here decides a score; each benchmark's own rules do. This says what stands between an answer and the expected
calls, looking at the first difference only: number of calls, tool names, argument names, argument values.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from restool.core.parsing import parse

Call = dict[str, Any]
"""``{"name", "parameters"}``."""

Reason = tuple[str, str]
"""Kind and sentence."""

TOO_LONG = ("prompt too long", "the prompt left no room for an answer, so it was never asked")
MISSING = ("missing", "there is no answer")
UNREADABLE = "unreadable"
NO_CALL = "no call"
UNASKED = "call not asked for"
COUNT = "number of calls"
NAME = "tool name"
ARGUMENT_NAMES = "argument names"
ARGUMENT_VALUES = "argument values"
FORMAT = "format"
WRONG = "wrong answer"

_SHOWN = 80


def calls_of(text: str) -> list[Call]:
    """The tool calls of an answer as far as they can be read; never raises."""
    answer = parse(text)
    found = []
    for call in answer.calls:
        try:
            parameters = json.loads(answer.part(call.arguments)) if call.arguments else None
        except (ValueError, RecursionError):
            parameters = None
        found.append({"name": answer.part(call.name) if call.name else None, "parameters": parameters})
    return found


def difference(found: Sequence[Call], expected: Sequence[Call]) -> Reason | None:
    """The first difference between the calls of an answer and those expected; None where there is none."""
    if found and not expected:
        return UNASKED, f"calls {_names(found)}, where no tool is to be called"
    if expected and not found:
        return NO_CALL, f"calls nothing, where {_names(expected)} is to be called"
    if len(found) != len(expected):
        return COUNT, f"{len(found)} calls ({_names(found)}), expected {len(expected)} ({_names(expected)})"
    if Counter(str(call.get("name")) for call in found) != Counter(str(call.get("name")) for call in expected):
        return NAME, f"calls {_names(found)}, expected {_names(expected)}"
    for call, right in zip(found, expected, strict=True):
        given, wanted = call.get("parameters"), right["parameters"]
        if not isinstance(given, dict):
            return ARGUMENT_NAMES, f"{call.get('name')}: its arguments are no object"
        if call.get("name") == right["name"] and given != wanted:
            return _arguments(str(call["name"]), given, wanted)
    return None if list(found) == list(expected) else (WRONG, "the same calls with other arguments")


def _arguments(name: str, given: dict[str, Any], wanted: dict[str, Any]) -> Reason:
    if given.keys() != wanted.keys():
        lacking, extra = (", ".join(sorted(map(str, keys))) for keys in (wanted.keys() - given, given.keys() - wanted))
        told = [f"lacks {lacking}"] if lacking else []
        told += [f"has {extra} too many"] if extra else []
        return ARGUMENT_NAMES, f"{name} {' and '.join(told)}"
    key = next(key for key in wanted if given[key] != wanted[key])
    return ARGUMENT_VALUES, f"{name}: {key} is {_short(given[key])}, expected {_short(wanted[key])}"


def _names(calls: Sequence[Call]) -> str:
    return ", ".join(str(call.get("name")) for call in calls[:5]) + (", ..." if len(calls) > 5 else "")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
