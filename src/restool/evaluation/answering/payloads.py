"""Requests and replies of the two OpenAI interfaces: chats that the server renders, and prompts rendered here."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import tee
from typing import Any, Protocol

from restool import files
from restool.evaluation.answering.client import Passing, Refusal
from restool.evaluation.answering.questions import GeneratedAnswer, Message, Prompt, Question, clean
from restool.settings import DecodingSettings

Body = dict[str, Any]


@dataclass
class Request:
    """Question number ``index`` as the server gets it; ``body`` is None where the prompt leaves no room for an
    answer. ``names``: the server's names of tools → the prompt's, where they differ."""

    index: int
    body: Body | None
    names: dict[str, str] = field(default_factory=dict)


class Interface(Protocol):
    """One way to ask: its route, the requests for questions, and what a reply says."""

    name: str
    route: str
    template_sha256: str | None  # of the chat template, where it is ours

    def requests(
        self, questions: Iterable[tuple[int, Question]], decoding: DecodingSettings, seed: int
    ) -> Iterator[Request]: ...

    def read(self, reply: Body, request: Request) -> GeneratedAnswer: ...

    def identity(self) -> list[Any]: ...


class Chat:
    """``/chat/completions``: the server's own template renders messages and tools."""

    name, route = "chat completions", "/chat/completions"
    template_sha256 = None

    def __init__(self, thinking: bool | None = None):
        self.thinking = thinking

    def requests(
        self, questions: Iterable[tuple[int, Question]], decoding: DecodingSettings, seed: int
    ) -> Iterator[Request]:
        for index, question in questions:
            prompt = question.prompt
            names = _names(prompt)
            body: Body = {"messages": _renamed(prompt.messages, names), **_decoding(question, decoding, seed)}
            if prompt.tools:
                body["tools"] = list(prompt.schemas or prompt.tools)
            if self.thinking is not None:
                body["chat_template_kwargs"] = {"enable_thinking": self.thinking}
            yield Request(index, body, {served: own for own, served in names.items()})

    def read(self, reply: Body, request: Request) -> GeneratedAnswer:
        """Calls and thoughts that the server took out of the text are put back where the model wrote them."""
        choice = _choice(reply)
        message = choice.get("message")
        if not isinstance(message, dict):
            raise Passing("a reply without a message")
        text = "" if message.get("content") is None else message["content"]
        thought = message.get("reasoning_content") or message.get("reasoning")
        calls = [] if message.get("tool_calls") is None else message["tool_calls"]
        if not (isinstance(text, str) and isinstance(calls, list)):
            raise Passing("a reply whose message is no text")
        blocks = [_call_text(call, request.names) for call in calls]
        parts = [f"<think>\n{thought}\n</think>\n"] if isinstance(thought, str) and thought else []
        parts += [text] if text.strip() or not (parts or blocks) else []
        return _answer("\n".join([*parts, *blocks]), reply, choice)

    def identity(self) -> list[Any]:
        return ["chat", self.thinking]


class Completions:
    """``/completions`` with token ids: the checkpoint's template is rendered here, so that a server and our own
    sampler read the same tokens and agree on which prompts are too long."""

    name, route = "completions", "/completions"

    def __init__(self, tokenizer: Any, thinking: bool | None = None, extras: Body | None = None):
        self._tokenizer, self.thinking, self._extras = tokenizer, thinking, extras or {}
        self.template_sha256 = hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()

    def requests(
        self, questions: Iterable[tuple[int, Question]], decoding: DecodingSettings, seed: int
    ) -> Iterator[Request]:
        from restool.models import chat

        asked, rendered = tee(questions)
        dialogues = ((question.prompt.messages, question.prompt.tools) for _, question in rendered)
        prompts = chat.each_dialogue_ids(self._tokenizer, dialogues, thinking=self.thinking)
        for ids, (index, question) in zip(prompts, asked, strict=True):
            room = decoding.max_model_tokens - len(ids)
            body = {"prompt": ids, **_decoding(question, decoding, seed), **self._extras}
            limited = body | {"max_tokens": min(decoding.max_new_tokens, room)}
            yield Request(index, limited if room > 0 else None)

    def read(self, reply: Body, request: Request) -> GeneratedAnswer:
        choice = _choice(reply)
        if not isinstance(choice.get("text"), str):
            raise Passing("a reply without a text")
        return _answer(choice["text"], reply, choice)

    def identity(self) -> list[Any]:
        template = self._tokenizer.chat_template
        vocabulary = self._tokenizer.backend_tokenizer.to_str()
        return ["completions", self.thinking, files.content_hash([template, vocabulary])]


