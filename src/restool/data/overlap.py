"""Does a benchmark ask what a model was trained on? Hashes of questions and of sets of tools, compared.

A *question* is the whole dialogue that a prompt shows, without tags, the first line and the sentence that API-Bank
appends to every sample; a *set of tools* is the names that the prompt lists. Both are normalised (Unicode NFKC,
lower case, letters and digits only), so that spacing, tags and punctuation hide no copy. What is the same in other
words is not found.

Prepared data holds the hashes of its training rows in ``training_hashes.json``; its manifest names the file. A run's
``env.json`` says which prepared splits the run and the runs before it were trained on (``trained_on``).
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from restool import files
from restool.data.prompts import HISTORY
from restool.data.rows import Row

FILE = "training_hashes.json"
RULE = 1
"""Raise when the same text comes to have another hash."""

_TAGS = re.compile(r"</?(?:user|obs|think|tool_call|response)>")
_FIXED = "Based on our conversation above, please only make one tool call to solve my need."
_OTHER = re.compile(r"[^\w]|_", re.UNICODE)
_TOOL = re.compile(r"^\d+\. (?:Name: )?([^\n:]+?)(?:: [^\n]*)?\n(?:Description: .*?\n)?Parameters: ", re.M | re.S)


@dataclass(frozen=True)
class Content:
    """What is compared of one prompt: hash of its question, hash of its set of tools ("" where it lists none)."""

    question: str
    tools: str

    @classmethod
    def of(cls, question: str, tools: Iterable[str]) -> Content:
        names = sorted({normalised(name) for name in tools})
        return cls(_hash(normalised(question)), _hash("\n".join(names)) if names else "")

    @classmethod
    def of_prompt(cls, system: str, user: str) -> Content:
        """Of a prompt in the ``rlla`` format (system text with the list of tools, dialogue as one user text)."""
        return cls.of(dialogue(user), tool_names(system))


def normalised(text: str) -> str:
    """``text`` in NFKC and lower case, every run of other characters than letters and digits one space."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(_OTHER.sub(" ", plain).split())


def dialogue(user: str) -> str:
    """What is said in a user text of the ``rlla`` format: no tags, no first line, no fixed last sentence."""
    return _TAGS.sub(" ", user.lstrip("*").removeprefix(HISTORY.lstrip("*"))).replace(_FIXED, " ")


def tool_names(system: str) -> list[str]:
    """The names of the tools that a system text lists, in either published form (``1. Name: x`` and ``1. x: …``)."""
    return [match.strip() for match in _TOOL.findall(system)]


def write(folder: Path, splits: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """Write the hashes of these training splits; returns what the manifest says of them."""
    hashes = {name: _distinct(rows) for name, rows in splits.items()}
    files.write_text(folder / FILE, json.dumps({"rule": RULE, "splits": hashes}, separators=(",", ":")))
    counts = {name: {"rows": len(splits[name]), "distinct": len(found)} for name, found in hashes.items()}
    return {"file": FILE, "sha256": files.sha256(folder / FILE), "rule": RULE, "splits": counts}


def _distinct(rows: Sequence[Row]) -> list[list[str]]:
    found = {Content.of_prompt(row.system, row.user) for row in rows}
    return sorted([content.question, content.tools] for content in found)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:12]
