"""What the numbers say, in words. Every sentence is computed; a null result is told as one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd

from restool.analysis import tables
from restool.analysis.experiment import Experiment

METRIC_NAMES = {
    "reward_mean": "mean reward during training",
    "gradient_norm": "gradient norm",
    "clip_fraction": "clipped share of tokens",
    "explained_variance": "critic's explained variance, last quarter",
    "released_crashes": "spans a step at which the released code raises",
    "reward": "reward",
    "tool_exact": "tool-exact",
    "flawless_tool_exact": "tool-exact on prompts without a flaw",
    "exact": "exact",
    "format": "format",
    "correctness": "correctness",
    "finished": "finished",
    "tokens": "tokens",
    "right_name": "right name",
    "right_think": "right thought",
    "right_arguments": "right arguments",
}


def name(metric: str, mode: str | None = None) -> str:
    """A metric in words; ``exact_<kind>`` names the kind of prompt."""
    known = METRIC_NAMES.get(metric) or f"exact, {metric.removeprefix('exact_').replace('_', ' ')}"
    return known if mode is None or metric in tables.TRAINING else f"{mode} {known}"


def signed(mean: float, low: float, high: float) -> str:
    """``+0.241 [+0.206, +0.276]``; without an interval, the mean alone."""
    return f"{mean:+.3f}" + ("" if pd.isna(low) else f" [{low:+.3f}, {high:+.3f}]")


MOST_NAMED = 6  # methods; of more, the answer tells each measure once and leaves the numbers to the tables


@dataclass(frozen=True)
class Finding:
    """One sentence of the answer, and the numbers that it rests on."""

    verdict: str
    numbers: str = ""


def state(experiment: Experiment, frames: dict[str, pd.DataFrame]) -> list[Finding]:
    """The answer to the experiment's question."""
    found = [*_differences(frames["differences"]), *_gains(experiment, frames["gains"])]
    found += _flawless(experiment, frames["gains"])
    unfinished = [run.id for run in experiment.runs if not run.is_done]
    if unfinished:
        shown = ", ".join(unfinished[:4]) + (", ..." if len(unfinished) > 4 else "")
        found.append(Finding(f"{len(unfinished)} of {len(experiment.runs)} runs are not finished.", shown))
    if not any(run.is_done for run in experiment.rl_runs):
        found.insert(0, Finding("No RL run is finished, so there is no answer yet."))
    return found


def verdict(row: Any) -> str:
    """Of one paired difference (a row of the differences table)."""
    if row.n_seeds < 2:
        return "one seed: no verdict"
    if row.low <= 0 <= row.high:
        return "not distinguishable"
    corrected = "" if row.p_holm < 0.05 else ", but not after Holm's correction"
    return ("higher" if row.mean > 0 else "lower") + corrected


def _differences(differences: pd.DataFrame) -> Iterator[Finding]:
    differences = differences[~differences["metric"].str.startswith("right_").astype(bool)]
    for where, group in _groups(differences):
        plain = group[group["question"] == ""]
        if plain["a"].nunique() > MOST_NAMED:
            yield from _measures(plain, where)
            group = group[group["question"] != ""]
        for (a, b, question), rows in group.groupby(["a", "b", "question"], sort=False):
            if (a, b, question) == tables.QUESTIONS[-1]:
                continue  # follows from the others; the table has it
            why = f" ({question})" if question else ""
            told = [
                f"{name(row.metric, row.mode)} {signed(row.mean, row.low, row.high)}{_power(row)}"
                for row in rows.itertuples()
            ]
            yield Finding(f"{a} against {b}{why}{where}: {_summary(rows)}.", "; ".join(told))


def _measures(group: pd.DataFrame, where: str) -> Iterator[Finding]:
    """Of many methods: for each reference and measure, which of them differ."""
    for (b, mode, metric), rows in group.groupby(["b", "mode", "metric"], sort=False):
        found: dict[str, list[str]] = {}
        for row in rows.itertuples():
            found.setdefault(verdict(row), []).append(row.a)
        silent = len(found.pop("not distinguishable", []))
        told = [
            f"{how.replace(', but not after', ' only before')} for {listed(methods)}"
            for how, methods in sorted(found.items())
        ]
        told += [f"not distinguishable for {silent} of {len(rows)} methods"] if silent else []
        seeds = f" ({rows['n_seeds'].max()} seeds)"
        yield Finding(f"{name(metric, mode).capitalize()} against {b}{where}{seeds}: {'; '.join(told)}.")


