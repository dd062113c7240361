"""ToolRL's parsing rules (evaluation notes, section 3), quirks included."""

from __future__ import annotations

import json

import pytest

from restool.evaluation.bfcl.fenced.decoding import TEXT_CAP, decode, executable, illegal

CALL = '{"name": "f", "parameters": {"x": 1}}'
F = [{"f": {"x": 1}}]


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        (f"<think> t </think>\n<tool_call>\n{CALL}\n</tool_call>", F),
        (f"<tool_call>\n{CALL}\n{CALL}\n</tool_call>", F * 2),
        (f"<tool_call>\n{CALL}", F),  # unclosed
        (f"<tool_call>{CALL}</tool_call>", F),  # no newlines
        (f"<tool_call>\r\n{CALL}\r\n</tool_call>", F),
        (f"<think> I use <tool_call> </think><tool_call>{CALL}</tool_call>", F),  # the last tag wins
        (f"<tool_call>{CALL}</tool_call><response> a <tool_call> </response>", []),  # also when only mentioned
        (f"<tool_call>{CALL}</tool_call><tool_call>{CALL}</tool_call>", F),  # only the last block counts
        (f"<tool_call>\nnot JSON\n{CALL}\n</tool_call>", F),
        (CALL, []),  # no tag, no call
        ('<tool_call>{"name": " NONE ", "parameters": {}}</tool_call>', []),
        ('<tool_call>{"name": "f", "arguments": {}}</tool_call>', []),
        (f"<tool_call>[{CALL}]</tool_call>", []),
        (f"<tool_call>{json.dumps(json.loads(CALL), indent=1)}</tool_call>", []),
        ("<tool_call>{'name': 'f', 'parameters': {}}</tool_call>", []),
        ('<tool_call>{"name": "f", "parameters": "x"}</tool_call>', [{"f": None}]),
        ("", []),
    ],
)
def test_calls(text, calls):
    assert decode(text).calls == calls


@pytest.mark.parametrize(
    ("text", "unreadable"),
    [
        (f"<tool_call>{CALL}</tool_call>", False),
        ("<response> no </response>", False),
        ('<tool_call>{"name": "None", "parameters": {}}</tool_call>', False),
        ("<tool_call> f(x=1) </tool_call>", True),
        ("<tool_call> f(x=1) </tool_call><response> done </response>", True),
        ("some prose", True),
        ("", True),
    ],
)
def test_unreadable_answers_are_told_from_refusals(text, unreadable):
    assert decode(text).unreadable is unreadable


def test_only_the_beginning_of_a_long_text_is_read():
    assert decode("x" * TEXT_CAP + f"<tool_call>{CALL}").calls == []
    assert decode("x" * TEXT_CAP + f"<tool_call>{CALL}").capped


@pytest.mark.parametrize(
    ("calls", "kind"),
    [
        ([{"math.factorial": {"number": 1}}], None),
        ([{"f": {"año_vehiculo": 1, "_from": 2}}], None),
        ([{"f": None}], None),
        ([{"__import__('os').system": {}}], "name"),
        ([{"f": {}}, {"f g": {}}], "name"),
        ([{"": {}}], "name"),
        ([{"f": {"x=1, y": 1}}], "parameter"),
        ([{"f": {"": 1}}], "parameter"),
        ([{"f": {"a.b": 1}}], "parameter"),
    ],
)
def test_allow_list(calls, kind):
    assert illegal(calls) == kind


def test_allow_list_passes_everything_documented(bfcl_data):
    for path in [*bfcl_data.glob("BFCL_v4_*.json"), *bfcl_data.glob("multi_turn_func_doc/*.json")]:
        if "format_sensitivity" in path.name:
            continue
        for line in path.read_text().splitlines():
            row = json.loads(line)
            for function in row.get("function", [row] if "parameters" in row else []):
                assert illegal([{function["name"]: function["parameters"]["properties"]}]) is None


@pytest.mark.parametrize(
    ("lines", "sources"),
    [
        (CALL, ["f(x=1)"]),
        (f"{CALL}\nnot JSON\n5\n{CALL}", ["f(x=1)"] * 2),
        ('{"name": "f", "parameters": {"a": "it\'s", "b": [1.0, null, true], "c": {"d": "\\n"}}}', [
            "f(a=\"it's\", b=[1.0, None, True], c={'d': '\\n'})"
        ]),
        ('{"name": "f", "arguments": {"x": 1}}', ["f()"]),
        ('{"parameters": {"x": 1}}', ["(x=1)"]),
        ('{"name": "NONE ", "parameters": {}}', []),
        ("f(x=1)", []),
    ],
)  # fmt: skip
def test_calls_that_are_run(lines, sources):
    """The handler's second decoder: a missing name or missing parameters do not stop it."""
    found = executable(f"<tool_call>\n{lines}\n</tool_call>")
    assert [source for _, _, source in found.calls] == sources
    assert not found.undecodable


@pytest.mark.parametrize(
    "value", ['"name": 5', '"name": null', '"name": "f", "parameters": [1]', '"name": "f", "parameters": null']
)
def test_a_wrong_type_makes_the_whole_answer_undecodable(value):
    found = executable(f"<tool_call>\n{CALL}\n{{{value}}}\n</tool_call>")
    assert found.undecodable
    assert found.unreadable
    assert found.calls == []
