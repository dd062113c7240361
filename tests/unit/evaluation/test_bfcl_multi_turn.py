"""Multi-turn episodes with a scripted model in place of a real one; the tools are BFCL's, behind the fence."""

from __future__ import annotations

import json
import re
from itertools import pairwise

import pytest

from restool import files
from restool.data.prompts import SLOT
from restool.evaluation import bfcl
from restool.evaluation.answering import GeneratedAnswer, Prompt
from restool.evaluation.bfcl import episodes, prompts, results, scoring
from restool.evaluation.bfcl.checker import Checker, Limits
from restool.evaluation.bfcl.fenced.rules import ERROR_PREFIX, OVER_LENGTH
from restool.experiments import compose_run

BASE, MISSING = "multi_turn_base", "multi_turn_miss_func"
DONE = "<response> Done. </response>"
LS = '<tool_call>\n{"name": "ls", "parameters": {}}\n</tool_call>'


def calls(*made: tuple[str, dict]) -> str:
    lines = [json.dumps({"name": name, "parameters": parameters}) for name, parameters in made]
    return "<tool_call>\n" + "\n".join(lines) + "\n</tool_call>"


ENDLESS = calls(
    ("mkdir", {"dir_name": "d"}),
    *(
        step
        for i in range(40)
        for step in (
            ("cp", {"source": "d", "destination": f"x{i}"}),
            ("mv", {"source": f"x{i}", "destination": "d"}),
        )
    ),
    ("find", {"path": "d", "name": "zzz"}),
)
"""A folder with 2^40 paths in it, and a search through all of them."""


class Scripted:
    """Answers by entry, turn and step; a turn's script that is over is followed by an answer without calls."""

    def __init__(self, scripts, name="scripted", patience=10**9):
        self.scripts, self.fingerprint, self.patience = scripts, name, patience
        self.description = {"engine": "script"}
        self.asked: list[list[str]] = []
        self.prompts: dict[str, Prompt] = {}

    def batches(self, questions, decoding, seed, wanted):
        if len(self.asked) == self.patience:
            raise KeyboardInterrupt
        self.asked.append([questions[i].id for i in sorted(wanted)])
        self.prompts |= {question.id: question.prompt for question in questions}
        yield sorted(wanted), [self._answer(questions[i].id) for i in sorted(wanted)]

    def _answer(self, name):
        entry, turn, step = name.split("/")
        texts = dict(enumerate(self.scripts.get(entry, [])[int(turn)] if entry in self.scripts else []))
        text = texts.get(int(step), DONE)
        return GeneratedAnswer("", 0, False, over_length=True) if text is None else GeneratedAnswer(text, 2, True)


@pytest.fixture(scope="module")
def checker(bfcl_data):
    with Checker([BASE, MISSING], limits=Limits(item_seconds=0.5)) as checker:
        yield checker


@pytest.fixture(scope="module")
def entries(checker):
    return {name: checker.entries(name)[:12] for name in (BASE, MISSING)}


@pytest.fixture(scope="module")
def oracle(bfcl_oracle, entries):
    known = {**bfcl_oracle(BASE), **bfcl_oracle(MISSING)}
    return {row["id"]: known[row["id"]] for rows in entries.values() for row in rows}


def _decoding():
    return compose_run([]).eval.bfcl


def _prompting(row, messages):
    return Prompt.of("tools", prompts.user(messages))


def _run(entries, checker, model, path):
    rounds = episodes.Rounds(model, _decoding(), 7, path)
    done = episodes.run(entries, checker, _prompting, rounds)
    rounds.tidy()
    return done


def _correct(checker, done):
    names = {BASE: [], MISSING: []}
    for name, episode in done.items():
        names[name.rsplit("_", 1)[0]].append((name, episode.result))
    return {
        name: verdict
        for category, listed in names.items()
        for (name, _), verdict in zip(listed, checker.judge(category, listed), strict=True)
    }


