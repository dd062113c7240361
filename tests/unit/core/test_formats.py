"""The strict check against ToolRL's own patterns, on answers that nearly fit."""

from __future__ import annotations

import re
from itertools import product

from restool.core import formats

PARTS = ["<think>", "</think>", "\n", "<tool_call>", "</tool_call>", "x", "<response>", "</response>"]
PATTERNS = {
    (True, False): r"^<think>.*?</think>\n<tool_call>\n.*?\n</tool_call>$",
    (False, True): r"^<think>.*?</think>\n<response>.*?</response>$",
    (True, True): r"^<think>.*?</think>\n<tool_call>\n.*?\n</tool_call>\n<response>.*?</response>$",
    (False, False): r"^<think>.*?</think>$",
}
HEADS = ["<think></think>\n", "<think>\n</think>\n", "<think>", "x<think></think>", "<think></think>\n<tool_call>\n"]
TAILS = ["", "\n</tool_call>", "</tool_call>", "</response>", "\n</tool_call>\n<response></response>"]


def by_pattern(text: str, has_call: bool, has_response: bool) -> bool:
    single = ["<tool_call>", "</tool_call>"] * has_call + ["<response>", "</response>"] * has_response
    found = re.search(PATTERNS[has_call, has_response], text, re.DOTALL)
    return bool(found) and all(text.count(tag) == 1 for tag in single)


def test_strict_check_equals_the_published_patterns() -> None:
    agreed = {True: 0, False: 0}
    for head, middle, tail in product(HEADS, product(PARTS, repeat=3), TAILS):
        text = (head + "".join(middle) + tail).strip()
        for has_call, has_response in PATTERNS:
            expected = by_pattern(text, has_call, has_response)
            assert formats.is_strict(text, has_call, has_response) == expected, text
            agreed[expected] += 1
    assert min(agreed.values()) > 50
