"""Tables of an experiment, as data frames in long form (one number with its interval a row) and as CSV files.

A score is one number of one run; everything over seeds is derived from the scores. Seeds are the unit of every
interval here: the items are the same for all runs, so their choice is not covered (the report says so).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import pandas as pd

from restool import files
from restool.analysis import claims, comparison
from restool.analysis.experiment import Experiment, Run

Item = dict[str, Any]

GROUP = ["model", "schedule", "method"]
SCORE = ["split", "mode", "metric"]

# Metric of held-out items: field, and which items count. `right_*` and `exact_<kind>` are added by `_held_out`.
_METRICS: dict[str, tuple[str, Callable[[Item], bool]]] = {
    "tool_exact": ("tool_exact", lambda item: item["tool"]),
    "flawless_tool_exact": ("tool_exact", lambda item: item["tool"] and not item["opportunities"]),
    "exact": ("exact", lambda item: True),
    "reward": ("total", lambda item: True),
    "format": ("format", lambda item: True),
    "correctness": ("correctness", lambda item: item["tool"]),
    "finished": ("finished", lambda item: True),
    "tokens": ("tokens", lambda item: True),
}

# Means over training: metric of metrics.jsonl, and the share of the steps at the end that count.
TRAINING: dict[str, tuple[str, float]] = {
    "reward_mean": ("reward/total", 1.0),
    "gradient_norm": ("grad/norm", 1.0),
    "clip_fraction": ("clip/fraction", 1.0),
    "explained_variance": ("value/explained_variance", 0.25),
    "released_crashes": ("weight/released_crashes", 1.0),
}

# What the paired differences are taken of (where the experiment has it).
COMPARED = (
    ("train", "sampled", "reward_mean"),
    ("main", "sampled", "reward"),
    ("main", "sampled", "tool_exact"),
    ("main", "greedy", "tool_exact"),
    ("main", "sampled", "right_name"),
    ("main", "sampled", "right_think"),
    ("main", "sampled", "right_arguments"),
)

# Differences beyond those from the reference that answer a question of their own.
QUESTIONS = (
    ("rest_fixed", "masked_uniform", "the weights, beyond zeroing some tokens"),
    ("rest_fixed", "rest_released", "the released span rules"),
    ("rest_released", "masked_uniform", "released spans and weights against zeroing alone"),
)


def main_split(experiment: Experiment) -> str | None:
    """The held-out split that headline numbers come from: ``held_out`` (synthetic) or ``test`` (published)."""
    splits = {name.split("/")[0] for run in experiment.runs for name in _categories(run)}
    return next((name for name in ("held_out", "test", *sorted(splits)) if name in splits), None)


def scores(experiment: Experiment) -> pd.DataFrame:
    """One row a run and metric: run, model, schedule, method, seed, split, mode, metric, value, n_items."""
    rows = [run.labels | score for run in experiment.runs for score in (*_training(run), *_held_out(run))]
    return pd.DataFrame(rows, columns=["run", *GROUP, "seed", *SCORE, "value", "n_items"])


def methods(score: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds with its 95 % t-interval, by method and metric."""
    rows = []
    for key, group in score.groupby([*GROUP, *SCORE], sort=False):
        estimate = comparison.t_interval(group["value"])
        rows.append(dict(zip([*GROUP, *SCORE], key, strict=True)) | _seeds(estimate, group["n_items"].max()))
    return pd.DataFrame(rows, columns=[*GROUP, *SCORE, "mean", "low", "high", "n_seeds", "n_items"])


def gains(experiment: Experiment, score: pd.DataFrame) -> pd.DataFrame:
    """After minus before (the model that the run started from, on the same items), over seeds."""
    held_out = score[score["split"] != "train"]
    value = {(row.run, row.split, row.mode, row.metric): row.value for row in held_out.itertuples()}
    starts = {run.id: start(experiment, run) for run in experiment.runs}
    rows = []
    for key, group in held_out.groupby([*GROUP, *SCORE], sort=False):
        cell = key[3:]
        before = {r.run: value.get((starts[r.run], *cell)) for r in group.itertuples()}
        pairs = [(r.value, before[r.run]) for r in group.itertuples() if before[r.run] is not None]
        if not pairs:
            continue
        gain = comparison.t_interval([after - before for after, before in pairs])
        rows.append(
            dict(zip([*GROUP, *SCORE], key, strict=True))
            | {"before": _mean(b for _, b in pairs), "after": _mean(a for a, _ in pairs)}
            | _seeds(gain, group["n_items"].max())
        )
    columns = [*GROUP, *SCORE, "before", "after", "mean", "low", "high", "n_seeds", "n_items"]
    return pd.DataFrame(rows, columns=columns)


