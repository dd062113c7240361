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
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from restool.core.errors import ConfigurationError
from restool.data.library import TOOLS, Tool
from restool.data.rows import DEMONSTRATIONS, DataSet, Demonstration, Row
from restool.data.tasks import FLAWS, LAST_COUNTS_FROM, SKELETON, Generator, Task
from restool.settings import SyntheticSettings

_ATTEMPTS = 1000


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
    return len(parameters) < LAST_COUNTS_FROM or given.get(last) == parameters[last]


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
