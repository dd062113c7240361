"""Curves over training, by step and region: what the metrics of the runs say, with bands over seeds."""

from __future__ import annotations

import pandas as pd

from restool.analysis.experiment import Experiment

REGIONS = ("format", "name", "arguments", "think", "response", "other")
"""Regions in the order in which every table and figure lists them."""

GROUP = ["model", "schedule", "method"]


def metric(experiment: Experiment, name: str) -> pd.DataFrame:
    """Metric ``name`` of every finished RL run: run, model, schedule, method, seed, step, value."""
    rows = [
        run.labels | {"step": row["step"], "value": row[name]}
        for run in experiment.rl_runs
        if run.is_done
        for row in run.metrics
        if row.get(name) is not None
    ]
    return pd.DataFrame(rows, columns=["run", *GROUP, "seed", "step", "value"])


def by_region(experiment: Experiment, kind: str = "entropy") -> pd.DataFrame:
    """``entropy/<region>`` (nats, never weighted) or ``weight/<region>`` of every RL run, with a region column."""
    frames = [metric(experiment, f"{kind}/{region}").assign(region=region) for region in REGIONS]
    return pd.concat([frame for frame in frames if len(frame)] or frames[:1], ignore_index=True)


def over_seeds(frame: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Mean, least and greatest value over seeds: the band of a curve. Columns: *by, mean, low, high, n_seeds."""
    grouped = frame.groupby(by, sort=False)["value"]
    band = grouped.agg(mean="mean", low="min", high="max", n_seeds="count")
    return band.reset_index()


def at_start(experiment: Experiment) -> pd.DataFrame:
    """Entropy by region of the answers of training step 1, sampled before the first update, one row a run and region.

    Runs that start from one checkpoint with one seed sample the same answers; they are counted once.
    """
    frame = by_region(experiment)
    if frame.empty:
        return frame
    parents = {run.id: run.parent or run.model for run in experiment.rl_runs}
    first = frame[frame["step"] == frame.groupby("run")["step"].transform("min")]
    first = first[first["step"] == 1].assign(start=first["run"].map(parents))
    return first.drop_duplicates(["start", "seed", "region"])