def differences(experiment: Experiment, score: pd.DataFrame) -> pd.DataFrame:
    """Paired differences between methods (same seed): t-interval, p, Holm's p, smallest detectable difference.

    Holm's correction is over the comparisons of one metric within one model and schedule.
    """
    trained = {run.id for run in experiment.rl_runs}
    score = score[score["run"].isin(trained)]
    rows = []
    for (model, schedule), group in score.groupby(["model", "schedule"], sort=False):
        for split, mode, metric in COMPARED:
            split = main_split(experiment) if split == "main" else split
            cell = group[(group["split"] == split) & (group["mode"] == mode) & (group["metric"] == metric)]
            seeds = {m: dict(zip(c["seed"], c["value"], strict=True)) for m, c in cell.groupby("method", sort=False)}
            where = {"model": model, "schedule": schedule, "split": split, "mode": mode, "metric": metric}
            rows += [where | row for row in _family(seeds, experiment.settings.reference)]
    columns = ["model", "schedule", "a", "b", "question", *SCORE, "mean", "low", "high", "n_seeds", "p", "p_holm"]
    return pd.DataFrame(rows, columns=[*columns, "detectable"])


_SEEN = ("contaminated", "accuracy_of_rest")


def benchmarks(experiment: Experiment) -> pd.DataFrame:
    """API-Bank and BFCL by run and category with Wilson intervals; what was not run says why."""
    rows = []
    for run in experiment.runs:
        for benchmark in run.evaluations:
            if benchmark != "held-out":
                rows += [run.labels | {"benchmark": benchmark} | row for row in _benchmark(run, benchmark)]
    columns = ["run", *GROUP, "seed", "benchmark", "category", "n", "correct", "accuracy", "low", "high"]
    return pd.DataFrame(rows, columns=[*columns, "parse_failures", "over_length", *_SEEN, "not_run"])


def runs(experiment: Experiment) -> pd.DataFrame:
    """What is behind the numbers: status, start, steps, commit, data, of every run."""
    rows = []
    for run in experiment.runs:
        environment = run.environment
        rows.append(
            run.labels
            | {
                "kind": run.kind,
                "status": "finished" if run.is_done else "unfinished" if run.metrics else "not run",
                "starts_from": run.parent
                or ("initial weights" if run.settings.model.tiny else run.settings.model.path),
                "steps": len(run.metrics),
                "commit": environment.get("commit"),
                "uncommitted_changes": environment.get("uncommitted_changes"),
                "data": run.prepared,
                "data_fingerprint": environment.get("lineage", {}).get("data"),
            }
        )
    return pd.DataFrame(rows)


TABLES: dict[str, str] = {
    "runs": "The runs behind every number: status, start, commit and data.",
    "scores": "One number of one run a row; every other table is derived from these.",
    "methods": "Mean over seeds with its 95 % t-interval, by method and metric.",
    "gains": "After training minus before, on the same items, over seeds.",
    "differences": "Paired differences between methods at equal seeds, with Holm's correction.",
    "benchmarks": "API-Bank and BFCL by run and category, with Wilson intervals over items.",
    "claims": "The paper's claims: its value, ours, and whether it was reproduced.",
}


def build(experiment: Experiment) -> dict[str, pd.DataFrame]:
    """Every table of :data:`TABLES` by name."""
    score = scores(experiment)
    frames = {
        "runs": runs(experiment),
        "scores": score,
        "methods": methods(score),
        "gains": gains(experiment, score),
        "differences": differences(experiment, score),
        "benchmarks": benchmarks(experiment),
    }
    return frames | {"claims": pd.DataFrame(claims.table(experiment))}


def write_all(experiment: Experiment) -> dict[str, dict[str, Any]]:
    """Write ``analysis/<name>.csv``; returns name -> {file, rows, caption}."""
    written = {}
    for name, frame in build(experiment).items():
        files.write_text(experiment.analysis / f"{name}.csv", frame.to_csv(index=False))
        written[name] = {"file": f"analysis/{name}.csv", "rows": len(frame), "caption": TABLES[name]}
    return written


# ------------------------------------------------------------------------------------------------------ parts


def _training(run: Run) -> Iterator[dict[str, Any]]:
    if not run.is_done:
        return
    for metric, (source, share) in TRAINING.items():
        values = [row[source] for row in run.metrics if row.get(source) is not None]
        if values:
            yield _score("train", "sampled", metric, values[-math.ceil(share * len(values)) :])


