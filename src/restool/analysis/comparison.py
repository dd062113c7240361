"""Is a difference real? Intervals and tests; `contrasts` applies them to evaluated runs.

Every interval is at 95 %, every test two-sided. Statistics come from scipy and statsmodels (imported on first use:
they cost a second).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

LEVEL = 0.95
POWER = 0.8


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval; ``low`` and ``high`` are NaN where ``n`` allows none."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class PairedDifference(Estimate):
    """Mean of a - b over pairs; ``p`` from the paired t-test; ``detectable``: see :func:`smallest_detectable`."""

    p: float
    detectable: float


def t_interval(values: Sequence[float]) -> Estimate:
    """Mean and t-interval of independent values (one a seed). One value: no interval. None: all NaN."""
    from scipy import special

    values = np.asarray(values, dtype=float)
    n = len(values)
    if n < 2:
        return Estimate(float(values[0]) if n else math.nan, math.nan, math.nan, n)
    mean = float(values.mean())
    half = float(special.stdtrit(n - 1, 0.5 + LEVEL / 2) * values.std(ddof=1) / math.sqrt(n))
    return Estimate(mean, mean - half, mean + half, n)


def wilson(correct: int, n: int) -> Estimate:
    """Share ``correct / n`` with Wilson's score interval. ``n`` = 0: all NaN."""
    from statsmodels.stats.proportion import proportion_confint

    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    low, high = proportion_confint(correct, n, alpha=1 - LEVEL, method="wilson")
    return Estimate(correct / n, float(low), float(high), n)


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact p-value that a and b are right equally often, from the items that exactly one of them got right."""
    from statsmodels.stats.contingency_tables import mcnemar as test

    if only_a + only_b == 0:
        return 1.0
    return float(test([[0, only_a], [only_b, 0]], exact=True).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction over one family; NaN (no test possible) stays NaN and does not count."""
    p_values = np.asarray(p_values, dtype=float)
    corrected = np.full(len(p_values), math.nan)
    order = [index for index in np.argsort(p_values) if not math.isnan(p_values[index])]
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[index]))
        corrected[index] = largest
    return [float(p) for p in corrected]


def smallest_detectable(deviation: float, n: int) -> float:
    """The true mean difference that a paired t-test over ``n`` pairs finds with 80 % power at the 5 % level.

    ``deviation``: standard deviation of the pairs' differences. NaN for fewer than two pairs, and where all pairs
    agree: a spread of 0 says nothing of the true one.
    """
    from scipy import optimize, stats

    if n < 2 or math.isnan(deviation) or deviation == 0:
        return math.nan
    critical = stats.t.ppf(0.5 + LEVEL / 2, n - 1)

    def shortfall(effect: float) -> float:
        # The chance of finding the opposite sign is left out: far below 0.1 % at this power, and NaN in scipy.
        return float(stats.nct.sf(critical, n - 1, effect * math.sqrt(n))) - POWER

    top = 1 / math.sqrt(n)
    while shortfall(top) < 0:  # grown in steps: far beyond the solution the noncentral t underflows to NaN
        top *= 1.5
    return float(optimize.brentq(shortfall, 0.0, top)) * deviation


def paired_difference(a: Mapping[Any, float], b: Mapping[Any, float]) -> PairedDifference:
    """a - b over the keys (seeds, items) that both have: t-interval, paired t-test, smallest detectable difference."""
    from scipy import stats

    keys = [key for key in a if key in b]
    differences = np.array([a[key] - b[key] for key in keys], dtype=float)
    estimate = t_interval(differences)
    deviation = float(differences.std(ddof=1)) if len(keys) > 1 else math.nan
    if len(keys) < 2:
        p = math.nan
    elif deviation == 0:
        p = 1.0 if estimate.mean == 0 else 0.0
    else:
        p = float(stats.ttest_1samp(differences, 0.0).pvalue)
    return PairedDifference(**asdict(estimate), p=p, detectable=smallest_detectable(deviation, len(keys)))


def unpaired_difference(a: Sequence[float], b: Sequence[float]) -> PairedDifference:
    """Mean of a minus mean of b, independent samples of unequal variance: Welch's interval and test.

    ``n``: the smaller sample; ``detectable`` as if that many pairs with this spread had been seen.
    """
    from scipy import stats

    mean, n = float(np.mean(a) - np.mean(b)), min(len(a), len(b))
    if n < 2:
        return PairedDifference(mean, math.nan, math.nan, n, p=math.nan, detectable=math.nan)
    deviation = float(np.hypot(np.std(a, ddof=1), np.std(b, ddof=1)))
    if deviation == 0:
        return PairedDifference(mean, mean, mean, n, p=1.0 if mean == 0 else 0.0, detectable=math.nan)
    tested = stats.ttest_ind(a, b, equal_var=False)
    low, high = tested.confidence_interval(LEVEL)
    detectable = smallest_detectable(deviation, n)
    return PairedDifference(mean, float(low), float(high), n, p=float(tested.pvalue), detectable=detectable)


