from __future__ import annotations

import pytest

from restool.evaluation.bfcl import aggregates
from restool.evaluation.bfcl.aggregates import LIVE_AST, MULTI_TURN, SINGLE_TURN

SIZES = dict(
    zip(SINGLE_TURN, (400, 100, 50, 200, 200, 200, 240, 258, 1053, 16, 24, 884, 16), strict=True)
) | dict.fromkeys(MULTI_TURN, 200)


def test_oracle_scores_of_the_study_give_its_overall():
    """evaluation notes, section 2: the oracle's accuracies aggregate to 99.87 % under V3."""
    accuracy = dict.fromkeys(SIZES, 1.0) | {"simple_java": 0.97, "live_simple": 256 / 258, "live_multiple": 1051 / 1053}
    assert round(100 * aggregates.totals(accuracy, SIZES)["overall"], 2) == 99.87


def test_a_total_that_lacks_a_category_is_none():
    accuracy = dict.fromkeys(SINGLE_TURN, 0.5)
    totals = aggregates.totals(accuracy, SIZES)
    assert totals["overall"] is None
    assert totals["multi_turn"] is None
    assert totals["single_turn"] == 0.5
    del accuracy["live_parallel"]
    totals = aggregates.totals(accuracy, SIZES)
    assert totals["live"] is None
    assert totals["v4/live"] is None
    assert totals["non_live"] == 0.5


def test_weights():
    """Languages of `simple` count as one category; live categories count by size; non-live ones equally."""
    accuracy = dict.fromkeys(SINGLE_TURN, 0.0) | {"simple_java": 0.9, "live_relevance": 1.0}
    totals = aggregates.totals(accuracy, SIZES)
    assert totals["non_live_ast"] == pytest.approx(0.3 / 4)
    assert totals["non_live"] == pytest.approx(0.3 / 5)
    assert totals["live"] == pytest.approx(16 / 2251)
    assert totals["v4/live"] == 0.0
    assert set(LIVE_AST) < set(SINGLE_TURN)
