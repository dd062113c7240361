import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from restool import files
from restool.analysis import comparison
from restool.analysis.experiment import load
from restool.core.errors import RunError


def test_t_interval_covers_the_mean_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        estimate = comparison.t_interval(random.normal(0.3, 1, size=4))
        hits += estimate.low <= 0.3 <= estimate.high
    assert 0.935 < hits / 2000 < 0.965


def test_one_seed_has_a_mean_but_no_interval() -> None:
    estimate = comparison.t_interval([0.5])
    assert estimate.mean == 0.5
    assert estimate.n == 1
    assert math.isnan(estimate.low)
    assert math.isnan(comparison.paired_difference({0: 1.0}, {0: 0.5}).p)


def test_wilson_agrees_with_its_formula_at_the_edges() -> None:
    none = comparison.wilson(0, 20)
    assert none.low == pytest.approx(0, abs=1e-12)
    assert none.high == pytest.approx(1.959964**2 / (20 + 1.959964**2), rel=1e-5)
    assert math.isnan(comparison.wilson(0, 0).mean)


def test_mcnemar_is_the_binomial_test_of_the_discordant_items() -> None:
    assert comparison.mcnemar(3, 9) == pytest.approx(stats.binomtest(3, 12, 0.5).pvalue)
    assert comparison.mcnemar(0, 0) == 1.0


@pytest.mark.parametrize("p_values", [[0.02], [0.01, 0.04, 0.03, 0.005], [0.5, 0.5, 0.9, 0.0], [0.04, 0.01, 0.04]])
def test_holm_agrees_with_statsmodels_and_leaves_nan_alone(p_values: list[float]) -> None:
    corrected = comparison.holm([*p_values, math.nan])
    assert math.isnan(corrected[-1])
    assert corrected[:-1] == pytest.approx(multipletests(p_values, method="holm")[1])


def test_pairing_removes_what_the_seeds_share() -> None:
    luck = dict(enumerate([0.0, 5.0, -3.0, 8.0]))
    noise = [0.01, -0.01, 0.02, 0.0]
    better = {seed: value + 0.1 + noise[seed] for seed, value in luck.items()}
    difference = comparison.paired_difference(better, luck)
    assert difference.low > 0
    assert difference.mean == pytest.approx(0.105)
    assert difference.p == pytest.approx(stats.ttest_rel(list(better.values()), list(luck.values())).pvalue)


def test_only_common_seeds_are_paired() -> None:
    assert comparison.paired_difference({0: 1.0, 1: 2.0, 7: 9.0}, {0: 0.0, 1: 1.0, 3: 5.0}).n == 2


@pytest.mark.parametrize("n", [3, 5, 12])
def test_smallest_detectable_difference_is_found_four_times_in_five(n: int) -> None:
    random = np.random.default_rng(n)
    effect = comparison.smallest_detectable(1.0, n)
    found = stats.ttest_1samp(random.normal(effect, 1, size=(8000, n)), 0, axis=1).pvalue < 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.02)


def test_runs_are_compared_on_the_items_that_both_answered(quick) -> None:
    runs = {run.method: run for run in load(quick).runs if run.seed == 0}
    before, after = runs["sft"].directory.path, runs["rest_fixed"].directory.path
    rows = {(r["part"], r["metric"]): r for r in comparison.compare(before, after)}
    row = rows["held_out/greedy", "tool_exact"]
    first, second = (files.read_json_lines(p / "eval/held-out/items.jsonl") for p in (before, after))
    counted = [
        (a["tool_exact"], b["tool_exact"])
        for a, b in zip(first, second, strict=True)
        if a["tool"] and (a["split"], a["mode"]) == ("held_out", "greedy")
    ]
    assert row["n"] == len(counted)
    assert row["difference"] == pytest.approx(np.mean([int(b) - int(a) for a, b in counted]))
    only_a, only_b = counted.count((True, False)), counted.count((False, True))
    assert row["p"] == pytest.approx(stats.binomtest(only_a, only_a + only_b, 0.5).pvalue)
    assert row["low"] < row["difference"] < row["high"]
    assert row["p_holm"] >= row["p"]


def test_a_run_compared_with_itself_shows_no_difference(quick) -> None:
    path = load(quick).runs[0].directory.path
    assert {row["verdict"] for row in comparison.compare(path, path)} == {"undecided"}


def test_comparing_what_is_no_run_says_so(quick, tmp_path) -> None:
    with pytest.raises(RunError, match="not a run directory"):
        comparison.compare(load(quick).runs[0].directory.path, tmp_path)
