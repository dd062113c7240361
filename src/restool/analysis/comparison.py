"""Is a difference real? Intervals and tests, and the comparison of two runs on the same items.

Every interval is at 95 %. Statistics come from scipy and statsmodels (imported on first use: they cost a second).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from restool import files
from restool.runs import RunDirectory

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

    ``deviation``: standard deviation of the pairs' differences. NaN for fewer than two pairs.
    """
    from scipy import optimize, stats

    if n < 2 or math.isnan(deviation):
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


def bootstrap_interval(values: Sequence[float], *, resamples: int = 4000, seed: int = 0) -> Estimate:
    """Mean with its bootstrap (percentile) interval over the values."""
    from scipy import stats

    values = np.asarray(values, dtype=float)
    if len(values) < 2 or values.std() == 0:
        mean = float(values.mean()) if len(values) else math.nan
        return Estimate(mean, mean, mean, len(values))
    random = np.random.default_rng(seed)
    interval = stats.bootstrap(
        (values,), np.mean, n_resamples=resamples, confidence_level=LEVEL, method="percentile", rng=random
    ).confidence_interval
    return Estimate(float(values.mean()), float(interval.low), float(interval.high), len(values))


Item = dict[str, Any]
Pairs = list[tuple[Item, Item]]

# What is compared on each benchmark: name, field of an item, right-or-wrong, which items count.
_HELD_OUT = (
    ("tool_exact", "tool_exact", True, lambda item: item["tool"]),
    ("flawless_tool_exact", "tool_exact", True, lambda item: item["tool"] and not item["opportunities"]),
    ("reward", "total", False, lambda item: True),
    ("format", "format", False, lambda item: True),
)
_SCORED = {"api-bank": ("compat", "strict"), "bfcl": ("correct",), "bfcl-synthetic": ("correct",)}


def compare(run_a: str | Path, run_b: str | Path) -> list[dict[str, Any]]:
    """Compare two runs item by item on every benchmark that both were evaluated on.

    One row per benchmark, part and metric: ``a`` and ``b`` (means), ``difference`` (b - a) with its bootstrap
    interval over items (``low``, ``high``), ``p`` (exact McNemar for right-or-wrong metrics, else the paired
    t-test), ``p_holm`` over all rows, ``detectable`` (see :func:`smallest_detectable`), ``n`` items and ``verdict``.
    The intervals cover the choice of items, not seeds. Raises RunError if either folder is no run.
    """
    a, b = RunDirectory(Path(run_a)), RunDirectory(Path(run_b))
    for run in (a, b):
        _ = run.settings
    rows = [row for row in _compared(a, b) if row["n"]]
    for row, corrected in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = corrected
        low, high = row["low"], row["high"]
        row["verdict"] = "b is higher" if low > 0 else "b is lower" if high < 0 else "undecided"
    return rows


def _compared(a: RunDirectory, b: RunDirectory) -> Iterator[dict[str, Any]]:
    for benchmark in ("held-out", *_SCORED):
        pairs = _paired_items(_items(a, benchmark), _items(b, benchmark))
        for part in sorted(pairs):
            if benchmark == "held-out":
                for metric, key, binary, counts in _HELD_OUT:
                    chosen = [pair for pair in pairs[part] if counts(pair[0])]
                    yield _row(benchmark, part, metric, key, binary, chosen)
            else:
                for key in _SCORED[benchmark]:
                    yield _row(benchmark, part, key, key, True, pairs[part])


def _items(run: RunDirectory, benchmark: str) -> list[Item]:
    return files.read_json_lines(run.evaluation(benchmark) / "items.jsonl")


def _paired_items(items_a: list[Item], items_b: list[Item]) -> dict[str, Pairs]:
    """Items that both runs answered, by part of the benchmark (split/mode, level, category)."""

    def part(item: Item) -> str:
        return f"{item['split']}/{item['mode']}" if "mode" in item else str(item.get("category", "all"))

    of_b = {(part(item), item["id"]): item for item in items_b}
    pairs: dict[str, Pairs] = {}
    for item in items_a:
        other = of_b.get((part(item), item["id"]))
        if other is not None:
            pairs.setdefault(part(item), []).append((item, other))
    return pairs


def _row(benchmark: str, part: str, metric: str, key: str, binary: bool, pairs: Pairs) -> dict[str, Any]:
    a = np.array([float(first[key]) for first, _ in pairs])
    b = np.array([float(second[key]) for _, second in pairs])
    paired = paired_difference(dict(enumerate(b)), dict(enumerate(a)))
    interval = bootstrap_interval(b - a)
    return {
        "benchmark": benchmark,
        "part": part,
        "metric": metric,
        "a": float(a.mean()) if len(a) else math.nan,
        "b": float(b.mean()) if len(b) else math.nan,
        "difference": paired.mean,
        "low": interval.low,
        "high": interval.high,
        "p": mcnemar(int((a > b).sum()), int((b > a).sum())) if binary else paired.p,
        "detectable": paired.detectable,
        "n": len(pairs),
    }