def test_all_episodes_advance_together_and_the_oracle_is_right(entries, checker, oracle, tmp_path):
    model = Scripted(oracle)
    done = _run(entries, checker, model, tmp_path / "answers.jsonl")
    assert {name: episode.result for name, episode in done.items()} == oracle
    assert all(verdict["correct"] for verdict in _correct(checker, done).values())
    assert len(model.asked) == max(sum(map(len, turns)) for turns in oracle.values())
    assert len(model.asked[0]) == len(set(model.asked[0])) == 24
    assert all(len(later) <= len(earlier) for earlier, later in pairwise(model.asked))
    assert done["multi_turn_base_0"].tokens == 2 * sum(map(len, oracle["multi_turn_base_0"]))


def test_prompts_hold_the_dialogue_with_results(entries, checker, oracle, tmp_path):
    model = Scripted(oracle)
    _run(entries, checker, model, tmp_path / "answers.jsonl")
    text = model.prompts["multi_turn_base_0/0/1"].messages[-1]["content"]
    assert "<obs> You have made the tool call cd(folder='document'). Execution returns: " in text
    assert '{"current_working_directory": "document"} </obs>' in text
    assert text.endswith(f"<user> {prompts.AFTER_TOOL} </user>")


def test_a_held_out_function_is_announced_in_the_official_words(entries):
    row = entries[MISSING][0]
    ((turn, (function,)),) = row["missed_function"].items()
    assert turn == "3"
    assert function["name"] == "sort"
    assert "sort" not in [document["name"] for document in row["function"]]
    (message,) = row["question"][3]
    words = "\nI have updated some more functions you can choose from. What about now?"
    assert message == {"role": "user", "content": f"{[function]}{words}"}


def test_the_step_after_the_twentieth_ends_the_episode(entries, checker, oracle, tmp_path):
    looping = {"multi_turn_base_0": [[LS] * 25, [], [], []], "multi_turn_base_1": [[], [], [], [LS] * 25]}
    done = _run(entries, checker, Scripted(oracle | looping), tmp_path / "answers.jsonl")
    assert done["multi_turn_base_0"].result == [[LS] * 21]
    verdicts = _correct(checker, done)
    assert verdicts["multi_turn_base_0"]["error_type"] == "multi_turn:force_terminated"
    last = done["multi_turn_base_1"].result
    assert [len(turn) for turn in last] == [1, 1, 1, 21][: len(last)]
    assert all(verdicts[name]["force_quit"] for name in looping)
    assert all(verdict["correct"] for name, verdict in verdicts.items() if name not in looping)


def test_twenty_steps_are_no_force_quit(entries, checker, oracle, tmp_path):
    script = {"multi_turn_base_0": [[LS] * 20, [], [], []]}
    done = _run({BASE: entries[BASE][:1]}, checker, Scripted(script), tmp_path / "answers.jsonl")
    assert [len(turn) for turn in done["multi_turn_base_0"].result] == [21, 1, 1, 1]
    assert not _correct(checker, done)["multi_turn_base_0"]["force_quit"]


def test_a_prompt_without_room_is_an_error_that_stays_in_the_count(entries, checker, oracle, tmp_path):
    script = {"multi_turn_base_2": [[LS, None], [], [], []]}
    done = _run(entries, checker, Scripted(oracle | script), tmp_path / "answers.jsonl")
    assert done["multi_turn_base_2"].result == OVER_LENGTH
    rows = scoring.episode_items(checker, BASE, {row["id"]: done[row["id"]] for row in entries[BASE]})
    row = next(row for row in rows if row["id"] == "multi_turn_base_2")
    assert (row["correct"], row["over_length"], row["failure"]) == (False, True, None)
    assert row["error_type"] == "multi_turn:inference_error"
    assert sum(row["correct"] for row in rows) == 11


def test_a_call_that_hangs_costs_only_its_own_episode(entries, checker, oracle, tmp_path):
    """The worker is killed in the middle of a round; the tools of all other episodes are brought back."""
    before = checker.restarts
    files_entry = next(row["id"] for row in entries[BASE] if any(f["name"] == "cp" for f in row["function"]))
    script = {files_entry: [[ENDLESS]] + [[]] * 9}
    model, undisturbed = Scripted(oracle | script), Scripted(oracle)
    done = _run(entries, checker, model, tmp_path / "answers.jsonl")
    assert checker.restarts == before + 1
    assert done[files_entry].failure == "time"
    assert done[files_entry].result.startswith(ERROR_PREFIX)
    verdicts = _correct(checker, done)
    assert sum(verdict["correct"] for verdict in verdicts.values()) == 23
    _run(entries, checker, undisturbed, tmp_path / "undisturbed.jsonl")
    others = [name for name in undisturbed.prompts if not name.startswith(f"{files_entry}/")]
    assert all(model.prompts[name] == undisturbed.prompts[name] for name in others)


