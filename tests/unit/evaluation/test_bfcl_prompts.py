from __future__ import annotations

from restool.data.prompts import SLOT
from restool.evaluation.bfcl import prompts

FUNCTIONS = [
    {
        "name": "a.b",
        "description": "Adds.",
        "parameters": {"properties": {"x": {"type": "integer"}}, "required": ["x"]},
    },
    {"name": "c", "description": "Counts é.", "parameters": {"properties": {}}},
]


def test_tools_are_listed_as_in_training_and_required_is_lost():
    assert prompts.system(f"Head\n{SLOT}\nTail", FUNCTIONS) == (
        'Head\n1. Name: a.b\nDescription: Adds.\nParameters: {"x": {"type": "integer"}}\n'
        "2. Name: c\nDescription: Counts é.\nParameters: {}\nTail"
    )


def test_dialogue_is_one_message_without_system_turns():
    messages = [
        {"role": "system", "content": "ignored"},
        {"role": "user", "content": " Hello \n"},
        {"role": "assistant", "content": "<response> Hi </response>\n"},
        {"role": "user", "content": "Add"},
    ]
    assert prompts.user(messages) == (
        f"**Dialogue Records History**\n<user> Hello\n{prompts.HINT} </user>\n"
        f"\n<response> Hi </response>\n<user> Add\n{prompts.HINT} </user>"
    )


def test_tool_results_carry_a_reminder_only_at_the_end():
    tool = {"role": "tool", "name": "f(a=1)", "content": "2"}
    line = "<obs> You have made the tool call f(a=1). Execution returns: 2 </obs>\n"
    text = prompts.user([tool, tool])
    assert text.startswith("**Dialogue Records History**\n" + line + line)
    assert text.count(prompts.AFTER_TOOL) == 1
    assert text.endswith("</user>")


def test_template_hash_depends_on_the_skeleton():
    assert prompts.template_hash(f"A {SLOT}") != prompts.template_hash(f"B {SLOT}")
