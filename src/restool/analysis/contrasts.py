"""Two evaluated models, or two groups of seeds, against each other: every benchmark, category and metric.

Items: two models answered the same items, so they are paired item by item. Seeds: each run gives one score, and runs
of the same seed are paired. A difference is always B - A.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from restool.analysis import comparison, evaluated
from restool.analysis.evaluated import Evaluated, Evaluation, Item
from restool.core.errors import RunError

Row = dict[str, Any]
Pairs = list[tuple[Item, Item]]

TOTAL = "total"
CONTAMINATING = ("question_and_tools", "question")

METHOD = {
    "items": "Paired item by item. p: McNemar's exact test (means: paired t-test; weighted totals: sign-flip test). "
    "Interval: paired bootstrap over items.",
    "seeds": "Paired seed by seed. p and interval: paired t over seeds.",
    "seeds, unpaired": "Seeds differ, so the groups are independent samples. p and interval: Welch's t over seeds.",
    "holm": "Holm: over the categories of one benchmark and metric; totals are tests of their own.",
    "detectable": "could show: the smallest true difference found with 80 % power at the two-sided 5 % level, given "
    "this n and the share of items that only one of both got right (seeds: given their spread).",
}


def compare(a: Evaluated, b: Evaluated) -> Row:
    """Pair two models item by item on every benchmark that both have.

    ``rows``: one per benchmark, metric and category (and total) with ``n``, ``a``, ``b``, ``difference``, ``low``,
    ``high``, ``only_a``, ``only_b``, ``p``, ``p_holm``, ``detectable``, ``verdict``, ``contaminated`` and, where
    that is not 0, ``rest``. ``warnings`` and ``refused`` name benchmarks with what stands in the way; RunError if
    nothing is left to compare.
    """
    return _result("items", [a], [b], _items_of)


def compare_groups(a: Sequence[Evaluated], b: Sequence[Evaluated]) -> Row:
    """The same over seeds: rows have ``n_seeds`` and means over seeds; pairs of equal seeds where there are any."""
    seeds_a, seeds_b = evaluated.by_seed(a), evaluated.by_seed(b)
    if seeds_a is None or seeds_b is None:
        raise RunError("groups are compared over seeds, so every folder must be a run (with config.yaml)")
    common = sorted(seeds_a.keys() & seeds_b.keys())
    notes = []
    if common:
        left = sorted(seeds_a.keys() ^ seeds_b.keys())
        notes += [f"seeds in one group only, left out: {', '.join(map(str, left))}"] if left else []
        a, b = [seeds_a[seed] for seed in common], [seeds_b[seed] for seed in common]
    result = _result("seeds" if common else "seeds, unpaired", list(a), list(b), _seeds_of)
    result["warnings"] = notes + result["warnings"]
    return result | {"seeds": {"a": [one.seed for one in a], "b": [one.seed for one in b]}}


Rows = Callable[[str, list[Evaluation], list[Evaluation]], Iterator[Row]]


def _result(pairing: str, a: list[Evaluated], b: list[Evaluated], rows_of: Rows) -> Row:
    rows, refused, warned = [], {}, []
    for benchmark in _shared([*a, *b]):
        first, second = ([one.evaluations[benchmark] for one in group] for group in (a, b))
        reference = first[0]
        others = [*first[1:], *second]
        stopped = next((told for one in others if (told := evaluated.obstacle(reference, one))), None)
        if stopped:
            refused[benchmark] = stopped
            continue
        told = (text for one in others for text in evaluated.warnings(reference, one))
        warned += [f"{benchmark}: {text}" for text in dict.fromkeys(told)]
        rows += _finished(list(rows_of(pairing, first, second)))
    if not rows:
        raise RunError(_why_nothing(a, b, refused))
    return {
        "pairing": pairing,
        "a": [str(one.path) for one in a],
        "b": [str(one.path) for one in b],
        "method": [METHOD[pairing], METHOD["holm"], METHOD["detectable"]],
        "warnings": warned,
        "refused": refused,
        "rows": rows,
    }


def _shared(everyone: list[Evaluated]) -> list[str]:
    return [name for name in everyone[0].evaluations if all(name in one.evaluations for one in everyone)]


def _why_nothing(a: list[Evaluated], b: list[Evaluated], refused: dict[str, str]) -> str:
    names = f"{a[0].path} and {b[0].path}"
    if refused:
        return f"{names} cannot be compared: " + "; ".join(f"{name}: {told}" for name, told in refused.items())
    have = [sorted({name for one in group for name in one.evaluations}) for group in (a, b)]
    return (
        f"{names} share no evaluated benchmark (A: {', '.join(have[0])}; B: {', '.join(have[1])}); "
        "evaluate all on the same: restool evaluate NAME"
    )


def _finished(rows: list[Row]) -> list[Row]:
    """With Holm's correction within each metric's categories, and a verdict."""
    for metric in dict.fromkeys(row["metric"] for row in rows):
        family = [row for row in rows if row["metric"] == metric and not row["is_total"]]
        for row, corrected in zip(family, comparison.holm([row["p"] for row in family]), strict=True):
            row["p_holm"] = corrected
    for row in rows:
        row.setdefault("p_holm", math.nan)
        row["verdict"] = _verdict(row)
    return rows


def _verdict(row: Row) -> str:
    """By the test, corrected where a correction applies; the interval is shown beside it."""
    p = row["p"] if row["is_total"] else row["p_holm"]
    if math.isnan(p):
        return "no test possible"
    if p >= 1 - comparison.LEVEL:
        return "not distinguishable" + (" after correction" if row["p"] < 1 - comparison.LEVEL else "")
    return "B is higher" if row["difference"] > 0 else "B is lower"


# ------------------------------------------------------------------------------------------------------- items


def _items_of(pairing: str, first: list[Evaluation], second: list[Evaluation]) -> Iterator[Row]:
    """Rows of one benchmark for two models."""
    a, b = first[0], second[0]
    checked = all((one.summary.get("contamination") or {}).get("checked") for one in (a, b))
    for metric, how in a.metrics.items():
        parts = _parts(a, b, how)
        for name, pairs in parts.items():
            yield _item_row(a.benchmark, metric, how, name, [(1.0, pairs)], checked)
        for name, weights in _totals(a, metric, how, parts).items():
            strata = [(weight, parts[part]) for part, weight in weights.items()]
            row = _item_row(a.benchmark, metric, how, name, strata, checked)
            yield row | {"is_total": True}


def _parts(a: Evaluation, b: Evaluation, how: Row) -> dict[str, Pairs]:
    """Category -> the items that both models answered and that count for the metric."""
    where = how.get("where", {})
    parts: dict[str, Pairs] = {}
    for key, item in a.items.items():
        other = b.items.get(key)
        if other is not None and all(item.get(name) == value for name, value in where.items()):
            parts.setdefault(key[0], []).append((item, other))
    return parts


def _totals(a: Evaluation, metric: str, how: Row, parts: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Total -> weight of each of its categories. Left out: totals that need a category which is not there, and
    those that weigh as an earlier one does."""
    prefix = how.get("categories", "")
    named = {
        name: {category.removeprefix(prefix): weight for category, weight in weights.items()}
        for name, weights in (a.summary.get("weights") or {}).items()
        if name.startswith(prefix) and all(category.startswith(prefix) for category in weights)
    }
    whole = {name: weights for name, weights in named.items() if weights.keys() <= parts.keys() and len(weights) > 1}
    first = {tuple(sorted(weights.items())): name for name, weights in reversed(whole.items())}
    return {name.removeprefix(prefix): whole[name] for name in whole if name in first.values()}