def test_an_interrupted_run_goes_on_where_it_was(entries, checker, oracle, tmp_path):
    whole = Scripted(oracle)
    expected = _run(entries, checker, whole, tmp_path / "whole.jsonl")
    path = tmp_path / "answers.jsonl"
    with pytest.raises(KeyboardInterrupt):
        _run(entries, checker, Scripted(oracle, patience=4), path)
    path.write_bytes(path.read_bytes()[:-9])  # killed in mid-line
    model = Scripted(oracle)
    assert _run(entries, checker, model, path) == expected
    assert model.asked == [whole.asked[3][-1:], *whole.asked[4:]]
    again = Scripted(oracle)
    assert _run(entries, checker, again, path) == expected
    assert again.asked == []


def test_answers_of_another_model_are_not_used_and_not_kept(entries, checker, oracle, tmp_path):
    path = tmp_path / "answers.jsonl"
    _run(entries, checker, Scripted(oracle, "one"), path)
    files.write_json_lines(path, [*files.read_json_lines(path), {"id": "simple_python_0", "key": "k", "text": "kept"}])
    model = Scripted({}, "two")
    done = _run(entries, checker, model, path)
    assert set(map(len, done["multi_turn_base_0"].result)) == {1}
    rows = files.read_json_lines(path)
    assert "simple_python_0" in [row["id"] for row in rows]
    assert len(rows) == 1 + sum(map(len, model.asked))


@pytest.fixture
def prepared(tmp_path):
    files.write_json(tmp_path / "prepared" / "manifest.json", {"skeleton": f"Tools\n{SLOT}\nEnd"})
    return tmp_path / "prepared"


@pytest.fixture(scope="module")
def settings():
    settings = compose_run([])
    chosen = settings.eval.model_copy(update={"bfcl_categories": [BASE], "bfcl_limit": 5})
    return settings.model_copy(update={"eval": chosen})


def _evaluate(settings, prepared, out, model=None, **options):
    return bfcl.evaluate(model, prepared, out, settings, report=lambda line: None, **options)


def test_a_bad_and_a_good_checkpoint_do_not_touch_each_other(settings, prepared, tmp_path, bfcl_oracle):
    """In one process of the official code, the state of the first would be found by the second."""
    good = bfcl_oracle(BASE)
    bad = {name: [[LS] for _ in turns] for name, turns in good.items()}
    out = tmp_path / "out"
    models = [Scripted(script, name) for script, name in ((bad, "bad"), (good, "good"), (bad, "bad"))]
    seen = [_evaluate(settings, prepared, out, model)["categories"][BASE] for model in models]
    assert [category["correct"] for category in seen] == [0, 5, 0]
    assert seen[0]["n"] == 5


def test_what_is_written_scores_the_same_when_it_is_read(settings, prepared, tmp_path, bfcl_oracle):
    script = bfcl_oracle(BASE) | {"multi_turn_base_1": [[None]], "multi_turn_base_2": [[LS] * 25]}
    first = _evaluate(settings, prepared, tmp_path / "out", Scripted(script))
    again = _evaluate(settings, prepared, tmp_path / "again", answers=tmp_path / "out" / "result", allow_missing=True)
    assert again["categories"][BASE]["n"] == 200
    assert again["missing"] == 195
    for counted in ("correct", "over_length", "force_quits"):
        assert again["categories"][BASE][counted] == first["categories"][BASE][counted]
    assert first["categories"][BASE] | {"interval": 0} == {
        "n": 5, "correct": 3, "accuracy": 0.6, "interval": 0, "parse_failures": 0, "over_length": 1, "force_quits": 1,
        "errors": 0,
    }  # fmt: skip
    row = files.read_json_lines(tmp_path / "out" / "items.jsonl")[0]
    assert row["calls"][0][0] == ["cd(folder='document')", "mkdir(dir_name='temp')", row["calls"][0][0][2]]
    assert row["steps"] == [2, 2, 2, 2]
    assert row["expected"][0][:2] == ["cd(folder='document')", "mkdir(dir_name='temp')"]
    shown = files.read_json_lines(tmp_path / "out" / "examples.jsonl")
    assert [example["expected"].startswith("turn 1: ") for example in shown] == [True, True]
    assert "The length of the model result turns (1) does not match" in shown[-1]["why"] + shown[0]["why"]


