import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests

from restool.analysis import comparison


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


@pytest.mark.parametrize(("n", "discordant"), [(16, 4), (200, 40), (597, 100)])
def test_smallest_detectable_share_is_found_four_times_in_five(n: int, discordant: int) -> None:
    effect = comparison.smallest_detectable_share(n, discordant)
    rate = max(effect, discordant / n)
    random = np.random.default_rng(n)
    drawn = random.multinomial(n, [(rate + effect) / 2, (rate - effect) / 2, 1 - rate], size=20_000)[:, :2]
    p = np.minimum(1, 2 * stats.binom.cdf(drawn.min(axis=1), drawn.sum(axis=1), 0.5))
    assert (p < 0.05).mean() == pytest.approx(0.8, abs=0.015)


def test_pairs_that_all_agree_say_nothing_of_what_could_have_shown() -> None:
    assert math.isnan(comparison.paired_difference({0: 1.0, 1: 1.0}, {0: 1.0, 1: 1.0}).detectable)


def test_smallest_detectable_share_at_its_edges() -> None:
    assert math.isnan(comparison.smallest_detectable_share(5, 0))  # 5 items all one way: p = 0.0625
    assert comparison.smallest_detectable_share(6, 0) == pytest.approx(0.8 ** (1 / 6), abs=1e-3)  # all six must differ
    assert math.isnan(comparison.smallest_detectable_share(0, 0))
    more = [comparison.smallest_detectable_share(n, n // 5) for n in (50, 200, 800, 3200)]
    assert more == sorted(more, reverse=True)


def test_mcnemar_agrees_with_a_textbook_table() -> None:
    """Agresti, Categorical Data Analysis, approval of the prime minister: 150 against 86 changed their mind."""
    assert comparison.mcnemar(150, 86) == pytest.approx(3.7e-5, rel=0.05)


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(0, 40), st.floats(0.1, 5))
def test_stratified_mcnemar_of_one_category_is_the_exact_test(a: int, b: int, weight: float) -> None:
    assert comparison.stratified_mcnemar([(weight, a, b)]) == comparison.mcnemar(a, b)


def test_stratified_mcnemar_agrees_with_scipys_sign_flips() -> None:
    strata = [(1 / 200, 20, 34), (1 / 50, 4, 9), (1 / 900, 3, 2)]
    values = np.concatenate([weight * np.repeat([-1.0, 1.0], [a, b]) for weight, a, b in strata])
    expected = stats.permutation_test(
        (values,), np.sum, permutation_type="samples", n_resamples=20_000, rng=np.random.default_rng(0)
    ).pvalue
    assert comparison.stratified_mcnemar(strata) == pytest.approx(expected, abs=0.01)


def test_bootstrap_agrees_with_scipy() -> None:
    values = np.repeat([-1.0, 0.0, 1.0], [12, 150, 31])
    ours = comparison.bootstrap_interval(values, resamples=20_000)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=9999, method="percentile", rng=np.random.default_rng(1))
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.006)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.006)


def test_weighted_bootstrap_covers_each_category_with_its_weight() -> None:
    random = np.random.default_rng(3)
    first, second = random.normal(0, 1, 400), random.normal(2, 3, 100)
    ours = comparison.weighted_bootstrap([(0.25, first), (0.75, second)])
    deviation = math.sqrt(0.25**2 * first.var() / 400 + 0.75**2 * second.var() / 100)
    assert ours.mean == pytest.approx(0.25 * first.mean() + 0.75 * second.mean())
    assert (ours.high - ours.low) / 2 == pytest.approx(1.96 * deviation, rel=0.1)


@settings(deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=30), st.integers(0, 3))
def test_an_interval_contains_its_estimate(values: list[float], seed: int) -> None:
    estimate = comparison.bootstrap_interval(values, resamples=50, seed=seed)
    assert estimate.low <= estimate.mean <= estimate.high
    right = sum(value > 0 for value in values)
    share = comparison.wilson(right, len(values))
    assert share.low - 1e-12 <= share.mean <= share.high + 1e-12
    if len(values) > 1:
        interval = comparison.t_interval(values)
        assert interval.low <= interval.mean <= interval.high


def test_welch_agrees_with_scipy() -> None:
    a, b = [0.5, 0.7, 0.61, 0.66], [0.4, 0.52, 0.55]
    difference = comparison.unpaired_difference(a, b)
    expected = stats.ttest_ind(a, b, equal_var=False)
    assert difference.p == pytest.approx(expected.pvalue)
    assert (difference.low, difference.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
