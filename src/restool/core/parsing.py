"""Answer text -> think, tool calls and response, as character spans. Never raises, whatever a model writes.

The walk is one pass over the tags, so text of any size costs linear time. What it takes for structure:
- A block runs from its opening tag to the first closing tag of its kind; tags of another kind in between are content
  (a `<tool_call>` that is merely mentioned while thinking is thought, which the released patterns get wrong).
- A block that is never closed (cut off answers) runs to the next opening tag, to a stop token or to the end.
- Text before a `</think>` that nothing opened is thought: thinking chat templates write `<think>` into the prompt.
- A tool call is a JSON object of a `<tool_call>` block, on one line or pretty-printed; in malformed JSON the calls are
  found as far as their braces and keys allow, and a line that starts with `{` begins a new one.

Scoring does not read this: `rewards` follows the rules of the released reward, line by line.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import NamedTuple

_TAG = re.compile(r"<(/?)(think|tool_call|response)>")
_STOP = re.compile(r"<\|(?:im_end|endoftext|eot_id|end_of_text)\|>")
_DECODE = json.JSONDecoder().raw_decode
# A call as nearly every trained model writes it; anything else takes the slower scan. Possessive quantifiers (`*+`)
# keep the matcher from remembering a megabyte of ways back.
_PLAIN_CALL = re.compile(r'\s*+\{\s*+"name"\s*+:\s*+"([^"\\\n]*+)"\s*+,\s*+"(?:parameters|arguments)"\s*+:\s*+(?=\{)')
_CALL_END = re.compile(r"\s*+\}[ \t]*+(?:\n|$)")
_JSON_TOKEN = re.compile(r'"[^"\\\n]*+(?:\\[^\n][^"\\\n]*+)*+"?|[{}\[\]:,]')
_ARGUMENT_KEYS = ('"parameters"', '"arguments"')


class Span(NamedTuple):
    """Characters ``start`` (inclusive) to ``end`` (exclusive)."""

    start: int
    end: int


class Call(NamedTuple):
    """One tool call: the name without its quotes, the arguments object with its braces; None where absent."""

    name: Span | None
    arguments: Span | None


class Block(NamedTuple):
    """One tagged block; ``opening`` or ``closing`` is None where the tag is missing."""

    kind: str  # think, tool_call or response
    opening: Span | None
    content: Span
    closing: Span | None


@dataclass(frozen=True, slots=True)
class Answer:
    """The structure of one answer."""

    text: str
    blocks: tuple[Block, ...]
    calls: tuple[Call, ...]
    stray_tags: tuple[Span, ...]  # closing tags of blocks that nothing opened

    @property
    def think(self) -> Span | None:
        """Content of the first think block."""
        return self._first("think")

    @property
    def response(self) -> Span | None:
        """Content of the first response block."""
        return self._first("response")

    @property
    def tags(self) -> list[Span]:
        """Every tag that is structure, in no particular order."""
        paired = [tag for block in self.blocks for tag in (block.opening, block.closing) if tag]
        return [*paired, *self.stray_tags]

    def part(self, span: Span | None) -> str:
        """The characters of a span ("" for None)."""
        return self.text[span.start : span.end] if span else ""

    def _first(self, kind: str) -> Span | None:
        return next((block.content for block in self.blocks if block.kind == kind), None)


def parse(text: str) -> Answer:
    """Structure of an answer (which may still end in stop tokens). Linear time; never raises."""
    stop = _STOP.search(text)
    end = stop.start() if stop else len(text)
    blocks, stray = _blocks(text, end)
    calls: list[Call] = []
    for block in blocks:
        if block.kind == "tool_call":
            calls += find_calls(text, block.content)
    return Answer(text, tuple(blocks), tuple(calls), tuple(stray))


def _blocks(text: str, end: int) -> tuple[list[Block], list[Span]]:
    tags = [(m[2], not m[1], Span(*m.span())) for m in _TAG.finditer(text, 0, end)]
    last_close = {kind: index for index, (kind, opens, _) in enumerate(tags) if not opens}
    blocks: list[Block] = []
    stray: list[Span] = []
    index = 0
    while index < len(tags):
        kind, opens, span = tags[index]
        index += 1
        if not opens:
            if kind == "think" and not blocks and not stray:
                blocks.append(Block(kind, None, Span(0, span.start), span))
            else:
                stray.append(span)
            continue
        is_closed = last_close.get(kind, -1) >= index
        while index < len(tags) and not _ends(tags[index], kind, is_closed):
            index += 1
        content_end = tags[index][2].start if index < len(tags) else end
        closing = tags[index][2] if is_closed else None
        blocks.append(Block(kind, span, Span(span.end, content_end), closing))
        index += is_closed
    return blocks, stray


def _ends(tag: tuple[str, bool, Span], kind: str, is_closed: bool) -> bool:
    """Whether a tag ends a block: its closing tag, or, where none follows, any opening tag."""
    return (tag[0] == kind and not tag[1]) if is_closed else tag[1]


def find_calls(text: str, content: Span) -> list[Call]:
    """The calls in the content of a tool_call block."""
    block = text[content.start : content.end]
    calls: list[Call] = []
    position = 0
    while match := _PLAIN_CALL.match(block, position):
        try:
            _, arguments_end = _DECODE(block, match.end())
        except (ValueError, RecursionError):
            break
        closing = _CALL_END.match(block, arguments_end)
        if closing is None:
            break
        name = Span(content.start + match.start(1), content.start + match.end(1))
        calls.append(Call(name, Span(content.start + match.end(), content.start + arguments_end)))
        position = closing.end()
    return calls + _scan_calls(block, position, content.start)


def _scan_calls(block: str, position: int, base: int) -> list[Call]:
    """Calls of JSON that is malformed or laid out in another way, by braces, keys and strings alone."""
    calls: list[Call] = []
    depth = 0
    key = value_of = ""  # the last string of a call's own object; the key whose value comes next
    name = arguments = None
    arguments_start = -1

    def finish(end: int) -> None:
        nonlocal name, arguments, arguments_start
        if arguments_start >= 0:  # never closed: up to the last visible character
            visible = block[arguments_start:end].rstrip()
            arguments = Span(base + arguments_start, base + arguments_start + len(visible))
        if name or arguments:
            calls.append(Call(name, arguments))
        name, arguments, arguments_start = None, None, -1

    for match in _JSON_TOKEN.finditer(block, position):
        start, token = match.start(), match[0]
        if token == "{":
            if depth and not value_of and block[start - 1] == "\n":
                finish(start)
                depth = 0
            if depth == 1 and value_of in _ARGUMENT_KEYS and arguments is None:
                arguments_start = start
            value_of = "" if depth <= 1 else value_of
            depth += 1
        elif token == "[":
            depth += depth > 0  # a list around the calls is no level of theirs
        elif token in "}]":
            if depth == 2 and arguments_start >= 0:
                arguments, arguments_start = Span(base + arguments_start, base + start + 1), -1
            depth = max(depth - 1, 0)
            if depth == 0:
                finish(start)
        elif depth == 1:
            if token == ":":
                value_of = key
            elif token == ",":
                value_of = ""
            elif not value_of:
                key = token
            elif value_of == '"name"' and name is None:
                name = Span(base + start + 1, base + match.end() - (len(token) > 1 and token[-1] == '"'))
            elif value_of in _ARGUMENT_KEYS and arguments is None:
                arguments = Span(base + start, base + match.end())
    finish(len(block))
    return calls
