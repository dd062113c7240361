"""A benchmark that says only what its tasks are and when an answer is right; and the registry that finds it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from restool import files
from restool.core.errors import ConfigurationError, EvaluationError
from restool.evaluation import benchmarks, examples, failures, items, qa
from restool.evaluation.answering import GeneratedAnswer
from restool.evaluation.contamination import Training
from restool.experiments import compose_run

ROOT = Path(__file__).parents[3]
QUESTIONS = [
    {"id": "1", "question": "Capital of France?", "answers": ["Paris"], "category": "cities"},
    {"id": "2", "question": "Who wrote Hamlet?", "answers": ["William Shakespeare", "Shakespeare"]},
    {"id": "3", "question": "Two and two?", "answers": ["4", "four"]},
]
ANSWERS = {"1": "<think> Rome? </think>\nAnswer: the paris.", "2": "<response> Goethe </response>", "3": ""}
CATEGORY_KEYS = {
    *("n", "correct", "accuracy", "interval", "parse_failures", "over_length", "force_quits", "errors"),
}
SUMMARY_KEYS = {
    *("benchmark", "version", "data_sha256", "formula", "categories", "aggregates", "decoding", "complete"),
    *("prompt_template_sha256", "software", "contamination", "metrics"),
}


class Scripted:
    """Answers what it was given; a source of answers as far as a benchmark can see."""

    fingerprint = "scripted"
    description: dict = {}  # noqa: RUF012

    def __init__(self, texts):
        self.texts = texts

    def batches(self, questions, decoding, seed, wanted):
        yield list(range(len(questions))), [GeneratedAnswer(self.texts[q.id], 3, True) for q in questions]


@pytest.fixture(scope="module")
def settings():
    return compose_run([])


@pytest.fixture
def questions(tmp_path):
    files.write_json_lines(tmp_path / "questions.jsonl", QUESTIONS)
    return tmp_path / "questions.jsonl"


def evaluate(settings, questions, out, model=None, **given):
    chosen = benchmarks.get("qa", {"questions": str(questions)})
    given = {"training": Training.unknown(), "report": lambda line: None, **given}
    return chosen.evaluate(model or Scripted(ANSWERS), out, out, settings, **given)


def test_a_summary_is_what_the_contract_says(settings, questions, tmp_path):
    summary = evaluate(settings, questions, tmp_path / "out")
    assert set(summary) >= SUMMARY_KEYS
    assert all(set(category) == CATEGORY_KEYS for category in summary["categories"].values())
    assert summary["categories"]["cities"]["interval"] == items.wilson(1, 1)
    assert summary["aggregates"]["correct"] == pytest.approx(1 / 3)
    assert summary["intervals"]["correct"] == items.wilson(1, 3)
    assert summary["categories"]["all"]["parse_failures"] == 1
    assert summary["decoding"]["temperature"] == 0.0
    assert summary["complete"]
    assert files.read_json(tmp_path / "out" / "summary.json") == summary
    rows = {row["id"]: row for row in files.read_json_lines(tmp_path / "out" / "items.jsonl")}
    assert (rows["2"]["parsed"], rows["2"]["why"]) == (
        "Goethe",
        "'Goethe' is none of: William Shakespeare, Shakespeare",
    )
    assert rows["1"]["failure_kind"] is None
    told = files.read_json_lines(tmp_path / "out" / "examples.jsonl")
    assert {(one["id"], one["kind"]) for one in told} == {("2", failures.WRONG), ("3", failures.UNREADABLE)}


def test_a_limited_benchmark_has_no_total(settings, questions, tmp_path):
    files.write_json_lines(questions, [*QUESTIONS, {"id": "4", "question": "Of Spain?", "answers": ["M"]}])
    chosen = benchmarks.get("qa", {"questions": str(questions), "limit": 2})
    answered = Scripted({**ANSWERS, "4": ""})
    summary = chosen.evaluate(
        answered, tmp_path, tmp_path / "out", settings, training=Training.unknown(), report=lambda line: None
    )
    assert {name: category["n"] for name, category in summary["categories"].items()} == {"cities": 1, "all": 2}
    assert (summary["limit"], summary["complete"]) == (2, False)
    assert summary["aggregates"] == {"correct": None, "f1": None}
    assert not summary["intervals"]


def test_what_was_never_answered_is_wrong(settings, questions, tmp_path):
    files.write_json_lines(tmp_path / "a.jsonl", [{"id": "1", "text": "Paris"}])
    with pytest.raises(EvaluationError, match=r"2 missing \(2, 3\)"):
        evaluate(settings, questions, tmp_path / "out", answers=tmp_path / "a.jsonl")
    summary = evaluate(settings, questions, tmp_path / "out", answers=tmp_path / "a.jsonl", allow_missing=True)
    assert (summary["missing"], summary["complete"], summary["decoding"]) == (2, False, None)
    assert summary["aggregates"]["correct"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "x"}, "line 1: expected"),
        ({"question": "x", "answers": []}, "line 1: expected"),
        ({"question": 3, "answers": ["x"]}, "line 1: expected"),
        (["x"], "line 1: expected"),
    ],
)
def test_a_line_that_is_no_question_is_named(settings, tmp_path, row, message):
    files.write_json_lines(tmp_path / "q.jsonl", [row])
    with pytest.raises(EvaluationError, match=message):
        evaluate(settings, tmp_path / "q.jsonl", tmp_path / "out")


def test_two_tasks_of_one_id_and_no_tasks_at_all_are_errors(settings, tmp_path):
    files.write_json_lines(tmp_path / "q.jsonl", [QUESTIONS[0], QUESTIONS[0]])
    with pytest.raises(EvaluationError, match="two tasks have the id '1'"):
        evaluate(settings, tmp_path / "q.jsonl", tmp_path / "out")
    files.write_json_lines(tmp_path / "q.jsonl", [])
    with pytest.raises(EvaluationError, match="no tasks"):
        evaluate(settings, tmp_path / "q.jsonl", tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Paris", "Paris"),
        ("<think> Answer: Rome </think>\nIt is so.\nAnswer: Paris\nDone", "Paris"),
        ("<response> It is\nParis </response>", "Paris"),
        ("answer : 42", "42"),
        ("<think> never closed", "<think> never closed"),
        ("", ""),
    ],
)
def test_what_counts_of_an_answer(text, found):
    assert qa.short_answer(text) == found


def test_f1_agrees_with_squads_definition():
    assert qa.f1("the Eiffel Tower in Paris", "Eiffel Tower") == pytest.approx(2 * 1 * 0.5 / 1.5)
    assert qa.f1("", "") == 1.0
    assert qa.f1("x", "") == 0.0


def test_the_registry_names_what_is_near(tmp_path):
    assert {"held-out", "api-bank", "bfcl", "bfcl-synthetic", "qa"} <= set(benchmarks.names())
    with pytest.raises(ConfigurationError, match="did you mean 'held-out'"):
        benchmarks.get("heldout")


def test_a_benchmark_files_faults_are_named(tmp_path, monkeypatch):
    (tmp_path / "configs" / "benchmark").mkdir(parents=True)
    (tmp_path / "configs" / "config.yaml").write_text("")
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "configs" / "benchmark" / "mine.yaml"
    path.write_text("title: x\nmodul: y\n")
    with pytest.raises(ConfigurationError, match=r"mine\.yaml: .*'modul' \(did you mean 'module'\?\)"):
        benchmarks.get("mine")
    path.write_text("title: x\nmodule: no_such_module\n")
    with pytest.raises(ConfigurationError, match="cannot be imported"):
        benchmarks.get("mine").evaluate(None, tmp_path, tmp_path, None, training=Training(), report=print)


def test_the_documented_benchmark_works_as_written(settings, tmp_path, monkeypatch):
    """docs/evaluation.md, "Add your own benchmark": its module, its YAML and its questions, put where it says."""
    page = (ROOT / "docs" / "evaluation.md").read_text()
    blocks = dict(re.findall(r"`([\w./-]+)`:\n\n```\w*\n(.*?)```", page, flags=re.DOTALL))
    for name, content in blocks.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    (tmp_path / "configs" / "config.yaml").write_text("")
    monkeypatch.chdir(tmp_path)
    (name,) = benchmarks.names()
    assert yaml.safe_load((tmp_path / "configs" / "benchmark" / f"{name}.yaml").read_text())["title"]
    chosen = benchmarks.get(name)
    source = Scripted({"1": "It is 7.", "2": "I do not know."})
    given = {"training": Training(), "report": lambda line: None}
    summary = chosen.evaluate(source, tmp_path, tmp_path / "out", settings, **given)
    assert summary["benchmark"] == name
    assert sum(c["correct"] for c in summary["categories"].values()) == 1
    assert sum(c["n"] for c in summary["categories"].values()) == 2
    assert [one["id"] for one in files.read_json_lines(tmp_path / "out" / "examples.jsonl")] == ["2"]


def test_examples_cover_kinds_and_categories():
    rows = [
        {"id": i, "category": f"c{i % 2}", "failure_kind": kind, "why": "w", "total": -i}
        for i, kind in enumerate(["a"] * 6 + ["b"] * 2 + [None])
    ]
    chosen = examples.choose(rows, [examples.Shown("p" * 2000, "e", "x" * 5000)] * len(rows))
    assert [one["kind"] for one in chosen] == ["a", "a", "a", "b", "b"]
    assert [one["id"] for one in chosen[:3]] == [5, 4, 3]
    assert {one["category"] for one in chosen[:2]} == {"c0", "c1"}
    assert (len(chosen[0]["prompt_tail"]), len(chosen[0]["answer"]), chosen[0]["answer_characters"]) == (
        700,
        2000,
        5000,
    )


CALL = {"name": "f", "parameters": {"x": 1, "y": "a"}}


@pytest.mark.parametrize(
    ("found", "kind"),
    [
        ([], failures.NO_CALL),
        ([CALL, CALL], failures.COUNT),
        ([{**CALL, "name": "g"}], failures.NAME),
        ([{"name": "f", "parameters": {"x": 1}}], failures.ARGUMENT_NAMES),
        ([{"name": "f", "parameters": None}], failures.ARGUMENT_NAMES),
        ([{"name": "f", "parameters": {"x": 1, "y": "b"}}], failures.ARGUMENT_VALUES),
        ([{"name": None, "parameters": {}}], failures.NAME),
        ([CALL], None),
    ],
)
def test_the_first_difference_is_named(found, kind):
    told = failures.difference(found, [CALL])
    assert (told and told[0]) == kind
    assert (
        failures.difference(found, []) is None if not found else failures.difference(found, [])[0] == failures.UNASKED
    )


def test_weighted_intervals():
    categories = {"a": {"n": 40, "correct": 10}, "b": {"n": 10, "correct": 5}}
    pooled = items.weighted({"a": 0.8, "b": 0.2}, categories)
    assert pooled == pytest.approx(items.wilson(15, 50))  # weighs what it holds: the plain interval
    equal = items.weighted({"a": 0.5, "b": 0.5}, categories)
    effective = 1 / (0.25 / 40 + 0.25 / 10)
    assert equal == pytest.approx(items.wilson(0.375 * effective, effective))
    assert items.weighted({"a": 0.5, "c": 0.5}, categories) is None


def test_weights_of_bfcls_totals_give_its_totals_back():
    from restool.evaluation.bfcl import aggregates

    names = (*aggregates.SINGLE_TURN, *aggregates.MULTI_TURN)
    sizes = {name: 10 + 7 * i for i, name in enumerate(names)}
    accuracy = {name: (i % 7) / 7 for i, name in enumerate(names)}
    weights = items.linear_weights(lambda values: aggregates.totals(values, sizes), names)
    for total, value in aggregates.totals(accuracy, sizes).items():
        assert sum(weight * accuracy[name] for name, weight in weights[total].items()) == pytest.approx(value)
        assert sum(weights[total].values()) == pytest.approx(1)
