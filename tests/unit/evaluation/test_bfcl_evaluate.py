"""A whole evaluation from answers that exist, in BFCL's official layout."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from restool import files
from restool.core.errors import ConfigurationError, EvaluationError
from restool.evaluation import bfcl
from restool.evaluation.bfcl import results
from restool.evaluation.bfcl.aggregates import MULTI_TURN, SINGLE_TURN
from restool.evaluation.bfcl.checker import Checker
from restool.experiments import compose_run


@pytest.fixture(scope="module")
def settings():
    return compose_run([])


@pytest.fixture
def prepared(tmp_path):
    files.write_json(tmp_path / "prepared" / "manifest.json", {"skeleton": None})
    return tmp_path / "prepared"


def _only(settings, *categories):
    chosen = settings.eval.model_copy(update={"bfcl_categories": list(categories)})
    return settings.model_copy(update={"eval": chosen})


def _evaluate(settings, prepared, tmp_path, **options):
    folder, out = tmp_path / "result", tmp_path / "out"
    return bfcl.evaluate(None, prepared, out, settings, answers=folder, report=lambda line: None, **options)


def test_oracle_run_is_complete_and_small(settings, prepared, tmp_path, bfcl_oracle):
    results.write(tmp_path, {name: bfcl_oracle(name) for name in SINGLE_TURN})
    summary = _evaluate(settings, prepared, tmp_path)
    assert summary["complete"]
    assert summary["limit"] is None
    assert {name: c["n"] for name, c in summary["categories"].items()}["live_multiple"] == 1053
    assert summary["aggregates"]["overall"] is None
    assert summary["not_run_categories"] == list(MULTI_TURN)
    assert summary["aggregates"]["single_turn"] == pytest.approx(0.9980, abs=5e-4)
    assert summary["aggregates"]["relevance_detection"] == 1.0
    assert summary["missing"] == 0
    assert set(summary["data_sha256"]) == set(SINGLE_TURN)
    assert files.read_json(tmp_path / "out" / "summary.json") == summary
    rows = files.read_json_lines(tmp_path / "out" / "items.jsonl")
    assert len(rows) == 3641
    assert rows[0]["expected"] == [{"calculate_triangle_area": {"base": [10], "height": [5], "unit": ["units", ""]}}]
    assert {row["expected"] for row in rows if "relevance" in row["category"]} == {"no call", "any call"}


def test_wrong_answers_are_shown_with_the_checkers_message_and_what_was_expected(
    settings, prepared, tmp_path, bfcl_oracle
):
    settings = _only(settings, "live_parallel", "live_relevance")
    right = bfcl_oracle("live_parallel")
    first, second = list(right)[:2]
    answers = right | {first: "I cannot.", second: right[second].replace('": "', '": "x')}
    results.write(
        tmp_path, {"live_parallel": answers, "live_relevance": dict.fromkeys(bfcl_oracle("live_relevance"), "")}
    )
    _evaluate(settings, prepared, tmp_path)
    examples = {row["id"]: row for row in files.read_json_lines(tmp_path / "out" / "examples.jsonl")}
    wanted = right[first].count('{"name"')
    assert examples[first]["why"] == f"Wrong number of functions. 0 can be read, {wanted} expected."
    assert (examples[first]["kind"], examples[second]["kind"]) == ("unreadable", "cannot find match")
    assert "Could not find a matching function among index" in examples[second]["why"]
    assert "sub_error" in examples[second]["why"]
    calls = [json.loads(line) for line in examples[first]["expected"].splitlines()]
    assert len(calls) == wanted > 1
    relevance = next(row for row in examples.values() if row["category"] == "live_relevance")
    assert relevance["why"].startswith("Invalid syntax. Failed to decode AST")
    assert (relevance["kind"], relevance["expected"]) == ("unreadable", "any call")


def test_memory_of_the_worker_is_small(bfcl_data):
    with Checker(list(SINGLE_TURN)) as checker:
        for category in SINGLE_TURN:
            checker.entries(category)
        status = Path(f"/proc/{checker.pid}/status").read_text()
    assert int(status.split("VmHWM:")[1].split()[0]) < 500 * 1024


def test_faulty_answers_are_named_and_nothing_is_written(settings, prepared, tmp_path, bfcl_oracle):
    settings = _only(settings, "live_relevance")
    rows = bfcl_oracle("live_relevance")
    first, second = list(rows)[:2]
    results.write(tmp_path, {"live_relevance": {k: v for k, v in rows.items() if k != first} | {"stranger": ""}})
    with pytest.raises(EvaluationError, match=rf"1 unknown \(stranger\); 1 missing \({first}\)"):
        _evaluate(settings, prepared, tmp_path)
    assert not (tmp_path / "out").exists()
    path = next(tmp_path.rglob("*_result.json"))
    files.write_json_lines(path, [{"id": second, "result": "a"}, {"id": second, "result": "b"}])
    with pytest.raises(EvaluationError, match="duplicate"):
        _evaluate(settings, prepared, tmp_path)
    path.write_text(path.read_text()[:-9])
    with pytest.raises(EvaluationError, match="missing"):
        _evaluate(settings, prepared, tmp_path)
    path.unlink()
    with pytest.raises(EvaluationError, match="no file BFCL_v4_live_relevance_result"):
        _evaluate(settings, prepared, tmp_path)


def test_missing_answers_count_as_wrong_even_where_silence_would_be_right(settings, prepared, tmp_path, bfcl_oracle):
    settings = _only(settings, "irrelevance")
    rows = bfcl_oracle("irrelevance")
    results.write(tmp_path, {"irrelevance": dict(list(rows.items())[:100])})
    summary = _evaluate(settings, prepared, tmp_path, allow_missing=True)
    assert summary["categories"]["irrelevance"]["correct"] == 100
    assert summary["categories"]["irrelevance"]["n"] == 240
    assert summary["missing"] == 140
    assert summary["complete"] is False


def test_a_bad_and_a_good_checkpoint_do_not_touch_each_other(settings, prepared, tmp_path, bfcl_oracle):
    settings = _only(settings, "parallel")
    good = bfcl_oracle("parallel")
    seen = []
    for rows in (dict.fromkeys(good, ""), good, dict.fromkeys(good, ""), good):
        results.write(tmp_path, {"parallel": rows})
        seen.append(_evaluate(settings, prepared, tmp_path)["categories"]["parallel"]["correct"])
    assert seen == [0, 200, 0, 200]


def test_categories_are_checked_before_anything_runs(settings, prepared, tmp_path):
    with pytest.raises(ConfigurationError, match="did you mean 'simple_python'"):
        _evaluate(_only(settings, "simple_pyhton"), prepared, tmp_path)


def test_the_checker_leaves_nothing_behind(bfcl_data, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with Checker(["live_relevance"]) as checker:
        process = checker.pid
        assert os.listdir(tmp_path)
    assert os.listdir(tmp_path) == []
    assert not os.path.exists(f"/proc/{process}")
