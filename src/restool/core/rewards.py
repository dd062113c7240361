"""Rule-based reward: does an answer have the right format, and are its tool calls the right ones?

Two published format checks (ToolRL's strict layout; ResT's, which asks for the order of the tags only) share one
correctness score and eight switches, named as the released code's environment variables. Scores equal the released
code's (`tests/golden/reward.json`). Presets:

- ``rest``: ResT's check, reward scheduled over training (SCHEDULEREWARD): the released run;
- ``rest_unscheduled``: ResT's check, format in [0, 1] and correctness in [-3, 3];
- ``toolrl``: ToolRL's check, unscheduled; the length score counts (ResT computes it and never adds it).

Kept as released, because scores must compare: a label without a tool call has correctness 0 whatever is answered,
calls are greedily matched in label order, ``3 == 3.0`` and ``True == 1`` count as equal values, a call with the key
``arguments`` instead of ``parameters`` scores the minimum, and NaN or Infinity are read as numbers (as Python's JSON
does), which no label equals.

Deviations from the released code: a label that cannot be read raises DataError instead of a bare exception; switches
are arguments, not environment variables; the answer is taken from chat markup by Qwen's markers only (the Llama markers
never occur in the text that restool scores).

Nothing that a model can write raises: deep nesting, huge numbers, lone surrogates and garbage score the minimum, in
time linear in the length of the answer.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from restool.core import formats
from restool.core.errors import ConfigurationError, DataError, nearest

PRESETS = ("rest", "rest_unscheduled", "toolrl")
SWITCHES = (
    "WITHLENGTH",  # length score: words of thought / 512, at most 1
    "SCHEDULELENGTH",  # its divisor grows from 384 to 640 over 105 steps
    "CORRECTMAX1",  # correctness in [-1, 1]
    "MAX1STEP30MAX3",  # a third of the correctness before step 30, half of the format from then on
    "SCHEDULEREWARD",  # mass moves from format to correctness over 150 steps
    "REFINEDREWARD",  # name and key lists count only if equal
    "INTERMEDIATEREWARD",  # a call counts only as a whole
    "COARSEREWARD",  # all calls right, or the minimum
    "STRICTMATCH",  # set by released scripts, read nowhere: no effect
    "USE_THINKING_SEMANTIC",  # likewise
)
_HORIZON = 150  # steps of the reward schedule


@dataclass(frozen=True, slots=True)
class Reward:
    """``total`` = format + correctness (+ length under ToolRL's preset with WITHLENGTH)."""

    total: float
    format: float
    correctness: float
    length: float


@dataclass(frozen=True, slots=True)
class _Rules:
    """A preset with its switches at one step: bounds and how to compare."""

    strict: bool
    format_low: float
    format_high: float
    low: float
    high: float
    refined: bool
    intermediate: bool
    coarse: bool
    words: float | None  # divisor of the length score; None: no length score
    add_length: bool


@lru_cache(maxsize=256)
def _rules(preset: str, step: float, switches: tuple[tuple[str, bool], ...]) -> _Rules:
    if preset not in PRESETS:
        raise ConfigurationError(
            f"reward.preset: unknown '{preset}'{nearest(str(preset), PRESETS)}; valid: {', '.join(PRESETS)}"
        )
    on = {"SCHEDULEREWARD": preset == "rest"}
    for name, value in switches:
        if name.upper() not in SWITCHES:
            hint = nearest(name.upper(), SWITCHES)
            raise ConfigurationError(f"reward.switches: unknown '{name}'{hint}; valid: {', '.join(SWITCHES)}")
        on[name.upper()] = bool(value)
    format_low, format_high = 0.0, 1.0
    low, high = (-1.0, 1.0) if on.get("CORRECTMAX1") else (-3.0, 3.0)
    if on.get("MAX1STEP30MAX3"):
        if step < 30:
            low, high = low / 3, high / 3
        else:
            format_low, format_high = format_low / 2, format_high / 2
    if on["SCHEDULEREWARD"]:
        format_high = max(1.0, 2 - (2 - format_high) * step / _HORIZON)
        format_low = min(-1.0, -2 + (2 + format_low) * step / _HORIZON)
        high = min(3.0, (high - 2) * step / _HORIZON + 2)
        low = max(-3.0, (low + 2) * step / _HORIZON - 2)
    words = None
    if on.get("WITHLENGTH"):
        words = (640 - 384) * step / 105 + 384 if on.get("SCHEDULELENGTH") else 512
    flags = [bool(on.get(name)) for name in ("REFINEDREWARD", "INTERMEDIATEREWARD", "COARSEREWARD")]
    return _Rules(preset == "toolrl", format_low, format_high, low, high, *flags, words, add_length=preset == "toolrl")


def score(response: str, ground_truth: str, *, preset: str = "rest", step: float = 0.0, **switches: bool) -> Reward:
    """Reward of one answer.

    ``response``: the answer's text; ``ground_truth``: the label in the same format; ``step``: the reference step
    (`schedules.clock`), read under SCHEDULEREWARD, SCHEDULELENGTH and MAX1STEP30MAX3; ``switches``: names of `SWITCHES`
    in any case. Raises ConfigurationError for an unknown preset or switch, DataError for a label that cannot be read;
    never for what the model wrote.
    """
    return _score(response, ground_truth, _rules(preset, step, tuple(sorted(switches.items()))))


def score_batch(
    responses: Sequence[str],
    ground_truths: Sequence[str],
    *,
    preset: str = "rest",
    step: float = 0.0,
    **switches: bool,
) -> list[Reward]:
    """`score` of every answer against its own label."""
    rules = _rules(preset, step, tuple(sorted(switches.items())))
    return [_score(r, g, rules) for r, g in zip(responses, ground_truths, strict=True)]


def is_exact(response: str, ground_truth: str) -> bool:
    """Success where a method needs a yes or no: format 1 and correctness 3 without any switch (ResT's format check).

    A label without a tool call is never met exactly: the text of a response is not compared.
    """
    reward = score(response, ground_truth, preset="rest_unscheduled")
    return reward.format == 1.0 and reward.correctness == 3.0


def _score(response: str, ground_truth: str, rules: _Rules) -> Reward:
    text = response.rpartition("<|im_start|>assistant")[2].partition("<|im_end|>")[0].strip()
    check = formats.is_strict if rules.strict else formats.is_ordered
    has_call, has_response = "<tool_call>" in ground_truth, "<response>" in ground_truth
    form = rules.format_high if check(text, has_call, has_response) else rules.format_low
    correctness = _correctness(text, _label_calls(ground_truth), rules) if has_call else 0.0
    length = 0.0 if rules.words is None else _length(text, rules.words)
    return Reward(form + correctness + (length if rules.add_length else 0.0), form, correctness, length)


def _length(text: str, words: float) -> float:
    if "<think>" not in text or "</think>" not in text:
        return 0.0
    thought = text.rpartition("<think>")[2].partition("</think>")[0]
    return min(1.0, round(len(thought.split()) / words, 2))


def _call_lines(text: str) -> list[str]:
    """The lines between the first `<tool_call>` and the next tag of that kind."""
    return text.split("<tool_call>", 2)[1].partition("</tool_call>")[0].strip().split("\n")


@lru_cache(maxsize=8192)
def _label_calls(ground_truth: str) -> list[Any]:
    try:
        return [json.loads(line) for line in _call_lines(ground_truth)]
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"the tool_call block of a label is not one JSON object a line ({error}); label: {ground_truth[:200]!r}"
        ) from error


