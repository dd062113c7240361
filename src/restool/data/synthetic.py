"""A seeded generator of tool-use tasks in the row format of rlla_4k.

Labels are always right. The demonstrations are deliberately and openly flawed, with a known probability for each
of three independent flaws, one per region of the answer:

- name: the listed sibling of the right tool is called;
- think: a word such as "noon" is copied into the call, and the sentence of the thought that resolves it is missing;
- arguments: the last parameter of a call with three or more is left out.

So imitation settles on wrong habits that a reward on the right answer can correct. The library is closed: what is
measured is the correction of flaws, not general tool skill.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from restool.core.errors import ConfigurationError
from restool.data.library import ALIASES, CHAT, NO_FITTING_TOOL, POOLS, TOOLS, Tool
from restool.data.prompts import SLOT, fill
from restool.data.rows import DEMONSTRATIONS, DataSet, Demonstration, Row, response_label, tool_label
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
_LAST_COUNTS_FROM = 3  # parameters from which on the last one can be forgotten
_ATTEMPTS = 1000


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
            any(len(call.given) >= _LAST_COUNTS_FROM for call in self.calls),
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
        if "arguments" in flaws and len(given) >= _LAST_COUNTS_FROM:
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
        return "**Dialogue Records History**\n" + "\n\n".join(turns)


def generate(settings: SyntheticSettings) -> tuple[dict[str, list[Row]], dict[str, int]]:
    """All splits, and how many drawn prompts were rejected as repeats of another split's.

    ``held_out`` and ``transfer`` are drawn first and without repeats, so they do not depend on the amount of
    training data; training prompts and demonstrations that coincide with them (system and user text) are redrawn.
    """
    known = [tool for tool in TOOLS.values() if not tool.reserved]
    reserved = [tool for tool in TOOLS.values() if tool.reserved]
    held_out = _prompts(settings, "held_out", settings.held_out_rows, known, known, set(), unique=True)
    taken = {(row.system, row.user) for row in held_out[0]}
    transfer = _prompts(settings, "transfer", settings.transfer_rows, reserved, known, taken, unique=True)
    taken |= {(row.system, row.user) for row in transfer[0]}
    train = _prompts(settings, "train", settings.train_rows, known, known, taken)
    demonstrations = _demonstrations(settings, taken)
    drawn = {"train": train, DEMONSTRATIONS: demonstrations, "held_out": held_out, "transfer": transfer}
    return {name: rows for name, (rows, _) in drawn.items()}, {name: n for name, (_, n) in drawn.items()}


def load(settings: SyntheticSettings) -> DataSet:
    """The generated splits with their statistics."""
    splits, rejected = generate(settings)
    shares = ", ".join(f"{flaw} {share:.2f}" for flaw, share in _flaw_probabilities(settings).items())
    return DataSet(
        splits,
        held_out=("held_out", "transfer"),
        skeleton=SKELETON,
        counts={
            "splits": {name: statistics(rows) for name, rows in splits.items()},
            "redrawn": rejected,
            "shared_with_training": shared_prompts(splits),
        },
        notes=[f"The demonstrations are deliberately flawed, where a flaw can occur with probability: {shares}."],
    )


def shared_prompts(splits: dict[str, list[Row]]) -> dict[str, int]:
    """Prompts (system and user text) of the evaluation splits that also occur in training; 0 by construction."""
    trained = {(row.system, row.user) for name in ("train", DEMONSTRATIONS) for row in splits[name]}
    return {name: sum((row.system, row.user) in trained for row in splits[name]) for name in ("held_out", "transfer")}


def _prompts(
    settings: SyntheticSettings,
    split: str,
    count: int,
    targets: list[Tool],
    fillers: list[Tool],
    taken: set[tuple[str, str]],
    *,
    unique: bool = False,
) -> tuple[list[Row], int]:
    generator = Generator(settings, split)
    fresh = _Fresh(set(taken), remember=unique)
    rows = []
    for index in range(count):
        task = fresh(lambda: generator.task(generator.listing(targets, fillers, generator.rng.choice((2, 3))), targets))
        label = task.answer(generator.think(task))
        rows.append(Row(f"{split}/{index}", split, *task.prompt, label, task.kind, task.opportunities, task.meta()))
    return rows, fresh.rejected


def _demonstrations(settings: SyntheticSettings, taken: set[tuple[str, str]]) -> tuple[list[Row], int]:
    generator = Generator(settings, DEMONSTRATIONS)
    everything = list(TOOLS.values())
    rows: list[Row] = []
    rejected = 0
    for group, phase in enumerate(_group_phases(settings)):
        size = 1 if phase == 0 else generator.rng.choice((2, 3))
        listed = generator.listing(everything, everything, size)
        fresh = _Fresh(set(taken), remember=True)  # the questions of one header differ from each other
        kind = "one_call" if phase < 2 else None
        for _ in range(min(settings.questions_per_header, settings.demonstrations - len(rows))):
            task = fresh(lambda listed=listed, kind=kind: generator.task(listed, everything, kind))
            rows.append(_demonstration(generator, task, len(rows), group, phase))
        rejected += fresh.rejected
    return rows, rejected


def _demonstration(generator: Generator, task: Task, index: int, group: int, phase: int) -> Demonstration:
    probabilities = _flaw_probabilities(generator.settings)
    draws = {flaw: generator.rng.random() for flaw in FLAWS}
    flaws = tuple(flaw for flaw in task.opportunities if draws[flaw] < probabilities[flaw])
    think = generator.think(task)
    return Demonstration(
        f"{DEMONSTRATIONS}/{index}", DEMONSTRATIONS, *task.prompt, task.answer(think), task.kind, task.opportunities,
        task.meta() | {"flaws": list(flaws)}, output=task.answer(think, flaws), group=group, phase=phase,
    )  # fmt: skip


def _flaw_probabilities(settings: SyntheticSettings) -> dict[str, float]:
    return {"name": settings.flaw_name, "think": settings.flaw_think, "arguments": settings.flaw_arguments}


def _group_phases(settings: SyntheticSettings) -> Iterator[int]:
    """The curriculum phase of each group of demonstrations, in file order."""
    groups = -(-settings.demonstrations // settings.questions_per_header)
    total = sum(settings.phases)
    ends = [sum(settings.phases[: phase + 1]) / total * groups for phase in range(3)]
    return (next((p for p in range(2) if group + 0.5 < ends[p]), 2) for group in range(groups))


class _Fresh:
    """Draws until a prompt is not taken; counts the rejected ones."""

    def __init__(self, taken: set[tuple[str, str]], *, remember: bool):
        self.taken, self.remember, self.rejected = taken, remember, 0

    def __call__(self, draw: Callable[[], Task]) -> Task:
        for _ in range(_ATTEMPTS):
            task = draw()
            if task.prompt not in self.taken:
                if self.remember:
                    self.taken.add(task.prompt)
                return task
            self.rejected += 1
        raise ConfigurationError(
            f"the synthetic generator found no new prompt in {_ATTEMPTS} attempts; lower data.synthetic.*_rows, "
            "demonstrations or questions_per_header"
        )


def rightness(meta: dict[str, Any], completion: str) -> dict[str, bool]:
    """Which parts of an answer are right, for the flaws that were possible in this prompt.

    - ``name``: the tools called are the right ones, in order.
    - ``think``: every word that stood for a value was resolved: the call holds the value or, if the call leaves
      the parameter out, the thought says what the word means.
    - ``arguments``: the last parameter of every call with three or more is there with the right value.

    ``meta`` is :attr:`Row.meta` of a synthetic row. Never raises, whatever ``completion`` is.
    """
    gold = meta["calls"]
    predicted = _called(completion)
    padded = [*(call for _, call in predicted), *({} for _ in gold)]
    pairs = list(zip(gold, padded, strict=False))
    thought = completion.partition("</think>")[0]
    checks: dict[str, Callable[[], bool]] = {
        "name": lambda: [name for name, _ in predicted] == [call["name"] for call in gold],
        "think": lambda: all(_resolved(call, given, thought) for call, given in pairs),
        "arguments": lambda: all(_last_is_right(call["parameters"], given) for call, given in pairs),
    }
    return {flaw: checks[flaw]() for flaw in meta["opportunities"]}


def _resolved(call: dict[str, Any], given: dict[str, Any], thought: str) -> bool:
    for parameter, word in call["aliases"].items():
        value = call["parameters"][parameter]
        if given.get(parameter) != value and (parameter in given or f"{word} means {value}." not in thought):
            return False
    return True


def _last_is_right(parameters: dict[str, Any], given: dict[str, Any]) -> bool:
    last = list(parameters)[-1]
    return len(parameters) < _LAST_COUNTS_FROM or given.get(last) == parameters[last]


def _called(completion: str) -> list[tuple[str, dict[str, Any]]]:
    """(name, parameters) of each call of the first tool-call block, as the reward reads it; [] if it is broken."""
    block = completion.partition("<tool_call>")[2].partition("</tool_call>")[0].strip()
    try:
        calls = [json.loads(line) for line in block.split("\n")] if block else []
    except (ValueError, RecursionError):
        return []
    if not all(isinstance(c, dict) and isinstance(c.get("parameters"), dict) for c in calls):
        return []
    return [(str(call.get("name")), call["parameters"]) for call in calls]


def statistics(rows: list[Row]) -> dict[str, Any]:
    """Counts for the manifest: kinds, opportunities, prompts without any, and flaws built in."""
    calling = [row for row in rows if row.meta["calls"]]
    return {
        "rows": len(rows),
        "kinds": dict(sorted(Counter(row.kind for row in rows).items())),
        "tool_prompts": len(calling),
        "opportunities": {flaw: sum(flaw in row.opportunities for row in calling) for flaw in FLAWS},
        "no_opportunity": sum(not row.opportunities for row in calling),
        "flaws": {flaw: sum(flaw in row.meta.get("flaws", ()) for row in calling) for flaw in FLAWS},
    }