def _categories(run: Run) -> list[str]:
    return list((run.summary("held-out") or {}).get("categories", {}))


def _held_out(run: Run) -> Iterator[dict[str, Any]]:
    if not _categories(run):  # the summary is written last: without it the items are not whole
        return
    cells: dict[tuple[str, str], list[Item]] = {}
    for item in run.items("held-out"):
        cells.setdefault((item["split"], item["mode"]), []).append(item)
    for (split, mode), items in cells.items():
        for metric, (field, counts) in _METRICS.items():
            values = [item[field] for item in items if counts(item)]
            if values and (metric != "flawless_tool_exact" or any(item["opportunities"] for item in items)):
                yield _score(split, mode, metric, values)
        for part in ("name", "think", "arguments"):
            values = [item["right"][part] for item in items if part in item.get("right", {})]
            if values:
                yield _score(split, mode, f"right_{part}", values)
        for kind in sorted({item["kind"] for item in items}):
            yield _score(split, mode, f"exact_{kind}", [item["exact"] for item in items if item["kind"] == kind])


def _score(split: str, mode: str, metric: str, values: list[float]) -> dict[str, Any]:
    return {"split": split, "mode": mode, "metric": metric, "value": _mean(values), "n_items": len(values)}


def start(experiment: Experiment, run: Run) -> str | None:
    """The run whose evaluation shows what ``run`` started from."""
    if run.parent is not None:
        return run.parent
    base = next((r for r in experiment.runs if r.kind == "none" and r.model == run.model and r is not run), None)
    return base.id if base else None


def _family(seeds: dict[str, dict[int, float]], reference: str) -> list[dict[str, Any]]:
    """All comparisons of one metric, with Holm's correction over them."""
    pairs = [(method, reference, "") for method in seeds if method != reference and reference in seeds]
    pairs += [pair for pair in QUESTIONS if pair[0] in seeds and pair[1] in seeds and reference not in pair[:2]]
    rows = []
    for a, b, question in pairs:
        difference = comparison.paired_difference(seeds[a], seeds[b])
        row = asdict(difference)
        rows.append({"a": a, "b": b, "question": question, "n_seeds": row.pop("n"), **row})
    for row, corrected in zip(rows, comparison.holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = corrected
    return rows


def _benchmark(run: Run, benchmark: str) -> list[dict[str, Any]]:
    summary = run.summary(benchmark)
    if summary is None:
        return [{"not_run": "no result in the run directory" if run.is_done else "the run is not finished"}]
    if summary.get("not_run"):
        return [{"not_run": summary["not_run"]}]
    rows = []
    for name, category in summary["categories"].items():
        share = comparison.wilson(category["correct"], category["n"])
        counts = {key: category.get(key) for key in ("n", "correct", "parse_failures", "over_length")}
        seen = ((summary.get("contamination") or {}).get("categories") or {}).get(name) or {}
        of_rest = {"contaminated": seen.get("contaminated"), "accuracy_of_rest": seen.get("rest", {}).get("accuracy")}
        share = {"accuracy": share.mean, "low": share.low, "high": share.high}
        rows.append({"category": name, **counts, **share, **of_rest})
    for name, value in summary.get("aggregates", {}).items():
        low, high = (summary.get("intervals") or {}).get(name) or (None, None)
        reason = "" if value is not None else _why_no_total(summary)
        counts = _of_total(summary, name)
        rows.append({"category": f"= {name}", "accuracy": value, "low": low, "high": high, "not_run": reason, **counts})
    return rows


def _why_no_total(summary: dict[str, Any]) -> str:
    limit = summary.get("limit")
    partly = f", or only in part ({limit} items a category)" if limit else ""
    return f"a category that it needs was not run{partly}"


def _of_total(summary: dict[str, Any], name: str) -> dict[str, Any]:
    """Items of a total, and how many of them were seen in training, from the categories that it weighs."""
    parts = (summary.get("weights") or {}).get(name)
    if not parts:
        return {}
    seen = (summary.get("contamination") or {}).get("categories") or {}
    known = all(part in seen for part in parts)
    return {
        "n": sum(summary["categories"][part]["n"] for part in parts),
        "contaminated": sum(seen[part]["contaminated"] for part in parts) if known else None,
    }


def _seeds(estimate: comparison.Estimate, n_items: int) -> dict[str, Any]:
    return {
        "mean": estimate.mean,
        "low": estimate.low,
        "high": estimate.high,
        "n_seeds": estimate.n,
        "n_items": int(n_items),
    }


def _mean(values: Any) -> float:
    values = [float(value) for value in values]
    return sum(values) / len(values)
