"""Against BFCL's own code: its loop on all multi-turn entries, its runner on all answers. Minutes, because of it."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
from pathlib import Path

import pytest
from bfcl_texts import DONE, answer, as_llama, as_qwen

from restool import environments, files
from restool.core.errors import EvaluationError
from restool.evaluation import bfcl
from restool.evaluation.answering import GeneratedAnswer, Prompt
from restool.evaluation.bfcl import crosscheck, episodes, results
from restool.evaluation.bfcl.aggregates import MULTI_TURN, SINGLE_TURN
from restool.evaluation.bfcl.checker import Checker
from restool.experiments import compose_run

pytestmark = pytest.mark.slow
LOOP = Path(__file__).parent / "official_loop.py"
NOISE = (
    '<tool_call>\n{"name": "ls", "parameters": {"a": tru\n</tool_call>',
    "<tool_call>\nls(a=True)\n</tool_call>",
    '<tool_call>\n{"name": "ls", "parameters": null}\n</tool_call>',
    '<tool_call>\n{"name": "None", "parameters": {}}\n</tool_call>',
    "I do not know.",
    "",
)
"""Answers without a call: the turn is over."""

CALLS = (
    {"name": "fly_to_the_moon", "parameters": {"speed": 3}},
    {"name": "ls", "arguments": {"a": True}},
    {"name": "ls", "parameters": {"colour": "red"}},
    {"name": "cd", "parameters": {"folder": "no/such/folder"}},
    {"name": "get-tickets now", "parameters": {}},
    {"name": "GorillaFileSystem.pwd", "parameters": {}},
    {"name": "echo", "parameters": {"content": "call pwd() or add (1)", "file_name": "n.txt"}},
    {"name": "mean", "parameters": {"numbers": [1, 2.5, float("inf")]}},
    {"name": "power", "parameters": {"base": 10, "exponent": 5000}},
    {"name": "authenticate_travel", "parameters": {"class": 1}},
    {"name": "kill", "parameters": {}},
    {"parameters": {}},
)
"""Calls that most entries' tools do not take."""


@pytest.fixture(scope="module")
def official():
    return environments.build("bfcl-official")


@pytest.fixture(scope="module")
def scripts(bfcl_data, bfcl_oracle):
    """clean: the official calls, one an answer. noisy: with answers that a model should not give among them."""
    oracle = {name: turns for category in MULTI_TURN for name, turns in bfcl_oracle(category).items()}
    clean = {name: [[step for text in turn for step in _one_by_one(text)] for turn in turns]
             for name, turns in oracle.items()}  # fmt: skip
    return {"clean": clean, "noisy": {name: _noisy_turns(name, turns) for name, turns in clean.items()}}


def _one_by_one(text):
    lines = text.partition("<tool_call>\n")[2].partition("\n</tool_call>")[0].split("\n")
    return [answer([json.loads(line)]) for line in lines if line] or [text]


def _noisy_turns(name, turns):
    chance = random.Random(name)
    noisy = []
    for turn in turns:
        steps = [text for text in turn if text == DONE or chance.random() > 0.1]
        if chance.random() < 0.4:
            steps.insert(chance.randrange(len(steps) + 1), answer(chance.sample(CALLS, 2)))
        if chance.random() < 0.15:
            steps.insert(chance.randrange(len(steps) + 1), chance.choice(NOISE))
        if chance.random() < 0.04:
            steps = [answer([chance.choice(CALLS)])] * 25
        noisy.append(steps)
    return noisy


class Policy:
    fingerprint = "policy"

    def __init__(self, script):
        self.script = script

    def batches(self, questions, decoding, seed, wanted):
        yield sorted(wanted), [self._answer(*questions[i].id.split("/")) for i in sorted(wanted)]

    def _answer(self, entry, turn, step):
        texts = self.script[entry][int(turn)]
        return GeneratedAnswer(texts[int(step)] if int(step) < len(texts) else DONE, 1, True)


def digest(value):
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _ours(script, tmp_path):
    outcome = {}

    def prompting(row, messages):
        seen = outcome.setdefault(row["id"], {"prompts": [], "functions": digest(row["function"])})
        seen["prompts"].append(digest(messages))
        return Prompt.of("", str(len(messages)))

    with Checker(list(MULTI_TURN)) as checker:
        entries = {name: checker.entries(name) for name in MULTI_TURN}
        rounds = episodes.Rounds(Policy(script), compose_run([]).eval.bfcl, 0, tmp_path / "answers.jsonl")
        done = episodes.run(entries, checker, prompting, rounds)
    return {name: {"result": episode.result, **outcome[name]} for name, episode in done.items()}


