from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from restool import files
from restool.core.errors import EvaluationError
from restool.data import api_bank as data
from restool.evaluation import api_bank, items
from restool.evaluation.answering import GeneratedAnswer
from restool.experiments import compose_run

GOLD = {"name": "F", "parameters": {"a": "1", "b": "x"}}
RIGHT = json.dumps(GOLD)
WRONG = '{"name": "G", "parameters": {"a": "1", "b": "x"}}'
BARE = '{"a": "1", "b": "x"}'


@pytest.mark.parametrize(
    ("text", "compat", "strict"),
    [
        (f"<tool_call>\n{RIGHT}\n</tool_call>", True, True),
        (f"<tool_call>\n{RIGHT}", True, True),
        (RIGHT, True, True),  # no tag needed
        (f"<tool_call>{WRONG}</tool_call>prose<tool_call>\n{RIGHT}\n</tool_call>", True, True),  # the last block counts
        (f"<tool_call>\n{WRONG}\n{RIGHT}\n</tool_call>", True, False),  # any of several
        (f"<tool_call>\nprose\n{RIGHT}\n</tool_call>", True, True),  # lines that are no JSON are dropped
        (BARE, True, False),  # parameters alone are taken for the right tool's
        (json.dumps(RIGHT), True, False),  # JSON within a JSON string
        (f"5\n{RIGHT}", False, False),  # a scalar ends the sample
        (f"null\n{RIGHT}", False, False),
        (f"{RIGHT}\n5", True, False),  # ... but not after the right call
        (f"[]\n{RIGHT}", True, False),
        (f"[{RIGHT}]", False, False),
        (WRONG, False, False),
        (RIGHT.replace("parameters", "arguments"), False, False),
        (RIGHT.replace('"1"', "1"), False, False),  # typed values differ
        (RIGHT.replace('"x"', '"X"'), False, False),
        (json.dumps(GOLD, indent=1), False, False),
        ("{}", False, False),
        ("", False, False),
    ],
)
def test_rules(text, compat, strict):
    calls = api_bank.read_calls(text)
    assert api_bank.compat(calls, GOLD) is compat
    assert api_bank.strict(calls, GOLD) is strict


def test_empty_gold_parameters_are_met_by_an_empty_object():
    gold = {"name": "F", "parameters": {}}
    assert api_bank.compat(api_bank.read_calls("{}"), gold)
    assert not api_bank.strict(api_bank.read_calls("{}"), gold)


def _samples() -> list[api_bank.Sample]:
    root = Path(os.environ.get("RESTOOL_MIRROR") or Path(__file__).parents[4] / "shared" / "data")
    if not (root / "api_bank").is_dir():
        pytest.skip("API-Bank is not here (RESTOOL_MIRROR)")
    rows = data.load_samples(root / "api_bank")
    return [api_bank.Sample(r["id"], r["id"].rpartition("/")[0], r["system"], r["user"], r["gold"]) for r in rows]


def _scored(samples, answer) -> dict:
    rows = [api_bank.item(s, GeneratedAnswer(answer(s), 1, True)) for s in samples]
    return {k: round(100 * v, 2) for k, v in api_bank.summarize(rows, samples)["aggregates"].items()}


def test_oracle_and_corruptions_on_the_real_samples():
    """The table of the evaluation notes, section 5."""
    samples = _samples()
    assert len(samples) == 597
    assert _scored(samples, lambda s: json.dumps(s.gold)) == {"compat/overall": 100.0, "strict/overall": 100.0}
    assert _scored(samples, lambda s: "{}") == {"compat/overall": 1.17, "strict/overall": 0.0}
    bare = _scored(samples, lambda s: json.dumps(s.gold["parameters"]))
    assert bare["compat/overall"] == 100.0
    assert bare["strict/overall"] < 1.0
    assert _scored(samples, lambda s: json.dumps(_upper(s.gold)))["compat/overall"] == 19.26
    assert _scored(samples, lambda s: json.dumps(_digits(s.gold)))["compat/overall"] == 81.57


def _upper(gold):
    return gold | {"parameters": {k: v.upper() if isinstance(v, str) else v for k, v in gold["parameters"].items()}}


def _digits(gold):
    return gold | {"parameters": {k: int(v) if str(v).isdigit() else v for k, v in gold["parameters"].items()}}


def test_existing_answers_are_checked(tmp_path):
    path = tmp_path / "answers.jsonl"
    files.write_json_lines(path, [{"id": "level-1/0", "text": "a"}, {"id": "level-1/0", "text": "b"}])
    with pytest.raises(EvaluationError, match=r"1 duplicate \(level-1/0\); 1 missing \(level-1/1\)"):
        api_bank.read_answers(path, ["level-1/0", "level-1/1"], allow_missing=False)
    files.write_json_lines(path, [{"id": "level-1/0", "answer": "a"}])
    with pytest.raises(EvaluationError, match="line 1"):
        api_bank.read_answers(path, ["level-1/0"], allow_missing=False)
    with pytest.raises(EvaluationError, match="is no file"):
        api_bank.read_answers(tmp_path / "none", [], allow_missing=False)


def test_a_limit_asks_the_first_of_each_level_and_gives_no_total(tmp_path, monkeypatch):
    names = ["level-1/0", "level-1/1", "level-1/2", "level-2/0"]
    monkeypatch.setattr(
        api_bank, "load", lambda *_: [api_bank.Sample(n, n.rpartition("/")[0], "", n, GOLD) for n in names]
    )
    files.write_json(tmp_path / "manifest.json", {"benchmarks": {"api_bank": {"available": True}}})
    settings = compose_run(["eval.api_bank_limit=2"])
    summary = api_bank.evaluate(Right(), tmp_path, tmp_path / "out", settings, report=lambda line: None)
    assert {name: category["n"] for name, category in summary["categories"].items() if "strict" in name} == {
        "strict/level-1": 2,
        "strict/level-2": 1,
    }
    assert (summary["limit"], summary["complete"]) == (2, False)
    assert summary["aggregates"] == {"compat/overall": None, "strict/overall": None}


class Right:
    """A source of answers that knows the right one."""

    fingerprint = "right"
    description: dict = {}  # noqa: RUF012

    def batches(self, questions, decoding, seed, wanted):
        yield list(range(len(questions))), [GeneratedAnswer(RIGHT, 3, True)] * len(questions)


def test_missing_answers_are_wrong_and_counted():
    sample = api_bank.Sample("level-1/0", "level-1", "", "", GOLD)
    rows = [api_bank.item(sample, None), api_bank.item(sample, GeneratedAnswer(RIGHT, 1, True))]
    summary = api_bank.summarize(rows, [sample])
    assert summary["missing"] == 1
    assert summary["aggregates"]["strict/overall"] == 0.5
    assert summary["intervals"]["strict/overall"] == items.wilson(1, 2)
