"""The same corpus read in the models' own formats."""

from __future__ import annotations

import json

import pytest

from restool import environments
from restool.evaluation.bfcl.checker import Checker

RIGHT = {"name": "calculate_triangle_area", "arguments": {"base": 10, "height": 5, "unit": "units"}}


@pytest.fixture(scope="module", autouse=True)
def _environment():
    environments.build("bfcl")


def _as_llama(text: str) -> str:
    """What stands between the tags, as a Llama model would write it."""
    return "<|python_tag|>" + text.rpartition("<tool_call>")[2].partition("</tool_call>")[0].strip()


def test_no_answer_breaks_the_native_reader(hostile, pwned):
    code = f"__import__('pathlib').Path({str(pwned)!r}).touch()"
    texts = [form for text in hostile.values() for form in (text, _as_llama(text))]
    texts += [f"[{code}]", f"<|python_tag|>{code}", f"[(lambda: {code})()]", f"{{'name': {code}, 'parameters': {{}}}}"]
    texts += ["[" * 60_000, "{" * 60_000, "<tool_call>\n" * 5400, "-" * 65_000 + "1", "[" + "1," * 30_000 + "]"]
    right = f"<tool_call>\n{json.dumps(RIGHT)}\n</tool_call>"
    with Checker(["simple_python"], format="native") as checker:
        entry = checker.entries("simple_python")[0]["id"]
        verdicts = checker.check("simple_python", [(entry, text) for text in texts])
        assert not any(verdict["correct"] for verdict in verdicts)
        assert checker.check("simple_python", [(entry, right)])[0]["correct"]
        assert checker.restarts <= 3