def test_where_and_why_an_episode_failed(checker, oracle):
    name = "multi_turn_base_0"
    right = oracle[name]
    cases = {
        "multi_turn:empty_turn_model_response": ([*right[:2], [DONE], right[3]], 2),
        "multi_turn:instance_state_mismatch": ([[calls(("mkdir", {"dir_name": "x"})), DONE], *right[1:]], 0),
        "multi_turn:execution_response_mismatch": ([right[0], [calls(("pwd", {})), DONE], *right[2:]], 1),
    }
    verdicts = checker.judge(BASE, [(name, result) for result, _ in cases.values()])
    assert [verdict["error_type"] for verdict in verdicts] == list(cases)
    assert [verdict["turn"] for verdict in verdicts] == [turn for _, turn in cases.values()]
    assert "'x'" in verdicts[1]["error"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda rows: rows[1:], r"1 missing \(a\)"),
        (lambda rows: [rows[0], *rows], r"1 duplicate \(a\)"),
        (lambda rows: [*rows, {"id": "x", "result": []}], r"1 unknown \(x\)"),
        (lambda rows: [{"id": "a", "result": [["a"], [1]]}, *rows[1:]], r"line 1 \(a\): not as expected, .*\[\[text"),
        (lambda rows: [*rows[:1], {"id": "b"}], r"line 2 \(b\): not as expected"),
    ],
)
def test_faults_of_answers_are_named(tmp_path, change, told):
    rows = [{"id": "a", "result": [["text"]]}, {"id": "b", "result": f"{ERROR_PREFIX} x"}]
    path = tmp_path / "result" / "name" / "multi_turn" / f"BFCL_v4_{BASE}_result.json"
    files.write_json_lines(path, rows)
    found, faults = results.read(tmp_path, {BASE: ["a", "b"]}, allow_missing=False)
    assert [episode.result for episode in found[BASE].values()] == [row["result"] for row in rows]
    assert faults == {}
    files.write_json_lines(path, change(rows))
    found, faults = results.read(tmp_path, {BASE: ["a", "b"]}, allow_missing=False)
    assert found == {}
    assert re.search(told, faults[BASE])


def test_a_category_with_a_fault_is_left_out_and_the_rest_is_scored(settings, prepared, tmp_path, bfcl_oracle):
    faulty, whole = "live_parallel", "live_relevance"
    chosen = settings.eval.model_copy(update={"bfcl_categories": [faulty, whole]})
    settings = settings.model_copy(update={"eval": chosen})
    results.write(tmp_path, {name: bfcl_oracle(name) for name in (faulty, whole)})
    path = next(tmp_path.rglob(f"*{faulty}_result.json"))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(bfcl.EvaluationError, match=r"line 16 \((\S+)\): cut off; 1 missing \(\1\); --allow"):
        _evaluate(settings, prepared, tmp_path / "out", answers=tmp_path / "result")
    summary = files.read_json(tmp_path / "out" / "summary.json")
    assert summary["categories"].keys() == {whole}
    assert summary["categories"][whole]["correct"] == 16
    assert summary["faults"].keys() == {faulty}
    assert summary["complete"] is False
    summary = _evaluate(settings, prepared, tmp_path / "out", answers=tmp_path / "result", allow_missing=True)
    assert (summary["missing"], summary["allow_missing"], summary["complete"]) == (1, True, False)
    assert summary["categories"][faulty]["correct"] == 15
    assert summary["aggregates"]["live"] is None
