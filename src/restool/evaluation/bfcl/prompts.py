"""BFCL entries as prompts in the ``rlla`` format (ToolRL's `benchmarks/BFCL/rlla_qwen.py`).

The system prompt is the skeleton of the training data; the dialogue goes into one user message. As in the handler:
system messages of the entry are dropped, the list of required parameters is lost, and every user turn carries the
single-turn hint (the official runner never asks for another).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from restool import files
from restool.data import prompts

HINT = (
    "If there's no appropriate tools to apply or required parameters are missing, please directly inform me in your "
    "response without any tool call, or call the tool with the name as 'None'. Otherwise, you should use one or more "
    "necessary tool calls to complete the given task in this turn."
)
"""Text of the handler (ToolRL, Apache-2.0), verbatim: a change of wording changes scores."""

AFTER_TOOL = (
    "If you think you have completed the current task, or the task cannot be finished, please respond directly "
    "without additional tool calls. If you encounter an error during tool execution or the task remains unfinished, "
    "retry with the one or more necessary tool calls according to your thought and plan until completion. Based on "
    "the tool execution feedback, reflect on if understanding or selectioin of tool is wrong, what tool calling step "
    "is missing, and how to achieve the task goal from now on."
)
"""Said after tool results that end the dialogue; verbatim, misspelling included."""

Message = dict[str, Any]


def system(skeleton: str, functions: Sequence[dict[str, Any]]) -> str:
    """The system prompt that lists ``functions`` (BFCL's documents)."""
    tools = [(f["name"], f["description"], f["parameters"].get("properties", {})) for f in functions]
    return prompts.system_prompt(skeleton, tools)


def user(messages: Sequence[Message]) -> str:
    """The one user message that holds the whole dialogue so far."""
    parts = [prompts.HISTORY]
    for number, message in enumerate(messages, 1):
        parts.append(_turn(message, last=number == len(messages)))
    return "".join(parts).strip()


def _turn(message: Message, *, last: bool) -> str:
    content = message["content"].strip()
    if message["role"] == "user":
        return f"<user> {content}\n{HINT} </user>\n"
    if message["role"] == "assistant":
        return f"\n{content}\n"
    if message["role"] == "tool":
        name = message["name"].strip()
        result = f"<obs> You have made the tool call {name}. Execution returns: {content} </obs>\n"
        return result + (f"\n<user> {AFTER_TOOL} </user>\n" if last else "")
    return ""  # system: dropped


def template_hash(skeleton: str) -> str:
    """Hash of everything in a prompt that does not come from an entry."""
    function = {"name": "f", "description": "d", "parameters": {"properties": {"p": {"type": "string"}}}}
    dialogue = [{"role": role, "content": "c", "name": "f()"} for role in ("system", "user", "assistant", "tool")]
    return files.content_hash([system(skeleton, [function]), user(dialogue)], length=64)
