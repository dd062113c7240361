from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.proportion import proportion_confint

from restool import files
from restool.evaluation import items


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_agrees_with_statsmodels(case):
    correct, n = case
    low, high = proportion_confint(correct, n, method="wilson")
    assert items.wilson(correct, n) == pytest.approx([max(low, 0), min(high, 1)], abs=1e-12)


def test_nothing_has_no_interval():
    assert items.category([]) == {
        "n": 0,
        "correct": 0,
        "accuracy": None,
        "interval": None,
        "parse_failures": 0,
        "over_length": 0,
        "force_quits": 0,
        "errors": 0,
    }


def test_faults_stay_in_the_denominator():
    rows = [
        {"correct": True},
        {"correct": False, "over_length": True},
        {"correct": False, "failure": "time"},
        {"correct": False, "parse_failure": True, "force_quit": True},
    ]
    counted = items.category(rows)
    assert (counted["n"], counted["accuracy"]) == (4, 0.25)
    assert [counted[k] for k in ("parse_failures", "over_length", "force_quits", "errors")] == [1, 1, 1, 1]


def test_not_run_says_why_and_has_no_numbers(tmp_path):
    items.not_run(tmp_path, "bfcl", "no network")
    summary = files.read_json(tmp_path / "summary.json")
    assert summary["not_run"] == "no network"
    assert (summary["complete"], summary["categories"], summary["aggregates"]) == (False, {}, {})


def test_scoring_paths_do_not_import_torch():
    code = (
        "import sys; from restool.evaluation import api_bank, bfcl, held_out, items; "
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules, 'imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