def _summary(rows: pd.DataFrame) -> str:
    """``lower on 2 of 4 measures (...), not distinguishable on the rest with 3 seeds``."""
    verdicts = {row: verdict(row) for row in rows.itertuples(index=False, name="Difference")}
    seeds = f"with {rows['n_seeds'].max()} seeds"
    if all(value.startswith("one seed") for value in verdicts.values()):
        return "one seed, so nothing can be said about chance"
    told = []
    for word in ("higher", "lower"):
        clear = [name(row.metric, row.mode) for row, value in verdicts.items() if value == word]
        weak = [name(row.metric, row.mode) for row, value in verdicts.items() if value.startswith(f"{word},")]
        told += [f"{word} in {listed(clear)}"] if clear else []
        told += [f"{word} in {listed(weak)} only before Holm's correction"] if weak else []
    if not told:
        return f"not distinguishable {seeds}"
    rest = any(value == "not distinguishable" for value in verdicts.values())
    return "; ".join(told) + (f"; otherwise not distinguishable {seeds}" if rest else f", {seeds}")


def _power(row: Any) -> str:
    null = row.n_seeds > 1 and row.low <= 0 <= row.high
    return f" (could have shown {row.detectable:.3f})" if null and not pd.isna(row.detectable) else ""


def _gains(experiment: Experiment, gains: pd.DataFrame) -> Iterator[Finding]:
    split = tables.main_split(experiment)
    for where, group in _groups(_trained(experiment, gains)):
        for mode, metric in (("greedy", "tool_exact"), ("sampled", "reward")):
            cell = _cell(group, split, mode, metric)
            if cell.empty:
                continue
            shown = cell[cell["low"] > 0]["method"].tolist()
            rest = [method for method in cell["method"] if method not in shown]
            if cell["low"].isna().all():
                told = "one seed, so no interval"
            elif not rest:
                told = "up for every method"
            else:
                risen = f"all but {listed(rest)}" if len(shown) > MOST_NAMED > len(rest) else listed(shown)
                told = (f"up for {risen}; " if shown else "") + f"no rise shown for {listed(rest)}"
            yield Finding(f"{name(metric, mode).capitalize()} after RL{where}: {told}.", _by_method(cell))


def _flawless(experiment: Experiment, gains: pd.DataFrame) -> Iterator[Finding]:
    split = tables.main_split(experiment)
    for where, group in _groups(_trained(experiment, gains)):
        cell = _cell(group, split, "greedy", "flawless_tool_exact")
        if not cell.empty:
            worse = cell[cell["high"] < 0]["method"].tolist()
            told = f"worse for {listed(worse)}" if worse else "no loss shown for any method"
            yield Finding(f"Prompts without a flaw, greedy tool-exact after RL{where}: {told}.", _by_method(cell))


def _by_method(cell: pd.DataFrame) -> str:
    if len(cell) > MOST_NAMED:
        return ""
    return "; ".join(f"{row.method} {signed(row.mean, row.low, row.high)}" for row in cell.itertuples())


def _trained(experiment: Experiment, frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["method"].isin({run.method for run in experiment.rl_runs})]


def _groups(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """By model and schedule; the group is named only if there are several."""
    groups = list(frame.groupby(["model", "schedule"], sort=False))
    for (model, schedule), group in groups:
        yield ("" if len(groups) == 1 else f" ({model}, {schedule})"), group


def _cell(frame: pd.DataFrame, split: str | None, mode: str, metric: str) -> pd.DataFrame:
    return frame[(frame["split"] == split) & (frame["mode"] == mode) & (frame["metric"] == metric)]


def listed(names: list[str]) -> str:
    """``a, b and c``."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
