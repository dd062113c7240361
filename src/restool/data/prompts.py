"""The system prompt as a skeleton around a list of tools.

The skeleton is extracted from a data set's own rows, so that prompts of other benchmarks are identical to the
training prompts by construction.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from restool.core.errors import DataError

SLOT = "{{TOOLS}}"
"""Stands in a skeleton where the list of tools goes."""

HISTORY = "**Dialogue Records History**\n"
"""First line of every user message."""

_FIRST_ENTRY = re.compile(r"1\. ")
_ENTRY_BREAK = re.compile(r"\n(?=\d+\. Name: )")
_ENTRY = re.compile(r"(\d+)\. Name: (.*?)\nDescription: (.*?)\nParameters: (\{.*\})", re.S)


def fill(skeleton: str, tools: str) -> str:
    """The system prompt with ``tools`` (the rendered list) in its place."""
    return skeleton.replace(SLOT, tools, 1)


def tool_text(number: int, name: str, description: str, parameters: dict[str, Any]) -> str:
    """One tool in the published form; ``parameters`` maps names to {description, type, default}."""
    return f"{number}. Name: {name}\nDescription: {description}\nParameters: {json.dumps(parameters)}"


def system_prompt(skeleton: str, tools: Iterable[tuple[str, str, dict[str, Any]]]) -> str:
    """The system prompt for ``tools``, each (name, description, parameters)."""
    return fill(skeleton, "\n".join(tool_text(i, *tool) for i, tool in enumerate(tools, 1)))


def extract_skeleton(systems: Sequence[str], source: str) -> str:
    """The one skeleton that reproduces all ``systems``; :class:`DataError` naming ``source`` if there is none.

    What all prompts share before and after their tool lists is the skeleton, cut to whole lines: the last common
    line start and the first common line end.
    """
    distinct = sorted(set(systems))
    if len(distinct) < 2:
        raise DataError(f"{source}: the prompt skeleton needs prompts with at least two different tool lists")
    prefix = _shared_start(distinct)
    head = prefix[: prefix.rfind("\n") + 1]
    suffix = _shared_start(sorted(system[len(head) :][::-1] for system in distinct))[::-1]
    cut = suffix.find("\n")
    tail = suffix[cut:] if cut >= 0 else ""
    skeleton = head + SLOT + tail
    for system in distinct:
        tools = tool_list(skeleton, system)
        if tools is None or not _FIRST_ENTRY.match(tools):
            raise DataError(f"{source}: the prompts do not share one skeleton around a numbered list of tools")
    return skeleton


def tool_list(skeleton: str, system: str) -> str | None:
    """The rendered tool list of ``system``, or None if it was not made from ``skeleton``."""
    head, _, tail = skeleton.partition(SLOT)
    if not (system.startswith(head) and system.endswith(tail) and len(system) >= len(head) + len(tail)):
        return None
    return system[len(head) : len(system) - len(tail)]


def read_tools(tools: str) -> list[tuple[str, str, dict[str, Any]]] | None:
    """(name, description, parameters) of a rendered list of tools; None if rendering them does not give it back."""
    found = []
    for entry in _ENTRY_BREAK.split(tools):
        match = _ENTRY.fullmatch(entry)
        try:
            parameters = json.loads(match[4]) if match else None
        except ValueError:
            parameters = None
        if not isinstance(parameters, dict):
            return None
        found.append((match[2], match[3], parameters))
    again = "\n".join(tool_text(number, *tool) for number, tool in enumerate(found, 1))
    return found if again == tools else None


def _shared_start(ordered: Sequence[str]) -> str:
    """The longest common prefix of sorted texts: that of the first and the last."""
    pairs = enumerate(zip(ordered[0], ordered[-1], strict=False))
    return ordered[0][: next((i for i, (a, b) in pairs if a != b), min(len(ordered[0]), len(ordered[-1])))]
