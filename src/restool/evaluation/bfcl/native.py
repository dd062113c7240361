"""BFCL entries as prompts in the model's own format: its chat template, its way to list tools and to write calls.

As bfcl_eval's local handlers for Qwen and Llama models (`QwenFCHandler`, `LlamaHandler_3_1`): the entry's messages as
they are, its own system message included, no hint; the function documents go to the template unchanged. A server
that renders prompts itself gets the same tools in OpenAI's form, converted by bfcl_eval. Answers are read in
`fenced.native`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from restool.evaluation.answering import Message, Prompt

_BLOCK = re.compile(r"<tool_call>\n(.*?)\n</tool_call>", re.S)


def prompt(entry: dict[str, Any], messages: Sequence[Message]) -> Prompt:
    """The prompt for the next answer. ``messages``: the dialogue so far, assistants' turns as the model wrote them.

    ``entry``: ``function`` (documents) and ``tools`` (the same in OpenAI's form).
    """
    return Prompt(tuple(_history(messages)), tuple(entry["function"]), tuple(entry["tools"]))


def _history(messages: Sequence[Message]) -> Iterator[Message]:
    """Calls written between Qwen's tags become ``tool_calls``, which the template writes again; a Llama model's
    calls stay text, because its template refuses more than one at a time. Both as in the official handlers."""
    waiting: list[str] = []
    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            written = _assistant(message["content"], f"call_{number}")
            waiting = [call["id"] for call in written.get("tool_calls", ())]
            yield written
        elif message["role"] == "tool":
            yield message | ({"tool_call_id": waiting.pop(0)} if waiting else {})
        else:
            yield message


def _assistant(text: str, name: str) -> Message:
    first, *others = text.split("</think>")
    calls = list(_calls(text))
    message: Message = {"role": "assistant", "content": "" if calls else (others or [first])[-1].lstrip("\n")}
    if others:
        message["reasoning_content"] = first.rstrip("\n").split("<think>")[-1].lstrip("\n")
    if calls:
        message["tool_calls"] = [
            {"id": f"{name}_{i}", "type": "function", "function": function} for i, function in enumerate(calls)
        ]
    return message


def _calls(text: str) -> Iterator[dict[str, str]]:
    """The blocks that hold a call, as name and arguments (JSON); others are passed over, as in the handler."""
    for block in _BLOCK.findall(text):
        try:
            call = json.loads(block)
            yield {"name": call["name"], "arguments": json.dumps(call["arguments"], ensure_ascii=False)}
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
