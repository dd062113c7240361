"""One synthetic task: which tools are listed, what the user asks in which words, what the right answer is."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from restool.data.library import ALIASES, CHAT, NO_FITTING_TOOL, POOLS, TOOLS, Tool
from restool.data.prompts import HISTORY, SLOT, fill
from restool.data.rows import response_label, tool_label
from restool.settings import SyntheticSettings

SKELETON = f"**Available Tools**\n{SLOT}"
"""System prompt of the synthetic tasks: terse, because a tiny model pays for every token."""

FLAWS = ("name", "think", "arguments")
_OPENERS = ("", "please ", "can you ", "I want to ")
_THINK_TOOL = (
    "A listed tool can do this.",
    "This needs a tool.",
    "I should use a tool here.",
    "Let me look at the request.",
    "The user needs some help.",
)
_THINK_RESPONSE = ("I can answer directly.", "No tool is needed.")
_UNLISTED = 0.25  # share of no-tool prompts that ask for a tool which is not listed; the rest is small talk
LAST_COUNTS_FROM = 3  # parameters from which on the last one can be forgotten


@dataclass(frozen=True)
class Call:
    """One right call and the words in which the user asks for it."""

    tool: Tool
    given: dict[str, str | int]
    aliases: dict[str, str] = field(default_factory=dict)
    """Parameter -> the word said instead of its value."""

    @property
    def request(self) -> str:
        said = {name: self.aliases.get(name, value) for name, value in self.given.items()}
        phrases = [p.phrase.format(said[p.name]) for p in self.tool.parameters if p.name in said]
        return " ".join([self.tool.request, *phrases])


@dataclass(frozen=True)
class Task:
    """One drawn prompt with its right answer."""

    kind: str
    listed: tuple[Tool, ...]
    user: str
    question: str
    calls: tuple[Call, ...] = ()
    response: str = ""
    earlier: Call | None = None

    @property
    def system(self) -> str:
        return fill(SKELETON, "\n".join(tool_entry(i, tool) for i, tool in enumerate(self.listed, 1)))

    @property
    def prompt(self) -> tuple[str, str]:
        return self.system, self.user

    @property
    def opportunities(self) -> tuple[str, ...]:
        names = {tool.name for tool in self.listed}
        possible = (
            any(call.tool.sibling in names for call in self.calls),
            any(call.aliases for call in self.calls),
            any(len(call.given) >= LAST_COUNTS_FROM for call in self.calls),
        )
        return tuple(flaw for flaw, is_possible in zip(FLAWS, possible, strict=True) if is_possible)

    def answer(self, think: str, flaws: tuple[str, ...] = ()) -> str:
        """The answer with ``flaws`` built in; without any, it is right."""
        if not self.calls:
            return response_label(self.response, think)
        if "think" not in flaws:
            meanings = {w: c.given[p] for c in self.calls for p, w in c.aliases.items()}
            think = " ".join([think, *(f"{word} means {value}." for word, value in meanings.items())])
        return tool_label([self._spoken(call, flaws) for call in self.calls], think)

    def meta(self) -> dict[str, Any]:
        """What :func:`rightness` and the BFCL export need to know."""
        calls = [{"name": c.tool.name, "parameters": c.given, "aliases": c.aliases} for c in self.calls]
        earlier = self.earlier and {
            "question": self.earlier.request,
            "name": self.earlier.tool.name,
            "parameters": self.earlier.given,
        }
        return {
            "listed": [tool.name for tool in self.listed], "question": self.question, "calls": calls,
            "earlier": earlier, "opportunities": list(self.opportunities),
        }  # fmt: skip

    def _spoken(self, call: Call, flaws: tuple[str, ...]) -> tuple[str, dict[str, str | int]]:
        name, given = call.tool.name, dict(call.given)
        if "name" in flaws and call.tool.sibling in {tool.name for tool in self.listed}:
            name = call.tool.sibling
        if "think" in flaws:
            given |= call.aliases
        if "arguments" in flaws and len(given) >= LAST_COUNTS_FROM:
            given.popitem()
        return name, given


@cache
def tool_entry(number: int, tool: Tool) -> str:
    """A tool in the system prompt: the published form without descriptions."""
    parameters = {p.name: "int" if p.is_number else "str" for p in tool.parameters}
    return f"{number}. Name: {tool.name}\nParameters: {json.dumps(parameters)}"


class Generator:
    """Draws tasks from one random stream."""

    def __init__(self, settings: SyntheticSettings, stream: str):
        self.settings = settings
        # A string seed goes through SHA-512: the same stream in every process and on every platform.
        self.rng = random.Random(f"{settings.seed}/{stream}")

    def listing(self, targets: list[Tool], fillers: list[Tool], size: int) -> tuple[Tool, ...]:
        """``size`` tools: a target, its sibling with the chosen probability, and unrelated ones."""
        listed = [self.rng.choice(targets)]
        if size > 1 and self.rng.random() < self.settings.sibling_listed:
            listed.append(TOOLS[listed[0].sibling])
        while len(listed) < size:
            taken = {name for tool in listed for name in (tool.name, tool.sibling)}
            listed.append(self.rng.choice([tool for tool in fillers if tool.name not in taken]))
        self.rng.shuffle(listed)
        return tuple(listed)

    def task(self, listed: tuple[Tool, ...], targets: list[Tool], kind: str | None = None) -> Task:
        """A task over the listed tools; only those among ``targets`` are asked for."""
        kind = kind or self._kind()
        callable_tools = [tool for tool in listed if tool in targets]
        if kind == "no_tool":
            return self._no_tool(listed, targets)
        calls = tuple(self.call(self.rng.choice(callable_tools)) for _ in range(1 + (kind == "several_calls")))
        question = self.rng.choice(_OPENERS) + " and then ".join(call.request for call in calls)
        earlier = self.call(self.rng.choice(callable_tools)) if kind == "history" else None
        return Task(kind, listed, self._user(question, earlier), question, calls, earlier=earlier)

    def call(self, tool: Tool) -> Call:
        parameters = list(tool.parameters)
        if self.rng.random() < self.settings.unmentioned:
            parameters.pop(self.rng.randrange(len(parameters)))
        given: dict[str, str | int] = {}
        aliases: dict[str, str] = {}
        for parameter in parameters:
            names = ALIASES.get(parameter.pool)
            if names and self.rng.random() < self.settings.alias:
                aliases[parameter.name] = self.rng.choice(list(names))
                given[parameter.name] = names[aliases[parameter.name]]
            else:
                pool = [v for v in POOLS[parameter.pool] if v not in given.values()]  # no trip from a city to itself
                given[parameter.name] = self.rng.choice(pool)
        return Call(tool, given, aliases)

    def think(self, task: Task) -> str:
        return self.rng.choice(_THINK_TOOL if task.calls else _THINK_RESPONSE)

    def _kind(self) -> str:
        draw, settings = self.rng.random(), self.settings
        for kind, share in (
            ("no_tool", settings.no_tool), ("several_calls", settings.several_calls), ("history", settings.history)
        ):  # fmt: skip
            if draw < share:
                return kind
            draw -= share
        return "one_call"

    def _no_tool(self, listed: tuple[Tool, ...], targets: list[Tool]) -> Task:
        if self.rng.random() < _UNLISTED:
            taken = {name for tool in listed for name in (tool.name, tool.sibling)}
            strangers = [tool for tool in targets if tool.name not in taken]
            if strangers:
                question = self.rng.choice(_OPENERS) + self.call(self.rng.choice(strangers)).request
                return Task("no_tool", listed, self._user(question), question, response=NO_FITTING_TOOL)
        question, response = self.rng.choice(CHAT)
        return Task("no_tool", listed, self._user(question), question, response=response)

    def _user(self, question: str, earlier: Call | None = None) -> str:
        turns = [f"<user> {question} </user>"]
        if earlier:
            answer = tool_label([(earlier.tool.name, earlier.given)], self.rng.choice(_THINK_TOOL))
            result = json.dumps([{"name": earlier.tool.name, "results": "done"}])
            turns = [f"<user> {earlier.request} </user>", f"{answer}\n<obs> {result} </obs>", *turns]
        return HISTORY + "\n\n".join(turns)
