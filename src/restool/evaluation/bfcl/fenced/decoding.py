"""From an answer's text to calls, by the rules of ToolRL's BFCL handler (its `benchmarks/BFCL/rlla_qwen.py`).

Those rules have quirks that decide scores; they are kept and named here: the last ``<tool_call>`` wins, also one
that is only mentioned; an unclosed block counts; a line that is no JSON is skipped; the name "none" is no call.
Standard library only: this runs in the ``bfcl`` environment too.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

TEXT_CAP = 64 * 1024
"""Characters of an answer that are read: 1 MB of broken lines costs a second of parsing, 64 k a few hundredths."""

_NAME = re.compile(r"[A-Za-z_][\w.]{0,255}")
_IDENTIFIER = re.compile(r"[A-Za-z_]\w{0,255}")


@dataclass
class Decoded:
    """``calls``: ``[{name: parameters}]`` as the official checker takes them.

    ``unreadable``: the answer holds neither a readable call nor a response to the user, or a call block from
    which nothing could be read. ``declined``: calls named "none", the prompt's way to say that no tool fits.
    """

    calls: list[dict[str, Any]] = field(default_factory=list)
    capped: bool = False
    declined: int = 0
    bad_lines: int = 0
    unreadable: bool = False


def decode(text: str) -> Decoded:
    """Read the calls of one answer. Never raises, whatever the text."""
    decoded = Decoded(capped=len(text) > TEXT_CAP)
    text = clean(text[:TEXT_CAP])
    if "<tool_call>" not in text:
        decoded.unreadable = "<response>" not in text
        return decoded
    for line in text.split("<tool_call>")[-1].split("</tool_call>")[0].strip().split("\n"):
        _read_line(line, decoded)
    decoded.unreadable = not decoded.calls and not decoded.declined
    return decoded


def _read_line(line: str, decoded: Decoded) -> None:
    try:
        value = clean(json.loads(line))
        name = value["name"]
        if name.strip().lower() == "none":
            decoded.declined += 1
        else:
            # Parameters of a wrong type are kept: the official format check then rejects the whole answer.
            parameters = value["parameters"]
            decoded.calls.append({name: parameters if isinstance(parameters, dict) else None})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, MemoryError):
        decoded.bad_lines += 1


@dataclass
class Executable:
    """The calls of one answer as the multi-turn loop runs them: ``(name, parameters, source text)``.

    ``undecodable``: the handler's decoder raises on this answer, which ends the turn just as no calls do.
    """

    calls: list[tuple[str, dict[str, Any], str]] = field(default_factory=list)
    undecodable: bool = False
    unreadable: bool = False


def executable(text: str) -> Executable:
    """Read the calls of one answer by the handler's second decoder, which differs from the first in its quirks:

    a missing name is the empty name, missing parameters (also misspelled ones, ``arguments``) are none, and a name or
    parameters of a wrong type make the whole answer undecodable. Never raises.
    """
    text = clean(text[:TEXT_CAP])
    found = Executable()
    if "<tool_call>" not in text:
        found.unreadable = "<response>" not in text
        return found
    declined = 0
    for line in text.split("<tool_call>")[-1].split("</tool_call>")[0].strip().split("\n"):
        value = _json_object(line)
        if value is None:
            continue
        name, parameters = value.get("name", ""), value.get("parameters", {})
        if isinstance(name, str) and name.strip().lower() == "none":
            declined += 1
        elif isinstance(name, str) and isinstance(parameters, dict) and (text_of := source(name, parameters)):
            found.calls.append((name, parameters, text_of))
        else:
            return Executable(undecodable=True, unreadable=True)
    found.unreadable = not found.calls and not declined
    return found


def _json_object(line: str) -> dict[str, Any] | None:
    try:
        value = clean(json.loads(line))
    except (ValueError, RecursionError, MemoryError):
        return None
    return value if isinstance(value, dict) else None


def source(name: str, parameters: dict[str, Any]) -> str | None:
    """The call as Python text, as the handler writes it; None where it cannot be written (nested too deep)."""
    try:
        return f"{name}({', '.join(f'{key}={value!r}' for key, value in parameters.items())})"
    except (ValueError, RecursionError, MemoryError):
        return None


def clean(value: Any) -> Any:
    """Replace lone surrogates, which no file can hold, in a string or all through a JSON value.

    A JSON escape can smuggle them into a decoded value although the text itself was clean.
    """
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, list):
        return [clean(item) for item in value]
    if isinstance(value, dict):
        return {clean(key): clean(item) for key, item in value.items()}
    return value


def illegal(calls: list[dict[str, Any]]) -> str | None:
    """What in ``calls`` no documented function can have: ``"name"``, ``"parameter"`` or None.

    Nothing that fails this may come near an ``eval``; every name and parameter in BFCL's documents passes.
    """
    for call in calls:
        for name, parameters in call.items():
            if not _NAME.fullmatch(name):
                return "name"
            if any(not legal_key(key) for key in parameters or ()):
                return "parameter"
    return None


def legal_key(key: str) -> bool:
    """Whether ``key`` may stand as a parameter's name."""
    return _IDENTIFIER.fullmatch(key) is not None