def _item_row(
    benchmark: str, metric: str, how: Row, name: str, strata: list[tuple[float, Pairs]], checked: bool
) -> Row:
    binary = how.get("kind", "binary") == "binary"
    field = how["field"]
    content = [(weight, *(np.array([float(pair[i][field]) for pair in pairs]) for i in (0, 1)))
               for weight, pairs in strata]  # fmt: skip
    counts = [(weight / len(a), int((a > b).sum()), int((b > a).sum())) for weight, a, b in content]
    n = sum(len(a) for _, a, _ in content)
    interval = comparison.weighted_bootstrap([(weight, b - a) for weight, a, b in content])
    row: Row = {
        "benchmark": benchmark,
        "metric": metric,
        "category": name,
        "is_total": False,
        "binary": binary,
        "n": n,
        "a": float(sum(weight * a.mean() for weight, a, _ in content)),
        "b": float(sum(weight * b.mean() for weight, _, b in content)),
        "difference": interval.mean,
        "low": interval.low,
        "high": interval.high,
        "only_a": sum(a for _, a, _ in counts),
        "only_b": sum(b for _, _, b in counts),
    }
    row |= _tested(row, counts) if binary else _mean_tested(content)
    return row | (_contaminated(strata, field) if checked else {"contaminated": None, "rest": None})