def _correctness(text: str, label: list[Any], rules: _Rules) -> float:
    if "<tool_call>" not in text or "</tool_call>" not in text:
        return rules.low
    # Whatever a model writes may fail in any way that JSON, hashing or comparing can; all of it is a wrong answer.
    try:
        calls = [json.loads(line) for line in _call_lines(text)]
        if calls == label:
            return rules.high
        if rules.coarse:
            return rules.low
        points, most = _match(label, calls, rules)
        return (rules.high - rules.low) * points / most + rules.low
    except Exception:
        return rules.low


def _match(label: list[Any], calls: list[Any], rules: _Rules) -> tuple[float, float]:
    """Points and the most that there were: names, then for every labelled call the best unused one of its name."""
    points = _overlap([call["name"] for call in label], [call["name"] for call in calls], rules)
    most = 1.0
    unused = dict(enumerate(calls))
    for wanted in label:
        most += 1.0 if rules.intermediate else 1.0 + len(wanted["parameters"])
        best, best_index = 0.0, None
        for index, call in unused.items():
            if call["name"] != wanted["name"]:
                continue
            similarity = _whole(wanted, call) if rules.intermediate else _similarity(wanted, call, rules)
            if similarity > best:
                best, best_index = similarity, index
        if best_index is not None:
            del unused[best_index]
            points += best
    return points, most


def _whole(wanted: Any, call: Any) -> float:
    return float(wanted == call)


def _similarity(wanted: Any, call: Any, rules: _Rules) -> float:
    right, given = wanted["parameters"], call["parameters"]
    equal = sum(1.0 for key, value in right.items() if key in given and given[key] == value)
    return _overlap(list(right.keys()), list(given.keys()), rules) + equal


def _overlap(a: list[Any], b: list[Any], rules: _Rules) -> float:
    """Multiset Jaccard similarity; under REFINEDREWARD 1 for equal lists, otherwise 0."""
    if a == b:
        return 1.0
    if rules.refined or not a or not b:
        return 0.0
    count_a, count_b = Counter(a), Counter(b)
    common = sum(min(count, count_b[item]) for item, count in count_a.items() if item in count_b)
    return common / (len(a) + len(b) - common)
