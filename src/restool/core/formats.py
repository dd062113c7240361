"""The two published format checks. Both judge an answer by which parts its label has, and read tags only.

String searches stand for ToolRL's patterns: they decide alike, in time linear in the text, where a lazy pattern can be
made to read it over and over.
"""

from __future__ import annotations

from itertools import pairwise

_TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<response>", "</response>")


def is_ordered(text: str, has_call: bool, has_response: bool) -> bool:
    """ResT: the first occurrences of the needed tags in order; think tags may repeat, the others may not."""
    if not has_call and not has_response:
        return text.count("<think>") == 1 and text.count("</think>") == 1
    single = _TAGS[2:4] * has_call + _TAGS[4:] * has_response
    if any(text.count(tag) != 1 for tag in single):
        return False
    if not has_response and ("<response>" in text or "</response>" in text):
        return False
    positions = [text.find(tag) for tag in (*_TAGS[:2], *single)]
    return positions[0] >= 0 and all(a < b for a, b in pairwise(positions))


def is_strict(text: str, has_call: bool, has_response: bool) -> bool:
    """ToolRL: the whole text is think, newline, tool_call on lines of its own, newline, response; tags once each."""
    single = _TAGS[2:4] * has_call + _TAGS[4:] * has_response
    if any(text.count(tag) != 1 for tag in single) or not text.startswith("<think>"):
        return False
    borders = ["</think>"]
    if has_call:
        borders = ["</think>\n<tool_call>\n", "\n</tool_call>"]
    if has_response:
        borders[-1] += "\n<response>"
        borders.append("</response>")
    position = len("<think>")
    for border in borders[:-1]:
        found = text.find(border, position)
        if found < 0:
            return False
        position = found + len(border)
    return text.endswith(borders[-1]) and len(text) - len(borders[-1]) >= position