def _tested(row: Row, counts: list[tuple[float, int, int]]) -> Row:
    if len({weight for weight, _, _ in counts}) == 1:
        detectable = comparison.smallest_detectable_share(row["n"], row["only_a"] + row["only_b"])
    else:
        detectable = comparison.smallest_detectable_total(counts)
    return {"p": comparison.stratified_mcnemar(counts), "detectable": detectable}


def _mean_tested(content: list[tuple[float, np.ndarray, np.ndarray]]) -> Row:
    """Metrics that are no verdicts; a weighted total counts each item with its share."""
    n = sum(len(a) for _, a, _ in content)
    a, b = (np.concatenate([weight * n / len(one[0]) * one[i] for weight, *one in content]) for i in (0, 1))
    paired = comparison.paired_difference(dict(enumerate(b)), dict(enumerate(a)))
    return {"p": paired.p, "detectable": paired.detectable}


def _contaminated(strata: list[tuple[float, Pairs]], field: str) -> Row:
    """How many items either model was trained on, and the difference on the others."""
    clean = [(weight, [pair for pair in pairs if not _is_seen(pair)]) for weight, pairs in strata]
    n, left = (sum(len(pairs) for _, pairs in some) for some in (strata, clean))
    if left == n or not all(pairs for _, pairs in clean):
        return {"contaminated": n - left, "rest": None}
    a, b = (sum(w * float(np.mean([float(pair[i][field]) for pair in some])) for w, some in clean) for i in (0, 1))
    return {"contaminated": n - left, "rest": {"n": left, "a": a, "b": b, "difference": b - a}}


def _is_seen(pair: tuple[Item, Item]) -> bool:
    return any(item.get("overlap") in CONTAMINATING for item in pair)


# ------------------------------------------------------------------------------------------------------- seeds


def _seeds_of(pairing: str, first: list[Evaluation], second: list[Evaluation]) -> Iterator[Row]:
    """Rows of one benchmark for two groups: one score a run, then statistics over runs."""
    for metric, how in first[0].metrics.items():
        scores = [[_scores(one, metric, how, first[0]) for one in group] for group in (first, second)]
        for name in scores[0][0]:
            a, b = ([score[name][0] for score in group if name in score] for group in scores)
            if len(a) < len(first) or len(b) < len(second):
                continue
            yield _seed_row(pairing, first[0].benchmark, metric, how, name, a, b) | {
                "n": scores[0][0][name][1],
                "is_total": scores[0][0][name][2],
            }


def _scores(one: Evaluation, metric: str, how: Row, reference: Evaluation) -> dict[str, tuple[float, int, bool]]:
    """Category or total -> (score, items, is it a total), on the items that the reference has too."""
    parts = {name: [pair[1] for pair in pairs] for name, pairs in _parts(reference, one, how).items()}
    means = {name: float(np.mean([float(item[how["field"]]) for item in items])) for name, items in parts.items()}
    found = {name: (means[name], len(items), False) for name, items in parts.items()}
    for name, weights in _totals(reference, metric, how, parts).items():
        value = sum(weight * means[category] for category, weight in weights.items())
        found[name] = (value, sum(len(parts[category]) for category in weights), True)
    return found


def _seed_row(
    pairing: str, benchmark: str, metric: str, how: Row, name: str, a: Sequence[float], b: Sequence[float]
) -> Row:
    if pairing == "seeds":
        difference = comparison.paired_difference(dict(enumerate(b)), dict(enumerate(a)))
    else:
        difference = comparison.unpaired_difference(b, a)
    values = asdict(difference)
    if how.get("kind", "binary") == "binary" and values["detectable"] > 1:
        values["detectable"] = math.nan  # no difference of shares is as large
    return {
        "benchmark": benchmark,
        "metric": metric,
        "category": name,
        "binary": how.get("kind", "binary") == "binary",
        "a": float(np.mean(a)),
        "b": float(np.mean(b)),
        "difference": values.pop("mean"),
        "n_seeds": values.pop("n"),
        **values,
        "contaminated": None,
        "rest": None,
    }