@pytest.mark.parametrize("kind", ["clean", "noisy"])
def test_all_episodes_go_as_in_the_official_loop(kind, scripts, official, tmp_path):
    """The same results, and the same messages before every single answer."""
    files.write_json(tmp_path / "scripts.json", scripts[kind])
    command = [official, LOOP, tmp_path / "scripts.json", tmp_path / "theirs.json", *MULTI_TURN]
    subprocess.run(list(map(str, command)), check=True, env={"TZ": "UTC", "PATH": "/usr/bin:/bin"})
    theirs = files.read_json(tmp_path / "theirs.json")
    ours = _ours(scripts[kind], tmp_path)
    assert len(ours) == 800
    assert [name for name in theirs if theirs[name] != ours[name]] == []
    lengths = [len(turn) for episode in ours.values() for turn in episode["result"]]
    assert (max(lengths) == 21) is True
    assert sum(len(episode["prompts"]) for episode in ours.values()) > 5000


@pytest.fixture
def settings():
    settings = compose_run([])
    chosen = settings.eval.model_copy(update={"bfcl_categories": [*SINGLE_TURN, *MULTI_TURN]})
    return settings.model_copy(update={"eval": chosen})


def _evaluated(found, settings, tmp_path):
    results.write(tmp_path, found)
    files.write_json(tmp_path / "prepared" / "manifest.json", {"skeleton": None})
    out = tmp_path / "out"
    given = {"answers": tmp_path / "result", "report": lambda line: None}
    return bfcl.evaluate(None, tmp_path / "prepared", out, settings, **given), out


def _noisy_text(name, text):
    chance = random.Random(name)
    changes = (
        lambda text: text.replace('"parameters"', '"arguments"'),
        lambda text: text.replace("\n</tool_call>", ""),
        lambda text: text.replace('{"name"', "{'name'"),
        lambda text: text + "\n<response> As <tool_call> says. </response>",
        lambda text: text.replace('": "', '": "x'),
        lambda text: text.replace('"parameters": {', '"parameters": {"extra": 1, '),
        lambda text: text.upper(),
        lambda text: "<tool_call>\n" + json.dumps({"name": "f", "parameters": ["\ud83d"]}) + "\n</tool_call>",
        lambda text: "",
    )
    return chance.choice(changes)(text) if chance.random() < 0.5 else text


@pytest.mark.parametrize("kind", ["oracle", "noisy"])
def test_the_official_runner_gives_the_same_scores(
    kind, scripts, official, bfcl_oracle, settings, tmp_path, monkeypatch
):
    found = {name: bfcl_oracle(name) for name in (*SINGLE_TURN, *MULTI_TURN)}
    if kind == "noisy":
        for category in SINGLE_TURN:
            found[category] = {name: _noisy_text(name, text) for name, text in found[category].items()}
        for category in MULTI_TURN:
            noisy = {name: scripts["noisy"][name] for name in found[category]}
            found[category] = noisy | {f"{category}_7": "Error during inference: out of room"}
    summary, out = _evaluated(found, settings, tmp_path)
    outcome, said = _crosschecked(out, monkeypatch)
    assert [name for name, row in outcome["categories"].items() if row["differing"]] == []
    assert [row["id"] for row in files.read_json_lines(out / "items.jsonl") if not _same_words(row, said)] == []
    assert outcome["equal"]
    counts = {name: (row["n"], row["official"]) for name, row in outcome["categories"].items()}
    assert counts == {name: (c["n"], c["correct"]) for name, c in summary["categories"].items()}
    total = sum(correct for _, correct in counts.values())
    assert total == 4441 - 7 if kind == "oracle" else 1500 < total < 4000
    assert files.read_json(out / "crosscheck.json") == outcome


def _crosschecked(out, monkeypatch):
    """The outcome, and what the official runner says of every wrong entry."""
    said = {}
    asked = crosscheck.official

    def official(*given, **options):
        theirs = asked(*given, **options)
        said.update({name: error for row in theirs.values() for name, error in row["wrong"].items()})
        return theirs

    monkeypatch.setattr(crosscheck, "official", official)
    return crosscheck.crosscheck(out, report=lambda line: None), said


def _same_words(row, said):
    """Whether our item gives the official runner's own message, up to where it is cut."""
    if row["correct"] or row["error_type"].startswith(("not_allowed", "multi_turn:inference_error")):
        return True
    error = said.get(row["id"], "")
    words = error["error_message"] if isinstance(error, dict) else error
    words = " ".join(map(str, words)) if isinstance(words, list) else words
    words = words.removesuffix(" None")  # the reason that the handler gave for finding no call
    return words[:1200] in row["why"] and len(words) > 20


