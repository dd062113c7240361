"""The released span rules, written a second time with plain patterns and loops, against the fast implementation."""

from __future__ import annotations

import re
from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from restool.core import released

PIECES = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<response>", "</response>", "<toolcall>"]
PIECES += [
    "</toolcall>",
    '{"name": "',
    "ab_cd",
    '", "parameters": ',
    '{"x": "y}"}',
    "}",
    "{",
    '"',
    "\\",
    "\n",
    " ",
    ",",
]
PIECES += ['"arguments" : ', '"name" :', '"parameters":{', ": ", "é", "word"]
BLOCK = "<think> {} </think>\n<tool_call>\n{}\n</tool_call>{}"
part = st.lists(st.sampled_from(PIECES), max_size=8).map("".join)
text = st.one_of(st.lists(st.sampled_from(PIECES), max_size=25).map("".join), st.builds(BLOCK.format, part, part, part))


def spans_by_pattern(text: str, step: float) -> list[tuple[float, int, int]]:
    found = []
    for tag in ("think", "response", "tool_call"):
        for match in re.finditer(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL):
            found += [(1.0, match.start(), match.start(1)), (1.0, match.end(1), match.end())]
            if tag == "think":
                found.append((min(0.6 + 0.002 * step, 1.0), *match.span(1)))
    for block in re.finditer("(?:<tool_call>|<toolcall>)(.*?)(?:</tool_call>|</toolcall>)", text, re.DOTALL):
        if name := re.search(r'"name"\s*:\s*"([^"]+)"', block[1]):
            found.append((1.2, block.start(1) + name.start(1), block.start(1) + name.end(1)))
        if key := re.search(r'"(?:arguments|parameters)"\s*:\s*', block[1]):
            start = block[1].find("{", key.end())
            end = closing_brace(block[1], start) if start >= 0 else None
            if end is not None:
                found.append((min(0.6 + 0.002 * step, 1.2), block.start(1) + start, block.start(1) + end))
    return found


def closing_brace(text: str, start: int) -> int | None:
    depth, quoted, escaped = 0, False, False
    for place in range(start, len(text)):
        letter = text[place]
        if quoted:
            quoted = escaped or letter != '"'
            escaped = not escaped and letter == "\\"
        elif letter == '"':
            quoted = True
        else:
            depth += (letter == "{") - (letter == "}")
            if depth == 0:
                return place + 1
    return None


def weights_by_loop(text: str, pairs: list[tuple[int, int]], width: int, step: float) -> tuple[torch.Tensor, int]:
    raw_T, crashes = torch.zeros(width), 0
    for value, start, end in spans_by_pattern(text, step):
        low = next((i for i, (begin, _) in enumerate(pairs) if begin >= start), None)
        if low is None:
            crashes += 1
            continue
        high = max(low + 1, next((i for i, (_, stop) in enumerate(pairs) if stop >= end), len(pairs)))
        try:
            raw_T[low:high] = raw_T[low:high].maximum(torch.full((high - low,), value))
        except RuntimeError:
            crashes += 1
            raw_T[low:] = raw_T[low:].clamp(min=value)
    return raw_T, crashes


@settings(max_examples=150, deadline=None)
@given(text, st.lists(st.floats(0, 1), max_size=25), st.integers(0, 400), st.integers(0, 12))
def test_fast_rules_equal_plain_ones(text: str, cuts: list[float], step: int, missing: int) -> None:
    bounds = sorted({0, len(text), *(round(cut * len(text)) for cut in cuts)})
    pairs = list(pairwise(bounds))
    width = max(len(pairs) - missing, 0) if missing > 8 else len(pairs)
    expected_T, crashes = weights_by_loop(text, pairs, width, step)
    raw_BT, crashes_B = released.raw_weights([text], [torch.tensor(pairs).reshape(-1, 2)], width, step)
    assert torch.equal(raw_BT[0], expected_T)
    assert int(crashes_B) == crashes
