from __future__ import annotations

import json

import pytest

from restool.core.errors import ConfigurationError, DataError
from restool.core.rewards import PRESETS, SWITCHES, is_exact, score

LABEL = '<think> t </think>\n<tool_call>\n{"name": "a", "parameters": {"b": 1, "c": "x"}}\n</tool_call>'
TALK = "<think> t </think>\n<response> hi </response>"


def answer(*calls: object) -> str:
    lines = "\n".join(call if isinstance(call, str) else json.dumps(call) for call in calls)
    return f"<think> t </think>\n<tool_call>\n{lines}\n</tool_call>"


def test_presets_differ_where_they_should() -> None:
    loose = LABEL.replace("</think>\n", "</think>\n\n")
    assert score(loose, LABEL, preset="rest_unscheduled").total == 4
    assert score(loose, LABEL, preset="toolrl").total == 3
    assert score(LABEL, LABEL, preset="rest", step=75).format == 1.5
    assert score(LABEL, LABEL, preset="rest", step=75, schedulereward=False).format == 1.0


@pytest.mark.parametrize(
    ("label", "good", "bad"),
    [
        (LABEL, LABEL, LABEL + "\n<response> x </response>"),
        (TALK, TALK, "<think> t </think><response> hi </response>"),
        (LABEL + "\n<response> r </response>", LABEL + "\n<response>\nq</response>", LABEL),
        ("<think> t </think>", "<think>\n</think>", "<think> t </think> more"),
        (LABEL, LABEL, LABEL.replace("\n</tool_call>", "</tool_call>")),
        (LABEL, LABEL, "<think></think>\n<tool_call>\n</tool_call>"),
    ],
)
def test_strict_format(label: str, good: str, bad: str) -> None:
    assert score(good, label, preset="toolrl").format == 1.0
    assert score(bad, label, preset="toolrl").format == 0.0


@pytest.mark.parametrize(
    ("calls", "correctness"),
    [
        ([{"name": "a", "parameters": {"b": 1.0, "c": "x"}}], 3.0),  # 1 == 1.0
        ([{"name": "a", "parameters": {"b": True, "c": "x"}}], 3.0),  # 1 == True
        ([{"name": "a", "parameters": {"b": "1", "c": "x"}}], 6 * 3 / 4 - 3),
        ([{"name": "a", "parameters": {}}], 6 * 1 / 4 - 3),
        ([{"name": "a", "parameters": {"b": float("nan"), "c": "x"}}], 6 * 3 / 4 - 3),
        (['{"name": "a", "parameters": {"b": 0, "b": 1, "c": "x"}}'], 3.0),  # the last of equal keys counts
        ([[{"name": "a", "parameters": {"b": 1, "c": "x"}}]], -3.0),
        ([{"name": ["a"], "parameters": {}}], -3.0),
        ([{"name": "a", "parameters": [1]}], -3.0),
        ([{"name": "other"}], -3.0),  # parameters are not looked at, but nothing matches
        (["7"], -3.0),
    ],
)
def test_correctness(calls: list[object], correctness: float) -> None:
    assert score(answer(*calls), LABEL, preset="rest_unscheduled").correctness == pytest.approx(correctness, abs=1e-12)


def test_each_prediction_is_used_once_in_label_order() -> None:
    first, second = {"name": "a", "parameters": {"x": 1, "y": 1}}, {"name": "a", "parameters": {"x": 1, "y": 2}}
    half = {"name": "a", "parameters": {"x": 1, "y": 9}}
    # The first labelled call takes the only full match of the second's: greedy, not optimal.
    got = score(answer(second, half), answer(first, second), preset="rest_unscheduled").correctness
    assert got == pytest.approx(6 * (1 + 2 + 2) / 7 - 3)


def test_prediction_ends_at_the_second_opening_tag() -> None:
    text = LABEL.replace("\n</tool_call>", "\n<tool_call> junk </tool_call>")
    assert score(text, LABEL, preset="rest_unscheduled").correctness == 3.0


def test_chat_markers_are_cut() -> None:
    wrapped = f"prompt<|im_start|>assistant\n{LABEL}<|im_end|><|endoftext|>"
    assert score(wrapped, LABEL, preset="toolrl").total == 4.0


def test_exactness() -> None:
    assert is_exact(LABEL, LABEL)
    assert not is_exact(TALK, TALK)
    assert not is_exact(LABEL.replace("</think>", ""), LABEL)


def test_combined_switches_follow_the_released_order() -> None:
    got = score(LABEL, LABEL, preset="toolrl", step=30, MAX1STEP30MAX3=True, SCHEDULEREWARD=True, CORRECTMAX1=True)
    assert got.format == pytest.approx(2 - (2 - 0.5) * 30 / 150)
    assert got.correctness == pytest.approx((1 - 2) * 30 / 150 + 2)


def test_mistakes_of_people_raise() -> None:
    with pytest.raises(ConfigurationError, match="rest_unscheduled"):
        score(LABEL, LABEL, preset="rest_unschedule")
    with pytest.raises(ConfigurationError, match="did you mean 'COARSEREWARD'"):
        score(LABEL, LABEL, COARSEREWAR=True)
    with pytest.raises(DataError, match="label"):
        score(LABEL, answer("{not json"))


HOSTILE = {
    "garbage": "\x00<&é" * 250_000,
    "unclosed tags": "<think><tool_call><response>" * 35_000,
    "deep nesting": answer('{"name": "a", "parameters": ' + '{"b":' * 100_000 + "1" + "}" * 100_001),
    "deep lists": answer("[" * 100_000),
    "huge integer": answer('{"name": "a", "parameters": {"b": ' + "9" * 100_000 + "}}"),
    "lone surrogates": answer('{"name": "\ud800", "parameters": {"\udfff": 1}}'),
    "escaped surrogates": answer('{"name": "\\ud800", "parameters": {"b": "\\udfff"}}'),
    "many calls": answer(*['{"name": "q", "parameters": {}}'] * 30_000),
    "backslashes": answer('{"name": "a' + "\\" * 1_000_000),
    "blank lines": answer("\n" * 1_000_000),
    "empty": "",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_answers_score_the_minimum(name: str) -> None:
    for preset in PRESETS:
        reward = score(HOSTILE[name], LABEL, preset=preset, step=0, **dict.fromkeys(SWITCHES[:2], True))
        assert reward.correctness == (-2.0 if preset == "rest" else -3.0)