NATIVE = {
    "qwen": (
        as_qwen,
        lambda text: text.replace('"arguments"', '"parameters"'),
        lambda text: text.replace("\n</tool_call>", ""),
        lambda text: text.replace('{"name"', "{'name'"),
        lambda text: text.replace('"arguments": {', '"arguments": {"extra": 1, '),
        lambda text: text.replace('": "', '": "x'),
        lambda text: text.replace('"name": "', '"name": 5, "_": "'),
        lambda text: text.replace("<tool_call>\n", "<tool_call>"),
        lambda text: text + "\n<tool_call>\n[1]\n</tool_call>",
        lambda text: text + "\n</think>\nI cannot.",
    ),
    "llama": (
        as_llama,
        lambda text: text.removeprefix("<|python_tag|>"),
        lambda text: text.replace("; ", ", "),
        lambda text: f"[{text.removeprefix('<|python_tag|>').replace('; ', ', ')}]",
        lambda text: text.replace('"parameters"', '"arguments"'),
        lambda text: text.replace("true", "True").replace("null", "None"),
        lambda text: text.replace('"name": "', '"name": 5, "_": "'),
        lambda text: text + ";",
        lambda text: text.replace('"parameters": {', '"parameters": {"extra": 1, '),
        lambda text: f"Sure. {text}",
    ),
}


@pytest.mark.parametrize("kind", NATIVE)
def test_the_official_handlers_of_native_formats_give_the_same_scores(
    kind, scripts, official, bfcl_oracle, settings, tmp_path, monkeypatch
):
    """Half of the answers as that model writes them, the others as it might."""
    written, *changes = NATIVE[kind]

    def noisy(name, text):
        chance = random.Random(name)
        native = written(text)
        return chance.choice(changes)(native) if chance.random() < 0.5 else native

    found = {name: {i: noisy(i, text) for i, text in bfcl_oracle(name).items()} for name in SINGLE_TURN}
    for category in MULTI_TURN:
        found[category] = {
            name: [[noisy(f"{name}/{t}/{s}", text) for s, text in enumerate(turn)] for t, turn in enumerate(turns)]
            for name, turns in bfcl_oracle(category).items()
        }
    settings = settings.model_copy(update={"eval": settings.eval.model_copy(update={"bfcl_format": "native"})})
    summary, out = _evaluated(found, settings, tmp_path)
    assert summary["format"] == "native"
    outcome, said = _crosschecked(out, monkeypatch)
    assert [(name, row["differing"]) for name, row in outcome["categories"].items() if row["differing"]] == []
    assert {name: row["n"] for name, row in outcome["categories"].items()} == {
        name: category["n"] for name, category in summary["categories"].items()
    }
    total = sum(row["official"] for row in outcome["categories"].values())
    assert 1000 < total < 4000
    assert len(said) == 4441 - total


def test_a_difference_is_found(official, bfcl_oracle, settings, tmp_path):
    chosen = settings.eval.model_copy(update={"bfcl_categories": ["live_parallel"]})
    settings = settings.model_copy(update={"eval": chosen})
    _, out = _evaluated({"live_parallel": bfcl_oracle("live_parallel")}, settings, tmp_path)
    rows = files.read_json_lines(out / "items.jsonl")
    files.write_json_lines(out / "items.jsonl", [rows[0] | {"correct": False}, *rows[1:]])
    outcome = crosscheck.crosscheck(out, report=lambda line: None)
    assert not outcome["equal"]
    assert outcome["categories"]["live_parallel"]["differing"] == [rows[0]["id"]]
    assert rows[0]["id"] in crosscheck.differences(outcome)


def test_an_answer_that_ends_the_official_runner_is_an_error(official, bfcl_oracle, settings, tmp_path):
    """Its status is then 0, and there is no score; ours goes on, and nothing of the answer happens."""
    chosen = settings.eval.model_copy(update={"bfcl_categories": ["multi_turn_base"]})
    settings = settings.model_copy(update={"eval": chosen})
    pwned = tmp_path / "pwned"
    calls = [
        {"name": "__import__('os').system", "parameters": {"command": f"touch {pwned}"}},
        {"name": "open", "parameters": {"file": str(pwned), "mode": "w"}},
        {"name": "__import__('sys').exit", "parameters": {}},
    ]
    found = bfcl_oracle("multi_turn_base")
    found["multi_turn_base_3"] = [[answer(calls)] for _ in found["multi_turn_base_3"]]
    summary, out = _evaluated({"multi_turn_base": found}, settings, tmp_path)
    assert summary["categories"]["multi_turn_base"]["correct"] == 199
    with pytest.raises(EvaluationError, match="ended without a score for multi_turn_base"):
        crosscheck.crosscheck(out, report=lambda line: None)
    assert not pwned.exists()