def bootstrap_interval(values: Sequence[float], *, resamples: int = 4000, seed: int = 0) -> Estimate:
    """Mean with its bootstrap (percentile) interval over the values."""
    return weighted_bootstrap([(1.0, values)], resamples=resamples, seed=seed)


def weighted_bootstrap(
    strata: Sequence[tuple[float, Sequence[float]]], *, resamples: int = 4000, seed: int = 0
) -> Estimate:
    """Sum of weight x mean over strata, with its percentile interval; values are redrawn within each stratum.

    Few values differ (a paired difference of two verdicts is -1, 0 or 1), so how often each is drawn comes from one
    multinomial draw: the same distribution as redrawing item by item, in a hundredth of the time.
    """
    random = np.random.default_rng(seed)
    mean, n = 0.0, 0
    drawn = np.zeros(resamples)
    for weight, sample in strata:
        values = np.asarray(sample, dtype=float)
        if not len(values):
            return Estimate(math.nan, math.nan, math.nan, 0)
        distinct, counts = np.unique(values, return_counts=True)
        draws = random.multinomial(len(values), counts / len(values), size=resamples)
        drawn += weight * (draws @ distinct) / len(values)
        mean += weight * float(values.mean())
        n += len(values)
    low, high = np.quantile(drawn, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
    return Estimate(mean, min(float(low), mean), max(float(high), mean), n)


def stratified_mcnemar(strata: Sequence[tuple[float, int, int]], *, resamples: int = 100_000, seed: int = 0) -> float:
    """P-value that a and b are equally good on a weighted total of several categories.

    ``strata``: (weight of one item, items that only a got right, items that only b got right). Under the null every
    such item may as well be the other way round: the sign-flip test, drawn at random. One category: McNemar's exact
    test.
    """
    strata = [(weight, a, b) for weight, a, b in strata if a + b and weight]
    if not strata:
        return 1.0
    if len({weight for weight, _, _ in strata}) == 1:
        return mcnemar(sum(a for _, a, _ in strata), sum(b for _, _, b in strata))
    random = np.random.default_rng(seed)
    observed = abs(sum(weight * (b - a) for weight, a, b in strata))
    drawn = sum(weight * (2 * random.binomial(a + b, 0.5, size=resamples) - (a + b)) for weight, a, b in strata)
    return float((1 + np.count_nonzero(np.abs(drawn) >= observed - 1e-12)) / (1 + resamples))


def smallest_detectable_share(n: int, discordant: int) -> float:
    """The true difference of two shares of ``n`` paired items that McNemar's exact test finds with 80 % power.

    ``discordant``: items that exactly one of both got right. Their rate is taken as observed, or as the difference
    itself where that is larger (it cannot be smaller). NaN if even the largest difference could not be found.
    """
    from scipy import optimize

    def excess(difference: float) -> float:
        return _mcnemar_power(n, max(difference, discordant / n), difference) - POWER

    if n == 0 or excess(1.0) < 0:
        return math.nan
    return float(optimize.brentq(excess, 1e-9, 1.0, xtol=1e-6))


def smallest_detectable_total(strata: Sequence[tuple[float, int, int]]) -> float:
    """The same for a total of several categories that weigh their items differently, by the normal approximation.

    ``strata`` as in :func:`stratified_mcnemar`. NaN where no item tells the two apart.
    """
    from scipy import special

    variance = sum(weight**2 * (a + b) for weight, a, b in strata)
    quantiles = special.ndtri(0.5 + LEVEL / 2) + special.ndtri(POWER)
    return float(quantiles * math.sqrt(variance)) if variance else math.nan


def _mcnemar_power(n: int, rate: float, difference: float) -> float:
    """Power of the exact test: over the number of discordant items, and how many of them favour the better one."""
    from scipy import special

    reach = math.ceil(8 * math.sqrt(n * rate * (1 - rate))) + 8
    low, high = max(0, int(n * rate) - reach), min(n, int(n * rate) + reach)
    counts = np.arange(low, high + 1)
    critical = _rejecting(n)[low : high + 1]
    share = min(1.0, 0.5 + difference / (2 * rate))
    found = special.bdtrc(counts - critical - 1, counts, share) + special.bdtr(critical, counts, share)
    chance = np.diff(special.bdtr(counts, n, rate), prepend=special.bdtr(low - 1, n, rate) if low else 0.0)
    return float((chance * np.where(critical < 0, 0.0, found)).sum())  # NaN where nothing rejects


@functools.cache
def _rejecting(n: int) -> np.ndarray:
    """For 0 to ``n`` discordant items: the largest count of the rarer kind that rejects; -1 where none does."""
    from scipy import stats

    counts = np.arange(n + 1)
    tail = (1 - LEVEL) / 2
    critical = stats.binom.ppf(tail, counts, 0.5)
    return (critical - (stats.binom.cdf(critical, counts, 0.5) > tail)).astype(int)