def context_tokens(refusal: Refusal, served: Body) -> int | None:
    """Tokens that prompt and answer may have together, if the server's list of models or its refusal tells."""
    if isinstance(served.get("max_model_len"), int):
        return served["max_model_len"]
    told = re.search(r"context length (?:is|of) (?:only )?(\d+)", refusal.message)
    return int(told[1]) if told else None


def prompt_tokens(reply: Body) -> int:
    """The size of the prompt that ``reply`` answers."""
    usage = reply.get("usage")
    if not (isinstance(usage, dict) and isinstance(usage.get("prompt_tokens"), int)):
        raise Passing("a reply without the size of its prompt")
    return usage["prompt_tokens"]


def _no_automatic_choice(body: Body) -> None:
    body["tool_choice"] = "none"  # the tools stay in the prompt; the calls stay in the text, where we read them


def _completion_tokens(body: Body) -> None:
    body["max_completion_tokens"] = body.pop("max_tokens")


ADAPTATIONS: dict[str, Callable[[Body], None]] = {
    "tool-call-parser": _no_automatic_choice,
    "max_completion_tokens": _completion_tokens,
}
"""What a refusal mentions → how to ask this server instead: vLLM without a parser of calls, newer OpenAI models."""


def _decoding(question: Question, decoding: DecodingSettings, seed: int) -> Body:
    """``top_p`` is said because servers take missing values from the model's own generation settings."""
    body: Body = {"temperature": decoding.temperature, "top_p": 1.0, "max_tokens": decoding.max_new_tokens}
    if decoding.temperature > 0:
        digest = hashlib.sha256(f"{seed}/{question.id}".encode("utf-8", "replace")).digest()
        body["seed"] = int.from_bytes(digest[:4], "big") >> 1
    return body


def _choice(reply: Body) -> Body:
    choices = reply.get("choices")
    if not (isinstance(choices, list) and choices and isinstance(choices[0], dict)):
        raise Passing("a reply without an answer")
    return choices[0]


def _answer(text: str, reply: Body, choice: Body) -> GeneratedAnswer:
    usage = reply.get("usage")
    tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
    finished = choice.get("finish_reason") in ("stop", "tool_calls")
    return GeneratedAnswer(clean(text), tokens if isinstance(tokens, int) else 0, finished)


def _names(prompt: Prompt) -> dict[str, str]:
    """The prompt's names of tools → the server's (OpenAI allows no dots), where they differ."""
    pairs = zip(prompt.tools, prompt.schemas, strict=False)
    found = {tool.get("name"): schema["function"]["name"] for tool, schema in pairs}
    return {own: served for own, served in found.items() if own and own != served}


def _renamed(messages: Sequence[Message], names: dict[str, str]) -> list[Message]:
    """``messages`` with the server's names in the calls of earlier turns."""
    if not names:
        return list(messages)
    renamed = []
    for message in messages:
        calls = [
            call
            | {"function": call["function"] | {"name": names.get(call["function"]["name"], call["function"]["name"])}}
            for call in message.get("tool_calls", ())
        ]
        renamed.append(message | {"tool_calls": calls} if calls else message)
    return renamed


def _call_text(call: Any, names: dict[str, str]) -> str:
    """A call that the server has parsed, written again as Qwen's models write it."""
    function = call.get("function") if isinstance(call, dict) else None
    if not (isinstance(function, dict) and isinstance(function.get("name"), str)):
        raise Passing("a reply whose tool call has no name")
    given = function.get("arguments")
    arguments = given if isinstance(given, str) else json.dumps(given)
    name = names.get(function["name"], function["name"])
    return f'<tool_call>\n{{"name": {json.dumps(name)}, "arguments": {arguments or "{}"}}}\n</tool_call>'
