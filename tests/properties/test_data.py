from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from restool.data import synthetic
from restool.data.prompts import SLOT, extract_skeleton, fill, read_tools, system_prompt, tool_list
from restool.data.rlla import read_calls
from restool.data.rows import tool_label

META = {
    "opportunities": ["name", "think", "arguments"],
    "calls": [
        {
            "name": "book_hotel",
            "parameters": {"city": "Rome", "date": "Dec 25", "guests": 2},
            "aliases": {"date": "christmas"},
        }
    ],
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
PIECES = st.sampled_from(
    [
        "<think>",
        "</think>",
        "<tool_call>",
        "</tool_call>",
        "\n",
        '{"name": "book_hotel", "parameters": {',
        "}}",
        "[[",
        "\ud83d",
    ]
)


@given(st.lists(PIECES | st.text(max_size=20), max_size=20).map("".join))
def test_no_answer_makes_rightness_raise(text):
    assert set(synthetic.rightness(META, text)) == {"name", "think", "arguments"}


@given(st.lists(JSON, max_size=3))
def test_no_json_makes_rightness_raise(values):
    block = "\n".join(json.dumps(value) for value in values)
    result = synthetic.rightness(META, f"<tool_call>\n{block}\n</tool_call>")
    assert all(isinstance(value, bool) for value in result.values())


def test_hostile_nesting_and_size_do_not_raise():
    assert not synthetic.rightness(META, "<tool_call>" + "[" * 100_000)["name"]
    assert not synthetic.rightness(META, "<tool_call>\n" + '{"a":' * 100_000 + "\n</tool_call>")["name"]
    assert not synthetic.rightness(META, "<tool_call>" + "9" * 1_000_000)["name"]


LINE = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)
PARAMETERS = st.dictionaries(LINE, st.fixed_dictionaries({"description": LINE, "type": LINE}), max_size=3)
TOOLS = st.lists(st.tuples(LINE, LINE, PARAMETERS), min_size=1, max_size=4)


@settings(max_examples=60)
@given(st.lists(TOOLS, min_size=2, max_size=5, unique_by=repr))
def test_the_skeleton_of_rendered_prompts_renders_them_again(lists):
    skeleton = f"Preamble.\n\n**Tools**\n{SLOT}\n\n**Steps**\nThe end."
    prompts = [system_prompt(skeleton, tools) for tools in lists]
    found = extract_skeleton(prompts, "test")
    for prompt, tools in zip(prompts, lists, strict=True):
        rendered = tool_list(found, prompt)
        assert fill(found, rendered) == prompt
        if found == skeleton:  # by chance, all lists may share their first or last lines
            assert read_tools(rendered) == tools


@given(st.lists(st.tuples(st.text(), st.dictionaries(st.text(), JSON)), min_size=1, max_size=3), st.text())
def test_calls_are_read_back_whatever_the_thought_mentions(calls, thought):
    thought = thought.replace("</think>", "") + " <tool_call> maybe"
    found = read_calls(tool_label(calls, thought))
    assert found is not None
    assert json.dumps([(c["name"], c["parameters"]) for c in found]) == json.dumps(calls)
