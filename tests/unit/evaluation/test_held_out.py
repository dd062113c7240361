"""Held-out tasks, and the same tasks through BFCL's checker, with labels and spoilt labels for answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from restool import files
from restool.core.errors import EvaluationError
from restool.data import bfcl_export, rows, synthetic
from restool.evaluation import bfcl, held_out
from restool.evaluation import tasks as evaluation
from restool.evaluation.answering import GeneratedAnswer
from restool.evaluation.contamination import Training
from restool.settings import SyntheticSettings

MADE = {"decoding": {"held_out/greedy": {"temperature": 0}}, "prompt_template_sha256": "p"}
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def tasks() -> list[rows.Row]:
    values = yaml.safe_load((ROOT / "configs/data/synthetic.yaml").read_text())["synthetic"]
    small = {"train_rows": 1, "demonstrations": 4, "transfer_rows": 0, "held_out_rows": 160}
    return synthetic.generate(SyntheticSettings(**(values | small)))[0]["held_out"]


def _items(tasks, answer, mode="greedy"):
    return [_item(row, answer(row), mode) for row in tasks]


def _item(row, text, mode="greedy"):
    return evaluation._row(held_out, held_out.task(row, "held_out", mode), GeneratedAnswer(text, 7, True))


def test_labels_are_right_in_every_respect(tasks):
    scored = _items(tasks, lambda row: row.ground_truth)
    assert all(row["exact"] for row in scored)
    assert all(row["tool_exact"] == row["tool"] for row in scored)
    summary = evaluation.summarize(held_out, "held-out", [], scored, Training.unknown())
    values = {k.rpartition("/")[2]: v for k, v in summary["aggregates"].items()}
    for metric in ("tool_exact", "exact", "format", "flawless_tool_exact", "flawless_exact", "finished"):
        assert values[metric] == 1.0
    assert values["correctness"] == 3.0
    assert values["tokens"] == 7.0
    assert summary["categories"]["held_out/greedy"]["n"] == len(tasks)
    assert {"right_name", "right_arguments"} <= set(values)
    assert all(all(row["right"].values()) for row in scored if set(row["right"]) <= {"name", "arguments"})


def test_calls_are_judged_apart_from_format(tasks):
    """Without its thought an answer has no format, but its calls stay right."""
    scored = _items(tasks, lambda row: row.ground_truth.partition("</think>\n")[2])
    assert not any(row["exact"] for row in scored)
    assert all(row["tool_exact"] == row["tool"] for row in scored)
    assert not any(row["format"] for row in scored)


def test_a_call_where_none_is_asked_for_is_not_exact(tasks):
    row = next(row for row in tasks if row.kind == "no_tool")
    called = row.ground_truth.replace(
        "<response>", '<tool_call>\n{"name": "f", "parameters": {}}\n</tool_call>\n<response>'
    )
    scored = _item(row, called)
    assert not scored["exact"]


def test_a_wrong_value_is_wrong(tasks):
    row = next(row for row in tasks if row.kind == "one_call" and row.meta["calls"][0]["parameters"])
    call = row.meta["calls"][0]
    spoilt = dict.fromkeys(call["parameters"], "nonsense")
    text = rows.tool_label([(call["name"], spoilt)])
    scored = _item(row, text)
    assert (scored["format"], scored["tool_exact"], scored["exact"]) == (1.0, False, False)


def _written(tmp_path: Path, tasks, answer) -> tuple[Path, Path]:
    prepared, held = tmp_path / "prepared", tmp_path / "eval" / "held-out"
    bfcl_export.write(tasks, prepared)
    files.write_json_lines(held / "answers.jsonl", [{"id": f"greedy/{row.id}", "text": answer(row)} for row in tasks])
    files.write_json(held / "summary.json", {**MADE, "model": "m"})
    return held, prepared


def test_official_checker_agrees_that_labels_are_right(tmp_path, tasks, bfcl_data):
    held, prepared = _written(tmp_path, tasks, lambda row: row.ground_truth)
    summary = bfcl.evaluate_synthetic(held, prepared, tmp_path / "out", report=lambda line: None)
    assert summary["aggregates"] == {"calls": 1.0, "overall": 1.0}
    assert summary["categories"]["multiple"]["n"] > 100
    assert sum(c["n"] for c in summary["categories"].values()) == len(tasks)
    assert files.read_json(tmp_path / "out" / "summary.json") == summary
    assert len(files.read_json_lines(tmp_path / "out" / "items.jsonl")) == len(tasks)


def test_official_checker_agrees_that_another_tool_is_wrong(tmp_path, tasks, bfcl_data):
    def spoilt(row):
        calls = [(c["name"] + "_", c["parameters"]) for c in row.meta["calls"]]
        return rows.tool_label(calls or [("f", {})])

    held, prepared = _written(tmp_path, tasks, spoilt)
    summary = bfcl.evaluate_synthetic(held, prepared, tmp_path / "out", report=lambda line: None)
    assert summary["aggregates"] == {"calls": 0.0, "overall": 0.0}


def test_missing_held_out_answers_are_an_error_that_names_them(tmp_path, tasks, bfcl_data):
    held, prepared = _written(tmp_path, tasks, lambda row: "")
    kept = files.read_json_lines(held / "answers.jsonl")
    files.write_json_lines(held / "answers.jsonl", kept[:-1])
    with pytest.raises(EvaluationError, match=json.loads(json.dumps(kept[-1]["id"])).removeprefix("greedy/")):
        bfcl.evaluate_synthetic(held, prepared, tmp_path / "out", report=lambda line: None)
    (held / "summary.json").unlink()
    with pytest.raises(EvaluationError, match="held-out first"):
        bfcl.evaluate_synthetic(held, prepared, tmp_path / "out", report=lambda line: None)
    assert not (tmp_path / "out" / "summary.json").exists()


def test_data_without_such_tasks_is_not_run(tmp_path):
    summary = bfcl.evaluate_synthetic(tmp_path, tmp_path, tmp_path / "out", report=lambda line: None)
    assert summary["not_run"]
    assert summary["complete"] is False
